"""Embedding: a row of a table for each token.

table (V, D): a row of D features for each of V tokens; tokens (N, T): integers in [0, V);
y (N, T, D): the rows of the tokens
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.ops import linear

LESSON = "embedding"
INPUTS = {"table": "(V, D)", "tokens": "(N, T), integers"}
OUTPUT = {"y": "(N, T, D)"}
HINTS = (
    "Tokens are integers and have no cotangent: return None for them. The table's has the shape of "
    "the table.",
    "A token that occurs three times uses its row three times: its row of dtable is the sum of "
    "three rows of dy. A token that does not occur gets zeros.",
    "Begin with zeros of the table's shape and use .at[tokens].add(...), which adds up where an "
    "index occurs more than once; .set(...) would keep only one.",
)
GRADES = ("easy", "fused", "memory")
BUGS = (
    (
        ".add(dy)",
        ".set(dy)",
        "A token that occurs twice used its row twice: both cotangents count.",
    ),
)


def forward(table: Array, tokens: Array) -> Array:
    """Take a row for each token."""
    y = table[tokens]
    return y


def steps(table: Array, tokens: Array, y: Array, dy: Array) -> dict[str, Array]:
    """Go back through the line of the forward."""
    dtable = jnp.zeros_like(table).at[tokens].add(dy)
    return {"table": dtable}


def embedding_fwd(table: Array, tokens: Array) -> tuple[Array, tuple[Array, Array]]:
    """Take a row for each token; the inputs are saved."""
    return table[tokens], (table, tokens)


def embedding_bwd(saved: tuple[Array, Array], dy: Array) -> tuple[Array, None]:
    """Return dtable; tokens have no cotangent."""
    table, tokens = saved
    return jnp.zeros_like(table).at[tokens].add(dy), None


def example(key: Array) -> tuple[Array, Array]:
    """Draw a table of seven tokens; some tokens occur twice, some not at all."""
    return jax.random.normal(key, (7, 4)), jnp.asarray([[3, 1, 3], [5, 6, 1]])


def library(table: Array, tokens: Array) -> Array:
    """Return what the library's op gives."""
    y: Array = linear.embedding(linear.Embedding(table), tokens)
    return y
