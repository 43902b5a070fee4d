"""Shrinkage, elementwise: what is small becomes 0, or another value.

    hard_shrink  x, or 0 where |x| <= lambd               slope 0 or 1
    soft_shrink  x -+ lambd, or 0 where |x| <= lambd      slope 0 or 1
    tanh_shrink  x - tanh(x)                              slope tanh(x)^2
    threshold    x, or `value` where x <= `threshold`     slope 0 or 1

They save x or y, or on which side of its jumps x is, one byte per element. Each raises a TypeError
for an x that is no floating array. All compute in float32 or wider and round once.
"""

import jax.numpy as jnp
from jax import Array

from jaxnn.numerics import widen
from jaxnn.op import Op
from jaxnn.ops.activation_doors import door_of, example


def hard_shrink_fwd(x: Array, *, lambd: float = 0.5) -> tuple[Array, Array]:
    """Return y = x, or 0 where |x| <= lambd, where the slope is 0.

    Donoho and Johnstone 1994, "Ideal spatial adaptation by wavelet shrinkage": hard thresholding.

    Raises:
        TypeError: lambd is no number.
        ValueError: it is not finite, or below 0.
    """
    y = jnp.where(jnp.abs(widen(x)) <= lambd, 0, x)
    return y, y


def hard_shrink_bwd(y: Array, dy: Array, *, lambd: float = 0.5) -> tuple[Array]:
    """Return dx = dy where y is not 0, else 0."""
    return (jnp.where(y == 0, 0, dy),)


def soft_shrink_fwd(x: Array, *, lambd: float = 0.5) -> tuple[Array, Array]:
    """Return y = x - lambd sign(x), or 0 where |x| <= lambd, where the slope is 0.

    Donoho and Johnstone 1994, soft thresholding. Saves which x are outside, one byte per element.

    Raises:
        TypeError, ValueError: as `hard_shrink_fwd`.
    """
    wide = widen(x)
    inside = jnp.abs(wide) <= lambd
    return jnp.where(inside, 0, wide - lambd * jnp.sign(wide)).astype(x.dtype), ~inside


def soft_shrink_bwd(outside: Array, dy: Array, *, lambd: float = 0.5) -> tuple[Array]:
    """Return dx = dy where |x| > lambd, else 0."""
    return (jnp.where(outside, dy, 0),)


def tanh_shrink_fwd(x: Array) -> tuple[Array, Array]:
    """Return y = x - tanh(x)."""
    return (widen(x) - jnp.tanh(widen(x))).astype(x.dtype), x


def tanh_shrink_bwd(x: Array, dy: Array) -> tuple[Array]:
    """Return dx = dy tanh(x)^2."""
    return ((widen(dy) * jnp.tanh(widen(x)) ** 2).astype(x.dtype),)


def threshold_fwd(x: Array, *, threshold: float, value: float) -> tuple[Array, Array]:
    """Return y = x, or `value` where x <= `threshold`, where the slope is 0.

    Saves which x are above, one byte per element.

    Raises:
        TypeError, ValueError: the threshold or the value is no finite number.
    """
    low = widen(x) <= threshold
    return jnp.where(low, jnp.asarray(value, x.dtype), x), ~low


def threshold_bwd(above: Array, dy: Array, *, threshold: float, value: float) -> tuple[Array]:
    """Return dx = dy where x > `threshold`, else 0."""
    return (jnp.where(above, dy, 0),)


hard_shrink = Op(hard_shrink_fwd, hard_shrink_bwd, example, check=door_of("hard_shrink"))
soft_shrink = Op(soft_shrink_fwd, soft_shrink_bwd, example, check=door_of("soft_shrink"))
tanh_shrink = Op(tanh_shrink_fwd, tanh_shrink_bwd, example, check=door_of("tanh_shrink"))
threshold = Op(
    threshold_fwd,
    threshold_bwd,
    example,
    settings=({"threshold": 0.5, "value": -2.0},),
    check=door_of("threshold"),
)
