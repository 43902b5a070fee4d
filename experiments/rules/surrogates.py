"""Rules that are deliberately not the derivative: each says what they are the derivative of."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from experiments.rules.rule import Mistake, Rule, normals

STEP = 0.25
MOST = 1.0
STEEP = 2.0
BACK = 0.3


def quantised(mistake: Mistake) -> Any:
    """x rounded to steps within -MOST and MOST;  dx = dy within, 0 outside."""

    @jax.custom_vjp
    def f(x: Array) -> Array:
        return STEP * jnp.round(jnp.clip(x, -MOST, MOST) / STEP)

    def f_fwd(x: Array) -> Any:
        return f(x), x

    def f_bwd(x: Array, dy: Array) -> Any:
        inside = jnp.abs(x) < MOST
        if mistake == "mask ignored":
            return (dy,)
        if mistake == "mask inverted":
            inside = ~inside
        return (jnp.where(inside, dy / STEP if mistake == "step divided by" else dy, 0),)

    f.defvjp(f_fwd, f_bwd)
    return f


def clipped(x: Array) -> Array:
    """What quantisation is the rounding of."""
    return jnp.clip(x, -MOST, MOST)


def reversal(mistake: Mistake) -> Any:
    """x itself;  dx = -BACK dy, for an adversary's features."""

    @jax.custom_vjp
    def f(x: Array) -> Array:
        return x

    def f_fwd(x: Array) -> Any:
        return f(x), None

    def f_bwd(_: None, dy: Array) -> Any:
        if mistake == "not reversed":
            return (BACK * dy,)
        if mistake == "scaled by the inverse":
            return (-dy / BACK,)
        return (-dy if mistake == "not scaled" else -BACK * dy,)

    f.defvjp(f_fwd, f_bwd)
    return f


def reversed_scaled(x: Array) -> Array:
    """What reversal is the gradient of."""
    return -BACK * x


def spike(mistake: Mistake) -> Any:
    """1 where x > 0, 0 elsewhere;  dx = dy sigmoid'(STEEP x)."""

    @jax.custom_vjp
    def f(x: Array) -> Array:
        return (x > 0).astype(x.dtype)

    def f_fwd(x: Array) -> Any:
        return f(x), x

    def f_bwd(x: Array, dy: Array) -> Any:
        s = jax.nn.sigmoid(STEEP * x)
        if mistake == "sigmoid for its slope":
            return (dy * STEEP * s,)
        scale = 1 if mistake == "steepness left out" else STEEP
        return (dy * scale * s * (1 - s),)

    f.defvjp(f_fwd, f_bwd)
    return f


def steep_sigmoid(x: Array) -> Array:
    """What a spike is taken for."""
    return 1 / (1 + jnp.exp(-STEEP * x))


RULES = (
    Rule(
        "straight-through quantisation",
        quantised,
        clipped,
        normals((5, 7)),
        {
            "mask ignored": "mask, derivative left out, wrong derivative",
            "mask inverted": "mask",
            "step divided by": "factor",
        },
        declared={"surrogate": (clipped, "straight through the rounding")},
    ),
    Rule(
        "gradient reversal",
        reversal,
        reversed_scaled,
        normals((5, 3)),
        {
            "not reversed": "sign",
            "not scaled": "factor, derivative left out",
            "scaled by the inverse": "factor",
        },
        declared={"surrogate": (reversed_scaled, "an adversary is trained through it")},
    ),
    Rule(
        "spike of a neuron",
        spike,
        steep_sigmoid,
        normals((4, 7)),
        {
            "sigmoid for its slope": "wrong saved value, wrong derivative, derivative left out",
            "steepness left out": "factor, derivative left out",
        },
        declared={"surrogate": (steep_sigmoid, "a step has no slope to learn by")},
    ),
)
