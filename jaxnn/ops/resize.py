"""Upsampling of sequences, images and volumes (N, ..., C) to any size, and the pixel shuffle.

    nearest   y[o] = x[i(o)]                          dx[i] = sum of dy[o] over the o with i(o) = i
    linear    y[o] = (1 - t) x[i(o)] + t x[i(o) + 1]  dx: dy[o] goes back to both by these weights

along one axis after another: two of them make it bilinear, three trilinear. With H positions, OH of
them afterwards and r = H / OH, i(o) is the whole part, and t the rest, of

    o r                                nearest
    (o + 1/2) r                        nearest, `exact`
    max(0, (o + 1/2) r - 1/2)          linear
    o (H - 1) / (OH - 1)               linear, `align_corners`
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnn.numerics import widen
from jaxnn.op import Op
from jaxnn.ops.windows import Sizes, add_at, per_axis, take_at
from jaxnn.ops.windows_doors import check_images
from jaxnn.settings import MOST, check_flag, check_integer, check_per_axis


def _sizes(x: Array, factor: Sizes, size: Sizes | None) -> tuple[int, ...]:
    """Return how many positions each axis shall have."""
    axes = x.ndim - 2
    factors = per_axis(factor, axes)
    times = tuple(f * h for f, h in zip(factors, x.shape[1:-1], strict=True))
    return times if size is None else per_axis(size, axes)


def _nearest(h: int, n: int, exact: bool) -> Any:
    """Return i(o), in whole numbers."""
    o = np.arange(n)
    return (2 * o + 1) * h // (2 * n) if exact else o * h // n


def upsample_nearest_fwd(
    x: Array, *, factor: Sizes = 2, size: Sizes | None = None, exact: bool = False
) -> tuple[Array, Array]:
    """Repeat positions: (N, ..., C) to (N, factor H ..., C), or to a size, which may be smaller.

    Saves x for its shape: no extra bytes. i(o) is worked out in whole numbers (PyTorch rounds r,
    which now and then takes the position before).

    Args:
        x: one to three axes of positions.
        factor: of their numbers, one for all axes or one per axis.
        size: positions along each axis, or one number for all, in place of the factor.
        exact: whether to take the position nearest to the middle of the new one, as PyTorch's
            "nearest-exact", and not to its start, as "nearest".

    Returns:
        y, residuals.

    Raises:
        TypeError: x is no array of floating numbers, or a setting is of another type.
        ValueError: x has not three to five axes, or a 0 but for N; a setting is below 1 or has
            another number of axes; or y would be too large.
    """
    y = x
    for axis, n in enumerate(_sizes(x, factor, size), 1):
        y = take_at(y, _nearest(x.shape[axis], n, exact), axis)
    return y, x


def upsample_nearest_bwd(
    x: Array, dy: Array, *, factor: Sizes = 2, size: Sizes | None = None, exact: bool = False
) -> tuple[Array]:
    """Return dx = the sum of the dy of its copies, in float32 or wider."""
    dx = widen(dy)
    for axis, n in enumerate(_sizes(x, factor, size), 1):
        dx = add_at(dx, _nearest(x.shape[axis], n, exact), axis, x.shape[axis])
    return (dx.astype(x.dtype),)


def _between(x: Array, axis: int, n: int, align_corners: bool) -> tuple[Any, Any, Array]:
    """Return i(o), i(o) + 1 or the last position, and t, to be broadcast along the axis."""
    h, o = x.shape[axis], np.arange(n)
    if align_corners:
        at = o * ((h - 1) / max(n - 1, 1))
    else:
        at = np.maximum((o + 0.5) * (h / n) - 0.5, 0)
    i = np.minimum(np.floor(at).astype(int), h - 1)
    t = jnp.asarray((at - i).reshape((n,) + (1,) * (x.ndim - axis - 1)), widen(x).dtype)
    return i, np.minimum(i + 1, h - 1), t


def upsample_linear_fwd(
    x: Array, *, factor: Sizes = 2, size: Sizes | None = None, align_corners: bool = False
) -> tuple[Array, Array]:
    """Interpolate between positions: linear, bilinear or trilinear by the number of axes.

    In float32 or wider. An axis that keeps its size is left as it is (PyTorch mixes in what has a
    weight of 0, which makes NaN of infinities). Saves x for its shape: no extra bytes. As
    `upsample_nearest_fwd`, but:

    Args:
        x: (N, ..., C).
        factor: see there.
        size: see there. A smaller one is not smoothed first.
        align_corners: whether the first and last positions stay where they are, as the corners of
            the grid, or the pixels' outer edges.
    """
    y = widen(x)
    for axis, n in enumerate(_sizes(x, factor, size), 1):
        if n != x.shape[axis]:
            before, after, t = _between(x, axis, n, align_corners)
            y = (1 - t) * take_at(y, before, axis) + t * take_at(y, after, axis)
    return y.astype(x.dtype), x


def upsample_linear_bwd(
    x: Array,
    dy: Array,
    *,
    factor: Sizes = 2,
    size: Sizes | None = None,
    align_corners: bool = False,
) -> tuple[Array]:
    """Return dx = the dy of all that a position was mixed into, by its weights."""
    dx = widen(dy)
    for axis, n in enumerate(_sizes(x, factor, size), 1):
        h = x.shape[axis]
        if n != h:
            before, after, t = _between(x, axis, n, align_corners)
            dx = add_at((1 - t) * dx, before, axis, h) + add_at(t * dx, after, axis, h)
    return (dx.astype(x.dtype),)


def pixel_shuffle_fwd(x: Array, *, factor: int = 2) -> tuple[Array, None]:
    """Turn channels into positions: (N, H, W, C f f) to (N, f H, f W, C), f the factor.

        y[f h + i, f w + j, c] = x[h, w, c f f + i f + j]

    (Shi et al., 2016, equation 4; the order of channels is PyTorch's.) Saves nothing.

    Raises:
        TypeError: x is no array of floating numbers, or the factor no integer.
        ValueError: x is not (N, H, W, C), or its channels are no multiple of factor^2.
    """
    n, h, w, c = x.shape
    c //= factor**2
    y = x.reshape(n, h, w, c, factor, factor).transpose(0, 1, 4, 2, 5, 3)
    return y.reshape(n, h * factor, w * factor, c), None


def pixel_shuffle_bwd(residuals: None, dy: Array, *, factor: int = 2) -> tuple[Array]:
    """Return dx = dy, its positions turned back into channels."""
    return (pixel_unshuffle_fwd(dy, factor=factor)[0],)


def pixel_unshuffle_fwd(x: Array, *, factor: int = 2) -> tuple[Array, None]:
    """Turn positions into channels: (N, f H, f W, C) to (N, H, W, C f f), f the factor.

    The inverse of `pixel_shuffle`. Saves nothing.

    Raises:
        TypeError: x is no array of floating numbers, or the factor no integer.
        ValueError: x is not (N, H, W, C), or H or W no multiple of the factor.
    """
    n, h, w, c = x.shape
    h, w = h // factor, w // factor
    y = x.reshape(n, h, factor, w, factor, c).transpose(0, 1, 3, 5, 2, 4)
    return y.reshape(n, h, w, c * factor**2), None


def pixel_unshuffle_bwd(residuals: None, dy: Array, *, factor: int = 2) -> tuple[Array]:
    """Return dx = dy, its channels turned back into positions."""
    return (pixel_shuffle_fwd(dy, factor=factor)[0],)


def _check(name: str, x: Any, *, factor: Any, size: Any, **flag: Any) -> None:
    """Refuse what is no images, and sizes that are none or too large."""
    check_images(name, x)
    axes = len(x.shape) - 2
    check_per_axis(f"{name}: factor", factor, axes)
    if size is not None:
        check_per_axis(f"{name}: size", size, axes)
    for what, value in flag.items():
        check_flag(f"{name}: {what}", value)
    if size is None and max(x.shape[1:-1]) * max(per_axis(factor, axes)) >= MOST:
        raise ValueError(
            f"{name}: factor is {factor}, x has shape {x.shape}; its positions must stay below "
            f"{MOST} along each axis: choose less"
        )


def _check_shuffle(name: str, axes: tuple[int, ...], power: int, x: Any, *, factor: Any) -> None:
    """Refuse images whose sizes along these axes are no multiples of a power of the factor."""
    check_images(name, x, "NHWC")
    check_integer(f"{name}: factor", factor)
    if any(x.shape[axis] % factor**power for axis in axes):
        what = "channels" if power == 2 else "height and width"
        raise ValueError(
            f"{name}: x has shape {x.shape}, the factor is {factor}; its {what} must be multiples "
            f"of {factor**power}: pad x, or take another factor"
        )


def _example(shape: tuple[int, ...], key: Array) -> tuple[Array]:
    return (jax.random.normal(key, shape),)


upsample_nearest = Op(
    upsample_nearest_fwd,
    upsample_nearest_bwd,
    check=partial(_check, "upsample_nearest"),
    example=partial(_example, (3, 5, 2, 2)),
    settings=({"factor": 3}, {"factor": (1, 2)}, {"size": (7, 1)}, {"size": (3, 5), "exact": True}),
)
upsample_linear = Op(
    upsample_linear_fwd,
    upsample_linear_bwd,
    check=partial(_check, "upsample_linear"),
    example=partial(_example, (3, 5, 2, 2)),
    settings=({}, {"size": (3, 7)}, {"size": (7, 3), "align_corners": True}, {"size": 1}),
)
pixel_shuffle = Op(
    pixel_shuffle_fwd,
    pixel_shuffle_bwd,
    check=partial(_check_shuffle, "pixel_shuffle", (-1,), 2),
    example=partial(_example, (2, 3, 1, 8)),
)
pixel_unshuffle = Op(
    pixel_unshuffle_fwd,
    pixel_unshuffle_bwd,
    check=partial(_check_shuffle, "pixel_unshuffle", (1, 2), 1),
    example=partial(_example, (3, 6, 2, 1)),
)
