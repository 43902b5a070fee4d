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

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.checks import check_integer, check_params
from jaxnn.op import Op
from jaxnn.ops.reductions import widen
from jaxnn.ops.windows import (
    Padding,
    Sizes,
    Windows,
    check_rank,
    patches,
    per_axis,
    placed,
    windows,
)

# Bytes of copies to multiply at a time: what a cache holds, and more than one image of usual sizes,
# alone in a block each of which XLA copies once more, for its layout (jaxlib 0.10.2).
PATCHES = 2**22


class Conv(NamedTuple):
    """Parameters: kernel `w` (taps ..., C / groups, O), and `b` (O,) or None.

    Of a transposed convolution w is (taps ..., O / groups, C): that of the convolution from O to C
    channels whose transpose it is.
    """

    w: Array
    b: Array | None


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
    place = _windows("conv1d", params, x, 1, stride, padding, dilation, groups)
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
    place = _windows("conv1d", *residuals, 1, stride, padding, dilation, groups)
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
    place = _windows("conv2d", params, x, 2, stride, padding, dilation, groups)
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
    place = _windows("conv2d", *residuals, 2, stride, padding, dilation, groups)
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
    place = _transposed_windows(params, x, stride, padding, dilation, groups, output_padding)
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
    place = _transposed_windows(Conv(w, b), x, stride, padding, dilation, groups, output_padding)
    dw = _correlated(dy, x, place, groups)
    return Conv(dw, _bias_bwd(b, dy)), _convolved(dy, w, place, groups)


def _conv_bwd(
    residuals: ConvResiduals, dy: Array, place: Windows, groups: int
) -> tuple[Conv, Array]:
    (w, b), x = residuals
    dw = _correlated(x, dy, place, groups)
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


def _correlated(x: Array, dy: Array, place: Windows, groups: int) -> Array:
    """dw[k] = sum_o x[o s + k d - lo]^T dy[o], the transpose of `_convolved` in w."""
    by_convolution = partial(_convolved_by_dy, place=place, groups=groups)
    if groups > 1:
        return by_convolution(x, dy)
    # XLA's convolution for the CPU takes twice as long (jaxlib 0.10.2).
    by_product = partial(_summed_over_patches, place=place)
    dw: Array = lax.platform_dependent(x, dy, cpu=by_product, default=by_convolution)
    return dw


