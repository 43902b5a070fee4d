"""Windows that slide over positions: what convolution, unfolding and pooling have in common.

Along an axis of H positions, padded by lo before and hi after, a kernel of K taps, d apart, moved
by a stride s at a time stands at

    OH = (H + lo + hi - (d (K - 1) + 1)) // s + 1

places; at place o its tap k lies on position o s + k d - lo. In `ceil_mode` the division rounds up:
the last place may reach past the padding, but starts no later than the last position of the input.
"""

import itertools
from collections.abc import Iterator
from functools import reduce
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

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

    @property
    def around(self) -> tuple[tuple[int, int], ...]:
        """The padding, with what the last place reaches past it."""
        pads = []
        for k, s, (lo, hi), d, h, n in zip(*self, strict=True):
            pads.append((lo, max(hi, (n - 1) * s + d * (k - 1) + 1 - h - lo)))
        return tuple(pads)


def placement(
    size: tuple[int, ...],
    kernel: Sizes,
    stride: Sizes = 1,
    padding: Padding = "valid",
    dilation: Sizes = 1,
    ceil_mode: bool = False,
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
        ceil_mode: whether the last place may reach past the padding, if it starts before it.
    """
    kernel, stride, dilation = (per_axis(s, len(size)) for s in (kernel, stride, dilation))
    in_numbers = None if isinstance(padding, str) else ends_per_axis(padding, len(size))
    pads, places = [], []
    for axis, (h, k, s, d) in enumerate(zip(size, kernel, stride, dilation, strict=True)):
        span = d * (k - 1) + 1
        if padding == "same":
            missing = max((h - 1) // s * s + span - h, 0)
            lo, hi = missing // 2, missing - missing // 2
        elif in_numbers is None:
            lo, hi = span - 1 if padding == "causal" else 0, 0
        else:
            lo, hi = in_numbers[axis]
        pads.append((lo, hi))
        n = (h + lo + hi - span + (s - 1) * ceil_mode) // s + 1
        places.append(n - 1 if ceil_mode and (n - 1) * s >= h + lo else n)
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


def ends_per_axis(padding: Any, axes: int) -> tuple[tuple[int, int], ...]:
    """Return a padding in numbers as (before, after) for each axis."""
    pairs = padding if isinstance(padding, tuple | list) else (padding,) * axes
    return tuple((before, after) for before, after in (per_axis(pair, 2) for pair in pairs))


def padded(x: Array, at: Placement, value: float = 0.0) -> Array:
    """Return x (N, ..., C) with as many of a value around it as the places reach to."""
    return jnp.pad(x, ((0, 0), *at.around, (0, 0)), constant_values=value)


def positions(tap: tuple[int, ...], at: Placement) -> tuple[Any, ...]:
    """Return the position under a tap at each place: an array for each axis, that broadcast."""
    axes = zip(tap, at.places, at.stride, at.padding, strict=True)
    return np.meshgrid(
        *[np.arange(n) * s + o - lo for o, n, s, (lo, _) in axes], indexing="ij", sparse=True
    )


def is_inside(tap: tuple[int, ...], at: Placement) -> Array:
    """Return where a tap lies on the input and not on its padding: booleans (places ..., 1)."""
    axes = zip(positions(tap, at), at.size, strict=True)
    return reduce(jnp.logical_and, [jnp.asarray((p >= 0) & (p < h)) for p, h in axes])[..., None]


def taps_within(at: Placement, margins: tuple[tuple[int, int], ...]) -> Any:
    """Return how many taps lie on the input and these margins: (places ..., 1)."""
    counts = []
    for (k, s, (lo, _), d, h, n), (before, after) in zip(
        zip(*at, strict=True), margins, strict=True
    ):
        first = np.arange(n) * s - lo  # the position of tap 0
        taps = np.minimum((h + after - 1 - first) // d, k - 1) - np.maximum(
            -((first + before) // d), 0
        )
        counts.append(np.maximum(taps + 1, 0))
    return reduce(np.multiply, np.meshgrid(*counts, indexing="ij", sparse=True))[..., None]


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


def take_at(x: Array, places: Any, axis: int) -> Array:
    """Return x at these positions of an axis, which may repeat: their axes in the place of it."""
    return jnp.take(x, places, axis, mode="clip")


def add_at(dy: Array, places: Any, axis: int, size: int) -> Array:
    """Return what `take_at` took, added up at its positions on an axis of this size."""
    before, after = dy.shape[:axis], dy.shape[axis + places.ndim :]
    dx = jnp.zeros((*before, size, *after), dy.dtype)
    return dx.at[(slice(None),) * axis + (places.ravel(),)].add(
        dy.reshape(*before, places.size, *after)
    )
