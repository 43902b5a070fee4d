"""A cell taken over the steps of sequences, forward and back: what all recurrent layers share.

A step computes in float32 or wider, and so are the states that it hands to the next; what is saved
of it has the dtype of x. The product x w_x is taken for all steps at once, as are the sums over
steps on the way back.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.numerics import product, widen
from jaxnn.ops.recurrent_parts import CellState, Recurrent
from jaxnn.varying import vary_with

Output = tuple[Array, CellState]
Gates = tuple[Array, ...]
Cotangents = tuple[Recurrent, CellState, Array, None]


class RecurrentResiduals(NamedTuple):
    """Inputs x (T, N, D), `real` (T, N, 1) or None, states before and gates, each (T, N, H)."""

    params: Recurrent
    x: Array  # 0 in the padding
    real: Array | None  # False in the padding; None where there is none
    befores: CellState
    gates: Gates  # of each step, whatever the cell needs to go back


def steps_fwd(
    step: Callable[[Array, CellState], tuple[CellState, Gates]],
    params: Recurrent,
    state: CellState,
    x: Array,
    lengths: Array | None,
    reverse: bool,
    truncate: int | None,
) -> tuple[Output, RecurrentResiduals]:
    """Return ((y, final state), residuals) of `step`: from x_t w_x + b and state, state and gates.

    A step in the padding changes nothing.
    """
    t = jnp.arange(x.shape[1], dtype=jnp.int32)[:, None, None]
    real = None if lengths is None else t < lengths.astype(jnp.int32)[:, None]
    x = _where(real, x.swapaxes(0, 1))  # 0, or NaN in the padding would reach dw_x
    kept = _kept(t, real, reverse, truncate)

    def walk(last: CellState, at: Any) -> tuple[CellState, Any]:
        a_x, real, kept = at
        before = _where(kept, last, lax.stop_gradient(last))
        after, gates = step(a_x + widen(params.b), before)
        return _where(real, after, before), _rounded((last, gates), x)

    xs = product(x, params.w_x), real, kept
    first = vary_with(jax.tree.map(widen, state), xs, params)
    final, (befores, gates) = lax.scan(walk, first, xs, reverse=reverse)
    final = _rounded(final, x)
    h = [final.h[None], befores.h[:-1]] if reverse else [befores.h[1:], final.h[None]]
    y = _where(real, jnp.concatenate(h)).swapaxes(0, 1)
    return (y, final), RecurrentResiduals(params, x, real, befores, gates)


def steps_bwd(
    step: Callable[[Gates, CellState, CellState], tuple[Any, CellState]],
    saved: RecurrentResiduals,
    dout: Output,
    reverse: bool,
    truncate: int | None,
) -> tuple[Any, CellState]:
    """Return of each step what the `step` back gives, and the cotangent of the first state.

    `step` takes gates, the state before and the cotangent of the state after, and returns what is
    to be kept of it, 0 in the padding, and the cotangent of the state before.
    """
    _, x, real, befores, gates = saved
    dy, dfinal = dout
    dy = _where(real, dy.swapaxes(0, 1))
    kept = _kept(jnp.arange(len(x))[:, None, None], real, reverse, truncate)

    def walk(dafter: CellState, at: Any) -> tuple[CellState, Any]:
        *numbers, real, kept = at
        dy, gates, before = jax.tree.map(widen, numbers)
        dafter = CellState(dafter.h + dy, dafter.c)
        stacked, dbefore = step(gates, before, dafter)
        dbefore = _where(kept, _where(real, dbefore, dafter))
        return dbefore, _where(real, _rounded(stacked, x))

    xs = dy, gates, befores, real, kept
    last = vary_with(jax.tree.map(widen, dfinal), xs, saved.params)
    dstate, stacked = lax.scan(walk, last, xs, reverse=not reverse)
    return stacked, _rounded(dstate, x)


def inputs_bwd(saved: RecurrentResiduals, da: Array) -> tuple[Array, Array, Array]:
    """Return dw_x = sum of x_t^T da_t, db = sum of da_t, and dx = da w_x^T (N, T, D)."""
    dx = (da @ saved.params.w_x.T).swapaxes(0, 1)
    return weights_bwd(saved.x, da), da.sum((0, 1)), dx


def weights_bwd(h: Array, da: Array) -> Array:
    """Return dw = sum of h_t^T da_t over the steps of all examples, where a_t = h_t w.

    Steps and examples are not merged into one axis first: where the examples are spread over
    devices, all of them would be gathered on each.
    """
    return jnp.tensordot(h, da, ((0, 1), (0, 1)))


def _rounded(tree: Any, like: Array) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(like.dtype), tree)


def _where(mask: Array | None, inside: Any, outside: Any = None) -> Any:
    """One where the mask is True or there is none, else the other, or 0."""
    if mask is None:
        return inside
    outside = jax.tree.map(jnp.zeros_like, inside) if outside is None else outside
    return jax.tree.map(lambda a, b: jnp.where(mask, a, b), inside, outside)


def _kept(t: Array, real: Array | None, reverse: bool, truncate: int | None) -> Array | None:
    """Where a gradient passes into a step from the one taken before it: (T, 1 or N, 1)."""
    if truncate is None:
        return None
    kept = (t == 0) | (t % min(truncate, len(t)) != 0)  # between t - 1 and t
    if real is not None:  # the state before the first step crosses the padding, or the last one
        kept |= ~real
    return jnp.roll(kept, -1, 0) if reverse else kept
