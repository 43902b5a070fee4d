"""Rows of the tutorials' own ops."""

import jax
import numpy as np
import scipy.special

from jaxnn.ops import activations, losses
from jaxnn.ops.linear import Linear, linear
from rows import Row


def one(rng, shape):
    return (rng.normal(size=shape),)


def affine(rng, shape):
    width = 1 + shape[0] % 4
    params = Linear(rng.normal(size=(shape[-1], width)), rng.normal(size=width))
    return params, rng.normal(size=shape)


def pair(rng, shape):
    return rng.normal(size=shape), rng.normal(size=shape)


def labelled(rng, shape):
    return rng.normal(size=shape), rng.integers(0, shape[-1], shape[:-1])


def tree(rng, shape):
    return ({"a": rng.normal(size=shape), "b": [rng.normal(size=shape[::-1])]},)


def nll(z, t):
    log_p = scipy.special.log_softmax(z, axis=-1)
    return -np.mean(np.take_along_axis(log_p, t[..., None], -1))


def softmax(x, axis=-1):
    return scipy.special.softmax(x, axis)


def log_softmax(x, axis=-1):
    return scipy.special.log_softmax(x, axis)


def half_squares(w, coefficient):
    return 0.5 * coefficient * sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(w))


ROWS = {
    "relu": Row(activations.relu, {}, lambda x: x * (x > 0), one, lambda torch, x: torch.relu(x)),
    "sigmoid": Row(
        activations.sigmoid, {}, scipy.special.expit, one, lambda torch, x: torch.sigmoid(x)
    ),
    "tanh": Row(activations.tanh, {}, np.tanh, one, lambda torch, x: torch.tanh(x)),
    **{
        f"softmax {static}": Row(
            activations.softmax,
            static,
            softmax,
            one,
            lambda torch, x, axis=-1: torch.softmax(x, axis),
        )
        for static in ({}, {"axis": 0})
    },
    **{
        f"log_softmax {static}": Row(
            activations.log_softmax,
            static,
            log_softmax,
            one,
            lambda torch, x, axis=-1: torch.log_softmax(x, axis),
        )
        for static in ({}, {"axis": 0})
    },
    "linear": Row(
        linear,
        {},
        lambda p, x: np.einsum("...i,io->...o", x, p.w) + p.b,
        affine,
        lambda torch, p, x: torch.nn.functional.linear(x, p.w.T, p.b),
    ),
    "mean_squared_error": Row(
        losses.mean_squared_error,
        {},
        lambda p, t: np.mean(np.square(p - t)),
        pair,
        lambda torch, p, t: torch.nn.functional.mse_loss(p, t),
    ),
    "softmax_cross_entropy": Row(
        losses.softmax_cross_entropy,
        {},
        nll,
        labelled,
        lambda torch, z, t: torch.nn.functional.cross_entropy(
            z.reshape(-1, z.shape[-1]), t.ravel()
        ),
    ),
    "l2_penalty": Row(losses.l2_penalty, {"coefficient": 0.3}, half_squares, tree),
}
