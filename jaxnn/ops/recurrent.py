"""Recurrent layers: at each step of a sequence, from the state h (and c) of the step before.

    rnn     h' = tanh(a),  a = x_t w_x + b + h w_h
            da = dh' (1 - h'^2)

    lstm    a likewise, in four parts;  i, f, o = sigmoid(a_i, a_f, a_o),  g = tanh(a_g)
            c' = f c + i g,  h' = o tanh(c')
            dc' gains dh' o (1 - tanh(c')^2);  di = dc' g,  df = dc' c,  dg = dc' i,  dc = dc' f

    gru     a_r, a_z likewise;  r, z = sigmoid(a_r, a_z),  q = h w_hn + b_hn
            n = tanh(a_n),  a_n = x_t w_xn + b_n + r q,  h' = (1 - z) n + z h
            dn = dh' (1 - z),  dz = dh' (h - n),  dr = da_n q,  dq = da_n r,  dh = dh' z

From da, the cotangent of what enters the gates, all else follows alike: see `jaxnn.ops.sequence`.

Saved are x, the states before each step, and the gates, each of which took a product (rnn has h'
for one): per example, step and hidden unit 2 values for rnn, 6 for lstm, 5 for gru. The lstm's c'
and its tanh are recomputed.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.nn.initializers import glorot_uniform, orthogonal

from jaxnn.checks import check_kind
from jaxnn.op import Op
from jaxnn.ops.sequence import (
    Cell,
    Cotangents,
    Output,
    Recurrent,
    RecurrentResiduals,
    State,
    backward,
    forward,
)


def rnn_fwd(
    params: Recurrent,
    state: State,
    x: Array,
    lengths: Array | None,
    *,
    reverse: bool = False,
    truncate: int | None = None,
) -> tuple[Output, RecurrentResiduals]:
    """The tanh network of Elman (1990), over whole sequences.

    Args:
        params: w_x (D, H), w_h (H, H), b (H,).
        state: h (N, H), before the first step.
        x: (N, T, D), T at least 1.
        lengths: (N,) integers in [0, T]: so many steps are real, the rest is padding, whatever it
            holds. None: all are. Under jit, where its values cannot be seen, one above T counts as
            T, one below 0 as 0.
        reverse: go from each sequence's last real step to its first.
        truncate: let no gradient pass between the real steps t - 1 and t where t is a multiple of
            this (truncated backpropagation through time, Williams and Peng, 1990). The forward has
            `lax.stop_gradient` there, which finite differences do not see. None: nowhere.

    Returns:
        (h after each step (N, T, H), 0 in the padding; the state after the last real step),
        residuals.

    Raises:
        TypeError: params are no `Recurrent` or the state no `State` of floating arrays, of one
            dtype with x; the lengths are not integers; or a setting is of another type.
        ValueError: the shapes do not fit, a length is outside [0, T], or truncate is below 1.
    """
    return forward(_RNN, params, state, x, lengths, reverse, truncate)


def rnn_bwd(
    residuals: RecurrentResiduals,
    dout: Output,
    *,
    reverse: bool = False,
    truncate: int | None = None,
) -> Cotangents:
    """Every cotangent from da = dh' (1 - h'^2), a step at a time; lengths have none."""
    return backward(_RNN, residuals, dout, reverse, truncate)


def _rnn_step(a_x: Array, a_h: Array, before: State, b_hn: None) -> tuple[State, tuple[Array]]:
    h = jnp.tanh(a_x + a_h)
    return State(h), (h,)


def _rnn_step_bwd(gates: tuple[Array, ...], before: State, dafter: State) -> tuple[Array, State]:
    (h,) = gates
    da = dafter.h * (1 - h) * (1 + h)
    return da, State(jnp.zeros_like(da))


def lstm_fwd(
    params: Recurrent,
    state: State,
    x: Array,
    lengths: Array | None,
    *,
    reverse: bool = False,
    truncate: int | None = None,
) -> tuple[Output, RecurrentResiduals]:
    """Long short-term memory with forget gates (Gers et al., 2000), over whole sequences.

    Arguments, result and errors as `rnn_fwd`, with w_x (D, 4H), w_h (H, 4H), b (4H,), and a state
    of h and c.
    """
    return forward(_LSTM, params, state, x, lengths, reverse, truncate)


def lstm_bwd(
    residuals: RecurrentResiduals,
    dout: Output,
    *,
    reverse: bool = False,
    truncate: int | None = None,
) -> Cotangents:
    """As `rnn_bwd`, da through the four gates."""
    return backward(_LSTM, residuals, dout, reverse, truncate)


def _lstm_step(
    a_x: Array, a_h: Array, before: State, b_hn: None
) -> tuple[State, tuple[Array, ...]]:
    a_i, a_f, a_g, a_o = jnp.split(a_x + a_h, 4, -1)
    i, f, o = lax.logistic(a_i), lax.logistic(a_f), lax.logistic(a_o)
    g = jnp.tanh(a_g)
    c = f * before.c + i * g
    return State(o * jnp.tanh(c), c), (i, f, g, o)


def _lstm_step_bwd(gates: tuple[Array, ...], before: State, dafter: State) -> tuple[Array, State]:
    i, f, g, o = gates
    tanh_c = jnp.tanh(f * before.c + i * g)
    dc = dafter.c + dafter.h * o * (1 - tanh_c) * (1 + tanh_c)
    da_i = dc * g * i * (1 - i)
    da_f = dc * before.c * f * (1 - f)
    da_g = dc * i * (1 - g) * (1 + g)
    da_o = dafter.h * tanh_c * o * (1 - o)
    da = jnp.concatenate([da_i, da_f, da_g, da_o], -1)
    return da, State(jnp.zeros_like(dc), dc * f)


def gru_fwd(
    params: Recurrent,
    state: State,
    x: Array,
    lengths: Array | None,
    *,
    reverse: bool = False,
    truncate: int | None = None,
) -> tuple[Output, RecurrentResiduals]:
    """Gated recurrent units (Cho et al., 2014, eqs. 5 to 8), over whole sequences.

    The reset gate multiplies after the product with w_h, hence the second bias b_hn: the form of
    cuDNN and PyTorch. Arguments, result and errors as `rnn_fwd`, with w_x (D, 3H), w_h (H, 3H),
    b (3H,), b_hn (H,).
    """
    return forward(_GRU, params, state, x, lengths, reverse, truncate)


def gru_bwd(
    residuals: RecurrentResiduals,
    dout: Output,
    *,
    reverse: bool = False,
    truncate: int | None = None,
) -> Cotangents:
    """As `rnn_bwd`, da through the three gates, and dh' z past them."""
    return backward(_GRU, residuals, dout, reverse, truncate)


