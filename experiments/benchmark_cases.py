"""What `experiments.benchmark` measures: every case with all its arms, in JAX.

A case draws its inputs and names its arms; an arm does the whole of the case's work, from the same
inputs: forward and backward, for a result and all its gradients. By hand, that is `op.fwd` and
`op.bwd` or a model's `manual_value_and_grad`; by `jax.grad`, `jax.vjp` of the same forward or
`jax.value_and_grad` of the model's loss. Arms called "jax.grad, ..." are stronger forms for
autodiff of the same function. What PyTorch does is in `experiments.benchmark_torch`. No arm
donates, all compute in float32.
"""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from experiments import numpy_net
from jaxnn import data, text, train
from jaxnn.models import autoencoder, cnn, mlp, rnn, transformer
from jaxnn.models.transformer_block import NORMS, block_fwd
from jaxnn.models.transformer_config import Config, gpt2, llama
from jaxnn.op import Op
from jaxnn.ops.attention import attention
from jaxnn.ops.convolution import Conv, conv2d
from jaxnn.ops.embedding import Embedding, embedding
from jaxnn.ops.linear import Linear, linear
from jaxnn.ops.linear_cross_entropy import linear_cross_entropy
from jaxnn.ops.matmul import LADDER
from jaxnn.ops.multi_head import MultiHead
from jaxnn.ops.normalisation import Running, Scale, batch_norm, layer_norm, rms_norm
from jaxnn.ops.pooling import average_pool, max_pool
from jaxnn.ops.recurrent import gru, init_gru, init_lstm, lstm
from jaxnn.ops.rotary import rotary
from jaxnn.ops.sequence import Output, Recurrent, State

BY_HAND, AUTODIFF, PYTORCH = "by hand", "jax.grad", "PyTorch"
COMPILED = f"{PYTORCH} compiled"
EPOCHS, POINTS, LEARNING_RATE = 300, 100, 0.5  # of the two moons


class LeftOutError(Exception):
    """An arm that cannot run here, with the reason."""


class Arm(NamedTuple):
    """One way to do a case's work, ready to run.

    Attributes:
        run: does it, waits for it, and returns (result, gradients); of each the first leaf is
            compared with the other arms'.
        temporary: bytes that the compiled program needs beside its inputs and outputs; None where
            nothing says.
        compile_seconds: tracing included; None where nothing is compiled.
    """

    run: Callable[[], tuple[Any, Any]]
    temporary: int | None = None
    compile_seconds: float | None = None


Builds = dict[str, Callable[[], Arm]]


class Case(NamedTuple):
    """Work to measure.

    Attributes:
        what: sizes and settings, in words.
        make: draws the inputs; what builds each arm, by its name.
        step: whether it is a model's training step.
        flops: floating-point operations of its products, where they are counted.
        base: the arm that the others are compared with.
        agree: how far from `jax.grad`'s an arm's results may be, by the scale of each.
    """

    what: str
    make: Callable[[], Builds]
    step: bool = False
    flops: float | None = None
    base: str = BY_HAND
    agree: float = 1e-3


def cores() -> int:
    """How many cores this process may use, and JAX does."""
    return len(os.sched_getaffinity(0))


def compiled(function: Callable[..., tuple[Any, Any]], *inputs: Any) -> Arm:
    """`function(*inputs)` as a compiled program, with nothing of it compiled before."""
    jax.clear_caches()
    started = time.perf_counter()
    program = jax.jit(function).lower(*inputs).compile()
    seconds = time.perf_counter() - started
    memory = program.memory_analysis()
    return Arm(
        lambda: jax.block_until_ready(program(*inputs)),
        None if memory is None else memory.temp_size_in_bytes,
        seconds,
    )


def product(size: int) -> Arm:
    """One product of two square matrices: what the machine can do, 2 size^3 operations."""
    a, b = _normal(0, size, size), _normal(1, size, size)
    return compiled(lambda a, b: (a @ b, ()), a, b)


