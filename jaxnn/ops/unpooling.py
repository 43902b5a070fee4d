"""Where the maxima of windows are, and unpooling, which puts them back there.

x[i] = sum of y[o] over the o with index[o] = i      dy[o] = dx[index[o]]
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnn.numerics import widen
from jaxnn.op import Op, door
from jaxnn.ops import windows
from jaxnn.ops.pooling import firsts, max_pool_fwd, windows_of
from jaxnn.ops.windows import Padding, Sizes, per_axis
from jaxnn.ops.windows_doors import check_indices, check_pool


@door(partial(check_pool, "max_pool_indices"))
def max_pool_indices(
    x: Array,
    *,
    window: Sizes = 2,
    stride: Sizes | None = None,
    padding: Padding = "valid",
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Array:
    """Return which x every y of `max_pool` is: (N, places ..., C) of int32.

    A position (h, w) of an image W wide is h W + w, as in PyTorch. No derivative: it is a step.
    Arguments and errors as `max_pool_fwd`.
    """
    at = windows_of(x, window, stride, padding, dilation, ceil_mode)
    y, _ = max_pool_fwd(
        x, window=window, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode
    )
    indices = jnp.zeros(y.shape, jnp.int32)
    for tap, first in firsts(x, y, at):
        flat: Any = 0
        for position, h in zip(windows.positions(tap, at), at.size, strict=True):
            flat = flat * h + position
        indices = jnp.where(first, flat.astype(np.int32)[..., None], indices)
    return indices


class UnpoolResiduals(NamedTuple):
    """Where the maxima were, and 1 or, where that is nowhere, NaN."""

    indices: Array
    valid: Array


def max_unpool_fwd(y: Array, indices: Array, *, size: Sizes) -> tuple[Array, UnpoolResiduals]:
    """Put maxima back where `max_pool` found them, zeros elsewhere (Zeiler et al., 2011).

    Where windows overlapped, what comes to one position adds up (PyTorch keeps one of them). An
    index outside the size gives NaN under jit.

    Args:
        y: (N, places ..., C).
        indices: of integers, of its shape, from `max_pool_indices`.
        size: positions along each axis of what was pooled, or one number for all.

    Returns:
        x (N, size ..., C), residuals.

    Raises:
        TypeError: y is not floating, indices are no integers, or size none.
        ValueError: the shapes differ, or (outside jit) an index lies outside the size.
    """
    size, c = per_axis(size, y.ndim - 2), y.shape[-1]
    indices = indices.astype(np.int64 if indices.dtype.itemsize == 8 else np.int32)
    valid = jnp.where((indices >= 0) & (indices < math.prod(size)), 1, jnp.nan).astype(y.dtype)
    rows = indices.reshape(len(y), math.prod(y.shape[1:-1]), c)
    values = widen(valid * y).reshape(rows.shape)
    put = jnp.zeros((len(y), math.prod(size), c), values.dtype).at[_each(rows)]
    x = put.add(values, mode="clip").astype(y.dtype)
    return x.reshape(len(y), *size, c), UnpoolResiduals(indices, valid)


def max_unpool_bwd(residuals: UnpoolResiduals, dx: Array, **_: Any) -> tuple[Array, None]:
    """Return dy = dx where each y went, and None for the indices."""
    indices, valid = residuals
    rows = indices.reshape(len(dx), math.prod(indices.shape[1:-1]), dx.shape[-1])
    flat = dx.reshape(len(dx), math.prod(dx.shape[1:-1]), dx.shape[-1])
    return valid * flat.at[_each(rows)].get(mode="clip").reshape(indices.shape), None


def _each(rows: Array) -> tuple[Array, Array, Array]:
    """Return where x (N, positions, C) is at positions (N, places, C)."""
    n, _, c = rows.shape
    return jnp.arange(n)[:, None, None], rows, jnp.arange(c)


def _example(key: Array) -> tuple[Array, Array]:
    """Maxima of two by five windows in four by seven positions; two of them at one."""
    indices = jnp.array([[0, 9, 2, 11, 6], [21, 9, 23, 17, 27]], jnp.int32)[None, ..., None]
    return jax.random.normal(key, (3, 2, 5, 1)), jnp.broadcast_to(indices, (3, 2, 5, 1))


max_unpool = Op(
    max_unpool_fwd,
    max_unpool_bwd,
    check=partial(check_indices, "max_unpool"),
    example=_example,
    settings=({"size": (4, 7)},),
)
