"""An L2 penalty: half the sum of all squared weights, times a strength, added to a loss.

w_1 (I, H), w_2 (H, O): the weights of two layers; the strength is 0.3;  loss: one number
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn import ops

LESSON = "regularisation"
INPUTS = {"w_1": "(I, H)", "w_2": "(H, O)"}
OUTPUT = {"loss": "()"}
HINTS = (
    "Every weight is in the sum once, as a square. Its cotangent depends on no other weight.",
    "A square has the slope 2 times its argument. What is the factor 1/2 in front for?",
    "A sum hands its cotangent to all its terms: an array of the shape of the weights, filled with "
    "the strength and dloss, then times the weights.",
)
GRADES = ("easy", "fused", "memory")
BUGS = (
    (
        "STRENGTH * dloss * w_1",
        "2 * STRENGTH * dloss * w_1",
        "The 1/2 in front is there to cancel the 2 that comes from the square.",
    ),
    (
        "STRENGTH * dloss * w_2",
        "STRENGTH * w_2",
        "What stands after the penalty hands back dloss, and every cotangent is times that.",
    ),
    (
        "STRENGTH * dloss * w_1",
        "STRENGTH * dloss * jnp.sign(w_1)",
        "The sign of a weight is the slope of its absolute value, of an L1 penalty.",
    ),
)
STRENGTH = 0.3


def forward(w_1: Array, w_2: Array) -> Array:
    """Return 0.5 strength (sum of squares of all weights)."""
    squares_1 = w_1**2
    squares_2 = w_2**2
    total = squares_1.sum() + squares_2.sum()
    loss = 0.5 * STRENGTH * total
    return loss


def steps(
    w_1: Array,
    w_2: Array,
    squares_1: Array,
    squares_2: Array,
    total: Array,
    loss: Array,
    dloss: Array,
) -> dict[str, Array]:
    """Go back through the lines of the forward."""
    dtotal = 0.5 * STRENGTH * dloss
    dsquares_2 = jnp.full_like(squares_2, dtotal)
    dsquares_1 = jnp.full_like(squares_1, dtotal)
    dw_2 = 2 * w_2 * dsquares_2
    dw_1 = 2 * w_1 * dsquares_1
    return {
        "total": dtotal,
        "squares_2": dsquares_2,
        "squares_1": dsquares_1,
        "w_2": dw_2,
        "w_1": dw_1,
    }


def l2_penalty_fwd(w_1: Array, w_2: Array) -> tuple[Array, tuple[Array, Array]]:
    """Return the penalty; the weights are saved, which are there anyway."""
    return 0.5 * STRENGTH * ((w_1**2).sum() + (w_2**2).sum()), (w_1, w_2)


def l2_penalty_bwd(saved: tuple[Array, Array], dloss: Array) -> tuple[Array, Array]:
    """Return dw_1 and dw_2."""
    w_1, w_2 = saved
    return STRENGTH * dloss * w_1, STRENGTH * dloss * w_2


def example(key: Array) -> tuple[Array, Array]:
    """Draw the weights of two layers."""
    one, two = jax.random.split(key)
    return jax.random.normal(one, (3, 5)), jax.random.normal(two, (5, 4))


def library(w_1: Array, w_2: Array) -> Array:
    """Return what the library's op gives."""
    loss: Array = ops.losses.l2_penalty((w_1, w_2), coefficient=STRENGTH)
    return loss
