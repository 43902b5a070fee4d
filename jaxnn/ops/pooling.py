"""Pooling of images (N, H, W, C), and its opposite, upsampling.

    max      y = the largest x of a window      dx = dy for the first x that is largest, else 0
    average  y = sum of x / K                   dx = dy / K for all x of the window

K is the number of positions in a window; where windows overlap, the dx of all of them add up.
"""

from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.checks import check_floating
from jaxnn.numerics import widen
from jaxnn.op import Op
from jaxnn.ops.windows import (
    Padding,
    Sizes,
    Windows,
    added,
    check_rank,
    padded,
    per_axis,
    placed,
    taken,
    windows,
)
from jaxnn.settings import check_integer


class PoolResiduals(NamedTuple):
    """Input and output."""

    x: Array
    y: Array


def max_pool_fwd(
    x: Array,
    *,
    window: Sizes = 2,
    stride: Sizes | None = None,
    padding: Padding = "valid",
) -> tuple[Array, PoolResiduals]:
    """The largest value of every window; the padding never is.

    Saves x and y: no extra bytes where their neighbours keep them. Of equal values the first, row
    by row, gets the gradient, as in `jax.grad` of `lax.reduce_window`. The backward looks again for
    where x equals y, tap by tap: much less work on a CPU than XLA's select-and-scatter.

    Args:
        x: (N, H, W, C).
        window: height and width, or one number for both.
        stride: from one window to the next, for both axes or per axis; None for the window's size.
        padding: "valid", "same", a number for all sides, or ((top, bottom), (left, right)); less
            than the window, so that none is all padding.

    Returns:
        y (N, OH, OW, C), residuals.

    Raises:
        TypeError: x is no array of floating numbers, or a setting is of another type.
        ValueError: a setting has the wrong form, or the window is larger than the padded image or
            no larger than the padding.
    """
    w = _windows("max_pool", x, window, stride, padding)
    y = lax.reduce_window(
        x, -jnp.inf, lax.max, (1, *w.kernel, 1), (1, *w.stride, 1), ((0, 0), *w.padding, (0, 0))
    )
    return y, PoolResiduals(x, y)


def max_pool_bwd(
    residuals: PoolResiduals,
    dy: Array,
    *,
    window: Sizes = 2,
    stride: Sizes | None = None,
    padding: Padding = "valid",
) -> tuple[Array]:
    """dx = dy at the first tap of each window whose x is y, also where both are NaN.

    The padding counts as -inf: of a window of nothing else it may be the first.
    """
    x, y = residuals
    w = _windows("max_pool", x, window, stride, padding)
    least_around = padded(x, w, -jnp.inf)
    dx, not_found = jnp.zeros_like(widen(x)), jnp.ones(y.shape, bool)
    for tap in w.taps:
        under = taken(least_around, tap, w)
        first = not_found & ((under == y) | jnp.isnan(under))  # NaN equals nothing, nor itself
        not_found &= ~first
        dx += placed(widen(jnp.where(first, dy, 0)), tap, w)
    return (dx.astype(x.dtype),)


def average_pool_fwd(
    x: Array,
    *,
    window: Sizes = 2,
    stride: Sizes | None = None,
    padding: Padding = "valid",
) -> tuple[Array, Array]:
    """The mean of every window, the padding counted as zeros, as in PyTorch.

    Added up in float32 or wider. Saves x for its shape: no extra bytes. Arguments, result and
    errors as `max_pool_fwd`.
    """
    w = _windows("average_pool", x, window, stride, padding)
    zeros_around = padded(widen(x), w, 0)
    total = reduce(jnp.add, (taken(zeros_around, tap, w) for tap in w.taps))
    return (total / w.size_of_kernel).astype(x.dtype), x


def average_pool_bwd(
    x: Array,
    dy: Array,
    *,
    window: Sizes = 2,
    stride: Sizes | None = None,
    padding: Padding = "valid",
) -> tuple[Array]:
    """dx = the dy of all windows over a position, added up, over the window's size."""
    w = _windows("average_pool", x, window, stride, padding)
    share = widen(dy) / w.size_of_kernel
    return (added([share] * w.size_of_kernel, w).astype(x.dtype),)


