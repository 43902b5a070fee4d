"""Normalisation: values of a group brought to mean 0 and variance 1, then scaled and shifted.

    x_hat = (x - mean) / sigma,  sigma = sqrt(variance + eps),  y = scale x_hat + shift

    dshift = sum dy,  dscale = sum dy x_hat,  dx_hat = scale dy
    dx = (dx_hat - mean(dx_hat) - x_hat mean(dx_hat x_hat)) / sigma

Means and variances are over a group: the features of one example (layer), channels of one example
(group, instance), one channel of a whole batch (batch). Channels come last. The variance is the
mean square of x - mean (biased, never mean(x^2) - mean^2, which cancels); where it is 0, sigma is
sqrt(eps) and all stays finite.

Layer and RMS norm save x, there already, and the mean and 1/sigma of each row: x_hat is one pass
away. Group and instance norm save x_hat, one value per element, and 1/sigma, one per group. y and
what is saved per element have the dtype of x; whatever leads to them, mean and sigma are in float32
or wider. Batch norm is in `jaxnn.ops.batch_norm`.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxnn.checks import check_floating
from jaxnn.numerics import widen
from jaxnn.op import Op
from jaxnn.settings import check_integer, check_number


class Scale(NamedTuple):
    """Parameters of a normalisation: `scale` and `shift` (C,), either None where there is none."""

    scale: Array | None
    shift: Array | None


class Normalised(NamedTuple):
    """What group norm saves: the parameters, x_hat, and 1/sigma with sizes 1 where shared."""

    params: Scale
    x_hat: Array
    inverse_sigma: Array


class NormalisedRows(NamedTuple):
    """What layer and RMS norm save.

    Attributes:
        params: the parameters.
        x: (..., C).
        mean: (..., 1) of the rows; None for RMS norm, which subtracts none.
        inverse_sigma: (..., 1).
    """

    params: Scale
    x: Array
    mean: Array | None
    inverse_sigma: Array

    @property
    def x_hat(self) -> Array:
        """The normalised rows, widened."""
        x = widen(self.x)
        return (x if self.mean is None else x - self.mean) * self.inverse_sigma

    @property
    def y(self) -> Array:
        """What the norm gave."""
        return scaled(self.params, self.x_hat).astype(self.x.dtype)


def layer_norm_fwd(params: Scale, x: Array, *, eps: float = 1e-5) -> tuple[Array, NormalisedRows]:
    """Every vector along the last axis is normalised by itself (Ba et al., 2016, eq. 4).

    Args:
        params: scale and shift (C,), or None.
        x: (..., C).
        eps: added to the variance, in squared units of x.

    Returns:
        y (..., C), residuals.

    Raises:
        TypeError: x, scale or shift is no floating array, or eps no number.
        ValueError: scale or shift is not (C,), or eps is not finite and positive in the dtype of x
            or float32, the wider.
    """
    params, x, eps = check_norm("layer_norm", params, x, eps)
    mean, variance = _moments(x, (-1,))
    saved = NormalisedRows(params, x, mean, lax.rsqrt(variance + eps))
    return saved.y, saved


def layer_norm_bwd(saved: NormalisedRows, dy: Array, *, eps: float = 1e-5) -> tuple[Scale, Array]:
    """dx, dscale and dshift as in the module's formulas, means over the last axis."""
    x_hat, wide_dy = saved.x_hat, widen(dy)
    dparams, dx_hat = _affine_bwd(saved.params, x_hat, dy)
    through_mean = _scaled_mean(saved.params, wide_dy)
    through_variance = x_hat * _scaled_mean(saved.params, wide_dy * x_hat)
    dx = saved.inverse_sigma * (dx_hat - through_mean - through_variance)
    return dparams, dx.astype(saved.x.dtype)


def rms_norm_fwd(params: Scale, x: Array, *, eps: float = 1e-5) -> tuple[Array, NormalisedRows]:
    """x_hat = x / sqrt(mean(x^2) + eps) along the last axis (Zhang and Sennrich, 2019, eq. 4).

    No mean is subtracted. Arguments, result and errors as `layer_norm_fwd`.
    """
    params, x, eps = check_norm("rms_norm", params, x, eps)
    wide = widen(x)
    mean_square = (wide * wide).mean(-1, keepdims=True)
    saved = NormalisedRows(params, x, None, lax.rsqrt(mean_square + eps))
    return saved.y, saved


