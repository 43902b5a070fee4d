"""Token embeddings, and the same table as the output layer.

One table (V, D), two uses:

    embedding    y_n = table[token_n]      dtable[v] = sum of dy_n over every n with token_n = v
    unembedding  y = x table^T             dtable = dy^T x,  dx = dy table
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnn.checks import check_array, check_floating
from jaxnn.op import Op


class Embedding(NamedTuple):
    """The table (V, D): a row of D features for each of V tokens."""

    table: Array


class EmbeddingResiduals(NamedTuple):
    """The table, whose shape and dtype its gradient has, and the tokens (...)."""

    table: Array
    tokens: Array


class UnembedResiduals(NamedTuple):
    """The table (V, D) and the features (..., D)."""

    table: Array
    x: Array


def embedding_fwd(params: Embedding, tokens: Array) -> tuple[Array, EmbeddingResiduals]:
    """A row of the table for each token.

    A token outside [0, V) is an error where its value can be seen; under jit, where it cannot, its
    row is NaN. Saves the inputs, there already: no extra bytes. Nothing is recomputed.

    Args:
        params: table (V, D).
        tokens: (...) integers in [0, V).

    Returns:
        y (..., D), residuals.

    Raises:
        TypeError: the table is no floating array, or the tokens no array of integers.
        ValueError: the table is not a matrix, or a token is outside [0, V).
    """
    table = _check_table("embedding", params)
    check_array("embedding: tokens", tokens)
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(
            f"embedding: tokens have dtype {tokens.dtype}; they must be integers, rows of the "
            "table: cast them with tokens.astype(int)"
        )
    rows = table.shape[0]
    check_range(
        "embedding: token",
        tokens,
        rows,
        f"each token must name one of the {rows} rows of the table: encode the text with the "
        "vocabulary that the table was made for",
    )
    # Negative tokens are as wrong as those past the end; by default they would count from it.
    y = table.at[tokens].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    return y, EmbeddingResiduals(table, tokens)


def embedding_bwd(residuals: EmbeddingResiduals, dy: Array) -> tuple[Embedding, None]:
    """Each dy is added to its token's row, so that a token seen twice gets the sum."""
    table, tokens = residuals
    rows = jnp.zeros_like(table).at[tokens]
    return Embedding(rows.add(dy, mode="drop", wrap_negative_indices=False)), None


def unembed_fwd(params: Embedding, x: Array) -> tuple[Array, UnembedResiduals]:
    """Logits of all tokens from features, y = x table^T: the output layer of a tied model.

    The table has one gradient from here and one from `embedding`; a tied model adds them (Press
    and Wolf, 2017). Saves the inputs, there already: no extra bytes. Nothing is recomputed.

    Args:
        params: table (V, D).
        x: (..., D), of the dtype of the table.

    Returns:
        y (..., V), residuals.

    Raises:
        TypeError: the table or x is no floating array.
        ValueError: the table is not a matrix, or x does not end in a dimension of size D.
    """
    table = _check_table("unembed", params)
    check_floating("unembed: x", x)
    if x.ndim == 0 or x.shape[-1] != table.shape[1]:
        raise ValueError(
            f"unembed: x has shape {x.shape} but the table {table.shape}; the last dimension of x "
            f"must equal that of the table ({table.shape[1]}): check the feature count"
        )
    return x @ table.T, UnembedResiduals(table, x)


def unembed_bwd(residuals: UnembedResiduals, dy: Array) -> tuple[Embedding, Array]:
    """dtable = dy^T x over all leading dimensions; dx = dy table."""
    table, x = residuals
    vocabulary, features = table.shape
    dtable = dy.reshape(-1, vocabulary).T @ x.reshape(-1, features)
    return Embedding(dtable), dy @ table


def check_range(what: str, indices: Array, bound: int, rule: str) -> None:
    """Refuse integers outside [0, bound), where their values can be seen.

    Raises:
        ValueError: there are some; `what` and the first open the message, `rule` ends it.
    """
    if isinstance(indices, jax.core.Tracer):
        return
    values = np.asarray(indices)
    wrong = np.argwhere((values < 0) | (values >= bound))
    if len(wrong):
        at = tuple(int(i) for i in wrong[0])
        raise ValueError(
            f"{what} {values[at]} at index {at} ({len(wrong)} in all) is outside [0, {bound}); "
            f"{rule}"
        )


def _check_table(op: str, params: Embedding) -> Array:
    table = params.table
    check_floating(f"{op}: table", table)
    if table.ndim != 2:
        raise ValueError(
            f"{op}: the table has shape {table.shape}; it must be (tokens, features): reshape it"
        )
    return jnp.asarray(table)


def _tokens_example(key: Array) -> tuple[Embedding, Array]:
    """Tokens that repeat, within a row and across, and some that never occur."""
    table = jax.random.normal(key, (11, 3))
    return Embedding(table), jnp.array([[4, 0, 4, 10, 4], [7, 4, 0, 0, 2]])


def _features_example(key: Array) -> tuple[Embedding, Array]:
    k1, k2 = jax.random.split(key)
    return Embedding(jax.random.normal(k1, (11, 3))), jax.random.normal(k2, (2, 5, 3))


embedding = Op(embedding_fwd, embedding_bwd, example=_tokens_example)
unembed = Op(unembed_fwd, unembed_bwd, example=_features_example)
