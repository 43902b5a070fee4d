"""The multi-head block: attention of tokens to each other, by heads that see features of their own.

z = attention(rotary(x wq + bq), rotary(x wk + bk), x wv + bv) wo + bo, by heads
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.op import Op
from jaxnn.ops.attention import AttentionResiduals, attention
from jaxnn.ops.attention_doors import check_multi_head
from jaxnn.ops.linear import Linear, LinearResiduals, linear
from jaxnn.ops.rotary import rotary


class MultiHead(NamedTuple):
    """Weights (inputs, outputs), the heads side by side; biases (outputs,) or None."""

    wq: Array
    wk: Array
    wv: Array
    wo: Array
    bq: Array | None = None
    bk: Array | None = None
    bv: Array | None = None
    bo: Array | None = None


class MultiHeadResiduals(NamedTuple):
    """The parameters, both inputs, and what attention saved, its output y among that."""

    params: MultiHead
    x: Array
    positions: Array
    attention: AttentionResiduals


def multi_head_fwd(
    params: MultiHead,
    x: Array,
    positions: Array | None,
    mask: Array | None,
    *,
    heads: int,
    kv_heads: int | None = None,
    causal: bool = False,
    window: int | None = None,
    block: int | None = None,
    rotary_base: float | None = None,
) -> tuple[Array, MultiHeadResiduals]:
    """Attend x (N, T, D) to itself with H heads (Vaswani et al., 2017, section 3.2.2): z (N, T, O).

    wq is (D, H Dh), wk and wv (D, G Dh), wo (H Dh, O), for H `heads` and G `kv_heads`, None for H.
    `positions`, integers (T,) or (N, T), None for 0 .. T-1, turn q and k if there is a
    `rotary_base` (see `rotary_fwd`); the rest is as in `attention_fwd`. Saves x, q, k, v, y and L.

    Raises:
        TypeError: params are no `MultiHead`, or not of one floating dtype with x.
        ValueError: shapes do not fit each other or the heads; or as `attention_fwd`, `rotary_fwd`.
    """
    kv_heads = heads if kv_heads is None else kv_heads
    wq, wk, wv, wo, bq, bk, bv, bo = params
    (n, t, _), size = x.shape, wq.shape[1] // heads
    positions = jnp.arange(t) if positions is None else positions
    q = linear.fwd(Linear(wq, bq), x)[0].reshape(n, t, heads, size)
    k = linear.fwd(Linear(wk, bk), x)[0].reshape(n, t, kv_heads, size)
    v = linear.fwd(Linear(wv, bv), x)[0].reshape(n, t, kv_heads, size)
    if rotary_base is not None:
        q, _ = rotary.fwd(q, positions, base=rotary_base)
        k, _ = rotary.fwd(k, positions, base=rotary_base)
    y, saved = attention.fwd(q, k, v, mask, causal=causal, window=window, block=block)
    z, _ = linear.fwd(Linear(wo, bo), y.reshape(n, t, heads * size))
    return z, MultiHeadResiduals(params, x, positions, saved)


def multi_head_bwd(
    residuals: MultiHeadResiduals,
    dz: Array,
    *,
    heads: int,
    kv_heads: int | None = None,
    causal: bool = False,
    window: int | None = None,
    block: int | None = None,
    rotary_base: float | None = None,
) -> tuple[MultiHead, Array, None, None]:
    """Walk the same chain from its end; x collects from all three projections."""
    (wq, wk, wv, wo, bq, bk, bv, bo), x, positions, saved = residuals
    n, t, _ = x.shape
    (dwo, dbo), dy = linear.bwd(LinearResiduals(Linear(wo, bo), saved.y.reshape(n, t, len(wo))), dz)
    dy = dy.reshape(saved.y.shape)
    dq, dk, dv, *_ = attention.bwd(saved, dy, causal=causal, window=window, block=block)
    if rotary_base is not None:
        dq, _ = rotary.bwd(positions, dq, base=rotary_base)
        dk, _ = rotary.bwd(positions, dk, base=rotary_base)
    (dwq, dbq), dxq = linear.bwd(LinearResiduals(Linear(wq, bq), x), dq.reshape(n, t, wq.shape[1]))
    (dwk, dbk), dxk = linear.bwd(LinearResiduals(Linear(wk, bk), x), dk.reshape(n, t, wk.shape[1]))
    (dwv, dbv), dxv = linear.bwd(LinearResiduals(Linear(wv, bv), x), dv.reshape(n, t, wv.shape[1]))
    return MultiHead(dwq, dwk, dwv, dwo, dbq, dbk, dbv, dbo), dxq + dxk + dxv, None, None


def _example(key: Array) -> tuple[MultiHead, Array, Array, Array]:
    """Two kinds of bias missing, unequal positions, a row of the mask that hides everything."""
    shapes = {"wq": (3, 8), "wk": (3, 4), "wv": (3, 4), "wo": (8, 6), "bq": (8,), "bo": (6,)}
    *keys, kx, km = jax.random.split(key, len(shapes) + 2)
    drawn = {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=True)}
    x = jax.random.normal(kx, (2, 5, 3)).at[0, 0].set(0)
    mask = jax.random.bernoulli(km, 0.7, (2, 1, 5, 5)).at[1, 0, 3].set(False)
    return MultiHead(**drawn), x, jnp.array([0, 1, 2, 4, 7]), mask


multi_head = Op(
    multi_head_fwd,
    multi_head_bwd,
    check=partial(check_multi_head, MultiHead),
    example=_example,
    settings=(
        {"heads": 2, "kv_heads": 1, "causal": True},
        {"heads": 4, "kv_heads": 2, "causal": True, "window": 3, "rotary_base": 100.0},
        {"heads": 4, "kv_heads": 2, "block": 4, "rotary_base": 100.0},
    ),
)
