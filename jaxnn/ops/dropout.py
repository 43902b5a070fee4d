"""Dropout.  y = x / (1 - rate) where an element is kept, else 0;  dx = dy / (1 - rate), else 0.

Each element is dropped with probability `rate`, independently; what is kept grows such that the
mean of y is x. A model in evaluation leaves dropout out.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.checks import check_floating, check_key
from jaxnn.op import Op
from jaxnn.settings import check_rate


def dropout_fwd(x: Array, key: Array, *, rate: float) -> tuple[Array, Array]:
    """Put 0 in place of a share `rate` of x, drawn from `key`; divide the rest by 1 - rate.

    The same key drops the same elements, whatever the dtype of x, in the forward and the backward.
    Saves which elements are kept, one byte per element. Srivastava et al. 2014, "Dropout: a simple
    way to prevent neural networks from overfitting", with the scaling in training in place of
    evaluation.

    Args:
        x: any shape.
        key: a key of `jax.random`, typed or not; no other draw should use it.
        rate: the probability to drop an element (not to keep it), in [0, 1), exact to 2^-32.

    Returns:
        y (the shape of x), residuals.

    Raises:
        TypeError: x is no floating array, the key no key or the rate no number.
        ValueError: the rate is outside [0, 1).
    """
    # Integers, and not the uniform numbers of x's dtype: those would be others in another dtype.
    drawn = jax.random.bits(key, x.shape, jnp.uint32)
    kept = drawn >= jnp.uint32(int(rate * 2**32))
    y = jnp.where(kept, x / (1 - rate), 0)
    return y, kept


def dropout_bwd(kept: Array, dy: Array, *, rate: float) -> tuple[Array, None]:
    """Return dx = dy / (1 - rate) where x was kept, else 0; the key has no cotangent."""
    dx = jnp.where(kept, dy / (1 - rate), 0)
    return dx, None


def _check(x: Array, key: Array, *, rate: float) -> None:
    check_floating("dropout: x", x)
    check_rate("dropout: rate", rate)
    check_key("dropout: key", key, ", or leave dropout out in evaluation")


def _example(key: Array) -> tuple[Array, Array]:
    kx, kdrop = jax.random.split(key)
    return jax.random.normal(kx, (3, 1, 7)).at[0, 0, :2].set(0.0), kdrop


dropout = Op(dropout_fwd, dropout_bwd, _example, settings=({"rate": 0.3},), check=_check)
