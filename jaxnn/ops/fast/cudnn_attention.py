"""Attention by cuDNN's kernels where a program is compiled for an NVIDIA GPU; elsewhere in parts.

The kernels (Dao, 2023, "FlashAttention-2") never write the scores to memory: the forward gives y
and of each query L, the backward takes both, as the plain pair does. JAX has them in
`jax.nn.dot_product_attention` alone, whose pull-back runs the forward first. Here the program of
the two is cut behind its forward: the first part gives y and L, the rest takes them as they were
saved, and the forward is not run again.

They are for 16 bits, for queries that are causal or see all keys, with or without a window: a mask,
bias, cap, dropout or `block` is for `jaxnn.ops.fast.attention`, and so is what JAX differentiates
itself, which knows no derivative of L of theirs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.custom_batching import custom_vmap
from jax.extend.core import jaxpr_as_fun

from jaxnn.numerics import Pairs, is_zero
from jaxnn.ops.attention import AttentionResiduals
from jaxnn.ops.fast import attention as in_parts
from jaxnn.varying import vary_with

# The first generation of GPUs that has the kernels; the largest heads that all of them take, and
# of what number theirs is a multiple; of fewer positions no kernel is better than a product.
CAPABILITY, HEAD, MULTIPLE, POSITIONS = 8, 128, 8, 64


def attention_fwd(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    bias: Array | None = None,
    key: Array | Pairs | None = None,
    *,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    block: int | None = None,
    softcap: float | None = None,
    rate: float = 0.0,
) -> tuple[Array, AttentionResiduals]:
    """Return what the plain form does, by cuDNN's forward where that can be."""
    settings: dict[str, Any] = {"causal": causal, "window": window, "scale": scale}
    more: dict[str, Any] = {"block": block, "softcap": softcap, "rate": rate}
    if not _by_cudnn(q, k, v, mask, bias, key, causal=causal, **more):
        return in_parts.attention_fwd(q, k, v, mask, bias, key, **settings, **more)
    y, log_normaliser = _forward(q, k, v, **settings)
    return y, AttentionResiduals(q, k, v, mask, bias, key, y, log_normaliser)


def attention_bwd(
    residuals: AttentionResiduals,
    dy: Array,
    *,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    block: int | None = None,
    softcap: float | None = None,
    rate: float = 0.0,
) -> tuple[Array, Array, Array, None, Array | None, None]:
    """Return what the plain form does, by cuDNN's backward where that can be.

    It takes y and dy in the 16 bits of q, and gives dq, dk and dv in these.
    """
    q, k, v, mask, bias, key, y, log_normaliser = residuals
    settings: dict[str, Any] = {"causal": causal, "window": window, "scale": scale}
    more: dict[str, Any] = {"block": block, "softcap": softcap, "rate": rate}
    if not _by_cudnn(q, k, v, mask, bias, key, causal=causal, **more):
        return in_parts.attention_bwd(residuals, dy, **settings, **more)
    dq, dk, dv = _backward(q, k, v, y, log_normaliser, dy, **settings)
    return dq, dk, dv, None, None, None


def _by_cudnn(
    q: Array,
    k: Array,
    v: Array,
    *others: Any,
    causal: bool,
    block: int | None,
    softcap: float | None,
    rate: float,
) -> bool:
    """Whether the kernels can do what is asked, where JAX computes on a GPU that has them."""
    mask, bias, key = others
    (n, t, _, d), (s, e) = q.shape, (v.shape[1], v.shape[3])
    if any(one is not None for one in (mask, bias, block, softcap)):
        return False
    if q.dtype.itemsize != 2 or not (d == e <= HEAD and d % MULTIPLE == 0):
        return False
    if n == 0 or min(t, s) < POSITIONS or (causal and t != s):
        return False
    return (key is None or is_zero(rate)) and _on_gpu() and _parts(q, k, v, {}) is not None


def _on_gpu() -> bool:
    """Whether JAX computes on an NVIDIA GPU that is new enough."""
    if jax.default_backend() != "gpu":
        return False
    major, *_ = str(getattr(jax.devices()[0], "compute_capability", "")).split(".")
    return major.isdigit() and int(major) >= CAPABILITY


