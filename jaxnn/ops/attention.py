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

# Causal queries attend in at most RUNS runs of at least RUN, each with the keys up to its end: most
# of the hidden scores are never computed. For 1,024 positions all at once takes 1.4 times as long,
# 8 runs as long as 4; in a training step with 256 positions 4 runs 1.07 times as long as 2, which
# compile faster (CPU, jaxlib 0.10.2).
RUNS, RUN = 4, 128


class AttentionResiduals(NamedTuple):
    """The inputs, y (N, T, H, E), and the probabilities unless they are recomputed.

    They are (N, G, H/G, t, s) for each run of t queries that sees no more than s of the keys.
    """

    q: Array
    k: Array
    v: Array
    mask: Array | None
    y: Array
    p: tuple[Array, ...] | None


class _Heads(NamedTuple):
    """Scaled queries (N, G, H/G, T, D), keys (N, G, S, D), values (N, G, S, E), mask or None.

    The mask broadcasts to (N, G, H/G, T, S). The queries are the last T of the S positions.
    """

    q: Array
    k: Array
    v: Array
    mask: Array | None


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

    Saves p, H S values per query (N H T S in all; if causal and long up to 3/8 less, because a
    quarter of the queries at a time is computed, with the keys up to its end), beside q, k, v and
    y, which are there already. With a `block` nothing more than these and the mask is saved: a loop
    takes `block` queries at a time and the backward computes their p again, so that neither pass
    ever holds more than N H block S values of it, and of a `window` N H block (block + window - 1):
    keys out of reach of the whole block are not touched.

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
    heads = _heads_first(q, k, v, mask, scale)
    parts = [_taken(heads, *run) for run in _runs(heads, causal, window, block)]
    if block is None:
        ys, ps = zip(*(_attend_fwd(x, _seen(x, causal, window)) for x in parts), strict=True)
    else:
        ys, ps = tuple(_in_blocks_fwd(x, causal, window, block) for x in parts), None
    y = _positions_first(jnp.concatenate(ys, 3))
    return y, AttentionResiduals(q, k, v, mask, y, ps)


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
    q, k, v, mask, y, ps = residuals
    heads = _heads_first(q, k, v, mask, scale)
    dy, dot = _queries(dy, k.shape[2]), _queries((dy * y).sum(-1, keepdims=True), k.shape[2])
    dqs, (dk, dv) = [], _zeros(heads)
    for number, (rows, keys) in enumerate(_runs(heads, causal, window, block)):
        part, dyi, doti = _taken(heads, rows, keys), dy[..., rows, :], dot[..., rows, :]
        if ps is not None:
            dqi, dki, dvi = _attend_bwd(part, ps[number], dyi, doti)
        else:
            assert block is not None  # or p were saved
            dqi, dki, dvi = _in_blocks_bwd(part, dyi, doti, causal, window, block)
        dqs.append(dqi)
        around = [(0, 0), (0, 0), (0, 0), (keys.start, k.shape[1] - keys.stop)]
        dk, dv = dk + jnp.pad(dki, around), dv + jnp.pad(dvi, around)
    dq = _scaled(_positions_first(jnp.concatenate(dqs, 3)), scale)
    return dq, dk.transpose(0, 3, 1, 2), dv.transpose(0, 3, 1, 2), None


def _attend_fwd(part: _Heads, seen: Array) -> tuple[Array, Array]:
    """The average y of v, and p, of all queries and keys given."""
    q, k, v, _ = part
    scores = _per_query(jnp.einsum("ngxd,ngsd->ngxs", _rows(q), k), q)
    scores = jnp.where(seen, scores, -jnp.inf)
    largest = lax.stop_gradient(scores.max(-1, keepdims=True))
    exp = jnp.exp(scores - jnp.where(largest == -jnp.inf, 0, largest))  # -inf - -inf is no number
    total = exp.sum(-1, keepdims=True)
    p = exp / jnp.where(total == 0, 1, total)  # 0 / 1 where nothing is seen, not 0 / 0
    return _per_query(jnp.einsum("ngxs,ngse->ngxe", _rows(p), v), q), p


