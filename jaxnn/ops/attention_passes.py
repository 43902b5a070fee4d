"""The passes of attention over its scores: in groups of heads, runs and blocks of queries.

Heads go in groups (on a CPU, where their scores would not fit its caches), the causal queries of a
group in runs, each with the keys up to its end, or `block` queries at a time. The forward keeps one
number of each row of scores, its log-normaliser L = log sum_j exp(s_j), from which the backward
computes p = exp(s - L) again.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.numerics import widen
from jaxnn.ops.attention_reach import Heads, Reach, reached, runs, seen_by, taken

# The heads of a group have at most SCORES at a time (or it is a single head): with what is computed
# of them they stay in the caches of a CPU. For 1,024 positions groups of twice as many take as long
# with 1.4 times the memory, of four times as many 1.2 times as long. Twice as many that are all
# there are make one group: 8 examples of 256 positions in two take 1.2 times as long (jaxlib
# 0.10.2).
SCORES = 2**19


def attend_fwd(heads: Heads, reach: Reach) -> tuple[Array, Array]:
    """The average y (N, G, H/G, T, E) of v that each query takes, and its L (N, G, H/G, T, 1).

    L is in float32 or wider, and 0 of a query that sees no key.
    """
    y, log_normaliser = _in_groups(partial(_group_fwd, reach=reach), heads, (), reach)
    return y, log_normaliser


def attend_bwd(
    heads: Heads, log_normaliser: Array, dy: Array, dot: Array, reach: Reach
) -> tuple[Array, Array, Array]:
    """The cotangents of q as scaled, k and v, those of k and v as (N, G, D, S).

    `dot` is dy_i . y_i, (N, G, H/G, T, 1).
    """
    others = log_normaliser, dy, dot
    dq, dk, dv = _in_groups(partial(_group_bwd, reach=reach), heads, others, reach)
    return dq, dk, dv


def _in_groups(
    attend: Callable[..., Any], heads: Heads, others: tuple[Any, ...], reach: Reach
) -> Any:
    """`attend(heads, *others)`, on a CPU one group of heads after the other.

    Another device, with more cores than a group keeps busy, attends to all at once.
    """
    size, whole = _group(heads, reach), (heads.k.shape[0], heads.k.shape[1])
    at_once = partial(attend, heads, *others)
    if size == whole:
        return at_once()

    def looped() -> Any:
        mask = None if heads.mask is None else _split(heads.mask, size)

        def step(turn: tuple[Array, Any]) -> Any:
            number, ((q, k, v), others) = turn
            part = None if mask is None else _of_turn(mask, number, whole[1] // size[1])
            return attend(Heads(q, k, v, part), *others)

        turns = jax.tree.map(
            lambda x: _split(x, size).reshape(-1, *size, *x.shape[2:]), (heads[:3], others)
        )
        results = lax.map(step, (jnp.arange(len(turns[0][0])), turns))
        return jax.tree.map(lambda x: _together(x, whole), results)

    return lax.platform_dependent(cpu=looped, default=at_once)


def _group(heads: Heads, reach: Reach) -> tuple[int, int]:
    """How many examples and heads of keys make a group: examples first, as many as may."""
    n, g, r, t, d = heads.q.shape
    if r * t <= d + heads.v.shape[3]:
        return n, g  # k and v, of which a group is a copy, are no smaller than the scores
    rows, keys = (
        max(x.stop - x.start for x in side) for side in zip(*runs(heads, reach), strict=True)
    )
    if reach.block is not None:
        rows = min(rows, reach.block)
        keys = keys if reach.window is None else min(keys, rows + reach.window - 1)
    scores = r * rows * keys
    if reach.block is None and n * g * scores <= 2 * SCORES:
        return n, g
    most = max(1, SCORES // scores)
    examples = _largest_divisor(n, most)
    return examples, _largest_divisor(g, most // examples)


def _largest_divisor(of: int, most: int) -> int:
    return max(d for d in range(1, min(of, most) + 1) if of % d == 0)


def _split(x: Array, size: tuple[int, int]) -> Array:
    """(N, G, ...) as (N/n, G/g, n, g, ...) for groups of n examples and g heads of keys.

    A group's examples are spread over the batch: one that is sharded is not gathered, if a group
    has an example for every device.
    """
    n, g = (min(pair) for pair in zip(size, x.shape[:2], strict=True))
    return jnp.moveaxis(x.reshape(n, -1, g, x.shape[1] // g, *x.shape[2:]), (1, 3), (0, 1))


def _together(x: Array, whole: tuple[int, int]) -> Array:
    """(groups, n, g, ...) as (N, G, ...), as they were."""
    n, g = x.shape[1:3]
    x = x.reshape(whole[0] // n, whole[1] // g, *x.shape[1:])
    return jnp.moveaxis(x, (0, 1), (1, 3)).reshape(*whole, *x.shape[4:])


def _of_turn(mask: Array, number: Array, columns: int) -> Array:
    """The mask of a group, of a `_split` one; of what all groups share it holds one."""
    for count, index in ((mask.shape[0], number // columns), (mask.shape[1], number % columns)):
        mask = lax.dynamic_index_in_dim(mask, index if count > 1 else 0, 0, keepdims=False)
    return mask


def _group_fwd(heads: Heads, reach: Reach) -> tuple[Array, Array]:
    """y and L of some heads: one run after the other."""
    results = []
    for run in runs(heads, reach):
        part = taken(heads, *run)
        if reach.block is None:
            results.append(_attend_fwd(part, seen_by(part, reach)))
        else:
            results.append(_in_blocks_fwd(part, reach, reach.block))
    y, log_normaliser = (jnp.concatenate(parts, 3) for parts in zip(*results, strict=True))
    return y, log_normaliser


def _group_bwd(
    heads: Heads, log_normaliser: Array, dy: Array, dot: Array, reach: Reach
) -> tuple[Array, Array, Array]:
    """The cotangents of some heads; a key's are summed over the runs and blocks that saw it."""
    dqs, (dk, dv) = [], _zeros(heads)
    for queries, keys in runs(heads, reach):
        part = taken(heads, queries, keys)
        given = jax.tree.map(lambda x, i=queries: x[..., i, :], (log_normaliser, dy, dot))
        if reach.block is None:
            dqi, dki, dvi = _attend_bwd(part, seen_by(part, reach), *given)
        else:
            dqi, dki, dvi = _in_blocks_bwd(part, given, reach, reach.block)
        dqs.append(dqi)
        around = [(0, 0), (0, 0), (0, 0), (keys.start, heads.k.shape[2] - keys.stop)]
        dk, dv = dk + jnp.pad(dki, around), dv + jnp.pad(dvi, around)
    return jnp.concatenate(dqs, 3), dk, dv


