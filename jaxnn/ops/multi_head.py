"""Rotary positions, and multi-head attention with its projections.

Rotary: pairs of a head's numbers turn by angles that grow with the position, so that the product of
a query and a key depends on how far apart they are. At position t, of the pairs i = 0 .. D/2 - 1:

    theta_ti  = t base^(-2i/D)
    y_i       = x_i cos theta_ti - x_{i+D/2} sin theta_ti
    y_{i+D/2} = x_{i+D/2} cos theta_ti + x_i sin theta_ti

The transpose of a rotation is the rotation back: dx is dy turned by -theta. Multi-head:

    q = x wq + bq,  k = x wk + bk,  v = x wv + bv       split into H, G and G heads
    y = attention(rotary(q), rotary(k), v)              or of q and k as they are
    z = y wo + bo                                       of y's heads side by side
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnn.checks import check_integers, check_kind, check_one_dtype, check_shapes
from jaxnn.op import Op
from jaxnn.ops.attention import AttentionResiduals, attention, check_heads
from jaxnn.ops.linear import Linear, LinearResiduals, linear
from jaxnn.settings import check_number


def rotary_fwd(x: Array, positions: Array, *, base: float = 10000.0) -> tuple[Array, Array]:
    """Turn queries or keys by their positions, as above: y of the shape of x.

    The pairs are number i of the first half and number i of the second, as in Llama's published
    weights; the paper's are neighbours. Saves the positions, which are there already; sine and
    cosine are recomputed, of angles in float32 or wider: in bfloat16 position 257 would be 256.

    Args:
        x: (N, T, H, D), D even.
        positions: integers (T,), or (N, T) where the rows differ.
        base: what turns slowest does so once in about 2 pi base positions; above 0.

    Raises:
        TypeError: x is no floating array, the positions no array of integers, or the base no
            number.
        ValueError: x is not (N, T, H, D), D is odd, the positions do not fit, or the base is not
            finite and above 0.

    Su et al. (2021), "RoFormer", equation 34.
    """
    cos, sin = _cos_and_sin(positions, x, base)
    first, second = jnp.split(x, 2, axis=-1)
    y = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return y, positions


def rotary_bwd(positions: Array, dy: Array, *, base: float = 10000.0) -> tuple[Array, None]:
    """Return dx = dy turned back by the same angles."""
    cos, sin = _cos_and_sin(positions, dy, base)
    first, second = jnp.split(dy, 2, axis=-1)
    dx = jnp.concatenate([first * cos + second * sin, second * cos - first * sin], axis=-1)
    return dx, None


def _cos_and_sin(positions: Array, x: Array, base: float) -> tuple[Array, Array]:
    """Of the angles (..., T, 1, D/2), in the dtype of x."""
    wide = np.promote_types(x.dtype, np.float32)
    frequencies = base ** (-jnp.arange(0, x.shape[-1], 2, dtype=wide) / x.shape[-1])
    angles = positions.astype(wide)[..., None, None] * frequencies
    return jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)


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
    dq, dk, dv, _ = attention.bwd(saved, dy, causal=causal, window=window, block=block)
    if rotary_base is not None:
        dq, _ = rotary.bwd(positions, dq, base=rotary_base)
        dk, _ = rotary.bwd(positions, dk, base=rotary_base)
    (dwq, dbq), dxq = linear.bwd(LinearResiduals(Linear(wq, bq), x), dq.reshape(n, t, wq.shape[1]))
    (dwk, dbk), dxk = linear.bwd(LinearResiduals(Linear(wk, bk), x), dk.reshape(n, t, wk.shape[1]))
    (dwv, dbv), dxv = linear.bwd(LinearResiduals(Linear(wv, bv), x), dv.reshape(n, t, wv.shape[1]))
    return MultiHead(dwq, dwk, dwv, dwo, dbq, dbk, dbv, dbo), dxq + dxk + dxv, None, None


def _check_rotary(x: Array, positions: Array, *, base: float) -> None:
    check_shapes("rotary", "reshape x to four dimensions", x=(x, "NTHD"))
    check_one_dtype("rotary", x=x)
    if x.shape[3] % 2:
        raise ValueError(
            f"rotary: x has shape {x.shape}, heads of size {x.shape[3]}; the size must be even, "
            "because its halves are paired: choose an even head size"
        )
    check_integers("rotary: positions", positions, "cast them with positions.astype(int)")
    if positions.shape not in (x.shape[1:2], x.shape[:2]):
        raise ValueError(
            f"rotary: positions have shape {positions.shape}, x {x.shape}; there must be one "
            f"for each of the {x.shape[1]} positions, {x.shape[1:2]} or {x.shape[:2]}: pass "
            f"jnp.arange({x.shape[1]}), or slice what you have"
        )
    rule = "finite and above 0, for example 10000.0"
    check_number("rotary: base", base, rule, lambda b: 0 < b < math.inf)


def _check_multi_head(params: Any, x: Any, positions: Any, mask: Any, **settings: Any) -> None:
    heads, kv_heads, base = (settings.pop(n) for n in ("heads", "kv_heads", "rotary_base"))
    check_kind("multi_head: params", params, MultiHead)
    check_heads("multi_head", heads, kv_heads)
    fix = "reshape x or change the parameters"
    axes = zip(params, ("DQ", "DK", "DK", "QO", "Q?", "K?", "K?", "O?"), strict=True)
    given = dict(zip(MultiHead._fields, axes, strict=True))
    sizes = check_shapes("multi_head", fix, **given, x=(x, "NTD"))
    check_one_dtype("multi_head", **params._asdict(), x=x)
    if sizes.Q % heads:
        raise ValueError(
            f"multi_head: wq has {sizes.Q} outputs for {heads} heads, no multiple: change one"
        )
    size, kv_heads = sizes.Q // heads, heads if kv_heads is None else kv_heads
    if kv_heads * size != sizes.K:
        raise ValueError(
            f"multi_head: wk and wv have shape {params.wk.shape}; with {kv_heads} heads of keys "
            f"and values of the queries' size {size} they must be {(sizes.D, kv_heads * size)}: "
            "change the shapes or kv_heads"
        )
    n, t = x.shape[:2]
    q, k = (jax.ShapeDtypeStruct((n, t, h, size), x.dtype) for h in (heads, kv_heads))
    attention.admit((q, k, k, mask), settings)
    if base is not None:
        rotary.admit((q, jnp.arange(t) if positions is None else positions), {"base": base})


def _rotary_example(key: Array) -> tuple[Array, Array]:
    """Rows at different positions, position 0 among them and one far off."""
    positions = jnp.array([[0, 1, 2, 3, 4], [7, 8, 9, 10, 1000], [0, 0, 3, 1, 2]])
    return jax.random.normal(key, (3, 5, 2, 6)), positions


def _multi_head_example(key: Array) -> tuple[MultiHead, Array, Array, Array]:
    """Two kinds of bias missing, unequal positions, a row of the mask that hides everything."""
    shapes = {"wq": (3, 8), "wk": (3, 4), "wv": (3, 4), "wo": (8, 6), "bq": (8,), "bo": (6,)}
    *keys, kx, km = jax.random.split(key, len(shapes) + 2)
    drawn = {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=True)}
    x = jax.random.normal(kx, (2, 5, 3)).at[0, 0].set(0)
    mask = jax.random.bernoulli(km, 0.7, (2, 1, 5, 5)).at[1, 0, 3].set(False)
    return MultiHead(**drawn), x, jnp.array([0, 1, 2, 4, 7]), mask


rotary = Op(rotary_fwd, rotary_bwd, _rotary_example, ({}, {"base": 100.0}), check=_check_rotary)
multi_head = Op(
    multi_head_fwd,
    multi_head_bwd,
    check=_check_multi_head,
    example=_multi_head_example,
    settings=(
        {"heads": 2, "kv_heads": 1, "causal": True},
        {"heads": 4, "kv_heads": 2, "causal": True, "window": 3, "rotary_base": 100.0},
        {"heads": 4, "kv_heads": 2, "block": 4, "rotary_base": 100.0},
    ),
)
