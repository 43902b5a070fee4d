"""Attention: each query takes an average of the values, weighted by how well the keys match it.

z_ij = scale q_i . k_j        u_ij = tanh(z_ij / cap)        s_ij = cap u_ij + bias_ij
p_i = softmax(s_i) over the keys j seen        y_i = sum_j p_ij r_ij v_j

dp_ij = r_ij dy_i . v_j       ds_ij = p_ij (dp_ij - sum_l p_il dp_il),  the sum being dy_i . y_i
dbias_ij = ds_ij              dz_ij = ds_ij (1 - u_ij^2)
dq_i = scale sum_j dz_ij k_j        dk_j = scale sum_i dz_ij q_i      dv_j = sum_i p_ij r_ij dy_i

Without a cap s is z + bias and dz is ds. Dropout's r_ij is 0 or 1 / (1 - rate); without, it is 1.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.numerics import Pairs, draw_kept_pairs, is_zero, product, sum_to, widen
from jaxnn.op import Op
from jaxnn.ops.attention_doors import check_attention


class AttentionResiduals(NamedTuple):
    """The inputs, y (N, T, H, E) and, of each query, L = log sum_j exp(s_j) (N, T, H, 1)."""

    q: Array
    k: Array
    v: Array
    mask: Array | None
    bias: Array | None
    key: Array | Pairs | None
    y: Array
    log_normaliser: Array


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
    """Average the values that each query sees (Vaswani et al., 2017, equation 1): y (N, T, H, E).

    q (N, T, H, D) are the last T of the S positions of k (N, S, G, D) and v (N, S, G, E); query
    head h uses head h // (H / G) of these (Ainslie et al., 2023, "GQA"). A query sees what `mask`
    says, None or booleans that broadcast to (N, H, T, S); if `causal` no later position than its
    own, of which the last `window`. `bias`, of such a shape, is added to the scores: -inf hides.
    `scale` is 1 / sqrt(D) unless given. `softcap`, the cap, bounds the scores before the bias is
    added (Gemma 2, 2024, section 2). With a `key`, a share `rate` of p is dropped: the same for the
    same key in every form. `block` is how many queries the fast form computes at a time, for memory
    linear in T; None for many.

    Who sees nothing gets zeros; k and v must be finite even where they are hidden. A score of NaN
    or +inf that is seen makes y and the gradients of its query NaN, as in
    `jax.nn.dot_product_attention`; a cap makes inf finite. Saves L, in float32 or wider, beside
    what is there already: p = exp(s - L) is computed again, and drawn again.

    Raises:
        TypeError: q, k, v, bias are not floating of one dtype, mask not boolean, key no key, or a
            setting mistyped.
        ValueError: the shapes do not fit or hold a 0, or a setting is outside its range.
    """
    (n, t, h, _), (_, s, g, e) = q.shape, v.shape
    before, after = _scales(q, scale)
    rows, keys, values = _heads_first(before * q, g), _heads_first(k, g), _heads_first(v, g)
    scores, _ = _scores(after * product(rows, keys.mT).reshape(n, h, t, s), bias, softcap)
    scores = jnp.where(_seen(scores, mask, causal, window), scores, -jnp.inf)
    largest = lax.stop_gradient(scores.max(-1, keepdims=True))
    largest = jnp.where(largest == -jnp.inf, 0, largest)  # -inf - -inf is no number
    exp = jnp.exp(scores - largest)
    total = exp.sum(-1, keepdims=True)
    total = jnp.where(total == 0, 1, total)
    log_normaliser = (largest + jnp.log(total)).swapaxes(1, 2)
    if key is not None and not is_zero(rate):
        kept = draw_kept_pairs(key, rate, exp.shape)
        exp, total = jnp.where(kept, exp, 0), total * (1 - rate)
    sums = product(exp.astype(v.dtype).reshape(n, g, h // g * t, s), values)
    y = (sums.reshape(n, h, t, e) / total).astype(v.dtype).swapaxes(1, 2)
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
    """Return dq, dk, dv and dbias as above, in the dtype of dy: a part is summed on if dy is wide.

    In float32 and wider, where the values share a large offset, dy . y loses digits.
    """
    q, k, v, mask, bias, key, y, log_normaliser = residuals
    (n, t, h, d), (_, s, g, _) = q.shape, k.shape
    before, after = _scales(q, scale)
    rows, keys, values = _heads_first(before * q, g), _heads_first(k, g), _heads_first(v, g)
    drows = _heads_first(dy.astype(v.dtype), g)
    scores, slope = _scores(after * product(rows, keys.mT).reshape(n, h, t, s), bias, softcap)
    seen = _seen(scores, mask, causal, window)
    weights = p = jnp.exp(jnp.where(seen, scores, -jnp.inf) - log_normaliser.swapaxes(1, 2))
    dp = product(drows, values.mT).reshape(p.shape)
    if key is not None and not is_zero(rate):
        kept = draw_kept_pairs(key, rate, p.shape)
        weights, dp = (jnp.where(kept, x / (1 - rate), 0) for x in (p, dp))
    # In 16 bits y was rounded: dy . y would be off by more than the peers' gradients are.
    dot = (dy * y).swapaxes(1, 2) if y.dtype == p.dtype else p * dp
    ds = p * (dp - dot.sum(-1, keepdims=True))
    dbias = None if bias is None else sum_to(jnp.where(seen, ds, 0), bias.shape).astype(dy.dtype)
    dz, weights = (x.astype(q.dtype).reshape(n, g, h // g * t, s) for x in (ds * slope, weights))
    dq = (before * after * product(dz, keys)).reshape(n, h, t, d).swapaxes(1, 2)
    dk = (after * product(rows.mT, dz)).transpose(0, 3, 1, 2)
    dv = product(drows.mT, weights).transpose(0, 3, 1, 2)
    return dq.astype(dy.dtype), dk.astype(dy.dtype), dv.astype(dy.dtype), None, dbias, None


def _scores(z: Array, bias: Array | None, softcap: float | None) -> tuple[Array, Array | float]:
    """Return s of z (N, H, T, S), and its derivative by z."""
    u: Any = 0.0 if softcap is None else jnp.tanh(z / softcap)
    z = z if softcap is None else softcap * u
    return z if bias is None else z + widen(bias), (1 - u) * (1 + u)


def _seen(scores: Array, mask: Array | None, causal: bool, window: int | None) -> Array:
    """Which keys each query sees, booleans that broadcast to the scores (N, H, T, S)."""
    t, s = scores.shape[2:]
    i, j = jnp.arange(s - t, s)[:, None], jnp.arange(s)
    seen = jnp.ones((t, s), bool) if mask is None else mask
    seen = seen & (j <= i) if causal else seen
    return seen if window is None else seen & (j > i - min(window, s))


def _scales(q: Array, scale: float | None) -> tuple[float, float]:
    """The scale as a factor of the queries and, in 16 bits, where these would be rounded, of z."""
    scale = float(q.shape[-1] ** -0.5 if scale is None else scale)
    return (1.0, scale) if q.dtype.itemsize < 4 else (scale, 1.0)


def _heads_first(x: Array, g: int) -> Array:
    """(N, T, H, D) as (N, G, H/G T, D): for each head of keys the rows of all that use it."""
    n, t, h, d = x.shape
    return x.swapaxes(1, 2).reshape(n, g, h // g * t, d)


def _example(
    key: Array,
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Five queries at the end of seven keys; one sees nothing, one a single key; two keys tie."""
    kq, kk, kv, km, kb, kd = jax.random.split(key, 6)
    q = jax.random.normal(kq, (2, 5, 6, 4)).at[0, 0].set(0)
    k, v = jax.random.normal(kk, (2, 7, 3, 4)), jax.random.normal(kv, (2, 7, 3, 2))
    mask = jax.random.bernoulli(km, 0.8, (2, 1, 5, 7))
    mask = mask.at[1, 0, 2].set(False).at[0, 0, 4].set(jnp.arange(7) == 5)
    bias = jax.random.normal(kb, (6, 1, 7)).at[2, 0, 3].set(-1e4)
    return q, k.at[:, 3].set(k[:, 4]), v, mask, bias, kd


attention = Op(
    attention_fwd,
    attention_bwd,
    check=check_attention,
    fast="jaxnn.ops.fast.cudnn_attention",
    example=_example,
    settings=(
        {},
        {"causal": True},
        {"block": 4, "softcap": 0.9},
        {"causal": True, "window": 3, "scale": 0.7, "block": 4, "rate": 0.3},
    ),
)
