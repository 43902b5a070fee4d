"""Biases of attention by how far a key is from its query: learned by buckets, or falling linearly.

    relative_position_bias   bias_hij = table[b(j - i), h]     dtable[b, h] = sum of dbias_hij over all
                                                               i, j with b(j - i) = b
    alibi_bias               bias_hij = -m_h |j - i|

Both are for `attention`'s `bias`; as there, the queries are the last of the keys' positions.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnn.checks import check_kind, check_one_dtype, check_shapes
from jaxnn.numerics import widen
from jaxnn.op import Op
from jaxnn.settings import check_flag, check_integer


class PositionBias(NamedTuple):
    """The table (B, H): a row for each bucket of distances, in it a bias for each head."""

    table: Array


def relative_position_bias_fwd(
    params: PositionBias,
    *,
    queries: int,
    keys: int,
    bidirectional: bool = True,
    max_distance: int = 128,
) -> tuple[Array, Array]:
    """Return the bias (1, H, T, S) that T `queries` and S `keys` have by their distance j - i.

    Half of the B buckets are for keys after the query, or none unless `bidirectional`: then these
    share the bucket of distance 0. Of the n for keys at or before it, n // 2 are for one distance
    each and the others grow with its logarithm; the last has all from `max_distance` on (Raffel et
    al., 2020, "Exploring the limits of transfer learning", section 2.1). Saves the table.

    Args:
        params: table (B, H).
        queries: T, the last positions of the keys.
        keys: S.
        bidirectional: whether keys after the query have buckets of their own.
        max_distance: where the last bucket begins.

    Returns:
        bias (1, H, T, S), residuals.

    Raises:
        TypeError: params are no `PositionBias` of a floating array, or a setting is mistyped.
        ValueError: the table is no matrix, or too small; a setting is below 1, or `max_distance`
            no more than the n // 2 distances that have a bucket each.
    """
    (table,) = params
    buckets = _buckets(len(table), queries, keys, bidirectional, max_distance)
    return table[buckets].transpose(2, 0, 1)[None], table


def relative_position_bias_bwd(
    table: Array,
    dbias: Array,
    *,
    queries: int,
    keys: int,
    bidirectional: bool = True,
    max_distance: int = 128,
) -> tuple[PositionBias]:
    """Add what each pair of a query and a key got to the row of its bucket, in float32 or wider."""
    buckets = _buckets(len(table), queries, keys, bidirectional, max_distance)
    rows = widen(dbias[0].transpose(1, 2, 0))
    dtable = jnp.zeros_like(widen(table)).at[buckets].add(rows)
    return (PositionBias(dtable.astype(table.dtype)),)


def _buckets(count: int, t: int, s: int, bidirectional: bool, max_distance: int) -> Array:
    """Return the bucket of each query and key, (T, S) integers."""
    distance = np.arange(1 - s, t)  # all that j - i can be
    n = count // 2 if bidirectional else count
    away = np.abs(distance) if bidirectional else np.maximum(-distance, 0)
    alone = n // 2
    growth = np.log(np.maximum(away, alone) / alone) / math.log(max_distance / alone)
    far = np.minimum(alone + (growth * (n - alone)).astype(int), n - 1)
    bucket = np.where(away < alone, away, far) + n * (bidirectional & (distance > 0))
    i, j = jnp.arange(s - t, s)[:, None], jnp.arange(s)
    return jnp.asarray(bucket, jnp.int32)[j - i + s - 1]


def alibi_slopes(heads: int) -> Array:
    """Return the slope m_h of each of H heads (H,): 2^(-8 h / H) for h from 1 to H.

    That is for a power of two. Of other H the largest power of two below has its own, and the rest
    every other slope of twice as many (Press, Smith and Lewis, 2022, "Train short, test long").
    In float32. For causal attention `slopes[:, None, None] * jnp.arange(S)`, (H, 1, S), does what
    `alibi_bias` does, for the softmax of a query takes no account of a sum added to all its scores;
    it takes less memory and, where S is large, has fewer digits.

    Raises:
        TypeError: `heads` is no integer.
        ValueError: it is below 1.
    """
    heads = check_integer("alibi_slopes: heads", heads)
    power = 2 ** int(math.log2(heads))
    slopes = 2.0 ** (-8 * np.arange(1, power + 1) / power)
    between = 2.0 ** (-4 * np.arange(1, 2 * power, 2) / power)
    return jnp.asarray(np.append(slopes, between)[:heads], jnp.float32)


def alibi_bias(heads: int, queries: int, keys: int, dtype: Any = jnp.float32) -> Array:
    """Return the bias -m_h |j - i| (H, T, S) of T `queries`, the last of S `keys`, in this dtype.

    Nothing is learned. The slopes m_h are those of `alibi_slopes`; it has the source.

    Raises:
        TypeError: a size is no integer, or the dtype not floating.
        ValueError: a size is below 1.
    """
    t, s = check_integer("alibi_bias: queries", queries), check_integer("alibi_bias: keys", keys)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"alibi_bias: dtype is {dtype!r}; it must be floating: pass that of q")
    away = abs(jnp.arange(s - t, s)[:, None] - jnp.arange(s)).astype(jnp.float32)
    return (-alibi_slopes(heads)[:, None, None] * away).astype(dtype)


def _check(params: Any, *, queries: Any, keys: Any, bidirectional: Any, max_distance: Any) -> None:
    op = "relative_position_bias"
    check_kind(f"{op}: params", params, PositionBias)
    check_shapes(op, "reshape it to (buckets, heads)", table=(params.table, "BH"))
    check_one_dtype(op, table=params.table)
    for name, value in (("queries", queries), ("keys", keys), ("max_distance", max_distance)):
        check_integer(f"{op}: {name}", value)
    sides = 2 if check_flag(f"{op}: bidirectional", bidirectional) else 1
    count = params.table.shape[0]
    if count < 2 * sides or count % sides:
        rule = "an even number from 4" if sides == 2 else "2"
        raise ValueError(
            f"{op}: table has shape {params.table.shape}, {count} buckets; there must be {rule} "
            f"on, for near and far keys on {sides} side(s): give it more rows"
        )
    if max_distance <= count // sides // 2:
        raise ValueError(
            f"{op}: max_distance is {max_distance!s:.50}; it must be above the "
            f"{count // sides // 2} distances that have a bucket each: choose more"
        )


def _example(key: Array) -> tuple[PositionBias]:
    """Eight buckets, of which some get nothing, and three heads."""
    return (PositionBias(jax.random.normal(key, (8, 3)).at[2].set(0)),)


relative_position_bias = Op(
    relative_position_bias_fwd,
    relative_position_bias_bwd,
    check=_check,
    example=_example,
    settings=(
        {"queries": 5, "keys": 7, "max_distance": 4},
        {"queries": 6, "keys": 4, "bidirectional": False, "max_distance": 5},
    ),
)
