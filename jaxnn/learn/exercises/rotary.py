"""Rotary positions: pairs of features turn by an angle that grows with the position.

x (T, D), D even: T positions; feature i of the first half and i of the second are a pair;  y (T, D)
The angle of pair i at position t is t 100^(-2i/D).
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.ops.rotary import rotary as library_rotary

LESSON = "rotary"
INPUTS = {"x": "(T, D)"}
OUTPUT = {"y": "(T, D)"}
HINTS = (
    "The angles do not depend on x: y is linear in x, and each pair turns by itself. u and v are "
    "each used in two lines, and what two lines send back is added.",
    "For y = M x the cotangent is the transpose of M times dy. What is that of a rotation?",
    "Turn dy by minus the angle: the cosine stays, the sine changes its sign. Nothing of x is "
    "needed, so nothing of it is saved.",
)
GRADES = ("easy", "fused", "memory")
BUGS = (
    (
        "[du * cos + dv * sin, dv * cos - du * sin]",
        "[du * cos - dv * sin, dv * cos + du * sin]",
        "That turns on in the same direction; the transpose of a rotation turns back.",
    ),
)


def forward(x: Array) -> Array:
    """Turn every pair by its angle."""
    u, v = jnp.split(x, 2, -1)
    angle = jnp.outer(jnp.arange(len(x)), 100.0 ** (-jnp.arange(0, x.shape[-1], 2) / x.shape[-1]))
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    first = u * cos - v * sin
    second = v * cos + u * sin
    y = jnp.concatenate([first, second], -1)
    return y


def steps(
    x: Array,
    u: Array,
    v: Array,
    angle: Array,
    cos: Array,
    sin: Array,
    first: Array,
    second: Array,
    y: Array,
    dy: Array,
) -> dict[str, Array]:
    """Return the cotangent of every line that depends on x, and of x, last line first."""
    dfirst, dsecond = jnp.split(dy, 2, -1)
    du = dfirst * cos + dsecond * sin
    dv = dsecond * cos - dfirst * sin
    dx = jnp.concatenate([du, dv], -1)
    return {"first": dfirst, "second": dsecond, "u": du, "v": dv, "x": dx}


def rotary_fwd(x: Array) -> tuple[Array, None]:
    """Turn every pair; nothing is saved."""
    u, v = jnp.split(x, 2, -1)
    t, d = x.shape
    angle = jnp.outer(jnp.arange(t), 100.0 ** (-jnp.arange(0, d, 2) / d))
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    return jnp.concatenate([u * cos - v * sin, v * cos + u * sin], -1), None


def rotary_bwd(saved: None, dy: Array) -> tuple[Array]:
    """Return dx: dy turned back."""
    du, dv = jnp.split(dy, 2, -1)
    t, d = dy.shape
    angle = jnp.outer(jnp.arange(t), 100.0 ** (-jnp.arange(0, d, 2) / d))
    cos, sin = jnp.cos(angle).astype(dy.dtype), jnp.sin(angle).astype(dy.dtype)
    return (jnp.concatenate([du * cos + dv * sin, dv * cos - du * sin], -1),)


def example(key: Array) -> tuple[Array]:
    """Draw five positions of six features."""
    return (jax.random.normal(key, (5, 6)),)


def library(x: Array) -> Array:
    """Return what the library's op gives."""
    y: Array = library_rotary(x[None, :, None], jnp.arange(len(x)), base=100.0)[0, :, 0]
    return y
