"""Rows of the recurrent layers."""

import numpy as np
from scipy.special import expit

from jaxnn.ops.bidirectional import Directions, bidirectional
from jaxnn.ops.gru import gru
from jaxnn.ops.recurrent import lstm, rnn
from jaxnn.ops.recurrent_parts import CellState, Recurrent
from rows import Row


def sizes(shape):
    """Sequences, steps, inputs and units of a layer."""
    return shape[0], shape[-1], 1 + shape[1] % 3, 1 + sum(shape) % 7


def parameters(rng, shape, gates):
    _, _, d, h = sizes(shape)
    widths = [(d, gates * h), (h, gates * h), (gates * h,)]
    inner = rng.normal(size=h) if gates == 3 else None
    return Recurrent(*(rng.normal(scale=0.3, size=size) for size in widths), inner)


def projected(rng, shape):
    """An lstm whose state has about half as many features as there are units."""
    n, _, d, h = sizes(shape)
    p = 1 + h // 2
    widths = [(d, 4 * h), (p, 4 * h), (4 * h,)]
    params = Recurrent(*(rng.normal(scale=0.3, size=size) for size in widths))
    params = params._replace(w_hr=rng.normal(scale=0.5, size=(h, p)))
    before = CellState(rng.normal(size=(n, p)), rng.normal(size=(n, h)))
    return params, before, *inputs(rng, shape)


def state(rng, shape, gates):
    n, _, _, h = sizes(shape)
    return CellState(rng.normal(size=(n, h)), rng.normal(size=(n, h)) if gates == 4 else None)


def inputs(rng, shape):
    """Sequences, and lengths from none of the steps to all of them."""
    n, steps, d, _ = sizes(shape)
    return rng.normal(size=(n, steps, d)), rng.integers(0, steps + 1, n)


def layer(gates):
    return lambda rng, shape: (
        parameters(rng, shape, gates),
        state(rng, shape, gates),
        *inputs(rng, shape),
    )


def unpadded(rng, shape):
    return *layer(1)(rng, shape)[:3], None


def firing(rng, shape):
    """Most units on: at the kink the last digit decides whether a gradient passes."""
    params, *others = layer(1)(rng, shape)
    return params._replace(b=1 + params.b), *others


def both_ways(rng, shape):
    return (
        Directions(parameters(rng, shape, 1), parameters(rng, shape, 1)),
        Directions(state(rng, shape, 1), state(rng, shape, 1)),
        *inputs(rng, shape),
    )


def step(p, x, h, c, activation="tanh", reset_after=True):
    """The state after one step of one sequence; which cell it is shows in the parameters."""
    if c is not None:
        i, f, g, o = np.split(x @ p.w_x + h @ p.w_h + p.b, 4)
        c = expit(f) * c + expit(i) * np.tanh(g)
        m = expit(o) * np.tanh(c)
        return m if p.w_hr is None else m @ p.w_hr, c
    if p.b_hn is None:
        a = x @ p.w_x + h @ p.w_h + p.b
        return np.tanh(a) if activation == "tanh" else np.maximum(a, 0), None
    (x_r, x_z, x_n), (h_r, h_z, h_n) = np.split(x @ p.w_x + p.b, 3), np.split(h @ p.w_h, 3)
    r, z = expit(x_r + h_r), expit(x_z + h_z)
    inner = r * (h_n + p.b_hn) if reset_after else (r * h) @ np.split(p.w_h, 3, 1)[2] + p.b_hn
    return (1 - z) * np.tanh(x_n + inner) + z * h, None


def one_by_one(p, state, x, lengths, reverse=False, **of_cell):
    """Sequence by sequence, over its real steps alone."""
    y, final = (
        np.zeros((*x.shape[:2], state.h.shape[1])),
        CellState(state.h.copy(), None if state.c is None else state.c.copy()),
    )
    for row in range(len(x)):
        h, c = state.h[row], None if state.c is None else state.c[row]
        real = range(x.shape[1] if lengths is None else lengths[row])
        for t in reversed(real) if reverse else real:
            h, c = step(p, x[row, t], h, c, **of_cell)
            y[row, t] = h
        final.h[row] = h
        if c is not None:
            final.c[row] = c
    return y, final