def global_average_pool_fwd(x: Array) -> tuple[Array, Array]:
    """y = the mean over all positions, (N, H, W, C) to (N, C) (Lin et al., 2014, section 3.2).

    Saves x for its shape: no extra bytes.

    Raises:
        TypeError: x is no array of floating numbers.
        ValueError: x is not (N, H, W, C), or has no element.
    """
    check_rank("global_average_pool", x, 2)
    check_floating("global_average_pool: x", x)
    return x.mean((1, 2)), x


def global_average_pool_bwd(x: Array, dy: Array) -> tuple[Array]:
    """dx = dy / (H W) at every position."""
    share = (widen(dy) / (x.shape[1] * x.shape[2])).astype(x.dtype)
    return (jnp.broadcast_to(share[:, None, None], x.shape),)


def global_max_pool_fwd(x: Array) -> tuple[Array, PoolResiduals]:
    """y = the largest over all positions, (N, H, W, C) to (N, C).

    Equal values share the gradient evenly, as in `jax.grad` of `x.max` (in `max_pool` the first
    gets it all, as there). Saves x and y: no extra bytes where their neighbours keep them.

    Raises:
        TypeError: x is no array of floating numbers.
        ValueError: x is not (N, H, W, C), or has no element.
    """
    check_rank("global_max_pool", x, 2)
    check_floating("global_max_pool: x", x)
    y = x.max((1, 2))
    return y, PoolResiduals(x, y)


def global_max_pool_bwd(residuals: PoolResiduals, dy: Array) -> tuple[Array]:
    """dx = dy / how many x equal y, for these."""
    x, y = residuals
    is_largest = x == y[:, None, None]
    share = widen(dy)
    share = (share / is_largest.sum((1, 2), dtype=share.dtype)).astype(x.dtype)
    return (jnp.where(is_largest, share[:, None, None], 0),)


def upsample_nearest_fwd(x: Array, *, factor: int = 2) -> tuple[Array, None]:
    """Every value `factor` times in either direction: (N, H, W, C) to (N, fH, fW, C).

    Saves nothing.

    Raises:
        TypeError: x is no array, or the factor no integer.
        ValueError: x is not (N, H, W, C), or the factor is below 1.
    """
    check_rank("upsample_nearest", x, 2)
    factor = check_integer("upsample_nearest: factor", factor)
    return x.repeat(factor, 1).repeat(factor, 2), None


def upsample_nearest_bwd(residuals: None, dy: Array, *, factor: int = 2) -> tuple[Array]:
    """dx = the sum of the dy of its copies."""
    n, h, w, c = dy.shape
    return (dy.reshape(n, h // factor, factor, w // factor, factor, c).sum((2, 4)),)


def _windows(name: str, x: Array, window: Sizes, stride: Sizes | None, padding: Padding) -> Windows:
    check_rank(name, x, 2)
    check_floating(f"{name}: x", x)
    kernel = per_axis(name, "window", window, 2)
    w = windows(name, x.shape[1:3], kernel, kernel if stride is None else stride, padding)
    if any(max(pads) >= k for pads, k in zip(w.padding, w.kernel, strict=True)):
        raise ValueError(
            f"{name}: padding is {w.padding}, the window {w.kernel}; padding must be smaller, or "
            "a window could hold nothing else: pad less"
        )
    return w


def _example(key: Array) -> tuple[Array]:
    """Images of two channels, in one of them four equal values, the largest of all, in a square."""
    return (jax.random.normal(key, (3, 7, 5, 2)).at[0, :2, 1:3, 0].set(5.0),)


_OVERLAPPING = {"window": (3, 2), "stride": (2, 1), "padding": ((1, 2), (1, 0))}

max_pool = Op(max_pool_fwd, max_pool_bwd, example=_example, settings=({}, _OVERLAPPING))
average_pool = Op(average_pool_fwd, average_pool_bwd, example=_example, settings=({}, _OVERLAPPING))
global_average_pool = Op(global_average_pool_fwd, global_average_pool_bwd, example=_example)
global_max_pool = Op(global_max_pool_fwd, global_max_pool_bwd, example=_example)
upsample_nearest = Op(
    upsample_nearest_fwd, upsample_nearest_bwd, example=_example, settings=({"factor": 3},)
)
