"""Normalisation: values of a group brought to mean 0 and variance 1, then scaled and shifted.

    x_hat = (x - mean) / sigma,  sigma = sqrt(variance + eps),  y = scale x_hat + shift

    dshift = sum dy,  dscale = sum dy x_hat,  dx_hat = scale dy
    dx = (dx_hat - mean(dx_hat) - x_hat mean(dx_hat x_hat)) / sigma

Means and variances are over a group: the features of one example (layer), channels of one example
(group, instance), one channel of a whole batch (batch). Channels come last. The variance is the
mean square of x - mean (biased, never mean(x^2) - mean^2, which cancels); where it is 0, sigma is
sqrt(eps) and all stays finite.

All save x_hat, one value per element, and 1/sigma, one per group: the backward is a formula in
these two, and x, its mean and the subtraction are not needed again.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.op import Op


class Scale(NamedTuple):
    """Parameters of a normalisation: `scale` and `shift` (C,), either None where there is none."""

    scale: Array | None
    shift: Array | None


class Normalised(NamedTuple):
    """What a backward needs: the parameters, x_hat, and 1/sigma with sizes 1 where shared."""

    params: Scale
    x_hat: Array
    inverse_sigma: Array


def layer_norm_fwd(params: Scale, x: Array, *, eps: float = 1e-5) -> tuple[Array, Normalised]:
    """Every vector along the last axis is normalised by itself (Ba et al., 2016, eq. 4).

    Args:
        params: scale and shift (C,), or None.
        x: (..., C).
        eps: added to the variance, in squared units of x.

    Returns:
        y (..., C), residuals.

    Raises:
        ValueError: scale or shift is not (C,), or eps is not positive in the dtype of x.
    """
    _check("layer_norm", params, x, eps)
    x_hat, inverse_sigma = _standardise(x, *_moments(x, (-1,)), eps)
    return _affine(params, x_hat), Normalised(params, x_hat, inverse_sigma)


def layer_norm_bwd(residuals: Normalised, dy: Array, *, eps: float = 1e-5) -> tuple[Scale, Array]:
    """dx, dscale and dshift as in the module's formulas, means over the last axis."""
    params, x_hat, inverse_sigma = residuals
    dparams, dx_hat = _affine_bwd(params, x_hat, dy)
    return dparams, _standardise_bwd(x_hat, inverse_sigma, dx_hat, (-1,))


def rms_norm_fwd(params: Scale, x: Array, *, eps: float = 1e-5) -> tuple[Array, Normalised]:
    """x_hat = x / sqrt(mean(x^2) + eps) along the last axis (Zhang and Sennrich, 2019, eq. 4).

    No mean is subtracted. Arguments, result and errors as `layer_norm_fwd`.
    """
    _check("rms_norm", params, x, eps)
    inverse_sigma = lax.rsqrt((x * x).mean(-1, keepdims=True) + eps)
    x_hat = x * inverse_sigma
    return _affine(params, x_hat), Normalised(params, x_hat, inverse_sigma)


def rms_norm_bwd(residuals: Normalised, dy: Array, *, eps: float = 1e-5) -> tuple[Scale, Array]:
    """dx = (dx_hat - x_hat mean(dx_hat x_hat)) / sigma: no mean was subtracted."""
    params, x_hat, inverse_sigma = residuals
    dparams, dx_hat = _affine_bwd(params, x_hat, dy)
    dx = inverse_sigma * (dx_hat - x_hat * (dx_hat * x_hat).mean(-1, keepdims=True))
    return dparams, dx


def group_norm_fwd(
    params: Scale, x: Array, *, groups: int, eps: float = 1e-5
) -> tuple[Array, Normalised]:
    """Of each example, `groups` equal runs of channels, each over all positions (Wu and He, 2018).

    Args:
        params: scale and shift (C,), or None.
        x: (N, ..., C): examples, positions, channels.
        groups: a divisor of C.
        eps: added to the variance, in squared units of x.

    Returns:
        y (N, ..., C), residuals.

    Raises:
        ValueError: as `layer_norm_fwd`; x has fewer than two axes; groups do not divide C.
    """
    _check("group_norm", params, x, eps)
    if x.ndim < 2:
        raise ValueError(
            f"group_norm: x has shape {x.shape}; it must be (N, ..., C): add a batch axis"
        )
    if groups < 1 or x.shape[-1] % groups:
        raise ValueError(
            f"group_norm: groups are {groups} but x has {x.shape[-1]} channels; groups must divide "
            "the channels: choose a divisor"
        )
    grouped = _grouped(x, groups)
    x_hat, inverse_sigma = _standardise(grouped, *_moments(grouped, (1, 3)), eps)
    x_hat = x_hat.reshape(x.shape)
    return _affine(params, x_hat), Normalised(params, x_hat, inverse_sigma)


