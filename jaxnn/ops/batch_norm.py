"""Batch normalisation: every channel is normalised over a whole batch.

The formulas are those of `jaxnn.ops.normalisation`, with one group per channel. Saved are x - mean,
one value per element, and 1/sigma.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.checks import check_floating
from jaxnn.numerics import widen
from jaxnn.op import Op
from jaxnn.ops.normalisation import Scale, check_norm, draw_example, scaled
from jaxnn.settings import check_flag, check_number


class Running(NamedTuple):
    """Running statistics of batch normalisation: `mean` and `variance` (C,)."""

    mean: Array
    variance: Array


class Centred(NamedTuple):
    """What batch norm saves: the parameters, x - mean (of float16 in float32), and 1/sigma (C,)."""

    params: Scale
    centred: Array
    inverse_sigma: Array


def batch_norm_fwd(
    params: Scale,
    running: Running,
    x: Array,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[tuple[Array, Running], Centred]:
    """Every channel over the whole batch (Ioffe and Szegedy, 2015, algorithms 1 and 2).

    In training mean and variance are the batch's, and the running ones move towards them:

        new = (1 - momentum) running + momentum batch

    with the unbiased batch variance, n/(n - 1) times the biased one that normalises, n being the
    values per channel (so does PyTorch). In evaluation the running statistics normalise and are
    handed out as they came. They are results like y: a loss may use them, and the cotangents that
    they get, usually 0, reach x and the statistics handed in.

    Saves x - mean, one value per element, in place of x_hat: the variance needs it as an array of
    its own, and what differs, 1/sigma, is one factor for a channel.

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
        TypeError, ValueError: as `jaxnn.ops.normalisation.layer_norm_fwd`.
        TypeError: the running statistics are no floating arrays, `training` is neither True nor
            False, or the momentum no number.
        ValueError: the running statistics are not (C,); momentum is outside [0, 1]; in training a
            channel has fewer than two values, of which there is no variance.
    """
    params, x, eps = check_norm("batch_norm", params, x, eps)
    if not isinstance(running, Running):
        raise TypeError(
            f"batch_norm: running is a {type(running).__name__}; it must be the statistics: start "
            "from Running(jnp.zeros(channels), jnp.ones(channels))"
        )
    for field, value in running._asdict().items():
        check_floating(f"batch_norm: running {field}", value)
    running = jax.tree.map(jnp.asarray, running)
    if running.mean.shape != x.shape[-1:] or running.variance.shape != x.shape[-1:]:
        raise ValueError(
            f"batch_norm: running mean has shape {running.mean.shape}, variance "
            f"{running.variance.shape}, x {x.shape}; both must be ({x.shape[-1]},), one value per "
            "channel: channels come last"
        )
    momentum = check_number(
        "batch_norm: momentum",
        momentum,
        "in [0, 1], the weight of the new batch: 0.1 is usual",
        lambda m: 0 <= m <= 1,
    )
    wide, axes = widen(x), tuple(range(x.ndim - 1))
    if check_flag("batch_norm: training", training):
        n = math.prod(x.shape[:-1])
        if n < 2:
            raise ValueError(
                f"batch_norm: x has shape {x.shape}, {n} values per channel; training needs at "
                "least 2 for a variance: pass a larger batch or training=False"
            )
        mean = wide.mean(axes)
        centred = wide - mean
        variance = (centred * centred).mean(axes)
        batch = Running(mean, variance * (n / (n - 1)))
        running = jax.tree.map(
            lambda old, seen: (1 - momentum) * old + (momentum * seen).astype(old.dtype),
            running,
            batch,
        )
    else:
        mean, variance = (s.astype(wide.dtype) for s in running)
        centred = wide - mean
    inverse_sigma = lax.rsqrt(variance + eps)
    y = scaled(params, centred * inverse_sigma).astype(x.dtype)
    # The difference of float16's largest numbers is beyond it.
    kept = centred if x.dtype == jnp.float16 else centred.astype(x.dtype)
    return (y, running), Centred(params, kept, inverse_sigma)


def batch_norm_bwd(
    residuals: Centred,
    dout: tuple[Array, Running],
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Scale, Running, Array]:
    """dx = a dy + b (x - mean) + c, with one a, b and c per channel: one scale and one sigma each.

    In training by the formulas, and by what the new running statistics owe to x:

        d batch mean / dx = 1/n,  d batch variance / dx = 2 (x - mean) / (n - 1)

    In evaluation y is affine in x: dx = a dy, dmean = -a sum(dy) and dvariance =
    -a sum(dy x_hat) / (2 sigma).
    """
    (scale, shift), centred, inverse_sigma = residuals
    dy, dnew = dout
    axes, n = tuple(range(dy.ndim - 1)), math.prod(dy.shape[:-1])
    wide_dy, wide = widen(dy), widen(centred)
    sum_dy, sum_dy_x_hat = wide_dy.sum(axes), inverse_sigma * (wide_dy * wide).sum(axes)
    dscale = None if scale is None else sum_dy_x_hat.astype(scale.dtype)
    dshift = None if shift is None else sum_dy.astype(shift.dtype)
    a = inverse_sigma if scale is None else scale.astype(wide.dtype) * inverse_sigma
    through_variance = a * sum_dy_x_hat * inverse_sigma  # in this order no power of sigma overflows
    if not training:
        through = Running(-a * sum_dy, -0.5 * through_variance)
        drunning = jax.tree.map(lambda d, dx: d + dx.astype(d.dtype), dnew, through)
        return Scale(dscale, dshift), drunning, (a * wide_dy).astype(dy.dtype)
    dmean, dvariance = (momentum * d.astype(wide.dtype) for d in dnew)
    b = 2 / (n - 1) * dvariance - through_variance / n
    c = (dmean - a * sum_dy) / n
    dx = (a * wide_dy + b * wide + c).astype(dy.dtype)
    return Scale(dscale, dshift), jax.tree.map(lambda d: (1 - momentum) * d, dnew), dx


@jax.jit
def _batch_example(key: Array) -> tuple[Scale, Running, Array]:
    """A batch of which one channel is 0 throughout."""
    k1, k2 = jax.random.split(key)
    params, x = draw_example(k1, 7, 2, 3)
    mean = jax.random.normal(k2, (3,))
    return params, Running(mean, jnp.array([0.5, 1.0, 3.0])), x.at[..., 1].set(0.0)


batch_norm = Op(
    batch_norm_fwd,
    batch_norm_bwd,
    example=_batch_example,
    settings=({"training": True, "momentum": 0.3}, {"training": False}),
)