@partial(jax.jit, static_argnames=("causal", "window", "scale"))
def _forward(q: Array, k: Array, v: Array, **settings: Any) -> tuple[Array, Array]:
    def form(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
        y, saved = in_parts.attention_fwd(q, k, v, **settings)
        return y, saved.log_normaliser

    def kernel(q: Array, k: Array, v: Array) -> Any:
        first, _ = _parts(q, k, v, settings)
        y, log_sums = first(q, k, v)
        return vary_with((y, log_sums.swapaxes(1, 2)[..., None]), q, k, v)

    found: tuple[Array, Array] = _where_cuda(kernel, form)(q, k, v)
    return found


@partial(jax.jit, static_argnames=("causal", "window", "scale"))
def _backward(
    q: Array, k: Array, v: Array, y: Array, log_normaliser: Array, dy: Array, **settings: Any
) -> tuple[Array, Array, Array]:
    def form(q: Array, k: Array, v: Array, y: Array, log_normaliser: Array, dy: Array) -> Any:
        residuals = AttentionResiduals(q, k, v, None, None, None, y, log_normaliser)
        return in_parts.attention_bwd(residuals, dy, **settings)[:3]

    def kernel(q: Array, k: Array, v: Array, y: Array, log_normaliser: Array, dy: Array) -> Any:
        _, rest = _parts(q, k, v, settings)
        log_sums = log_normaliser[..., 0].swapaxes(1, 2)
        grads = rest(q, k, v, dy.astype(q.dtype), y.astype(q.dtype), log_sums)
        return vary_with(tuple(grad.astype(dy.dtype) for grad in grads), q, k, v, dy)

    inputs = q, k, v, y, log_normaliser, dy
    grads: tuple[Array, Array, Array] = _where_cuda(kernel, form)(*inputs)
    return grads


def _where_cuda(kernel: Callable[..., Any], form: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel where the program is compiled for CUDA, else the form: of arrays (N, ...).

    What JAX differentiates is the form. What it maps over becomes a part of N.
    """
    folded = custom_vmap(kernel)

    @folded.def_vmap
    def mapped(size: int, is_mapped: list[bool], *inputs: Array) -> tuple[Any, Any]:
        whole = [
            x if has else jnp.broadcast_to(x, (size, *x.shape))
            for x, has in zip(inputs, is_mapped, strict=True)
        ]
        out = folded(*(x.reshape(-1, *x.shape[2:]) for x in whole))
        out = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), out)
        return out, jax.tree.map(lambda _: True, out)

    @jax.custom_jvp
    def either(*inputs: Array) -> Any:
        return lax.platform_dependent(*inputs, cuda=folded, default=form)

    either.defjvp(lambda inputs, tangents: jax.jvp(form, inputs, tangents))
    return either


def _parts(q: Array, k: Array, v: Array, settings: dict[str, Any]) -> Any:
    """JAX's program of both kernels in two: q, k, v -> y, L (N, H, T), and from these and dy on.

    None where JAX has no cuDNN, or its program has no such forward.
    """
    window, s = settings.get("window"), k.shape[1]
    reach = None if window is None or window >= s else (window - 1, 0)

    def both(q: Array, k: Array, v: Array, dy: Array) -> Any:
        y, pull = jax.vjp(
            lambda *inputs: jax.nn.dot_product_attention(
                *inputs,
                is_causal=settings.get("causal", False),
                scale=settings.get("scale"),
                local_window_size=reach,
                implementation="cudnn",
            ),
            q,
            k,
            v,
        )
        return pull(dy.astype(y.dtype))

    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v, q)]
    try:
        closed = jax.make_jaxpr(both)(*shapes)
    except (NotImplementedError, RuntimeError):  # not for such a head, device or version
        return None
    n, t, h, _ = q.shape
    given = [(q.shape, q.dtype), ((n, h, t), np.dtype(np.float32))]
    jaxpr, eqns = closed.jaxpr, closed.jaxpr.eqns
    cuts = [i for i, eqn in enumerate(eqns) if [*map(_form, eqn.outvars)] == given]
    if len(cuts) != 1:
        return None
    cut, made = cuts[0], eqns[cuts[0]].outvars
    first = jaxpr.replace(invars=jaxpr.invars[:3], eqns=eqns[: cut + 1], outvars=made)
    rest = jaxpr.replace(invars=[*jaxpr.invars, *made], eqns=[*eqns[:cut], *eqns[cut + 1 :]])
    return tuple(jaxpr_as_fun(closed.replace(jaxpr=part)) for part in (first, rest))


def _form(variable: Any) -> tuple[Any, Any]:
    return variable.aval.shape, variable.aval.dtype
