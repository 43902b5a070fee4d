"""Rows of the tutorials' own ops."""

import numpy as np
import scipy.special

from jaxnn.ops import activations
from jaxnn.ops import softmax as softmax_module
from jaxnn.ops.linear import Linear, linear
from rows import Row


def one(rng, shape):
    return (rng.normal(size=shape),)


def affine(rng, shape):
    width = 1 + shape[0] % 4
    params = Linear(rng.normal(size=(shape[-1], width)), rng.normal(size=width))
    return params, rng.normal(size=shape)


def softmax(x, axis=-1):
    return scipy.special.softmax(x, axis)


def log_softmax(x, axis=-1):
    return scipy.special.log_softmax(x, axis)


ROWS = {
    "relu": Row(activations.relu, {}, lambda x: x * (x > 0), one, lambda torch, x: torch.relu(x)),
    "sigmoid": Row(
        activations.sigmoid, {}, scipy.special.expit, one, lambda torch, x: torch.sigmoid(x)
    ),
    "tanh": Row(activations.tanh, {}, np.tanh, one, lambda torch, x: torch.tanh(x)),
    **{
        f"softmax {static}": Row(
            softmax_module.softmax,
            static,
            softmax,
            one,
            lambda torch, x, axis=-1: torch.softmax(x, axis),
        )
        for static in ({}, {"axis": 0})
    },
    **{
        f"log_softmax {static}": Row(
            softmax_module.log_softmax,
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
}
