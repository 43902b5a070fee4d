"""Single ops: their result and, from a random cotangent of it, those of their inputs."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from experiments.benchmark.arms import (
    AUTODIFF,
    BY_HAND,
    Builds,
    Case,
    LeftOutError,
    compiled,
    cotangent,
    integers,
    named,
    normal,
)
from experiments.benchmark.peers import peers
from jaxnn.numerics import widen
from jaxnn.op import Op
from jaxnn.ops.attention import attention
from jaxnn.ops.batch_norm import Running, batch_norm
from jaxnn.ops.convolution import Conv, conv2d
from jaxnn.ops.gru import gru
from jaxnn.ops.linear import Embedding, Linear, embedding
from jaxnn.ops.linear_cross_entropy import linear_cross_entropy
from jaxnn.ops.normalisation import Scale, layer_norm, rms_norm
from jaxnn.ops.pooling import average_pool, max_pool
from jaxnn.ops.recurrent import lstm
from jaxnn.ops.recurrent_parts import CellState, Recurrent, init_gru, init_lstm
from jaxnn.ops.recurrent_steps import Output

# Of an op in bfloat16, against autodiff of the same: each rounds to 2^-9 of a value, step by step.
AGREE_BFLOAT16 = 3e-2


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
    dtype: Any = jnp.float32,
) -> Case:
    """An op's result and, from a random cotangent of it, those of its inputs.

    Args:
        what: sizes and settings.
        op: with `fwd` and `bwd`.
        draw: its inputs.
        peer: (`torch_ops`, inputs, cotangent) -> what PyTorch does.
        wrt: the inputs that have cotangents.
        static: settings of the op.
        stronger: other forms of its forward, `function(*inputs) -> result`, by what they are.
        by_hand: more settings for more arms by hand, by what they are.
        dtype: of the floating inputs.
    """
    static = dict(static or {})

    def plain(*inputs: Any) -> Any:
        return op.fwd(*inputs, **static)[0]

    hands = {"": static} | {name: static | dict(more) for name, more in (by_hand or {}).items()}
    forwards = {"": plain} | dict(stronger or {})

    def drawn() -> tuple[Any, Any]:
        inputs = jax.tree.map(lambda x: x.astype(dtype) if _is_float(x) else x, draw())
        return inputs, cotangent(jax.eval_shape(plain, *inputs))

    def make() -> Builds:
        inputs, dout = drawn()

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
            builds[named(BY_HAND, name)] = partial(compiled, run, inputs, dout)
        for name, forward in forwards.items():
            run = partial(autodiff, forward=forward)
            builds[named(AUTODIFF, name)] = partial(compiled, run, inputs, dout)
        return builds

    case = Case(what, make, peers=lambda: peers("torch_ops", lambda torch: peer(torch, *drawn())))
    if dtype == jnp.float32:
        return case
    name = jnp.dtype(dtype).name
    return case._replace(what=f"{what}, {name}", dtype=dtype, agree=AGREE_BFLOAT16)


def _is_float(x: Array) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.floating))


def lm_head_case(
    n: int, d: int, vocabulary: int, chunk: int = 128, dtype: Any = jnp.float32
) -> Case:
    """The last product and the cross-entropy; for autodiff also in chunks that are recomputed."""

    def whole(params: Linear, x: Array, labels: Array) -> Array:
        return cross_entropy(widen(x @ params.w), labels).astype(x.dtype)

    def chunked(params: Linear, x: Array, labels: Array) -> Array:
        size = min(chunk, n)
        rows = x.reshape(-1, size, d), labels.reshape(-1, size)
        losses: Array = lax.map(jax.checkpoint(lambda part: whole(params, *part)), rows)
        return losses.mean()

    return _op(
        f"N {n}, D {d}, vocabulary {vocabulary}",
        linear_cross_entropy,
        lambda: (Linear(normal(0, d, vocabulary) / d), normal(1, n, d), integers(2, vocabulary, n)),
        lambda torch, inputs, dout: torch.lm_head(*inputs, dout),
        wrt=(0, 1),
        stronger={"all logits at once": whole, f"{chunk} rows checkpointed": chunked},
        dtype=dtype,
    )


def attention_case(n: int, t: int, heads: int = 4, dtype: Any = jnp.float32) -> Case:
    """Causal, by hand also in blocks of queries; in 16 bits for autodiff also by cuDNN."""

    def plain(q: Array, k: Array, v: Array, mask: None) -> Array:
        return attention.fwd(q, k, v, mask, causal=True)[0]

    def jax_nn(q: Array, k: Array, v: Array, _: None) -> Array:
        y: Array = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        return y

    stronger: dict[str, Any] = {"JAX's attention": jax_nn, "checkpointed": jax.checkpoint(plain)}
    if dtype != jnp.float32:
        stronger["cuDNN attention"] = lambda q, k, v, _: cudnn_attention(q, k, v)
    return _op(
        f"causal, batch {n}, {heads} heads of 64, T {t}",
        attention,
        lambda: (*(normal(i, n, t, heads, 64) for i in range(3)), None),
        lambda torch, inputs, dout: torch.attention(inputs[:3], dout),
        wrt=(0, 1, 2),
        static={"causal": True},
        stronger=stronger,
        by_hand={"block 128": {"block": 128}},
        dtype=dtype,
    )


def cudnn_attention(q: Array, k: Array, v: Array) -> Array:
    """Causal attention by cuDNN's kernel, which takes no other dtypes than of 16 bits.

    Raises:
        LeftOutError: JAX computes on no GPU.
    """
    if jax.default_backend() != "gpu":
        raise LeftOutError(f"cuDNN is for GPUs, JAX is on {jax.devices()[0]}")
    y: Array = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
    return y


def recurrent_case(kind: str, n: int, t: int, d: int, hidden: int) -> Case:
    """A whole sequence, from a state before to a state after."""
    op, init, step = {"LSTM": (lstm, init_lstm, lstm_step), "GRU": (gru, init_gru, gru_step)}[kind]

    def draw() -> tuple[Recurrent, CellState, Array, None]:
        state = CellState(normal(1, n, hidden), normal(2, n, hidden) if kind == "LSTM" else None)
        return init(jax.random.key(0), d, hidden), state, normal(3, n, t, d), None

    return _op(
        f"T {t}, D {d}, H {hidden}, batch {n}",
        op,
        draw,
        lambda torch, inputs, dout: torch.recurrent(kind, *inputs[:3], dout),
        wrt=(0, 1, 2),
        stronger={"8 steps unrolled": lambda params, state, x, _: unrolled(step, params, state, x)},
    )


def unrolled(
    step: Callable[[Recurrent, CellState, Array], CellState],
    params: Recurrent,
    state: CellState,
    x: Array,
) -> Output:
    """A cell over all steps, the product with the inputs hoisted, eight steps per loop."""
    a_x = jnp.einsum("ntd,dg->tng", x, params.w_x) + params.b

    def body(before: CellState, a_x: Array) -> tuple[CellState, Array]:
        after = step(params, before, a_x)
        return after, after.h

    final, h = lax.scan(body, state, a_x, unroll=8)
    return h.swapaxes(0, 1), final


def lstm_step(params: Recurrent, before: CellState, a_x: Array) -> CellState:
    """One step of an LSTM as `jax.grad` is given it."""
    i, f, g, o = jnp.split(a_x + before.h @ params.w_h, 4, -1)
    c = jax.nn.sigmoid(f) * before.c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return CellState(jax.nn.sigmoid(o) * jnp.tanh(c), c)


def gru_step(params: Recurrent, before: CellState, a_x: Array) -> CellState:
    """One step of a GRU as `jax.grad` is given it."""
    h_r, h_z, h_n = jnp.split(before.h @ params.w_h, 3, -1)
    x_r, x_z, x_n = jnp.split(a_x, 3, -1)
    r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
    b_hn: Any = params.b_hn
    n = jnp.tanh(x_n + r * (h_n + b_hn))
    return CellState((1 - z) * n + z * before.h)


def conv_case(n: int, stride: int, dtype: Any = jnp.float32) -> Case:
    """A 3x3 convolution with both its gradients."""

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
        lambda: (Conv(normal(0, 3, 3, 32, 64) / 17, None), normal(1, n, 32, 32, 32)),
        lambda torch, inputs, dout: torch.conv(*inputs, dout, stride),
        wrt=(0, 1),
        static={"stride": stride, "padding": 1},
        stronger={"unfolded": unfolded},
        dtype=dtype,
    )


def pool_case(kind: str, n: int) -> Case:
    """Windows of 2x2 side by side."""
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
        lambda: (normal(0, n, 32, 32, 32),),
        lambda torch, inputs, dout: torch.pool(kind, *inputs, dout),
        wrt=(0,),
        stronger={"reduce_window": window, "reshaped": reshaped},
    )


def _windows(x: Array, initial: float, combine: Callable[..., Array]) -> Array:
    y: Array = lax.reduce_window(x, initial, combine, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return y


def norm_case(kind: str, shape: tuple[int, int], dtype: Any = jnp.float32) -> Case:
    """Layer or RMS norm of rows."""
    op: Op[..., Array] = layer_norm if kind == "layer" else rms_norm

    def draw() -> tuple[Scale, Array]:
        shift = normal(1, shape[1]) if kind == "layer" else None
        return Scale(normal(0, shape[1]), shift), normal(2, *shape)

    return _op(
        f"x {shape}",
        op,
        draw,
        lambda torch, inputs, dout: torch.norm(kind, *inputs, dout),
        wrt=(0, 1),
        stronger={"checkpointed": jax.checkpoint(lambda params, x: op.fwd(params, x)[0])},
        dtype=dtype,
    )


def batch_norm_case(shape: tuple[int, ...]) -> Case:
    """Batch norm in training."""

    def forward(params: Scale, running: Running, x: Array) -> tuple[Array, Any]:
        (y, _), residuals = batch_norm.fwd(params, running, x, training=True)
        return y, residuals

    def backward(residuals: Any, dy: Array) -> tuple[Any, ...]:
        unused = Running(*jnp.zeros((2, shape[-1])))
        return batch_norm.bwd(residuals, (dy, unused), training=True)

    def draw() -> tuple[Scale, Running, Array]:
        c = shape[-1]
        running = Running(jnp.zeros(c), jnp.ones(c))
        return Scale(normal(0, c), normal(1, c)), running, normal(2, *shape)

    return _op(
        f"x {shape}, training, running statistics not looked at",
        Op(forward, backward, example=batch_norm.example),
        draw,
        lambda torch, inputs, dout: torch.batch_norm(*inputs, dout),
        wrt=(0, 2),
        stronger={"checkpointed": jax.checkpoint(lambda *inputs: forward(*inputs)[0])},
    )


def embedding_case(vocabulary: int, d: int, n: int, dtype: Any = jnp.float32) -> Case:
    """Rows of a table, and the sum of their cotangents."""

    def indexed(params: Embedding, tokens: Array) -> Array:
        return params.table.at[tokens].get(mode="promise_in_bounds")

    def one_hot(params: Embedding, tokens: Array) -> Array:
        return jax.nn.one_hot(tokens, vocabulary) @ params.table

    return _op(
        f"vocabulary {vocabulary}, D {d}, {n} tokens",
        embedding,
        lambda: (Embedding(normal(0, vocabulary, d)), integers(1, vocabulary, n)),
        lambda torch, inputs, dout: torch.embedding(*inputs, dout),
        wrt=(0,),
        stronger={"in bounds": indexed} | ({"one-hot": one_hot} if vocabulary <= 1024 else {}),
        dtype=dtype,
    )


def cross_entropy(logits: Array, targets: Array) -> Array:
    """The mean over all labels, by optax."""
    loss: Array = optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()
    return loss
