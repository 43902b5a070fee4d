"""A recurrent cell over whole sequences: what `jaxnn.ops.recurrent`'s layers have in common.

Forward, the product x w_x is taken for all steps at once; only h w_h waits for the step before.
Backward, the steps are walked in the opposite order, but only for what waits for the step after:

    da_t from dh_t and dc_t,  dh_{t-1} = da_t w_h^T + what reaches h_{t-1} past the gates

With da known for all steps the rest are single large products:

    dx = da w_x^T,  dw_x = x^T da,  dw_h = h_{t-1}^T da,  db = sum da

Inside, steps come first, (T, N, ...), and x is turned before its product and dx after: to turn the
wider a or da, as XLA does where these are products of three dimensions by `einsum`, takes a quarter
longer over all (T 128, batch 4 and 32, H 256, on a CPU).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxnn.checks import check_array, check_kind, check_one_dtype
from jaxnn.settings import check_flag, check_integer


class Recurrent(NamedTuple):
    """Parameters of a recurrent layer: G gates side by side, in PyTorch's order.

    Attributes:
        w_x: (D, G H), from the input: G is 1 for rnn, 4 for lstm (i f g o), 3 for gru (r z n).
        w_h: (H, G H), from the state.
        b: (G H,).
        b_hn: (H,), of the gru's q; None for the others.
    """

    w_x: Array
    w_h: Array
    b: Array
    b_hn: Array | None = None


class State(NamedTuple):
    """What passes from step to step: `h` (N, H) and, for lstm, the memory `c` (N, H), else None."""

    h: Array
    c: Any = None


class RecurrentResiduals(NamedTuple):
    """What a backward needs.

    Attributes:
        params: the parameters.
        x: (N, T, D), 0 in the padding.
        real: (T, N, 1), False in the padding; None where there is none.
        befores: the state before each step, each array (T, N, H).
        gates: (T, N, H) each: lstm i, f, g, o; gru r, z, n, q; rnn h'.
    """

    params: Recurrent
    x: Array
    real: Array | None
    befores: State
    gates: tuple[Array, ...]


Output = tuple[Array, State]
Cotangents = tuple[Recurrent, State, Array, None]


class Cell(NamedTuple):
    """One step of a layer.

    Attributes:
        name: the layer's.
        gates: how many columns of w_x there are per hidden unit.
        step: (x_t w_x + b, h w_h, state before, b_hn) -> (state after, gates).
        step_bwd: (gates, state before, cotangent of the state after) -> (da, and of the cotangent
            of the state before the part that does not come through h w_h).
        to_hidden: (gates, da) -> the cotangent of h w_h.
        memory: whether the state has a c.
        inner_bias: whether the parameters have a b_hn.
    """

    name: str
    gates: int
    step: Callable[[Array, Array, State, Any], tuple[State, tuple[Array, ...]]]
    step_bwd: Callable[[tuple[Array, ...], State, State], tuple[Array, State]]
    to_hidden: Callable[[tuple[Array, ...], Array], Array] = lambda gates, da: da
    memory: bool = False
    inner_bias: bool = False


def forward(
    cell: Cell,
    params: Recurrent,
    state: State,
    x: Array,
    lengths: Array | None,
    reverse: bool,
    truncate: int | None,
) -> tuple[Output, RecurrentResiduals]:
    """All steps of a cell; the product with the inputs is taken for all of them at once."""
    _check(cell, params, state, x, lengths, reverse, truncate)
    w_x, w_h, b, b_hn = params
    real = None
    if lengths is not None:
        steps = jnp.arange(x.shape[1], dtype=jnp.int32)
        real = (steps[:, None] < lengths.astype(jnp.int32))[..., None]
        x = jnp.where(real.swapaxes(0, 1), x, 0)  # or NaN in the padding would reach dw_x
    a_x = x.swapaxes(0, 1) @ w_x

    def step(last: State, at: Any) -> tuple[State, Any]:
        a_x, real, cut = at
        before = last
        if cut is not None:
            before = jax.tree.map(lambda s: jnp.where(cut, lax.stop_gradient(s), s), last)
        # b joins here: added to all of a_x at once it takes another array as large, and a tenth
        # more time.
        after, gates = cell.step(a_x + b, before.h @ w_h, before, b_hn)
        return _where(real, after, before), (last, gates)

    cuts = _cuts(x.shape[1], real, reverse, truncate)
    final, (befores, gates) = lax.scan(step, state, (a_x, real, cuts), reverse=reverse)
    end = final.h[None]
    h = jnp.concatenate([end, befores.h[:-1]] if reverse else [befores.h[1:], end])
    outputs = _where(real, h, jnp.zeros_like(h)).swapaxes(0, 1)
    return (outputs, final), RecurrentResiduals(params, x, real, befores, gates)


def backward(
    cell: Cell,
    residuals: RecurrentResiduals,
    dout: Output,
    reverse: bool,
    truncate: int | None,
) -> Cotangents:
    """da step by step, against the forward's order; then everything else at once."""
    (w_x, w_h, _, b_hn), x, real, befores, gates = residuals
    dy, dfinal = dout
    dy = dy.swapaxes(0, 1)
    dy = _where(real, dy, jnp.zeros_like(dy))
    w_h_t = w_h.T  # once: inside the scan it would be read across its rows at every step

    def step(dafter: State, at: Any) -> tuple[State, Array]:
        dy, gates, before, real, cut = at
        dafter = State(dafter.h + dy, dafter.c)
        da, past_gates = cell.step_bwd(gates, before, dafter)
        dh = past_gates.h + cell.to_hidden(gates, da) @ w_h_t
        dbefore = _where(real, State(dh, past_gates.c), dafter)
        if cut is not None:
            dbefore = jax.tree.map(lambda d: jnp.where(cut, 0, d), dbefore)
        return dbefore, _where(real, da, jnp.zeros_like(da))

    cuts = _cuts(x.shape[1], real, reverse, truncate)
    ats = (dy, gates, befores, real, cuts)
    dinitial, da = lax.scan(step, dfinal, ats, reverse=not reverse)

    da_h = cell.to_hidden(gates, da)
    dw_x = _rows(x.swapaxes(0, 1)).T @ _rows(da)
    dw_h = _rows(befores.h).T @ _rows(da_h)
    db_hn = None if b_hn is None else da_h[..., -b_hn.size :].sum((0, 1))
    dx = (da @ w_x.T).swapaxes(0, 1)
    return Recurrent(dw_x, dw_h, da.sum((0, 1)), db_hn), dinitial, dx, None


