"""The sigmoid, or logistic function: any number becomes one between 0 and 1.

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
    "One over s has the slope minus one over s squared; s itself is one over y.",
    "The exponential is its own slope, and here its argument is minus x: there are two minus "
    "signs on the way.",
    "What is left is e / (1 + e)^2 times dy. One factor 1 / (1 + e) is y; what is the other, "
    "e / (1 + e), in terms of y? Then y alone has to be saved.",
)


def forward(x: Array) -> Array:
    """Return 1 / (1 + exp(-x))."""
    e = jnp.exp(-x)
    s = 1 + e
    y = 1 / s
    return y


def steps(x: Array, e: Array, s: Array, y: Array, dy: Array) -> dict[str, Array]:
    """Go back through the lines of the forward."""
    ds = -dy / s**2
    de = ds
    dx = -e * de
    return {"s": ds, "e": de, "x": dx}


def sigmoid_fwd(x: Array) -> tuple[Array, Array]:
    """Return y so that nothing overflows, and what the backward needs: y."""
    y = jax.nn.sigmoid(x)
    return y, y


def sigmoid_bwd(y: Array, dy: Array) -> tuple[Array]:
    """Return the cotangent of x."""
    return (dy * y * (1 - y),)


def library(x: Array) -> Array:
    """Return the library's own, to compare with."""
    return jnp.asarray(activations.sigmoid(x))


def example(key: Array) -> tuple[Array]:
    """Draw x (4, 3)."""
    return (1.5 * jax.random.normal(key, (4, 3)),)


BUGS = (
    (
        "dy * y * (1 - y)",
        "dy * (1 - y**2)",
        "One minus the square of the output is the slope of tanh.",
    ),
    (
        "dy * y * (1 - y)",
        "dy * jax.nn.sigmoid(y) * (1 - jax.nn.sigmoid(y))",
        "What was saved is the output: the sigmoid must not be taken a second time.",
    ),
)
