"""ReLU: what is negative becomes 0, the rest passes.

x (N, C): N examples of C features;  y (N, C)
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.ops import activations

LESSON = "activations"
INPUTS = {"x": "(N, C)"}
OUTPUT = {"y": "(N, C)"}
GRADES = ("easy", "fused", "memory")
HINTS = (
    "Each entry of y depends on the same entry of x alone: dx is dy times a slope, entry by entry.",
    "Draw the function. Left of 0 it is flat, right of 0 it rises as fast as x does.",
    "The slope depends on the sign of x, not on the sign of dy: a negative dy passes where x is "
    "positive. y tells the sign of x just as well, since it is positive where x is.",
)


def forward(x: Array) -> Array:
    """Return x where it is positive, else 0."""
    y = jnp.where(x > 0, x, 0)
    return y


def steps(x: Array, y: Array, dy: Array) -> dict[str, Array]:
    """Let the cotangent pass where x passed."""
    dx = jnp.where(x > 0, dy, 0)
    return {"x": dx}


def relu_fwd(x: Array) -> tuple[Array, Array]:
    """Return y, and what the backward needs: y, which the next layer keeps anyway."""
    y = jnp.maximum(x, 0)
    return y, y


def relu_bwd(y: Array, dy: Array) -> tuple[Array]:
    """Return the cotangent of x."""
    return (jnp.where(y > 0, dy, 0),)


def library(x: Array) -> Array:
    """Return the library's own, to compare with."""
    return jnp.asarray(activations.relu(x))


def example(key: Array) -> tuple[Array]:
    """Draw x (4, 3)."""
    return (2 * jax.random.normal(key, (4, 3)),)


BUGS = (
    (
        "jnp.where(y > 0, dy, 0)",
        "jnp.maximum(dy, 0)",
        "Not the cotangent is cut at 0, but x was: where x is positive a negative cotangent "
        "passes too.",
    ),
    (
        "y > 0",
        "y >= 0",
        "y is never negative, so that y >= 0 holds everywhere and lets everything pass.",
    ),
)
