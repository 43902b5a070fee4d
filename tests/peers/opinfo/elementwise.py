"""Elementwise functions, dropout and softmax."""

import functools
import math

import torch

from jaxnn.ops import (
    activations,
    exponential_linear,
    gated,
    piecewise_linear,
    shrinkage,
    softmax,
)

from . import Call, CannotSay, only


def plain(op):
    """An op of one array without settings."""
    return lambda x, inplace=False: Call(op, (x,))


def with_number(op, ours, theirs, default):
    """An op of one array with one setting, by its two names."""

    def mapping(x, *args, inplace=False, **kwargs):
        value = args[0] if args else kwargs.get(theirs, default)
        return Call(op, (x,), {ours: float(value)})

    return mapping


def prelu(x, weight):
    weight = weight.reshape(()) if weight.numel() == 1 else weight
    return Call(
        piecewise_linear.prelu,
        (piecewise_linear.Slope(weight), x.movedim(1, -1) if x.ndim > 1 else x),
        back=lambda y: y.movedim(-1, 1) if x.ndim > 1 else y,
    )


def hard_tanh(x, min_val=-1.0, max_val=1.0, inplace=False):
    settings = {"min_val": float(min_val), "max_val": float(max_val)}
    return Call(piecewise_linear.hard_tanh, (x,), settings)


def threshold(x, threshold, value, inplace=False):
    return Call(shrinkage.threshold, (x,), {"threshold": float(threshold), "value": float(value)})


def gelu(x, approximate="none"):
    return Call(gated.gelu, (x,), {"approximate": approximate == "tanh"})


def softplus(x, beta=1, threshold=20):
    settings = {"beta": float(beta), "threshold": float(threshold)}
    return Call(activations.softplus, (x,), settings)


def glu(x, dim=-1):
    value, gate = x.chunk(2, dim)
    return Call(gated.glu, (gate, value))


def dropout(x, p=0.5, training=True, inplace=False):
    raise CannotSay("random")


def soft(op, sign, x, dim=None, dtype=None, **rest):
    """Softmax and its like; `sign` -1 for softmin."""
    only(dtype=(dtype in (None, x.dtype), True))
    return Call(op, (sign * x if sign < 0 else x,), {"axis": dim})


def masked_soft(op, hidden, x, dim, *, mask=None, dtype=None):
    """What is hidden gets no cotangent: of `log_softmax` PyTorch would count it."""
    only(dtype=(dtype in (None, x.dtype), True))
    mask = torch.ones(x.shape, dtype=torch.bool) if mask is None else mask
    if not mask.broadcast_to(x.shape).any(dim).all():
        raise CannotSay("hidden")

    def seen(y):
        return y.where(mask, torch.tensor(hidden, dtype=y.dtype))

    return Call(op, (x, mask), {"axis": dim}, seen, seen)


def safe_softmax(x, dim, dtype=None):
    return Call(softmax.masked_softmax, (x, x > -torch.inf), {"axis": dim})


F = "nn.functional."
TABLE = {
    F + "relu": plain(activations.relu),
    F + "relu6": plain(piecewise_linear.relu6),
    F + "selu": plain(exponential_linear.selu),
    F + "hardsigmoid": plain(piecewise_linear.hard_sigmoid),
    F + "hardswish": plain(piecewise_linear.hard_swish),
    F + "logsigmoid": plain(activations.log_sigmoid),
    F + "softsign": plain(activations.soft_sign),
    F + "tanhshrink": plain(shrinkage.tanh_shrink),
    F + "silu": plain(gated.silu),
    F + "mish": plain(gated.mish),
    "sigmoid": plain(activations.sigmoid),
    "tanh": plain(activations.tanh),
    F + "leaky_relu": with_number(piecewise_linear.leaky_relu, "slope", "negative_slope", 0.01),
    F + "elu": with_number(exponential_linear.elu, "alpha", "alpha", 1),
    F + "celu": with_number(exponential_linear.celu, "alpha", "alpha", 1),
    F + "hardshrink": with_number(shrinkage.hard_shrink, "lambd", "lambd", 0.5),
    F + "softshrink": with_number(shrinkage.soft_shrink, "lambd", "lambd", 0.5),
    F + "hardtanh": hard_tanh,
    F + "threshold": threshold,
    F + "prelu": prelu,
    F + "gelu": gelu,
    F + "softplus": softplus,
    F + "glu": glu,
    F + "dropout": dropout,
    "softmax": functools.partial(soft, softmax.softmax, 1),
    "log_softmax": functools.partial(soft, softmax.log_softmax, 1),
    F + "softmin": functools.partial(soft, softmax.softmax, -1),
    "masked.softmax": functools.partial(masked_soft, softmax.masked_softmax, 0.0),
    "masked.log_softmax": functools.partial(masked_soft, softmax.masked_log_softmax, -math.inf),
    "torch.ops.aten._safe_softmax.default": safe_softmax,
}
