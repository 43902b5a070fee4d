"""Rows of the elementwise activations, the gated units, the masked softmax and dropout."""

import jax
import numpy as np
import scipy.special

from jaxnn.ops import activations, exponential_linear, gated, piecewise_linear, shrinkage
from jaxnn.ops.activations import dropout
from jaxnn.ops.piecewise_linear import Slope
from jaxnn.ops.softmax import masked_log_softmax, masked_softmax, softmax
from rows import Row
from rows.basic import one


def halves(rng, shape):
    return rng.normal(size=shape), rng.normal(size=shape)


def thrice(rng, shape):
    """As far as the kinks at 3 and 6."""
    return (3 * rng.normal(size=shape),)


def channels(rng, shape):
    return Slope(rng.normal(size=shape[-1])), rng.normal(size=shape)


def one_slope(rng, shape):
    return Slope(np.asarray(rng.normal())), rng.normal(size=shape)


def prelu(params, x):
    return np.maximum(x, 0) + params.slope * np.minimum(x, 0)


def torch_prelu(torch, params, x):
    """PyTorch has the channels after the batch, and one slope as (1,)."""
    slope = params.slope.reshape(-1)
    return torch.nn.functional.prelu(x.movedim(-1, 1), slope).movedim(1, -1)


def softplus(x, beta=1.0, threshold=None):
    y = np.log1p(np.exp(beta * x)) / beta
    return y if threshold is None else np.where(beta * x > threshold, x, y)


def gelu(x, approximate=False):
    if approximate:
        return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x * scipy.special.ndtr(x)


def torch_gelu(torch, x, approximate=False):
    return torch.nn.functional.gelu(x, approximate="tanh" if approximate else "none")


def visible(rng, shape):
    """Scores and a mask for all but the first dimension; with it False, whole rows are hidden."""
    mask = rng.random(size=(1, *shape[1:])) < 0.6
    mask[..., -1] = False
    mask.ravel()[0] = True
    return rng.normal(size=shape), mask


def seen(rng, shape):
    """Scores of which none is hidden, for what is gets -inf: test_ops_activations.py hides some."""
    return rng.normal(size=shape), np.ones(shape[1:], bool)


def shares(x, mask, axis=-1, temperature=1.0):
    exp = np.exp(x / temperature) * mask
    total = exp.sum(axis, keepdims=True)
    return np.divide(exp, total, out=np.zeros_like(exp), where=total > 0)


def torch_shares(torch, x, mask, axis=-1, temperature=1.0):
    some = mask.any(axis, keepdim=True)  # a bias of -inf everywhere would give NaN
    bias = torch.zeros(mask.shape, dtype=x.dtype).masked_fill(some & ~mask, -torch.inf)
    return torch.softmax(x / temperature + bias, axis) * some


def keyed(rng, shape):
    return rng.normal(size=shape), jax.random.key(int(rng.integers(1000)))


def dropped(x, key, rate):
    share = np.asarray(jax.random.bits(key, x.shape, "uint32")) / 2**32
    return x * (share >= rate) / (1 - rate)


