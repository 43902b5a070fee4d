"""Rules that carry cotangents to the entries chosen: lookups, maxima, order, masks drawn."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from experiments.rules.rule import Generator, Mistake, Rule, normal, normals

KEPT = 0.75
TOP = 3


def embedding(mistake: Mistake) -> Any:
    """Rows of a table by their numbers [B, T]; rows that occur more than once sum."""

    @jax.custom_vjp
    def f(table: Array, ids: Array) -> Array:
        return table[ids]

    def f_fwd(table: Array, ids: Array) -> Any:
        return f(table, ids), (table, ids)

    def f_bwd(residuals: Any, dy: Array) -> Any:
        table, ids = residuals
        zeros, no_cotangent = jnp.zeros_like(table), np.zeros(ids.shape, jax.dtypes.float0)
        if mistake == "the last occurrence only":
            for i, d in zip(ids.ravel(), dy.reshape(-1, dy.shape[-1]), strict=True):
                zeros = zeros.at[i].set(d)
            return zeros, no_cotangent
        if mistake == "index of the other axis":
            ids = ids.T.reshape(ids.shape)
        if mistake == "ids counted from 1":
            ids = (ids + 1) % len(table)
        return zeros.at[ids].add(dy), no_cotangent

    f.defvjp(f_fwd, f_bwd)
    return f


def _table_and_ids(rng: Generator, dtype: Any) -> tuple[Array, ...]:
    ids = rng.permutation([0, 1, 1, 2, 4, 5])
    return normal(rng, dtype, 7, 4), jnp.asarray(ids.reshape(2, 3), jnp.int32)


def max_pool(mistake: Mistake) -> Any:
    """The largest of every two steps of x [N, T, C]; where both tie, the first gets dy."""

    @jax.custom_vjp
    def f(x: Array) -> Array:
        return x.reshape(len(x), -1, 2, x.shape[2]).max(2)

    def f_fwd(x: Array) -> Any:
        return f(x), x

    def f_bwd(x: Array, dy: Array) -> Any:
        pairs = x.reshape(len(x), -1, 2, x.shape[2])
        if mistake == "every tie gets dy":
            largest = pairs == pairs.max(2, keepdims=True)
        else:
            at = pairs.argmin(2) if mistake == "smallest for largest" else pairs.argmax(2)
            largest = at[:, :, None] == jnp.arange(2)[:, None]
        d = dy / 2 if mistake == "averaged" else dy
        return (jnp.where(largest, d[:, :, None], 0).reshape(x.shape),)

    f.defvjp(f_fwd, f_bwd)
    return f


def _plain_max_pool(x: Array) -> Array:
    first, second = x[:, ::2], x[:, 1::2]
    return jnp.where(first >= second, first, second)


def _rectified(rng: Generator, dtype: Any) -> tuple[Array, ...]:
    return (normal(rng, dtype, 5, 6, 2).clip(0).at[0, :2].set(0),)


def top(mistake: Mistake) -> Any:
    """The TOP largest of each row, in order;  dx has dy at their places."""

    @jax.custom_vjp
    def f(x: Array) -> Array:
        return jax.lax.top_k(x, TOP)[0]

    def f_fwd(x: Array) -> Any:
        return f(x), x

    def f_bwd(x: Array, dy: Array) -> Any:
        _, at = jax.lax.top_k(x, TOP)
        if mistake == "order not undone":
            at = jnp.sort(at)
        if mistake == "indices of the next row":
            at = jnp.roll(at, 1, axis=0)
        if mistake == "the largest only":
            dy = jnp.where(jnp.arange(TOP) > 0, 0, dy)
        return (jnp.zeros_like(x).at[jnp.arange(len(x))[:, None], at].set(dy),)

    f.defvjp(f_fwd, f_bwd)
    return f


def dropout(mistake: Mistake) -> Any:
    """x at entries drawn with a key, over their share, 0 elsewhere; None for the key."""

    def drawn(key: Array, x: Array) -> Array:
        return jax.random.bernoulli(key, jnp.float32(KEPT), x.shape)

    @jax.custom_vjp
    def f(x: Array, key: Array) -> Array:
        return jnp.where(drawn(key, x), x / KEPT, 0)

    def f_fwd(x: Array, key: Array) -> Any:
        return f(x, key), (x, key)

    def f_bwd(residuals: Any, dy: Array) -> Any:
        x, key = residuals
        if mistake == "another draw":
            key = jax.random.fold_in(key, 1)
        if mistake == "mask ignored":
            return dy / KEPT, None
        return jnp.where(drawn(key, x), dy if mistake == "share left out" else dy / KEPT, 0), None

    f.defvjp(f_fwd, f_bwd)
    return f


def _with_key(rng: Generator, dtype: Any) -> tuple[Array, ...]:
    return normal(rng, dtype, 5, 7), jax.random.key(int(rng.integers(100)))


def _plain_dropout(x: Array, key: Array) -> Array:
    return x * jax.random.bernoulli(key, jnp.float32(KEPT), x.shape) / KEPT


def convolution(mistake: Mistake) -> Any:
    """y[n, t] = b + sum_i x[n, t + i] w[i], over x [N, T, C], w [W, C, O], by its windows."""

    def windows(x: Array, width: int) -> Array:
        steps = x.shape[1] - width + 1
        return jnp.stack([x[:, i : i + steps] for i in range(width)])

    @jax.custom_vjp
    def f(x: Array, w: Array, b: Array) -> Array:
        return jnp.einsum("intc,ico->nto", windows(x, len(w)), w) + b

    def f_fwd(x: Array, w: Array, b: Array) -> Any:
        return f(x, w, b), (x, w)

    def f_bwd(residuals: Any, dy: Array) -> Any:
        x, w = residuals
        width = len(w)
        padded = jnp.pad(dy, ((0, 0), (width - 1, width - 1), (0, 0)))
        flipped = w if mistake == "kernel not flipped" else w[::-1]
        dx = jnp.einsum("into,ico->ntc", windows(padded, width), flipped)
        if mistake == "shifted by one step":
            dx = jnp.roll(dx, 1, axis=1)
        dw = jnp.einsum("intc,nto->ico", windows(x, width), dy)
        db = dy.mean((0, 1)) if mistake == "bias averaged" else dy.sum((0, 1))
        return dx, dw, db

    f.defvjp(f_fwd, f_bwd)
    return f


def _plain_convolution(x: Array, w: Array, b: Array) -> Array:
    return (
        jax.lax.conv_general_dilated(x, w, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))
        + b
    )


RULES = (
    Rule(
        "embedding",
        embedding,
        lambda table, ids: jax.nn.one_hot(ids, len(table), dtype=table.dtype) @ table,
        _table_and_ids,
        {
            "the last occurrence only": "not summed, index, missing term",
            "index of the other axis": "index, transpose, permuted, wrong saved value",
            "ids counted from 1": "shifted, index, wrong saved value",
        },
    ),
    Rule(
        "max pooling where entries tie",
        max_pool,
        _plain_max_pool,
        _rectified,
        {
            "every tie gets dy": "mask, factor",
            "smallest for largest": "mask, index",
            "averaged": "factor",
        },
    ),
    Rule(
        "top three of each row",
        top,
        lambda x: -jnp.sort(-x)[:, :TOP],
        normals((5, 7)),
        {
            "order not undone": "index, permuted, wrong saved value",
            "indices of the next row": "index, shifted, wrong saved value",
            "the largest only": "zeroed slice, index, missing term, mask",
        },
    ),
    Rule(
        "dropout with a key",
        dropout,
        _plain_dropout,
        _with_key,
        {
            "another draw": "mask, wrong saved value",
            "mask ignored": "mask, derivative left out",
            "share left out": "factor, derivative left out",
        },
    ),
    Rule(
        "convolution by windows",
        convolution,
        _plain_convolution,
        normals((5, 7, 2), (3, 2, 4), (4,)),
        {
            "kernel not flipped": "flip",
            "shifted by one step": "shifted",
            "bias averaged": "factor, not summed",
        },
    ),
)
