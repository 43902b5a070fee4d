"""The last linear layer and the softmax cross-entropy together, a few classes at a time.

    z = x w,  l = softmax_cross_entropy(z, label);   dz = (p - q) dl,  dw = x^T dz,  dx = dz w^T

With a large vocabulary the logits z are by far the largest array of a language model. Here no more
than `chunk` classes of them exist at once: the forward sums exp(z_j) chunk by chunk, less the
largest so far, and keeps one sum per row; the backward computes each chunk's logits again, and has
its columns of dw and its part of dx while they are in a cache. That is four matrix products for
three, and all at once takes as long (50,304 classes, CPU, jaxlib 0.10.2). Where the logits are few,
they are computed once, and their exponentials are kept.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxnn.checks import check_one_dtype
from jaxnn.numerics import widen
from jaxnn.op import Op
from jaxnn.ops.cross_entropy import (
    CrossEntropyResiduals,
    check_cross_entropy,
    check_labels,
    losses_of_rows,
    slopes,
    softmax_cross_entropy_bwd,
    softmax_cross_entropy_fwd,
    validated,
)
from jaxnn.ops.reductions import reduce_bwd, reduce_fwd
from jaxnn.settings import check_integer

# How many to hold at once if nothing else is asked for, and of how many classes at least: what a
# cache holds, and enough to keep any matrix product busy.
LOGITS, CLASSES = 2**21, 128


class Normaliser(NamedTuple):
    """Of each row (N,) the largest logit m, and log sum_j exp(z_j - m)."""

    largest: Array
    log_sum: Array


class LinearCrossEntropyResiduals(NamedTuple):
    """Weights (D, V), features (..., D), labels (...), and what is kept of the logits.

    All at once, those of `softmax_cross_entropy`; in chunks, the rows' `Normaliser`.
    """

    w: Array
    x: Array
    labels: Array
    kept: CrossEntropyResiduals | Normaliser


def linear_cross_entropy_fwd(
    w: Array,
    x: Array,
    labels: Array,
    *,
    chunk: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> tuple[Array, LinearCrossEntropyResiduals]:
    """`softmax_cross_entropy` of the logits x w, in nats, without ever holding all of them.

    At any time there are a few times N `chunk` logits and their cotangents, of N rows.

    Saves two numbers per row, and recomputes the logits, one matrix product more. If `chunk` is V
    or more, or None and there are no more than two million logits or 128 classes, saves what
    `softmax_cross_entropy` saves of them, and nothing is recomputed.

    Args:
        w: (D, V), V classes; of a tied model the transposed table of its embedding.
        x: (..., D), of the dtype of w, at least one row.
        labels: (...) integers in [0, V).
        chunk: classes whose logits to hold at once; any number, whether or not it divides V. None
            for as many as have two million logits, and at least 128.
        label_smoothing: as `softmax_cross_entropy`.
        z_loss: as `softmax_cross_entropy`.
        reduction: "mean", "sum" or "none", which gives (...).

    Raises:
        TypeError: w and x are no floating arrays of one dtype, the labels no integers, or a setting
            no number.
        ValueError: the shapes do not fit, there is no row, a label is outside [0, V) (NaN under
            jit), or a setting outside its range.
    """
    name = "linear_cross_entropy"
    label_smoothing, z_loss = check_cross_entropy(name, label_smoothing, z_loss, reduction)
    if chunk is not None:
        chunk = check_integer(f"{name}: chunk", chunk, hint=", or None")
    check_one_dtype(name, **{"w": w, "x": x})
    if w.ndim != 2 or x.ndim == 0 or x.shape[-1] != w.shape[0]:
        raise ValueError(
            f"{name}: w has shape {w.shape}, x {x.shape}; they must be (features, classes) and "
            "(..., features): transpose w or check the feature count"
        )
    check_labels(jax.ShapeDtypeStruct((*x.shape[:-1], w.shape[1]), x.dtype), labels, name)
    w, x = jnp.asarray(w), jnp.asarray(x)

    if _size(w, x, chunk) >= w.shape[1]:
        loss, kept = softmax_cross_entropy_fwd(
            x @ w, labels, label_smoothing=label_smoothing, z_loss=z_loss, reduction=reduction
        )
        return loss, LinearCrossEntropyResiduals(w, x, labels, kept)

    rows, targets, valid = _rows(w, x, labels)
    chunk_of, starts = _chunks(w, rows, chunk, targets.dtype)
    zero = jnp.zeros_like(valid)

    def add(
        sums: tuple[Array, Array, Array, Array], start: Array
    ) -> tuple[tuple[Array, Array, Array, Array], None]:
        largest, total, label_z, sum_z = sums
        first, _, z, is_new = chunk_of(start)
        seen = jnp.where(is_new, z, -jnp.inf).max(-1)
        larger = lax.stop_gradient(jnp.maximum(largest, seen))
        exp = jnp.where(is_new, jnp.exp(z - larger[:, None]), 0).sum(-1)
        total = total * jnp.exp(largest - larger) + exp
        # An element of each row: a sum over the chunk, where it is the label, takes 1.15 times as
        # long for the whole pass.
        place = (targets - first)[:, None]
        found = jnp.take_along_axis(z, place, 1, mode="clip")[:, 0]
        is_here = (targets >= start) & (targets < first + z.shape[1])
        label_z = jnp.where(is_here, found, label_z)
        sum_z = sum_z + jnp.where(is_new, z, 0).sum(-1) if label_smoothing else sum_z
        return (larger, total, label_z, sum_z), None

    least = jnp.full_like(zero, np.finfo(zero.dtype).min)  # not -inf: -inf - -inf is no number
    (largest, total, label_z, sum_z), _ = lax.scan(add, (least, zero, zero, zero), starts)
    mean_z = sum_z / w.shape[1] if label_smoothing else None
    log_sum = jnp.log(total)
    losses = losses_of_rows(label_z, mean_z, largest, log_sum, label_smoothing, z_loss)
    loss = reduce_fwd((losses * valid).reshape(labels.shape), reduction).astype(x.dtype)
    return loss, LinearCrossEntropyResiduals(w, x, labels, Normaliser(largest, log_sum))


def linear_cross_entropy_bwd(
    residuals: LinearCrossEntropyResiduals,
    dloss: Array,
    *,
    chunk: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> tuple[Array, Array, None]:
    """dw and dx as above, of all logits at once or of a chunk's, computed again, at a time."""
    w, x, labels, kept = residuals
    if isinstance(kept, CrossEntropyResiduals):
        dz, _ = softmax_cross_entropy_bwd(
            kept, dloss, label_smoothing=label_smoothing, z_loss=z_loss, reduction=reduction
        )
        dw = jnp.einsum("...d,...v->dv", x, dz)
        return dw, dz @ w.T, None

    rows, targets, valid = _rows(w, x, labels)
    chunk_of, starts = _chunks(w, rows, chunk, targets.dtype)
    largest, log_sum = (of_rows[:, None] for of_rows in kept)
    dlosses = (reduce_bwd(dloss, labels.size, reduction).ravel() * valid)[:, None]

    def add(sums: tuple[Array, Array], start: Array) -> tuple[tuple[Array, Array], None]:
        dw, dx = sums
        first, part, z, is_new = chunk_of(start)
        p = jnp.exp(z - largest - log_sum)
        is_label = targets[:, None] == first + jnp.arange(z.shape[1], dtype=first.dtype)
        dz = slopes(p, is_label, largest + log_sum, w.shape[1], label_smoothing, z_loss)
        dz = (dz * dlosses).astype(x.dtype)
        dw = lax.dynamic_update_slice_in_dim(dw, rows.T @ dz, first, axis=1)
        dx = dx + jnp.matmul(dz, jnp.where(is_new, part, 0).T, preferred_element_type=dx.dtype)
        return (dw, dx), None

    (dw, dx), _ = lax.scan(add, (jnp.zeros_like(w), widen(jnp.zeros_like(rows))), starts)
    return dw, dx.astype(x.dtype).reshape(x.shape), None


