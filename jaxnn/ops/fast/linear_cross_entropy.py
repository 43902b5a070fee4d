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

from jaxnn.numerics import is_zero, label_weights, reduce_bwd, reduce_fwd, valid_labels, widen
from jaxnn.ops import linear_cross_entropy as plain
from jaxnn.ops.cross_entropy import is_soft
from jaxnn.ops.linear import Linear
from jaxnn.ops.linear_cross_entropy import LinearCrossEntropyResiduals
from jaxnn.varying import vary_with

# If nothing else is asked for: how many logits are few, so that all are held at once; of more, how
# many to hold, and of how many classes at least, which keeps any matrix product busy.
FEW, LOGITS, CLASSES = 2**21, 2**19, 128


class ChunkedResiduals(NamedTuple):
    """The layer's w (D, V) and b (V,) or None, features (..., D), labels (...), weights (V,).

    Of each row `largest` (N,), its largest logit m, and `log_sum` (N,), log sum_j exp(z_j - m); the
    loss.
    """

    params: Linear
    x: Array
    labels: Array
    class_weights: Array | None
    largest: Array
    log_sum: Array
    loss: Array


Sums = tuple[Array, Array, Array, Array]
Grads = tuple[Array, Array, Array, Array]
Residuals = ChunkedResiduals | LinearCrossEntropyResiduals


def linear_cross_entropy_fwd(
    params: Linear,
    x: Array,
    labels: Array,
    class_weights: Array | None = None,
    *,
    chunk: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Array, Residuals]:
    """Return what the plain form does, of N rows holding a few times N `chunk` logits.

    Saves two numbers per row, and recomputes the logits. If `chunk` is V or more, or None and there
    are no more than two million logits or 128 classes, or if there is a target for each logit, it
    is the plain form.
    """
    settings: dict[str, Any] = {"label_smoothing": label_smoothing, "z_loss": z_loss}
    settings |= {"ignore_index": ignore_index, "reduction": reduction}
    classes = params.w.shape[1]
    count = math.prod(x.shape[:-1])
    if classes_at_once(count, classes, chunk) == classes or is_soft(labels):
        return plain.linear_cross_entropy_fwd(params, x, labels, class_weights, **settings)

    rows, label, counts = _flattened(x, labels, classes, ignore_index)
    w_label, total = label_weights(label, counts, class_weights, ignore_index)
    ignored = None if ignore_index is None else counts == 0
    chunk_of, starts = _chunks(params, class_weights, rows, ignored, chunk, label.dtype)
    zero = jnp.zeros_like(counts)

    def add(sums: Sums, start: Array) -> tuple[Sums, None]:
        largest, sum_exp, label_z, sum_z = sums
        first, _, weights, z, is_new = chunk_of(start)
        seen = jnp.where(is_new, z, -jnp.inf).max(-1)
        larger = lax.stop_gradient(jnp.maximum(largest, seen))
        exp = jnp.where(is_new, jnp.exp(z - larger[:, None]), 0).sum(-1)
        sum_exp = sum_exp * jnp.exp(largest - larger) + exp
        # An element of each row, and not a sum over the chunk: that is one more pass.
        place = (label - first)[:, None]
        found = jnp.take_along_axis(z, place, 1, mode="clip")[:, 0]
        is_here = (label >= start) & (label < first + z.shape[1])
        label_z = jnp.where(is_here, found, label_z)
        if not is_zero(label_smoothing):
            sum_z = sum_z + jnp.where(is_new, weights * z, 0).sum(-1)
        return (larger, sum_exp, label_z, sum_z), None

    least = jnp.full_like(zero, np.finfo(zero.dtype).min)  # not -inf: -inf - -inf is no number
    nothing = vary_with((least, zero, zero, zero), params, x, class_weights)
    (largest, sum_exp, label_z, sum_z), _ = lax.scan(add, nothing, starts)
    log_sum = jnp.log(sum_exp)
    losses = w_label * (log_sum - (label_z - largest))
    if not is_zero(label_smoothing):
        mean_w = _mean(class_weights, zero.dtype)
        spread = mean_w * log_sum - (sum_z / classes - mean_w * largest)
        losses = (1 - label_smoothing) * losses + label_smoothing * spread
    if not is_zero(z_loss):
        losses = losses + z_loss * (largest + log_sum) ** 2
    loss = reduce_fwd((losses * counts).reshape(labels.shape), reduction, total)
    residuals = ChunkedResiduals(params, x, labels, class_weights, largest, log_sum, loss)
    return loss.astype(x.dtype), residuals


