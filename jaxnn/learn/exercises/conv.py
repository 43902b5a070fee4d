"""Convolution of sequences, by unfolding: every window as one row, then a product of matrices.

x (N, T, C): N sequences of T places with C channels; w (K, C, O): a kernel over K places;
b (O,);  y (N, T - K + 1, O)
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn import ops

LESSON = "convolution"
INPUTS = {"x": "(N, T, C)", "w": "(K, C, O)", "b": "(O,)"}
OUTPUT = {"y": "(N, T - K + 1, O)"}
HINTS = (
    "Once the windows are rows of a matrix u, this is a linear layer, and its backward is that of "
    "one.",
    "A value of x lies in up to K windows. Its cotangent is the sum of those of all its copies.",
    "Go over the K places of the kernel: the copies that place k made came from x[:, k : k + P], P "
    "windows long, and dx.at[:, k : k + P].add(...) puts their cotangents back.",
)
GRADES = ("easy", "fused", "memory")
BUGS = (
    (
        "dx.at[:, k : k + places].add(",
        "dx.at[:, k : k + places].set(",
        "Windows overlap: what several windows hand back is added, not replaced.",
    ),
    ("dy.sum((0, 1))", "dy.sum(0)", "The biases are shared by all places too."),
)


def forward(x: Array, w: Array, b: Array) -> Array:
    """Lay the windows side by side, and multiply by the kernel as one matrix."""
    u = jnp.concatenate([x[:, k : k + x.shape[1] - len(w) + 1] for k in range(len(w))], -1)
    z = u @ w.reshape(-1, w.shape[-1])
    y = z + b
    return y


def steps(
    x: Array, w: Array, b: Array, u: Array, z: Array, y: Array, dy: Array
) -> dict[str, Array]:
    """Go back through the lines of the forward."""
    db = dy.sum((0, 1))
    dz = dy
    du = dz @ w.reshape(-1, w.shape[-1]).T
    dw = jnp.einsum("npk,npo->ko", u, dz).reshape(w.shape)
    dx = sum(
        jnp.zeros_like(x).at[:, k : k + y.shape[1]].add(part)
        for k, part in enumerate(jnp.split(du, len(w), -1))
    )
    return {"b": db, "z": dz, "u": du, "w": dw, "x": jnp.asarray(dx)}


def conv_fwd(x: Array, w: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    """Slide the kernel; its inputs are saved."""
    places = x.shape[1] - len(w) + 1
    y = sum(x[:, k : k + places] @ w[k] for k in range(len(w)))
    return y + b, (x, w)


def conv_bwd(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array, Array]:
    """Return dx, dw and db."""
    x, w = saved
    places = dy.shape[1]
    dx, dw = jnp.zeros_like(x), []
    for k in range(len(w)):
        dw.append(jnp.einsum("npc,npo->co", x[:, k : k + places], dy))
        dx = dx.at[:, k : k + places].add(dy @ w[k].T)
    return dx, jnp.stack(dw), dy.sum((0, 1))


def example(key: Array) -> tuple[Array, Array, Array]:
    """Draw sequences, a kernel and biases."""
    one, two, three = jax.random.split(key, 3)
    x = jax.random.normal(one, (2, 7, 4))
    return x, jax.random.normal(two, (3, 4, 5)), jax.random.normal(three, (5,))


def library(x: Array, w: Array, b: Array) -> Array:
    """Return what the library's op gives."""
    y: Array = ops.convolution.conv1d(ops.convolution.Conv(w, b), x)
    return y