def rms_norm_bwd(saved: NormalisedRows, dy: Array, *, eps: float = 1e-5) -> tuple[Scale, Array]:
    """dx = (dx_hat - x_hat mean(dx_hat x_hat)) / sigma: no mean was subtracted."""
    x_hat = saved.x_hat
    dparams, dx_hat = _affine_bwd(saved.params, x_hat, dy)
    through_sigma = x_hat * _scaled_mean(saved.params, widen(dy) * x_hat)
    dx = saved.inverse_sigma * (dx_hat - through_sigma)
    return dparams, dx.astype(saved.x.dtype)


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
        TypeError, ValueError: as `layer_norm_fwd`.
        TypeError: groups are no integer.
        ValueError: x has fewer than two axes; groups do not divide C.
    """
    params, x, eps = check_norm("group_norm", params, x, eps)
    groups = check_integer("group_norm: groups", groups, hint=", a divisor of the channels")
    if x.ndim < 2:
        raise ValueError(
            f"group_norm: x has shape {x.shape}; it must be (N, ..., C): add a batch axis"
        )
    if x.shape[-1] % groups:
        raise ValueError(
            f"group_norm: groups are {groups} but x has {x.shape[-1]} channels; groups must divide "
            "the channels: choose a divisor"
        )
    grouped = _grouped(x, groups)
    mean, variance = _moments(grouped, (1, 3))
    inverse_sigma = lax.rsqrt(variance + eps)
    x_hat = ((widen(grouped) - mean) * inverse_sigma).reshape(x.shape)
    saved = Normalised(params, x_hat.astype(x.dtype), inverse_sigma)
    return scaled(params, x_hat).astype(x.dtype), saved


def group_norm_bwd(
    residuals: Normalised, dy: Array, *, groups: int, eps: float = 1e-5
) -> tuple[Scale, Array]:
    """dx, dscale and dshift as in the module's formulas, means over a group."""
    params, x_hat, inverse_sigma = residuals
    dparams, dx_hat = _affine_bwd(params, x_hat, dy)
    wide, dx_hat = _grouped(widen(x_hat), groups), _grouped(dx_hat, groups)
    through_mean = dx_hat.mean((1, 3), keepdims=True)
    through_variance = wide * (dx_hat * wide).mean((1, 3), keepdims=True)
    dx = inverse_sigma * (dx_hat - through_mean - through_variance)
    return dparams, dx.reshape(dy.shape).astype(x_hat.dtype)


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
        TypeError, ValueError: as `layer_norm_fwd`.
        ValueError: x has no axis of positions.
    """
    params, x, eps = check_norm("instance_norm", params, x, eps)
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


def _moments(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Mean and biased variance over the axes, which stay with size 1; both widened."""
    x = widen(x)
    mean = x.mean(axes, keepdims=True)
    return mean, ((x - mean) ** 2).mean(axes, keepdims=True)


def _scaled_mean(params: Scale, values: Array) -> Array:
    """mean(scale values) over the last axis, which stays, of wide values: dy for dx_hat, and so on.

    As a product with the scale it reads values that there are for dscale or dshift too; the mean of
    scaled ones would have them written first (layer norm 1.27 times as long, RMS norm 1.3, (2048,
    512) on a CPU).
    """
    if params.scale is None:
        return values.mean(-1, keepdims=True)
    weights = params.scale.astype(values.dtype)[:, None] / values.shape[-1]
    return jnp.matmul(values, weights, precision=lax.Precision.HIGHEST)


def scaled(params: Scale, x_hat: Array) -> Array:
    """scale x_hat + shift, without what is None."""
    scale, shift = params
    y = x_hat if scale is None else x_hat * scale.astype(x_hat.dtype)
    return y if shift is None else y + shift.astype(x_hat.dtype)


def _affine_bwd(params: Scale, x_hat: Array, dy: Array) -> tuple[Scale, Array]:
    """dscale and dshift, None where the parameter is, and dx_hat, widened."""
    scale, shift = params
    axes = tuple(range(dy.ndim - 1))
    dy = widen(dy)
    dscale = None if scale is None else (dy * widen(x_hat)).sum(axes).astype(scale.dtype)
    dshift = None if shift is None else dy.sum(axes).astype(shift.dtype)
    return Scale(dscale, dshift), dy if scale is None else dy * scale.astype(dy.dtype)


def _grouped(x: Array, groups: int) -> Array:
    """(N, ..., C) as (N, positions, groups, channels of a group)."""
    positions = math.prod(x.shape[1:-1])
    return x.reshape(x.shape[0], positions, groups, x.shape[-1] // groups)


def check_norm(name: str, params: Scale, x: Array, eps: Any) -> tuple[Scale, Array, float]:
    """The same as JAX's arrays and Python's number; what no normalisation can take is refused.

    Raises:
        TypeError, ValueError: as `layer_norm_fwd`.
    """
    check_floating(f"{name}: x", x)
    if x.ndim == 0 or x.size == 0:
        raise ValueError(
            f"{name}: x has shape {x.shape}; the last axis are the channels, and no axis may be "
            "empty, for there would be no mean: pass at least one example"
        )
    for field, value in params._asdict().items():
        if value is None:
            continue
        check_floating(f"{name}: {field}", value)
        if value.shape != x.shape[-1:]:
            raise ValueError(
                f"{name}: {field} has shape {value.shape}, x {x.shape}; {field} must be "
                f"({x.shape[-1]},), one value per channel, or None: channels come last"
            )
    # What is no normal number, a processor may take for 0.
    limits = np.finfo(np.promote_types(x.dtype, np.float32))
    eps = check_number(
        f"{name}: eps",
        eps,
        f"finite and positive in {limits.dtype}, or a variance of 0 would divide by 0: 1e-5 is "
        "usual",
        lambda e: float(limits.tiny) <= e <= float(limits.max),
    )
    return jax.tree.map(jnp.asarray, params), jnp.asarray(x), eps


def draw_example(key: Array, *shape: int) -> tuple[Scale, Array]:
    """All parameters, and x of which one part is 0 throughout, and so its variance."""
    k1, k2, k3 = jax.random.split(key, 3)
    params = Scale(jax.random.normal(k1, shape[-1:]), jax.random.normal(k2, shape[-1:]))
    return params, jax.random.normal(k3, shape).at[0, 0].set(0.0)


@jax.jit
def _vectors_example(key: Array) -> tuple[Scale, Array]:
    return draw_example(key, 3, 2, 5)


@jax.jit
def _images_example(key: Array) -> tuple[Scale, Array]:
    return draw_example(key, 2, 1, 5, 6)


layer_norm = Op(layer_norm_fwd, layer_norm_bwd, example=_vectors_example)
rms_norm = Op(rms_norm_fwd, rms_norm_bwd, example=_vectors_example, settings=({"eps": 0.1},))
group_norm = Op(group_norm_fwd, group_norm_bwd, example=_images_example, settings=({"groups": 3},))
instance_norm = Op(instance_norm_fwd, instance_norm_bwd, example=_images_example)
