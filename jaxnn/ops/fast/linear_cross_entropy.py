"""The last linear layer and the softmax cross-entropy together, a few classes at a time.

No more than `chunk` classes of the logits exist at once: the forward sums exp(z_j) chunk by chunk,
less the largest so far, and keeps one sum per row; the backward computes each chunk's logits again,
and has its columns of dw and its part of dx while they are in a cache: four matrix products for
three. Where the logits are few, the plain form computes them once, and keeps their exponentials.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxnn.numerics import reduce_bwd, reduce_fwd, valid_labels, widen
from jaxnn.ops import linear_cross_entropy as plain
from jaxnn.ops.linear import Linear
from jaxnn.ops.linear_cross_entropy import LinearCrossEntropyResiduals

# How many to hold at once if nothing else is asked for, and of how many classes at least: what a
# cache holds, and enough to keep any matrix product busy.
LOGITS, CLASSES = 2**21, 128


class ChunkedResiduals(NamedTuple):
    """The layer's w (D, V) and b (V,) or None, features (..., D), labels (...).

    Of each row `largest` (N,), its largest logit m, and `log_sum` (N,), log sum_j exp(z_j - m).
    """

    params: Linear
    x: Array
    labels: Array
    largest: Array
    log_sum: Array


Sums = tuple[Array, Array, Array, Array]
Grads = tuple[Array, Array, Array]
Residuals = ChunkedResiduals | LinearCrossEntropyResiduals


def linear_cross_entropy_fwd(
    params: Linear,
    x: Array,
    labels: Array,
    *,
    chunk: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> tuple[Array, Residuals]:
    """Return what the plain form does, of N rows holding a few times N `chunk` logits.

    Saves two numbers per row, and recomputes the logits. If `chunk` is V or more, or None and there
    are no more than two million logits or 128 classes, it is the plain form.
    """
    settings: dict[str, Any] = {"label_smoothing": label_smoothing, "z_loss": z_loss}
    w, _ = params
    if _size(w, x, chunk) >= w.shape[1]:
        return plain.linear_cross_entropy_fwd(params, x, labels, reduction=reduction, **settings)

    rows, targets, valid = _flattened(w, x, labels)
    chunk_of, starts = _chunks(params, rows, chunk, targets.dtype)
    zero = jnp.zeros_like(valid)

    def add(sums: Sums, start: Array) -> tuple[Sums, None]:
        largest, total, label_z, sum_z = sums
        first, _, z, is_new = chunk_of(start)
        seen = jnp.where(is_new, z, -jnp.inf).max(-1)
        larger = lax.stop_gradient(jnp.maximum(largest, seen))
        exp = jnp.where(is_new, jnp.exp(z - larger[:, None]), 0).sum(-1)
        total = total * jnp.exp(largest - larger) + exp
        # An element of each row, and not a sum over the chunk: that is one more pass.
        place = (targets - first)[:, None]
        found = jnp.take_along_axis(z, place, 1, mode="clip")[:, 0]
        is_here = (targets >= start) & (targets < first + z.shape[1])
        label_z = jnp.where(is_here, found, label_z)
        sum_z = sum_z + jnp.where(is_new, z, 0).sum(-1) if label_smoothing else sum_z
        return (larger, total, label_z, sum_z), None

    least = jnp.full_like(zero, np.finfo(zero.dtype).min)  # not -inf: -inf - -inf is no number
    (largest, total, label_z, sum_z), _ = lax.scan(add, (least, zero, zero, zero), starts)
    log_sum = jnp.log(total)
    losses = log_sum - (label_z - largest)
    if label_smoothing:
        spread = log_sum - (sum_z / w.shape[1] - largest)
        losses = (1 - label_smoothing) * losses + label_smoothing * spread
    if z_loss:
        losses = losses + z_loss * (largest + log_sum) ** 2
    loss = reduce_fwd((losses * valid).reshape(labels.shape), reduction).astype(x.dtype)
    return loss, ChunkedResiduals(params, x, labels, largest, log_sum)


def linear_cross_entropy_bwd(
    residuals: Residuals,
    dloss: Array,
    *,
    chunk: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> tuple[Linear, Array, None]:
    """Return dw, db and dx of all logits at once, or of a chunk's, computed again, at a time."""
    if isinstance(residuals, LinearCrossEntropyResiduals):
        settings: dict[str, Any] = {"label_smoothing": label_smoothing, "z_loss": z_loss}
        return plain.linear_cross_entropy_bwd(residuals, dloss, reduction=reduction, **settings)

    params, x, labels, *of_rows = residuals
    w, b = params
    largest, log_sum = (number[:, None] for number in of_rows)
    rows, targets, valid = _flattened(w, x, labels)
    chunk_of, starts = _chunks(params, rows, chunk, targets.dtype)
    dlosses = (reduce_bwd(dloss, labels.size, reduction).ravel() * valid)[:, None]

    def add(sums: Grads, start: Array) -> tuple[Grads, None]:
        dw, db, dx = sums
        first, part, z, is_new = chunk_of(start)
        p = jnp.exp(z - largest - log_sum)
        is_label = targets[:, None] == first + jnp.arange(z.shape[1], dtype=first.dtype)
        q = (1 - label_smoothing) * is_label.astype(p.dtype) + label_smoothing / w.shape[1]
        dz = p - q
        if z_loss:
            dz = dz + 2 * z_loss * (largest + log_sum) * p
        dz = dz * dlosses
        if b is not None:
            db = lax.dynamic_update_slice_in_dim(db, dz.sum(0).astype(b.dtype), first, axis=0)
        dz = dz.astype(x.dtype)
        columns = jnp.matmul(rows.T, dz, preferred_element_type=dx.dtype).astype(w.dtype)
        dw = lax.dynamic_update_slice_in_dim(dw, columns, first, axis=1)
        dx = dx + jnp.matmul(dz, jnp.where(is_new, part, 0).T, preferred_element_type=dx.dtype)
        return (dw, db, dx), None

    zeros = jnp.zeros_like(w), jnp.zeros_like(w[0]), widen(jnp.zeros_like(rows))
    (dw, db, dx), _ = lax.scan(add, zeros, starts)
    dparams = Linear(dw, None if b is None else db)
    return dparams, dx.astype(x.dtype).reshape(x.shape), None