def two_ways(p, states, x, lengths, cell, **of_cell):
    y, final = one_by_one(p.forward, states.forward, x, lengths, **of_cell)
    y_back, final_back = one_by_one(
        p.backward, states.backward, x, lengths, reverse=True, **of_cell
    )
    return np.concatenate([y, y_back], -1), Directions(final, final_back)


def torch_layer(torch, p, state, x, lengths, reverse=False, activation=None):
    """PyTorch's layer over a packed batch, where no sequence may be empty."""
    n, steps, d = x.shape
    hidden = len(p.w_h) if p.w_hr is None else len(p.w_hr)
    lengths = torch.full((n,), steps) if lengths is None else lengths
    t = torch.arange(steps)
    turned = torch.where(t < lengths[:, None], lengths[:, None] - 1 - t, t)[..., None]

    def turn(x):
        return x.gather(1, turned.expand(x.shape)) if reverse else x

    name = {1: "RNN", 3: "GRU", 4: "LSTM"}[p.w_x.shape[1] // hidden]
    more = {} if activation is None else {"nonlinearity": activation}
    more |= {} if p.w_hr is None else {"proj_size": p.w_hr.shape[1]}
    module = getattr(torch.nn, name)(d, hidden, batch_first=True, dtype=x.dtype, **more)
    inner = torch.zeros_like(p.b)
    if p.b_hn is not None:
        inner = torch.cat([inner[: -len(p.b_hn)], p.b_hn])
    weights = {
        "weight_ih_l0": p.w_x.T,
        "weight_hh_l0": p.w_h.T,
        "bias_ih_l0": p.b,
        "bias_hh_l0": inner,
    }
    weights |= {} if p.w_hr is None else {"weight_hr_l0": p.w_hr.T}
    before = [s[None] for s in state if s is not None]
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        turn(x), lengths.clamp(min=1), batch_first=True, enforce_sorted=False
    )
    arguments = (packed, tuple(before) if len(before) > 1 else before[0])
    out, after = torch.func.functional_call(module, weights, arguments)
    y, _ = torch.nn.utils.rnn.pad_packed_sequence(out, batch_first=True, total_length=steps)
    any_step = (lengths > 0)[:, None]
    after = after if len(before) > 1 else [after]
    final = [torch.where(any_step, a, b)[0] for a, b in zip(after, before, strict=True)]
    return turn(y) * any_step[..., None], CellState(*final)


def torch_both_ways(torch, p, states, x, lengths, cell, **of_cell):
    y, final = torch_layer(torch, p.forward, states.forward, x, lengths, **of_cell)
    y_back, final_back = torch_layer(
        torch, p.backward, states.backward, x, lengths, reverse=True, **of_cell
    )
    return torch.cat([y, y_back], -1), Directions(final, final_back)


ROWS = {
    "rnn": Row(rnn, {}, one_by_one, unpadded, torch_layer),
    "rnn relu": Row(rnn, {"activation": "relu"}, one_by_one, firing, torch_layer),
    "lstm": Row(lstm, {}, one_by_one, layer(4), torch_layer),
    "lstm projected": Row(lstm, {}, one_by_one, projected, torch_layer),
    "gru reverse": Row(gru, {"reverse": True}, one_by_one, layer(3), torch_layer),
    "gru reset before": Row(gru, {"reset_after": False}, one_by_one, layer(3)),
    "bidirectional rnn": Row(
        bidirectional,
        {"cell": rnn, "activation": "relu"},
        two_ways,
        both_ways,
        torch_both_ways,
    ),
}