ROWS = {
    "leaky_relu": Row(
        piecewise_linear.leaky_relu,
        {"slope": 0.2},
        lambda x, slope: np.maximum(x, slope * x),
        one,
        lambda torch, x, slope: torch.nn.functional.leaky_relu(x, slope),
    ),
    "elu": Row(
        exponential_linear.elu,
        {"alpha": 0.7},
        lambda x, alpha: np.maximum(x, 0) + alpha * np.expm1(np.minimum(x, 0)),
        one,
        lambda torch, x, alpha: torch.nn.functional.elu(x, alpha),
    ),
    "selu": Row(exponential_linear.selu, {}, jax.nn.selu, one, lambda torch, x: torch.selu(x)),
    "celu": Row(
        exponential_linear.celu,
        {"alpha": 0.5},  # PyTorch divides by it in float32
        lambda x, alpha: np.maximum(x, 0) + alpha * np.expm1(np.minimum(x, 0) / alpha),
        one,
        lambda torch, x, alpha: torch.nn.functional.celu(x, alpha),
    ),
    "softplus": Row(
        activations.softplus,
        {},
        lambda x: np.log1p(np.exp(x)),
        one,
        lambda torch, x: torch.nn.functional.softplus(x),
    ),
    "softplus with a threshold": Row(
        activations.softplus,
        {"beta": 2.0, "threshold": 1.5},
        softplus,
        one,
        lambda torch, x, beta, threshold: torch.nn.functional.softplus(x, beta, threshold),
    ),
    "log_sigmoid": Row(
        activations.log_sigmoid,
        {},
        scipy.special.log_expit,
        one,
        lambda torch, x: torch.nn.functional.logsigmoid(x),
    ),
    "soft_sign": Row(
        activations.soft_sign,
        {},
        lambda x: x / (1 + np.abs(x)),
        one,
        lambda torch, x: torch.nn.functional.softsign(x),
    ),
    "tanh_shrink": Row(
        shrinkage.tanh_shrink,
        {},
        lambda x: x - np.tanh(x),
        one,
        lambda torch, x: torch.nn.functional.tanhshrink(x),
    ),
    "hard_shrink": Row(
        shrinkage.hard_shrink,
        {"lambd": 0.4},
        lambda x, lambd: x * (np.abs(x) > lambd),
        one,
        lambda torch, x, lambd: torch.nn.functional.hardshrink(x, lambd),
    ),
    "soft_shrink": Row(
        shrinkage.soft_shrink,
        {"lambd": 0.4},
        lambda x, lambd: np.maximum(x - lambd, 0) + np.minimum(x + lambd, 0),
        one,
        lambda torch, x, lambd: torch.nn.functional.softshrink(x, lambd),
    ),
    "threshold": Row(
        shrinkage.threshold,
        {"threshold": 0.3, "value": -2.0},
        lambda x, threshold, value: np.where(x > threshold, x, value),
        one,
        lambda torch, x, threshold, value: torch.nn.functional.threshold(x, threshold, value),
    ),
    "prelu": Row(piecewise_linear.prelu, {}, prelu, channels, torch_prelu),
    "prelu with one slope": Row(piecewise_linear.prelu, {}, prelu, one_slope, torch_prelu),
    "relu6": Row(
        piecewise_linear.relu6,
        {},
        lambda x: np.clip(x, 0, 6),
        thrice,
        lambda torch, x: torch.nn.functional.relu6(x),
    ),
    "hard_tanh": Row(
        piecewise_linear.hard_tanh,
        {"min_val": -0.5, "max_val": 1.5},
        lambda x, min_val, max_val: np.clip(x, min_val, max_val),
        one,
        lambda torch, x, min_val, max_val: torch.nn.functional.hardtanh(x, min_val, max_val),
    ),
    "hard_swish": Row(
        piecewise_linear.hard_swish,
        {},
        lambda x: x * np.clip((x + 3) / 6, 0, 1),
        thrice,
        lambda torch, x: torch.nn.functional.hardswish(x),
    ),
    "hard_sigmoid": Row(
        piecewise_linear.hard_sigmoid,
        {},
        lambda x: np.clip((x + 3) / 6, 0, 1),
        thrice,
        # PyTorch's own hardsigmoid multiplies by 1/6 in float32, 3e-8 off, whatever x's dtype.
        lambda torch, x: torch.nn.functional.relu6(x + 3) / 6,
    ),
    "silu": Row(
        gated.silu,
        {},
        lambda x: x / (1 + np.exp(-x)),
        one,
        lambda torch, x: torch.nn.functional.silu(x),
    ),
    **{
        f"gelu {static}": Row(gated.gelu, static, gelu, one, torch_gelu)
        for static in ({}, {"approximate": True})
    },
    "mish": Row(
        gated.mish,
        {},
        lambda x: x * np.tanh(np.log1p(np.exp(x))),
        one,
        lambda torch, x: torch.nn.functional.mish(x),
    ),
    "glu": Row(
        gated.glu,
        {},
        lambda gate, value: scipy.special.expit(gate) * value,
        halves,
        lambda torch, gate, value: torch.nn.functional.glu(torch.cat([value, gate], -1)),
    ),
    "swiglu": Row(
        gated.swiglu,
        {},
        lambda gate, value: scipy.special.expit(gate) * gate * value,
        halves,
        lambda torch, gate, value: torch.nn.functional.silu(gate) * value,
    ),
    "geglu": Row(
        gated.geglu,
        {"approximate": True},
        lambda gate, value, approximate: gelu(gate, approximate) * value,
        halves,
        lambda torch, gate, value, approximate: torch_gelu(torch, gate, approximate) * value,
    ),
    "softmax with a temperature": Row(
        softmax,
        {"axis": 0, "temperature": 0.6},
        lambda x, axis, temperature: scipy.special.softmax(x / temperature, axis),
        one,
        lambda torch, x, axis, temperature: torch.softmax(x / temperature, axis),
    ),
    **{
        f"masked_softmax {static}": Row(masked_softmax, static, shares, visible, torch_shares)
        for static in ({}, {"temperature": 0.6, "axis": 0})
    },
    "masked_log_softmax": Row(
        masked_log_softmax,
        {"axis": 0},
        lambda x, mask, axis: scipy.special.log_softmax(x, axis),
        seen,
        lambda torch, x, mask, axis: torch.log_softmax(x, axis),
    ),
    "dropout": Row(dropout, {"rate": 0.3}, dropped, keyed),
}
