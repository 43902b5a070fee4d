"""Recurrent layers: at each step of a sequence, from the state h (and c) of the step before.

    rnn     h' = tanh(a) or max(a, 0),  a = x_t w_x + b + h w_h
            da = dh' (1 - h'^2),  or dh' where h' > 0

    lstm    a likewise, in four parts;  i, f, o = sigmoid(a_i, a_f, a_o),  g = tanh(a_g)
            c' = f c + i g,  m = o tanh(c'),  h' = m, or m w_hr where there is a projection
            dm = dh' w_hr^T,  dw_hr = sum of m^T dh'
            dc' gains dm o (1 - tanh(c')^2);  di = dc' g,  df = dc' c,  dg = dc' i,  dc = dc' f

The product x w_x is taken for all steps at once; only h w_h waits for the step before. On the way
back only da and dh = da w_h^T wait for the step after. With da known for all steps the rest is

    dx = da w_x^T,  dw_x = sum of x_t^T da_t,  dw_h = sum of h_{t-1}^T da_t,  db = sum of da_t

Saved are x, the states before each step, and the gates (rnn has h' for one): per example, step and
hidden unit 2 values for rnn, 6 for lstm, whose c' and its tanh are recomputed. Products take their
factors in the dtype of x, and sum in float32 or wider; see `jaxnn.ops.recurrent_steps`. The gated
recurrent unit is in `jaxnn.ops.gru`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.numerics import product, widen
from jaxnn.op import Op
from jaxnn.ops.recurrent_doors import check_recurrent
from jaxnn.ops.recurrent_parts import CellState, Recurrent, example
from jaxnn.ops.recurrent_steps import (
    Cotangents,
    Gates,
    Output,
    RecurrentResiduals,
    inputs_bwd,
    steps_bwd,
    steps_fwd,
    weights_bwd,
)


def rnn_fwd(
    params: Recurrent,
    state: CellState,
    x: Array,
    lengths: Array | None,
    *,
    activation: str = "tanh",
    reverse: bool = False,
    truncate: int | None = None,
) -> tuple[Output, RecurrentResiduals]:
    """Run the network of Elman (1990) over whole sequences.

    Args:
        params: w_x (D, H), w_h (H, H), b (H,).
        state: h (N, H) before the first step.
        x: (N, T, D) with T at least 1.
        lengths: None, or integers (N,), how many of the T steps are real, the rest being padding,
            whatever it holds (under jit one above T counts as T, one below 0 as 0).
        activation: "tanh" or "relu" (Le, Jaitly and Hinton, 2015).
        reverse: go from each sequence's last real step to its first.
        truncate: let no gradient pass between the real steps t - 1 and t where t is a multiple of
            this (Williams and Peng, 1990).

    Returns:
        (y, final), residuals: y (N, T, H) is h after each step, 0 in the padding; `final` the state
        after the last.

    Raises:
        TypeError: params are no `Recurrent` or the state no `CellState` of floating arrays, of one
            dtype with x; the lengths are not integers; or a setting is of another type.
        ValueError: the shapes do not fit, a length is outside [0, T], truncate is below 1, or the
            activation is another.
    """
    act = jnp.tanh if activation == "tanh" else jax.nn.relu
    w_h = params.w_h

    def step(a_x: Array, before: CellState) -> tuple[CellState, Gates]:
        h = act(a_x + product(before.h.astype(w_h.dtype), w_h))
        return CellState(h), (h,)

    return steps_fwd(step, params, state, x, lengths, reverse, truncate)


def rnn_bwd(
    saved: RecurrentResiduals,
    dout: Output,
    *,
    activation: str = "tanh",
    reverse: bool = False,
    truncate: int | None = None,
) -> Cotangents:
    """Return every cotangent, from da = dh' (1 - h'^2), a step at a time; lengths have none."""
    w_h_t = saved.params.w_h.T  # once: the loop would read w_h across its rows at every step

    def step(gates: Gates, before: CellState, dafter: CellState) -> tuple[Array, CellState]:
        (h,), dh = gates, dafter.h
        da = dh * (1 - h) * (1 + h) if activation == "tanh" else jnp.where(h > 0, dh, 0)
        return da, CellState(product(da.astype(w_h_t.dtype), w_h_t))

    da, dstate = steps_bwd(step, saved, dout, reverse, truncate)
    dw_x, db, dx = inputs_bwd(saved, da)
    return Recurrent(dw_x, weights_bwd(saved.befores.h, da), db), dstate, dx, None


def lstm_fwd(
    params: Recurrent,
    state: CellState,
    x: Array,
    lengths: Array | None,
    *,
    reverse: bool = False,
    truncate: int | None = None,
) -> tuple[Output, RecurrentResiduals]:
    """Run long short-term memory with forget gates (Gers et al., 2000), all else as `rnn_fwd`.

    Where params have w_hr (H, P), a projection, h and y have P features (Sak et al., 2014).
    """
    _, w_h, _, _, w_hr = params

    def step(a_x: Array, before: CellState) -> tuple[CellState, Gates]:
        a = a_x + product(before.h.astype(w_h.dtype), w_h)
        a_i, a_f, a_g, a_o = jnp.split(a, 4, -1)
        i, f, g, o = lax.logistic(a_i), lax.logistic(a_f), jnp.tanh(a_g), lax.logistic(a_o)
        c = f * before.c + i * g
        m = o * jnp.tanh(c)
        h = m if w_hr is None else product(m.astype(w_hr.dtype), w_hr)
        return CellState(h, c), (i, f, g, o)

    return steps_fwd(step, params, state, x, lengths, reverse, truncate)


def lstm_bwd(
    saved: RecurrentResiduals,
    dout: Output,
    *,
    reverse: bool = False,
    truncate: int | None = None,
) -> Cotangents:
    """Return as `rnn_bwd` every cotangent, da through the four gates."""
    _, w_h, _, _, w_hr = saved.params
    w_h_t = w_h.T

    def step(gates: Gates, before: CellState, dafter: CellState) -> tuple[Gates, CellState]:
        (i, f, g, o), (dh, dc) = gates, dafter
        dm = dh if w_hr is None else product(dh.astype(w_hr.dtype), w_hr.T)
        tanh_c = jnp.tanh(f * before.c + i * g)
        dc += dm * o * (1 - tanh_c) * (1 + tanh_c)
        da_i = dc * g * i * (1 - i)
        da_f = dc * before.c * f * (1 - f)
        da_g = dc * i * (1 - g) * (1 + g)
        da_o = dm * tanh_c * o * (1 - o)
        da = jnp.concatenate([da_i, da_f, da_g, da_o], -1)
        dbefore = CellState(product(da.astype(w_h_t.dtype), w_h_t), dc * f)
        return (da,) if w_hr is None else (da, dh), dbefore

    (da, *dh), dstate = steps_bwd(step, saved, dout, reverse, truncate)
    dw_x, db, dx = inputs_bwd(saved, da)
    dw_hr = None
    if w_hr is not None:
        i, f, g, o = map(widen, saved.gates)
        m = o * jnp.tanh(f * widen(saved.befores.c) + i * g)
        dw_hr = weights_bwd(m.astype(w_hr.dtype), dh[0])
    dw_h = weights_bwd(saved.befores.h, da)
    return Recurrent(dw_x, dw_h, db, w_hr=dw_hr), dstate, dx, None


rnn = Op(
    rnn_fwd,
    rnn_bwd,
    partial(example, "rnn"),
    ({"activation": "tanh"}, {"activation": "relu"}),
    check=partial(check_recurrent, "rnn"),
)
lstm = Op(lstm_fwd, lstm_bwd, partial(example, "lstm"), check=partial(check_recurrent, "lstm"))
