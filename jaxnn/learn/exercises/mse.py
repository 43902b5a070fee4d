"""Mean squared error: the mean, over all entries, of the squared difference to the targets.

predictions (N, K), targets (N, K): N examples of K numbers;  loss (), one number
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.ops.losses import mean_squared_error

LESSON = "losses"
INPUTS = {"predictions": "(N, K)", "targets": "(N, K)"}
OUTPUT = {"loss": "()"}
GRADES = ("easy", "fused", "memory")
HINTS = (
    "The mean gives each of its N K entries the same part of dloss.",
    "The slope of a square is twice its argument, with its sign.",
    "The two inputs differ only in sign: what dpredictions is, dtargets is with a minus. Every "
    "cotangent has dloss in it, which need not be 1.",
)


def forward(predictions: Array, targets: Array) -> Array:
    """Return the mean of the squares of predictions - targets."""
    d = predictions - targets
    square = d**2
    loss = square.mean()
    return loss


def steps(
    predictions: Array, targets: Array, d: Array, square: Array, loss: Array, dloss: Array
) -> dict[str, Array]:
    """Go back through the mean, the square and the difference."""
    dsquare = jnp.full_like(square, dloss / square.size)
    dd = 2 * d * dsquare
    dpredictions = dd
    dtargets = -dd
    return {"square": dsquare, "d": dd, "predictions": dpredictions, "targets": dtargets}


def mse_fwd(predictions: Array, targets: Array) -> tuple[Array, Array]:
    """Return the loss, and what the backward needs: the difference."""
    d = predictions - targets
    return (d**2).mean(), d


def mse_bwd(d: Array, dloss: Array) -> tuple[Array, Array]:
    """Return the cotangents of predictions and targets."""
    dd = 2 * d * dloss / d.size
    return dd, -dd


def library(predictions: Array, targets: Array) -> Array:
    """Return the library's own, to compare with."""
    return jnp.asarray(mean_squared_error(predictions, targets))


def example(key: Array) -> tuple[Array, Array]:
    """Draw predictions and targets (4, 3)."""
    a, b = jax.random.split(key)
    return jax.random.normal(a, (4, 3)), 1.5 * jax.random.normal(b, (4, 3)) + 0.3


BUGS = (
    (
        "dloss / d.size",
        "dloss / len(d)",
        "The mean is over all entries, N K of them, not over the N examples alone.",
    ),
    (
        "2 * d * dloss / d.size",
        "2 * d / d.size",
        "The loss may be one term of another: what comes back, dloss, is in every cotangent.",
    ),
    (
        "return dd, -dd",
        "return dd, dd",
        "The targets were subtracted: their cotangent has the other sign.",
    ),
)
