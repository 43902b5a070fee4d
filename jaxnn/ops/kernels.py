"""The parameters of a convolution, and where its kernel goes once everything is known to fit."""

from typing import NamedTuple

from jax import Array

from jaxnn.checks import check_params
from jaxnn.ops.windows import Padding, Sizes, Windows, check_rank, per_axis, windows
from jaxnn.settings import check_integer


class Conv(NamedTuple):
    """Parameters: kernel `w` (taps ..., C / groups, O), and `b` (O,) or None.

    Of a transposed convolution w is (taps ..., O / groups, C): that of the convolution from O to C
    channels whose transpose it is.
    """

    w: Array
    b: Array | None


def conv_windows(
    name: str,
    params: Conv,
    x: Array,
    axes: int,
    stride: Sizes,
    padding: Padding,
    dilation: Sizes,
    groups: int,
) -> Windows:
    """Where the kernel goes, once everything is known to fit."""
    check_rank(name, x, axes)
    check_kernel(name, params, axes, groups)
    inputs = params.w.shape[-2] * groups
    if x.shape[-1] != inputs:
        raise ValueError(
            f"{name}: x has {x.shape[-1]} channels, w of shape {params.w.shape} takes {inputs} in "
            f"{groups} group(s); they must be equal: check the channels or groups"
        )
    return windows(name, x.shape[1:-1], params.w.shape[:axes], stride, padding, dilation)


def transposed_windows(
    params: Conv,
    x: Array,
    stride: Sizes,
    padding: Padding,
    dilation: Sizes,
    groups: int,
    output_padding: Sizes,
) -> Windows:
    """Where the kernel of the convolution goes whose transpose this is."""
    name = "conv2d_transpose"
    check_rank(name, x, 2)
    check_kernel(name, params, 2, groups, transposed=True)
    if x.shape[-1] != params.w.shape[-1]:
        raise ValueError(
            f"{name}: x has {x.shape[-1]} channels, w of shape {params.w.shape} takes "
            f"{params.w.shape[-1]}; they must be equal: w is (KH, KW, O / groups, C)"
        )
    if isinstance(padding, str):
        raise ValueError(
            f"{name}: padding is {padding!r}; it must be a number or ((top, bottom), (left, "
            "right)): of a transpose the size is not known that 'same' would need"
        )
    kernel = params.w.shape[:2]
    # The settings are checked on an image large enough for any kernel.
    gaps = per_axis(name, "dilation", dilation, 2)
    room = tuple(k * d for k, d in zip(kernel, gaps, strict=True))
    checked = windows(name, room, kernel, stride, padding, gaps)
    extra = per_axis(name, "output_padding", output_padding, 2, least=0)
    if any(e >= s for e, s in zip(extra, checked.stride, strict=True)):
        raise ValueError(
            f"{name}: output_padding is {output_padding!r}, the stride {checked.stride}; it must "
            "be from 0 to stride - 1 along each axis"
        )
    size = tuple(
        (h - 1) * s - lo - hi + d * (k - 1) + 1 + e
        for h, s, (lo, hi), d, k, e in zip(
            x.shape[1:3],
            checked.stride,
            checked.padding,
            checked.dilation,
            kernel,
            extra,
            strict=True,
        )
    )
    if min(size) < 1:
        raise ValueError(
            f"{name}: x has shape {x.shape}; with these settings its output would have {size} "
            "positions, and it must have at least 1 along each axis: pad less"
        )
    return checked._replace(size=size, places=x.shape[1:3])


def check_kernel(name: str, params: Conv, axes: int, groups: int, transposed: bool = False) -> None:
    """Refuse parameters that are no convolution's, or that groups do not divide."""
    check_params(name, params, Conv)
    check_integer(f"{name}: groups", groups)
    w, b = params
    form = "(K, C / groups, O)" if axes == 1 else "(KH, KW, C / groups, O)"
    if w.ndim != axes + 2 or w.size == 0:
        raise ValueError(f"{name}: w has shape {w.shape}; it must be {form}: reshape it")
    if w.shape[-1] % groups:
        raise ValueError(
            f"{name}: groups is {groups} but w has shape {w.shape}; groups must divide its last "
            f"dimension, {w.shape[-1]}: change one"
        )
    outputs = w.shape[-2] * groups if transposed else w.shape[-1]
    if b is not None and b.shape != (outputs,):
        raise ValueError(
            f"{name}: b has shape {b.shape}; it must be ({outputs},), one per output channel, or "
            "None"
        )
