"""Rows of upsampling, the pixel shuffle and padding."""

import numpy as np

from jaxnn.ops import padding, resize
from rows import Row
from rows.convolution import both_ends, channels_first, each, image, padded, sequence, volume


def nearest(x, size, exact=False):
    """The position whose cell a new one's start, or middle, lies in: counted up."""
    for axis, n in enumerate(each(size, x.ndim - 2), 1):
        h, shift = x.shape[axis], 0.5 if exact else 0.0
        at = [max(i for i in range(h) if i * n <= (o + shift) * h) for o in range(n)]
        x = x.take(at, axis)
    return x


def linear(x, size, align_corners=False):
    for axis, n in enumerate(each(size, x.ndim - 2), 1):
        h = x.shape[axis]
        at = np.linspace(0, h - 1, n) if align_corners else (np.arange(n) + 0.5) * h / n - 0.5
        x = np.apply_along_axis(lambda v, at=at, h=h: np.interp(at, np.arange(h), v), axis, x)
    return x


def shuffle(x, factor):
    n, h, w, c = x.shape
    y = np.zeros((n, factor * h, factor * w, c // factor**2))
    for i, j in np.ndindex(factor, factor):
        y[:, i::factor, j::factor] = x[..., i * factor + j :: factor**2]
    return y


def unshuffle(x, factor):
    n, h, w, c = x.shape
    y = np.zeros((n, h // factor, w // factor, c * factor**2))
    for i, j in np.ndindex(factor, factor):
        y[..., i * factor + j :: factor**2] = x[:, i::factor, j::factor]
    return y


def pad(x, padding, mode="constant", value=0.0):
    """The padded input, filled position by position."""
    for axis, (lo, hi) in enumerate(both_ends(padding, x.ndim - 2), 1):
        h, parts = x.shape[axis], []
        for i in range(-lo, h + hi):
            at = {
                "constant": i,
                "replicate": min(max(i, 0), h - 1),
                "circular": i % h,
                "reflect": h - 1 - abs(h - 1 - abs(i)),
            }[mode]
            inside = 0 <= at < h
            parts.append(x.take(at, axis) if inside else np.full_like(x.take(0, axis), value))
        x = np.stack(parts, axis)
    return x


def interpolate(mode):
    def peer(torch, x, size, exact=False, align_corners=None):
        name = {"linear": ["linear", "bilinear", "trilinear"][x.ndim - 3]}.get(mode, mode)
        y = torch.nn.functional.interpolate(
            channels_first(x), size, mode=name + "-exact" * exact, align_corners=align_corners
        )
        return y.moveaxis(1, -1)

    return peer


def torch_pad(torch, x, padding, mode="constant", value=0.0):
    if mode == "constant":
        return padded(torch, x, padding, value).moveaxis(1, -1)
    flat = [n for pair in reversed(both_ends(padding, x.ndim - 2)) for n in pair]
    return torch.nn.functional.pad(channels_first(x), flat, mode).moveaxis(1, -1)


def torch_shuffle(name):
    return lambda torch, x, factor: getattr(torch.nn.functional, name)(
        channels_first(x), factor
    ).moveaxis(1, -1)


def drawn(of):
    return lambda rng, shape: (of(rng, shape),)


ROWS = {
    "upsample_nearest": Row(
        resize.upsample_nearest,
        {"factor": 3},
        lambda x, factor: np.kron(x, np.ones((1, factor, factor, 1))),
        drawn(image),
        lambda torch, x, factor: torch.nn.functional.interpolate(
            channels_first(x), scale_factor=factor, mode="nearest"
        ).moveaxis(1, -1),
    ),
    "upsample_nearest, to a size": Row(
        resize.upsample_nearest, {"size": 7}, nearest, drawn(volume), interpolate("nearest")
    ),
    "upsample_nearest, exact": Row(
        resize.upsample_nearest,
        {"size": 5, "exact": True},
        nearest,
        drawn(sequence),
        interpolate("nearest"),
    ),
    "upsample_linear": Row(
        resize.upsample_linear, {"size": (7, 3)}, linear, drawn(image), interpolate("linear")
    ),
    "upsample_linear, corners aligned": Row(
        resize.upsample_linear,
        {"size": 7, "align_corners": True},
        linear,
        drawn(sequence),
        interpolate("linear"),
    ),
    "upsample_linear, of volumes": Row(
        resize.upsample_linear, {"size": 2}, linear, drawn(volume), interpolate("linear")
    ),
    "pixel_shuffle": Row(
        resize.pixel_shuffle,
        {"factor": 2},
        shuffle,
        lambda rng, shape: (image(rng, shape, 8),),
        torch_shuffle("pixel_shuffle"),
    ),
    "pixel_unshuffle": Row(
        resize.pixel_unshuffle,
        {"factor": 2},
        unshuffle,
        lambda rng, shape: (np.repeat(image(rng, shape), 2, 2).repeat(2, 1),),
        torch_shuffle("pixel_unshuffle"),
    ),
    "pad": Row(
        padding.pad,
        {"padding": ((0, 2), (1, 0)), "value": 1.5},
        pad,
        drawn(image),
        torch_pad,
    ),
    "pad, reflected": Row(
        padding.pad,
        {"padding": ((2, 1), (0, 2)), "mode": "reflect"},
        pad,
        drawn(image),
        torch_pad,
    ),
    "pad, replicated": Row(
        padding.pad, {"padding": 3, "mode": "replicate"}, pad, drawn(volume), torch_pad
    ),
    "pad, circular": Row(
        padding.pad, {"padding": 2, "mode": "circular"}, pad, drawn(sequence), torch_pad
    ),
}
