"""Vectors brought to length 1: directions, as for a cosine similarity.

y = x / size,  size = max(|x|, eps)        dx = (dy - y (y . dy)) / size,  or dy / eps where size is
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.numerics import widen
from jaxnn.op import Op
from jaxnn.ops.normalisation_doors import check_l2


class L2NormalizeResiduals(NamedTuple):
    """The vectors of length 1, of the shape of x, and each one's size before, along the axis 1."""

    y: Array
    size: Array


def l2_normalize_fwd(
    x: Array, *, axis: int = -1, eps: float = 1e-12
) -> tuple[Array, L2NormalizeResiduals]:
    """Divide each vector along an axis by its Euclidean length, or by eps where it is shorter.

    So a vector of 0 stays 0. Saves y, and a size per vector in float32 or wider; nothing is
    recomputed. In float32 the squares of what is beyond 1e19 overflow, and y is 0, as in PyTorch.

    Args:
        x: any shape.
        axis: along which the vectors lie.
        eps: the least length to divide by, in units of x.

    Returns:
        y (the shape of x), residuals.

    Raises:
        TypeError: x is no floating array, the axis no integer, or eps no number.
        ValueError: x has no such axis, or eps is not finite and positive in the dtype of x or
            float32, the wider.
    """
    wide = widen(x)
    squares = (wide**2).sum(axis, keepdims=True)
    length = jnp.sqrt(jnp.where(squares == 0, 1, squares))  # of 0 the root has no slope
    size = jnp.where((squares == 0) | (length <= eps), eps, length)
    y = (wide / size).astype(x.dtype)
    return y, L2NormalizeResiduals(y, size)


def l2_normalize_bwd(
    residuals: L2NormalizeResiduals, dy: Array, *, axis: int = -1, eps: float = 1e-12
) -> tuple[Array]:
    """Return dx = (dy - y (y . dy)) / size, without what is along y; dy / eps where size is eps."""
    y, wide, size = widen(residuals.y), widen(dy), residuals.size
    along = jnp.where(size > eps, (y * wide).sum(axis, keepdims=True), 0)
    return (((wide - y * along) / size).astype(dy.dtype),)


def _example(key: Array) -> tuple[Array]:
    """One vector is short, and one has length 1 already."""
    x = jax.random.normal(key, (3, 2, 5)).at[0, 0].set(jnp.array([0.03, 0.0, -0.04, 0.0, 0.0]))
    return (x.at[0, 1].set(jnp.array([0.0, 0.6, 0.0, -0.8, 0.0])),)


l2_normalize = Op(
    l2_normalize_fwd,
    l2_normalize_bwd,
    _example,
    ({"eps": 0.1}, {"axis": 1, "eps": 1.5}),
    check=check_l2,
)