def _attend_fwd(part: Heads, seen: Array) -> tuple[Array, Array]:
    """Of all queries and keys given. y is divided by the sum, and not all the scores."""
    scores = _scores(part, seen)
    largest = lax.stop_gradient(scores.max(-1, keepdims=True))
    largest = jnp.where(largest == -jnp.inf, 0, largest)  # -inf - -inf is no number
    exp = jnp.exp(scores - largest)
    # In float32 or wider: before the division a sum may be beyond float16.
    total = widen(exp).sum(-1, keepdims=True)
    total = jnp.where(total == 0, 1, total)  # 0 / 1 where nothing is seen, not 0 / 0
    sums = jnp.einsum("ngxs,ngse->ngxe", _rows(exp), part.v, preferred_element_type=total.dtype)
    y = _per_query(sums, part.q) / total
    return y.astype(part.v.dtype), widen(largest) + jnp.log(total)


def _attend_bwd(
    part: Heads, seen: Array, log_normaliser: Array, dy: Array, dot: Array
) -> tuple[Array, Array, Array]:
    """The cotangents of q, k and v, those of k and v as (N, G, D, S).

    Where p is 0, because it is masked, so is ds.
    """
    q, k, v, _ = part
    p = jnp.exp(widen(_scores(part, seen)) - log_normaliser).astype(q.dtype)
    dv = _from_rows(p, dy)
    dp = _per_query(jnp.einsum("ngxe,ngse->ngxs", _rows(dy), v), q)
    ds = p * (dp - dot)
    dq = _per_query(jnp.einsum("ngxs,ngsd->ngxd", _rows(ds), k), q)
    return dq, _from_rows(ds, q), dv


def _scores(part: Heads, seen: Array) -> Array:
    """s (N, G, H/G, T, S), minus infinity where a query may not see the key."""
    scores = _per_query(jnp.einsum("ngxd,ngsd->ngxs", _rows(part.q), part.k), part.q)
    return jnp.where(seen, scores, -jnp.inf)


def _from_rows(p: Array, x: Array) -> Array:
    """Sum over the queries of x (N, G, H/G, T, D) times p (N, G, H/G, T, S): (N, G, D, S).

    XLA for the CPU takes 1.3 to 1.5 times as long for the product that has S before D and, of long
    runs, for one that turns x itself: passes over 4,096 positions 1.15 times (jaxlib 0.10.2).
    """
    turned = _rows(x).mT
    if x.shape[3] >= 256:
        turned = lax.optimization_barrier(turned)
    return jnp.einsum("ngdx,ngxs->ngds", turned, _rows(p))


def _zeros(heads: Heads) -> tuple[Array, Array]:
    """No cotangents yet of k and v, as `_attend_bwd` has them."""
    return jnp.zeros_like(heads.k.mT), jnp.zeros_like(heads.v.mT)


def _in_blocks_fwd(heads: Heads, reach: Reach, block: int) -> tuple[Array, Array]:
    """y and L of all queries, `block` of them at a time."""

    def attend(block: tuple[Array, Array]) -> tuple[Array, Array]:
        part, _, seen = reached(heads, *block, reach)
        return _attend_fwd(part, seen)

    t = heads.q.shape[3]
    y, log_normaliser = lax.map(attend, (jnp.arange(0, t, block), _blocks(heads.q, block)))
    return _joined(y, t), _joined(log_normaliser, t)


def _in_blocks_bwd(
    heads: Heads, given: tuple[Array, Array, Array], reach: Reach, block: int
) -> tuple[Array, Array, Array]:
    """The cotangents of q, k and v, `block` queries at a time."""

    def attend(
        sums: tuple[Array, Array], block: tuple[Array, Array, tuple[Array, Array, Array]]
    ) -> tuple[tuple[Array, Array], Array]:
        start, qi, giveni = block
        part, first, seen = reached(heads, start, qi, reach)
        dqi, dki, dvi = _attend_bwd(part, seen, *giveni)
        dk, dv = sums
        return (_add_at(dk, first, dki), _add_at(dv, first, dvi)), dqi

    t = heads.q.shape[3]
    blocks = jax.tree.map(lambda x: _blocks(x, block), (heads.q, given))
    (dk, dv), dq = lax.scan(attend, _zeros(heads), (jnp.arange(0, t, block), *blocks))
    return _joined(dq, t), dk, dv


def _rows(x: Array) -> Array:
    """(N, G, H/G, T, D) as (N, G, H/G T, D)."""
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _per_query(rows: Array, q: Array) -> Array:
    """(N, G, H/G T, D) as (N, G, H/G, T, D), of as many queries as q."""
    return rows.reshape(*q.shape[:4], -1)


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
