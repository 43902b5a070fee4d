"""Doors of the ops on sequences, images and volumes: what their windows and sizes refuse."""

import math
from typing import Any

from jaxnn.checks import check_array, check_integers, check_one_dtype, check_range, check_shapes
from jaxnn.ops.windows import (
    Placement,
    Sizes,
    ends_per_axis,
    per_axis,
    placement,
    taps_within,
    transposed_placement,
)
from jaxnn.settings import (
    MOST,
    check_choice,
    check_flag,
    check_integer,
    check_number,
    check_per_axis,
    check_windows,
)

FORMS = {3: "NTC", 4: "NHWC", 5: "NDHWC"}  # by the number of axes
KERNELS = {  # by the number of axes of positions, and whether it is a transpose's
    (1, False): "KIO",
    (2, False): "KLIO",
    (3, False): "KLMIO",
    (1, True): "KOI",
    (2, True): "KLOI",
    (3, True): "KLMOI",
}


def check_images(name: str, x: Any, form: str | None = None, **others: tuple[Any, str]) -> None:
    """Refuse what is no batch of images, channels last, and what does not fit it or its dtype.

    Args:
        name: of the op, for messages.
        x: the images; there may be none of them, each with one position and channel or more.
        form: its axes as `jaxnn.checks.check_shapes` has them; None for one to three axes of
            positions: sequences, images or volumes.
        **others: other arrays and their axes, likewise.

    Raises:
        TypeError: one is no floating array, or of another dtype.
        ValueError: a shape does not fit, or has a 0 but for N.
    """
    check_array(f"{name}: x", x)
    if form is None and len(x.shape) not in FORMS:
        raise ValueError(
            f"{name}: x has shape {x.shape}; it must be (N, T, C) of sequences, (N, H, W, C) of "
            "images or (N, D, H, W, C) of volumes: add or take away axes, channels last"
        )
    form = form or FORMS[len(x.shape)]
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
    name: str,
    size: tuple[int, ...],
    kernel: Sizes,
    padding: Any = "valid",
    ceil_mode: bool = False,
    **settings: Any,
) -> Placement:
    """Refuse settings of windows that have no meaning, or leave no place; else as `placement`.

    Raises:
        TypeError: a setting is of another type.
        ValueError: a setting has the wrong form, is below its least value, or leaves no place.
    """
    check_windows(name, len(size), padding, **settings)
    check_flag(f"{name}: ceil_mode", ceil_mode)
    at = placement(size, kernel, padding=padding, ceil_mode=ceil_mode, **settings)
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
            f"{name}: padding is {settings['padding']!r}; it must be a number or (before, after) "
            "per axis: of a transpose the size is not known that 'same' would need"
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


def check_convolution(name: str, w: Any, b: Any, x: Any, *, groups: int, **settings: Any) -> None:
    """Refuse a kernel and biases that do not fit x, and settings that do not fit both.

    Raises:
        TypeError: an array is no floating one of the dtype of x, or a setting of another type.
        ValueError: a shape does not fit, or as `check_placement` and `check_transposed`.
    """
    transposed = name.endswith("_transpose")
    axes = int(name[len("conv")])
    check_images(name, x, FORMS[axes + 2], w=(w, KERNELS[axes, transposed]), b=(b, "B?"))
    check_integer(f"{name}: groups", groups)
    if w.shape[-1] % groups:
        raise ValueError(
            f"{name}: groups is {groups} but w has shape {w.shape}; groups must divide its last "
            f"dimension, {w.shape[-1]}: change one"
        )
    channels = w.shape[-2] * groups, w.shape[-1]
    takes, gives = channels[::-1] if transposed else channels
    if x.shape[-1] != takes:
        raise ValueError(
            f"{name}: x has {x.shape[-1]} channels, w of shape {w.shape} takes {takes} in {groups} "
            "group(s); they must be equal: check the channels or groups"
        )
    if b is not None and b.shape != (gives,):
        raise ValueError(
            f"{name}: b has shape {b.shape}; it must be ({gives},), one per output channel, or None"
        )
    check = check_transposed if transposed else check_placement
    check(name, x.shape[1:-1], w.shape[:-2], **settings)


def check_pool(name: str, x: Any, *, window: Any, stride: Any, **settings: Any) -> None:
    """Refuse what is no images, and windows that do not fit them or hold nothing of them.

    Raises:
        TypeError, ValueError: as `check_images` and `check_placement`.
        ValueError: the padding or dilation leaves a window without a position of x.
    """
    check_images(name, x)
    size = x.shape[1:-1]
    check_per_axis(f"{name}: window", window, len(size))
    at = check_placement(
        name, size, window, stride=window if stride is None else stride, **settings
    )
    # The first question needs no table of all places, of which a huge padding makes many.
    spans = [d * (k - 1) + 1 for k, d in zip(at.kernel, at.dilation, strict=True)]
    beyond = any(max(ends) >= span for ends, span in zip(at.padding, spans, strict=True))
    if beyond or not taps_within(at, ((0, 0),) * len(size)).all():
        raise ValueError(
            f"{name}: padding is {at.padding}, the window {at.kernel}, the dilation {at.dilation}; "
            "every window must hold a position of x: pad less"
        )


def check_size(name: str, x: Any, size: Any) -> None:
    """Refuse what is no images, and what is no size for all their axes of positions or for each.

    Raises:
        TypeError, ValueError: as `check_images` and `jaxnn.settings.check_per_axis`.
    """
    check_images(name, x)
    check_per_axis(f"{name}: size", size, len(x.shape) - 2)


def check_indices(name: str, y: Any, indices: Any, size: Any) -> None:
    """Refuse indices of maxima that do not belong to y, or lie outside the size."""
    check_images(name, y)
    check_integers(f"{name}: indices", indices, "take those of max_pool_indices")
    if indices.shape != y.shape:
        raise ValueError(
            f"{name}: indices have shape {indices.shape}, y {y.shape}; they must be equal: take "
            "both of one x"
        )
    check_per_axis(f"{name}: size", size, len(y.shape) - 2)
    bound = math.prod(per_axis(size, len(y.shape) - 2))
    check_range(f"{name}: index", indices, bound, "pass the size of the input of the pooling")


def check_pad(x: Any, *, padding: Any, mode: Any, value: Any) -> None:
    """Refuse what is no images, a padding of another form, or beyond what its mode can fill.

    Raises:
        TypeError, ValueError: as `check_images` and `jaxnn.settings.check_windows`.
        ValueError: the mode is unknown, or an axis has too few positions for it.
    """
    check_images("pad", x)
    axes = len(x.shape) - 2
    if isinstance(padding, str):
        raise ValueError(
            f"pad: padding is {padding!r}; it must be an integer of at least 0, or {axes} pair(s) "
            "(before, after), one per axis"
        )
    check_windows("pad", axes, padding)
    check_choice("pad: mode", mode, ("constant", "reflect", "replicate", "circular"))
    check_number("pad: value", value, "a number", lambda _: True)
    for h, ends in zip(x.shape[1:-1], ends_per_axis(padding, axes), strict=True):
        least = {"reflect": max(ends) + 1, "circular": max(ends)}.get(mode, 0)
        if h < least:
            raise ValueError(
                f"pad: padding is {padding}, x has shape {x.shape}; for {mode!r} an axis padded by "
                f"{ends} must have {least} positions or more: pad less, or in another mode"
            )
