"""A matrix product: every row of one matrix with every column of the other.

x (N, K), w (K, M);  y (N, M), where y[n, m] is the sum over k of x[n, k] w[k, m]
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.ops.matmul import matmul_broadcast

LESSON = "matmul"
INPUTS = {"x": "(N, K)", "w": "(K, M)"}
OUTPUT = {"y": "(N, M)"}
GRADES = ("easy", "fused", "memory")
HINTS = (
    "dx has the shape of x and dw that of w. Write the shapes of dy, x and w beside each other: "
    "which products have such a result?",
    "Look at one entry: x[n, k] is a part of y[n, m] for every m, with the factor w[k, m]. Its "
    "cotangent adds up over all of these m.",
    "As sums: dx[n, k] is the sum over m of dy[n, m] w[k, m]; dw[k, m] is the sum over n of "
    "x[n, k] dy[n, m]. Written with @, one factor of each must be transposed.",
)


def forward(x: Array, w: Array) -> Array:
    """Return y = x w."""
    y = x @ w
    return y


def steps(x: Array, w: Array, y: Array, dy: Array) -> dict[str, Array]:
    """Return the cotangent of each factor: dy with the other one."""
    dx = dy @ w.T
    dw = x.T @ dy
    return {"x": dx, "w": dw}


def matmul_fwd(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    """Return y, and what the backward needs: x and w."""
    return x @ w, (x, w)


def matmul_bwd(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    """Return the cotangents of x and w."""
    x, w = saved
    return dy @ w.T, x.T @ dy


def library(x: Array, w: Array) -> Array:
    """Return the library's product that loops over rows and broadcasts, to compare with."""
    return jnp.asarray(matmul_broadcast(x, w))


def example(key: Array) -> tuple[Array, Array]:
    """Draw x (4, 3) and w (3, 5)."""
    a, b = jax.random.split(key)
    return jax.random.normal(a, (4, 3)), jax.random.normal(b, (3, 5))


BUGS = (
    (
        "x.T @ dy",
        "jnp.einsum('nk,lm->km', x, dy)",
        "A row of x meets the same row of dy only: they must share their letter, n.",
    ),
    (
        "x.T @ dy",
        "x.T @ dy / len(x)",
        "Each weight is used once for every row: its cotangent is a sum over the rows, no mean.",
    ),
)
