"""An LSTM through time: the state and the cell go from step to step, and gradients go back.

params: w_x (D, 4H), w_h (H, 4H), b (4H,), gates in the order input, forget, candidate, output
x (N, T, D): N sequences of T steps;  y (N, T, H): the state after each step, from zeros on
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn import ops
from jaxnn.ops.recurrent_parts import CellState, Recurrent

LESSON = "lstm"
INPUTS = {"params": "w_x (D, 4H), w_h (H, 4H), b (4H,)", "x": "(N, T, D)"}
OUTPUT = {"y": "(N, T, H)"}
HINTS = (
    "Walk from the last step to the first, and carry two cotangents along, those of the state and "
    "of the cell. At the last step both are zero.",
    "A state is used twice, as an output and by the step after: its cotangent is dy at that step "
    "plus what was carried. The same holds for the cell, through the tanh and the forget gate.",
    "Each step gives da (N, 4H). Then dh = da @ w_h.T goes to the step before, dw_h adds up "
    "h_before.T @ da, dw_x adds up x_t.T @ da, db adds up da, and dx at that step is da @ w_x.T.",
)
GRADES = ("fused",)
BUGS = (
    (
        "dh = dy[:, t] + dh",
        "dh = dy[:, t]",
        "A state is also used by the step after: without its part no gradient goes through time.",
    ),
    (
        "dc = dc * f",
        "dc = dc",
        "The cell before went through the forget gate, so its cotangent does too.",
    ),
)


def forward(params: dict[str, Array], x: Array) -> Array:
    """Run the LSTM over all steps."""
    return lstm_fwd(params, x)[0]


def lstm_fwd(
    params: dict[str, Array], x: Array
) -> tuple[Array, tuple[dict[str, Array], Array, list[tuple[Array, ...]]]]:
    """Run over all steps; saved are the inputs and, of each step, what it began with and gates."""
    size = len(params["w_h"])
    h = c = jnp.zeros((len(x), size), x.dtype)
    states: list[Array] = []
    steps: list[tuple[Array, ...]] = []
    for t in range(x.shape[1]):
        a = x[:, t] @ params["w_x"] + h @ params["w_h"] + params["b"]
        a_i, a_f, a_g, a_o = jnp.split(a, 4, -1)
        i, f, o = jax.nn.sigmoid(a_i), jax.nn.sigmoid(a_f), jax.nn.sigmoid(a_o)
        g = jnp.tanh(a_g)
        steps.append((h, c, i, f, g, o))
        c = f * c + i * g
        h = o * jnp.tanh(c)
        states.append(h)
    return jnp.stack(states, 1), (params, x, steps)


def lstm_bwd(
    saved: tuple[dict[str, Array], Array, list[tuple[Array, ...]]], dy: Array
) -> tuple[dict[str, Array], Array]:
    """Return the cotangents of params and x."""
    params, x, steps = saved
    dparams = jax.tree.map(jnp.zeros_like, params)
    dh = dc = jnp.zeros_like(dy[:, 0])
    dx = []
    for t in reversed(range(len(steps))):
        h_before, c_before, i, f, g, o = steps[t]
        tanh_c = jnp.tanh(f * c_before + i * g)
        dh = dy[:, t] + dh
        dc = dc + dh * o * (1 - tanh_c**2)
        da_i, da_f = dc * g * i * (1 - i), dc * c_before * f * (1 - f)
        da_g, da_o = dc * i * (1 - g**2), dh * tanh_c * o * (1 - o)
        da = jnp.concatenate([da_i, da_f, da_g, da_o], -1)
        here = {"w_x": x[:, t].T @ da, "w_h": h_before.T @ da, "b": da.sum(0)}
        dparams = jax.tree.map(jnp.add, dparams, here)
        dx.append(da @ params["w_x"].T)
        dh = da @ params["w_h"].T
        dc = dc * f
    return dparams, jnp.stack(dx[::-1], 1)


def example(key: Array) -> tuple[dict[str, Array], Array]:
    """Draw parameters and three sequences of four steps."""
    a, b, c, d = jax.random.split(key, 4)
    params = {
        "w_x": jax.random.normal(a, (5, 8)) / 2,
        "w_h": jax.random.normal(b, (2, 8)),
        "b": jax.random.normal(c, (8,)) / 3,
    }
    return params, jax.random.normal(d, (3, 4, 5))


def library(params: dict[str, Array], x: Array) -> Array:
    """Return what the library's op gives."""
    zeros = jnp.zeros((len(x), len(params["w_h"])), x.dtype)
    weights = Recurrent(params["w_x"], params["w_h"], params["b"])
    y: Array = ops.recurrent.lstm(weights, CellState(zeros, zeros), x, None)[0]
    return y
