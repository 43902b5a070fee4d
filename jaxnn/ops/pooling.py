"""Pooling of images (N, H, W, C), and its opposite, upsampling.

    max      y = the largest x of a window      dx = dy for the first x that is largest, else 0
    average  y = sum of x / K                   dx = dy / K for all x of the window

K is the number of positions in a window; where windows overlap, the dx of all of them add up.
"""

import math
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.numerics import widen
from jaxnn.op import Op
from jaxnn.ops import windows
from jaxnn.ops.windows import Padding, Placement, Sizes, from_tap, placement, under_tap
from jaxnn.settings import MOST, check_integer, check_per_axis


class PoolResiduals(NamedTuple):
    """Input and output."""

    x: Array
    y: Array


def _placement(x: Array, window: Sizes, stride: Sizes | None, padding: Padding) -> Placement:
    """Return where windows go, side by side unless there is a stride."""
    return placement(x.shape[1:3], window, window if stride is None else stride, padding)


def max_pool_fwd(
    x: Array,
    *,
    window: Sizes = 2,
    stride: Sizes | None = None,
    padding: Padding = "valid",
) -> tuple[Array, PoolResiduals]:
    """Take the largest value of every window; the padding never is.

    Saves x and y: no extra bytes where their neighbours keep them. Of equal values the first, row
    by row, gets the gradient, as in `jax.grad` of `lax.reduce_window`. The backward looks again for
    where x equals y, tap by tap.

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
        ValueError: x is not (N, H, W, C), or has a 0 but for N; a setting has the wrong form; the
            window is larger than the padded image or no larger than the padding.
    """
    at = _placement(x, window, stride, padding)
    taps, steps, around = (1, *at.kernel, 1), (1, *at.stride, 1), ((0, 0), *at.padding, (0, 0))
    y = lax.reduce_window(x, -jnp.inf, lax.max, taps, steps, around)
    return y, PoolResiduals(x, y)


def max_pool_bwd(
    residuals: PoolResiduals,
    dy: Array,
    *,
    window: Sizes = 2,
    stride: Sizes | None = None,
    padding: Padding = "valid",
) -> tuple[Array]:
    """Return dx = dy at the first tap of each window whose x is y, also where both are NaN.

    The padding counts as -inf: of a window of nothing else it may be the first.
    """
    x, y = residuals
    at = _placement(x, window, stride, padding)
    padded = jnp.pad(x, ((0, 0), *at.padding, (0, 0)), constant_values=-jnp.inf)
    dx, found = jnp.zeros_like(widen(x)), jnp.zeros(y.shape, bool)
    for tap in at.taps:
        under = under_tap(padded, tap, at)
        first = ~found & ((under == y) | jnp.isnan(under))  # NaN equals nothing, nor itself
        found |= first
        dx += from_tap(jnp.where(first, widen(dy), 0), tap, at)
    return (dx.astype(x.dtype),)


def average_pool_fwd(
    x: Array,
    *,
    window: Sizes = 2,
    stride: Sizes | None = None,
    padding: Padding = "valid",
) -> tuple[Array, Array]:
    """Take the mean of every window, the padding counted as zeros, as in PyTorch.

    Added up in float32 or wider. Saves x for its shape: no extra bytes. Arguments, result and
    errors as `max_pool_fwd`.
    """
    at = _placement(x, window, stride, padding)
    padded = jnp.pad(widen(x), ((0, 0), *at.padding, (0, 0)))
    total = reduce(jnp.add, (under_tap(padded, tap, at) for tap in at.taps))
    return (total / math.prod(at.kernel)).astype(x.dtype), x


def average_pool_bwd(
    x: Array,
    dy: Array,
    *,
    window: Sizes = 2,
    stride: Sizes | None = None,
    padding: Padding = "valid",
) -> tuple[Array]:
    """Return dx = the dy of all windows over a position, added up, over the window's size."""
    at = _placement(x, window, stride, padding)
    share = widen(dy) / math.prod(at.kernel)
    dx = reduce(jnp.add, (from_tap(share, tap, at) for tap in at.taps))
    return (dx.astype(x.dtype),)


def global_average_pool_fwd(x: Array) -> tuple[Array, Array]:
    """Take the mean over all positions, (N, H, W, C) to (N, C) (Lin et al., 2014, section 3.2).

    Saves x for its shape: no extra bytes. Raises as `max_pool_fwd`.
    """
    return x.mean((1, 2)), x


