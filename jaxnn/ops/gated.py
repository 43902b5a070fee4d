"""Gated units: one factor decides how much of the other passes.

    y = x f(x)           dx = (f + x f') dy

        silu    f = s, the sigmoid              f' = s (1 - s)
        gelu    f = P, the normal distribution  f' = P', its density
        mish    f = t = tanh(softplus(x))       f' = (1 - t^2) s

    y = f(gate) value    dvalue = f(gate) dy    dgate = f'(gate) value dy

        glu     f = sigmoid      swiglu    f = SiLU      geglu    f = GELU

The first three fall before they rise, so that two x share a y: they save x, one value per element,
and compute once more what the slope needs. Huge x of either sign give their true slope, never 0
times inf.

The others are of two halves, linear maps of one input. They come as two arrays: what a single
matrix product gives is cut by `jnp.split(x, 2, axis=-1)`, in the order in which its weights were
laid out. (What `jax.nn.glu` and PyTorch's `glu` call the first half is the value here, the second
the gate.) They save the two halves and compute f(gate) again in the backward.

All compute in float32 or wider, and round once: in bfloat16 a slope near its zero, as SiLU's at
-1.28, would else have no right digit.
"""

import math
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.checks import check_floating, check_one_dtype, said
from jaxnn.numerics import widen
from jaxnn.op import Op
from jaxnn.settings import check_flag

_GELU_CUBIC = 0.044715


def silu_fwd(x: Array) -> tuple[Array, Array]:
    """Return y = x s(x) with the sigmoid s, for x of any shape; also called swish.

    Elfwing, Uchibe and Doya 2018, "Sigmoid-weighted linear units for neural network function
    approximation in reinforcement learning".

    Raises:
        TypeError: x is no floating array.
    """
    wide = widen(x)
    return (wide * lax.logistic(wide)).astype(x.dtype), x


def silu_bwd(x: Array, dy: Array) -> tuple[Array]:
    """Return dx = dy s (1 + x (1 - s))."""
    wide = widen(x)
    s = lax.logistic(wide)
    return ((widen(dy) * s * (1 + wide * (1 - s))).astype(x.dtype),)


def gelu_fwd(x: Array, *, approximate: bool = False) -> tuple[Array, Array]:
    """Return y = x P(x), for x of any shape, with P the standard normal distribution function.

        exact          P(x) = erfc(-x / sqrt(2)) / 2: erfc keeps the digits of a small P
        approximate    P(x) = (1 + tanh(u)) / 2 = s(2 u),  u = sqrt(2 / pi) (x + 0.044715 x^3)

    The default is exact, as in PyTorch; `jax.nn.gelu` approximates unless told otherwise. Hendrycks
    and Gimpel 2016, "Gaussian error linear units", section 2.

    Raises:
        TypeError: x is no floating array, or `approximate` neither True nor False.
    """
    wide = widen(x)
    if approximate:
        u = math.sqrt(2 / math.pi) * (wide + _GELU_CUBIC * wide * wide * wide)
        return (wide * lax.logistic(2 * u)).astype(x.dtype), x
    return (wide * (lax.erfc(wide * -math.sqrt(0.5)) / 2)).astype(x.dtype), x


def gelu_bwd(x: Array, dy: Array, *, approximate: bool = False) -> tuple[Array]:
    """Return dx = dy (P + x P').

    exact          P' = exp(-x^2 / 2) / sqrt(2 pi)
    approximate    P' = P (1 - P) 2 u',  u' = sqrt(2 / pi) (1 + 3 0.044715 x^2)
    """
    wide, dy = widen(x), widen(dy)
    if approximate:
        u = math.sqrt(2 / math.pi) * (wide + _GELU_CUBIC * wide * wide * wide)
        p = lax.logistic(2 * u)
        # Where |x| >= 40, P' is 0 in every dtype; x P' must not become 0 times inf there.
        wide = jnp.clip(wide, -40, 40)
        du = math.sqrt(2 / math.pi) * (1 + 3 * _GELU_CUBIC * wide * wide)
        return ((dy * p * (1 + wide * (1 - p) * 2 * du)).astype(x.dtype),)
    z = wide * -math.sqrt(0.5)
    # -(z * z), as erfc has it: one exponential serves both.
    p, dp = lax.erfc(z) / 2, jnp.exp(-(z * z)) / math.sqrt(2 * math.pi)
    through_p = jnp.where(dp == 0, 0, wide * dp)  # 0 where x is infinite
    return ((dy * (p + through_p)).astype(x.dtype),)


def mish_fwd(x: Array) -> tuple[Array, Array]:
    """Return y = x t with t = tanh(softplus(x)), for x of any shape.

    With the sigmoid s of x and q = 1 - s, that of -x, t is a fraction without log or tanh:

        t = ((1 + exp(x))^2 - 1) / ((1 + exp(x))^2 + 1) = s (1 + q) / (1 + q^2)

    Misra 2020, "Mish: a self regularized non-monotonic activation function".

    Raises:
        TypeError: x is no floating array.
    """
    wide = widen(x)
    s, q = lax.logistic(wide), lax.logistic(-wide)
    return (wide * (s * (1 + q) / (1 + q * q))).astype(x.dtype), x


