"""Convolution of sequences (N, T, C), images and volumes (N, D, H, W, C), and its transpose.

    y[o] = b + sum_k x[o s + k d - lo] w[k]        over taps k and the channels of a group

    db = sum_o dy[o]
    dw[k] = sum_o x[o s + k d - lo]^T dy[o]        a convolution of x by dy: strides and dilations
                                                   change places, and batch and channels
    dx[i] = sum_k dy[(i + lo - k d) / s] w[k]^T    where s divides: dy with s - 1 zeros between its
                                                   places, convolved with the flipped kernel

Written for one axis of positions; s is the stride, d the dilation, lo the padding before the first
position (see `jaxnn.ops.windows`). As in every library the kernel is not flipped in the forward.
The transpose has dx for its forward, and y for its dx. All save their inputs, there already.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.checks import check_kind
from jaxnn.op import Op
from jaxnn.ops.windows import Padding, Placement, Sizes, placement, transposed_placement
from jaxnn.ops.windows_doors import check_convolution

FAST = "jaxnn.ops.fast.convolution"
# By the number of axes.
LAYOUT = {len(s) + 2: (f"N{s}C", f"{s}IO", f"N{s}C") for s in ("H", "HW", "DHW")}


class Conv(NamedTuple):
    """Parameters: kernel `w` (taps ..., C / groups, O), and biases `b` (O,) or None.

    Of a transpose, from C to O channels, w is that of the convolution: (taps ..., O / groups, C).
    """

    w: Array
    b: Array | None


class ConvResiduals(NamedTuple):
    """The inputs."""

    params: Conv
    x: Array


def conv_fwd(
    params: Conv,
    x: Array,
    *,
    stride: Sizes = 1,
    padding: Padding = "valid",
    dilation: Sizes = 1,
    groups: int = 1,
) -> tuple[Array, ConvResiduals]:
    """Convolve sequences, images or volumes with a kernel (LeCun et al., 1998, section II).

    That of `conv1d`, `conv2d` and `conv3d`. An infinity or NaN in the kernel or in dy makes NaN of
    all dx within its reach: the zeros between the places of dy are multiplied too, as are those
    between the x of a transpose.

    Args:
        params: w (taps ..., C / groups, O), such as (KH, KW, C / groups, O), and b (O,) or None.
        x: (N, ..., C), of the dtype of w: (N, T, C) for `conv1d`, (N, H, W, C) for `conv2d`,
            (N, D, H, W, C) for `conv3d`.
        stride: positions from one output to the next, for all axes or per axis.
        padding: "valid", "same", a number for all sides, or (before, after) per axis, such as
            ((top, bottom), (left, right)); of sequences also "causal": an output sees no later
            position.
        dilation: positions from one tap to the next, for all axes or per axis.
        groups: a divisor of C and O: group g of the outputs sees group g of the channels; C of them
            are a depthwise convolution.

    Returns:
        y (N, places ..., O), residuals.

    Raises:
        TypeError: params are no `Conv` of floating arrays of the dtype of x, or a setting is of
            another type.
        ValueError: the shapes do not fit, groups divide C or O not, a setting has the wrong form,
            or the kernel is larger than the padded input.
    """
    w, b = params
    at = placement(x.shape[1:-1], w.shape[:-2], stride, padding, dilation)
    y = convolve(x, w, at, groups)
    return y if b is None else y + b, ConvResiduals(params, x)


def conv_bwd(
    residuals: ConvResiduals, dy: Array, *, groups: int = 1, **settings: Any
) -> tuple[Conv, Array]:
    """Return dw, db and dx."""
    (w, b), x = residuals
    at = placement(x.shape[1:-1], w.shape[:-2], **settings)
    db = None if b is None else dy.sum(range(dy.ndim - 1))
    return Conv(convolve_dw(x, dy, at, groups), db), convolve_dx(dy, w, at, groups)


def convolve(x: Array, w: Array, at: Placement, groups: int) -> Array:
    """Return y[o] = sum_k x[o s + k d - lo] w[k]."""
    conv = partial(lax.conv_general_dilated, dimension_numbers=LAYOUT[x.ndim])
    return conv(x, w, at.stride, at.padding, None, at.dilation, feature_group_count=groups)


def convolve_dw(x: Array, dy: Array, at: Placement, groups: int) -> Array:
    """Return dw[k] = sum_o x[o s + k d - lo]^T dy[o]: examples for channels, dy for the kernel."""
    axes = zip(*at, strict=True)
    ends = [(lo, d * (k - 1) + (n - 1) * s + 1 - h - lo) for k, s, (lo, _), d, h, n in axes]
    # Exchanged in memory: by dimension numbers alone, XLA loops naively in a scan on the CPU.
    x, dy = x.swapaxes(0, -1), jnp.moveaxis(dy, 0, -2)
    conv = partial(lax.conv_general_dilated, dimension_numbers=LAYOUT[x.ndim])
    dw = conv(x, dy, at.dilation, ends, None, at.stride, batch_group_count=groups)
    return jnp.moveaxis(dw, 0, -2)


def convolve_dx(dy: Array, w: Array, at: Placement, groups: int) -> Array:
    """Return dx[i] = sum_k dy[(i + lo - k d) / s] w[k]^T, where s divides."""
    *taps, channels, outputs = w.shape
    flipped = jnp.flip(w, range(len(taps))).reshape(*taps, channels, groups, outputs // groups)
    transposed = flipped.swapaxes(-1, -3).reshape(*taps, outputs // groups, groups * channels)
    axes = zip(*at, strict=True)
    ends = [(d * (k - 1) - lo, h + lo - (n - 1) * s - 1) for k, s, (lo, _), d, h, n in axes]
    conv = partial(lax.conv_general_dilated, dimension_numbers=LAYOUT[dy.ndim])
    ones = (1,) * len(taps)
    return conv(dy, transposed, ones, ends, at.stride, at.dilation, feature_group_count=groups)


def conv_transpose_fwd(
    params: Conv,
    x: Array,
    *,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    output_padding: Sizes = 0,
) -> tuple[Array, ConvResiduals]:
    """Apply the transpose of a convolution with these settings, from C to O channels.

        OH = (H - 1) stride - before - after + dilation (KH - 1) + 1 + output_padding

    so that the convolution, of inputs of that size, gives H (Zeiler et al., 2010). That of
    `conv1d_transpose`, `conv2d_transpose` and `conv3d_transpose`. As `conv_fwd`, but:

    Args:
        params: w (taps ..., O / groups, C) and b (O,) or None.
        x: (N, ..., C), of their dtype.
        stride: of the convolution whose transpose it is, as are all other settings.
        padding: a number for all sides, or (before, after) per axis.
        dilation: positions from one tap to the next.
        groups: a divisor of C and O.
        output_padding: which of the sizes that the convolution would bring to H, from 0 to
            stride - 1; for all axes or per axis.

    Raises:
        ValueError: nothing is left of the output, or output_padding is outside its range.
    """
    w, b = params
    at = transposed_placement(
        x.shape[1:-1], w.shape[:-2], stride, padding, dilation, output_padding
    )
    y = convolve_dx(x, w, at, groups)
    return y if b is None else y + b, ConvResiduals(params, x)


def conv_transpose_bwd(
    residuals: ConvResiduals, dy: Array, *, groups: int = 1, **settings: Any
) -> tuple[Conv, Array]:
    """Return dw, with the places of x and dy exchanged, db, and dx = the convolution of dy."""
    (w, b), x = residuals
    at = transposed_placement(x.shape[1:-1], w.shape[:-2], **settings)
    db = None if b is None else dy.sum(range(dy.ndim - 1))
    return Conv(convolve_dw(dy, x, at, groups), db), convolve(dy, w, at, groups)


def _check(name: str, params: Any, x: Any, **settings: Any) -> None:
    check_kind(f"{name}: params", params, Conv)
    check_convolution(name, params.w, params.b, x, **settings)


def _example(w: tuple[int, ...], b: int, x: tuple[int, ...], key: Array) -> tuple[Conv, Array]:
    """Inputs of these shapes, of which the first position is 0."""
    kw, kb, kx = jax.random.split(key, 3)
    params = Conv(jax.random.normal(kw, w), jax.random.normal(kb, (b,)))
    return params, jax.random.normal(kx, x).at[(0,) * (len(x) - 1)].set(0.0)


conv1d = Op(
    conv_fwd, conv_bwd, check=partial(_check, "conv1d"), fast=FAST,
    example=partial(_example, (3, 2, 6), 6, (2, 8, 4)),
    settings=({"stride": 3, "padding": "causal", "dilation": 2, "groups": 2},),
)  # fmt: skip
conv2d = Op(
    conv_fwd, conv_bwd, check=partial(_check, "conv2d"), fast=FAST,
    example=partial(_example, (2, 3, 2, 6), 6, (3, 7, 5, 4)),
    settings=(
        {"padding": "same", "groups": 2},
        {"stride": (2, 3), "padding": ((2, 0), (1, 3)), "dilation": (2, 1), "groups": 2},
    ),
)  # fmt: skip
conv3d = Op(
    conv_fwd, conv_bwd, check=partial(_check, "conv3d"), fast=FAST,
    example=partial(_example, (2, 1, 3, 2, 6), 6, (2, 4, 3, 5, 4)),
    settings=({"stride": (2, 1, 3), "padding": 1, "dilation": (1, 1, 2), "groups": 2},),
)  # fmt: skip
conv1d_transpose = Op(
    conv_transpose_fwd, conv_transpose_bwd, check=partial(_check, "conv1d_transpose"), fast=FAST,
    example=partial(_example, (3, 3, 4), 6, (2, 5, 4)),
    settings=({"stride": 3, "padding": ((1, 0),), "groups": 2, "output_padding": 2},),
)  # fmt: skip
conv2d_transpose = Op(
    conv_transpose_fwd, conv_transpose_bwd, check=partial(_check, "conv2d_transpose"), fast=FAST,
    example=partial(_example, (2, 3, 3, 4), 6, (3, 4, 5, 4)),
    settings=(
        {"stride": 2, "padding": ((0, 1), (2, 0)), "dilation": 2, "groups": 2, "output_padding": 1},
    ),
)  # fmt: skip
conv3d_transpose = Op(
    conv_transpose_fwd, conv_transpose_bwd, check=partial(_check, "conv3d_transpose"), fast=FAST,
    example=partial(_example, (2, 1, 3, 3, 4), 6, (2, 2, 3, 2, 4)),
    settings=(
        {"stride": (2, 1, 2), "dilation": (1, 1, 2), "groups": 2, "output_padding": (1, 0, 1)},
    ),
)  # fmt: skip
