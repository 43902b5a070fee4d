"""Attention in parts: runs of causal queries, and blocks of queries for memory linear in T.

The last queries of some positions are attention of their own: each part is a call of the plain
functions, and the keys' gradients are summed over the parts that saw them.

Causal queries go in runs, each with the keys up to its end: up to half of the scores, which are
hidden, are never computed. With a `block` a loop takes that many queries at a time, so that neither
pass holds more than N H block S scores and, of a `window`, N H block (block + window - 1): keys out
of reach of the whole block are not touched.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxnn.numerics import widen
from jaxnn.ops import attention as plain
from jaxnn.ops.attention import AttentionResiduals

# Of RUN n^2 queries there are n runs of RUN n: products of fewer rows are slower, and more of them
# take longer to compile.
RUN = 64


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
    """Return what the plain form does, run by run."""
    attend: Callable[..., Any] = plain.attention_fwd
    if block is not None:
        attend = partial(_in_blocks_fwd, block=min(block, q.shape[1]))
    qh, kh, vh = (x.swapaxes(1, 2) for x in (q, k, v))  # once, and not for every run
    parts = []
    for i, j in _runs(q, k, causal, window, block):
        of_part = _cut(qh, i), _cut(kh, j), _cut(vh, j), _taken(mask, i, j)
        y, saved = attend(*of_part, causal=causal, window=window, scale=scale)
        parts.append((y, saved.log_normaliser))
    y, log_normaliser = (jnp.concatenate(of_all, 1) for of_all in zip(*parts, strict=True))
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
    """Return what the plain form does; a key's gradients are summed over the runs that saw it."""
    q, k, v, mask, y, log_normaliser = residuals
    attend: Callable[..., Any] = plain.attention_bwd
    if block is not None:
        attend = partial(_in_blocks_bwd, block=min(block, q.shape[1]))
    qh, kh, vh, yh, dyh = (x.swapaxes(1, 2) for x in (q, k, v, y, dy))
    dqs: list[Array] = []
    dk, dv = jnp.zeros_like(widen(k)), jnp.zeros_like(widen(v))
    for i, j in _runs(q, k, causal, window, block):
        of_keys = _cut(kh, j), _cut(vh, j), _taken(mask, i, j)
        part = AttentionResiduals(_cut(qh, i), *of_keys, _cut(yh, i), log_normaliser[:, i])
        dq, dki, dvi, _ = attend(
            part, widen(_cut(dyh, i)), causal=causal, window=window, scale=scale
        )
        around = [(0, 0), (j.start, k.shape[1] - j.stop), (0, 0), (0, 0)]
        dqs.append(dq)
        dk, dv = dk + jnp.pad(dki, around), dv + jnp.pad(dvi, around)
    dq = jnp.concatenate(dqs, 1)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


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


def _taken(mask: Array | None, queries: slice, keys: slice) -> Array | None:
    """The mask of some queries and keys."""
    if mask is None:
        return None
    mask = mask[..., queries, :] if mask.shape[-2] > 1 else mask
    return mask[..., keys] if mask.shape[-1] > 1 else mask


def _in_blocks_fwd(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None,
    *,
    block: int,
    causal: bool,
    window: int | None,
    scale: float | None,
) -> tuple[Array, AttentionResiduals]:
    """Attend `block` queries at a time."""
    t, keys_of = q.shape[1], _keys_in_reach(q, k, v, mask, causal, window)

    def attend(turn: tuple[Array, Array]) -> tuple[Array, Array]:
        _, k, v, seen = keys_of(*turn)
        y, saved = plain.attention_fwd(turn[1], k, v, seen, scale=scale)
        return y, saved.log_normaliser

    y, log_normaliser = lax.map(attend, (jnp.arange(0, t, block), _blocks(q, block)))
    y, log_normaliser = _joined(y, t), _joined(log_normaliser, t)
    return y, AttentionResiduals(q, k, v, mask, y, log_normaliser)


