"""Two recurrent layers over one input, from either end; what they give stands side by side.

y = [y_forward, y_backward]        dx = dx_forward + dx_backward
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.checks import check_kind
from jaxnn.op import Op
from jaxnn.ops.gru import gru
from jaxnn.ops.recurrent import lstm, rnn
from jaxnn.ops.recurrent_steps import Output


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
    **of_cell: Any,
) -> tuple[tuple[Array, Directions], Directions]:
    """Run two layers over one input, from either end (Schuster and Paliwal, 1997).

    Args:
        params: of both directions.
        states: before the first step of each.
        x: (N, T, D).
        lengths: as in `rnn_fwd`; the way back starts from each sequence's last real step.
        cell: `rnn`, `lstm` or `gru`.
        truncate: as in `rnn_fwd`.
        **of_cell: settings of its own that the cell has, as `activation` of `rnn`.

    Returns:
        (outputs (N, T, 2H), forward ones first; final states of both), residuals of both.

    Raises:
        TypeError: params or states are no `Directions`.
        ValueError: the cell is none of these.
        TypeError, ValueError: as `rnn_fwd`, by the cell's name.
    """
    (y, final), there = cell.fwd(
        params.forward, states.forward, x, lengths, truncate=truncate, **of_cell
    )
    (y_back, final_back), back = cell.fwd(
        params.backward, states.backward, x, lengths, reverse=True, truncate=truncate, **of_cell
    )
    y = jnp.concatenate([y, y_back], -1)
    return (y, Directions(final, final_back)), Directions(there, back)


def bidirectional_bwd(
    residuals: Directions,
    dout: tuple[Array, Directions],
    *,
    cell: Op[..., Output],
    truncate: int | None = None,
    **of_cell: Any,
) -> tuple[Directions, Directions, Array, None]:
    """Walk each direction back by itself; their dx add up."""
    dy, dfinal = dout
    dy_there, dy_back = jnp.split(dy, [dfinal.forward.h.shape[-1]], -1)
    dparams, dstate, dx, _ = cell.bwd(
        residuals.forward, (dy_there, dfinal.forward), truncate=truncate, **of_cell
    )
    dparams_back, dstate_back, dx_back, _ = cell.bwd(
        residuals.backward, (dy_back, dfinal.backward), reverse=True, truncate=truncate, **of_cell
    )
    return Directions(dparams, dparams_back), Directions(dstate, dstate_back), dx + dx_back, None


def _check(*inputs: Any, cell: Op[..., Output], **settings: Any) -> None:
    params, states, *others = inputs
    if not any(cell is known for known in (rnn, lstm, gru)):
        raise ValueError(
            f"bidirectional: cell is {cell!r:.50}; it must be rnn or lstm of "
            "jaxnn.ops.recurrent, or gru of jaxnn.ops.gru: pass the op itself"
        )
    check_kind("bidirectional: params", params, Directions)
    check_kind("bidirectional: states", states, Directions)
    for of_one, state in zip(params, states, strict=True):
        cell.admit((of_one, state, *others), settings)


def _example(key: Array) -> tuple[Directions, Directions, Array, Array]:
    draw: Any = rnn.example
    (p1, s1, x, lengths), (p2, s2, _, _) = (draw(k) for k in jax.random.split(key))
    return Directions(p1, p2), Directions(s1, s2), x, lengths


bidirectional = Op(
    bidirectional_fwd,
    bidirectional_bwd,
    _example,
    ({"cell": rnn, "activation": "relu"},),
    check=_check,
)
