"""Rows of convolution, its transpose and unfolding; inputs that settings of any row fit."""

import numpy as np

from jaxnn.ops import convolution, unfold
from jaxnn.ops.convolution import Conv
from rows import Row


def sequence(rng, shape, channels=2):
    """(N, T, C) of 3 to 6 positions."""
    return image(rng, shape, channels)[:, 0]


def image(rng, shape, channels=2):
    """(N, H, W, C) of odd and even sizes from 3 to 10."""
    n, h, w = (*shape, 2)[:3]
    return rng.normal(size=(1 + n % 3, 2 + h, 3 + w % 4, channels))


def volume(rng, shape, channels=2):
    """(N, D, H, W, C) of 3 to 5 positions along each axis."""
    n, h, w = (*shape, 2)[:3]
    return rng.normal(size=(1 + n % 2, 3, 3 + h % 3, 3 + w % 2, channels))


def kernel(rng, *shape):
    return Conv(rng.normal(size=shape), rng.normal(size=shape[-1]))


def each(setting, axes):
    """A setting for every axis."""
    return setting if isinstance(setting, tuple) else (setting,) * axes


def both_ends(padding, axes):
    """(before, after) for every axis."""
    return [each(ends, 2) for ends in each(padding, axes)]


def starts(size, ends, k, stride, dilation, ceil_mode):
    """Where windows start in the padded input, found one by one."""
    span, length = dilation * (k - 1) + 1, size + sum(ends)
    found = [0]
    while found[-1] + stride + span <= length:
        found.append(found[-1] + stride)
    if ceil_mode and found[-1] + span < length and found[-1] + stride < size + ends[0]:
        found.append(found[-1] + stride)
    return np.array(found)


def patches(x, k, stride=1, padding=0, dilation=1, value=0.0, ceil_mode=False):
    """(N, places ..., taps ..., C): NumPy's indexing, no sliding."""
    axes = x.ndim - 2
    ends = both_ends(padding, axes)
    k, stride, dilation = (each(s, axes) for s in (k, stride, dilation))
    beyond = [(lo, hi + s) for (lo, hi), s in zip(ends, stride, strict=True)]
    u = np.pad(x, [(0, 0), *beyond, (0, 0)], constant_values=value)
    for a in range(axes):
        first = starts(x.shape[a + 1], ends[a], k[a], stride[a], dilation[a], ceil_mode)
        u = np.take(u, first[:, None] + np.arange(k[a]) * dilation[a], 2 * a + 1)
    return np.moveaxis(u, [2 * a + 2 for a in range(axes)], [1 + axes + a for a in range(axes)])


def conv(p, x, stride=1, padding=0, dilation=1, groups=1):
    u = patches(x, p.w.shape[:-2], stride, padding, dilation)
    u = u.reshape(*u.shape[:-1], groups, -1)
    w = p.w.reshape(*p.w.shape[:-1], groups, -1)
    k = "ijk"[: x.ndim - 2]
    y = np.einsum(f"...{k}gc,{k}cgo->...go", u, w)
    return y.reshape(*y.shape[:-2], -1) + p.b


def causal(p, x, padding, dilation, **static):
    assert padding == "causal"
    return conv(p, x, padding=((dilation * (p.w.shape[0] - 1), 0),), dilation=dilation, **static)


def transpose(p, x, stride=1, padding=0, groups=1, output_padding=0, dilation=1):
    """Each input adds its kernel to the outputs around it."""
    axes = x.ndim - 2
    s, d, more = (each(setting, axes) for setting in (stride, dilation, output_padding))
    taps, (out, _) = p.w.shape[:-2], p.w.shape[-2:]
    spans = [d[a] * (taps[a] - 1) + 1 for a in range(axes)]
    size = [(x.shape[a + 1] - 1) * s[a] + spans[a] + more[a] for a in range(axes)]
    full = np.zeros((len(x), *size, groups, out))
    xg = x.reshape(*x.shape[:-1], groups, -1)
    wg = p.w.reshape(*taps, out, groups, -1)
    for at in np.ndindex(x.shape[1:-1]):
        for tap in np.ndindex(taps):
            to = tuple(at[a] * s[a] + tap[a] * d[a] for a in range(axes))
            full[:, *to] += np.einsum("ngc,ogc->ngo", xg[:, *at], wg[tap])
    y = full.reshape(*full.shape[:-2], -1)
    ends = both_ends(padding, axes)
    inner = [slice(lo, n - hi) for n, (lo, hi) in zip(size, ends, strict=True)]
    return y[:, *inner] + p.b


def fold(u, size, kernel, stride, padding, dilation):
    """Every value added where indices of positions, unfolded, say that it came from."""
    n, c = len(u), u.shape[-1] // np.prod(kernel)
    origin = np.arange(1, 1 + np.prod(size)).reshape(1, *size, 1)
    origin = patches(origin, kernel, stride, padding, dilation)[0, ..., 0].ravel()
    x = np.zeros((n, 1 + np.prod(size), c))
    np.add.at(x, (slice(None), origin), u.reshape(n, -1, c))
    return x[:, 1:].reshape(n, *size, c)


def channels_first(x):
    return x.moveaxis(-1, 1)


def padded(torch, x, padding, value=0.0):
    """x (N, ..., C) with channels first, padded at the ends of its positions."""
    ends = both_ends(padding, x.ndim - 2)
    flat = [n for pair in reversed(ends) for n in pair]
    return torch.nn.functional.pad(channels_first(x), flat, value=value)


