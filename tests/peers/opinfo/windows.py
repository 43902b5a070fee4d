"""Convolution, pooling, unfolding, upsampling."""

import functools

from jaxnn.ops import convolution, pooling
from jaxnn.ops.convolution import Conv
from jaxnn.ops.unfold import unfold

from . import Call, CannotSay, only


def per_axis(value, axes):
    return tuple(value) if isinstance(value, tuple | list) else (value,) * axes


def one_or_all(value, axes):
    """A setting for each axis; PyTorch also takes a tuple of one for all of them."""
    value = tuple(value) if isinstance(value, tuple | list) else (value,)
    return value * axes if len(value) == 1 else value


def around(padding, axes):
    """PyTorch's number for both ends, per axis, as pairs."""
    if isinstance(padding, str):
        return padding
    return tuple((int(p), int(p)) for p in one_or_all(padding, axes))


def batched(x, axes):
    """Channels last, with an axis of examples; and back."""
    alone = x.ndim == axes + 1
    x = x[None] if alone else x
    if x.ndim != axes + 2:
        raise CannotSay("axes")

    def back(y):
        y = y.movedim(-1, 1)
        return y[0] if alone else y

    return x.movedim(1, -1), back


def conv(op, axes, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    x, back = batched(x, axes)
    w = weight.permute(*range(2, axes + 2), 1, 0)
    settings = {
        "stride": one_or_all(stride, axes),
        "padding": around(padding, axes),
        "dilation": one_or_all(dilation, axes),
        "groups": groups,
    }
    return Call(op, (Conv(w, bias), x), settings, back)


def conv_transpose(
    op, axes, x, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
):
    # PyTorch's weights are (C, O / groups, taps ...): those of the convolution.
    call = conv(op, axes, x, weight, bias, stride, padding, dilation, groups)
    return call._replace(
        settings=call.settings | {"output_padding": one_or_all(output_padding, axes)}
    )


def pool(op, axes, x, kernel_size, stride=None, padding=0, ceil_mode=False, **settings):
    x, back = batched(x, axes)
    settings["window"] = one_or_all(kernel_size, axes)
    settings["stride"] = None if stride in (None, [], ()) else one_or_all(stride, axes)
    return Call(op, (x,), settings | {"padding": around(padding, axes)}, back)


def max_pool(
    op,
    axes,
    x,
    kernel_size,
    stride=None,
    padding=0,
    dilation=1,
    ceil_mode=False,
    return_indices=False,
):
    only("indices", return_indices=(return_indices, False))
    only(ceil_mode=(ceil_mode, False), dilation=(one_or_all(dilation, axes), (1,) * axes))
    return pool(op, axes, x, kernel_size, stride, padding)


def average_pool(
    op,
    axes,
    x,
    kernel_size,
    stride=None,
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
):
    only(ceil_mode=(ceil_mode, False), divisor_override=(divisor_override, None))
    only(count_include_pad=(count_include_pad, True))
    return pool(op, axes, x, kernel_size, stride, padding)


def unfold_(x, kernel_size, dilation=1, padding=0, stride=1):
    alone = x.ndim == 3
    x, _ = batched(x, 2)
    c, taps = x.shape[-1], one_or_all(kernel_size, 2)
    settings = {
        "kernel": taps,
        "stride": one_or_all(stride, 2),
        "padding": around(padding, 2),
        "dilation": one_or_all(dilation, 2),
    }

    def back(u):
        u = u.unflatten(-1, (taps[0] * taps[1], c)).movedim(-1, 1)  # channels before taps
        u = u.permute(0, 1, 4, 2, 3)
        u = u.flatten(1, 2).flatten(2)
        return u[0] if alone else u

    return Call(unfold, (x,), settings, back)


F = "nn.functional."
TABLE = {
    F + "conv1d": functools.partial(conv, convolution.conv1d, 1),
    F + "conv2d": functools.partial(conv, convolution.conv2d, 2),
    F + "conv_transpose2d": functools.partial(conv_transpose, convolution.conv2d_transpose, 2),
    F + "max_pool2d": functools.partial(max_pool, pooling.max_pool, 2),
    F + "avg_pool2d": functools.partial(average_pool, pooling.average_pool, 2),
    F + "unfold": unfold_,
}