def _attend_bwd(part: _Heads, p: Array, dy: Array, dot: Array) -> tuple[Array, Array, Array]:
    """The cotangents of q, k and v, those of k and v as (N, G, D, S).

    Where p is 0, because it is masked, so is ds.
    """
    q, k, v, _ = part
    dv = _from_rows(p, dy)
    dp = _per_query(jnp.einsum("ngxe,ngse->ngxs", _rows(dy), v), q)
    ds = p * (dp - dot)
    dq = _per_query(jnp.einsum("ngxs,ngsd->ngxd", _rows(ds), k), q)
    return dq, _from_rows(ds, q), dv


def _from_rows(p: Array, x: Array) -> Array:
    """Sum over the queries of x (N, G, H/G, T, D) times p (N, G, H/G, T, S): (N, G, D, S).

    XLA for the CPU takes 1.3 to 1.5 times as long for the transposed product (jaxlib 0.10.2).
    """
    return jnp.einsum("ngxd,ngxs->ngds", _rows(x), _rows(p))


def _zeros(heads: _Heads) -> tuple[Array, Array]:
    """No cotangents yet of k and v, as `_attend_bwd` has them."""
    return jnp.zeros_like(heads.k.mT), jnp.zeros_like(heads.v.mT)


def _in_blocks_fwd(heads: _Heads, causal: bool, window: int | None, block: int) -> Array:
    """y of all queries, `block` of them at a time."""

    def attend(block: tuple[Array, Array]) -> Array:
        part, _, seen = _reached(heads, *block, causal, window)
        return _attend_fwd(part, seen)[0]

    t = heads.q.shape[3]
    return _joined(lax.map(attend, (jnp.arange(0, t, block), _blocks(heads.q, block))), t)


def _in_blocks_bwd(
    heads: _Heads, dy: Array, dot: Array, causal: bool, window: int | None, block: int
) -> tuple[Array, Array, Array]:
    """The cotangents of q, k and v, from p computed again for `block` queries at a time."""

    def attend(
        sums: tuple[Array, Array], block: tuple[Array, ...]
    ) -> tuple[tuple[Array, Array], Array]:
        start, qi, dyi, doti = block
        part, first, seen = _reached(heads, start, qi, causal, window)
        _, p = _attend_fwd(part, seen)
        dqi, dki, dvi = _attend_bwd(part, p, dyi, doti)
        dk, dv = sums
        return (_add_at(dk, first, dki), _add_at(dv, first, dvi)), dqi

    t = heads.q.shape[3]
    parts = jnp.arange(0, t, block), *(_blocks(x, block) for x in (heads.q, dy, dot))
    (dk, dv), dq = lax.scan(attend, _zeros(heads), parts)
    return _joined(dq, t), dk, dv


def _scaled(q: Array, scale: float | None) -> Array:
    """The queries, which are fewer than the scores, times the scale of the scores."""
    return q * float(q.shape[-1] ** -0.5 if scale is None else scale)


