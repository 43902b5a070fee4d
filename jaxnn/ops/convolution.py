"""Convolution of sequences (N, T, C) and images (N, H, W, C), and its transpose.

    y[o] = b + sum_k x[o s + k d - lo] w[k]        over taps k and the channels of a group

    db = sum_o dy[o]
    dw[k] = sum_o x[o s + k d - lo]^T dy[o]        a convolution of x by dy: strides and dilations
                                                   change places, and batch and channels
    dx[i] = sum_k dy[(i + lo - k d) / s] w[k]^T    where s divides: dy with s - 1 zeros between its
                                                   places, convolved with the flipped kernel

Written with one axis of positions for both; s is the stride, d the dilation, lo the padding before
the first position (see `jaxnn.ops.windows`). As in every deep learning library the kernel is not
flipped in the forward. The transpose has dx for its forward, and y for its dx.
"""

from typing import NamedTuple

import jax
from jax import Array, lax

from jaxnn.op import Op
from jaxnn.ops.kernel_gradient import kernel_gradient
from jaxnn.ops.kernels import Conv as Conv
from jaxnn.ops.kernels import conv_windows, transposed_windows
from jaxnn.ops.windows import Padding, Sizes, Windows


class ConvResiduals(NamedTuple):
    """The inputs."""

    params: Conv
    x: Array


def conv1d_fwd(
    params: Conv,
    x: Array,
    *,
    stride: int = 1,
    padding: Padding = "valid",
    dilation: int = 1,
    groups: int = 1,
) -> tuple[Array, ConvResiduals]:
    """A convolution along a sequence.

    Saves the inputs, there already: no extra bytes. Nothing is recomputed.

    Args:
        params: w (K, C / groups, O) and b (O,) or None.
        x: (N, T, C), of the dtype of w.
        stride: positions from one output to the next.
        padding: "valid", "same", "causal" (an output sees no later position), a number for both
            ends, or ((before, after),): see `jaxnn.ops.windows`.
        dilation: positions from one tap to the next.
        groups: a divisor of C and O: group g of the outputs sees group g of the channels.

    Returns:
        y (N, OT, O), residuals.

    Raises:
        TypeError: params are no `Conv`, what should be an array is none, or a setting is of another
            type.
        ValueError: the shapes do not fit, groups divide C or O not, a setting has the wrong form,
            or the kernel is larger than the padded input.
    """
    place = conv_windows("conv1d", params, x, 1, stride, padding, dilation, groups)
    return _biased(_convolved(x, params.w, place, groups), params), ConvResiduals(params, x)


def conv1d_bwd(
    residuals: ConvResiduals,
    dy: Array,
    *,
    stride: int = 1,
    padding: Padding = "valid",
    dilation: int = 1,
    groups: int = 1,
) -> tuple[Conv, Array]:
    """dw, db and dx as above."""
    place = conv_windows("conv1d", *residuals, 1, stride, padding, dilation, groups)
    return _conv_bwd(residuals, dy, place, groups)


def conv2d_fwd(
    params: Conv,
    x: Array,
    *,
    stride: Sizes = 1,
    padding: Padding = "valid",
    dilation: Sizes = 1,
    groups: int = 1,
) -> tuple[Array, ConvResiduals]:
    """A convolution over images (LeCun et al., 1998, section II).

    Saves the inputs, there already: no extra bytes. Nothing is recomputed.

    Args:
        params: w (KH, KW, C / groups, O) and b (O,) or None.
        x: (N, H, W, C), of the dtype of w.
        stride: for both axes or per axis, as `dilation`.
        padding: "valid", "same", a number for all sides, or ((top, bottom), (left, right)).
        dilation: positions from one tap to the next.
        groups: as in `conv1d_fwd`; C of them are a depthwise convolution.

    Returns:
        y (N, OH, OW, O), residuals.

    Raises:
        TypeError, ValueError: as `conv1d_fwd`.
    """
    place = conv_windows("conv2d", params, x, 2, stride, padding, dilation, groups)
    return _biased(_convolved(x, params.w, place, groups), params), ConvResiduals(params, x)


def conv2d_bwd(
    residuals: ConvResiduals,
    dy: Array,
    *,
    stride: Sizes = 1,
    padding: Padding = "valid",
    dilation: Sizes = 1,
    groups: int = 1,
) -> tuple[Conv, Array]:
    """dw, db and dx as above."""
    place = conv_windows("conv2d", *residuals, 2, stride, padding, dilation, groups)
    return _conv_bwd(residuals, dy, place, groups)


def conv2d_transpose_fwd(
    params: Conv,
    x: Array,
    *,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    output_padding: Sizes = 0,
) -> tuple[Array, ConvResiduals]:
    """The transpose of `conv2d` with these settings, from C to O channels (Zeiler et al., 2010).

        OH = (H - 1) stride - before - after + dilation (KH - 1) + 1 + output_padding

    so that `conv2d`, of images of that size, gives H. Saves the inputs, there already: no extra
    bytes. Nothing is recomputed.

    Args:
        params: w (KH, KW, O / groups, C) and b (O,) or None.
        x: (N, H, W, C), of the dtype of w.
        stride: of the convolution whose transpose it is, as are all other settings.
        padding: a number for all sides, or ((top, bottom), (left, right)).
        dilation: positions from one tap to the next.
        groups: a divisor of C and O.
        output_padding: which of the sizes that `conv2d` would bring to H, from 0 to stride - 1; for
            both axes or per axis.

    Returns:
        y (N, OH, OW, O), residuals.

    Raises:
        TypeError, ValueError: as `conv1d_fwd`.
        ValueError: nothing is left of the output, or output_padding is outside its range.
    """
    place = transposed_windows(params, x, stride, padding, dilation, groups, output_padding)
    return _biased(_spread(x, params.w, place, groups), params), ConvResiduals(params, x)


