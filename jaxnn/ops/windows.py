"""Windows that slide over positions: what convolution, unfolding and pooling have in common.

Along an axis of H positions, padded by lo before and hi after, a kernel of K taps, d apart, moved
by a stride s at a time stands at

    OH = (H + lo + hi - (d (K - 1) + 1)) // s + 1

places; at place o its tap k lies on position o s + k d - lo.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxnn.checks import check_one_dtype, check_shapes
from jaxnn.settings import MOST, check_per_axis, check_windows

Padding = str | int | tuple[tuple[int, int], ...]
Sizes = int | tuple[int, ...]


class Placement(NamedTuple):
    """Where a kernel goes, one entry per axis of positions.

    Attributes:
        kernel: K, taps.
        stride: s, positions from one place to the next.
        padding: (lo, hi), positions added before and after.
        dilation: d, positions from one tap to the next.
        size: H, positions before padding.
        places: OH.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    size: tuple[int, ...]
    places: tuple[int, ...]

    @property
    def taps(self) -> Iterator[tuple[int, ...]]:
        """The offset of every tap from its place in the padded array, in row-major order."""
        axes = zip(self.kernel, self.dilation, strict=True)
        return itertools.product(*[range(0, k * d, d) for k, d in axes])


def placement(
    size: tuple[int, ...],
    kernel: Sizes,
    stride: Sizes = 1,
    padding: Padding = "valid",
    dilation: Sizes = 1,
) -> Placement:
    """Return where a kernel goes, by settings that `check_placement` admits.

    Args:
        size: positions along each axis.
        kernel: taps, one number for all axes or one per axis; `stride` and `dilation` likewise.
        stride: positions from one place to the next.
        padding: "valid" for none; "same" for as many places as ceil(size / stride), any odd one
            after; "causal" (one axis only) for all of it before; one number for both ends of all
            axes; or (before, after) per axis.
        dilation: positions from one tap to the next.
    """
    kernel, stride, dilation = (per_axis(s, len(size)) for s in (kernel, stride, dilation))
    pads, places = [], []
    for axis, (h, k, s, d) in enumerate(zip(size, kernel, stride, dilation, strict=True)):
        span = d * (k - 1) + 1
        if padding == "same":
            missing = max((h - 1) // s * s + span - h, 0)
            lo, hi = missing // 2, missing - missing // 2
        elif isinstance(padding, str):
            lo, hi = span - 1 if padding == "causal" else 0, 0
        else:
            lo, hi = per_axis(padding[axis] if isinstance(padding, tuple | list) else padding, 2)
        pads.append((lo, hi))
        places.append((h + lo + hi - span) // s + 1)
    return Placement(kernel, stride, tuple(pads), dilation, size, tuple(places))


def transposed_placement(
    size: tuple[int, ...],
    kernel: Sizes,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    output_padding: Sizes = 0,
) -> Placement:
    """Return where a kernel goes so that `size` is the number of its places.

    As `placement` of H = (places - 1) s - lo - hi + d (K - 1) + 1 + output_padding positions.
    """
    at = placement(size, kernel, stride, padding, dilation)
    positions = []
    for k, s, (lo, hi), d, n, e in zip(*at[:5], per_axis(output_padding, len(size)), strict=True):
        positions.append((n - 1) * s - lo - hi + d * (k - 1) + 1 + e)
    return at._replace(size=tuple(positions), places=size)


def per_axis(setting: Sizes, axes: int) -> tuple[int, ...]:
    """Return a setting for each axis."""
    values = setting if isinstance(setting, tuple | list) else (setting,) * axes
    return tuple(int(value) for value in values)


def under_tap(x: Array, tap: tuple[int, ...], at: Placement) -> Array:
    """Return what lies under one tap at every place: (N, places ..., C) of x (N, ..., C), padded.

    The adjoint of `from_tap` but for the padding.
    """
    ends = [o + (n - 1) * s + 1 for o, n, s in zip(tap, at.places, at.stride, strict=True)]
    return lax.slice(x, (0, *tap, 0), (x.shape[0], *ends, x.shape[-1]), (1, *at.stride, 1))


def from_tap(dy: Array, tap: tuple[int, ...], at: Placement) -> Array:
    """Return values (N, places ..., C) under one tap back at their positions, zeros elsewhere."""
    config = [(0, 0, 0)]
    for o, n, s, h, (lo, _) in zip(tap, at.places, at.stride, at.size, at.padding, strict=True):
        config.append((o - lo, h - (o - lo) - (n - 1) * s - 1, s - 1))
    return lax.pad(dy, jnp.zeros((), dy.dtype), [*config, (0, 0, 0)])


def check_images(name: str, x: Any, form: str = "NHWC", **others: tuple[Any, str]) -> None:
    """Refuse what is no batch of images, channels last, and what does not fit it or its dtype.

    Args:
        name: of the op, for messages.
        x: the images; there may be none of them, each with one position and channel or more.
        form: its axes as `jaxnn.checks.check_shapes` has them.
        **others: other arrays and their axes, likewise.

    Raises:
        TypeError: one is no floating array, or of another dtype.
        ValueError: a shape does not fit, or has a 0 but for N.
    """
    fix = "add or take away axes, channels last"
    sizes = vars(check_shapes(name, fix, x=(x, form), **others))
    check_one_dtype(name, x=x, **{other: value for other, (value, _) in others.items()})
    if not all(size for letter, size in sizes.items() if letter != "N"):
        shapes = ", ".join(f"{k} {v.shape}" for k, (v, _) in others.items() if v is not None)
        raise ValueError(
            f"{name}: x has shape {x.shape}{', beside ' * bool(shapes)}{shapes}; all sizes but N "
            "must be at least 1: pass at least one position and one channel"
        )


def check_placement(
    name: str, size: tuple[int, ...], kernel: Sizes, padding: Any = "valid", **settings: Any
) -> Placement:
    """Refuse settings of windows that have no meaning, or leave no place; else as `placement`.

    Raises:
        TypeError: a setting is of another type.
        ValueError: a setting has the wrong form, is below its least value, or leaves no place.
    """
    check_windows(name, len(size), padding, **settings)
    at = placement(size, kernel, padding=padding, **settings)
    if min(at.places) < 1:
        spans = tuple(d * (k - 1) + 1 for k, d in zip(at.kernel, at.dilation, strict=True))
        padded = tuple(h + lo + hi for h, (lo, hi) in zip(size, at.padding, strict=True))
        raise ValueError(
            f"{name}: the kernel spans {spans} positions, the input padded has {padded}; it must "
            "fit inside: pad more, or take a smaller kernel or dilation"
        )
    return at


def check_transposed(
    name: str, size: tuple[int, ...], kernel: Sizes, output_padding: Any, **settings: Any
) -> None:
    """Refuse settings that `transposed_placement` can do nothing with; raises as the above."""
    if isinstance(settings["padding"], str):
        raise ValueError(
            f"{name}: padding is {settings['padding']!r}; it must be a number or ((top, bottom), "
            "(left, right)): of a transpose the size is not known that 'same' would need"
        )
    check_windows(name, len(size), **settings)
    check_per_axis(f"{name}: output_padding", output_padding, len(size), least=0)
    at = transposed_placement(size, kernel, output_padding=output_padding, **settings)
    if any(e >= s for e, s in zip(per_axis(output_padding, len(size)), at.stride, strict=True)):
        raise ValueError(
            f"{name}: output_padding is {output_padding!r}, the stride {at.stride}; it must be "
            "from 0 to stride - 1 along each axis"
        )
    if not all(1 <= positions < MOST for positions in at.size):
        raise ValueError(
            f"{name}: x has {size} positions; with these settings its output would have {at.size}, "
            "and it must have at least 1 and be below 2^31 along each axis: pad less, or more"
        )
