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
from jax import Array, lax

from jaxnn.checks import check_array, check_flag, check_integer, check_number, check_one_dtype
from jaxnn.op import Op


class AttentionResiduals(NamedTuple):
    """The inputs, and the probabilities p (N, G, H/G, T, S) unless they are recomputed."""

    q: Array
    k: Array
    v: Array
    mask: Array | None
    p: Array | None


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
    A key that is hidden still adds 0 v to y, which is NaN where v is not finite: set such a v to 0.

    Saves p, H S values per query (N H T S in all), beside q, k and v, which are there already.
    With a `block` nothing more than q, k, v and the mask is saved: a loop takes `block` queries at
    a time and the backward computes their p again, so that neither pass ever holds more than
    N H block S values of it, and of a `window` N H block (block + window - 1): keys out of reach of
    the whole block are not touched.

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
        block: how many queries to compute at a time; None for all at once, keeping p.

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
    t, saved = q.shape[1], AttentionResiduals(q, k, v, mask, None)
    if block is None:
        seen = _seen(saved, (0, t), (0, k.shape[1]), causal, window)
        y, p = _attend_fwd(q, k, v, seen, scale)
        return y, saved._replace(p=p)

    def attend(part: tuple[Array, Array]) -> Array:
        start, qi = part
        kj, vj, _, seen = _part(saved, start, qi.shape[1], causal, window)
        return _attend_fwd(qi, kj, vj, seen, scale)[0]

    return _joined(lax.map(attend, (jnp.arange(0, t, block), _blocks(q, block))), t), saved


def attention_bwd(
    residuals: AttentionResiduals,
    dy: Array,
    *,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    block: int | None = None,
) -> tuple[Array, Array, Array, None]:
    """dq, dk and dv as above. By blocks, dk and dv are sums over the blocks that saw the key."""
    q, k, v, _, p = residuals
    if p is not None:
        return *_attend_bwd(q, k, v, p, dy, scale), None
    assert block is not None  # or p were saved

    def attend(
        sums: tuple[Array, Array], part: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array], Array]:
        start, qi, dyi = part
        kj, vj, first, seen = _part(residuals, start, qi.shape[1], causal, window)
        _, p = _attend_fwd(qi, kj, vj, seen, scale)
        dqi, dkj, dvj = _attend_bwd(qi, kj, vj, p, dyi, scale)
        dk, dv = sums
        return (_add_at(dk, first, dkj), _add_at(dv, first, dvj)), dqi

    zeros = jnp.zeros_like(k), jnp.zeros_like(v)
    parts = jnp.arange(0, q.shape[1], block), _blocks(q, block), _blocks(dy, block)
    (dk, dv), dq = lax.scan(attend, zeros, parts)
    return _joined(dq, q.shape[1]), dk, dv, None


def _attend_fwd(
    q: Array, k: Array, v: Array, seen: Array, scale: float | None
) -> tuple[Array, Array]:
    """The average y of v, and p, for some queries and all keys that any of them may see."""
    (n, t, h, _), (s, g) = q.shape, k.shape[1:3]
    rows, k, v = _rows(_scaled(q, scale), g), k.swapaxes(1, 2), v.swapaxes(1, 2)
    scores = jnp.einsum("ngxd,ngsd->ngxs", rows, k).reshape(n, g, h // g, t, s)
    largest = scores.max(-1, keepdims=True, where=seen, initial=-jnp.inf)
    exp = jnp.exp(jnp.where(seen, scores - lax.stop_gradient(largest), -jnp.inf))
    total = exp.sum(-1, keepdims=True)
    p = exp / jnp.where(total == 0, 1, total)  # 0 / 1 where nothing is seen, not 0 / 0
    return _heads(jnp.einsum("ngxs,ngse->ngxe", p.reshape(n, g, -1, s), v), t), p


def _attend_bwd(
    q: Array, k: Array, v: Array, p: Array, dy: Array, scale: float | None
) -> tuple[Array, Array, Array]:
    """The cotangents of q, k and v; where p is 0, because it is masked, so is ds."""
    (n, t), (s, g) = q.shape[:2], k.shape[1:3]
    p = p.reshape(n, g, -1, s)
    rows, k, v = _rows(_scaled(q, scale), g), k.swapaxes(1, 2), v.swapaxes(1, 2)
    dy = _rows(dy, g)
    dv = jnp.einsum("ngxs,ngxe->ngse", p, dy)
    dp = jnp.einsum("ngxe,ngse->ngxs", dy, v)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True))
    dq = _heads(jnp.einsum("ngxs,ngsd->ngxd", ds, k), t)
    dk = jnp.einsum("ngxs,ngxd->ngsd", ds, rows)
    return _scaled(dq, scale), dk.swapaxes(1, 2), dv.swapaxes(1, 2)


