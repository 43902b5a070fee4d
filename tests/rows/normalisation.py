"""Rows of the normalisations."""

import numpy as np

from jaxnn.ops import batch_norm as batch_normalisation
from jaxnn.ops import normalisation
from jaxnn.ops.batch_norm import Running
from jaxnn.ops.l2_normalize import l2_normalize
from jaxnn.ops.normalisation import Scale
from rows import Row
from rows.basic import one


def scaled(rng, shape, scale=True, shift=True):
    """Parameters, or None for them, and values whose mean is not 0."""
    numbers = rng.normal(size=(2, shape[-1]))
    params = Scale(
        *(n if there else None for n, there in zip(numbers, (scale, shift), strict=True))
    )
    return params, 2 + rng.normal(size=shape)


def unshifted(rng, shape):
    return scaled(rng, shape, shift=False)


def images(rng, shape):
    """Channels in threes; the positions of a picture or of a sequence."""
    channels = 3 * (1 + shape[-1] % 3)
    return scaled(rng, (shape[0], *shape[2:], 1 + shape[1], channels), scale=False)


def instances(rng, shape):
    return scaled(rng, (shape[0], 2 + shape[1], 1 + shape[-1]), scale=False, shift=False)


def batch(rng, shape):
    running = Running(rng.normal(size=shape[-1]), rng.uniform(0.5, 2.0, shape[-1]))
    params, x = scaled(rng, (2 + shape[0], *shape[1:]))
    return params, running, x


def affine(params, x):
    scale, shift = params
    return x * (1 if scale is None else scale) + (0 if shift is None else shift)


def layer_norm(params, x, eps=1e-5):
    return affine(params, (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps))


def rms_norm(params, x, eps):
    return affine(params, x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps))


def two_axes(rng, shape):
    """Parameters of the last two axes together."""
    numbers = rng.normal(size=(2, shape[1], 2))
    return Scale(*numbers), 2 + rng.normal(size=(shape[0], shape[1], 2))


def over_two_axes(params, x, axes):
    mean, variance = (f((-2, -1), keepdims=True) for f in (x.mean, x.var))
    return affine(params, (x - mean) / np.sqrt(variance + 1e-5))


def group_norm(params, x, groups, eps=1e-5):
    """Group by group, example by example."""
    out = np.empty_like(x)
    for example, result in zip(x, out, strict=True):
        runs = np.split(np.arange(x.shape[-1]), groups)
        for run in runs:
            part = example[..., run]
            result[..., run] = (part - part.mean()) / np.sqrt(part.var() + eps)
    return affine(params, out)


def batch_norm(params, running, x, training, momentum=0.1, eps=1e-5):
    if not training:
        return affine(params, (x - running.mean) / np.sqrt(running.variance + eps)), running
    rows = x.reshape(-1, x.shape[-1])
    y = affine(params, (x - rows.mean(0)) / np.sqrt(rows.var(0) + eps))
    return y, Running(
        (1 - momentum) * running.mean + momentum * rows.mean(0),
        (1 - momentum) * running.variance + momentum * rows.var(0, ddof=1),
    )


def first(x):
    """Channels where PyTorch has them: after the batch."""
    return x.movedim(-1, 1)


def torch_group_norm(torch, params, x, groups):
    """PyTorch 2.13 differentiates a shift only beside a scale."""
    one = torch.ones_like(params.shift)
    return torch.nn.functional.group_norm(first(x), groups, one, params.shift).movedim(1, -1)


def torch_batch_norm(torch, params, running, x, training, momentum):
    """PyTorch gives its running statistics no gradient: they are moved by its mean and var."""
    y = torch.nn.functional.batch_norm(first(x), None, None, *params, training)
    axes = tuple(range(x.ndim - 1))
    new = Running(
        torch.lerp(running.mean, x.mean(axes), momentum),
        torch.lerp(running.variance, x.var(axes), momentum),
    )
    return y.movedim(1, -1), new


ROWS = {
    "layer_norm": Row(
        normalisation.layer_norm,
        {},
        layer_norm,
        scaled,
        lambda torch, p, x: torch.nn.functional.layer_norm(x, x.shape[-1:], *p),
    ),
    "rms_norm": Row(
        normalisation.rms_norm,
        {"eps": 0.1},
        rms_norm,
        unshifted,
        lambda torch, p, x, eps: torch.nn.functional.rms_norm(x, x.shape[-1:], p.scale, eps),
    ),
    "layer_norm of two axes": Row(
        normalisation.layer_norm,
        {"axes": 2},
        over_two_axes,
        two_axes,
        lambda torch, p, x, axes: torch.nn.functional.layer_norm(x, x.shape[-2:], *p),
    ),
    "rms_norm of two axes": Row(
        normalisation.rms_norm,
        {"axes": 2},
        lambda p, x, axes: affine(
            p, x / np.sqrt(np.square(x).mean((-2, -1), keepdims=True) + 1e-5)
        ),
        two_axes,
    ),
    "rms_norm with an offset": Row(
        normalisation.rms_norm,
        {"offset": 1.0},
        lambda p, x, offset: rms_norm(p._replace(scale=offset + p.scale), x, 1e-5),
        scaled,
        lambda torch, p, x, offset: (
            torch.nn.functional.rms_norm(x, x.shape[-1:], None, 1e-5) * (offset + p.scale) + p.shift
        ),
    ),
    "group_norm": Row(
        normalisation.group_norm, {"groups": 3}, group_norm, images, torch_group_norm
    ),
    "instance_norm": Row(
        normalisation.instance_norm,
        {},
        lambda p, x: group_norm(p, x, x.shape[-1]),
        instances,
        lambda torch, p, x: torch.nn.functional.instance_norm(first(x)).movedim(1, -1),
    ),
    **{
        f"l2_normalize {static}": Row(
            l2_normalize,
            static,
            lambda x, axis=-1, eps=1e-12: (
                x / np.linalg.norm(x, axis=axis, keepdims=True).clip(min=eps)
            ),
            one,
            lambda torch, x, axis=-1, eps=1e-12: torch.nn.functional.normalize(
                x, dim=axis, eps=eps
            ),
        )
        for static in ({}, {"axis": 0, "eps": 1.5})
    },
    "batch_norm training": Row(
        batch_normalisation.batch_norm,
        {"training": True, "momentum": 0.3},
        batch_norm,
        batch,
        torch_batch_norm,
        averages=True,
    ),
    "batch_norm evaluation": Row(
        batch_normalisation.batch_norm, {"training": False}, batch_norm, batch
    ),
}