def linear_cross_entropy_bwd(
    residuals: Residuals,
    dloss: Array,
    *,
    chunk: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Linear, Array, Array | None, Array | None]:
    """Return dw, db and dx of all logits at once, or of a chunk's, computed again, at a time."""
    settings: dict[str, Any] = {"label_smoothing": label_smoothing, "z_loss": z_loss}
    settings |= {"ignore_index": ignore_index, "reduction": reduction}
    if isinstance(residuals, LinearCrossEntropyResiduals):
        return plain.linear_cross_entropy_bwd(residuals, dloss, **settings)

    params, x, labels, class_weights, *of_rows, loss = residuals
    w, b = params
    largest, log_sum = (number[:, None] for number in of_rows)
    rows, label, counts = _flattened(x, labels, w.shape[1], ignore_index)
    w_label, total = label_weights(label, counts, class_weights, ignore_index)
    mean_w = _mean(class_weights, counts.dtype)
    weight = ((1 - label_smoothing) * w_label + label_smoothing * mean_w) * jnp.ones_like(counts)
    ignored = None if ignore_index is None else counts == 0
    chunk_of, starts = _chunks(params, class_weights, rows, ignored, chunk, label.dtype)
    dl = reduce_bwd(dloss, total, reduction).ravel()
    dlosses = (dl * counts)[:, None]

    def add(grads: Grads, start: Array) -> tuple[Grads, None]:
        dw, db, dx, dweights = grads
        first, part, weights, z, is_new = chunk_of(start)
        log_p = z - largest - log_sum
        p = jnp.exp(log_p)
        is_label = label[:, None] == first + jnp.arange(z.shape[1], dtype=first.dtype)
        q = (1 - label_smoothing) * is_label.astype(p.dtype) + label_smoothing / w.shape[1]
        dz = weight[:, None] * p - weights * q
        if not is_zero(z_loss):
            dz = dz + 2 * z_loss * (largest + log_sum) * p
        dz = dz * dlosses
        if b is not None:
            db = lax.dynamic_update_slice_in_dim(db, dz.sum(0).astype(b.dtype), first, axis=0)
        if class_weights is not None:
            log_p = jnp.where((q == 0) & (z == -jnp.inf), 0, log_p)
            of_chunk = (-q * log_p * dlosses).sum(0)
            dweights = lax.dynamic_update_slice_in_dim(dweights, of_chunk, first, axis=0)
        dz = dz.astype(x.dtype)
        columns = jnp.matmul(rows.T, dz, preferred_element_type=dx.dtype).astype(w.dtype)
        dw = lax.dynamic_update_slice_in_dim(dw, columns, first, axis=1)
        dx = dx + jnp.matmul(dz, jnp.where(is_new, part, 0).T, preferred_element_type=dx.dtype)
        return (dw, db, dx, dweights), None

    none = jnp.zeros(w.shape[1], counts.dtype)
    zeros = jnp.zeros_like(w), none.astype(w.dtype), widen(jnp.zeros_like(rows)), none
    zeros = vary_with(zeros, residuals, dloss)
    (dw, db, dx, dweights), _ = lax.scan(add, zeros, starts)
    dparams, dx = Linear(dw, None if b is None else db), dx.astype(x.dtype).reshape(x.shape)
    if class_weights is None:
        return dparams, dx, None, None
    if reduction == "mean":
        moved = jnp.where(counts == 0, 0, loss * dl)
        dweights = dweights - none.at[label].add(moved, mode="clip")
    return dparams, dx, None, dweights.astype(class_weights.dtype)


def classes_at_once(rows: int, classes: int, chunk: int | None) -> int:
    """Return of how many classes the logits of so many rows are held at once."""
    if chunk is None:
        few = rows * classes <= FEW
        chunk = classes if few else max(CLASSES, LOGITS // max(rows, 1))
    return min(classes, chunk)


def _flattened(
    x: Array, labels: Array, classes: int, ignore_index: int | None
) -> tuple[Array, Array, Array]:
    """x as (N, D), 0 where ignored; the labels as (N,); of each 1, 0 or NaN as `valid_labels`."""
    rows = x.reshape(-1, x.shape[-1])
    label, counts = valid_labels(labels.ravel(), classes, widen(x).dtype, ignore_index)
    return jnp.where((counts == 0)[:, None], 0, rows), label, counts


def _mean(class_weights: Array | None, dtype: Any) -> Array | float:
    return 1.0 if class_weights is None else class_weights.astype(dtype).mean()


def _chunks(
    params: Linear,
    class_weights: Array | None,
    rows: Array,
    ignored: Array | None,
    chunk: int | None,
    dtype: Any,
) -> tuple[Callable[[Array], tuple[Array, ...]], Array]:
    """What computes a chunk of the logits from where it starts, and where each starts (integers).

    The last chunk reaches back to be as wide as the others: its classes that were there before are
    not new, and are not to be counted again.
    """
    w, b = params
    size, wide = classes_at_once(len(rows), w.shape[1], chunk), widen(rows).dtype

    def chunk_of(start: Array) -> tuple[Array, ...]:
        first = jnp.minimum(start, w.shape[1] - size)
        classes = first + jnp.arange(size, dtype=dtype)
        part = lax.dynamic_slice_in_dim(w, first, size, axis=1)
        z = jnp.matmul(rows, part, preferred_element_type=wide)
        if b is not None:
            z = z + lax.dynamic_slice_in_dim(b, first, size).astype(wide)
        if ignored is not None:  # whatever the biases are
            z = jnp.where(ignored[:, None], 0, z)
        weights = jnp.ones((), wide)
        if class_weights is not None:
            weights = lax.dynamic_slice_in_dim(class_weights, first, size).astype(wide)
        return first, part, weights, z, classes >= start

    return chunk_of, jnp.arange(0, w.shape[1], size, dtype=dtype)