def global_average_pool_bwd(x: Array, dy: Array) -> tuple[Array]:
    """Return dx = dy / (H W) at every position."""
    share = (widen(dy) / (x.shape[1] * x.shape[2])).astype(x.dtype)
    return (jnp.broadcast_to(share[:, None, None], x.shape),)


def global_max_pool_fwd(x: Array) -> tuple[Array, PoolResiduals]:
    """Take the largest over all positions, (N, H, W, C) to (N, C).

    Equal values share the gradient evenly, as in `jax.grad` of `x.max` (in `max_pool` the first
    gets it all, as there). Saves x and y: no extra bytes where their neighbours keep them. Raises
    as `max_pool_fwd`.
    """
    y = x.max((1, 2))
    return y, PoolResiduals(x, y)


def global_max_pool_bwd(residuals: PoolResiduals, dy: Array) -> tuple[Array]:
    """Return dx = dy / how many x equal y, for these."""
    x, y = residuals
    is_largest = x == y[:, None, None]
    share = widen(dy)
    share = (share / is_largest.sum((1, 2), dtype=share.dtype)).astype(x.dtype)
    return (jnp.where(is_largest, share[:, None, None], 0),)


def upsample_nearest_fwd(x: Array, *, factor: int = 2) -> tuple[Array, None]:
    """Repeat every value `factor` times in either direction: (N, H, W, C) to (N, fH, fW, C).

    Saves nothing.

    Raises:
        TypeError: x is no array of floating numbers, or the factor no integer.
        ValueError: x is not (N, H, W, C), or the factor is below 1.
    """
    return x.repeat(factor, 1).repeat(factor, 2), None


def upsample_nearest_bwd(residuals: None, dy: Array, *, factor: int = 2) -> tuple[Array]:
    """Return dx = the sum of the dy of its copies."""
    n, h, w, c = dy.shape
    return (dy.reshape(n, h // factor, factor, w // factor, factor, c).sum((2, 4)),)


def _check(name: str, x: Array, *, window: Any, stride: Any, padding: Any) -> None:
    """Refuse what is no images, and windows that do not fit them or hold nothing of them."""
    windows.check_images(name, x)
    check_per_axis(f"{name}: window", window, 2)
    at = windows.check_placement(
        name, x.shape[1:3], window, padding, stride=window if stride is None else stride
    )
    if any(max(pads) >= k for pads, k in zip(at.padding, at.kernel, strict=True)):
        raise ValueError(
            f"{name}: padding is {at.padding}, the window {at.kernel}; padding must be smaller, or "
            "a window could hold nothing else: pad less"
        )


def _check_upsample(x: Array, *, factor: int) -> None:
    windows.check_images("upsample_nearest", x)
    check_integer("upsample_nearest: factor", factor)
    if max(x.shape) * factor >= MOST:
        raise ValueError(
            f"upsample_nearest: factor is {factor}, x has shape {x.shape}; H and W must stay below "
            f"{MOST}: choose less"
        )


def _example(key: Array) -> tuple[Array]:
    """Images of two channels, in one of them four equal values, the largest of all, in a square."""
    return (jax.random.normal(key, (3, 7, 5, 2)).at[0, :2, 1:3, 0].set(5.0),)


_OVERLAPPING = {"window": (3, 2), "stride": (2, 1), "padding": ((1, 2), (1, 0))}

max_pool = Op(
    max_pool_fwd,
    max_pool_bwd,
    check=partial(_check, "max_pool"),
    example=_example,
    settings=({}, _OVERLAPPING),
)
average_pool = Op(
    average_pool_fwd,
    average_pool_bwd,
    check=partial(_check, "average_pool"),
    example=_example,
    settings=({}, _OVERLAPPING),
)
global_average_pool = Op(
    global_average_pool_fwd,
    global_average_pool_bwd,
    check=partial(windows.check_images, "global_average_pool"),
    example=_example,
)
global_max_pool = Op(
    global_max_pool_fwd,
    global_max_pool_bwd,
    check=partial(windows.check_images, "global_max_pool"),
    example=_example,
)
upsample_nearest = Op(
    upsample_nearest_fwd,
    upsample_nearest_bwd,
    check=_check_upsample,
    example=_example,
    settings=({"factor": 3},),
)
