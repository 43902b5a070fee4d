"""Pooling of sequences (N, T, C), images (N, H, W, C) and volumes (N, D, H, W, C) by windows.

    max      y = the largest x of a window      dx = dy for the first x that is largest, else 0
    average  y = sum of x / K                   dx = dy / K for all x of the window

K is the number of positions in a window; where windows overlap, the dx of all of them add up.
"""

from collections.abc import Iterator
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnn.numerics import widen
from jaxnn.op import Op
from jaxnn.ops import windows
from jaxnn.ops.windows import Padding, Placement, Sizes, from_tap, placement, under_tap
from jaxnn.ops.windows_doors import check_pool
from jaxnn.settings import check_flag, check_integer


class PoolResiduals(NamedTuple):
    """Input and output."""

    x: Array
    y: Array


def windows_of(
    x: Array,
    window: Sizes = 2,
    stride: Sizes | None = None,
    padding: Padding = "valid",
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Placement:
    """Return where windows go, side by side unless there is a stride."""
    stride = window if stride is None else stride
    return placement(x.shape[1:-1], window, stride, padding, dilation, ceil_mode)


def max_pool_fwd(
    x: Array,
    *,
    window: Sizes = 2,
    stride: Sizes | None = None,
    padding: Padding = "valid",
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> tuple[Array, PoolResiduals]:
    """Take the largest value of every window; the padding never is, a NaN always is.

    Saves x and y: no extra bytes where their neighbours keep them. Of equal values, or of several
    NaNs, the first, row by row, gets the gradient, as in `jax.grad` of `lax.reduce_window` (of
    several NaNs PyTorch has the last). The backward looks again for where x equals y, tap by tap.

    Args:
        x: (N, ..., C), one to three axes of positions.
        window: positions along each axis, or one number for all, as all of these.
        stride: from one window to the next; None for the window's size.
        padding: "valid", "same", a number for all sides, or (before, after) per axis; little enough
            that no window is all padding.
        dilation: from one position of a window to the next.
        ceil_mode: whether a last window may reach past the padding, if it starts on x or before.

    Returns:
        y (N, places ..., C), residuals.

    Raises:
        TypeError: x is no array of floating numbers, or a setting is of another type.
        ValueError: x has not three to five axes, or a 0 but for N; a setting has the wrong form; a
            window is larger than the padded input or holds nothing of it.
    """
    at = windows_of(x, window, stride, padding, dilation, ceil_mode)
    padded = windows.padded(x, at, -jnp.inf)
    under = (under_tap(padded, tap, at) for tap in at.taps)
    # Of equals the first, as the derivative of this too has it.
    y = reduce(lambda y, other: jnp.where((y >= other) | jnp.isnan(y), y, other), under)
    return y, PoolResiduals(x, y)


def max_pool_bwd(residuals: PoolResiduals, dy: Array, **settings: Any) -> tuple[Array]:
    """Return dx = dy at the first tap of each window whose x is y, also where both are NaN."""
    x, y = residuals
    at = windows_of(x, **settings)
    dx = jnp.zeros_like(widen(x))
    for tap, first in firsts(x, y, at):
        dx += from_tap(jnp.where(first, widen(dy), 0), tap, at)
    return (dx.astype(x.dtype),)


def firsts(x: Array, y: Array, at: Placement) -> Iterator[tuple[tuple[int, ...], Array]]:
    """Yield every tap with the places where it is the first whose x is y, or is NaN as y is."""
    padded, found = windows.padded(x, at), jnp.zeros(y.shape, bool)
    for tap in at.taps:
        under = under_tap(padded, tap, at)
        same = (under == y) | jnp.isnan(under)  # NaN equals nothing, nor itself
        first = ~found & windows.is_inside(tap, at) & same
        found |= first
        yield tap, first


def average_pool_fwd(
    x: Array,
    *,
    window: Sizes = 2,
    stride: Sizes | None = None,
    padding: Padding = "valid",
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> tuple[Array, Array]:
    """Take the mean of every window, the padding counted as zeros.

    Added up in float32 or wider. Saves x for its shape: no extra bytes. As `max_pool_fwd`, but:

    Args:
        x: (N, ..., C).
        window: see there.
        stride: see there.
        padding: see there.
        dilation: see there.
        ceil_mode: see there; what lies past the padding is never counted.
        count_include_pad: whether K counts the padding, as PyTorch has it, or the x in a window.
        divisor: K for every window, if it is not the number of positions.
    """
    at = windows_of(x, window, stride, padding, dilation, ceil_mode)
    padded = windows.padded(widen(x), at)
    total = reduce(jnp.add, (under_tap(padded, tap, at) for tap in at.taps))
    k = _counts(at, count_include_pad, divisor).astype(total.dtype)
    return (total / k).astype(x.dtype), x


def average_pool_bwd(
    x: Array,
    dy: Array,
    *,
    count_include_pad: bool = True,
    divisor: int | None = None,
    **settings: Any,
) -> tuple[Array]:
    """Return dx = the dy / K of all windows over a position, added up."""
    at, share = windows_of(x, **settings), widen(dy)
    share = share / _counts(at, count_include_pad, divisor).astype(share.dtype)
    dx = reduce(jnp.add, (from_tap(share, tap, at) for tap in at.taps))
    return (dx.astype(x.dtype),)


def _counts(at: Placement, count_include_pad: bool, divisor: int | None) -> Any:
    """Return K of every place: (places ..., 1), or one number for all."""
    if divisor is not None:
        return np.asarray(divisor)
    margins = at.padding if count_include_pad else ((0, 0),) * len(at.size)
    return windows.taps_within(at, margins)


def _check_average(x: Array, *, count_include_pad: Any, divisor: Any, **settings: Any) -> None:
    check_pool("average_pool", x, **settings)
    check_flag("average_pool: count_include_pad", count_include_pad)
    if divisor is not None:
        check_integer("average_pool: divisor", divisor, hint=", or None to count")


def _example(key: Array) -> tuple[Array]:
    """Images of two channels, in one of them four equal values, the largest of all, in a square."""
    return (jax.random.normal(key, (3, 7, 5, 2)).at[0, :2, 1:3, 0].set(5.0),)


_OVERLAPPING: dict[str, Any] = {"window": (3, 2), "stride": (2, 1), "padding": ((1, 2), (1, 0))}
_DILATED: dict[str, Any] = {"window": 2, "stride": 3, "dilation": 2, "ceil_mode": True}

max_pool = Op(
    max_pool_fwd,
    max_pool_bwd,
    check=partial(check_pool, "max_pool"),
    example=_example,
    settings=({}, _OVERLAPPING, _DILATED),
)
average_pool = Op(
    average_pool_fwd,
    average_pool_bwd,
    check=_check_average,
    example=_example,
    settings=(
        {},
        _OVERLAPPING,
        _DILATED,
        {**_OVERLAPPING, "count_include_pad": False, "ceil_mode": True},
        {"window": 3, "divisor": 2},
    ),
)
