"""Huber's loss: the squared error near 0, the absolute error beyond, so that outliers pull less.

predictions (N, K), targets (N, K): N examples of K numbers;  loss (), one number
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.ops import losses as library_losses

LESSON = "losses"
INPUTS = {"predictions": "(N, K)", "targets": "(N, K)"}
OUTPUT = {"loss": "()"}
GRADES = ("easy", "fused", "memory")
HINTS = (
    "Treat each side by itself: where the difference is small its half square counts, elsewhere "
    "its size. An entry gets a cotangent only through the side that was taken.",
    "The slope of |d| is the sign of d, that of d^2 / 2 is d.",
    "Both sides together are one short formula: d, but no larger than 0.8 and no smaller than "
    "-0.8, times what the mean hands to every entry.",
)


def forward(predictions: Array, targets: Array) -> Array:
    """Return the mean of d^2 / 2 where |d| <= 0.8, else of 0.8 (|d| - 0.4)."""
    d = predictions - targets
    size = jnp.abs(d)
    each = jnp.where(size <= 0.8, d**2 / 2, 0.8 * (size - 0.4))
    loss = each.mean()
    return loss


def steps(
    predictions: Array,
    targets: Array,
    d: Array,
    size: Array,
    each: Array,
    loss: Array,
    dloss: Array,
) -> dict[str, Array]:
    """Go back through the mean, the two sides and the difference."""
    deach = jnp.full_like(each, dloss / each.size)
    dsize = jnp.where(size <= 0.8, 0, 0.8 * deach)
    dd = jnp.where(size <= 0.8, d * deach, 0) + jnp.sign(d) * dsize
    dpredictions = dd
    dtargets = -dd
    return {
        "each": deach,
        "size": dsize,
        "d": dd,
        "predictions": dpredictions,
        "targets": dtargets,
    }


def huber_fwd(predictions: Array, targets: Array) -> tuple[Array, Array]:
    """Return the loss, and what the backward needs: the difference."""
    d = predictions - targets
    size = jnp.abs(d)
    return jnp.where(size <= 0.8, d**2 / 2, 0.8 * (size - 0.4)).mean(), d


def huber_bwd(d: Array, dloss: Array) -> tuple[Array, Array]:
    """Return the cotangents of predictions and targets."""
    dd = jnp.clip(d, -0.8, 0.8) * dloss / d.size
    return dd, -dd


def library(predictions: Array, targets: Array) -> Array:
    """Return the library's own, to compare with."""
    return jnp.asarray(library_losses.huber(predictions, targets, delta=0.8))


def example(key: Array) -> tuple[Array, Array]:
    """Draw predictions and targets (4, 3), some near to each other and some not."""
    a, b = jax.random.split(key)
    return jax.random.normal(a, (4, 3)), jax.random.normal(b, (4, 3)) + 0.3


BUGS = (
    (
        "jnp.clip(d, -0.8, 0.8)",
        "jnp.where(jnp.abs(d) <= 0.8, d, jnp.sign(d))",
        "Beyond 0.8 the slope is that of 0.8 |d|: the factor 0.8 was missing.",
    ),
    (
        "jnp.clip(d, -0.8, 0.8)",
        "jnp.where(jnp.abs(d) <= 0.8, d, 0)",
        "Beyond 0.8 the loss still grows: an outlier pulls less, but it pulls.",
    ),
)
