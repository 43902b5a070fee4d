"""Gated linear units: of two halves, one decides how much of the other passes.

    y = f(gate) value        dvalue = f(gate) dy        dgate = f'(gate) value dy

    glu       f = sigmoid        swiglu    f = SiLU        geglu     f = GELU

Both halves are linear maps of one input. They come as two arrays: what a single matrix product
gives is cut by `jnp.split(x, 2, axis=-1)`, in the order in which its weights were laid out. (What
`jax.nn.glu` and PyTorch's `glu` call the first half is the value here, the second the gate.)

Each saves the two halves, two values per element of y, and computes f(gate) again in the backward:
one more array to keep would cost more than the exponentials it saves.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.checks import check_floating
from jaxnn.op import Op
from jaxnn.ops.activations import (
    gelu_bwd,
    gelu_fwd,
    sigmoid_bwd,
    sigmoid_fwd,
    silu_bwd,
    silu_fwd,
)


class Halves(NamedTuple):
    """What the backward of a gated unit needs: its two inputs, of one shape."""

    gate: Array
    value: Array


def glu_fwd(gate: Array, value: Array) -> tuple[Array, Halves]:
    """y = sigmoid(gate) value, all of one shape.

    Saves both. Dauphin et al. 2017, "Language modeling with gated convolutional networks",
    equation 1.

    Raises:
        TypeError: gate or value is no floating array.
        ValueError: they differ in shape.
    """
    _check_halves("glu", gate, value)
    return sigmoid_fwd(gate)[0] * value, Halves(gate, value)


def glu_bwd(halves: Halves, dy: Array) -> tuple[Array, Array]:
    """dgate = dy value s (1 - s) and dvalue = dy s, with s = sigmoid(gate)."""
    gate, value = halves
    s, residuals = sigmoid_fwd(gate)
    (dgate,) = sigmoid_bwd(residuals, dy * value)
    return dgate, dy * s


def swiglu_fwd(gate: Array, value: Array) -> tuple[Array, Halves]:
    """y = silu(gate) value, all of one shape.

    Saves both. Shazeer 2020, "GLU variants improve transformer", equation 5.

    Raises:
        TypeError: gate or value is no floating array.
        ValueError: they differ in shape.
    """
    _check_halves("swiglu", gate, value)
    return silu_fwd(gate)[0] * value, Halves(gate, value)


def swiglu_bwd(halves: Halves, dy: Array) -> tuple[Array, Array]:
    """dgate = silu'(gate) dy value and dvalue = dy silu(gate)."""
    gate, value = halves
    f, residuals = silu_fwd(gate)
    (dgate,) = silu_bwd(residuals, dy * value)
    return dgate, dy * f


def geglu_fwd(gate: Array, value: Array, *, approximate: bool = False) -> tuple[Array, Halves]:
    """y = gelu(gate) value, all of one shape; GELU exact or approximate as `gelu_fwd` has it.

    Saves both. Shazeer 2020, "GLU variants improve transformer", equation 5.

    Raises:
        TypeError: gate or value is no floating array.
        ValueError: they differ in shape.
    """
    _check_halves("geglu", gate, value)
    return gelu_fwd(gate, approximate=approximate)[0] * value, Halves(gate, value)


def geglu_bwd(halves: Halves, dy: Array, *, approximate: bool = False) -> tuple[Array, Array]:
    """dgate = gelu'(gate) dy value and dvalue = dy gelu(gate)."""
    gate, value = halves
    f, residuals = gelu_fwd(gate, approximate=approximate)
    (dgate,) = gelu_bwd(residuals, dy * value, approximate=approximate)
    return dgate, dy * f


def _check_halves(name: str, gate: Array, value: Array) -> None:
    check_floating(f"{name}: gate", gate)
    check_floating(f"{name}: value", value)
    if gate.shape != value.shape:
        raise ValueError(
            f"{name}: the gate has shape {gate.shape}, the value {value.shape}; they must be "
            "equal: cut one array into two halves, jnp.split(x, 2, axis=-1)"
        )


def _example(key: Array) -> tuple[Array, Array]:
    """Gates closed, open and half open (at 0), one of them on a value of 0."""
    gate, value = jax.random.normal(key, (2, 3, 1, 5))
    gate = gate.at[0, 0].set(jnp.array([0.0, 0.0, -30.0, 30.0, 1.0]))
    return gate, value.at[0, 0, 1].set(0.0)


glu = Op(glu_fwd, glu_bwd, example=_example)
swiglu = Op(swiglu_fwd, swiglu_bwd, example=_example)
geglu = Op(geglu_fwd, geglu_bwd, example=_example, settings=({"approximate": True},))