def _summed_over_patches(x: Array, dy: Array, place: Windows) -> Array:
    """dw[k, j] = sum_(o, i) x[o s + k d - lo, i] dy_j[o, i], with dy_j[i] = dy[(i + lo - j d) / s].

    j are the taps of the last axis, k those of the others, and o, i the positions along them: k
    move x, j move dy. A kernel of 3x3 then takes 3 copies of either where patches take 9 of x: half
    the time (jaxlib 0.10.2). A few images at a time, so that the copies stay in a cache.
    """
    of_x, of_dy = _divided(place, x.shape[-1], dy.shape[-1])
    shape = of_x.size_of_kernel * x.shape[-1], of_dy.size_of_kernel * dy.shape[-1]
    of_an_image = math.prod(of_x.places) * sum(shape) * x.dtype.itemsize
    n, least = len(x), -(-len(x) // max(1, PATCHES // of_an_image))
    pieces = next(count for count in range(least, n + 1) if n % count == 0)
    # Two products at a time, a core each, take four fifths of the time of one over both cores
    # (96 by 4096 by 96; as long where they are wider; jaxlib 0.10.2).
    at_a_time = 1 if pieces % 2 else 2
    images = n // pieces * at_a_time

    def add(block: Array | int, dw: Array) -> Array:
        # Sliced here, not handed to a scan in blocks: XLA would write x and dy a second time, in
        # the scan's shape (jaxlib 0.10.2).
        some_x, some_dy = (lax.dynamic_slice_in_dim(a, block * images, images) for a in (x, dy))
        moved = jnp.concatenate([placed(some_dy, tap, of_dy) for tap in of_dy.taps], -1)
        rows = patches(some_x, of_x).reshape(at_a_time, -1, shape[0])
        columns = moved.reshape(at_a_time, -1, shape[1])
        products = jnp.einsum("bpi,bpj->bij", rows, columns, preferred_element_type=dw.dtype)
        return dw + products.sum(0)

    dw = lax.fori_loop(0, n // images, add, widen(jnp.zeros(shape, dy.dtype)))
    taps = dw.astype(x.dtype).reshape(-1, x.shape[-1], of_dy.size_of_kernel, dy.shape[-1])
    return taps.swapaxes(1, 2).reshape(*place.kernel, x.shape[-1], dy.shape[-1])


def _divided(place: Windows, channels: int, outputs: int) -> tuple[Windows, Windows]:
    """The windows whose taps move x, and those whose taps move dy: those that copy least.

    Either all axes' taps move x or all but the last's, whose positions are then all of x's: many
    more than its places where the stride is not 1.
    """
    axes: list[Any] = list(zip(*place, strict=True))

    def still(places: int) -> tuple[Any, ...]:
        return 1, 1, (0, 0), 1, places, places

    *others, last = axes
    *_, size, places = last
    unmoved = [still(axis[-1]) for axis in others]
    divisions = (axes, [*unmoved, still(places)]), ([*others, still(size)], [*unmoved, last])
    pairs = [tuple(Windows(*zip(*half, strict=True)) for half in pair) for pair in divisions]

    def copies(pair: tuple[Windows, ...]) -> int:
        of_x, of_dy = pair
        widths = of_x.size_of_kernel * channels + of_dy.size_of_kernel * outputs
        return math.prod(of_x.places) * widths

    of_x, of_dy = min(pairs, key=copies)
    return of_x, of_dy


def _convolved_by_dy(x: Array, dy: Array, place: Windows, groups: int) -> Array:
    """A convolution with the examples for channels, the channels for examples, dy for a kernel."""
    hw = "HW"[: len(place.size)]
    padding = []
    for k, d, n, s, h, (lo, _) in zip(
        place.kernel, place.dilation, place.places, place.stride, place.size, place.padding,
        strict=True,
    ):  # fmt: skip
        padding.append((lo, d * (k - 1) + (n - 1) * s + 1 - h - lo))
    # Exchanged in memory: told of it by dimension numbers alone, XLA for the CPU takes a naive
    # loop inside a scan, fifty times slower (jaxlib 0.10.2).
    dw = lax.conv_general_dilated(
        x.swapaxes(0, -1),
        jnp.moveaxis(dy, 0, -2),
        place.dilation,
        padding,
        rhs_dilation=place.stride,
        dimension_numbers=(f"N{hw}C", f"{hw}IO", f"N{hw}C"),
        batch_group_count=groups,
    )
    return jnp.moveaxis(dw, 0, -2)


def _biased(y: Array, params: Conv) -> Array:
    return y if params.b is None else y + params.b


def _bias_bwd(b: Array | None, dy: Array) -> Array | None:
    return None if b is None else dy.sum(tuple(range(dy.ndim - 1)))


def _windows(
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
    _check_kernel(name, params, axes, groups)
    inputs = params.w.shape[-2] * groups
    if x.shape[-1] != inputs:
        raise ValueError(
            f"{name}: x has {x.shape[-1]} channels, w of shape {params.w.shape} takes {inputs} in "
            f"{groups} group(s); they must be equal: check the channels or groups"
        )
    return windows(name, x.shape[1:-1], params.w.shape[:axes], stride, padding, dilation)


def _transposed_windows(
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
    _check_kernel(name, params, 2, groups, transposed=True)
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


def _check_kernel(
    name: str, params: Conv, axes: int, groups: int, transposed: bool = False
) -> None:
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
