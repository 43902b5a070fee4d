"""Softplus: a smooth ramp, y = log(1 + exp(x)), that must not overflow.

x (T, N): T examples of N features;  y (T, N)
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn import ops

LESSON = "numbers"
INPUTS = {"x": "(T, N)"}
OUTPUT = {"y": "(T, N)"}
HINTS = (
    "The slope of log(1 + e) with respect to e is 1 / (1 + e), and that of exp(x) is exp(x).",
    "exp(100) is infinite in float32. Is there a form of exp(x) / (1 + exp(x)) in which nothing "
    "overflows?",
    "Divide both sides of the fraction by exp(x): what is left is the logistic function of x, "
    "which jax.nn.sigmoid computes for any x.",
)
GRADES = ("easy", "fused", "memory")
BUGS = (
    (
        "jax.nn.sigmoid(x)",
        "jax.nn.sigmoid(-x)",
        "The slope must rise from 0 far left to 1 far right; that of -x falls.",
    ),
    (
        "jax.nn.sigmoid(x)",
        "(jnp.exp(x) / (1 + jnp.exp(x)))",
        "Right on paper; where exp(x) overflows it is infinity over infinity.",
    ),
)


def forward(x: Array) -> Array:
    """Compute the ramp as the formula has it."""
    e = jnp.exp(x)
    s = 1 + e
    y = jnp.log(s)
    return y


def steps(x: Array, e: Array, s: Array, y: Array, dy: Array) -> dict[str, Array]:
    """Go back through the lines of the forward."""
    ds = dy / s
    de = ds
    dx = de * e
    return {"s": ds, "e": de, "x": dx}


def softplus_fwd(x: Array) -> tuple[Array, Array]:
    """Compute the ramp so that nothing overflows; x is saved."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x))), x


def softplus_bwd(x: Array, dy: Array) -> tuple[Array]:
    """Return dx."""
    return (dy * jax.nn.sigmoid(x),)


def example(key: Array) -> tuple[Array]:
    """Draw x."""
    return (2 * jax.random.normal(key, (3, 5)),)


def library(x: Array) -> Array:
    """Return what the library's op gives."""
    y: Array = ops.activations.softplus(x)
    return y
