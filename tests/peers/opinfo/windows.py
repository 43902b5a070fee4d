"""Convolution, pooling, unfolding, upsampling and padding."""

import functools
import math

from jaxnn.ops import adaptive_pooling, convolution, padding, pooling, resize
from jaxnn.ops.convolution import Conv
from jaxnn.ops.unfold import unfold
from jaxnn.ops.unpooling import max_pool_indices, max_unpool

from . import Call, CannotSay, only


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


def pool(op, axes, x, kernel_size, stride, padding, **settings):
    x, back = batched(x, axes)
    settings["window"] = one_or_all(kernel_size, axes)
    settings["stride"] = one_or_all(stride, axes) if stride else None
    return Call(op, (x,), settings | {"padding": around(padding, axes)}, back)


def max_pool(
    axes,
    x,
    kernel_size,
    stride=None,
    padding=0,
    dilation=1,
    ceil_mode=False,
    return_indices=False,
):
    settings = {"dilation": one_or_all(dilation, axes), "ceil_mode": ceil_mode}
    call = pool(pooling.max_pool, axes, x, kernel_size, stride, padding, **settings)
    return call._replace(step=max_pool_indices) if return_indices else call


def average_pool(
    axes,
    x,
    kernel_size,
    stride=None,
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
):
    settings = {"ceil_mode": ceil_mode, "count_include_pad": count_include_pad}
    settings["divisor"] = divisor_override
    return pool(pooling.average_pool, axes, x, kernel_size, stride, padding, **settings)


def adaptive(op, axes, x, output_size, return_indices=False):
    only("indices", return_indices=(return_indices, False))
    sizes = zip(one_or_all(output_size, axes), x.shape[-axes:], strict=True)
    x, back = batched(x, axes)
    return Call(op, (x,), {"size": tuple(h if n is None else n for n, h in sizes)}, back)


def unpool(axes, y, indices, kernel_size, stride=None, padding=0, output_size=None):
    if output_size is None:
        k, p = one_or_all(kernel_size, axes), one_or_all(padding, axes)
        s = one_or_all(stride, axes) if stride else k
        sizes = zip(y.shape[-axes:], s, p, k, strict=True)
        output_size = tuple((n - 1) * s - 2 * p + k for n, s, p, k in sizes)
    rows = indices.reshape(-1, math.prod(indices.shape[-axes:])).tolist()
    if any(len(set(row)) < len(row) for row in rows):
        raise CannotSay("repeats")
    (y, back), (indices, _) = batched(y, axes), batched(indices, axes)
    return Call(max_unpool, (y, indices), {"size": tuple(output_size[-axes:])}, back)


def unfold_(x, kernel_size, dilation=1, padding=0, stride=1):
    alone, (x, _) = x.ndim == 3, batched(x, 2)
    c, taps = x.shape[-1], one_or_all(kernel_size, 2)
    settings = {
        "kernel": taps,
        "stride": one_or_all(stride, 2),
        "padding": around(padding, 2),
        "dilation": one_or_all(dilation, 2),
    }

    def back(u):
        u = u.unflatten(-1, (math.prod(taps), c)).permute(0, 4, 3, 1, 2)  # channels before taps
        u = u.flatten(1, 2).flatten(2)
        return u[0] if alone else u

    return Call(unfold, (x,), settings, back)


def pad_(x, pad, mode="constant", value=None):
    """The last axes are positions, all before them examples."""
    axes = len(pad) // 2
    if not 1 <= axes <= min(3, x.ndim):
        raise CannotSay("axes")
    shape = x.shape[: x.ndim - axes]
    rows = x.reshape(math.prod(shape), *x.shape[x.ndim - axes :], 1)
    sides = tuple(zip(pad[-2::-2], pad[::-2], strict=True))
    settings = {"padding": sides, "mode": mode, "value": 0.0 if value is None else float(value)}
    return Call(padding.pad, (rows,), settings, lambda y: y.reshape(*shape, *y.shape[1:-1]))


def interpolate(
    x,
    size=None,
    scale_factor=None,
    mode="nearest",
    align_corners=None,
    recompute_scale_factor=None,
    antialias=False,
):
    axes = x.ndim - 2
    only(antialias=(antialias, False))
    if size is None:
        factors = one_or_all(scale_factor, axes)
        exact = [h * f for h, f in zip(x.shape[2:], factors, strict=True)]
        size = tuple(int(n) for n in exact)
        if not recompute_scale_factor and mode != "area" and tuple(exact) != size:
            raise CannotSay("setting", "scale_factor that gives no whole size")
    settings = {"size": one_or_all(size, axes)}
    x, back = batched(x, axes)
    if mode == "area":
        return Call(adaptive_pooling.adaptive_average_pool, (x,), settings, back)
    if mode in ("nearest", "nearest-exact"):
        settings["exact"] = mode == "nearest-exact"
        return Call(resize.upsample_nearest, (x,), settings, back)
    only(mode=(mode, ("linear", "bilinear", "trilinear")[axes - 1]))
    settings["align_corners"] = bool(align_corners)
    return Call(resize.upsample_linear, (x,), settings, back)


def upsample(mode, x, size=None, scale_factor=None):
    corners = True if mode == "bilinear" else None
    return interpolate(x, size, scale_factor, mode, corners)


def shuffle(op, x, factor):
    shape = x.shape[:-3]
    rows = x.reshape(math.prod(shape), *x.shape[-3:]).movedim(1, -1)

    def back(y):
        y = y.movedim(-1, 1)
        return y.reshape(*shape, *y.shape[1:])

    return Call(op, (rows,), {"factor": factor}, back)


F = "nn.functional."
AXES = (1, 2, 3)
CONV = [convolution.conv1d, convolution.conv2d, convolution.conv3d]
TRANSPOSE = [
    convolution.conv1d_transpose,
    convolution.conv2d_transpose,
    convolution.conv3d_transpose,
]
AVERAGE, LARGEST = adaptive_pooling.adaptive_average_pool, adaptive_pooling.adaptive_max_pool
TABLE = {
    **{f"{F}conv{n}d": functools.partial(conv, CONV[n - 1], n) for n in AXES},
    **{
        f"{F}conv_transpose{n}d": functools.partial(conv_transpose, TRANSPOSE[n - 1], n)
        for n in AXES
    },
    **{f"{F}max_pool{n}d": functools.partial(max_pool, n) for n in AXES},
    **{f"{F}avg_pool{n}d": functools.partial(average_pool, n) for n in AXES},
    **{f"{F}adaptive_avg_pool{n}d": functools.partial(adaptive, AVERAGE, n) for n in AXES},
    **{f"{F}adaptive_max_pool{n}d": functools.partial(adaptive, LARGEST, n) for n in AXES},
    **{f"{F}max_unpool{n}d": functools.partial(unpool, n) for n in AXES},
    F + "unfold": unfold_,
    F + "pad": pad_,
    F + "interpolate": interpolate,
    F + "upsample_nearest": functools.partial(upsample, "nearest"),
    F + "upsample_bilinear": functools.partial(upsample, "bilinear"),
    F + "pixel_shuffle": lambda x, upscale_factor: shuffle(resize.pixel_shuffle, x, upscale_factor),
    F + "pixel_unshuffle": lambda x, downscale_factor: shuffle(
        resize.pixel_unshuffle, x, downscale_factor
    ),
}
