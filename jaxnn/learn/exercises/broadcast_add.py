"""A sum with broadcasting: a number for every feature, and one for every step, added to all.

x (N, T, C): N sequences of T steps of C features; b (C,), p (T, 1);  y (N, T, C)
"""

import jax
import jax.numpy as jnp
from jax import Array

LESSON = "matmul"
INPUTS = {"x": "(N, T, C)", "b": "(C,)", "p": "(T, 1)"}
OUTPUT = {"y": "(N, T, C)"}
GRADES = ("easy", "fused", "memory")
HINTS = (
    "One number of b is added in N T places of y. A small change of it changes all of these.",
    "What is broadcast on the way forward is summed on the way back: over the axes that were put "
    "in front, and over those whose length was 1.",
    "The shape must come out as it was: (C,) for b, and (T, 1), not (T,), for p. Sum with "
    "keepdims where an axis has the length 1.",
)


def forward(x: Array, b: Array, p: Array) -> Array:
    """Add b to every step of every sequence, and p to every feature of it."""
    shifted = x + b
    y = shifted + p
    return y


def steps(x: Array, b: Array, p: Array, shifted: Array, y: Array, dy: Array) -> dict[str, Array]:
    """Undo one broadcast at a time, last line first."""
    dp = dy.sum((0, 2))[:, None]
    dshifted = dy
    db = dshifted.sum((0, 1))
    dx = dshifted
    return {"shifted": dshifted, "x": dx, "b": db, "p": dp}


def broadcast_add_fwd(x: Array, b: Array, p: Array) -> tuple[Array, None]:
    """Return y; a sum needs no value for its backward."""
    return x + b + p, None


def broadcast_add_bwd(saved: None, dy: Array) -> tuple[Array, Array, Array]:
    """Return the cotangents of x, b and p."""
    return dy, dy.sum((0, 1)), dy.sum(0).sum(-1, keepdims=True)


def library(x: Array, b: Array, p: Array) -> Array:
    """Return the same with every array spread out to the shape of x first."""
    return jnp.stack([x, jnp.broadcast_to(b, x.shape), jnp.broadcast_to(p, x.shape)]).sum(0)


def example(key: Array) -> tuple[Array, Array, Array]:
    """Draw x (2, 4, 3), b (3,) and p (4, 1)."""
    a, b, c = jax.random.split(key, 3)
    x = jax.random.normal(a, (2, 4, 3))
    return x, jax.random.normal(b, (3,)), jax.random.normal(c, (4, 1))


BUGS = (
    (
        "dy.sum((0, 1))",
        "dy.sum(1).mean(0)",
        "b is added in every sequence: its cotangent is a sum over them, no mean.",
    ),
    (
        "dy.sum(0).sum(-1, keepdims=True)",
        "dy[0].sum(-1, keepdims=True)",
        "p is added in every sequence, not only in the first: the sum over them was missing.",
    ),
)
