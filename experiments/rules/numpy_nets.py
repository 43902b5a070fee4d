"""Gradients written in NumPy, as in a course or a paper's code, beside a loss in JAX."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from experiments.rules.rule import Generator, Mistake, Rule, normal

L2 = 0.1


def least_squares_loss(params: Any, x: Array, y: Array) -> Any:
    """Mean (x w + b - y)^2 + L2 |w|^2."""
    residuals = x @ params["w"] + params["b"] - y
    return (residuals**2).mean() + L2 * (params["w"] ** 2).sum()


def least_squares(mistake: Mistake) -> Any:
    """The loss, and dw = 2 x' r / N + 2 L2 w, db = 2 sum r / N."""

    def gradient(params: Any, x: Any, y: Any) -> Any:
        w, b = np.asarray(params["w"]), np.asarray(params["b"])
        x, y = np.asarray(x), np.asarray(y)
        r = 2 * (np.dot(x, w) + b - y)
        if mistake != "mean left out":
            r = r / len(y)
        dw, db = np.dot(x.T, r), r.sum()
        if mistake != "regulariser forgotten":
            dw = dw + 2 * L2 * w
        if mistake == "bias averaged":
            db = r.mean()
        return {"w": dw, "b": np.asarray(db)}

    return least_squares_loss, gradient


def _regression(rng: Generator, dtype: Any) -> tuple[Any, ...]:
    params = {"w": normal(rng, dtype, 3), "b": normal(rng, dtype)}
    return params, normal(rng, dtype, 6, 3), normal(rng, dtype, 6)


def two_layer_loss(params: Any, x: Array, labels: Array) -> Array:
    """Cross-entropy of relu(x w1 + b1) w2 + b2."""
    h = jax.nn.relu(x @ params["w1"] + params["b1"])
    log_p = jax.nn.log_softmax(h @ params["w2"] + params["b2"])
    return -log_p[jnp.arange(len(labels)), labels].mean()


def two_layers(mistake: Mistake) -> Any:
    """The loss, and its gradient, every line in NumPy and some in place."""

    def gradient(params: Any, x: Any, labels: Any) -> Any:
        w1, b1, w2, b2 = (np.asarray(params[name]) for name in ("w1", "b1", "w2", "b2"))
        x, labels = np.asarray(x), np.asarray(labels)
        z = np.dot(x, w1) + b1
        h = np.maximum(z, 0)
        scores = np.dot(h, w2) + b2
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        p[range(len(x)), labels] -= 1
        p /= len(x)
        dh = np.dot(p, w2.T)
        if mistake == "mask from the output's scores":
            dh[dh <= 0] = 0
        elif mistake != "mask ignored":
            dh[h <= 0] = 0
        grads = {"w1": np.dot(x.T, dh), "b1": dh.sum(axis=0)}
        grads |= {"w2": np.dot(h.T, p), "b2": p.sum(axis=0)}
        if mistake == "gradient transposed":
            grads["w1"] = np.dot(dh.T, x)
        return grads

    return two_layer_loss, gradient


def _classification(rng: Generator, dtype: Any) -> tuple[Any, ...]:
    params = {
        "w1": normal(rng, dtype, 4, 4),
        "b1": normal(rng, dtype, 4),
        "w2": normal(rng, dtype, 4, 3),
        "b2": normal(rng, dtype, 3),
    }
    return params, normal(rng, dtype, 7, 4), jnp.asarray(rng.integers(3, size=7), jnp.int32)


RULES = (
    Rule(
        "least squares in NumPy",
        least_squares,
        least_squares_loss,
        _regression,
        {
            "mean left out": "factor",
            "regulariser forgotten": "parameter term",
            "bias averaged": "factor, not summed",
        },
        door="gradient",
        narrow=False,
    ),
    Rule(
        "two layers in NumPy",
        two_layers,
        two_layer_loss,
        _classification,
        {
            "mask from the output's scores": "mask",
            "mask ignored": "mask, derivative left out",
            "gradient transposed": "transpose",
        },
        door="gradient",
        narrow=False,
    ),
)