def group_norm_bwd(
    residuals: Normalised, dy: Array, *, groups: int, eps: float = 1e-5
) -> tuple[Scale, Array]:
    """dx, dscale and dshift as in the module's formulas, means over a group."""
    params, x_hat, inverse_sigma = residuals
    dparams, dx_hat = _affine_bwd(params, x_hat, dy)
    dx = _standardise_bwd(_grouped(x_hat, groups), inverse_sigma, _grouped(dx_hat, groups), (1, 3))
    return dparams, dx.reshape(dy.shape)


def instance_norm_fwd(params: Scale, x: Array, *, eps: float = 1e-5) -> tuple[Array, Normalised]:
    """Every channel of every example by itself, over all positions (Ulyanov et al., 2016, eq. 2).

    Group normalisation with one channel per group. With a single position x_hat is 0.

    Args:
        params: scale and shift (C,), or None.
        x: (N, ..., C) with at least one axis of positions.
        eps: added to the variance, in squared units of x.

    Returns:
        y (N, ..., C), residuals.

    Raises:
        ValueError: as `layer_norm_fwd`; x has no axis of positions.
    """
    _check("instance_norm", params, x, eps)
    if x.ndim < 3:
        raise ValueError(
            f"instance_norm: x has shape {x.shape}; it must be (N, positions ..., C), three axes "
            "or more: without positions every result would be the shift"
        )
    return group_norm_fwd(params, x, groups=x.shape[-1], eps=eps)


def instance_norm_bwd(
    residuals: Normalised, dy: Array, *, eps: float = 1e-5
) -> tuple[Scale, Array]:
    """`group_norm_bwd` with one channel per group."""
    return group_norm_bwd(residuals, dy, groups=dy.shape[-1], eps=eps)


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
) -> tuple[tuple[Array, Running], Normalised]:
    """Every channel over the whole batch (Ioffe and Szegedy, 2015, algorithms 1 and 2).

    In training mean and variance are the batch's, and the running ones move towards them:

        new = (1 - momentum) running + momentum batch

    with the unbiased batch variance, n/(n - 1) times the biased one that normalises, n being the
    values per channel (so does PyTorch). In evaluation the running statistics normalise and are
    handed out as they came. They are results like y: a loss may use them, and the cotangents that
    they get, usually 0, reach x and the statistics handed in.

    Args:
        params: scale and shift (C,), or None.
        running: mean and variance (C,); start from 0 and 1.
        x: (..., C).
        training: which statistics normalise.
        momentum: weight of the new batch in the running statistics, in [0, 1].
        eps: added to the variance, in squared units of x.

    Returns:
        (y (..., C), new running statistics), residuals.

    Raises:
        ValueError: as `layer_norm_fwd`; the running statistics are not (C,); momentum is outside
            [0, 1]; in training a channel has fewer than two values, of which there is no variance.
    """
    _check("batch_norm", params, x, eps)
    if running.mean.shape != x.shape[-1:] or running.variance.shape != x.shape[-1:]:
        raise ValueError(
            f"batch_norm: running mean has shape {running.mean.shape}, variance "
            f"{running.variance.shape}, x {x.shape}; both must be ({x.shape[-1]},), one value per "
            "channel: channels come last"
        )
    if not 0 <= momentum <= 1:
        raise ValueError(
            f"batch_norm: momentum is {momentum}; it must be in [0, 1], the weight of the new "
            "batch: 0.1 is usual"
        )
    if not training:
        x_hat, inverse_sigma = _standardise(x, *running, eps)
        return (_affine(params, x_hat), running), Normalised(params, x_hat, inverse_sigma)
    n = math.prod(x.shape[:-1])
    if n < 2:
        raise ValueError(
            f"batch_norm: x has shape {x.shape}, {n} values per channel; training needs at least "
            "2 for a variance: pass a larger batch or training=False"
        )
    mean, variance = _moments(x, tuple(range(x.ndim - 1)))
    x_hat, inverse_sigma = _standardise(x, mean, variance, eps)
    batch = Running(mean.ravel(), variance.ravel() * (n / (n - 1)))
    new = jax.tree.map(lambda old, seen: (1 - momentum) * old + momentum * seen, running, batch)
    return (_affine(params, x_hat), new), Normalised(params, x_hat, inverse_sigma)


def batch_norm_bwd(
    residuals: Normalised,
    dout: tuple[Array, Running],
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Scale, Running, Array]:
    """In training the module's formulas, and what the new running statistics owe to x.

        d batch mean / dx = 1/n,  d batch variance / dx = 2 (x - mean) / (n - 1)

    In evaluation y is affine in x: dx = dx_hat / sigma, dmean = -sum(dx_hat) / sigma, and
    dvariance = -sum(dx_hat x_hat) / (2 sigma^2).
    """
    params, x_hat, inverse_sigma = residuals
    dy, dnew = dout
    axes = tuple(range(dy.ndim - 1))
    dparams, dx_hat = _affine_bwd(params, x_hat, dy)
    if not training:
        dx = dx_hat * inverse_sigma
        dmean = -inverse_sigma * dx_hat.sum(axes)
        dvariance = -0.5 * inverse_sigma**2 * (dx_hat * x_hat).sum(axes)
        return dparams, Running(dnew.mean + dmean, dnew.variance + dvariance), dx
    n = math.prod(dy.shape[:-1])
    dx = _standardise_bwd(x_hat, inverse_sigma, dx_hat, axes)
    centred = x_hat / inverse_sigma
    dx += momentum * (dnew.mean / n + dnew.variance * (2 / (n - 1)) * centred)
    return dparams, jax.tree.map(lambda d: (1 - momentum) * d, dnew), dx