def _size(w: Array, x: Array, chunk: int | None) -> int:
    """How many classes to take at a time."""
    rows = max(1, math.prod(x.shape[:-1]))
    return min(w.shape[1], max(CLASSES, LOGITS // rows) if chunk is None else chunk)


def _flattened(w: Array, x: Array, labels: Array) -> tuple[Array, Array, Array]:
    """x as (N, D), the labels as (N,), and of each 1, or NaN where it is no class."""
    rows = x.reshape(-1, x.shape[-1])
    return rows, *valid_labels(labels.ravel(), w.shape[1], widen(x).dtype)


def _chunks(
    params: Linear, rows: Array, chunk: int | None, dtype: Any
) -> tuple[Callable[[Array], tuple[Array, ...]], Array]:
    """What computes a chunk of the logits from where it starts, and where each starts (integers).

    The last chunk reaches back to be as wide as the others: its classes that were there before are
    not new, and are not to be counted again.
    """
    w, b = params
    size, wide = _size(w, rows, chunk), widen(rows).dtype

    def chunk_of(start: Array) -> tuple[Array, ...]:
        first = jnp.minimum(start, w.shape[1] - size)
        classes = first + jnp.arange(size, dtype=dtype)
        part = lax.dynamic_slice_in_dim(w, first, size, axis=1)
        z = jnp.matmul(rows, part, preferred_element_type=wide)
        if b is not None:
            z = z + lax.dynamic_slice_in_dim(b, first, size).astype(wide)
        return first, part, z, classes >= start

    return chunk_of, jnp.arange(0, w.shape[1], size, dtype=dtype)