def torch_conv(torch, p, x, stride=1, padding=0, dilation=1, groups=1):
    if padding == "causal":
        padding = ((dilation * (p.w.shape[0] - 1), 0),)
    convolve = getattr(torch.nn.functional, f"conv{x.ndim - 2}d")
    w = p.w.moveaxis(-1, 0).moveaxis(-1, 1)
    y = convolve(padded(torch, x, padding), w, p.b, stride, 0, dilation, groups)
    return y.moveaxis(1, -1)


def torch_transpose(torch, p, x, stride, groups, output_padding, dilation=1, padding=0):
    axes = x.ndim - 2
    convolve = getattr(torch.nn.functional, f"conv_transpose{axes}d")
    w = p.w.moveaxis(-1, 0).moveaxis(-1, 1)
    y = convolve(channels_first(x), w, p.b, stride, 0, output_padding, groups, dilation)
    y = y.moveaxis(1, -1)
    ends = both_ends(padding, axes)
    inner = [slice(lo, n - hi) for n, (lo, hi) in zip(y.shape[1:], ends, strict=False)]
    return y[:, *inner]


def by_channel(torch, u, kernel):
    """Patches, the values of a channel together, (N, C K, places): as PyTorch has them."""
    n, *_, c = u.shape
    return u.reshape(n, -1, np.prod(kernel), c // np.prod(kernel)).permute(0, 3, 2, 1).flatten(1, 2)


def torch_unfold(torch, x, kernel, stride, padding, dilation):
    u = torch.nn.functional.unfold(padded(torch, x, padding), kernel, dilation, 0, stride)
    places = patches(x.detach().double().numpy(), kernel, stride, padding, dilation).shape[1:3]
    n, c = len(x), x.shape[-1]
    return u.reshape(n, c, -1, *places).permute(0, 3, 4, 2, 1).flatten(3)


def torch_fold(torch, u, size, kernel, stride, padding, dilation):
    full = [h + sum(ends) for h, ends in zip(size, padding, strict=True)]
    u = by_channel(torch, u, kernel)
    x = torch.nn.functional.fold(u, full, kernel, dilation, 0, stride).moveaxis(1, -1)
    inner = [slice(lo, lo + h) for h, (lo, _) in zip(size, padding, strict=True)]
    return x[:, *inner]


def transposed_kernel(rng, *shape):
    return kernel(rng, *shape)._replace(b=rng.normal(size=6))


WIDE = {"stride": (2, 3), "padding": ((2, 0), (1, 3)), "dilation": (2, 1)}
ROWS = {
    "conv1d": Row(
        convolution.conv1d,
        {"stride": 3, "padding": "causal", "dilation": 2, "groups": 2},
        causal,
        lambda rng, shape: (kernel(rng, 3, 2, 6), sequence(rng, shape, 4)),
        torch_conv,
    ),
    "conv2d": Row(
        convolution.conv2d,
        {**WIDE, "groups": 2},
        conv,
        lambda rng, shape: (kernel(rng, 2, 3, 2, 6), image(rng, shape, 4)),
        torch_conv,
    ),
    "conv3d": Row(
        convolution.conv3d,
        {"stride": (2, 1, 2), "padding": 1, "dilation": (1, 1, 2), "groups": 2},
        conv,
        lambda rng, shape: (kernel(rng, 2, 1, 3, 2, 6), volume(rng, shape, 4)),
        torch_conv,
    ),
    "conv1d_transpose": Row(
        convolution.conv1d_transpose,
        {"stride": 3, "padding": ((1, 0),), "groups": 2, "output_padding": 2},
        transpose,
        lambda rng, shape: (transposed_kernel(rng, 3, 3, 4), sequence(rng, shape, 4)),
        torch_transpose,
    ),
    "conv2d_transpose": Row(
        convolution.conv2d_transpose,
        {"stride": 2, "padding": ((0, 1), (2, 0)), "dilation": 2, "groups": 2, "output_padding": 1},
        transpose,
        lambda rng, shape: (transposed_kernel(rng, 2, 3, 3, 4), image(rng, shape, 4)),
        torch_transpose,
    ),
    "conv3d_transpose": Row(
        convolution.conv3d_transpose,
        {"stride": (2, 1, 2), "dilation": (1, 1, 2), "groups": 2, "output_padding": (1, 0, 1)},
        transpose,
        lambda rng, shape: (transposed_kernel(rng, 2, 1, 3, 3, 4), volume(rng, shape, 4)),
        torch_transpose,
    ),
    "unfold": Row(
        unfold.unfold,
        {"kernel": (2, 3), **WIDE},
        lambda x, kernel, **static: (u := patches(x, kernel, **static)).reshape(*u.shape[:3], -1),
        lambda rng, shape: (image(rng, shape),),
        torch_unfold,
    ),
    "fold": Row(
        unfold.fold,
        {"size": (7, 5), "kernel": (2, 3), **WIDE},
        fold,
        lambda rng, shape: (rng.normal(size=(1 + shape[0] % 3, 4, 3, 6 * shape[1])),),
        torch_fold,
    ),
    "conv2d_unfold": Row(
        unfold.conv2d_unfold,
        {**WIDE, "groups": 2},
        conv,
        lambda rng, shape: (kernel(rng, 2, 3, 2, 6), image(rng, shape, 4)),
        torch_conv,
    ),
}
