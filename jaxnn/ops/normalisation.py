"""Normalisation: values of a group brought to mean 0 and variance 1, then scaled and shifted.

    x_hat = (x - mean) / sigma,  sigma = sqrt(variance + eps),  y = scale x_hat + shift

    dshift = sum dy,  dscale = sum dy x_hat,  dx_hat = scale dy
    dx = (dx_hat - mean(dx_hat) - x_hat mean(dx_hat x_hat)) / sigma

Means and variances are over a group: the features of one example (layer), channels of one example
(group, instance), one channel of a whole batch (batch, in `jaxnn.ops.batch_norm`). Channels come
last. The variance is the mean square of x - mean (biased, never mean(x^2) - mean^2, which cancels);
where it is 0, sigma is sqrt(eps) and all stays finite. Where its squares overflow (in float32 from
|x| of 1e19 on) sigma is infinite, and y and dx are 0.

Saved are x_hat, one value per element, and 1/sigma, one per group. y and x_hat have the dtype of x;
whatever leads to them, mean and sigma are in float32 or wider.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
from jax import Array, lax

from jaxnn.numerics import widen
from jaxnn.op import Op
from jaxnn.ops.normalisation_doors import check_groups, check_last_axes, check_norm


class Scale(NamedTuple):
    """Parameters of a normalisation: `scale` and `shift` (C,), either None where there is none."""

    scale: Array | None
    shift: Array | None


class Normalised(NamedTuple):
    """What a normalisation saves: its parameters, x_hat, and rstd = 1/sigma."""

    params: Scale
    x_hat: Array
    rstd: Array

    def y(self, offset: float = 0.0) -> Array:
        """Return what the normalisation gave, with its setting `offset`, if it has one."""
        return affine(self.params, widen(self.x_hat), offset).astype(self.x_hat.dtype)


def affine(params: Scale, x_hat: Array, offset: float = 0.0) -> Array:
    """Return y = (offset + scale) x_hat + shift, without what is None, in the dtype of x_hat."""
    y = x_hat if params.scale is None else _gain(params.scale, offset, x_hat) * x_hat
    return y if params.shift is None else y + params.shift.astype(x_hat.dtype)


def _affine_bwd(params: Scale, x_hat: Array, dy: Array, offset: float = 0.0) -> tuple[Scale, Array]:
    """Return dscale = sum dy x_hat, dshift = sum dy, None for None; (offset + scale) dy."""

    def summed(d: Array, parameter: Array) -> Array:
        return d.sum(range(d.ndim - parameter.ndim)).astype(parameter.dtype)

    scale, shift = params
    dscale = None if scale is None else summed(dy * x_hat, scale)
    dshift = None if shift is None else summed(dy, shift)
    return Scale(dscale, dshift), dy if scale is None else _gain(scale, offset, dy) * dy


def _gain(scale: Array, offset: float, like: Array) -> Array:
    """Return offset + scale, added in the dtype of `like`: bfloat16 has 3 digits near 1."""
    scale = scale.astype(like.dtype)
    return offset + scale if offset else scale


def layer_norm_fwd(
    params: Scale, x: Array, *, axes: int = 1, eps: float = 1e-5
) -> tuple[Array, Normalised]:
    """Normalise each vector along the last axis (Ba et al., 2016, eq. 4).

    Args:
        params: scale and shift (C,), or None; of as many of the last axes as are normalised, or
            fewer.
        x: (..., C).
        axes: how many of the last axes are normalised together, all their values one group.
        eps: added to the variance, in squared units of x.

    Returns:
        y (..., C), residuals.

    Raises:
        TypeError: params are no `Scale`; x, scale or shift is no floating array, eps no number, or
            axes no integer.
        ValueError: scale or shift is not (C,), C is 0, x has fewer axes, or eps is not finite and
            positive in the dtype of x or float32, the wider.
    """
    wide, last = widen(x), range(-axes, 0)
    centred = wide - wide.mean(last, keepdims=True)
    rstd = lax.rsqrt((centred**2).mean(last, keepdims=True) + eps)
    x_hat = centred * rstd
    y = affine(params, x_hat).astype(x.dtype)
    return y, Normalised(params, x_hat.astype(x.dtype), rstd)


def layer_norm_bwd(
    saved: Normalised, dy: Array, *, axes: int = 1, eps: float = 1e-5
) -> tuple[Scale, Array]:
    """Return dscale, dshift and dx = (dx_hat - mean(dx_hat) - x_hat mean(dx_hat x_hat)) / sigma."""
    x_hat, last = widen(saved.x_hat), range(-axes, 0)
    dparams, dx_hat = _affine_bwd(saved.params, x_hat, widen(dy))
    through_mean = dx_hat.mean(last, keepdims=True)
    through_variance = x_hat * (dx_hat * x_hat).mean(last, keepdims=True)
    dx = saved.rstd * (dx_hat - through_mean - through_variance)
    return dparams, dx.astype(dy.dtype)


def rms_norm_fwd(
    params: Scale, x: Array, *, axes: int = 1, eps: float = 1e-5, offset: float = 0.0
) -> tuple[Array, Normalised]:
    """Divide each vector by its size, sqrt(mean(x^2) + eps) (Zhang and Sennrich, 2019, eq. 4).

    No mean is subtracted, and y = (offset + scale) x_hat + shift. With an offset of 1 the scale is
    learned from 0, so that weight decay draws the factor to 1 (Gemma's convention; the sum is taken
    in float32 or wider). All else as `layer_norm_fwd`.

    Raises:
        TypeError, ValueError: as `layer_norm_fwd`; or the offset is no finite number, or not 0
            where there is no scale to add it to.
    """
    wide, last = widen(x), range(-axes, 0)
    rstd = lax.rsqrt((wide**2).mean(last, keepdims=True) + eps)
    x_hat = wide * rstd
    y = affine(params, x_hat, offset).astype(x.dtype)
    return y, Normalised(params, x_hat.astype(x.dtype), rstd)


def rms_norm_bwd(
    saved: Normalised, dy: Array, *, axes: int = 1, eps: float = 1e-5, offset: float = 0.0
) -> tuple[Scale, Array]:
    """Return dscale, dshift and dx = (dx_hat - x_hat mean(dx_hat x_hat)) / sigma."""
    x_hat, last = widen(saved.x_hat), range(-axes, 0)
    dparams, dx_hat = _affine_bwd(saved.params, x_hat, widen(dy), offset)
    through_sigma = x_hat * (dx_hat * x_hat).mean(last, keepdims=True)
    dx = saved.rstd * (dx_hat - through_sigma)
    return dparams, dx.astype(dy.dtype)


def group_norm_fwd(
    params: Scale, x: Array, *, groups: int, eps: float = 1e-5
) -> tuple[Array, Normalised]:
    """Normalise groups of channels of each example, over all positions (Wu and He, 2018).

    Args:
        params: scale and shift (C,), or None.
        x: (N, ..., C): examples, positions, channels.
        groups: a divisor of C: so many equal runs of channels.
        eps: added to the variance, in squared units of x.

    Returns:
        y (N, ..., C), residuals.

    Raises:
        TypeError, ValueError: as `layer_norm_fwd`.
        TypeError: groups are no integer.
        ValueError: x has fewer than two axes, or one but the first is 0; groups do not divide C.
    """
    grouped = widen(_grouped(x, groups))
    centred = grouped - grouped.mean((1, 3), keepdims=True)
    rstd = lax.rsqrt((centred**2).mean((1, 3), keepdims=True) + eps)
    x_hat = (centred * rstd).reshape(x.shape)
    y = affine(params, x_hat).astype(x.dtype)
    return y, Normalised(params, x_hat.astype(x.dtype), rstd)


def group_norm_bwd(
    saved: Normalised, dy: Array, *, groups: int, eps: float = 1e-5
) -> tuple[Scale, Array]:
    """Return dscale, dshift and dx as in `layer_norm_bwd`, with means over a group."""
    x_hat = widen(saved.x_hat)
    dparams, dx_hat = _affine_bwd(saved.params, x_hat, widen(dy))
    x_hat, dx_hat = _grouped(x_hat, groups), _grouped(dx_hat, groups)
    through_mean = dx_hat.mean((1, 3), keepdims=True)
    through_variance = x_hat * (dx_hat * x_hat).mean((1, 3), keepdims=True)
    dx = saved.rstd * (dx_hat - through_mean - through_variance)
    return dparams, dx.reshape(dy.shape).astype(dy.dtype)


def _grouped(x: Array, groups: int) -> Array:
    """Return (N, ..., C) as (N, positions, groups, channels of a group)."""
    n, *positions, channels = x.shape
    return x.reshape(n, math.prod(positions), groups, channels // groups)


def instance_norm_fwd(params: Scale, x: Array, *, eps: float = 1e-5) -> tuple[Array, Normalised]:
    """Normalise every channel of every example over all positions (Ulyanov et al., 2016, eq. 2).

    Group normalisation with one channel per group: arguments, result and errors as there, and x
    must have an axis of positions. With a single position x_hat is 0.
    """
    return group_norm_fwd(params, x, groups=x.shape[-1], eps=eps)


def instance_norm_bwd(saved: Normalised, dy: Array, *, eps: float = 1e-5) -> tuple[Scale, Array]:
    """Return what `group_norm_bwd` does with one channel per group."""
    return group_norm_bwd(saved, dy, groups=dy.shape[-1], eps=eps)


@partial(jax.jit, static_argnums=0)
def draw_example(shape: tuple[int, ...], key: Array) -> tuple[Scale, Array]:
    """Draw all parameters, and x of which one part is 0 throughout, and so its variance."""
    k1, k2, k3 = jax.random.split(key, 3)
    params = Scale(jax.random.normal(k1, shape[-1:]), jax.random.normal(k2, shape[-1:]))
    return params, jax.random.normal(k3, shape).at[0, 0].set(0.0)


layer_norm = Op(
    layer_norm_fwd,
    layer_norm_bwd,
    check=partial(check_last_axes, Scale, "layer_norm"),
    example=partial(draw_example, (3, 2, 5)),
    settings=({}, {"axes": 2}),
)
rms_norm = Op(
    rms_norm_fwd,
    rms_norm_bwd,
    check=partial(check_last_axes, Scale, "rms_norm"),
    example=partial(draw_example, (3, 2, 5)),
    settings=({"eps": 0.1}, {"offset": 1.0}, {"axes": 2}),
)
group_norm = Op(
    group_norm_fwd,
    group_norm_bwd,
    check=partial(check_groups, Scale),
    example=partial(draw_example, (2, 1, 5, 6)),
    settings=({"groups": 3},),
)
instance_norm = Op(
    instance_norm_fwd,
    instance_norm_bwd,
    check=partial(check_norm, Scale, "instance_norm", least=3),
    example=partial(draw_example, (2, 1, 5, 6)),
)
