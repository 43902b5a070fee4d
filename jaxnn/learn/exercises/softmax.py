"""Softmax: the numbers of every row become probabilities, positive and with a sum of 1.

x (N, C): N rows of C scores;  p (N, C)
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.ops import softmax as library_softmax

LESSON = "softmax_cross_entropy"
INPUTS = {"x": "(N, C)"}
OUTPUT = {"p": "(N, C)"}
GRADES = ("easy", "fused", "memory")
HINTS = (
    "Each p of a row depends on every x of that row, because of the sum they are divided by: the "
    "cotangent of one x has a part from each p of its row.",
    "Of p = e / total the cotangent of total is a sum over the row, and has a minus sign.",
    "All that the backward needs is p: in the short form, something that is one number for each "
    "row is taken off dp, and the rest is multiplied by p.",
)


def forward(x: Array) -> Array:
    """Return p = exp(x) / sum(exp(x)) of each row; what is taken off first changes nothing."""
    e = jnp.exp(x - lax.stop_gradient(x.max(-1, keepdims=True)))
    total = e.sum(-1, keepdims=True)
    p = e / total
    return p


def steps(x: Array, e: Array, total: Array, p: Array, dp: Array) -> dict[str, Array]:
    """Return the cotangent of every name, one line of the forward at a time, last to first."""
    dtotal = -(dp * e).sum(-1, keepdims=True) / total**2
    de = dp / total + dtotal
    dx = de * e
    return {"total": dtotal, "e": de, "x": dx}


def softmax_fwd(x: Array) -> tuple[Array, Array]:
    """Return p, and what the backward needs, which is p again."""
    e = jnp.exp(x - x.max(-1, keepdims=True))
    p = e / e.sum(-1, keepdims=True)
    return p, p


def softmax_bwd(saved: Array, dp: Array) -> tuple[Array]:
    """Return the cotangent of x."""
    p = saved
    inner = (dp * p).sum(-1, keepdims=True)
    return (p * (dp - inner),)


def library(x: Array) -> Array:
    """Return the library's own, to compare with."""
    return library_softmax.softmax(x)


def example(key: Array) -> tuple[Array]:
    """Draw x (4, 3)."""
    return (jax.random.normal(key, (4, 3)) * 1.5,)


BUGS = (
    (
        "p * (dp - inner)",
        "p * (1 - p) * dp",
        "That is the diagonal alone: each p depends on every x of its row.",
    ),
)
