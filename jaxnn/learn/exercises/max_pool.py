"""Max pooling of sequences: the largest value of every window, for each channel by itself.

x (N, T, C): N sequences of T places with C channels, T a multiple of 3;  y (N, T / 3, C):
windows of 3 places lie side by side; of equal values the first one is taken
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn import ops

LESSON = "pooling"
INPUTS = {"x": "(N, T, C)"}
OUTPUT = {"y": "(N, T / 3, C)"}
HINTS = (
    "The value that was taken was copied, the others had no part in y. Which one was it?",
    "Windows as an axis of their own, (N, T / 3, 3, C): an argmax over that axis says who was "
    "taken, and of equal values it names the first alone.",
    "Compare jnp.arange(3)[:, None] with the argmax, kept as an axis: where they are equal the "
    "cotangent is dy[:, :, None], elsewhere 0. Then back to the shape of x.",
)
GRADES = ("easy", "fused", "memory")
BUGS = (
    (
        "jnp.arange(3)[:, None] == windows.argmax(2, keepdims=True)",
        "windows == windows.max(2, keepdims=True)",
        "Of equal values only one was taken: the whole cotangent to each of them is too much.",
    ),
    (
        "jnp.where(taken, dy[:, :, None], 0)",
        "taken * dy[:, :, None] / 3",
        "The value that was taken is copied, so that its slope is 1; a third is average pooling.",
    ),
)


def forward(x: Array) -> Array:
    """Give the windows an axis of their own, and take the largest value along it."""
    windows = x.reshape(len(x), -1, 3, x.shape[-1])
    largest = jnp.take_along_axis(windows, windows.argmax(2, keepdims=True), 2)
    y = largest[:, :, 0]
    return y


def steps(x: Array, windows: Array, largest: Array, y: Array, dy: Array) -> dict[str, Array]:
    """Go back through the lines of the forward."""
    dlargest = dy[:, :, None]
    taken = jnp.arange(3)[:, None] == windows.argmax(2, keepdims=True)
    dwindows = jnp.where(taken, dlargest, 0)
    dx = dwindows.reshape(x.shape)
    return {"largest": dlargest, "windows": dwindows, "x": dx}


def max_pool_fwd(x: Array) -> tuple[Array, Array]:
    """Take the largest of each window; x is saved, as the layer before has it anyway."""
    return x.reshape(len(x), -1, 3, x.shape[-1]).max(2), x


def max_pool_bwd(x: Array, dy: Array) -> tuple[Array]:
    """Return dx."""
    windows = x.reshape(len(x), -1, 3, x.shape[-1])
    taken = jnp.arange(3)[:, None] == windows.argmax(2, keepdims=True)
    dwindows = jnp.where(taken, dy[:, :, None], 0)
    return (dwindows.reshape(x.shape),)


def example(key: Array) -> tuple[Array]:
    """Draw two sequences; in one window two values are equal, and the largest."""
    x = jax.random.normal(key, (2, 12, 4))
    return (x.at[0, 4:6, 1].set(2.7),)


def library(x: Array) -> Array:
    """Return what the library's op gives."""
    return ops.pooling.max_pool(x, window=3)