def _rows(x: Array) -> Array:
    """(T, N, F) as (T N, F)."""
    t, n, f = x.shape  # said out, for no -1 can be found where F is 0
    return x.reshape(t * n, f)


def _where(real: Array | None, inside: Any, outside: Any) -> Any:
    """The one in real steps, the other in the padding; without padding, the one."""
    if real is None:
        return inside
    return jax.tree.map(lambda a, b: jnp.where(real, a, b), inside, outside)


def _cuts(steps: int, real: Array | None, reverse: bool, truncate: int | None) -> Array | None:
    """Where no gradient passes into a step from the one taken before it: (T, 1 or N, 1)."""
    if truncate is None:
        return None
    t = np.arange(steps)[:, None, None]
    cuts = jnp.asarray((t > 0) & (t % truncate == 0))  # between t - 1 and t
    if real is not None:  # the state before the first step crosses the padding, or the last one
        cuts &= real
    return jnp.roll(cuts, -1, 0) if reverse else cuts


def _check(
    cell: Cell,
    params: Recurrent,
    state: State,
    x: Array,
    lengths: Array | None,
    reverse: bool,
    truncate: int | None,
) -> None:
    """Refuse what does not fit together."""
    name, gates = cell.name, cell.gates
    check_kind(f"{name}: params", params, Recurrent)
    check_kind(f"{name}: state", state, State)
    given = {**params._asdict(), **state._asdict()}
    arrays = {field: value for field, value in given.items() if value is not None}
    check_one_dtype(name, **{**arrays, "x": x})
    check_flag(f"{name}: reverse", reverse)
    if truncate is not None:
        hint = ", the steps that a gradient may go back, or None for all of them"
        check_integer(f"{name}: truncate", truncate, hint=hint)
    if x.ndim != 3 or 0 in x.shape[1:]:
        raise ValueError(
            f"{name}: x has shape {x.shape}; it must be (N, T, D) with at least one step of one "
            "feature: add the missing axis"
        )
    n, steps, d = x.shape
    h = params.w_h.shape[0] if params.w_h.ndim else 0
    needed = {
        "w_x": (d, gates * h),
        "w_h": (h, gates * h),
        "b": (gates * h,),
        "b_hn": (h,) if cell.inner_bias else None,
        "h": (n, h),
        "c": (n, h) if cell.memory else None,
    }
    for field, shape in needed.items():
        found = None if given[field] is None else given[field].shape
        if found != shape:
            raise ValueError(
                f"{name}: the shape of {field} is {found}; it must be {shape} for x of shape "
                f"{x.shape}, (N, T, D), and {gates} gates of {h} units, the rows of w_h: check "
                f"the sizes, or take parameters from init_{name}"
            )
    if lengths is None:
        return
    check_array(f"{name}: lengths", lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(
            f"{name}: lengths have dtype {lengths.dtype}; they must be integers: count the real "
            "steps, for example mask.sum(1)"
        )
    if lengths.shape != (n,):
        raise ValueError(
            f"{name}: lengths have shape {lengths.shape}, x {x.shape}; there must be one length "
            f"per sequence, shape ({n},): check that both are of the same batch"
        )
    if isinstance(lengths, jax.core.Tracer):
        return
    values = np.asarray(lengths)
    wrong = np.flatnonzero((values < 0) | (values > steps))
    if len(wrong):
        raise ValueError(
            f"{name}: length {values[wrong[0]]} at index {wrong[0]} ({len(wrong)} in all) is "
            f"outside [0, {steps}]; x has {steps} steps: cut the length or pad x"
        )