def _in_blocks_bwd(
    residuals: AttentionResiduals,
    dy: Array,
    *,
    block: int,
    causal: bool,
    window: int | None,
    scale: float | None,
) -> tuple[Array, Array, Array, None]:
    """Return the cotangents of q, k and v, `block` queries at a time."""
    q, k, v, mask, y, log_normaliser = residuals
    t, keys_of = q.shape[1], _keys_in_reach(q, k, v, mask, causal, window)

    def attend(sums: tuple[Array, Array], turn: Any) -> tuple[tuple[Array, Array], Array]:
        start, qi, yi, li, dyi = turn
        first, k, v, seen = keys_of(start, qi)
        part = AttentionResiduals(qi, k, v, seen, yi, li)
        dqi, dki, dvi, _ = plain.attention_bwd(part, dyi, scale=scale)
        return (_add_at(sums[0], first, dki), _add_at(sums[1], first, dvi)), dqi

    zeros = jnp.zeros_like(_turned(widen(k))), jnp.zeros_like(_turned(widen(v)))
    blocks = [_blocks(x, block) for x in (q, y, log_normaliser, dy)]
    (dk, dv), dq = lax.scan(attend, zeros, (jnp.arange(0, t, block), *blocks))
    return _joined(dq, t), dk.transpose(0, 3, 1, 2), dv.transpose(0, 3, 1, 2), None


def _keys_in_reach(
    q: Array, k: Array, v: Array, mask: Array | None, causal: bool, window: int | None
) -> Callable[[Array, Array], tuple[Array, Array, Array, Array]]:
    """What gives, of a block and where it starts, its keys: first, k, v, and which are seen."""
    t, s = q.shape[1], k.shape[1]
    reach = s if window is None else min(window, s)
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)  # as they are needed: once, not for every block

    def keys_of(start: Array, qi: Array) -> tuple[Array, Array, Array, Array]:
        count = min(s, qi.shape[1] + reach - 1)
        first = jnp.clip(start + (s - t - reach + 1), 0, s - count)
        i, j = start + jnp.arange(qi.shape[1]), first + jnp.arange(count)
        position = i[:, None] + (s - t)
        seen = jnp.ones((len(i), count), bool)
        if causal:
            seen = (j <= position) & (j > position - reach)
        if mask is not None:
            rows, columns = mask.shape[-2:]  # rows past the end are padding, whatever they see
            of_rows = mask if rows == 1 else jnp.take(mask, i, -2, mode="clip")
            seen &= of_rows if columns == 1 else jnp.take(of_rows, j, -1)
        ki, vi = (lax.dynamic_slice_in_dim(x, first, count, axis=2) for x in (k, v))
        return first, ki.swapaxes(1, 2), vi.swapaxes(1, 2), seen

    return keys_of


def _turned(x: Array) -> Array:
    """(N, S, G, D) as (N, G, D, S): as the plain backward's products give it, and not copied."""
    return x.transpose(0, 2, 3, 1)


def _add_at(x: Array, start: Array, part: Array) -> Array:
    """`part` (N, S, G, D) added to x (N, G, D, S) from position `start` on."""
    sums = lax.dynamic_slice_in_dim(x, start, part.shape[1], axis=3) + _turned(part)
    return lax.dynamic_update_slice_in_dim(x, sums, start, axis=3)


def _blocks(x: Array, block: int) -> Array:
    """(N, T, H, D) as (blocks, N, queries of a block, H, D), filled up with zeros."""
    n, t, *others = x.shape
    x = jnp.pad(x, [(0, -t % block if axis == 1 else 0) for axis in range(4)])
    return jnp.moveaxis(x.reshape(n, x.shape[1] // block, block, *others), 1, 0)


def _joined(blocks: Array, t: int) -> Array:
    """What `_blocks` took apart, without the zeros."""
    count, n, size, *others = blocks.shape
    return jnp.moveaxis(blocks, 0, 1).reshape(n, count * size, *others)[:, :t]
