"""Activations in straight pieces, elementwise, beside `jaxnn.ops.activations.relu`.

    leaky_relu    x, or slope x where x < 0                     slope 1 or `slope`
    prelu         x, or slope x where x < 0                     slope 1 or `slope`, which is learned
    relu6         min(max(x, 0), 6)                             slope 0 or 1
    hard_tanh     min(max(x, min_val), max_val)                 slope 0 or 1
    hard_sigmoid  min(max(x + 3, 0), 6) / 6                     slope 0 or 1/6
    hard_swish    x hard_sigmoid(x)                             slope 0, 1 or x / 3 + 1/2

They save x, or on which side of its kinks x is, one byte per element. At a kink the slope is the
one that `jax.nn` takes, but that of hard_tanh, 0 as in PyTorch. Each raises a TypeError for an x
that is no floating array. All compute in float32 or wider and round once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.checks import check_kind, check_one_dtype
from jaxnn.numerics import rounded_once
from jaxnn.op import Op
from jaxnn.ops.activation_doors import door_of, example


@rounded_once
def leaky_relu_fwd(x: Array, *, slope: float = 0.01) -> tuple[Array, Array]:
    """Return y = x where x >= 0, else slope x. The slope at 0 is 1, as in `jax.nn.leaky_relu`.

    Saves which x are >= 0, one byte per element: y tells only if `slope` is positive, and not of an
    x so small that slope x is 0. Maas, Hannun and Ng 2013, "Rectifier nonlinearities improve neural
    network acoustic models".

    Raises:
        TypeError, ValueError: the slope is no finite number.
    """
    positive = x >= 0
    return jnp.where(positive, x, slope * x), positive


@rounded_once
def leaky_relu_bwd(positive: Array, dy: Array, *, slope: float = 0.01) -> tuple[Array]:
    """Return dx = dy where x >= 0, else slope dy."""
    return (jnp.where(positive, dy, slope * dy),)


class Slope(NamedTuple):
    """The learned slope left of 0: one per channel (C,), or one for all ()."""

    slope: Array


class PReluResiduals(NamedTuple):
    """The slope and x."""

    slope: Array
    x: Array


@rounded_once
def prelu_fwd(params: Slope, x: Array) -> tuple[Array, PReluResiduals]:
    """Return y = x where x >= 0, else slope x, for x (..., C); the slope at 0 is 1.

    He et al. 2015, "Delving deep into rectifiers", equation 1; they start from 0.25.

    Args:
        params: slope (C,), one for each channel, or (), one for all.
        x: (..., C), of any shape where there is one slope.

    Raises:
        TypeError: params are no `Slope`, or it and x not floating arrays of one dtype.
        ValueError: the slope is neither () nor (C,).
    """
    (slope,) = params
    return jnp.where(x >= 0, x, slope * x), PReluResiduals(slope, x)


@rounded_once
def prelu_bwd(residuals: PReluResiduals, dy: Array) -> tuple[Slope, Array]:
    """Return dslope = sum of dy x where x < 0, and dx = dy or slope dy."""
    slope, x = residuals
    dslope = jnp.where(x >= 0, 0, dy * x).sum(range(x.ndim - slope.ndim))
    return Slope(dslope), jnp.where(x >= 0, dy, slope * dy)


def relu6_fwd(x: Array) -> tuple[Array, Array]:
    """Return y = min(max(x, 0), 6). The slope at 0 and 6 is 0, as in `jax.nn.relu6`.

    Krizhevsky 2010, "Convolutional deep belief networks on CIFAR-10".
    """
    return hard_tanh_fwd(x, min_val=0.0, max_val=6.0)


def relu6_bwd(outside: Array, dy: Array) -> tuple[Array]:
    """Return dx = dy where 0 < x < 6, else 0."""
    return hard_tanh_bwd(outside, dy, min_val=0.0, max_val=6.0)


@rounded_once
def hard_tanh_fwd(x: Array, *, min_val: float = -1.0, max_val: float = 1.0) -> tuple[Array, Array]:
    """Return y = min(max(x, min_val), max_val). The slope at both is 0, as in PyTorch.

    Collobert 2004, "Large scale machine learning", section 5.

    Raises:
        TypeError: a limit is no number.
        ValueError: one is not finite, or min_val not below max_val.
    """
    outside = (x <= min_val) | (x >= max_val)
    return jnp.where(x <= min_val, min_val, jnp.where(x >= max_val, max_val, x)), outside


def hard_tanh_bwd(
    outside: Array, dy: Array, *, min_val: float = -1.0, max_val: float = 1.0
) -> tuple[Array]:
    """Return dx = dy where min_val < x < max_val, else 0."""
    return (jnp.where(outside, 0, dy),)


@rounded_once
def hard_sigmoid_fwd(x: Array) -> tuple[Array, Array]:
    """Return y = min(max(x + 3, 0), 6) / 6. The slope at -3 and 3 is 0, as in `jax.nn`.

    Howard et al. 2019, "Searching for MobileNetV3", section 5.2.
    """
    return jax.nn.relu6(x + 3) / 6, (x > -3) & (x < 3)


@rounded_once
def hard_sigmoid_bwd(rising: Array, dy: Array) -> tuple[Array]:
    """Return dx = dy / 6 where -3 < x < 3, else 0."""
    return (jnp.where(rising, dy / 6, 0),)


@rounded_once
def hard_swish_fwd(x: Array) -> tuple[Array, Array]:
    """Return y = x min(max(x + 3, 0), 6) / 6. The slope at -3 is 0 and at 3 is 1, as in `jax.nn`.

    Howard et al. 2019, "Searching for MobileNetV3", equation 4.
    """
    return x * jax.nn.relu6(x + 3) / 6, x


@rounded_once
def hard_swish_bwd(x: Array, dy: Array) -> tuple[Array]:
    """Return dx = 0 where x <= -3, dy where x >= 3, else dy (x / 3 + 1/2)."""
    return (jnp.where(x <= -3, 0, jnp.where(x >= 3, dy, dy * (x / 3 + 0.5))),)


def _check_prelu(params: Slope, x: Array) -> None:
    check_kind("prelu: params", params, Slope)
    check_one_dtype("prelu", slope=params.slope, x=x)
    if params.slope.shape not in ((), x.shape[-1:]):
        raise ValueError(
            f"prelu: slope has shape {params.slope.shape}, x {x.shape}; it must be () or "
            f"{x.shape[-1:]}, one slope for each of the last axis: move the channels last"
        )


def _prelu_example(key: Array) -> tuple[Slope, Array]:
    """One slope negative and one 0."""
    return Slope(jnp.array([0.25, -0.5, 0.0, 1.5, 0.1])), *example(key)


leaky_relu = Op(
    leaky_relu_fwd,
    leaky_relu_bwd,
    example,
    settings=({"slope": 0.2},),
    check=door_of("leaky_relu"),
)
prelu = Op(prelu_fwd, prelu_bwd, _prelu_example, check=_check_prelu)
relu6 = Op(relu6_fwd, relu6_bwd, example, check=door_of("relu6"))
hard_tanh = Op(
    hard_tanh_fwd,
    hard_tanh_bwd,
    example,
    settings=({}, {"min_val": -0.5, "max_val": 3.0}),
    check=door_of("hard_tanh"),
)
hard_sigmoid = Op(hard_sigmoid_fwd, hard_sigmoid_bwd, example, check=door_of("hard_sigmoid"))
hard_swish = Op(hard_swish_fwd, hard_swish_bwd, example, check=door_of("hard_swish"))
