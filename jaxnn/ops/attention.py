"""Attention: each query takes an average of the values, weighted by how well the keys match it.

s_ij = scale q_i . k_j      p_i = softmax(s_i) over the keys j seen      y_i = sum_j p_ij v_j

dp_ij = dy_i . v_j          ds_ij = p_ij (dp_ij - sum_l p_il dp_il),  the sum being dy_i . y_i
dq_i = scale sum_j ds_ij k_j        dk_j = scale sum_i ds_ij q_i      dv_j = sum_i p_ij dy_i
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.numerics import product
from jaxnn.op import Op
from jaxnn.ops.attention_doors import check_attention


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
    (n, t, h, _), g = q.shape, k.shape[2]
    before, after = _scales(q, scale)
    rows, keys, values = _heads_first(before * q, g), _heads_first(k, g), _heads_first(v, g)
    seen = _seen(q, k, mask, causal, window)
    scores = jnp.where(seen, after * product(rows, keys.mT), -jnp.inf)
    largest = lax.stop_gradient(scores.max(-1, keepdims=True))
    largest = jnp.where(largest == -jnp.inf, 0, largest)  # -inf - -inf is no number
    exp = jnp.exp(scores - largest)
    total = exp.sum(-1, keepdims=True)
    total = jnp.where(total == 0, 1, total)
    y = product(exp.astype(v.dtype), values) / total
    y = y.astype(v.dtype).reshape(n, h, t, v.shape[3]).swapaxes(1, 2)
    log_normaliser = (largest + jnp.log(total)).reshape(n, h, t, 1).swapaxes(1, 2)
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
    before, after = _scales(q, scale)
    rows, keys, values = _heads_first(before * q, g), _heads_first(k, g), _heads_first(v, g)
    drows = _heads_first(dy.astype(v.dtype), g)
    seen = _seen(q, k, mask, causal, window)
    scores = jnp.where(seen, after * product(rows, keys.mT), -jnp.inf)
    p = jnp.exp(scores - _heads_first(log_normaliser, g))
    dp = product(drows, values.mT)
    if y.dtype == p.dtype:
        mean = _heads_first((dy * y).sum(-1, keepdims=True), g)
    else:  # the same, of what y was before it was rounded
        mean = (p * dp).sum(-1, keepdims=True)
    ds = (p * (dp - mean)).astype(q.dtype)
    dq = (before * after * product(ds, keys)).reshape(n, h, t, d).swapaxes(1, 2)
    dk = (after * product(rows.mT, ds)).transpose(0, 3, 1, 2)
    dv = product(drows.mT, p.astype(v.dtype)).transpose(0, 3, 1, 2)
    return dq.astype(dy.dtype), dk.astype(dy.dtype), dv.astype(dy.dtype), None


def _seen(q: Array, k: Array, mask: Array | None, causal: bool, window: int | None) -> Array:
    """Which keys each row of the scores sees, (N, G, H/G T, S) booleans."""
    (n, t, h, _), (_, s, g, _) = q.shape, k.shape
    i, j = jnp.arange(s - t, s)[:, None], jnp.arange(s)
    seen = jnp.ones((t, s), bool) if mask is None else mask
    seen = seen & (j <= i) if causal else seen
    seen = seen if window is None else seen & (j > i - min(window, s))
    return jnp.broadcast_to(seen, (n, h, t, s)).reshape(n, g, h // g * t, s)


def _scales(q: Array, scale: float | None) -> tuple[float, float]:
    """The scale as a factor of the queries and, in 16 bits, where these would be rounded, of s."""
    scale = float(q.shape[-1] ** -0.5 if scale is None else scale)
    return (1.0, scale) if q.dtype.itemsize < 4 else (scale, 1.0)


def _heads_first(x: Array, g: int) -> Array:
    """(N, T, H, D) as (N, G, H/G T, D): for each head of keys the rows of all that use it."""
    n, t, h, d = x.shape
    return x.swapaxes(1, 2).reshape(n, g, h // g * t, d)


def _example(key: Array) -> tuple[Array, Array, Array, Array]:
    """Five queries at the end of seven keys; one sees nothing, one a single key, two keys tie."""
    kq, kk, kv, km = jax.random.split(key, 4)
    q = jax.random.normal(kq, (2, 5, 6, 4)).at[0, 0].set(0)
    k, v = jax.random.normal(kk, (2, 7, 3, 4)), jax.random.normal(kv, (2, 7, 3, 2))
    mask = jax.random.bernoulli(km, 0.8, (2, 1, 5, 7))
    mask = mask.at[1, 0, 2].set(False).at[0, 0, 4].set(jnp.arange(7) == 5)
    return q, k.at[:, 3].set(k[:, 4]), v, mask


attention = Op(
    attention_fwd,
    attention_bwd,
    check=check_attention,
    fast="jaxnn.ops.fast.attention",
    example=_example,
    settings=(
        {},
        {"causal": True},
        {"block": 4},
        {"causal": True, "window": 3, "scale": 0.7, "block": 4},
    ),
)
