"""Dropout: some entries are put to 0, the others grow so that the mean stays.

x (N, C): N examples of C features; kept (N, C): booleans, which entries stay;  y (N, C)
A share of 0.3 is dropped; what stays is divided by 0.7.
"""

import jax
import jax.numpy as jnp
from jax import Array

LESSON = "dropout"
INPUTS = {"x": "(N, C)", "kept": "(N, C), booleans"}
OUTPUT = {"y": "(N, C)"}
HINTS = (
    "The mask is given: for a fixed mask each entry of y is a number times the same entry of x.",
    "An entry that was dropped has no influence on y, so its cotangent is 0.",
    "Whatever stays was divided by 0.7 on the way forward, and its cotangent is too. The mask has "
    "none: return None for it.",
)
GRADES = ("easy", "fused", "memory")
BUGS = (
    (
        "dy / 0.7",
        "dy",
        "What stays was divided by 1 - rate on the way forward: its slope is 1 / (1 - rate).",
    ),
)


def forward(x: Array, kept: Array) -> Array:
    """Scale, then put 0 where an entry is dropped."""
    scaled = x / 0.7
    y = jnp.where(kept, scaled, 0)
    return y


def steps(x: Array, kept: Array, scaled: Array, y: Array, dy: Array) -> dict[str, Array]:
    """Go back through the lines of the forward."""
    dscaled = jnp.where(kept, dy, 0)
    dx = dscaled / 0.7
    return {"scaled": dscaled, "x": dx}


def dropout_fwd(x: Array, kept: Array) -> tuple[Array, Array]:
    """Drop and scale; the mask alone is saved."""
    return jnp.where(kept, x / 0.7, 0), kept


def dropout_bwd(kept: Array, dy: Array) -> tuple[Array, None]:
    """Return dx; booleans have no cotangent."""
    return jnp.where(kept, dy / 0.7, 0), None


def example(key: Array) -> tuple[Array, Array]:
    """Draw x and a mask."""
    one, two = jax.random.split(key)
    return jax.random.normal(one, (4, 6)), jax.random.bernoulli(two, 0.7, (4, 6))


def library(x: Array, kept: Array) -> Array:
    """Return it as a product with the mask: the library's op draws its own from a key."""
    return x * kept / 0.7
