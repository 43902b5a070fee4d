"""Which queries of attention see which keys: in runs, in a block, and each for itself."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

# Causal queries attend in runs, each with the keys up to its end: most of the hidden scores are
# never computed. Of RUN n^2 queries there are n runs of RUN n: products of fewer rows are slower,
# and more of them take longer to compile.
RUN = 64


class Heads(NamedTuple):
    """Scaled queries (N, G, H/G, T, D), keys (N, G, S, D), values (N, G, S, E), mask or None.

    The mask broadcasts to (N, G, H/G, T, S). The queries are the last T of the S positions.
    """

    q: Array
    k: Array
    v: Array
    mask: Array | None


class Reach(NamedTuple):
    """The settings: which keys a query sees, beside the mask, and how many queries go at a time."""

    causal: bool
    window: int | None
    block: int | None


def runs(heads: Heads, reach: Reach) -> list[tuple[slice, slice]]:
    """Runs of queries and, of each, the keys that any of them may see: the last is its own."""
    t, s, window = heads.q.shape[3], heads.k.shape[2], reach.window
    in_reach = window is not None and reach.block is not None  # a block leaves others out itself
    if not reach.causal or t > s or in_reach:
        return [(slice(0, t), slice(0, s))]
    run = RUN if reach.block is None else 4 * RUN  # of blocks, each run compiles loops of its own
    size = math.ceil(t / max(1, round(math.sqrt(t / run))))
    ends = [(start, min(start + size, t)) for start in range(0, t, size)]
    return [(slice(a, b), slice(max(0, s - t + a - (window or s) + 1), s - t + b)) for a, b in ends]


def taken(heads: Heads, queries: slice, keys: slice) -> Heads:
    """Some of the queries, with some of the keys."""
    q, k, v, mask = heads
    if mask is not None:
        mask = mask[..., queries if mask.shape[3] > 1 else slice(None), :]
        mask = mask[..., keys if mask.shape[4] > 1 else slice(None)]
    return Heads(q[..., queries, :], k[:, :, keys], v[:, :, keys], mask)


def reached(heads: Heads, start: Array, q: Array, reach: Reach) -> tuple[Heads, Array, Array]:
    """A block q of the queries with the keys in reach, number of the first, and which are seen."""
    t, s, size = heads.q.shape[3], heads.k.shape[2], q.shape[3]
    first, count = jnp.zeros_like(start), s
    if reach.window is not None:
        count = min(s, size + reach.window - 1)
        first = jnp.clip(start + (s - t - reach.window + 1), 0, s - count)
    seen = seen_by(heads, reach, (start, size), (first, count))
    k, v = (lax.dynamic_slice_in_dim(x, first, count, axis=2) for x in heads[1:3])
    return Heads(q, k, v, None), first, seen


def seen_by(
    heads: Heads,
    reach: Reach,
    rows: tuple[Array | int, int] | None = None,
    columns: tuple[Array | int, int] | None = None,
) -> Array:
    """Which queries see which keys, of some rows and columns (first, how many) of the scores.

    Booleans that broadcast to (N, G, H/G, rows, columns); of all where none are named.
    """
    t, s, mask = heads.q.shape[3], heads.k.shape[2], heads.mask
    i, j = (first + jnp.arange(count) for first, count in (rows or (0, t), columns or (0, s)))
    position = i[:, None] + (s - t)
    seen = j <= position if reach.causal else jnp.ones((len(i), len(j)), bool)
    if reach.window is not None:
        seen &= j > position - reach.window
    if mask is None:
        return seen
    for axis, index in ((3, i), (4, j)):
        if mask.shape[axis] > 1:  # rows past the end are padding, whatever they see
            mask = jnp.take(mask, index, axis, mode="clip")
    return seen & mask
