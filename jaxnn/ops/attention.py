"""Attention: each query takes an average of the values, weighted by how well the keys match it.

s_ij = scale q_i . k_j      p_i = softmax(s_i) over the keys j seen      y_i = sum_j p_ij v_j

dp_ij = dy_i . v_j          ds_ij = p_ij (dp_ij - sum_l p_il dp_il),  the sum being dy_i . y_i
dq_i = scale sum_j ds_ij k_j        dk_j = scale sum_i ds_ij q_i      dv_j = sum_i p_ij dy_i

multi-head:  z = attention(rotary(x wq + bq), rotary(x wk + bk), x wv + bv) wo + bo, by heads
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.numerics import widen
from jaxnn.op import Op
from jaxnn.ops.attention_doors import check_attention, check_multi_head
from jaxnn.ops.linear import Linear, LinearResiduals, linear
from jaxnn.ops.rotary import rotary


class AttentionResiduals(NamedTuple):
    """The inputs, y (N, T, H, E) and, of each query, L = log sum_j exp(s_j) (N, T, H, 1)."""

    q: Array
    k: Array
    v: Array
    mask: Array | None
    y: Array
    log_normaliser: Array


def attention_fwd(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None,
    *,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    block: int | None = None,
) -> tuple[Array, AttentionResiduals]:
    """Average the values that each query sees (Vaswani et al., 2017, equation 1): y (N, T, H, E).

    q (N, T, H, D) are the last T of the S positions of k (N, S, G, D) and v (N, S, G, E); query
    head h uses head h // (H / G) of these (Ainslie et al., 2023, "GQA"). A query sees what `mask`
    says, None or booleans that broadcast to (N, H, T, S); if `causal` no later position than its
    own, of which the last `window`. `scale` is 1 / sqrt(D) unless given. Who sees nothing gets
    zeros; a score of -inf is hidden; a v must be finite even where it is hidden. `block` is how
    many queries the fast form computes at a time, for memory linear in T; None for many.

    Saves L, in float32 or wider, beside what is there already: p = exp(s - L) is computed again.

    Raises:
        TypeError: q, k, v are not floating of one dtype, mask not boolean, or a setting mistyped.
        ValueError: the shapes do not fit or hold a 0, or a setting is outside its range.
    """
    (n, t, h, d), g = q.shape, k.shape[2]
    scale = float(d**-0.5 if scale is None else scale)
    rows, keys, values = _heads_first(q * scale, g), _heads_first(k, g), _heads_first(v, g)
    seen = _seen(q, k, mask, causal, window)
    scores = jnp.where(seen, rows @ keys.mT, -jnp.inf)
    largest = lax.stop_gradient(scores.max(-1, keepdims=True))
    largest = jnp.where(largest == -jnp.inf, 0, largest)  # -inf - -inf is no number
    exp = jnp.exp(scores - largest)
    total = widen(exp).sum(-1, keepdims=True)
    total = jnp.where(total == 0, 1, total)
    sums = jnp.matmul(exp, values, preferred_element_type=total.dtype)
    y = (sums / total).astype(v.dtype).reshape(n, h, t, v.shape[3]).swapaxes(1, 2)
    log_normaliser = (widen(largest) + jnp.log(total)).reshape(n, h, t, 1).swapaxes(1, 2)
    return y, AttentionResiduals(q, k, v, mask, y, log_normaliser)


def attention_bwd(
    residuals: AttentionResiduals,
    dy: Array,
    *,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    block: int | None = None,
) -> tuple[Array, Array, Array, None]:
    """Return dq, dk and dv as above. Where the values share a large offset, dy . y loses digits."""
    q, k, v, mask, y, log_normaliser = residuals
    (n, t, h, d), g = q.shape, k.shape[2]
    scale = float(d**-0.5 if scale is None else scale)
    rows, keys, values = _heads_first(q * scale, g), _heads_first(k, g), _heads_first(v, g)
    drows, dot = _heads_first(dy, g), _heads_first((dy * y).sum(-1, keepdims=True), g)
    seen = _seen(q, k, mask, causal, window)
    scores = jnp.where(seen, rows @ keys.mT, -jnp.inf)
    p = jnp.exp(widen(scores) - _heads_first(log_normaliser, g)).astype(q.dtype)
    ds = p * (drows @ values.mT - dot)
    dq = (ds @ keys).reshape(n, h, t, d).swapaxes(1, 2) * scale
    dk, dv = rows.mT @ ds, drows.mT @ p
    return dq, dk.transpose(0, 3, 1, 2), dv.transpose(0, 3, 1, 2), None


def _seen(q: Array, k: Array, mask: Array | None, causal: bool, window: int | None) -> Array:
    """Which keys each row of the scores sees, (N, G, H/G T, S) booleans."""
    (n, t, h, _), (_, s, g, _) = q.shape, k.shape
    i, j = jnp.arange(s - t, s)[:, None], jnp.arange(s)
    seen = jnp.ones((t, s), bool) if mask is None else mask
    seen = seen & (j <= i) if causal else seen
    seen = seen if window is None else seen & (j > i - min(window, s))
    return jnp.broadcast_to(seen, (n, h, t, s)).reshape(n, g, h // g * t, s)


def _heads_first(x: Array, g: int) -> Array:
    """(N, T, H, D) as (N, G, H/G T, D): for each head of keys the rows of all that use it."""
    n, t, h, d = x.shape
    return x.swapaxes(1, 2).reshape(n, g, h // g * t, d)


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


def _attention_example(key: Array) -> tuple[Array, Array, Array, Array]:
    """Five queries at the end of seven keys; one sees nothing, one a single key, two keys tie."""
    kq, kk, kv, km = jax.random.split(key, 4)
    q = jax.random.normal(kq, (2, 5, 6, 4)).at[0, 0].set(0)
    k, v = jax.random.normal(kk, (2, 7, 3, 4)), jax.random.normal(kv, (2, 7, 3, 2))
    mask = jax.random.bernoulli(km, 0.8, (2, 1, 5, 7))
    mask = mask.at[1, 0, 2].set(False).at[0, 0, 4].set(jnp.arange(7) == 5)
    return q, k.at[:, 3].set(k[:, 4]), v, mask


def _multi_head_example(key: Array) -> tuple[MultiHead, Array, Array, Array]:
    """Two kinds of bias missing, unequal positions, a row of the mask that hides everything."""
    shapes = {"wq": (3, 8), "wk": (3, 4), "wv": (3, 4), "wo": (8, 6), "bq": (8,), "bo": (6,)}
    *keys, kx, km = jax.random.split(key, len(shapes) + 2)
    drawn = {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=True)}
    x = jax.random.normal(kx, (2, 5, 3)).at[0, 0].set(0)
    mask = jax.random.bernoulli(km, 0.7, (2, 1, 5, 5)).at[1, 0, 3].set(False)
    return MultiHead(**drawn), x, jnp.array([0, 1, 2, 4, 7]), mask


attention = Op(
    attention_fwd,
    attention_bwd,
    check=check_attention,
    fast="jaxnn.ops.fast.attention",
    example=_attention_example,
    settings=(
        {},
        {"causal": True},
        {"block": 4},
        {"causal": True, "window": 3, "scale": 0.7, "block": 4},
    ),
)
multi_head = Op(
    multi_head_fwd,
    multi_head_bwd,
    check=partial(check_multi_head, MultiHead),
    example=_multi_head_example,
    settings=(
        {"heads": 2, "kv_heads": 1, "causal": True},
        {"heads": 4, "kv_heads": 2, "causal": True, "window": 3, "rotary_base": 100.0},
        {"heads": 4, "kv_heads": 2, "block": 4, "rotary_base": 100.0},
    ),
)
