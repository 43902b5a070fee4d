"""One step of an LSTM: gates decide what the cell forgets, takes in and shows.

a (N, 4H): the gates before their functions, for N examples of H units, in the order input, forget,
candidate, output; c (N, H): the cell before;  y (N, 2H): the state and the cell after, side by side
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn import ops
from jaxnn.ops.recurrent_parts import CellState, Recurrent

LESSON = "lstm"
INPUTS = {"a": "(N, 4H)", "c": "(N, H)"}
OUTPUT = {"y": "(N, 2H)"}
HINTS = (
    "Split dy as y is put together: the first half belongs to the state h, the second to the cell.",
    "The new cell is used twice: it is returned, and the state is made of its tanh. Its cotangent "
    "is the sum of both, and everything but the output gate hangs on it.",
    "A sigmoid s has the slope s (1 - s), a tanh t the slope 1 - t**2. Put the four parts of da "
    "side by side, in the order of a; the cell before gets dc_new times the forget gate.",
)
GRADES = ("easy", "fused", "memory")
BUGS = (
    (
        "dc_new = dc_new + dh * o * (1 - t**2)",
        "dc_new = dh * o * (1 - t**2)",
        "The new cell is itself an output: what arrives from the step after must be added.",
    ),
    (
        "dc_new * c * f * (1 - f)",
        "dc_new * t * f * (1 - f)",
        "The forget gate multiplies the cell before the step, not the one after it.",
    ),
)


def forward(a: Array, c: Array) -> Array:
    """Compute the gates, the new cell and the new state."""
    a_i, a_f, a_g, a_o = jnp.split(a, 4, -1)
    i = jax.nn.sigmoid(a_i)
    f = jax.nn.sigmoid(a_f)
    g = jnp.tanh(a_g)
    o = jax.nn.sigmoid(a_o)
    c_new = f * c + i * g
    t = jnp.tanh(c_new)
    h = o * t
    y = jnp.concatenate([h, c_new], -1)
    return y


def steps(
    a: Array,
    c: Array,
    a_i: Array,
    a_f: Array,
    a_g: Array,
    a_o: Array,
    i: Array,
    f: Array,
    g: Array,
    o: Array,
    c_new: Array,
    t: Array,
    h: Array,
    y: Array,
    dy: Array,
) -> dict[str, Array]:
    """Go back through the lines of the forward."""
    dh, from_above = jnp.split(dy, 2, -1)
    do = dh * t
    dt = dh * o
    dc_new = from_above + dt * (1 - t**2)
    df = dc_new * c
    dc = dc_new * f
    di = dc_new * g
    dg = dc_new * i
    da_o = do * o * (1 - o)
    da_g = dg * (1 - g**2)
    da_f = df * f * (1 - f)
    da_i = di * i * (1 - i)
    da = jnp.concatenate([da_i, da_f, da_g, da_o], -1)
    return {
        "h": dh,
        "o": do,
        "t": dt,
        "c_new": dc_new,
        "f": df,
        "c": dc,
        "i": di,
        "g": dg,
        "a_o": da_o,
        "a_g": da_g,
        "a_f": da_f,
        "a_i": da_i,
        "a": da,
    }


def lstm_step_fwd(a: Array, c: Array) -> tuple[Array, tuple[Array, ...]]:
    """Compute the state and the cell; the cell before and the gates are saved."""
    a_i, a_f, a_g, a_o = jnp.split(a, 4, -1)
    i, f, o = jax.nn.sigmoid(a_i), jax.nn.sigmoid(a_f), jax.nn.sigmoid(a_o)
    g = jnp.tanh(a_g)
    c_new = f * c + i * g
    return jnp.concatenate([o * jnp.tanh(c_new), c_new], -1), (c, i, f, g, o)


def lstm_step_bwd(saved: tuple[Array, ...], dy: Array) -> tuple[Array, Array]:
    """Return da and dc."""
    c, i, f, g, o = saved
    t = jnp.tanh(f * c + i * g)
    dh, dc_new = jnp.split(dy, 2, -1)
    dc_new = dc_new + dh * o * (1 - t**2)
    da_i = dc_new * g * i * (1 - i)
    da_f = dc_new * c * f * (1 - f)
    da_g = dc_new * i * (1 - g**2)
    da_o = dh * t * o * (1 - o)
    return jnp.concatenate([da_i, da_f, da_g, da_o], -1), dc_new * f


def example(key: Array) -> tuple[Array, Array]:
    """Draw the gates of three examples with two units, and the cell before."""
    one, two = jax.random.split(key)
    return jax.random.normal(one, (3, 8)), jax.random.normal(two, (3, 2))


def library(a: Array, c: Array) -> Array:
    """Return what the library's op gives for one step, from a state of zero."""
    n, size = c.shape
    w_x = jnp.eye(4 * size, dtype=a.dtype)
    params = Recurrent(w_x, jnp.zeros((size, 4 * size), a.dtype), jnp.zeros(4 * size, a.dtype))
    start = CellState(jnp.zeros((n, size), a.dtype), c)
    _, final = ops.recurrent.lstm(params, start, a[:, None], None)
    return jnp.concatenate([final.h, final.c], -1)
