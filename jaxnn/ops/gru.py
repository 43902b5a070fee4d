"""Gated recurrent units: a state that is kept or replaced, of each step as much as a gate says.

    r, z = sigmoid(x_t w_x + b + h w_h),  h' = (1 - z) n + z h
    n = tanh(x_t w_xn + b_n + r q),  q = h w_hn + b_hn             reset after the product
    n = tanh(x_t w_xn + b_n + q),    q = (r h) w_hn + b_hn         or before it

    dn = dh' (1 - z),  da_n = dn (1 - n^2),  dz = dh' (h - n),  dh = dh' z, and more by w_h
    after:  dr = da_n q,  dq = da_n r          before:  dq = da_n,  of d(r h) = dq w_hn^T dr and dh

All else is as in `jaxnn.ops.recurrent`: with da known for all steps, the rest is products for all
steps at once, of w_hn with dq for da_n; db_hn is the sum of dq. Saved are x, the states before each
step, and r, z, n and q: per example, step and hidden unit 5 values, or 4 with the reset before.
"""

from functools import partial

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


def gru_fwd(
    params: Recurrent,
    state: CellState,
    x: Array,
    lengths: Array | None,
    *,
    reset_after: bool = True,
    reverse: bool = False,
    truncate: int | None = None,
) -> tuple[Output, RecurrentResiduals]:
    """Run gated recurrent units (Cho et al., 2014, eqs. 5 to 8).

    Arguments, result and errors are those of `jaxnn.ops.recurrent.rnn_fwd`.

    `reset_after`: the reset gate multiplies after the product with w_hn, hence the second bias
    b_hn: the form of cuDNN and PyTorch. False: before it, the paper's, Keras's `reset_after=False`
    and ONNX's `linear_before_reset=0`; b_n and b_hn add up.
    """
    w_h, b_hn = params.w_h, widen(params.b_hn)
    w_rz, w_n = w_h[:, : -len(w_h)], w_h[:, -len(w_h) :]

    def after(a_x: Array, before: CellState) -> tuple[CellState, Gates]:
        h = before.h
        x_r, x_z, x_n = jnp.split(a_x, 3, -1)
        h_r, h_z, h_n = jnp.split(product(h.astype(w_h.dtype), w_h), 3, -1)
        r, z, q = lax.logistic(x_r + h_r), lax.logistic(x_z + h_z), h_n + b_hn
        n = jnp.tanh(x_n + r * q)
        return CellState((1 - z) * n + z * h), (r, z, n, q)

    def first(a_x: Array, before: CellState) -> tuple[CellState, Gates]:
        h = before.h
        x_r, x_z, x_n = jnp.split(a_x, 3, -1)
        h_r, h_z = jnp.split(product(h.astype(w_h.dtype), w_rz), 2, -1)
        r, z = lax.logistic(x_r + h_r), lax.logistic(x_z + h_z)
        n = jnp.tanh(x_n + product((r * h).astype(w_h.dtype), w_n) + b_hn)
        return CellState((1 - z) * n + z * h), (r, z, n)

    step = after if reset_after else first
    return steps_fwd(step, params, state, x, lengths, reverse, truncate)


def gru_bwd(
    saved: RecurrentResiduals,
    dout: Output,
    *,
    reset_after: bool = True,
    reverse: bool = False,
    truncate: int | None = None,
) -> Cotangents:
    """Return every cotangent, da through the three gates, and dh' z past them."""
    w_h = saved.params.w_h
    size, dtype = len(w_h), w_h.dtype
    w_h_t, w_rz_t, w_n_t = w_h.T, w_h[:, :-size].T, w_h[:, -size:].T

    def step(gates: Gates, before: CellState, dafter: CellState) -> tuple[Array, CellState]:
        (r, z, n, *q), h, dh = gates, before.h, dafter.h
        da_n = dh * (1 - z) * (1 - n) * (1 + n)
        da_z = dh * (h - n) * z * (1 - z)
        if reset_after:
            da_r = da_n * q[0] * r * (1 - r)
            da_h = jnp.concatenate([da_r, da_z, r * da_n], -1)
            dh = dh * z + product(da_h.astype(dtype), w_h_t)
        else:
            drh = product(da_n.astype(dtype), w_n_t)
            da_r = drh * h * r * (1 - r)
            da_rz = jnp.concatenate([da_r, da_z], -1)
            dh = dh * z + drh * r + product(da_rz.astype(dtype), w_rz_t)
        return jnp.concatenate([da_r, da_z, da_n], -1), CellState(dh)

    da, dstate = steps_bwd(step, saved, dout, reverse, truncate)
    dw_x, db, dx = inputs_bwd(saved, da)
    h, r, da_rz, da_n = saved.befores.h, saved.gates[0], da[..., :-size], da[..., -size:]
    if reset_after:
        dq = widen(r) * widen(da_n)
        dw_h = weights_bwd(h, jnp.concatenate([da_rz, dq.astype(dtype)], -1))
    else:
        dq = widen(da_n)
        dw_h = jnp.concatenate([weights_bwd(h, da_rz), weights_bwd(r * h, da_n)], -1)
    return Recurrent(dw_x, dw_h, db, dq.sum((0, 1)).astype(dtype)), dstate, dx, None


gru = Op(
    gru_fwd,
    gru_bwd,
    partial(example, "gru"),
    ({"reverse": True}, {"reset_after": False}),
    check=partial(check_recurrent, "gru"),
)
