"""Rows of pooling and unpooling; settings that fit inputs of any size, with one to three axes."""

import numpy as np

from jaxnn.ops import adaptive_pooling, pooling, unpooling
from rows import Row
from rows.convolution import channels_first, each, image, padded, patches, sequence, volume


def windows(x, window, stride=None, padding=0, value=0.0, **static):
    """(N, places ..., taps, C)."""
    u = patches(x, window, stride or window, padding, value=value, **static)
    axes = x.ndim - 2
    return u.reshape(*u.shape[: 1 + axes], -1, u.shape[-1])


def max_pool(x, **static):
    return windows(x, value=-np.inf, **static).max(-2)


def average_pool(x, count_include_pad=True, divisor=None, padding=0, **static):
    total = windows(x, padding=padding, **static).sum(-2)
    if divisor is not None:
        return total / divisor
    ones = np.ones_like(x)
    if count_include_pad:
        ends = [each(pair, 2) for pair in each(padding, x.ndim - 2)]
        ones, padding = np.pad(ones, [(0, 0), *ends, (0, 0)], constant_values=1), 0
        # A window that starts in the padding after x is none, though of these ones it would be.
        kept = tuple(slice(n) for n in total.shape)
        return total / windows(ones, padding=0, **static).sum(-2)[kept]
    return total / windows(ones, padding=padding, **static).sum(-2)


def adaptive(reduce):
    def pooled(x, size):
        for axis, n in enumerate(each(size, x.ndim - 2), 1):
            h = x.shape[axis]
            ends = [(int(np.floor(o * h / n)), int(np.ceil((o + 1) * h / n))) for o in range(n)]
            x = np.stack([reduce(x.take(range(a, b), axis), axis=axis) for a, b in ends], axis)
        return x

    return pooled


def max_unpool(y, indices, size):
    x = np.zeros((len(y), np.prod(size), y.shape[-1]))
    for (n, *at, c), i in np.ndenumerate(indices):
        x[n, i, c] += y[n, *at, c]
    return x.reshape(len(y), *size, -1)


def maxima(rng, shape):
    """Of two by three windows over four by seven positions, no two of a channel at one."""
    n, c = min(shape[0], 3), 1 + shape[1] % 3
    indices = [[rng.permutation(28)[:6] for _ in range(c)] for _ in range(n)]
    indices = np.array(indices, int).reshape(n, c, 2, 3)
    return rng.normal(size=(n, 2, 3, c)), np.moveaxis(indices, 1, -1)


def torch_pool(name, value):
    """A setting of padding that differs from end to end, as padding before."""

    def pool(torch, x, window, stride=None, padding=0, **static):
        axes = x.ndim - 2
        if isinstance(padding, int):
            x, static = channels_first(x), {"padding": padding, **static}
        else:
            x = padded(torch, x, padding, value)
        if "divisor" in static:
            static["divisor_override"] = static.pop("divisor")
        pooled = getattr(torch.nn.functional, f"{name}_pool{axes}d")(x, window, stride, **static)
        return pooled.moveaxis(1, -1)

    return pool


def torch_adaptive(name):
    def pool(torch, x, size):
        pooled = getattr(torch.nn.functional, f"adaptive_{name}_pool{x.ndim - 2}d")
        return pooled(channels_first(x), size).moveaxis(1, -1)

    return pool


def torch_unpool(torch, y, indices, size):
    y, indices = channels_first(y), channels_first(indices)
    return torch.nn.functional.max_unpool2d(y, indices, 2, output_size=size).moveaxis(1, -1)


def drawn(of):
    return lambda rng, shape: (of(rng, shape),)


OVERLAPPING = {"window": (3, 2), "stride": (2, 1), "padding": ((1, 2), (1, 0))}
DILATED = {"window": 2, "stride": 2, "dilation": 2, "ceil_mode": True}
HALF_FILLED = {"window": 3, "stride": 2, "padding": 1, "ceil_mode": True}
ROWS = {
    "max_pool": Row(
        pooling.max_pool, OVERLAPPING, max_pool, drawn(image), torch_pool("max", -np.inf)
    ),
    "max_pool, dilated": Row(
        pooling.max_pool, DILATED, max_pool, drawn(sequence), torch_pool("max", -np.inf)
    ),
    "max_pool, of volumes": Row(
        pooling.max_pool,
        {"window": 2, "ceil_mode": True},
        max_pool,
        drawn(volume),
        torch_pool("max", -np.inf),
    ),
    "average_pool": Row(
        pooling.average_pool, OVERLAPPING, average_pool, drawn(image), torch_pool("avg", 0.0)
    ),
    "average_pool, with padding counted": Row(
        pooling.average_pool, HALF_FILLED, average_pool, drawn(sequence), torch_pool("avg", 0.0)
    ),
    "average_pool, without it": Row(
        pooling.average_pool,
        {**HALF_FILLED, "count_include_pad": False},
        average_pool,
        drawn(image),
        torch_pool("avg", 0.0),
    ),
    "average_pool, divided": Row(
        pooling.average_pool,
        {"window": 3, "stride": 1, "divisor": 2},
        average_pool,
        drawn(image),
        torch_pool("avg", 0.0),
    ),
    "average_pool, dilated": Row(pooling.average_pool, DILATED, average_pool, drawn(image)),
    "max_unpool": Row(unpooling.max_unpool, {"size": (4, 7)}, max_unpool, maxima, torch_unpool),
    "global_average_pool": Row(
        adaptive_pooling.global_average_pool,
        {},
        lambda x: x.mean((1, 2)),
        drawn(image),
        lambda torch, x: x.mean((1, 2)),
    ),
    "global_max_pool": Row(
        adaptive_pooling.global_max_pool,
        {},
        lambda x: x.max((1, 2, 3)),
        drawn(volume),
        lambda torch, x: x.flatten(1, -2).max(1).values,
    ),
    "adaptive_average_pool": Row(
        adaptive_pooling.adaptive_average_pool,
        {"size": (4, 2)},
        adaptive(np.mean),
        drawn(image),
        torch_adaptive("avg"),
    ),
    "adaptive_max_pool": Row(
        adaptive_pooling.adaptive_max_pool,
        {"size": (4, 2)},
        adaptive(np.max),
        drawn(image),
        torch_adaptive("max"),
    ),
    "adaptive_max_pool, of volumes": Row(
        adaptive_pooling.adaptive_max_pool,
        {"size": 2},
        adaptive(np.max),
        drawn(volume),
        torch_adaptive("max"),
    ),
}
