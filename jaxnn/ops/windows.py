"""Windows that slide over positions: what convolution, unfolding and pooling have in common.

Along an axis of H positions, padded by lo before and hi after, a kernel of K taps, d apart, moved
by a stride s at a time stands at

    OH = (H + lo + hi - (d (K - 1) + 1)) // s + 1

places; at place o its tap k lies on position o s + k d - lo.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxnn.checks import check_array
from jaxnn.numerics import widen
from jaxnn.settings import check_integer

Padding = str | int | tuple[tuple[int, int], ...]
Sizes = int | tuple[int, ...]


class Windows(NamedTuple):
    """How windows slide, one entry per axis of positions.

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
    def size_of_kernel(self) -> int:
        """How many taps there are."""
        return math.prod(self.kernel)

    @property
    def taps(self) -> Iterator[tuple[int, ...]]:
        """The offset of every tap from its place in the padded array, in row-major order."""
        axes = zip(self.kernel, self.dilation, strict=True)
        return itertools.product(*[range(0, k * d, d) for k, d in axes])


def windows(
    name: str,
    size: tuple[int, ...],
    kernel: Sizes,
    stride: Sizes = 1,
    padding: Padding = "valid",
    dilation: Sizes = 1,
) -> Windows:
    """The settings of an op as `Windows`.

    Args:
        name: of the op, for messages.
        size: positions along each axis.
        kernel: taps, one number for all axes or one per axis; `stride` and `dilation` likewise.
        stride: positions from one place to the next.
        padding: "valid" for none; "same" for as many places as ceil(size / stride), any odd one
            after; "causal" (one axis only) for all of it before; one number for both ends of all
            axes; or (before, after) per axis.
        dilation: positions from one tap to the next.

    Raises:
        TypeError: a setting is of another type.
        ValueError: a setting has the wrong form, is below its least value, or leaves no place.
    """
    axes = len(size)
    taps = per_axis(name, "kernel", kernel, axes)
    steps = per_axis(name, "stride", stride, axes)
    gaps = per_axis(name, "dilation", dilation, axes)
    spans = tuple(d * (k - 1) + 1 for k, d in zip(taps, gaps, strict=True))
    pads = _pads(name, padding, size, spans, steps)
    places = tuple(
        (h + lo + hi - span) // s + 1
        for h, (lo, hi), span, s in zip(size, pads, spans, steps, strict=True)
    )
    if min(places) < 1:
        padded = tuple(h + lo + hi for h, (lo, hi) in zip(size, pads, strict=True))
        raise ValueError(
            f"{name}: the kernel spans {spans} positions, the input padded has {padded}; it must "
            "fit inside: pad more, or take a smaller kernel or dilation"
        )
    return Windows(taps, steps, pads, gaps, tuple(size), places)


def taken(x: Array, tap: tuple[int, ...], w: Windows) -> Array:
    """What lies under one tap at every place: (N, places ..., C) of the padded (N, ..., C)."""
    ends = [o + (n - 1) * s + 1 for o, n, s in zip(tap, w.places, w.stride, strict=True)]
    return lax.slice(x, (0, *tap, 0), (x.shape[0], *ends, x.shape[-1]), (1, *w.stride, 1))


def placed(dy: Array, tap: tuple[int, ...], w: Windows) -> Array:
    """The transpose of padding and `taken`: values under one tap back at their positions."""
    config = [(0, 0, 0)]
    for o, n, s, h, (lo, _) in zip(tap, w.places, w.stride, w.size, w.padding, strict=True):
        config.append((o - lo, h - (o - lo) - (n - 1) * s - 1, s - 1))
    return lax.pad(dy, jnp.zeros((), dy.dtype), [*config, (0, 0, 0)])


def added(parts: Sequence[Array], w: Windows) -> Array:
    """What lies under every tap, in the order of `taps`, back at its positions and added up."""
    spread = (placed(widen(part), tap, w) for part, tap in zip(parts, w.taps, strict=True))
    return reduce(jnp.add, spread).astype(parts[0].dtype)


def padded(x: Array, w: Windows, value: float) -> Array:
    """x (N, ..., C) with this value before and after its positions."""
    return jnp.pad(x, [(0, 0), *w.padding, (0, 0)], constant_values=value)


def patches(x: Array, w: Windows) -> Array:
    """What lies under all taps at every place, side by side: (N, places ..., taps C)."""
    zeros_around = padded(x, w, 0)
    return jnp.concatenate([taken(zeros_around, tap, w) for tap in w.taps], -1)


def check_rank(name: str, x: Array, axes: int) -> None:
    """Refuse an input that is not a batch of so many axes of positions, channels last.

    Raises:
        TypeError: it is no array.
        ValueError: it is not, or has no element.
    """
    check_array(f"{name}: x", x)
    form = "(N, T, C)" if axes == 1 else "(N, H, W, C)"
    if x.ndim != axes + 2 or x.size == 0:
        raise ValueError(
            f"{name}: x has shape {x.shape}; it must be {form}, none of them 0: add the missing "
            "axes, channels last"
        )


def per_axis(name: str, what: str, value: Any, axes: int, least: int = 1) -> tuple[int, ...]:
    """A setting for each axis.

    Raises:
        TypeError: an entry is no integer.
        ValueError: it has another number of entries, or one is below `least`.
    """
    hint = f", or {axes} of them, one per axis"
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * axes
    if len(values) != axes:
        raise ValueError(
            f"{name}: {what} is {value!r}; it must be an integer of at least {least}{hint}"
        )
    return tuple(check_integer(f"{name}: {what}", entry, least, hint) for entry in values)


def _pads(
    name: str,
    padding: Any,
    size: tuple[int, ...],
    spans: tuple[int, ...],
    stride: tuple[int, ...],
) -> tuple[tuple[int, int], ...]:
    """(before, after) for each axis."""
    axes = len(size)
    if padding == "valid":
        return ((0, 0),) * axes
    if padding == "same":
        missing = [
            max(((h - 1) // s) * s + span - h, 0)
            for h, span, s in zip(size, spans, stride, strict=True)
        ]
        return tuple((total // 2, total - total // 2) for total in missing)
    if padding == "causal" and axes == 1:
        return ((spans[0] - 1, 0),)
    names = "'same', 'valid' or 'causal'" if axes == 1 else "'same' or 'valid'"
    hint = f", {names}, or {axes} pair(s) (before, after), one per axis"
    entries = padding if isinstance(padding, tuple | list) else ((padding, padding),) * axes
    pairs = [pair for pair in entries if isinstance(pair, tuple | list) and len(pair) == 2]
    if isinstance(padding, str) or not len(pairs) == len(entries) == axes:
        raise ValueError(
            f"{name}: padding is {padding!r}; it must be an integer of at least 0{hint}"
        )
    lo, hi = (
        [check_integer(f"{name}: padding", pair[end], 0, hint) for pair in pairs] for end in (0, 1)
    )
    return tuple(zip(lo, hi, strict=True))