def _gru_step(
    a_x: Array, a_h: Array, before: State, b_hn: Array
) -> tuple[State, tuple[Array, ...]]:
    (x_r, x_z, x_n), (h_r, h_z, h_n) = jnp.split(a_x, 3, -1), jnp.split(a_h, 3, -1)
    r, z, q = lax.logistic(x_r + h_r), lax.logistic(x_z + h_z), h_n + b_hn
    n = jnp.tanh(x_n + r * q)
    return State((1 - z) * n + z * before.h), (r, z, n, q)


def _gru_step_bwd(gates: tuple[Array, ...], before: State, dafter: State) -> tuple[Array, State]:
    r, z, n, q = gates
    dh = dafter.h
    da_n = dh * (1 - z) * (1 - n) * (1 + n)
    da_r = da_n * q * r * (1 - r)
    da_z = dh * (before.h - n) * z * (1 - z)
    return jnp.concatenate([da_r, da_z, da_n], -1), State(dh * z)


def _gru_to_hidden(gates: tuple[Array, ...], da: Array) -> Array:
    r, *_ = gates
    da_r, da_z, da_n = jnp.split(da, 3, -1)
    return jnp.concatenate([da_r, da_z, r * da_n], -1)


_RNN = Cell("rnn", 1, _rnn_step, _rnn_step_bwd)
_LSTM = Cell("lstm", 4, _lstm_step, _lstm_step_bwd, memory=True)
_GRU = Cell("gru", 3, _gru_step, _gru_step_bwd, _gru_to_hidden, inner_bias=True)


def init_rnn(key: Array, inputs: int, hidden: int) -> Recurrent:
    """Parameters of `rnn`: w_x (D, H) Glorot-uniform, w_h (H, H) orthogonal, b = 0.

    An orthogonal w_h neither shrinks nor grows the state (Saxe et al., 2014); w_x is drawn as in
    Glorot and Bengio (2010, eq. 16). Each gate of an `lstm` or `gru` is drawn by itself.
    """
    return _init(key, _RNN, inputs, hidden)


def init_lstm(key: Array, inputs: int, hidden: int) -> Recurrent:
    """Parameters of `lstm`, as `init_rnn`; the forget gates' b = 1 (Jozefowicz et al., 2015)."""
    params = _init(key, _LSTM, inputs, hidden)
    return params._replace(b=params.b.at[hidden : 2 * hidden].set(1))


def init_gru(key: Array, inputs: int, hidden: int) -> Recurrent:
    """Parameters of `gru`, as `init_rnn`; b_hn = 0."""
    return _init(key, _GRU, inputs, hidden)._replace(b_hn=jnp.zeros(hidden))


