"""Rows of the elementwise activations, the gated units, the masked softmax and dropout."""

import jax
import numpy as np
import scipy.special

from jaxnn.ops import activations, gated
from jaxnn.ops.activations import dropout
from jaxnn.ops.softmax import masked_softmax, softmax
from rows import Row
from rows.basic import one


def halves(rng, shape):
    return rng.normal(size=shape), rng.normal(size=shape)


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
        activations.leaky_relu,
        {"slope": 0.2},
        lambda x, slope: np.maximum(x, slope * x),
        one,
        lambda torch, x, slope: torch.nn.functional.leaky_relu(x, slope),
    ),
    "elu": Row(
        activations.elu,
        {"alpha": 0.7},
        lambda x, alpha: np.maximum(x, 0) + alpha * np.expm1(np.minimum(x, 0)),
        one,
        lambda torch, x, alpha: torch.nn.functional.elu(x, alpha),
    ),
    "selu": Row(activations.selu, {}, jax.nn.selu, one, lambda torch, x: torch.selu(x)),
    "softplus": Row(
        activations.softplus,
        {},
        lambda x: np.log1p(np.exp(x)),
        one,
        lambda torch, x: torch.nn.functional.softplus(x),
    ),
    "hard_sigmoid": Row(
        activations.hard_sigmoid,
        {},
        lambda x: np.clip((x + 3) / 6, 0, 1),
        lambda rng, shape: (3 * rng.normal(size=shape),),
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
    "dropout": Row(dropout, {"rate": 0.3}, dropped, keyed),
}
