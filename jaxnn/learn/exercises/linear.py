"""A linear layer: every example times a matrix, plus a bias.

x (N, I): N examples of I features; w (I, O), b (O,);  y (N, O)
"""

import jax
from jax import Array

from jaxnn.ops import linear as library_linear

LESSON = "linear"
INPUTS = {"x": "(N, I)", "w": "(I, O)", "b": "(O,)"}
OUTPUT = {"y": "(N, O)"}
GRADES = ("easy", "fused", "memory")
HINTS = (
    "Write the shapes beside each name. The cotangent of a matrix has the shape of the matrix, and "
    "of few products of dy, x and w does the shape come out so.",
    "b (O,) was added to each of the N rows: its cotangent adds up what comes back in all of them.",
    "For y = x @ w, look at one entry: y[n, o] is the sum over i of x[n, i] w[i, o]. Which entries "
    "of y does one x[n, i] reach, and with which factor?",
)


def forward(x: Array, w: Array, b: Array) -> Array:
    """Return y = x w + b."""
    product = x @ w
    y = product + b
    return y


def steps(x: Array, w: Array, b: Array, product: Array, y: Array, dy: Array) -> dict[str, Array]:
    """Return the cotangent of every name, one line of the forward at a time, last to first."""
    dproduct = dy
    db = dy.sum(0)
    dx = dproduct @ w.T
    dw = x.T @ dproduct
    return {"product": dproduct, "x": dx, "w": dw, "b": db}


def linear_fwd(x: Array, w: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    """Return y, and what the backward needs: x and w."""
    return x @ w + b, (x, w)


def linear_bwd(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array, Array]:
    """Return the cotangents of x, w and b."""
    x, w = saved
    return dy @ w.T, x.T @ dy, dy.sum(0)


def library(x: Array, w: Array, b: Array) -> Array:
    """Return the library's own, to compare with."""
    return library_linear.linear(library_linear.Linear(w, b), x)


def example(key: Array) -> tuple[Array, Array, Array]:
    """Draw x (4, 3), w (3, 5) and b (5,)."""
    a, b, c = jax.random.split(key, 3)
    return tuple(map(jax.random.normal, (a, b, c), ((4, 3), (3, 5), (5,))))  # type: ignore[return-value]


BUGS = (
    (
        "dy.sum(0)",
        "dy.mean(0)",
        "b is added to each row, so that its cotangent is a sum over rows, no mean.",
    ),
)
