"""SwiGLU: one half of the features, through SiLU, decides how much of the other half passes.

gate (T, N), value (T, N): T examples of N features;  y (T, N)
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn import ops

LESSON = "memory"
INPUTS = {"gate": "(T, N)", "value": "(T, N)"}
OUTPUT = {"y": "(T, N)"}
HINTS = (
    "y is a product of two factors: the cotangent of each is dy times the other one.",
    "The gate is used twice in a = gate * s: once as it stands, once inside the sigmoid s. Its "
    "cotangent is the sum of both.",
    "Nothing but the two inputs needs to be saved: the sigmoid is cheap to compute once more. Its "
    "slope is s (1 - s).",
)
GRADES = ("easy", "fused", "memory")
BUGS = (
    (
        "s + a * (1 - s)",
        "s * (1 - s)",
        "SiLU is the gate times its sigmoid: the gate's own factor has a slope too.",
    ),
    ("dy * a", "dy * s", "The value's factor is the whole SiLU, not the sigmoid alone."),
)


def forward(gate: Array, value: Array) -> Array:
    """Compute the gated values."""
    s = 1 / (1 + jnp.exp(-gate))
    a = gate * s
    y = a * value
    return y


def steps(gate: Array, value: Array, s: Array, a: Array, y: Array, dy: Array) -> dict[str, Array]:
    """Go back through the lines of the forward."""
    da = dy * value
    dvalue = dy * a
    ds = da * gate
    dgate = da * s + ds * s * (1 - s)
    return {"a": da, "value": dvalue, "s": ds, "gate": dgate}


def swiglu_fwd(gate: Array, value: Array) -> tuple[Array, tuple[Array, Array]]:
    """Compute the gated values; the inputs are saved."""
    return gate * jax.nn.sigmoid(gate) * value, (gate, value)


def swiglu_bwd(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    """Return dgate and dvalue."""
    gate, value = saved
    s = jax.nn.sigmoid(gate)
    a = gate * s
    return dy * value * (s + a * (1 - s)), dy * a


def example(key: Array) -> tuple[Array, Array]:
    """Draw both halves."""
    one, two = jax.random.split(key)
    return jax.random.normal(one, (3, 5)), 1.5 * jax.random.normal(two, (3, 5))


def library(gate: Array, value: Array) -> Array:
    """Return what the library's op gives."""
    y: Array = ops.gated.swiglu(gate, value)
    return y
