"""What the arithmetic of all ops shares: the width of sums, division by 0, labels."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

REDUCTIONS = ("mean", "sum", "none")


def widen(x: Array) -> Array:
    """Return x in float32, or in its own dtype if that is wider.

    Sums, squares and exponentials are taken of wide numbers: in 16 bits they overflow, and a sum of
    many terms stops growing.
    """
    x = jnp.asarray(x)
    return x.astype(np.promote_types(x.dtype, np.float32))


def divide(a: Array, b: Array) -> Array:
    """Return a / b, and 0 where b is 0: a sum over nothing has a mean of 0 here, not NaN.

    The 0 is taken out of the division before it: chosen after it, its derivative would be NaN.
    """
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))


def sum_to(like: Array | None, dx: Array) -> Array | None:
    """Return the cotangent of what was broadcast to dx's shape: summed to its own, in its dtype."""
    if like is None:
        return None
    axes = tuple(
        axis
        for axis in range(-dx.ndim, 0)
        if -axis > like.ndim or (like.shape[axis] == 1 and dx.shape[axis] != 1)
    )
    return dx.sum(axes).reshape(like.shape).astype(like.dtype)


def valid_labels(
    labels: Array, classes: int, dtype: Any, ignore_index: int | None = None
) -> tuple[Array, Array]:
    """Return the labels, wide enough to be compared with any class, and how much each row counts.

    That is 1; 0 where the row is to be ignored; NaN where no class is meant, for a label that marks
    none would count as a certain success.
    """
    labels = labels.astype(np.int64 if labels.dtype.itemsize == 8 else np.int32)
    counts = jnp.where((labels >= 0) & (labels < classes), 1, jnp.nan)
    if ignore_index is not None:
        counts = jnp.where(labels == ignore_index, 0, counts)
    return labels, counts.astype(dtype)


def label_weights(
    label: Array, counts: Array, class_weights: Array | None, ignore_index: int | None
) -> tuple[Array | float, Array | int]:
    """Return the weight of each row, its class's or 1, and the total of the rows that count.

    The label and the counts are those of `valid_labels`.
    """
    if class_weights is None and ignore_index is None:
        return 1.0, label.size
    weights = jnp.ones_like(counts)
    if class_weights is not None:
        weights = jnp.take(class_weights.astype(counts.dtype), label, mode="clip")
    return weights, jnp.where(counts == 0, 0, weights).sum()


def reduce_fwd(losses: Array, reduction: str, total: Array | int | None = None) -> Array:
    """Return the mean of the losses, their sum or, for "none", each by itself.

    "mean"  loss = sum_i l_i / size         dl_i = dloss / size
    "sum"   loss = sum_i l_i                dl_i = dloss
    "none"  loss_i = l_i                    dl_i = dloss_i

    Of weighted losses the mean divides by their total weight, and is 0 where that is 0.
    """
    if reduction == "none":
        return losses
    total = losses.size if total is None else total
    return _share(losses.sum(), total) if reduction == "mean" else losses.sum()


def reduce_bwd(dloss: Array, total: Array | int, reduction: str) -> Array:
    """Return the cotangent of each of the losses, widened; a scalar where all have the same."""
    return _share(widen(dloss), total) if reduction == "mean" else widen(dloss)


def _share(x: Array, total: Array | int) -> Array:
    return x / total if isinstance(total, int) else divide(x, total)
