"""A feed-forward layer whose units are spread over devices: each has some columns and some rows.

x (N, D); w_in (P, D, H), w_out (P, H, E): row i is what device i of P has; b (E,);  y (N, E)
y = sum_i tanh(x w_in_i) w_out_i + b
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.ops.activations import tanh
from jaxnn.ops.linear import Linear, linear

LESSON = "collectives"
INPUTS = {"x": "(N, D)", "w_in": "(P, D, H)", "w_out": "(P, H, E)", "b": "(E,)"}
OUTPUT = {"y": "(N, E)"}
HINTS = (
    "What all devices have whole, x, is used once on each: its cotangent is a sum over devices. "
    "Of a sum over devices every term has the cotangent of the sum, as it is.",
    "On device i the rest is two products with tanh between them, as on one device with w_in_i and "
    "w_out_i: these two have a cotangent on each device, and no sum.",
    "b is added once, after the sum over devices: its cotangent is a sum over the N rows, no more. "
    "dz = (dy w_out^T) (1 - h^2) has the axis of devices, x and dy have not: products broadcast.",
)
GRADES = ("easy", "fused", "memory")


def forward(x: Array, w_in: Array, w_out: Array, b: Array) -> Array:
    """Return y: copied to all devices, a part on each, the sum, and b."""
    here = jnp.broadcast_to(x, (w_in.shape[0], *x.shape))
    z = here @ w_in
    h = jnp.tanh(z)
    part = h @ w_out
    total = part.sum(0)
    y = total + b
    return y


def steps(
    x: Array,
    w_in: Array,
    w_out: Array,
    b: Array,
    here: Array,
    z: Array,
    h: Array,
    part: Array,
    total: Array,
    y: Array,
    dy: Array,
) -> dict[str, Array]:
    """Return the cotangent of every name, one line of the forward at a time, last to first."""
    dtotal = dy
    db = dy.sum(0)
    dpart = jnp.broadcast_to(dtotal, part.shape)
    dw_out = h.mT @ dpart
    dh = dpart @ w_out.mT
    dz = dh * (1 - h * h)
    dw_in = here.mT @ dz
    dhere = dz @ w_in.mT
    dx = dhere.sum(0)
    return {
        "total": dtotal,
        "b": db,
        "part": dpart,
        "w_out": dw_out,
        "h": dh,
        "z": dz,
        "w_in": dw_in,
        "here": dhere,
        "x": dx,
    }


def tensor_parallel_fwd(
    x: Array, w_in: Array, w_out: Array, b: Array
) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    """Return y, and what the backward needs: the inputs but b, and h."""
    h = jnp.tanh(x @ w_in)
    return (h @ w_out).sum(0) + b, (x, h, w_in, w_out)


def tensor_parallel_bwd(
    saved: tuple[Array, Array, Array, Array], dy: Array
) -> tuple[Array, Array, Array, Array]:
    """Return the cotangents of x, w_in, w_out and b."""
    x, h, w_in, w_out = saved
    dz = (dy @ w_out.mT) * (1 - h * h)
    dx = (dz @ w_in.mT).sum(0)
    return dx, x.T @ dz, h.mT @ dy, dy.sum(0)


def library(x: Array, w_in: Array, w_out: Array, b: Array) -> Array:
    """Return the library's own on one device, with all columns and all rows."""
    columns, rows = jnp.concatenate([*w_in], 1), jnp.concatenate([*w_out], 0)
    y: Array = linear(Linear(rows, b), tanh(linear(Linear(columns), x)))
    return y


def example(key: Array) -> tuple[Array, Array, Array, Array]:
    """Draw x (5, 4), the parts of three devices with two units each, and b (6,)."""
    keys = jax.random.split(key, 4)
    shapes = ((5, 4), (3, 4, 2), (3, 2, 6), (6,))
    x, w_in, w_out, b = (jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True))
    return x, w_in, w_out, b


BUGS = (
    (
        "(dz @ w_in.mT).sum(0)",
        "(dz @ w_in.mT).mean(0)",
        "Each device uses its copy of x once: the cotangents add up, and no mean is taken.",
    ),
    (
        "dy.sum(0)",
        "len(w_in) * dy.sum(0)",
        "b is added once, after the sum over devices, and not once on each.",
    ),
)
