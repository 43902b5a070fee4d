"""Rows of convolution, unfolding and pooling; images from shapes, settings that fit any of them."""

import numpy as np

from jaxnn.ops import convolution, pooling, unfold
from jaxnn.ops.convolution import Conv
from rows import Row


def image(rng, shape, channels=2):
    """(N, H, W, C) of odd and even sizes from 3 to 10."""
    n, h, w = (*shape, 2)[:3]
    return rng.normal(size=(1 + n % 3, 2 + h, 3 + w % 4, channels))


def kernel(rng, *shape):
    return Conv(rng.normal(size=shape), rng.normal(size=shape[-1]))


def taps(size, padding, k, stride, dilation):
    """For each place along an axis, the positions under its taps in the padded input."""
    places = (size + sum(padding) - dilation * (k - 1) - 1) // stride + 1
    return np.arange(places)[:, None] * stride + np.arange(k) * dilation


def patches(x, k, stride, padding, dilation=(1, 1), value=0.0):
    """(N, OH, OW, KH, KW, C): NumPy's indexing, no sliding."""
    padded = np.pad(x, [(0, 0), *padding, (0, 0)], constant_values=value)
    rows, columns = (
        taps(x.shape[a + 1], padding[a], k[a], stride[a], dilation[a]) for a in range(2)
    )
    return padded[:, rows[:, None, :, None], columns[None, :, None, :]]


def conv2d(p, x, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1):
    u = patches(x, p.w.shape[:2], stride, padding, dilation)
    u = u.reshape(*u.shape[:-1], groups, -1)
    w = p.w.reshape(*p.w.shape[:-1], groups, -1)
    y = np.einsum("nabijgc,ijcgo->nabgo", u, w)
    return y.reshape(*y.shape[:3], -1) + p.b


def conv1d(p, x, stride, padding, dilation, groups):
    """As a convolution over images one position high."""
    assert padding == "causal"
    before = dilation * (p.w.shape[0] - 1)
    y = conv2d(
        Conv(p.w[None], p.b), x[:, None], (1, stride), ((0, 0), (before, 0)), (1, dilation), groups
    )
    return y[:, 0]


def conv2d_transpose(p, x, stride, padding, groups, output_padding):
    """Each input adds its kernel to the outputs around it."""
    (top, bottom), (left, right) = padding
    n, h, w, _ = x.shape
    kh, kw, out, _ = p.w.shape
    full = np.zeros((n, (h - 1) * stride + kh, (w - 1) * stride + kw, groups, out))
    full = np.pad(full, [(0, 0), (0, output_padding), (0, output_padding), (0, 0), (0, 0)])
    xg = x.reshape(n, h, w, groups, -1)
    wg = p.w.reshape(kh, kw, out, groups, -1)
    for i in range(h):
        for j in range(w):
            spread = np.einsum("ngc,abogc->nabgo", xg[:, i, j], wg)
            full[:, i * stride : i * stride + kh, j * stride : j * stride + kw] += spread
    y = full.reshape(*full.shape[:3], -1)
    return y[:, top : y.shape[1] - bottom, left : y.shape[2] - right] + p.b


def channels_first(x):
    return x.moveaxis(-1, 1)


