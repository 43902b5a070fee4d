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
    "relu": Row(activations.relu, {}, lambda x: x * (x > 0), one),
    "sigmoid": Row(activations.sigmoid, {}, scipy.special.expit, one),
    "tanh": Row(activations.tanh, {}, np.tanh, one),
    "softmax": Row(activations.softmax, {}, softmax, one),
    "softmax axis 0": Row(activations.softmax, {"axis": 0}, softmax, one),
    "log_softmax": Row(activations.log_softmax, {}, log_softmax, one),
    "log_softmax axis 0": Row(activations.log_softmax, {"axis": 0}, log_softmax, one),
    "linear": Row(linear, {}, lambda p, x: np.einsum("...i,io->...o", x, p.w) + p.b, affine),
    "mean_squared_error": Row(
        losses.mean_squared_error, {}, lambda p, t: np.mean(np.square(p - t)), pair
    ),
    "softmax_cross_entropy": Row(losses.softmax_cross_entropy, {}, nll, labelled),
    "l2_penalty": Row(losses.l2_penalty, {"coefficient": 0.3}, half_squares, tree),
}