def mish_bwd(x: Array, dy: Array) -> tuple[Array]:
    """Return dx = dy (t + x (1 - t^2) s), where 1 - t^2 = 4 q^2 / (1 + q^2)^2."""
    wide = widen(x)
    s, q = lax.logistic(wide), lax.logistic(-wide)
    square = 1 + q * q
    # x s first, which is 0 far left, where x times more would be infinite.
    dx = widen(dy) * (s * (1 + q) + wide * s * (4 * q * q / square)) / square
    return (dx.astype(x.dtype),)


class Halves(NamedTuple):
    """What the backward of a gated unit needs: its two inputs, of one shape."""

    gate: Array
    value: Array


def glu_fwd(gate: Array, value: Array) -> tuple[Array, Halves]:
    """Return y = sigmoid(gate) value, all of one shape.

    Dauphin et al. 2017, "Language modeling with gated convolutional networks", equation 1.

    Raises:
        TypeError: gate and value are no floating arrays of one dtype.
        ValueError: they differ in shape.
    """
    y = lax.logistic(widen(gate)) * widen(value)
    return y.astype(value.dtype), Halves(gate, value)


def glu_bwd(halves: Halves, dy: Array) -> tuple[Array, Array]:
    """Return dgate = dy value s (1 - s) and dvalue = dy s, with s = sigmoid(gate)."""
    gate, value, wide = widen(halves.gate), widen(halves.value), widen(dy)
    s = lax.logistic(gate)
    # The factors below 1 first: dy value may be beyond every number where their product is not.
    return (wide * (s * (1 - s)) * value).astype(dy.dtype), (wide * s).astype(dy.dtype)


def swiglu_fwd(gate: Array, value: Array) -> tuple[Array, Halves]:
    """Return y = silu(gate) value, all of one shape.

    Shazeer 2020, "GLU variants improve transformer", equation 5. Raises as `glu_fwd`.
    """
    wide = widen(gate)
    y = wide * lax.logistic(wide) * widen(value)
    return y.astype(value.dtype), Halves(gate, value)


def swiglu_bwd(halves: Halves, dy: Array) -> tuple[Array, Array]:
    """Return dgate = silu'(gate) dy value and dvalue = dy silu(gate)."""
    gate, value, wide = widen(halves.gate), widen(halves.value), widen(dy)
    s = lax.logistic(gate)
    dgate = wide * value * s * (1 + gate * (1 - s))
    return dgate.astype(dy.dtype), (wide * (gate * s)).astype(dy.dtype)


def geglu_fwd(gate: Array, value: Array, *, approximate: bool = False) -> tuple[Array, Halves]:
    """Return y = gelu(gate) value: GELU as `gelu_fwd` has it, the rest as `glu_fwd`.

    Shazeer 2020, "GLU variants improve transformer", equation 5. Raises as the two.
    """
    f, _ = gelu_fwd(widen(gate), approximate=approximate)
    return (f * widen(value)).astype(value.dtype), Halves(gate, value)


def geglu_bwd(halves: Halves, dy: Array, *, approximate: bool = False) -> tuple[Array, Array]:
    """Return dgate = gelu'(gate) dy value and dvalue = dy gelu(gate)."""
    gate, value, wide = widen(halves.gate), widen(halves.value), widen(dy)
    f, _ = gelu_fwd(gate, approximate=approximate)
    (dgate,) = gelu_bwd(gate, wide * value, approximate=approximate)
    return dgate.astype(dy.dtype), (wide * f).astype(dy.dtype)


def _check(op: str, x: Array, *, approximate: bool = False) -> None:
    check_floating(f"{op}: x", x)
    check_flag(f"{op}: approximate", approximate)


def _check_halves(op: str, gate: Array, value: Array, *, approximate: bool = False) -> None:
    check_floating(f"{op}: gate", gate)
    check_floating(f"{op}: value", value)
    check_one_dtype(op, gate=gate, value=value)
    check_flag(f"{op}: approximate", approximate)
    words = (
        f"{op}: the gate has shape {gate.shape}, the value {value.shape}; they must be equal: cut "
        "one array into two halves, jnp.split(x, 2, axis=-1)"
    )
    with said(words):
        chex.assert_equal_shape([gate, value])


def _example(key: Array) -> tuple[Array]:
    """Normal values with zeros, a tie, and both saturated ends."""
    x = jax.random.normal(key, (3, 1, 5))
    return (x.at[0, 0].set(jnp.array([0.0, 0.0, -30.0, 30.0, 30.0])),)


def _halves_example(key: Array) -> tuple[Array, Array]:
    """Gates closed, open and half open (at 0), one of them on a value of 0."""
    gate, value = jax.random.normal(key, (2, 3, 1, 5))
    gate = gate.at[0, 0].set(jnp.array([0.0, 0.0, -30.0, 30.0, 1.0]))
    return gate, value.at[0, 0, 1].set(0.0)


_APPROXIMATE = {"approximate": True}

silu = Op(silu_fwd, silu_bwd, _example, check=partial(_check, "silu"))
gelu = Op(gelu_fwd, gelu_bwd, _example, settings=({}, _APPROXIMATE), check=partial(_check, "gelu"))
mish = Op(mish_fwd, mish_bwd, _example, check=partial(_check, "mish"))
glu = Op(glu_fwd, glu_bwd, _halves_example, check=partial(_check_halves, "glu"))
swiglu = Op(swiglu_fwd, swiglu_bwd, _halves_example, check=partial(_check_halves, "swiglu"))
geglu = Op(
    geglu_fwd,
    geglu_bwd,
    _halves_example,
    settings=(_APPROXIMATE,),
    check=partial(_check_halves, "geglu"),
)