def transformer_flops(config: Config, n: int, t: int) -> float:
    """Operations of the products in a training step of N sequences of T tokens, no experts.

        6 N T (P + 2 layers T D)

    P weights are in products: per layer 2 D^2 + 2 D (kv_heads head_size) in the attention and 2 or
    (swiglu) 3 D hidden in the feed-forward, and D V in the output. Each does a multiply-add per
    token in the forward and two in the backward; so do the T keys in the scores and the average of
    every layer, D each. Hidden scores count too, as is usual, and nothing recomputed does.
    """
    d, hidden = config.width, config.hidden or 4 * config.width
    inner = (config.kv_heads or config.heads) * config.head_size
    feed_forward = (3 if config.feed_forward == "swiglu" else 2) * d * hidden
    weights = config.layers * (2 * d * d + 2 * d * inner + feed_forward) + d * config.vocabulary
    return float(6 * n * t * (weights + 2 * config.layers * t * d))


def cases(small: int = 1) -> dict[str, Case]:
    """Every case by its name; sizes that only cost time are divided by `small`."""

    def s(size: int) -> int:
        return max(2, size // small)

    return {
        "mlp-small": _mlp(s(32), (64, 32, 10)),
        "mlp-large": _mlp(s(128), (784, s(512), s(512), 10)),
        "cnn-small": _cnn(s(32), (8, 8, 1), (32, 64)),
        "cnn-large": _cnn(s(64), (32, 32, 3), (32, 64)),
        "rnn-small": _rnn(s(16), s(64), rnn.Config(width=64, hidden=s(128))),
        "rnn-large": _rnn(s(32), s(128), rnn.Config(width=128, hidden=s(256), layers=2)),
        "gpt-small": _transformer(8, s(128), gpt2(layers=2, width=s(128))),
        "gpt-large": _transformer(8, s(256), gpt2(vocabulary=256, positions=256, width=s(256))),
        "llama-small": _transformer(8, s(128), llama(layers=2, width=s(128), kv_heads=2)),
        "llama-large": _transformer(
            8, s(256), llama(vocabulary=256, positions=256, width=s(256), kv_heads=2)
        ),
        "autoencoder-small": _autoencoder(s(32), (64, s(256), 2)),
        "autoencoder-large": _autoencoder(s(128), (784, s(512), 16)),
        "lm-head-256": _lm_head(s(1024), s(256), 256),
        "lm-head-8k": _lm_head(s(1024), s(256), s(8192)),
        "lm-head-50k": _lm_head(s(1024), s(256), s(50304)),
        "attention-t256": _attention(4, s(256)),
        "attention-t1024": _attention(4, s(1024)),
        "attention-t4096": _attention(1, s(4096)),
        "lstm-b4": _recurrent("LSTM", s(4), s(128), 128, s(256)),
        "lstm-b32": _recurrent("LSTM", s(32), s(128), 128, s(256)),
        "gru-b4": _recurrent("GRU", s(4), s(128), 128, s(256)),
        "gru-b32": _recurrent("GRU", s(32), s(128), 128, s(256)),
        "conv-stride1": _conv(s(64), 1),
        "conv-stride2": _conv(s(64), 2),
        "max-pool": _pool("max", s(64)),
        "average-pool": _pool("average", s(64)),
        "layer-norm": _norm("layer", (s(2048), 512)),
        "rms-norm": _norm("rms", (s(2048), 512)),
        "batch-norm": _batch_norm((s(64), 32, 32, 32)),
        "embedding-256": _embedding(256, 256, s(4096)),
        "embedding-50k": _embedding(s(50304), 256, s(4096)),
        "moons": Case(
            f"{EPOCHS} full-batch steps on {POINTS} points, sizes (2, 10, 2), as one program",
            _moons,
        ),
        "ladder": Case("5x784 by 784x10, tutorial C's ways", _ladder, base="operator"),
    }


# ---- models' training steps


def _step(
    what: str,
    model: Any,
    config: Any,
    draw: Callable[[], Any],
    peer: Callable[[Any, Any, Any], Any],
    stronger: Mapping[str, Callable[..., Array]] | None = None,
    other_configs: Mapping[str, Any] | None = None,
    flops: float | None = None,
) -> Case:
    """A model's loss and gradient.

    Args:
        what: sizes and settings.
        model: a module with the model functions.
        config: its configuration.
        draw: a batch.
        peer: (`benchmark_torch`, parameters, batch) -> what PyTorch does.
        stronger: other forms of `loss(params, batch, config)`, by what they are.
        other_configs: for the hand-written gradient, by what they are.
        flops: see `Case`.
    """
    hands = {"": config} | dict(other_configs or {})
    saved = jax.checkpoint(model.loss, policy=_is_product, static_argnums=2)
    losses = {"": model.loss, "only products saved": saved} | dict(stronger or {})

    def make() -> Builds:
        params, batch = jax.jit(model.init_params, static_argnums=1)(_key(0), config), draw()
        builds: Builds = {}
        for name, setting in hands.items():
            by_hand = partial(model.manual_value_and_grad, config=setting)
            builds[_named(BY_HAND, name)] = partial(compiled, by_hand, params, batch)
        for name, loss in losses.items():
            by_autodiff = jax.value_and_grad(partial(_of_two, loss, config))
            builds[_named(AUTODIFF, name)] = partial(compiled, by_autodiff, params, batch)
        return builds | _peers(lambda torch: peer(torch, params, batch))

    return Case(what, make, step=True, flops=flops)


def _of_two(loss: Callable[..., Array], config: Any, params: Any, batch: Any) -> Array:
    return loss(params, batch, config)


def _mlp(n: int, sizes: tuple[int, ...]) -> Case:
    config = mlp.Config(sizes=sizes)
    return _step(
        f"sizes {sizes}, batch {n}",
        mlp,
        config,
        lambda: data.Batch(_normal(1, n, sizes[0]), _integers(2, sizes[-1], n)),
        lambda torch, params, batch: torch.mlp(params, batch, config),
    )


def _cnn(n: int, shape: tuple[int, int, int], channels: tuple[int, ...]) -> Case:
    config = cnn.Config(shape=shape, channels=channels)
    case = _step(
        f"images {shape}, channels {channels}, batch norm, batch {n}",
        cnn,
        config,
        lambda: cnn.Batch(_normal(1, n, *shape), _integers(2, 10, n), _key(3)),
        lambda torch, params, batch: torch.cnn(params, batch, config),
    )
    # PyTorch's batch norm of images with channels last sums one value after the other: with one
    # thread, at the large size, the stem's gradient is off by 2.3e-3 (jax.grad's by 6e-7).
    return case._replace(agree=1e-2)


def _rnn(n: int, t: int, config: rnn.Config) -> Case:
    return _step(
        f"LSTM, {config.layers} of {config.hidden}, vocabulary {config.vocabulary}, T {t}, "
        f"batch {n}",
        rnn,
        config,
        lambda: _tokens(config.vocabulary, n, t),
        lambda torch, params, batch: torch.rnn(params, batch),
        {"8 steps unrolled": _unrolled_rnn_loss},
    )


def _transformer(n: int, t: int, config: Config) -> Case:
    return _step(
        f"{config.layers} layers of {config.width}, {config.heads} heads, vocabulary "
        f"{config.vocabulary}, T {t}, batch {n}",
        transformer,
        config,
        lambda: _tokens(config.vocabulary, n, t),
        lambda torch, params, batch: torch.transformer(params, batch, config),
        {
            "layers unrolled, JAX's attention": _plain_transformer_loss,
            "unrolled and checkpointed": partial(_plain_transformer_loss, checkpoint=True),
        },
        {"recompute": dataclasses.replace(config, recompute=True)},
        transformer_flops(config, n, t),
    )


def _autoencoder(n: int, sizes: tuple[int, ...]) -> Case:
    config = autoencoder.Config(sizes=sizes)
    return _step(
        f"sizes {sizes} and back, batch {n}",
        autoencoder,
        config,
        lambda: autoencoder.Batch(jax.random.uniform(_key(1), (n, sizes[0])), _key(2)),
        lambda torch, params, batch: torch.autoencoder(params, batch, config),
    )


def _is_product(primitive: Any, *_: Any, **__: Any) -> bool:
    """For `jax.checkpoint`: keep what a product or convolution gave, recompute all else."""
    return primitive in (lax.dot_general_p, lax.conv_general_dilated_p)


def _unrolled_rnn_loss(params: rnn.Params, batch: text.Batch, config: rnn.Config) -> Array:
    x = params.embedding.table[batch.tokens]
    states = rnn.initial_states(params, len(x), config)
    for layer, state in zip(params.layers, states, strict=True):
        x, _ = _unrolled(_lstm_step, layer, state, x)
    return _cross_entropy(linear.fwd(params.output, x)[0], batch.targets)


def _plain_transformer_loss(
    params: transformer.Params,
    batch: text.Batch,
    config: Config,
    checkpoint: bool = False,
) -> Array:
    """No scan over the layers, `jax.nn.dot_product_attention`, and all logits at once."""
    positions = jnp.arange(batch.tokens.shape[1])

    def attend(params: MultiHead, x: Array) -> tuple[Array, None]:
        wq, wk, wv, wo, bq, bk, bv, bo = params
        q, k, v = (
            linear.fwd(Linear(w, b), x)[0].reshape(*x.shape[:2], -1, config.head_size)
            for w, b in ((wq, bq), (wk, bk), (wv, bv))
        )
        if config.position == "rotary":
            q, k = (rotary.fwd(a, positions, base=config.rotary_base)[0] for a in (q, k))
        y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        return linear.fwd(Linear(wo, bo), y.reshape(x.shape))[0], None

    def layer(block: Any, x: Array) -> Array:
        (x, _), _ = block_fwd(block, x, None, attend, config)
        return x

    layer = jax.checkpoint(layer) if checkpoint else layer
    x, _ = transformer.embed_fwd(params, batch.tokens, positions)
    for number in range(config.layers):
        x = layer(jax.tree.map(lambda leaf, number=number: leaf[number], params.blocks), x)
    x, _ = NORMS[config.norm].fwd(params.norm, x, eps=config.eps)
    return _cross_entropy(x @ transformer.output_weights(params), batch.targets)


def _cross_entropy(logits: Array, targets: Array) -> Array:
    loss: Array = optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()
    return loss


# ---- ops


def _op(
    what: str,
    op: Any,
    draw: Callable[[], tuple[Any, ...]],
    peer: Callable[[Any, tuple[Any, ...], Any], Any],
    *,
    wrt: tuple[int, ...],
    static: Mapping[str, Any] | None = None,
    stronger: Mapping[str, Callable[..., Any]] | None = None,
    by_hand: Mapping[str, Mapping[str, Any]] | None = None,
) -> Case:
    """An op's result and, from a random cotangent of it, those of its inputs.

    Args:
        what: sizes and settings.
        op: with `fwd` and `bwd`.
        draw: its inputs.
        peer: (`benchmark_torch`, inputs, cotangent) -> what PyTorch does.
        wrt: the inputs that have cotangents.
        static: settings of the op.
        stronger: other forms of its forward, `function(*inputs) -> result`, by what they are.
        by_hand: more settings for more arms by hand, by what they are.
    """
    static = dict(static or {})

    def plain(*inputs: Any) -> Any:
        return op.fwd(*inputs, **static)[0]

    hands = {"": static} | {name: static | dict(more) for name, more in (by_hand or {}).items()}
    forwards = {"": plain} | dict(stronger or {})

    def make() -> Builds:
        inputs = draw()
        dout = _cotangent(jax.eval_shape(plain, *inputs))

        def hand(inputs: Any, dout: Any, settings: Mapping[str, Any]) -> tuple[Any, Any]:
            out, residuals = op.fwd(*inputs, **settings)
            cotangents = op.bwd(residuals, dout, **settings)
            return out, [cotangents[i] for i in wrt]

        def autodiff(inputs: Any, dout: Any, forward: Callable[..., Any]) -> tuple[Any, Any]:
            def of(*some: Any) -> Any:
                given = dict(zip(wrt, some, strict=True))
                return forward(*(given.get(i, x) for i, x in enumerate(inputs)))

            out, pull = jax.vjp(of, *(inputs[i] for i in wrt))
            return out, pull(dout)

        builds: Builds = {}
        for name, settings in hands.items():
            run = partial(hand, settings=settings)
            builds[_named(BY_HAND, name)] = partial(compiled, run, inputs, dout)
        for name, forward in forwards.items():
            run = partial(autodiff, forward=forward)
            builds[_named(AUTODIFF, name)] = partial(compiled, run, inputs, dout)
        return builds | _peers(lambda torch: peer(torch, inputs, dout))

    return Case(what, make)


def _lm_head(n: int, d: int, vocabulary: int, chunk: int = 128) -> Case:
    def whole(w: Array, x: Array, labels: Array) -> Array:
        return _cross_entropy(x @ w, labels)

    def chunked(w: Array, x: Array, labels: Array) -> Array:
        size = min(chunk, n)
        rows = x.reshape(-1, size, d), labels.reshape(-1, size)
        losses: Array = lax.map(jax.checkpoint(lambda part: whole(w, *part)), rows)
        return losses.mean()

    return _op(
        f"N {n}, D {d}, vocabulary {vocabulary}",
        linear_cross_entropy,
        lambda: (_normal(0, d, vocabulary) / d, _normal(1, n, d), _integers(2, vocabulary, n)),
        lambda torch, inputs, dout: torch.lm_head(*inputs, dout),
        wrt=(0, 1),
        stronger={"all logits at once": whole, f"{chunk} rows checkpointed": chunked},
    )


def _attention(n: int, t: int) -> Case:
    def plain(q: Array, k: Array, v: Array, mask: None) -> Array:
        return attention.fwd(q, k, v, mask, causal=True)[0]

    def jax_nn(q: Array, k: Array, v: Array, _: None) -> Array:
        y: Array = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        return y

    return _op(
        f"causal, batch {n}, 4 heads of 64, T {t}",
        attention,
        lambda: (*(_normal(i, n, t, 4, 64) for i in range(3)), None),
        lambda torch, inputs, dout: torch.attention(inputs[:3], dout),
        wrt=(0, 1, 2),
        static={"causal": True},
        stronger={"JAX's attention": jax_nn, "checkpointed": jax.checkpoint(plain)},
        by_hand={"block 128": {"block": 128}},
    )


def _recurrent(kind: str, n: int, t: int, d: int, hidden: int) -> Case:
    op, init, step = {"LSTM": (lstm, init_lstm, _lstm_step), "GRU": (gru, init_gru, _gru_step)}[
        kind
    ]

    def draw() -> tuple[Recurrent, State, Array, None]:
        state = State(_normal(1, n, hidden), _normal(2, n, hidden) if kind == "LSTM" else None)
        return init(_key(0), d, hidden), state, _normal(3, n, t, d), None

    return _op(
        f"T {t}, D {d}, H {hidden}, batch {n}",
        op,
        draw,
        lambda torch, inputs, dout: torch.recurrent(kind, *inputs[:3], dout),
        wrt=(0, 1, 2),
        stronger={
            "8 steps unrolled": lambda params, state, x, _: _unrolled(step, params, state, x)
        },
    )


def _unrolled(
    step: Callable[[Recurrent, State, Array], State], params: Recurrent, state: State, x: Array
) -> Output:
    """A cell over all steps, the product with the inputs hoisted, eight steps per loop."""
    a_x = jnp.einsum("ntd,dg->tng", x, params.w_x) + params.b

    def body(before: State, a_x: Array) -> tuple[State, Array]:
        after = step(params, before, a_x)
        return after, after.h

    final, h = lax.scan(body, state, a_x, unroll=8)
    return h.swapaxes(0, 1), final


def _lstm_step(params: Recurrent, before: State, a_x: Array) -> State:
    i, f, g, o = jnp.split(a_x + before.h @ params.w_h, 4, -1)
    c = jax.nn.sigmoid(f) * before.c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return State(jax.nn.sigmoid(o) * jnp.tanh(c), c)


def _gru_step(params: Recurrent, before: State, a_x: Array) -> State:
    h_r, h_z, h_n = jnp.split(before.h @ params.w_h, 3, -1)
    x_r, x_z, x_n = jnp.split(a_x, 3, -1)
    r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
    b_hn: Any = params.b_hn
    n = jnp.tanh(x_n + r * (h_n + b_hn))
    return State((1 - z) * n + z * before.h)


def _conv(n: int, stride: int) -> Case:
    def unfolded(params: Conv, x: Array) -> Array:
        taps = lax.conv_general_dilated_patches(
            x,
            (3, 3),
            (stride, stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # channels first, then the taps
        return taps @ params.w.transpose(2, 0, 1, 3).reshape(-1, params.w.shape[-1])

    return _op(
        f"3x3, 32 to 64 channels, images {n}x32x32, stride {stride}",
        conv2d,
        lambda: (Conv(_normal(0, 3, 3, 32, 64) / 17, None), _normal(1, n, 32, 32, 32)),
        lambda torch, inputs, dout: torch.conv(*inputs, dout, stride),
        wrt=(0, 1),
        static={"stride": stride, "padding": 1},
        stronger={"unfolded": unfolded},
    )


def _pool(kind: str, n: int) -> Case:
    choices: dict[str, tuple[Any, Any, Any]] = {
        "max": (max_pool, jnp.max, lambda x: _windows(x, -jnp.inf, lax.max)),
        "average": (average_pool, jnp.mean, lambda x: _windows(x, 0.0, lax.add) / 4),
    }
    op, reduce, window = choices[kind]

    def reshaped(x: Array) -> Array:
        n, h, w, c = x.shape
        y: Array = reduce(x.reshape(n, h // 2, 2, w // 2, 2, c), axis=(2, 4))
        return y

    return _op(
        f"2x2, images {n}x32x32x32",
        op,
        lambda: (_normal(0, n, 32, 32, 32),),
        lambda torch, inputs, dout: torch.pool(kind, *inputs, dout),
        wrt=(0,),
        stronger={"reduce_window": window, "reshaped": reshaped},
    )


def _windows(x: Array, initial: float, combine: Callable[..., Array]) -> Array:
    y: Array = lax.reduce_window(x, initial, combine, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return y


def _norm(kind: str, shape: tuple[int, int]) -> Case:
    op = {"layer": layer_norm, "rms": rms_norm}[kind]

    def draw() -> tuple[Scale, Array]:
        shift = _normal(1, shape[1]) if kind == "layer" else None
        return Scale(_normal(0, shape[1]), shift), _normal(2, *shape)

    return _op(
        f"x {shape}",
        op,
        draw,
        lambda torch, inputs, dout: torch.norm(kind, *inputs, dout),
        wrt=(0, 1),
        stronger={"checkpointed": jax.checkpoint(lambda params, x: op.fwd(params, x)[0])},
    )


def _batch_norm(shape: tuple[int, ...]) -> Case:
    def forward(params: Scale, running: Running, x: Array) -> tuple[Array, Any]:
        (y, _), residuals = batch_norm.fwd(params, running, x, training=True)
        return y, residuals

    def backward(residuals: Any, dy: Array) -> tuple[Any, ...]:
        unused = Running(*jnp.zeros((2, shape[-1])))
        return batch_norm.bwd(residuals, (dy, unused), training=True)

    def draw() -> tuple[Scale, Running, Array]:
        c = shape[-1]
        running = Running(jnp.zeros(c), jnp.ones(c))
        return Scale(_normal(0, c), _normal(1, c)), running, _normal(2, *shape)

    return _op(
        f"x {shape}, training, running statistics not looked at",
        Op(forward, backward, example=batch_norm.example),
        draw,
        lambda torch, inputs, dout: torch.batch_norm(*inputs, dout),
        wrt=(0, 2),
        stronger={"checkpointed": jax.checkpoint(lambda *inputs: forward(*inputs)[0])},
    )


def _embedding(vocabulary: int, d: int, n: int) -> Case:
    def indexed(params: Embedding, tokens: Array) -> Array:
        return params.table.at[tokens].get(mode="promise_in_bounds")

    def one_hot(params: Embedding, tokens: Array) -> Array:
        return jax.nn.one_hot(tokens, vocabulary) @ params.table

    return _op(
        f"vocabulary {vocabulary}, D {d}, {n} tokens",
        embedding,
        lambda: (Embedding(_normal(0, vocabulary, d)), _integers(1, vocabulary, n)),
        lambda torch, inputs, dout: torch.embedding(*inputs, dout),
        wrt=(0,),
        stronger={"in bounds": indexed} | ({"one-hot": one_hot} if vocabulary <= 1024 else {}),
    )


# ---- whole tiny runs, and the ladder


def _moons() -> Builds:
    """Every arm returns the losses before each step and the trained weights."""
    config, optimizer = mlp.Config(sizes=(2, 10, 2)), optax.sgd(LEARNING_RATE)
    batch = data.two_moons(POINTS, seed=7)
    state = train.init_state(mlp, config, optimizer, _key(7))
    layers = [(np.asarray(w), np.asarray(b)) for w, b in state.params.layers]
    x, labels = np.asarray(batch.inputs), np.asarray(batch.targets)

    def program(gradient: train.Gradient) -> Arm:
        run = train.make_run(
            mlp, config, optimizer, batch, epochs=EPOCHS, batch_size=POINTS, gradient=gradient
        )

        def trained(state: train.State) -> tuple[Array, mlp.Params]:
            after, history = run(state)
            return history.loss, after.params

        return compiled(trained, state)

    def python_loop() -> Arm:
        step = train.make_step(mlp, config, optimizer)

        def run() -> tuple[Any, Any]:
            after, losses = state, []
            for _ in range(EPOCHS):
                after, loss = step(after, batch)
                losses.append(loss)
            return np.asarray(jax.device_get(losses)), jax.block_until_ready(after.params)

        return Arm(run)

    def in_numpy() -> tuple[Any, Any]:
        after, losses = numpy_net.descend(
            layers, x, labels, learning_rate=LEARNING_RATE, epochs=EPOCHS
        )
        return np.asarray(losses), after

    return {
        BY_HAND: lambda: program("manual"),
        AUTODIFF: lambda: program("autodiff"),
        "jitted step in a Python loop": python_loop,
        "NumPy": lambda: Arm(in_numpy),
        **_peers(lambda torch: torch.descent(state.params, batch, config, LEARNING_RATE, EPOCHS)),
    }


def _ladder() -> Builds:
    a, b = _normal(0, 5, 784), _normal(1, 784, 10)
    x, y = np.asarray(a), np.asarray(b)

    def rung(multiply: Callable[[Array, Array], Array]) -> Arm:
        return Arm(lambda: (jax.block_until_ready(multiply(a, b)), ()))

    rungs: Builds = {name: partial(rung, multiply) for name, multiply in LADDER.items()}
    return {
        **rungs,
        "NumPy": lambda: Arm(lambda: (x @ y, ())),
        **_peers(lambda torch: torch.product(a, b)),
    }


# ---- what all of them use


def _peers(works: Callable[[Any], Any]) -> Builds:
    """PyTorch's arms, which import it no earlier than this."""
    from experiments import torch_peer

    def missing(reason: str) -> Arm:
        raise LeftOutError(reason)

    if not torch_peer.installed:
        return {PYTORCH: partial(missing, torch_peer.MISSING)}
    if jax.default_backend() != "cpu":
        return {PYTORCH: partial(missing, f"it would run on the CPU, JAX on {jax.devices()[0]}")}
    from experiments import benchmark_torch

    return benchmark_torch.builds(works(benchmark_torch))


def _named(arm: str, form: str) -> str:
    return f"{arm}, {form}" if form else arm


def _key(seed: int) -> Array:
    return jax.random.key(seed)


def _normal(seed: int, *shape: int) -> Array:
    return jax.random.normal(_key(seed), shape)


def _integers(seed: int, below: int, *shape: int) -> Array:
    return jax.random.randint(_key(seed), shape, 0, below)


def _tokens(vocabulary: int, n: int, t: int) -> text.Batch:
    tokens = _integers(1, vocabulary, n, t + 1)
    return text.Batch(tokens[:, :-1], tokens[:, 1:])


def _cotangent(out: Any) -> Any:
    """A random array for every leaf of a result, scaled as a mean loss would."""
    leaves, tree = jax.tree.flatten(out)
    size = max(math.prod(leaf.shape) for leaf in leaves)
    drawn = [_normal(10 + i, *leaf.shape) / size**0.5 for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(tree, drawn)