# Matrices that lie together, with all rows in one axis: XLA for the CPU takes twice or three times
# as long for products of the heads of (N, T, H, D), which lie apart (jaxlib 0.10.2).
def _heads_first(q: Array, k: Array, v: Array, mask: Array | None, scale: float | None) -> _Heads:
    """The inputs with the axes of `_Heads`."""
    q, k, v = map(jnp.asarray, (q, k, v))
    g = k.shape[2]
    if mask is not None:
        n, h, *positions = (1,) * (4 - mask.ndim) + mask.shape
        mask = mask.reshape(n, *((1, 1) if h == 1 else (g, h // g)), *positions)
    return _Heads(_queries(_scaled(q, scale), g), k.swapaxes(1, 2), v.swapaxes(1, 2), mask)


def _queries(x: Array, kv_heads: int) -> Array:
    """(N, T, H, D) as (N, G, H/G, T, D): for each head of keys the queries that use it."""
    n, t, h, d = x.shape
    return x.reshape(n, t, kv_heads, h // kv_heads, d).transpose(0, 2, 3, 1, 4)


def _positions_first(x: Array) -> Array:
    """(N, G, H/G, T, D) as (N, T, H, D)."""
    n, g, r, t, d = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(n, t, g * r, d)


def _rows(x: Array) -> Array:
    """(N, G, H/G, T, D) as (N, G, H/G T, D)."""
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _per_query(rows: Array, q: Array) -> Array:
    """(N, G, H/G T, D) as (N, G, H/G, T, D), of as many queries as q."""
    return rows.reshape(*q.shape[:4], -1)


def _runs(
    heads: _Heads, causal: bool, window: int | None, block: int | None
) -> list[tuple[slice, slice]]:
    """Runs of queries and, of each, the keys that any of them may see: the last is its own."""
    t, s = heads.q.shape[3], heads.k.shape[2]
    in_reach = window is not None and block is not None  # a block leaves the other keys out itself
    if not causal or t > s or in_reach:
        return [(slice(0, t), slice(0, s))]
    size = max(RUN, -(-t // RUNS))
    ends = [(start, min(start + size, t)) for start in range(0, t, size)]
    return [(slice(a, b), slice(max(0, s - t + a - (window or s) + 1), s - t + b)) for a, b in ends]


def _taken(heads: _Heads, rows: slice, keys: slice) -> _Heads:
    """Some of the queries, with some of the keys."""
    q, k, v, mask = heads
    if mask is not None:
        mask = mask[..., rows if mask.shape[3] > 1 else slice(None), :]
        mask = mask[..., keys if mask.shape[4] > 1 else slice(None)]
    return _Heads(q[..., rows, :], k[:, :, keys], v[:, :, keys], mask)


def _reached(
    heads: _Heads, start: Array, q: Array, causal: bool, window: int | None
) -> tuple[_Heads, Array, Array]:
    """A block q of the queries with the keys in reach, number of the first, and which are seen."""
    t, s, size = heads.q.shape[3], heads.k.shape[2], q.shape[3]
    first, reach = jnp.zeros_like(start), s
    if window is not None:
        reach = min(s, size + window - 1)
        first = jnp.clip(start + (s - t - window + 1), 0, s - reach)
    seen = _seen(heads, causal, window, (start, size), (first, reach))
    k, v = (lax.dynamic_slice_in_dim(x, first, reach, axis=2) for x in heads[1:3])
    return _Heads(q, k, v, None), first, seen


def _seen(
    heads: _Heads,
    causal: bool,
    window: int | None,
    rows: tuple[Array | int, int] | None = None,
    columns: tuple[Array | int, int] | None = None,
) -> Array:
    """Which queries see which keys, of some rows and columns (first, how many) of the scores.

    Booleans that broadcast to (N, G, H/G, rows, columns); of all where none are named.
    """
    t, s, mask = heads.q.shape[3], heads.k.shape[2], heads.mask
    i, j = (first + jnp.arange(count) for first, count in (rows or (0, t), columns or (0, s)))
    position = i[:, None] + (s - t)
    seen = j <= position if causal else jnp.ones((len(i), len(j)), bool)
    if window is not None:
        seen &= j > position - window
    if mask is None:
        return seen
    for axis, index in ((3, i), (4, j)):
        if mask.shape[axis] > 1:  # rows past the end are padding, whatever they see
            mask = jnp.take(mask, index, axis, mode="clip")
    return seen & mask


def _add_at(x: Array, start: Array, part: Array) -> Array:
    """`part` added to x from position `start` on."""
    sums = lax.dynamic_slice_in_dim(x, start, part.shape[3], axis=3) + part
    return lax.dynamic_update_slice_in_dim(x, sums, start, axis=3)


def _blocks(x: Array, block: int) -> Array:
    """(N, G, H/G, T, D) as (blocks, N, G, H/G, queries of a block, D), filled up with zeros."""
    t = x.shape[3]
    size = min(block, t)
    x = jnp.pad(x, [(0, -t % size if axis == 3 else 0) for axis in range(5)])
    return jnp.moveaxis(x.reshape(*x.shape[:3], -1, size, x.shape[4]), 3, 0)


def _joined(blocks: Array, t: int) -> Array:
    """What `_blocks` took apart, without the zeros."""
    x = jnp.moveaxis(blocks, 0, 3)
    return x.reshape(*x.shape[:3], -1, x.shape[5])[..., :t, :]


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
