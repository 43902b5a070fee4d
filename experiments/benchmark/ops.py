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
from jaxnn.ops.linear import Embedding, Linear, embedding
from jaxnn.ops.linear_cross_entropy import linear_cross_entropy
from jaxnn.ops.normalisation import Scale, layer_norm, rms_norm

# Of an op in bfloat16, against autodiff of the same: each rounds to 2^-9 of a value, step by step.
AGREE_BFLOAT16 = 3e-2


def op_case(
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

    return op_case(
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
    return op_case(
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


def norm_case(kind: str, shape: tuple[int, int], dtype: Any = jnp.float32) -> Case:
    """Layer or RMS norm of rows."""
    op: Op[..., Array] = layer_norm if kind == "layer" else rms_norm

    def draw() -> tuple[Scale, Array]:
        shift = normal(1, shape[1]) if kind == "layer" else None
        return Scale(normal(0, shape[1]), shift), normal(2, *shape)

    return op_case(
        f"x {shape}",
        op,
        draw,
        lambda torch, inputs, dout: torch.norm(kind, *inputs, dout),
        wrt=(0, 1),
        stronger={"checkpointed": jax.checkpoint(lambda params, x: op.fwd(params, x)[0])},
        dtype=dtype,
    )


def embedding_case(vocabulary: int, d: int, n: int, dtype: Any = jnp.float32) -> Case:
    """Rows of a table, and the sum of their cotangents."""

    def indexed(params: Embedding, tokens: Array) -> Array:
        return params.table.at[tokens].get(mode="promise_in_bounds")

    def one_hot(params: Embedding, tokens: Array) -> Array:
        return jax.nn.one_hot(tokens, vocabulary) @ params.table

    return op_case(
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
