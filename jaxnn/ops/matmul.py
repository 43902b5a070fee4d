"""The matrix product five ways, from three loops to one operator: c_ij = sum_k a_ik b_kj.

Each rung hands one more loop to the machine. All five return the same numbers (up to rounding);
what changes is who loops.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxnn.checks import check_shapes


def matmul_loops(a: Array, b: Array) -> Array:
    """Multiply and add one pair at a time in three Python loops; it reads the numbers, so no jit.

    Args:
        a: (N, K).
        b: (K, M).

    Returns:
        (N, M), of the promoted dtype, as all five.

    Raises:
        TypeError: a or b is no array, as in all five.
        ValueError: a or b is not a matrix, or K differs, as in all five.
    """
    _check(a, b)
    rows, columns = np.asarray(a), np.asarray(b)
    c = np.zeros((a.shape[0], b.shape[1]), np.result_type(rows, columns))
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            for k in range(a.shape[1]):
                c[i, j] += rows[i, k] * columns[k, j]
    return jnp.asarray(c)


@jax.jit
def matmul_elementwise(a: Array, b: Array) -> Array:
    """Loop twice: c_ij is the sum of the elementwise product of row i and column j."""
    _check(a, b)
    c: Array = lax.map(lambda row: lax.map(lambda column: (row * column).sum(), b.T), a)
    return c


@jax.jit
def matmul_broadcast(a: Array, b: Array) -> Array:
    """Loop once: row i, stood up as a column (K, 1), is spread over the columns of b (K, M)."""
    _check(a, b)
    c: Array = lax.map(lambda row: (row[:, None] * b).sum(axis=0), a)
    return c


@jax.jit
def matmul_einsum(a: Array, b: Array) -> Array:
    """Sum over the repeated index k in Einstein's notation, without a loop."""
    _check(a, b)
    return jnp.einsum("ik,kj->ij", a, b)


@jax.jit
def matmul_operator(a: Array, b: Array) -> Array:
    """Multiply by the operator `@`, without a loop."""
    _check(a, b)
    return a @ b


LADDER: dict[str, Callable[[Array, Array], Array]] = {
    "loops": matmul_loops,
    "elementwise": matmul_elementwise,
    "broadcast": matmul_broadcast,
    "einsum": matmul_einsum,
    "operator": matmul_operator,
}


def _check(a: Array, b: Array) -> None:
    fix = "the columns of a must be as many as the rows of b, so transpose or reshape one of them"
    check_shapes("matmul", fix, a=(a, "NK"), b=(b, "KM"))
