"""Average pooling of sequences: the mean of every window, where windows overlap.

x (N, T, C): N sequences of T places with C channels;  y (N, P, C): windows of 3 places, each two
places after the one before, P = (T - 3) // 2 + 1 of them
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn import ops

LESSON = "pooling"
INPUTS = {"x": "(N, T, C)"}
OUTPUT = {"y": "(N, (T - 3) // 2 + 1, C)"}
HINTS = (
    "A mean of three gives a third of the cotangent to each of them. Who lies in two windows?",
    "Start from zeros in the shape of x, and add. The left places of all windows are "
    "x[:, :-2:2], and dx.at[:, :-2:2].add(...) puts their cotangents back.",
    "Left, middle and right places: [:, :-2:2], [:, 1:-1:2], [:, 2::2]. To each is added dy / 3. A "
    "place after the last window keeps its 0.",
)
GRADES = ("easy", "fused", "memory")
BUGS = (
    (
        "dx.at[:, 2::2].add(",
        "dx.at[:, 2::2].set(",
        "The right place of a window is the left one of the next: what both hand back is added.",
    ),
    (
        "share = dy / 3",
        "share = dy",
        "A mean is a sum divided by the number of places, and so is what goes back.",
    ),
)


def forward(x: Array) -> Array:
    """Add the three places of every window, and divide by three."""
    left = x[:, :-2:2]
    middle = x[:, 1:-1:2]
    right = x[:, 2::2]
    total = left + middle + right
    y = total / 3
    return y


def steps(
    x: Array, left: Array, middle: Array, right: Array, total: Array, y: Array, dy: Array
) -> dict[str, Array]:
    """Go back through the lines of the forward."""
    dtotal = dy / 3
    dleft = dmiddle = dright = dtotal
    dx = jnp.zeros_like(x).at[:, :-2:2].add(dleft)
    dx = dx.at[:, 1:-1:2].add(dmiddle)
    dx = dx.at[:, 2::2].add(dright)
    return {"total": dtotal, "left": dleft, "middle": dmiddle, "right": dright, "x": dx}


def avg_pool_fwd(x: Array) -> tuple[Array, Array]:
    """Take the mean of each window; x is saved for its shape, which costs nothing."""
    return (x[:, :-2:2] + x[:, 1:-1:2] + x[:, 2::2]) / 3, x


def avg_pool_bwd(x: Array, dy: Array) -> tuple[Array]:
    """Return dx."""
    share = dy / 3
    dx = jnp.zeros_like(x).at[:, :-2:2].add(share)
    dx = dx.at[:, 1:-1:2].add(share)
    dx = dx.at[:, 2::2].add(share)
    return (dx,)


def example(key: Array) -> tuple[Array]:
    """Draw two sequences of eight places: the last one is in no window."""
    return (jax.random.normal(key, (2, 8, 5)),)


def library(x: Array) -> Array:
    """Return what the library's op gives."""
    return ops.pooling.average_pool(x, window=3, stride=2)
