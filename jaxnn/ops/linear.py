"""Linear maps of features, by a matrix or by a table of which one row is taken.

    linear       y = x w + b          dx = dy w^T,  dw = x^T dy,  db = sum of dy over the batch
    embedding    y_n = table[t_n]     dtable[v] = sum of dy_n over every n with t_n = v
    unembedding  y = x table^T        dx = dy table,  dtable = dy^T x

Each saves its inputs, which are there already: no extra bytes. Nothing is recomputed. Sums are in
float32 or wider, and rounded once.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.checks import check_integers, check_kind, check_one_dtype, check_range, check_shapes
from jaxnn.numerics import product, widen
from jaxnn.op import Op


class Linear(NamedTuple):
    """Weights `w` (I, O); biases `b` (O,), or None for a layer without."""

    w: Array
    b: Array | None = None


class LinearResiduals(NamedTuple):
    """What the backward of a linear layer needs: its parameters and its input."""

    params: Linear
    x: Array


def linear_fwd(params: Linear, x: Array) -> tuple[Array, LinearResiduals]:
    """Map features x (..., I) to y (..., O): y = x w + b, or x w where b is None.

    Args:
        params: w (I, O) and b (O,) or None.
        x: (..., I), of the dtype of w.

    Returns:
        y (..., O), residuals.

    Raises:
        TypeError: params are no `Linear`, or x, w and b are not floating arrays of one dtype.
        ValueError: their shapes do not fit.
    """
    w, b = params
    y = x @ w if b is None else (product(x, w) + widen(b)).astype(x.dtype)
    return y, LinearResiduals(params, x)


def linear_bwd(residuals: LinearResiduals, dy: Array) -> tuple[Linear, Array]:
    """Return dw = x^T dy and db = sum dy, over all leading axes, and dx = dy w^T."""
    (w, b), x = residuals
    n = math.prod(dy.shape[:-1])  # -1 would not do where a layer has no features
    rows_x, rows_dy = x.reshape(n, w.shape[0]), dy.reshape(n, w.shape[1])
    dw = rows_x.T @ rows_dy
    db = None if b is None else rows_dy.sum(0)
    return Linear(dw, db), dy @ w.T


class Embedding(NamedTuple):
    """The table (V, D): a row of D features for each of V tokens."""

    table: Array


class EmbeddingResiduals(NamedTuple):
    """The table, whose shape and dtype its gradient has, and the tokens (...)."""

    table: Array
    tokens: Array


def embedding_fwd(params: Embedding, tokens: Array) -> tuple[Array, EmbeddingResiduals]:
    """Take a row of the table for each token: y (..., D).

    A token outside [0, V) is an error where its value can be seen; under jit, where it cannot, its
    row is NaN. Negative tokens are as wrong as those past the end: they do not count from it.

    Args:
        params: table (V, D).
        tokens: (...) integers in [0, V).

    Returns:
        y (..., D), residuals.

    Raises:
        TypeError: params are no `Embedding` of a floating array, or the tokens no integers.
        ValueError: the table is not a matrix, or a token is outside [0, V).
    """
    (table,) = params
    y = table.at[tokens].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    return y, EmbeddingResiduals(table, tokens)


def embedding_bwd(residuals: EmbeddingResiduals, dy: Array) -> tuple[Embedding, None]:
    """Add each dy to its token's row, so that a token seen twice gets the sum."""
    table, tokens = residuals
    # Wide: a sum of ones in bfloat16 stops at 256.
    rows = widen(jnp.zeros_like(table)).at[tokens]
    sums = rows.add(widen(dy), mode="drop", wrap_negative_indices=False)
    return Embedding(sums.astype(table.dtype)), None


class UnembedResiduals(NamedTuple):
    """The table (V, D) and the features (..., D)."""

    table: Array
    x: Array


def unembed_fwd(params: Embedding, x: Array) -> tuple[Array, UnembedResiduals]:
    """Map features x (..., D) to logits y = x table^T of all tokens (..., V).

    The output layer of a tied model: the table has one gradient from here and one from `embedding`,
    which the model adds (Press and Wolf, 2017).

    Args:
        params: table (V, D).
        x: (..., D), of the dtype of the table.

    Returns:
        y (..., V), residuals.

    Raises:
        TypeError: params are no `Embedding`, or the table and x not floating arrays of one dtype.
        ValueError: the table is not a matrix, or x does not end in a dimension of size D.
    """
    (table,) = params
    return x @ table.T, UnembedResiduals(table, x)


def unembed_bwd(residuals: UnembedResiduals, dy: Array) -> tuple[Embedding, Array]:
    """Return dtable = dy^T x over all leading axes, and dx = dy table."""
    table, x = residuals
    vocabulary, features = table.shape
    dtable = dy.reshape(-1, vocabulary).T @ x.reshape(-1, features)
    return Embedding(dtable), dy @ table


def _check_linear(params: Linear, x: Array) -> None:
    check_kind("linear: params", params, Linear)
    w, b = params
    fix = "check the feature count, or transpose w"
    check_shapes("linear", fix, w=(w, "IO"), b=(b, "O?"), x=(x, "...I"))
    check_one_dtype("linear", w=w, b=b, x=x)


def _check_embedding(params: Embedding, tokens: Array) -> None:
    check_kind("embedding: params", params, Embedding)
    sizes = check_shapes("embedding", "reshape it", table=(params.table, "VD"))
    check_one_dtype("embedding", table=params.table)
    check_integers("embedding: tokens", tokens, "cast them with tokens.astype(int)")
    rule = (
        f"each token must name one of the {sizes.V} rows of the table: encode the text with the "
        "vocabulary that the table was made for"
    )
    check_range("embedding: token", tokens, sizes.V, rule)


def _check_unembed(params: Embedding, x: Array) -> None:
    check_kind("unembed: params", params, Embedding)
    (table,) = params
    check_shapes("unembed", "check the feature count", table=(table, "VD"), x=(x, "...D"))
    check_one_dtype("unembed", table=table, x=x)


def _linear_example(key: Array) -> tuple[Linear, Array]:
    kw, kb, kx = jax.random.split(key, 3)
    params = Linear(jax.random.normal(kw, (3, 5)), jax.random.normal(kb, (5,)))
    return params, jax.random.normal(kx, (2, 7, 3)).at[0, 0].set(0.0)


def _tokens_example(key: Array) -> tuple[Embedding, Array]:
    """Tokens that repeat, within a row and across, and some that never occur."""
    table = jax.random.normal(key, (11, 3))
    return Embedding(table), jnp.array([[4, 0, 4, 10, 4], [7, 4, 0, 0, 2]])


def _features_example(key: Array) -> tuple[Embedding, Array]:
    k1, k2 = jax.random.split(key)
    return Embedding(jax.random.normal(k1, (11, 3))), jax.random.normal(k2, (2, 5, 3))


linear = Op(linear_fwd, linear_bwd, check=_check_linear, example=_linear_example)
embedding = Op(embedding_fwd, embedding_bwd, check=_check_embedding, example=_tokens_example)
unembed = Op(unembed_fwd, unembed_bwd, check=_check_unembed, example=_features_example)