def torch_conv2d(torch, p, x, stride, padding, dilation=1, groups=1):
    if padding == "same":
        padding = [(k - 1) // 2 for k in p.w.shape[:2]]
        assert all(k % 2 for k in p.w.shape[:2])
    else:
        (top, bottom), (left, right) = padding
        x, padding = torch.nn.functional.pad(x, (0, 0, left, right, top, bottom)), 0
    y = torch.nn.functional.conv2d(
        channels_first(x), p.w.permute(3, 2, 0, 1), p.b, stride, padding, dilation, groups
    )
    return y.moveaxis(1, -1)


def torch_conv1d(torch, p, x, stride, padding, dilation, groups):
    x = torch.nn.functional.pad(x, (0, 0, dilation * (p.w.shape[0] - 1), 0))
    y = torch.nn.functional.conv1d(
        channels_first(x), p.w.permute(2, 1, 0), p.b, stride, 0, dilation, groups
    )
    return y.moveaxis(1, -1)


def torch_conv2d_transpose(torch, p, x, stride, padding, groups, output_padding):
    (top, bottom), (left, right) = padding
    w = p.w.permute(3, 2, 0, 1)
    y = torch.nn.functional.conv_transpose2d(
        channels_first(x), w, p.b, stride, 0, output_padding, groups
    )
    return y[:, :, top : y.shape[2] - bottom, left : y.shape[3] - right].moveaxis(1, -1)


def torch_pool(name):
    def pool(torch, x, window=(2, 2), stride=None, padding=((0, 0), (0, 0))):
        value = -np.inf if name == "max_pool2d" else 0.0
        (top, bottom), (left, right) = padding
        x = torch.nn.functional.pad(x, (0, 0, left, right, top, bottom), value=value)
        pooled = getattr(torch.nn.functional, name)(channels_first(x), window, stride)
        return pooled.moveaxis(1, -1)

    return pool


def pool(reduce, value):
    def pooled(x, window=(2, 2), stride=None, padding=((0, 0), (0, 0))):
        return reduce(patches(x, window, stride or window, padding, value=value), axis=(3, 4))

    return pooled


WIDE = {"stride": (2, 3), "padding": ((2, 0), (1, 3)), "dilation": (2, 1)}
OVERLAPPING = {"window": (3, 2), "stride": (2, 1), "padding": ((1, 2), (1, 0))}
ROWS = {
    "conv1d": Row(
        convolution.conv1d,
        {"stride": 3, "padding": "causal", "dilation": 2, "groups": 2},
        conv1d,
        lambda rng, shape: (kernel(rng, 3, 2, 6), image(rng, shape, 4)[:, 0]),
        torch_conv1d,
    ),
    "conv2d": Row(
        convolution.conv2d,
        {**WIDE, "groups": 2},
        conv2d,
        lambda rng, shape: (kernel(rng, 2, 3, 2, 6), image(rng, shape, 4)),
        torch_conv2d,
    ),
    "conv2d_transpose": Row(
        convolution.conv2d_transpose,
        {"stride": 2, "padding": ((0, 1), (2, 0)), "groups": 2, "output_padding": 1},
        conv2d_transpose,
        lambda rng, shape: (
            kernel(rng, 2, 3, 3, 4)._replace(b=rng.normal(size=6)),
            image(rng, shape, 4),
        ),
        torch_conv2d_transpose,
    ),
    "unfold": Row(
        unfold.unfold,
        {"kernel": (2, 3), **WIDE},
        lambda x, kernel, **static: (u := patches(x, kernel, **static)).reshape(*u.shape[:3], -1),
        lambda rng, shape: (image(rng, shape),),
    ),
    "conv2d_unfold": Row(
        unfold.conv2d_unfold,
        WIDE,
        conv2d,
        lambda rng, shape: (kernel(rng, 2, 3, 2, 5), image(rng, shape)),
        torch_conv2d,
    ),
    "max_pool": Row(
        pooling.max_pool,
        OVERLAPPING,
        pool(np.max, -np.inf),
        lambda rng, shape: (image(rng, shape),),
        torch_pool("max_pool2d"),
    ),
    "average_pool": Row(
        pooling.average_pool,
        OVERLAPPING,
        pool(np.mean, 0.0),
        lambda rng, shape: (image(rng, shape),),
        torch_pool("avg_pool2d"),
    ),
    "global_average_pool": Row(
        pooling.global_average_pool,
        {},
        lambda x: x.mean((1, 2)),
        lambda rng, shape: (image(rng, shape),),
        lambda torch, x: x.mean((1, 2)),
    ),
    "global_max_pool": Row(
        pooling.global_max_pool,
        {},
        lambda x: x.max((1, 2)),
        lambda rng, shape: (image(rng, shape),),
        lambda torch, x: x.amax((1, 2)),
    ),
    "upsample_nearest": Row(
        pooling.upsample_nearest,
        {"factor": 3},
        lambda x, factor: np.kron(x, np.ones((1, factor, factor, 1))),
        lambda rng, shape: (image(rng, shape),),
        lambda torch, x, factor: torch.nn.functional.interpolate(
            channels_first(x), scale_factor=factor, mode="nearest"
        ).moveaxis(1, -1),
    ),
}
