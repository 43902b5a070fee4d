"""Exponential linear units, elementwise: x, and left of 0 an exponential that levels off.

    elu   x or alpha (exp(x) - 1)          slope 1 or alpha exp(x)
    celu  x or alpha (exp(x / alpha) - 1)  slope 1 or exp(x / alpha)
    selu  scale elu(x)                     slope scale or scale alpha exp(x)

They save x, one value per element: far left every digit of y is -alpha's, and none tells the slope.
At a kink the slope is the one that `jax.nn` takes. Each raises a TypeError for an x that is no
floating array. All compute in float32 or wider and round once.
"""

import jax.numpy as jnp
from jax import Array

from jaxnn.numerics import widen
from jaxnn.op import Op
from jaxnn.ops.activation_doors import door_of, example

SELU_SCALE = 1.0507009873554805
SELU_ALPHA = 1.6732632423543772


def elu_fwd(x: Array, *, alpha: float = 1.0) -> tuple[Array, Array]:
    """Return y = x where x > 0, else alpha (exp(x) - 1). The slope at 0 is alpha.

    Clevert, Unterthiner and Hochreiter 2016, "Fast and accurate deep network learning by
    exponential linear units".

    Raises:
        TypeError, ValueError: alpha is no finite number.
    """
    # Where x is positive its exponential is not used, and could overflow.
    below = jnp.where(x > 0, 0, widen(x))
    return jnp.where(x > 0, x, (alpha * jnp.expm1(below)).astype(x.dtype)), x


def elu_bwd(x: Array, dy: Array, *, alpha: float = 1.0) -> tuple[Array]:
    """Return dx = dy where x > 0, else dy alpha exp(x)."""
    below = jnp.where(x > 0, 0, widen(x))
    return (jnp.where(x > 0, dy, (widen(dy) * (alpha * jnp.exp(below))).astype(x.dtype)),)


def celu_fwd(x: Array, *, alpha: float = 1.0) -> tuple[Array, Array]:
    """Return y = x where x > 0, else alpha (exp(x / alpha) - 1): an ELU whose slope has no step.

    Barron 2017, "Continuously differentiable exponential linear units".

    Raises:
        TypeError, ValueError: alpha is no finite number, or 0.
    """
    below = jnp.where(x > 0, 0, widen(x)) / alpha
    return jnp.where(x > 0, x, (alpha * jnp.expm1(below)).astype(x.dtype)), x


def celu_bwd(x: Array, dy: Array, *, alpha: float = 1.0) -> tuple[Array]:
    """Return dx = dy where x > 0, else dy exp(x / alpha)."""
    below = jnp.where(x > 0, 0, widen(x)) / alpha
    return (jnp.where(x > 0, dy, (widen(dy) * jnp.exp(below)).astype(x.dtype)),)


def selu_fwd(x: Array) -> tuple[Array, Array]:
    """Return y = scale elu(x): alpha and scale keep mean 0 and variance 1 of a normal x.

    The slope at 0 is scale alpha. Klambauer et al. 2017, "Self-normalizing neural networks",
    equation 2.
    """
    below = jnp.where(x > 0, 0, widen(x))
    y = SELU_SCALE * jnp.where(x > 0, widen(x), SELU_ALPHA * jnp.expm1(below))
    return y.astype(x.dtype), x


def selu_bwd(x: Array, dy: Array) -> tuple[Array]:
    """Return dx = scale dy where x > 0, else scale alpha exp(x) dy."""
    below = jnp.where(x > 0, 0, widen(x))
    dx = SELU_SCALE * widen(dy) * jnp.where(x > 0, 1, SELU_ALPHA * jnp.exp(below))
    return (dx.astype(x.dtype),)


elu = Op(elu_fwd, elu_bwd, example, settings=({"alpha": 0.7},), check=door_of("elu"))
celu = Op(celu_fwd, celu_bwd, example, settings=({"alpha": 0.7},), check=door_of("celu"))
selu = Op(selu_fwd, selu_bwd, example, check=door_of("selu"))
