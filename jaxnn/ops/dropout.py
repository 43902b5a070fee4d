"""Dropout.  y = x / (1 - rate) where an element is kept, else 0;  dx = dy / (1 - rate), else 0.

Each element is dropped with probability `rate`, independently; what is kept grows such that the
mean of y is x. A model in evaluation leaves dropout out.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnn.checks import check_floating, check_key
from jaxnn.op import Op
from jaxnn.settings import check_number


def dropout_fwd(x: Array, key: Array, *, rate: float) -> tuple[Array, Array]:
    """Zeros in place of a share `rate` of x, drawn from `key`; the rest is divided by 1 - rate.

    The same key drops the same elements, whatever the dtype of x, in the forward and the backward.
    Saves which elements are kept, one byte per element: less time to read than drawing them again
    from the key would take, for a quarter of the bytes of a float32 x.
    Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting",
    with the scaling in training in place of evaluation.

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
    check_floating("dropout: x", x)
    rate = _check_rate(rate)
    check_key("dropout: key", key, ", or leave dropout out in evaluation")
    # Integers, and not the uniform numbers of x's dtype: those would be others in another dtype.
    kept = jax.random.bits(key, x.shape, jnp.uint32) >= np.uint32(int(rate * 2**32))
    return jnp.where(kept, x / (1 - rate), 0), kept


def dropout_bwd(kept: Array, dy: Array, *, rate: float) -> tuple[Array, None]:
    """dx = dy / (1 - rate) where x was kept, else 0; the key has no cotangent."""
    return jnp.where(kept, dy / (1 - rate), 0), None


def drop_fwd(x: Array, key: Array | None, rate: float) -> tuple[Array, Array | None]:
    """A model's dropout: in training with a key; without one, in evaluation, x as it is.

    Saves which elements are kept, None for all.

    Raises:
        TypeError, ValueError: as `dropout_fwd`; the rate, without a key too.
    """
    rate = _check_rate(rate)
    if key is None or not rate:
        return x, None
    return dropout.fwd(x, key, rate=rate)


def drop_bwd(kept: Array | None, dy: Array, rate: float) -> Array:
    """dx of `drop_fwd`."""
    return dy if kept is None else dropout.bwd(kept, dy, rate=rate)[0]


def _check_rate(rate: Any) -> float:
    return check_number(
        "dropout: rate",
        rate,
        "in [0, 1), the probability to drop an element: to keep a share p pass rate=1 - p",
        lambda r: 0 <= r < 1,
    )


def _example(key: Array) -> tuple[Array, Array]:
    kx, kdrop = jax.random.split(key)
    return jax.random.normal(kx, (3, 1, 7)).at[0, 0, :2].set(0.0), kdrop


dropout = Op(dropout_fwd, dropout_bwd, example=_example, settings=({"rate": 0.3},))
