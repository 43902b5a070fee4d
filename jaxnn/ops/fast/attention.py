"""Attention in parts: runs of causal queries, and blocks of queries for memory linear in T.

The last queries of some positions are attention of their own: each part is a call of the plain
functions, and the keys' gradients are summed over the parts that saw them.

Causal queries go in runs, each with the keys up to its end: up to half of the scores, which are
hidden, are never computed. With a `block` a loop takes that many queries at a time, so that neither
pass holds more than N H block S scores and, of a `window`, N H block (block + window - 1): keys out
of reach of the whole block are not touched.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxnn.numerics import Pairs, widen
from jaxnn.ops import attention as plain
from jaxnn.ops.attention import AttentionResiduals
from jaxnn.varying import vary_with

# Of RUN n^2 queries there are n runs of RUN n: products of fewer rows are slower, and more of them
# take longer to compile.
RUN = 64


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
    """Return what the plain form does, run by run."""
    attend: Callable[..., Any] = plain.attention_fwd
    if block is not None:
        attend = partial(_in_blocks_fwd, block=min(block, q.shape[1]))
    attend = partial(attend, causal=causal, window=window, scale=scale, softcap=softcap, rate=rate)
    qh, kh, vh = (x.swapaxes(1, 2) for x in (q, k, v))  # once, and not for every run
    parts = []
    for i, j in _runs(q, k, causal, window, block):
        of_scores = _taken(mask, i, j), _taken(bias, i, j), _placed(key, i, j)
        y, saved = attend(_cut(qh, i), _cut(kh, j), _cut(vh, j), *of_scores)
        parts.append((y, saved.log_normaliser))
    y, log_normaliser = (jnp.concatenate(of_all, 1) for of_all in zip(*parts, strict=True))
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
    """Return what the plain form does; what several runs have a part in is summed over them."""
    q, k, v, mask, bias, key, y, log_normaliser = residuals
    attend: Callable[..., Any] = plain.attention_bwd
    if block is not None:
        attend = partial(_in_blocks_bwd, block=min(block, q.shape[1]))
    attend = partial(attend, causal=causal, window=window, scale=scale, softcap=softcap, rate=rate)
    qh, kh, vh, yh, dyh = (x.swapaxes(1, 2) for x in (q, k, v, y, dy))
    dqs: list[Array] = []
    dk, dv = jnp.zeros_like(widen(k)), jnp.zeros_like(widen(v))
    dbias: Any = None if bias is None else jnp.zeros_like(widen(_by_four(bias)))
    for i, j in _runs(q, k, causal, window, block):
        of_scores = _taken(mask, i, j), _taken(bias, i, j), _placed(key, i, j)
        of_part = _cut(qh, i), _cut(kh, j), _cut(vh, j), *of_scores, _cut(yh, i)
        part = AttentionResiduals(*of_part, log_normaliser[:, i])
        dq, dki, dvi, _, dbiasi, _ = attend(part, widen(_cut(dyh, i)))
        around = [(0, 0), (j.start, k.shape[1] - j.stop), (0, 0), (0, 0)]
        dqs.append(dq)
        dk, dv = dk + jnp.pad(dki, around), dv + jnp.pad(dvi, around)
        dbias = None if bias is None else _add_at(dbias, i.start, j.start, dbiasi)
    dq = jnp.concatenate(dqs, 1).astype(dy.dtype)
    dbias = None if bias is None else dbias.reshape(bias.shape).astype(dy.dtype)
    return dq, dk.astype(dy.dtype), dv.astype(dy.dtype), None, dbias, None


def _runs(
    q: Array, k: Array, causal: bool, window: int | None, block: int | None
) -> list[tuple[slice, slice]]:
    """Runs of queries and, of each, the keys that any of them may see: the last is its own."""
    t, s = q.shape[1], k.shape[1]
    in_reach = window is not None and block is not None  # a block leaves others out itself
    if not causal or t > s or in_reach:
        return [(slice(0, t), slice(0, s))]
    run = RUN if block is None else 4 * RUN  # of blocks, each run compiles loops of its own
    size = math.ceil(t / max(1, round(math.sqrt(t / run))))
    ends = [(start, min(start + size, t)) for start in range(0, t, size)]
    before = s if window is None else window - 1
    return [(slice(a, b), slice(max(0, s - t + a - before), s - t + b)) for a, b in ends]


def _cut(x: Array, positions: slice) -> Array:
    """Some positions of x (N, H, T, D), as (N, T, H, D)."""
    return x[:, :, positions].swapaxes(1, 2)


def _by_four(x: Array) -> Array:
    """A mask or bias with all four axes that the scores have."""
    return x.reshape((1,) * (4 - x.ndim) + x.shape)


def _taken(x: Array | None, queries: slice, keys: slice) -> Array | None:
    """The mask or bias of some queries and keys."""
    if x is None:
        return None
    x = _by_four(x)
    x = x[:, :, queries] if x.shape[2] > 1 else x
    return x[..., keys] if x.shape[3] > 1 else x


def _placed(key: Any, queries: slice, keys: slice) -> Pairs | None:
    """The key of some queries and keys, which draws for them what it does among all."""
    if key is None:
        return None
    return Pairs(key, *(jnp.arange(part.start, part.stop) for part in (queries, keys)))


def _in_blocks_fwd(
    q: Array, *others: Any, block: int, causal: bool, window: int | None, **settings: Any
) -> tuple[Array, AttentionResiduals]:
    """Attend `block` queries at a time."""
    t, keys_of = q.shape[1], _keys_in_reach((q, *others), block, causal, window)

    def attend(turn: tuple[Array, Array]) -> tuple[Array, Array]:
        start, qi = turn
        y, saved = plain.attention_fwd(qi, *keys_of(start)[1:], **settings)
        return y, saved.log_normaliser

    y, log_normaliser = lax.map(attend, (jnp.arange(0, t, block), _blocks(q, block)))
    y, log_normaliser = _joined(y, t), _joined(log_normaliser, t)
    saved: Any = (q, *others, y, log_normaliser)
    return y, AttentionResiduals(*saved)


def _in_blocks_bwd(
    residuals: AttentionResiduals,
    dy: Array,
    *,
    block: int,
    causal: bool,
    window: int | None,
    **settings: Any,
) -> tuple[Any, ...]:
    """Return the cotangents of q, k, v and the bias, `block` queries at a time."""
    q, k, v, mask, bias, key, y, log_normaliser = residuals
    t, keys_of = q.shape[1], _keys_in_reach((q, k, v, mask, bias, key), block, causal, window)

    def attend(sums: tuple[Any, ...], turn: Any) -> tuple[tuple[Any, ...], Array]:
        start, qi, yi, li, dyi = turn
        first, ki, vi, seen, biasi, keyi = keys_of(start)
        part = AttentionResiduals(qi, ki, vi, seen, biasi, keyi, yi, li)
        cotangents: Any = plain.attention_bwd(part, dyi, **settings)
        dqi, dki, dvi, _, dbiasi, _ = cotangents
        dk, dv, dbias = sums
        dk, dv = (_add_at(x, 0, first, _turned(xi)) for x, xi in ((dk, dki), (dv, dvi)))
        return (dk, dv, None if bias is None else _add_at(dbias, start, first, dbiasi)), dqi

    whole = _turned(k), _turned(v), _filled(bias, block)
    zeros: Any = tuple(None if x is None else jnp.zeros_like(widen(x)) for x in whole)
    blocks = [_blocks(x, block) for x in (q, y, log_normaliser, dy)]
    zeros = vary_with(zeros, residuals, dy)
    (dk, dv, dbias), dq = lax.scan(attend, zeros, (jnp.arange(0, t, block), *blocks))
    dbias = None if bias is None else dbias[:, :, : bias.shape[2]]
    return _joined(dq, t), dk.transpose(0, 3, 1, 2), dv.transpose(0, 3, 1, 2), None, dbias, None


def _keys_in_reach(
    inputs: Sequence[Any], block: int, causal: bool, window: int | None
) -> Callable[[Array], tuple[Any, ...]]:
    """What gives, of where a block starts, where its keys start, and its inputs but the queries."""
    q, k, v, mask, bias, key = inputs
    t, s = q.shape[1], k.shape[1]
    reach = s if window is None else min(window, s)
    count = min(s, block + reach - 1)
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)  # as they are needed: once, not for every block
    mask, bias = _filled(mask, block), _filled(bias, block)

    def keys_of(start: Array) -> tuple[Any, ...]:
        first = jnp.clip(start + (s - t - reach + 1), 0, s - count)
        i, j = start + jnp.arange(block), first + jnp.arange(count)
        position = i[:, None] + (s - t)
        seen = jnp.ones((block, count), bool)
        if causal:
            seen = (j <= position) & (j > position - reach)
        maski, biasi = (_slice_at(x, start, first, block, count) for x in (mask, bias))
        seen = seen if maski is None else seen & maski
        ki, vi = (lax.dynamic_slice_in_dim(x, first, count, axis=2) for x in (k, v))
        keyi = None if key is None else Pairs(key.key, key.rows[0] + i, key.columns[0] + j)
        return first, ki.swapaxes(1, 2), vi.swapaxes(1, 2), seen, biasi, keyi

    return keys_of


def _filled(x: Array | None, block: int) -> Array | None:
    """A mask or bias with rows for all of the last block, whatever they hold."""
    if x is None or x.shape[2] == 1:
        return x
    return jnp.pad(x, [(0, -x.shape[2] % block if axis == 2 else 0) for axis in range(4)])


def _slice_at(x: Array | None, row: Array, column: Array, rows: int, columns: int) -> Array | None:
    """Some rows and columns, from these on, of a mask or bias; an axis of 1 stands for any."""
    if x is None:
        return None
    for axis, start, size in ((2, row, rows), (3, column, columns)):
        x = lax.dynamic_slice_in_dim(x, start, size, axis) if x.shape[axis] > 1 else x
    return x


def _turned(x: Array) -> Array:
    """(N, S, G, D) as (N, G, D, S): as the plain backward's products give it, and not copied."""
    return x.transpose(0, 2, 3, 1)


def _add_at(x: Array, row: int | Array, column: int | Array, part: Array) -> Array:
    """`part` added to x from a row and a column on; an axis of 1 has no other start than 0."""
    start = (0, 0, row, column)
    return lax.dynamic_update_slice(x, lax.dynamic_slice(x, start, part.shape) + part, start)


def _blocks(x: Array, block: int) -> Array:
    """(N, T, H, D) as (blocks, N, queries of a block, H, D), filled up with zeros."""
    n, t, *others = x.shape
    x = jnp.pad(x, [(0, -t % block if axis == 1 else 0) for axis in range(4)])
    return jnp.moveaxis(x.reshape(n, x.shape[1] // block, block, *others), 1, 0)


def _joined(blocks: Array, t: int) -> Array:
    """What `_blocks` took apart, without the zeros."""
    count, n, size, *others = blocks.shape
    return jnp.moveaxis(blocks, 0, 1).reshape(n, count * size, *others)[:, :t]
