"""One step of a gated recurrent unit: a gate says how much of the state is replaced.

a (N, 3H): the input's part of reset gate, update gate and candidate, for N examples of H units;
b (N, 3H): the state's part of the same; h (N, H): the state before;  y (N, H): the state after
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn import ops
from jaxnn.ops.recurrent_parts import CellState, Recurrent

LESSON = "gru"
INPUTS = {"a": "(N, 3H)", "b": "(N, 3H)", "h": "(N, H)"}
OUTPUT = {"y": "(N, H)"}
HINTS = (
    "The update gate z is used twice, as z and as 1 - z: its cotangent is the difference of two.",
    "The reset gate r multiplies only the state's part of the candidate: that part's cotangent "
    "has r as a factor, the input's part has not.",
    "dn = dy (1 - z), dz = dy (h - n), dh = dy z. Then through tanh and sigmoids by their outputs; "
    "a and b share the first two of their three parts.",
)
GRADES = ("easy", "fused", "memory")
BUGS = (
    ("dy * (h - n)", "dy * (n - h)", "z multiplies the old state and 1 - z the candidate."),
    (
        "[da_r, da_z, da_n * r]",
        "[da_r, da_z, da_n]",
        "The state's part of the candidate went through the reset gate.",
    ),
)


def forward(a: Array, b: Array, h: Array) -> Array:
    """Compute the gates, the candidate and the new state."""
    a_r, a_z, a_n = jnp.split(a, 3, -1)
    b_r, b_z, b_n = jnp.split(b, 3, -1)
    r = jax.nn.sigmoid(a_r + b_r)
    z = jax.nn.sigmoid(a_z + b_z)
    n = jnp.tanh(a_n + r * b_n)
    y = (1 - z) * n + z * h
    return y


def steps(
    a: Array,
    b: Array,
    h: Array,
    a_r: Array,
    a_z: Array,
    a_n: Array,
    b_r: Array,
    b_z: Array,
    b_n: Array,
    r: Array,
    z: Array,
    n: Array,
    y: Array,
    dy: Array,
) -> dict[str, Array]:
    """Go back through the lines of the forward."""
    dn = dy * (1 - z)
    dz = dy * (h - n)
    dh = dy * z
    da_n = dn * (1 - n**2)
    dr = da_n * b_n
    db_n = da_n * r
    da_z = dz * z * (1 - z)
    db_z = da_z
    da_r = dr * r * (1 - r)
    db_r = da_r
    da = jnp.concatenate([da_r, da_z, da_n], -1)
    db = jnp.concatenate([db_r, db_z, db_n], -1)
    return {
        "n": dn,
        "z": dz,
        "h": dh,
        "a_n": da_n,
        "r": dr,
        "b_n": db_n,
        "a_z": da_z,
        "b_z": db_z,
        "a_r": da_r,
        "b_r": db_r,
        "a": da,
        "b": db,
    }


def gru_step_fwd(a: Array, b: Array, h: Array) -> tuple[Array, tuple[Array, ...]]:
    """Compute the new state; saved are the gates, the candidate, its part and the state."""
    a_r, a_z, a_n = jnp.split(a, 3, -1)
    b_r, b_z, b_n = jnp.split(b, 3, -1)
    r, z = jax.nn.sigmoid(a_r + b_r), jax.nn.sigmoid(a_z + b_z)
    n = jnp.tanh(a_n + r * b_n)
    return (1 - z) * n + z * h, (r, z, n, b_n, h)


def gru_step_bwd(saved: tuple[Array, ...], dy: Array) -> tuple[Array, Array, Array]:
    """Return da, db and dh."""
    r, z, n, b_n, h = saved
    da_n = dy * (1 - z) * (1 - n**2)
    da_z = dy * (h - n) * z * (1 - z)
    da_r = da_n * b_n * r * (1 - r)
    da = jnp.concatenate([da_r, da_z, da_n], -1)
    db = jnp.concatenate([da_r, da_z, da_n * r], -1)
    return da, db, dy * z


def example(key: Array) -> tuple[Array, Array, Array]:
    """Draw both parts for four examples with two units, and the state before."""
    one, two, three = jax.random.split(key, 3)
    a, b = jax.random.normal(one, (4, 6)), jax.random.normal(two, (4, 6))
    return a, b, jax.random.normal(three, (4, 2))


def library(a: Array, b: Array, h: Array) -> Array:
    """Return what the library's op gives, an example at a time: b comes in as biases."""
    size = h.shape[-1]

    def one(a: Array, b: Array, h: Array) -> Array:
        weights = jnp.eye(3 * size, dtype=a.dtype), jnp.zeros((size, 3 * size), a.dtype)
        bias = b.at[-size:].set(0)
        params = Recurrent(*weights, bias, b[-size:])
        y: Array = ops.gru.gru(params, CellState(h[None]), a[None, None], None)[0][0, 0]
        return y

    return jnp.stack([one(*row) for row in zip(a, b, h, strict=True)])
