"""Single recurrent layers: a whole sequence, forward and backward."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from experiments.benchmark.arms import Case, normal
from experiments.benchmark.ops import op_case
from jaxnn.ops.gru import gru
from jaxnn.ops.recurrent import lstm
from jaxnn.ops.recurrent_parts import CellState, Recurrent, init_gru, init_lstm
from jaxnn.ops.recurrent_steps import Output


def recurrent_case(kind: str, n: int, t: int, d: int, hidden: int) -> Case:
    """A whole sequence, from a state before to a state after."""
    op, init, step = {"LSTM": (lstm, init_lstm, lstm_step), "GRU": (gru, init_gru, gru_step)}[kind]

    def draw() -> tuple[Recurrent, CellState, Array, None]:
        state = CellState(normal(1, n, hidden), normal(2, n, hidden) if kind == "LSTM" else None)
        return init(jax.random.key(0), d, hidden), state, normal(3, n, t, d), None

    return op_case(
        f"T {t}, D {d}, H {hidden}, batch {n}",
        op,
        draw,
        lambda torch, inputs, dout: torch.recurrent(kind, *inputs[:3], dout),
        wrt=(0, 1, 2),
        stronger={"8 steps unrolled": lambda params, state, x, _: unrolled(step, params, state, x)},
    )


def unrolled(
    step: Callable[[Recurrent, CellState, Array], CellState],
    params: Recurrent,
    state: CellState,
    x: Array,
) -> Output:
    """A cell over all steps, the product with the inputs hoisted, eight steps per loop."""
    a_x = jnp.einsum("ntd,dg->tng", x, params.w_x) + params.b

    def body(before: CellState, a_x: Array) -> tuple[CellState, Array]:
        after = step(params, before, a_x)
        return after, after.h

    final, h = lax.scan(body, state, a_x, unroll=8)
    return h.swapaxes(0, 1), final


def lstm_step(params: Recurrent, before: CellState, a_x: Array) -> CellState:
    """One step of an LSTM as `jax.grad` is given it."""
    i, f, g, o = jnp.split(a_x + before.h @ params.w_h, 4, -1)
    c = jax.nn.sigmoid(f) * before.c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return CellState(jax.nn.sigmoid(o) * jnp.tanh(c), c)


def gru_step(params: Recurrent, before: CellState, a_x: Array) -> CellState:
    """One step of a GRU as `jax.grad` is given it."""
    h_r, h_z, h_n = jnp.split(before.h @ params.w_h, 3, -1)
    x_r, x_z, x_n = jnp.split(a_x, 3, -1)
    r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
    b_hn: Any = params.b_hn
    n = jnp.tanh(x_n + r * (h_n + b_hn))
    return CellState((1 - z) * n + z * before.h)