def _scaled(q: Array, scale: float | None) -> Array:
    """The queries, which are fewer than the scores, times the scale of the scores."""
    return q * float(q.shape[-1] ** -0.5 if scale is None else scale)


# Matrices that lie together, with all rows in one axis: XLA for the CPU takes twice or three times
# as long for products of the heads of (N, T, H, D), which lie apart (jaxlib 0.10.2).
def _rows(x: Array, kv_heads: int) -> Array:
    """(N, T, H, D) as (N, G, H/G T, D): for each head of keys the queries that use it."""
    n, t, h, d = x.shape
    x = x.reshape(n, t, kv_heads, h // kv_heads, d)
    return x.transpose(0, 2, 3, 1, 4).reshape(n, kv_heads, -1, d)


def _heads(x: Array, t: int) -> Array:
    """(N, G, H/G T, D) as (N, T, H, D)."""
    n, g, _, d = x.shape
    return x.reshape(n, g, -1, t, d).transpose(0, 3, 1, 2, 4).reshape(n, t, -1, d)


def _seen(
    inputs: AttentionResiduals,
    rows: tuple[Array | int, int],
    columns: tuple[Array | int, int],
    causal: bool,
    window: int | None,
) -> Array:
    """Which queries see which keys, of some rows and columns (first, how many) of the scores.

    Booleans that broadcast to (N, G, H/G, rows, columns).
    """
    t, s, mask = inputs.q.shape[1], inputs.k.shape[1], inputs.mask
    i, j = (first + jnp.arange(count) for first, count in (rows, columns))
    position = i[:, None] + (s - t)
    seen = j <= position if causal else jnp.ones((len(i), len(j)), bool)
    if window is not None:
        seen &= j > position - window
    if mask is None:
        return seen
    n, heads, *positions = (1,) * (4 - mask.ndim) + mask.shape
    groups = (1, 1) if heads == 1 else (inputs.k.shape[2], heads // inputs.k.shape[2])
    mask = mask.reshape(n, *groups, *positions)
    for axis, index in ((3, i), (4, j)):
        if mask.shape[axis] > 1:  # rows past the end are padding, whatever they see
            mask = jnp.take(mask, index, axis, mode="clip")
    return seen & mask


def _part(
    inputs: AttentionResiduals, start: Array, size: int, causal: bool, window: int | None
) -> tuple[Array, Array, Array, Array]:
    """For a block of queries: the keys and values in reach, number of the first, which are seen."""
    t, s = inputs.q.shape[1], inputs.k.shape[1]
    first, reach = jnp.zeros_like(start), s
    if window is not None:
        reach = min(s, size + window - 1)
        first = jnp.clip(start + (s - t - window + 1), 0, s - reach)
    seen = _seen(inputs, (start, size), (first, reach), causal, window)
    k, v = (lax.dynamic_slice_in_dim(x, first, reach, axis=1) for x in (inputs.k, inputs.v))
    return k, v, first, seen


def _add_at(x: Array, start: Array, part: Array) -> Array:
    """`part` added to x from position `start` on."""
    sums = lax.dynamic_slice_in_dim(x, start, part.shape[1], axis=1) + part
    return lax.dynamic_update_slice_in_dim(x, sums, start, axis=1)


def _blocks(x: Array, block: int) -> Array:
    """(N, T, ...) as (blocks, N, positions of a block, ...), filled up with zeros."""
    size = min(block, x.shape[1])
    x = jnp.pad(x, [(0, -x.shape[1] % size if axis == 1 else 0) for axis in range(x.ndim)])
    return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


def _joined(blocks: Array, t: int) -> Array:
    """What `_blocks` took apart, without the zeros."""
    x = jnp.moveaxis(blocks, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :t]


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
    check_one_dtype("attention", {"q": q, "k": k, "v": v})
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
