"""Attention: each query takes an average of the values, weighted by how well the keys match it.

Of query i, over the keys j that it may see:

    s_ij = scale q_i . k_j              p_i = softmax(s_i)              y_i = sum_j p_ij v_j

    dp_ij = dy_i . v_j                  ds_ij = p_ij (dp_ij - sum_l p_il dp_il)
    dq_i = scale sum_j ds_ij k_j        dk_j = scale sum_i ds_ij q_i    dv_j = sum_i p_ij dy_i
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnn.checks import check_array, check_one_dtype
from jaxnn.op import Op
from jaxnn.ops.attention_passes import attend_bwd, attend_fwd
from jaxnn.ops.attention_reach import Heads, Reach
from jaxnn.settings import check_flag, check_integer, check_number


class AttentionResiduals(NamedTuple):
    """The inputs, y (N, T, H, E), and L of each query and head, as `attend_fwd` gives it."""

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
    """Scaled dot-product attention with H query heads on G heads of keys and values.

        y_ih = sum_j p_ihj v_jg,   p_ih = softmax over the visible j of scale q_ih . k_jg

    where g = h // (H / G): G = H is multi-head attention, G = 1 multi-query, between them
    grouped-query. A query that may see no key gets zeros, and gives none of its gradient away.
    A key that is hidden may add 0 v to y, which is NaN where v is not finite: set such a v to 0.
    A score of minus infinity counts as hidden too.

    Saves a number for each query and head, L = log sum_j exp(s_j), in float32 or wider, beside q,
    k, v, y and the mask, which are there already; the backward computes p = exp(s - L) again. Of
    causal attention a run of the queries at a time is computed, with the keys up to its end, which
    leaves out up to half of p; on a CPU of as many heads at a time as its caches hold, or of one.
    With a `block` a loop takes that many queries at a time, so that neither pass ever holds more
    than N H block S values of p, and of a `window` N H block (block + window - 1): keys out of
    reach of the whole block are not
    touched.

    Args:
        q: queries (N, T, H, D).
        k: keys (N, S, G, D).
        v: values (N, S, G, E).
        mask: None, or booleans that broadcast to (N, H, T, S), True where a query may see a key;
            of padding, (N, 1, 1, S).
        causal: whether a query sees only its own position and those before it. The queries are
            the last T of the S positions, as they are with a cache of keys and values.
        window: how many positions a query sees: its own and the `window` - 1 before it. Causal
            only. None for all.
        scale: of the scores; None for 1 / sqrt(D).
        block: how many queries to compute at a time; None for a whole run.

    Returns:
        y (N, T, H, E), residuals.

    Raises:
        TypeError: q, k and v are not floating arrays of one dtype, the mask is no boolean array, or
            a setting is of another type.
        ValueError: the shapes do not fit or hold a 0, G does not divide H, the mask does not
            broadcast, window or block is below 1, the scale is not finite, or there is a window
            without `causal`.

    Vaswani et al. (2017), "Attention is all you need", equation 1; grouped heads: Ainslie et al.
    (2023), "GQA"; recomputation: Rabe and Staats (2021), "Self-attention does not need O(n^2)
    memory", by blocks of queries.
    """
    _check(q, k, v, mask, causal, window, scale, block)
    heads = _heads_first(q, k, v, mask, scale)
    y, log_normaliser = attend_fwd(heads, Reach(causal, window, block))
    y = _positions_first(y)
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
    """dq, dk and dv as above, dk and dv summed over the runs and blocks that saw the key.

    The sum over l of p_il dp_il is dy_i . y_i: no pass over all scores is needed for it. It is so
    up to the rounding of y: where the values share a large offset, a digit less is right.
    """
    q, k, v, mask, y, log_normaliser = residuals
    heads = _heads_first(q, k, v, mask, scale)
    dot, dy = (_queries(x, k.shape[2]) for x in ((dy * y).sum(-1, keepdims=True), dy))
    dq, dk, dv = attend_bwd(heads, log_normaliser, dy, dot, Reach(causal, window, block))
    dq = _scaled(_positions_first(dq), scale)
    return dq, dk.transpose(0, 3, 1, 2), dv.transpose(0, 3, 1, 2), None


def _scaled(q: Array, scale: float | None) -> Array:
    """The queries, which are fewer than the scores, times the scale of the scores."""
    return q * float(q.shape[-1] ** -0.5 if scale is None else scale)


# Matrices that lie together, with all rows in one axis: XLA for the CPU takes twice or three times
# as long for products of the heads of (N, T, H, D), which lie apart (jaxlib 0.10.2).
def _heads_first(q: Array, k: Array, v: Array, mask: Array | None, scale: float | None) -> Heads:
    """The inputs with the axes of `Heads`."""
    q, k, v = map(jnp.asarray, (q, k, v))
    g = k.shape[2]
    if mask is not None:
        n, h, *positions = (1,) * (4 - mask.ndim) + mask.shape
        mask = mask.reshape(n, *((1, 1) if h == 1 else (g, h // g)), *positions)
    return Heads(_queries(_scaled(q, scale), g), k.swapaxes(1, 2), v.swapaxes(1, 2), mask)


def _queries(x: Array, kv_heads: int) -> Array:
    """(N, T, H, D) as (N, G, H/G, T, D): for each head of keys the queries that use it."""
    n, t, h, d = x.shape
    return x.reshape(n, t, kv_heads, h // kv_heads, d).transpose(0, 2, 3, 1, 4)


def _positions_first(x: Array) -> Array:
    """(N, G, H/G, T, D) as (N, T, H, D)."""
    n, g, r, t, d = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(n, t, g * r, d)


def _check(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None,
    causal: bool,
    window: int | None,
    scale: float | None,
    block: int | None,
) -> None:
    """Refuse what `attention_fwd` says it raises."""
    check_one_dtype("attention", **{"q": q, "k": k, "v": v})
    fit = q.ndim == k.ndim == v.ndim == 4
    if not fit or k.shape != (q.shape[0], *v.shape[1:3], q.shape[3]) or k.shape[0] != v.shape[0]:
        raise ValueError(
            f"attention: q, k and v have shapes {q.shape}, {k.shape} and {v.shape}; they must be "
            "(N, T, H, D), (N, S, G, D) and (N, S, G, E): batch N and size D are shared by q and "
            "k, all but the size by k and v; reshape, transpose or slice what differs"
        )
    if 0 in (*q.shape, *k.shape, *v.shape):
        raise ValueError(
            f"attention: q, k and v have shapes {q.shape}, {k.shape} and {v.shape}; no dimension "
            "may be 0: leave out the call where there is nothing to attend to"
        )
    check_heads("attention", q.shape[2], k.shape[2])
    if mask is not None:
        _check_mask(mask, (q.shape[0], q.shape[2], q.shape[1], k.shape[1]))
    check_flag("attention: causal", causal)
    for name, value in (("window", window), ("block", block)):
        if value is not None:
            check_integer(f"attention: {name}", value, hint=", or None for no limit")
    if scale is not None:
        check_number("attention: scale", scale, "finite, or None for 1 / sqrt(D)")
    if window is not None and not causal:
        raise ValueError(
            f"attention: window is {window} but causal is False; a window reaches back from the "
            "query: pass causal=True, or a mask for a window of another form"
        )


def _check_mask(mask: Array, scores: tuple[int, ...]) -> None:
    """Refuse a mask that does not say of each score whether it counts."""
    check_array("attention: mask", mask)
    if mask.dtype != bool:
        raise TypeError(
            f"attention: mask has dtype {mask.dtype}; it must be boolean, True where a query may "
            "see a key: compare (mask > 0), or cast with mask.astype(bool)"
        )
    try:
        fits = np.broadcast_shapes(mask.shape, scores) == scores
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"attention: mask has shape {mask.shape}; it must broadcast to (batch, heads, queries, "
            f"keys) = {scores}: a padding mask (batch, keys) is mask[:, None, None, :]"
        )


def check_heads(name: str, heads: int, kv_heads: int) -> None:
    """Refuse heads that cannot be shared out evenly.

    Raises:
        ValueError: `kv_heads` is 0 or does not divide `heads`.
    """
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(
            f"{name}: {heads} query heads, {kv_heads} heads of keys and values; the second must "
            "divide the first, so that each is used by as many query heads: change one"
        )


def _example(key: Array) -> tuple[Array, Array, Array, Array]:
    """Five queries at the end of seven keys; one sees nothing, one a single key, two keys tie."""
    kq, kk, kv, km = jax.random.split(key, 4)
    q = jax.random.normal(kq, (2, 5, 6, 4))
    k = jax.random.normal(kk, (2, 7, 3, 4))
    v = jax.random.normal(kv, (2, 7, 3, 2))
    mask = jax.random.bernoulli(km, 0.8, (2, 1, 5, 7))
    mask = mask.at[1, 0, 2].set(False).at[0, 0, 4].set(jnp.arange(7) == 5)
    return q.at[0, 0].set(0), k.at[:, 3].set(k[:, 4]), v, mask


attention = Op(
    attention_fwd,
    attention_bwd,
    example=_example,
    settings=(
        {},
        {"causal": True},
        {"block": 4},
        {"causal": True, "window": 3, "scale": 0.7, "block": 4},
    ),
)
