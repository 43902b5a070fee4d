"""Elementwise functions, dropout and softmax."""

import functools

import torch

from jaxnn.ops import activations, gated, softmax

from . import Call, CannotSay, only


def plain(op):
    """An op of one array without settings."""
    return lambda x, inplace=False: Call(op, (x,))


def leaky_relu(x, negative_slope=0.01, inplace=False):
    return Call(activations.leaky_relu, (x,), {"slope": negative_slope})


def elu(x, alpha=1.0, inplace=False):
    return Call(activations.elu, (x,), {"alpha": alpha})


def gelu(x, approximate="none"):
    return Call(gated.gelu, (x,), {"approximate": approximate == "tanh"})


def softplus(x, beta=1, threshold=20):
    only(beta=(beta, 1))
    return Call(activations.softplus, (x,))


def glu(x, dim=-1):
    value, gate = x.chunk(2, dim)
    return Call(gated.glu, (gate, value))


def dropout(x, p=0.5, training=True, inplace=False):
    raise CannotSay("random")


def soft(op, sign, x, dim=None, dtype=None, **rest):
    """Softmax and its like; `sign` -1 for softmin."""
    only(dtype=(dtype in (None, x.dtype), True))
    return Call(op, (sign * x if sign < 0 else x,), {"axis": dim})


def masked_soft(op, x, dim, *, mask=None, dtype=None):
    only(dtype=(dtype in (None, x.dtype), True))
    mask = torch.ones(x.shape, dtype=torch.bool) if mask is None else mask
    if not mask.broadcast_to(x.shape).any(dim).all():
        raise CannotSay("hidden")
    return Call(op, (x, mask), {"axis": dim})


def safe_softmax(x, dim, dtype=None):
    return Call(softmax.masked_softmax, (x, x > -torch.inf), {"axis": dim})


F = "nn.functional."
TABLE = {
    F + "relu": plain(activations.relu),
    F + "selu": plain(activations.selu),
    F + "hardsigmoid": plain(activations.hard_sigmoid),
    F + "silu": plain(gated.silu),
    F + "mish": plain(gated.mish),
    "sigmoid": plain(activations.sigmoid),
    "tanh": plain(activations.tanh),
    F + "leaky_relu": leaky_relu,
    F + "elu": elu,
    F + "gelu": gelu,
    F + "softplus": softplus,
    F + "glu": glu,
    F + "dropout": dropout,
    "softmax": functools.partial(soft, softmax.softmax, 1),
    "log_softmax": functools.partial(soft, softmax.log_softmax, 1),
    F + "softmin": functools.partial(soft, softmax.softmax, -1),
    "masked.softmax": functools.partial(masked_soft, softmax.masked_softmax),
    "torch.ops.aten._safe_softmax.default": safe_softmax,
}