def conv2d_transpose_bwd(
    residuals: ConvResiduals,
    dy: Array,
    *,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    output_padding: Sizes = 0,
) -> tuple[Conv, Array]:
    """dx = the convolution of dy; dw with the places of x and dy exchanged."""
    (w, b), x = residuals
    place = transposed_windows(Conv(w, b), x, stride, padding, dilation, groups, output_padding)
    dw = kernel_gradient(dy, x, place, groups)
    return Conv(dw, _bias_bwd(b, dy)), _convolved(dy, w, place, groups)


def _conv_bwd(
    residuals: ConvResiduals, dy: Array, place: Windows, groups: int
) -> tuple[Conv, Array]:
    (w, b), x = residuals
    dw = kernel_gradient(x, dy, place, groups)
    return Conv(dw, _bias_bwd(b, dy)), _spread(dy, w, place, groups)


def _convolved(x: Array, w: Array, place: Windows, groups: int) -> Array:
    """y[o] = sum_k x[o s + k d - lo] w[k]."""
    hw = "HW"[: len(place.size)]
    return lax.conv_general_dilated(
        x,
        w,
        place.stride,
        place.padding,
        rhs_dilation=place.dilation,
        dimension_numbers=(f"N{hw}C", f"{hw}IO", f"N{hw}C"),
        feature_group_count=groups,
    )


def _spread(dy: Array, w: Array, place: Windows, groups: int) -> Array:
    """dx[i] = sum_k dy[(i + lo - k d) / s] w[k]^T, the transpose of `_convolved` in x."""
    hw = "HW"[: len(place.size)]
    flipped = w[(slice(None, None, -1),) * len(hw)]
    # (taps, C of a group, groups, O of a group) to (taps, O of a group, groups, C of a group).
    parts = flipped.reshape(*w.shape[:-1], groups, -1).swapaxes(-1, -3)
    transposed = parts.reshape(*w.shape[:-2], w.shape[-1] // groups, -1)
    padding = []
    for k, d, n, s, h, (lo, _) in zip(
        place.kernel, place.dilation, place.places, place.stride, place.size, place.padding,
        strict=True,
    ):  # fmt: skip
        padding.append((d * (k - 1) - lo, h + lo - ((n - 1) * s + 1)))
    return lax.conv_general_dilated(
        dy,
        transposed,
        (1,) * len(hw),
        padding,
        lhs_dilation=place.stride,
        rhs_dilation=place.dilation,
        dimension_numbers=(f"N{hw}C", f"{hw}IO", f"N{hw}C"),
        feature_group_count=groups,
    )


def _biased(y: Array, params: Conv) -> Array:
    return y if params.b is None else y + params.b


def _bias_bwd(b: Array | None, dy: Array) -> Array | None:
    return None if b is None else dy.sum(tuple(range(dy.ndim - 1)))


def _sequence_example(key: Array) -> tuple[Conv, Array]:
    """Eight positions, which no stride here divides evenly, of four channels in two groups."""
    kw, kb, kx = jax.random.split(key, 3)
    params = Conv(jax.random.normal(kw, (3, 2, 6)), jax.random.normal(kb, (6,)))
    return params, jax.random.normal(kx, (2, 8, 4)).at[0, 0].set(0.0)


def _image_example(key: Array) -> tuple[Conv, Array]:
    """Images higher than wide, a kernel wider than high, four channels in two groups."""
    kw, kb, kx = jax.random.split(key, 3)
    params = Conv(jax.random.normal(kw, (2, 3, 2, 6)), jax.random.normal(kb, (6,)))
    return params, jax.random.normal(kx, (3, 7, 5, 4)).at[0, 0, 0].set(0.0)


def _spreading_example(key: Array) -> tuple[Conv, Array]:
    kw, kb, kx = jax.random.split(key, 3)
    params = Conv(jax.random.normal(kw, (2, 3, 3, 4)), jax.random.normal(kb, (6,)))
    return params, jax.random.normal(kx, (3, 4, 5, 4)).at[0, 0, 0].set(0.0)


conv1d = Op(
    conv1d_fwd,
    conv1d_bwd,
    example=_sequence_example,
    settings=({"stride": 3, "padding": "causal", "dilation": 2, "groups": 2},),
)
conv2d = Op(
    conv2d_fwd,
    conv2d_bwd,
    example=_image_example,
    settings=(
        {"padding": "same", "groups": 2},
        {"stride": (2, 3), "padding": ((2, 0), (1, 3)), "dilation": (2, 1), "groups": 2},
    ),
)
conv2d_transpose = Op(
    conv2d_transpose_fwd,
    conv2d_transpose_bwd,
    example=_spreading_example,
    settings=({"stride": 2, "padding": ((0, 1), (2, 0)), "groups": 2, "output_padding": 1},),
)
