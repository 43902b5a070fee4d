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


def product(a: Array, b: Array) -> Array:
    """Return the matrix product of a and b, summed and left in float32 or wider.

    Of 16 bits it would be rounded before it is summed or exponentiated further.
    """
    return jnp.matmul(a, b, preferred_element_type=np.promote_types(a.dtype, np.float32))


def divide(a: Array, b: Array) -> Array:
    """Return a / b, and 0 where b is 0: a sum over nothing has a mean of 0 here, not NaN.

    The 0 is taken out of the division before it: chosen after it, its derivative would be NaN.
    """
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))


def valid_labels(labels: Array, classes: int, dtype: Any) -> tuple[Array, Array]:
    """Return the labels, wide enough to be compared with any class; 1 or, where none is meant, NaN.

    A label that marks no class would count as a certain success: its row is multiplied by NaN.
    """
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)
    return labels, jnp.where((labels >= 0) & (labels < classes), 1, jnp.nan).astype(dtype)


def reduce_fwd(losses: Array, reduction: str) -> Array:
    """Return the mean of the losses, their sum or, for "none", each by itself.

    "mean"  loss = sum_i l_i / size         dl_i = dloss / size
    "sum"   loss = sum_i l_i                dl_i = dloss
    "none"  loss_i = l_i                    dl_i = dloss_i
    """
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()


def reduce_bwd(dloss: Array, size: int, reduction: str) -> Array:
    """Return the cotangent of each of `size` losses, widened; a scalar where all have the same."""
    return widen(dloss) / size if reduction == "mean" else widen(dloss)