def _moments(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Mean and biased variance over the axes, which stay with size 1."""
    mean = x.mean(axes, keepdims=True)
    return mean, ((x - mean) ** 2).mean(axes, keepdims=True)


def _standardise(x: Array, mean: Array, variance: Array, eps: float) -> tuple[Array, Array]:
    """x_hat and 1/sigma."""
    inverse_sigma = lax.rsqrt(variance + eps)
    return (x - mean) * inverse_sigma, inverse_sigma


def _standardise_bwd(
    x_hat: Array, inverse_sigma: Array, dx_hat: Array, axes: tuple[int, ...]
) -> Array:
    """dx, where mean and variance were x's own over the axes."""
    through_mean = dx_hat.mean(axes, keepdims=True)
    through_variance = x_hat * (dx_hat * x_hat).mean(axes, keepdims=True)
    return inverse_sigma * (dx_hat - through_mean - through_variance)


def _affine(params: Scale, x_hat: Array) -> Array:
    """scale x_hat + shift, without what is None."""
    scale, shift = params
    y = x_hat if scale is None else x_hat * scale
    return y if shift is None else y + shift


def _affine_bwd(params: Scale, x_hat: Array, dy: Array) -> tuple[Scale, Array]:
    """dscale and dshift, None where the parameter is, and dx_hat."""
    scale, shift = params
    axes = tuple(range(dy.ndim - 1))
    dscale = None if scale is None else (dy * x_hat).sum(axes)
    dshift = None if shift is None else dy.sum(axes)
    return Scale(dscale, dshift), dy if scale is None else dy * scale


def _grouped(x: Array, groups: int) -> Array:
    """(N, ..., C) as (N, positions, groups, channels of a group)."""
    positions = math.prod(x.shape[1:-1])
    return x.reshape(x.shape[0], positions, groups, x.shape[-1] // groups)


def _check(name: str, params: Scale, x: Array, eps: float) -> None:
    """Refuse what no normalisation can take."""
    if x.ndim == 0 or x.size == 0:
        raise ValueError(
            f"{name}: x has shape {x.shape}; the last axis are the channels, and no axis may be "
            "empty, for there would be no mean: pass at least one example"
        )
    for field, value in params._asdict().items():
        if value is not None and value.shape != x.shape[-1:]:
            raise ValueError(
                f"{name}: {field} has shape {value.shape}, x {x.shape}; {field} must be "
                f"({x.shape[-1]},), one value per channel, or None: channels come last"
            )
    if not x.dtype.type(eps) > 0:
        raise ValueError(
            f"{name}: eps is {eps}, {x.dtype.type(eps)} in {x.dtype}; it must be positive, or a "
            "variance of 0 would divide by 0: 1e-5 is usual"
        )


def _draw(key: Array, *shape: int) -> tuple[Scale, Array]:
    """All parameters, and x of which one part is 0 throughout, and so its variance."""
    k1, k2, k3 = jax.random.split(key, 3)
    params = Scale(jax.random.normal(k1, shape[-1:]), jax.random.normal(k2, shape[-1:]))
    return params, jax.random.normal(k3, shape).at[0, 0].set(0.0)


@jax.jit
def _vectors_example(key: Array) -> tuple[Scale, Array]:
    return _draw(key, 3, 2, 5)


@jax.jit
def _images_example(key: Array) -> tuple[Scale, Array]:
    return _draw(key, 2, 1, 5, 6)


@jax.jit
def _batch_example(key: Array) -> tuple[Scale, Running, Array]:
    """A batch of which one channel is 0 throughout."""
    k1, k2 = jax.random.split(key)
    params, x = _draw(k1, 7, 2, 3)
    mean = jax.random.normal(k2, (3,))
    return params, Running(mean, jnp.array([0.5, 1.0, 3.0])), x.at[..., 1].set(0.0)


layer_norm = Op(layer_norm_fwd, layer_norm_bwd, example=_vectors_example)
rms_norm = Op(rms_norm_fwd, rms_norm_bwd, example=_vectors_example, settings=({"eps": 0.1},))
group_norm = Op(group_norm_fwd, group_norm_bwd, example=_images_example, settings=({"groups": 3},))
instance_norm = Op(instance_norm_fwd, instance_norm_bwd, example=_images_example)
batch_norm = Op(
    batch_norm_fwd,
    batch_norm_bwd,
    example=_batch_example,
    settings=({"training": True, "momentum": 0.3}, {"training": False}),
)
