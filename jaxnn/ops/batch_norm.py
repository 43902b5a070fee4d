"""Batch normalisation: every channel is normalised over a whole batch.

    x_hat = (x - mean) / sigma,  sigma = sqrt(variance + eps),  y = scale x_hat + shift

    dshift = sum dy,  dscale = sum dy x_hat                 over the n values of a channel
    training      dx = (dy - dshift / n - x_hat dscale / n) scale / sigma
    evaluation    dx = dy scale / sigma,  dmean = -sum dx,  dvariance = -sum dx x_hat / (2 sigma)

These are the formulas of `jaxnn.ops.normalisation` with a channel for a group: it has one scale, so
the means are dshift and dscale again. In training mean and variance are the batch's, and the
running ones move towards them:

    new = (1 - momentum) running + momentum batch

with the unbiased batch variance, n/(n - 1) times the biased one that normalises (so does PyTorch).
They are results like y: a loss may use them, and the cotangents that they get, usually 0, reach the
statistics handed in, and x:

    d batch mean / dx = 1/n,  d batch variance / dx = 2 (x - mean) / (n - 1)

Where devices have examples of their own (`axis`), mean, variance, dshift and dscale are of the
examples of all of them, and n counts these: four sums over devices, of C values each.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.checks import check_floating, check_kind, check_shapes
from jaxnn.numerics import widen
from jaxnn.op import Op
from jaxnn.ops.collectives import Axis, all_copy, all_mean
from jaxnn.ops.collectives_doors import check_axis
from jaxnn.ops.normalisation import Normalised, Scale, affine, draw_example
from jaxnn.ops.normalisation_doors import check_norm
from jaxnn.settings import check_flag, check_number


class Running(NamedTuple):
    """Running statistics of batch normalisation: `mean` and `variance` (C,)."""

    mean: Array
    variance: Array


def batch_norm_fwd(
    params: Scale,
    running: Running,
    x: Array,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    axis: Axis = (),
) -> tuple[tuple[Array, Running], Normalised]:
    """Normalise every channel over the batch (Ioffe and Szegedy, 2015, algorithms 1 and 2).

    In evaluation the running statistics normalise and are handed out as they came. Saves x_hat, one
    value per element, and 1/sigma, one per channel.

    Args:
        params: scale and shift (C,), or None.
        running: mean and variance (C,); start from 0 and 1.
        x: (..., C).
        training: which statistics normalise.
        momentum: weight of the new batch in the running statistics, in [0, 1].
        eps: added to the variance, in squared units of x.
        axis: inside `jax.shard_map`, the axes of the mesh along which each device has examples of
            its own, as many as the others; in training alone it matters.

    Returns:
        (y (..., C), new running statistics), residuals.

    Raises:
        TypeError, ValueError: as `jaxnn.ops.normalisation.layer_norm_fwd`.
        TypeError: the running statistics are no `Running` of floating arrays, `training` is neither
            True nor False, or the momentum no number.
        ValueError: the running statistics are not (C,); momentum is outside [0, 1]; in training a
            channel has fewer than two values, of which there is no variance.
    """
    wide, axes, n = widen(x), range(x.ndim - 1), math.prod(x.shape[:-1])
    if training:
        n *= lax.axis_size(axis)
        mean, _ = all_mean.fwd(wide.mean(axes), axis=axis)
        variance, _ = all_mean.fwd(((wide - mean) ** 2).mean(axes), axis=axis)
        batch = Running(mean, variance * (n / (n - 1)))
        running = jax.tree.map(
            lambda old, seen: (1 - momentum) * old + (momentum * seen).astype(old.dtype),
            running,
            batch,
        )
    else:
        mean, variance = (s.astype(wide.dtype) for s in running)
    rstd = lax.rsqrt(variance + eps)
    x_hat = (wide - mean) * rstd
    y = affine(params, x_hat).astype(x.dtype)
    return (y, running), Normalised(params, x_hat.astype(x.dtype), rstd)


def batch_norm_bwd(
    saved: Normalised,
    dout: tuple[Array, Running],
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    axis: Axis = (),
) -> tuple[Scale, Running, Array]:
    """Return dscale and dshift, the cotangents of the running statistics, and dx."""
    (scale, shift), x_hat, rstd = saved
    dy, dnew = dout
    axes, n = range(dy.ndim - 1), math.prod(dy.shape[:-1])
    wide, x_hat = widen(dy), widen(x_hat)
    dshift, dscale = wide.sum(axes), (wide * x_hat).sum(axes)
    if training:  # y depends on all devices' x, and these are what mean and variance send back
        n *= lax.axis_size(axis)
        dshift, dscale = (all_copy.bwd((), d, axis=axis)[0] for d in (dshift, dscale))
    dparams = Scale(
        None if scale is None else dscale.astype(scale.dtype),
        None if shift is None else dshift.astype(shift.dtype),
    )
    a = rstd if scale is None else scale.astype(wide.dtype) * rstd
    if not training:
        through = Running(-a * dshift, -0.5 * a * dscale * rstd)
        drunning = jax.tree.map(lambda d, more: d + more.astype(d.dtype), dnew, through)
        return dparams, drunning, (a * wide).astype(dy.dtype)
    dmean, dvariance = (momentum * d.astype(wide.dtype) for d in dnew)
    dx = a * (wide - dshift / n - x_hat * (dscale / n))
    dx += dmean / n + 2 / (n - 1) * dvariance * (x_hat / rstd)
    return dparams, jax.tree.map(lambda d: (1 - momentum) * d, dnew), dx.astype(dy.dtype)


def _check(
    params: Scale,
    running: Running,
    x: Array,
    *,
    training: bool,
    momentum: float,
    eps: float,
    axis: Axis,
) -> None:
    check_norm(Scale, "batch_norm", params, x, eps)
    check_kind("batch_norm: running", running, Running)
    mean, variance = running
    fix = "one value per channel, channels last: start from Running(jnp.zeros(C), jnp.ones(C))"
    check_shapes("batch_norm", fix, x=(x, "...C"), mean=(mean, "C"), variance=(variance, "C"))
    check_floating("batch_norm: running mean", mean)
    check_floating("batch_norm: running variance", variance)
    check_flag("batch_norm: training", training)
    rule = "in [0, 1], the weight of the new batch: 0.1 is usual"
    check_number("batch_norm: momentum", momentum, rule, lambda m: 0 <= m <= 1)
    n = math.prod(x.shape[:-1]) * check_axis("batch_norm: axis", axis)
    if training and n < 2:
        raise ValueError(
            f"batch_norm: x has shape {x.shape}, {n} values per channel; they must have a "
            "variance, for which training needs at least 2: pass a larger batch or training=False"
        )


@jax.jit
def _example(key: Array) -> tuple[Scale, Running, Array]:
    """A batch of which one channel is 0 throughout."""
    k1, k2 = jax.random.split(key)
    params, x = draw_example((7, 2, 3), k1)
    mean = jax.random.normal(k2, (3,))
    return params, Running(mean, jnp.array([0.5, 1.0, 3.0])), x.at[..., 1].set(0.0)


batch_norm = Op(
    batch_norm_fwd,
    batch_norm_bwd,
    check=_check,
    example=_example,
    settings=(
        {"training": True, "momentum": 0.3},
        {"training": False},
        {"training": True, "axis": ("devices",)},
    ),
    varies={"axis": ((False, False, True), (True, False))},
)