def _init(key: Array, cell: Cell, inputs: int, hidden: int) -> Recurrent:
    def beside(key: Array, draw: Callable[..., Array], rows: int) -> Array:
        keys = jax.random.split(key, cell.gates)
        return jnp.concatenate([draw(k, (rows, hidden)) for k in keys], 1)

    kx, kh = jax.random.split(key)
    w_x, w_h = beside(kx, glorot_uniform(), inputs), beside(kh, orthogonal(), hidden)
    return Recurrent(w_x, w_h, jnp.zeros(cell.gates * hidden))


@partial(jax.jit, static_argnums=0)  # one program instead of one per operation
def _example(cell: Cell, key: Array) -> tuple[Recurrent, State, Array, Array]:
    """Four sequences of at most 3 steps: whole, empty, of one step, of two."""
    n, steps, d, h = 4, 3, 2, 5
    g = cell.gates * h
    shapes = (d, g), (h, g), (g,), (h,), (n, h), (n, h), (n, steps, d)
    ends = list(itertools.accumulate(map(math.prod, shapes)))
    parts = jnp.split(0.5 * jax.random.normal(key, ends[-1:]), ends[:-1])
    w_x, w_h, b, b_hn, h_0, c_0, x = (p.reshape(s) for p, s in zip(parts, shapes, strict=True))
    params = Recurrent(w_x, w_h, b, b_hn if cell.inner_bias else None)
    return params, State(h_0, c_0 if cell.memory else None), x, jnp.array([3, 0, 1, 2])


rnn = Op(rnn_fwd, rnn_bwd, example=partial(_example, _RNN))
lstm = Op(lstm_fwd, lstm_bwd, example=partial(_example, _LSTM))
gru = Op(gru_fwd, gru_bwd, example=partial(_example, _GRU), settings=({"reverse": True},))


class Directions(NamedTuple):
    """Something of the layer that goes forward, and of the one that goes backward."""

    forward: Any
    backward: Any


def bidirectional_fwd(
    params: Directions,
    states: Directions,
    x: Array,
    lengths: Array | None,
    *,
    cell: Op[..., Output],
    truncate: int | None = None,
) -> tuple[tuple[Array, Directions], Directions]:
    """Two layers over one input, from either end (Schuster and Paliwal, 1997).

    Args:
        params: of both directions.
        states: before the first step of each.
        x: (N, T, D).
        lengths: as in `rnn_fwd`; the way back starts from each sequence's last real step.
        cell: `rnn`, `lstm` or `gru`.
        truncate: as in `rnn_fwd`.

    Returns:
        (outputs (N, T, 2H), forward ones first; final states of both), residuals of both.

    Raises:
        TypeError: params or states are no `Directions`.
        ValueError: the cell is none of these.
        TypeError, ValueError: as `rnn_fwd`, by the cell's name.
    """
    if cell not in (rnn, lstm, gru):
        raise ValueError(
            f"bidirectional: cell is {cell!r}; it must be rnn, lstm or gru of jaxnn.ops.recurrent: "
            "pass the op itself"
        )
    check_kind("bidirectional: params", params, Directions)
    check_kind("bidirectional: states", states, Directions)
    (y, final), there = cell.fwd(params.forward, states.forward, x, lengths, truncate=truncate)
    (y_back, final_back), back = cell.fwd(
        params.backward, states.backward, x, lengths, reverse=True, truncate=truncate
    )
    y = jnp.concatenate([y, y_back], -1)
    return (y, Directions(final, final_back)), Directions(there, back)


def bidirectional_bwd(
    residuals: Directions,
    dout: tuple[Array, Directions],
    *,
    cell: Op[..., Output],
    truncate: int | None = None,
) -> tuple[Directions, Directions, Array, None]:
    """Each direction by itself; their dx add up."""
    dy, dfinal = dout
    dy_there, dy_back = jnp.split(dy, [dfinal.forward.h.shape[-1]], -1)
    dparams, dstate, dx, _ = cell.bwd(
        residuals.forward, (dy_there, dfinal.forward), truncate=truncate
    )
    dparams_back, dstate_back, dx_back, _ = cell.bwd(
        residuals.backward, (dy_back, dfinal.backward), reverse=True, truncate=truncate
    )
    return Directions(dparams, dparams_back), Directions(dstate, dstate_back), dx + dx_back, None


def _both_ways_example(key: Array) -> tuple[Directions, Directions, Array, Array]:
    there, back = (_example(_RNN, k) for k in jax.random.split(key))
    return Directions(there[0], back[0]), Directions(there[1], back[1]), there[2], there[3]


bidirectional = Op(
    bidirectional_fwd,
    bidirectional_bwd,
    example=_both_ways_example,
    settings=({"cell": rnn},),
)