def _size(w: Array, x: Array, chunk: int | None) -> int:
    """How many classes to take at a time."""
    rows = math.prod(x.shape[:-1])
    return min(w.shape[1], max(CLASSES, LOGITS // rows) if chunk is None else chunk)


def _rows(w: Array, x: Array, labels: Array) -> tuple[Array, Array, Array]:
    """x as (N, D), the labels as (N,), and of each 1, or NaN where it is no class."""
    rows = x.reshape(-1, x.shape[-1])
    return rows, *validated(labels.ravel(), w.shape[1], widen(x).dtype)


def _chunks(
    w: Array, rows: Array, chunk: int | None, dtype: Any
) -> tuple[Callable[[Array], tuple[Array, ...]], Array]:
    """What computes a chunk of the logits from where it starts, and where each starts (integers).

    The last chunk reaches back to be as wide as the others: its classes that were there before are
    not new, and are not to be counted again.
    """
    size = _size(w, rows, chunk)

    def chunk_of(start: Array) -> tuple[Array, ...]:
        first = jnp.minimum(start, w.shape[1] - size)
        classes = first + jnp.arange(size, dtype=dtype)
        part = lax.dynamic_slice_in_dim(w, first, size, axis=1)
        return first, part, widen(rows @ part), classes >= start

    return chunk_of, jnp.arange(0, w.shape[1], size, dtype=dtype)


def _example(key: Array) -> tuple[Array, Array, Array]:
    """Seven rows, one of them zeros (all classes tie), which neither 2 nor 3 divides."""
    kw, kx, kl = jax.random.split(key, 3)
    x = jax.random.normal(kx, (7, 3)).at[0].set(0.0)
    return jax.random.normal(kw, (3, 5)), x, jax.random.randint(kl, (7,), 0, 5)


linear_cross_entropy = Op(
    linear_cross_entropy_fwd,
    linear_cross_entropy_bwd,
    example=_example,
    settings=(
        {},
        {"chunk": 2, "label_smoothing": 0.1, "reduction": "sum"},
        {"chunk": 3, "label_smoothing": 0.1, "z_loss": 0.01, "reduction": "none"},
    ),
)
