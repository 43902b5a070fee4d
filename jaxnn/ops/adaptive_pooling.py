"""Pooling to a size that is given: of all positions to one, or to any number along each axis.

    max      y[o] = the largest x[i]            dx[i] = dy[o] for the one that it is, else 0
    average  y[o] = the mean of x[i]            dx[i] = sum_o dy[o] / K[o]

over the K positions i of window o: all of them, or of H positions pooled to OH those from
floor(o H / OH) to before ceil((o + 1) H / OH), in which windows may overlap by one.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnn.numerics import widen
from jaxnn.op import Op
from jaxnn.ops.pooling import PoolResiduals
from jaxnn.ops.windows import Sizes, add_at, per_axis, take_at
from jaxnn.ops.windows_doors import check_images, check_size


def _positions(x: Array) -> tuple[int, ...]:
    """Return the axes of positions of x (N, ..., C)."""
    return tuple(range(1, x.ndim - 1))


def global_average_pool_fwd(x: Array) -> tuple[Array, Array]:
    """Take the mean over all positions, (N, ..., C) to (N, C) (Lin et al., 2014, section 3.2).

    Saves x for its shape: no extra bytes.

    Raises:
        TypeError: x is no array of floating numbers.
        ValueError: x has not three to five axes, or a 0 but for N.
    """
    return x.mean(_positions(x)), x


def global_average_pool_bwd(x: Array, dy: Array) -> tuple[Array]:
    """Return dx = dy / K at each of the K positions."""
    share = (widen(dy) / math.prod(x.shape[1:-1])).astype(x.dtype)
    return (jnp.broadcast_to(jnp.expand_dims(share, _positions(x)), x.shape),)


def global_max_pool_fwd(x: Array) -> tuple[Array, PoolResiduals]:
    """Take the largest over all positions, (N, ..., C) to (N, C); NaN if there is one.

    Equal values share the gradient evenly, as in `jax.grad` of `x.max` and PyTorch's `amax` (in
    `max_pool` the first gets it all, as there). So do NaNs, as in PyTorch's `max`: JAX and `amax`
    make all gradients NaN. Saves x and y: no extra bytes where their neighbours keep them. Raises
    as `global_average_pool_fwd`.
    """
    y = x.max(_positions(x))
    return y, PoolResiduals(x, y)


def global_max_pool_bwd(residuals: PoolResiduals, dy: Array) -> tuple[Array]:
    """Return dx = dy / how many x equal y, or are NaN as y is, for these."""
    x, y = residuals
    axes, share = _positions(x), widen(dy)
    largest = (x == jnp.expand_dims(y, axes)) | jnp.isnan(x)  # NaN equals nothing, nor itself
    share = (share / largest.sum(axes, dtype=share.dtype)).astype(x.dtype)
    return (jnp.where(largest, jnp.expand_dims(share, axes), 0),)


class AdaptiveResiduals(NamedTuple):
    """The input, for its shape, and which value of its window every maximum is."""

    x: Array
    first: Array


def _windows(h: int, n: int) -> tuple[Any, Any]:
    """Return the positions under each of n windows over h, (n, K), and which of them count.

    The shorter windows repeat their last position.
    """
    start = np.arange(n) * h // n
    length = (((np.arange(n) + 1) * h + n - 1) // n - start)[:, None]
    k = np.arange(length.max())
    return start[:, None] + np.minimum(k, length - 1), k < length


def adaptive_average_pool_fwd(x: Array, *, size: Sizes) -> tuple[Array, Array]:
    """Take means over windows as equal as can be: (N, ..., C) to (N, size ..., C).

    Along one axis after another, in float32 or wider. Saves x for its shape: no extra bytes.

    Args:
        x: one to three axes of positions.
        size: places along each axis, or one number for all; they may be more than the positions.

    Raises:
        TypeError: x is no array of floating numbers, or size no integer.
        ValueError: x has not three to five axes, or a 0 but for N; size has another number of axes.
    """
    y = widen(x)
    for axis, n in enumerate(per_axis(size, x.ndim - 2), 1):
        at, counts = _windows(x.shape[axis], n)
        under = jnp.where(_along(counts, axis, y), take_at(y, at, axis), 0).sum(axis + 1)
        y = under / _along(counts.sum(1), axis, y).astype(y.dtype)
    return y.astype(x.dtype), x


def adaptive_average_pool_bwd(x: Array, dy: Array, *, size: Sizes) -> tuple[Array]:
    """Return dx = the dy / K of all windows over a position, added up, along each axis in turn."""
    dx = widen(dy)
    for axis, n in enumerate(per_axis(size, x.ndim - 2), 1):
        at, counts = _windows(x.shape[axis], n)
        share = dx / _along(counts.sum(1), axis, dx).astype(dx.dtype)
        under = jnp.where(_along(counts, axis, dx), jnp.expand_dims(share, axis + 1), 0)
        dx = add_at(under, at, axis, x.shape[axis])
    return (dx.astype(x.dtype),)


def adaptive_max_pool_fwd(x: Array, *, size: Sizes) -> tuple[Array, AdaptiveResiduals]:
    """Take the largest of windows as equal as can be: (N, ..., C) to (N, size ..., C).

    Of equal values, or of several NaNs, the first, row by row, gets the gradient, as in `max_pool`.
    Saves which it was, 4 bytes for each y. Arguments and errors as `adaptive_average_pool_fwd`.
    """
    u, sizes = x, per_axis(size, x.ndim - 2)
    for a, n in enumerate(sizes):
        u = take_at(u, _windows(x.shape[a + 1], n)[0], 2 * a + 1)
    u = jnp.moveaxis(u, _taps(u), _last(u))
    u = u.reshape(len(x), *sizes, x.shape[-1], math.prod(u.shape[-len(sizes) :]))
    first = u.argmax(-1, keepdims=True)
    return jnp.take_along_axis(u, first, -1)[..., 0], AdaptiveResiduals(x, first)


def adaptive_max_pool_bwd(residuals: AdaptiveResiduals, dy: Array, *, size: Sizes) -> tuple[Array]:
    """Return dx = the dy of all windows of which a position is the first maximum, added up."""
    x, first = residuals
    each = [
        _windows(h, n)[0] for h, n in zip(x.shape[1:-1], per_axis(size, x.ndim - 2), strict=True)
    ]
    k = [at.shape[1] for at in each]
    is_first = first == jnp.arange(math.prod(k), dtype=first.dtype)
    du = jnp.where(is_first, widen(dy)[..., None], 0).reshape(*dy.shape, *k)
    du = jnp.moveaxis(du, _last(du), _taps(du))
    for a, at in reversed([*enumerate(each)]):
        du = add_at(du, at, 2 * a + 1, x.shape[a + 1])
    return (du.astype(x.dtype),)


def _taps(u: Array) -> tuple[int, ...]:
    """Return the axes K of u (N, OH, KH, OW, KW, C)."""
    return tuple(range(2, u.ndim - 1, 2))


def _last(u: Array) -> tuple[int, ...]:
    """Return as many axes at the end."""
    return tuple(range(u.ndim - (u.ndim - 2) // 2, u.ndim))


def _along(values: Any, axis: int, x: Array) -> Array:
    """Return values of places, or of places and taps, along an axis of x, to broadcast with it."""
    return jnp.asarray(values.reshape(values.shape + (1,) * (x.ndim - axis - 1)))


def _example(key: Array) -> tuple[Array]:
    """Images of two channels, in one of them four equal values, the largest of all, in a square."""
    return (jax.random.normal(key, (3, 7, 5, 2)).at[0, :2, 1:3, 0].set(5.0),)


_SIZES: tuple[dict[str, Any], ...] = ({"size": (3, 5)}, {"size": (9, 2)})

global_average_pool = Op(
    global_average_pool_fwd,
    global_average_pool_bwd,
    check=partial(check_images, "global_average_pool"),
    example=_example,
)
global_max_pool = Op(
    global_max_pool_fwd,
    global_max_pool_bwd,
    check=partial(check_images, "global_max_pool"),
    example=_example,
)
adaptive_average_pool = Op(
    adaptive_average_pool_fwd,
    adaptive_average_pool_bwd,
    check=partial(check_size, "adaptive_average_pool"),
    example=_example,
    settings=_SIZES,
)
adaptive_max_pool = Op(
    adaptive_max_pool_fwd,
    adaptive_max_pool_bwd,
    check=partial(check_size, "adaptive_max_pool"),
    example=_example,
    settings=_SIZES,
)
