"""What goes into recurrent layers: parameters and states, how they are drawn, how they must fit."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import glorot_uniform, orthogonal

from jaxnn.checks import (
    check_integers,
    check_key,
    check_kind,
    check_one_dtype,
    check_range,
    check_shapes,
)
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
    b_hn: Any = None


class CellState(NamedTuple):
    """What passes from step to step: `h` (N, H) and, for lstm, the memory `c` (N, H), else None."""

    h: Array
    c: Any = None


def init_rnn(key: Array, inputs: int, hidden: int) -> Recurrent:
    """Draw parameters of `rnn`: w_x (D, H) Glorot-uniform, w_h (H, H) orthogonal, b = 0.

    An orthogonal w_h neither shrinks nor grows the state (Saxe et al., 2014); w_x is drawn as in
    Glorot and Bengio (2010, eq. 16). Each gate of an `lstm` or `gru` is drawn by itself.

    Raises:
        TypeError: the key is none of `jax.random`, or a size no integer.
        ValueError: a size is below 1.
    """
    return _init("init_rnn", 1, key, inputs, hidden)


def init_lstm(key: Array, inputs: int, hidden: int) -> Recurrent:
    """Draw parameters of `lstm` as `init_rnn`; forget gates of b = 1 (Jozefowicz et al., 2015)."""
    params = _init("init_lstm", 4, key, inputs, hidden)
    return params._replace(b=params.b.at[hidden : 2 * hidden].set(1))


def init_gru(key: Array, inputs: int, hidden: int) -> Recurrent:
    """Draw parameters of `gru` as `init_rnn`; b_hn = 0."""
    return _init("init_gru", 3, key, inputs, hidden)._replace(b_hn=jnp.zeros(hidden))


def _init(name: str, gates: int, key: Array, inputs: int, hidden: int) -> Recurrent:
    check_key(f"{name}: key", key)
    check_integer(f"{name}: inputs", inputs)
    check_integer(f"{name}: hidden", hidden)

    def beside(key: Array, draw: Callable[..., Array], rows: int) -> Array:
        keys = jax.random.split(key, gates)
        return jnp.concatenate([draw(k, (rows, hidden)) for k in keys], 1)

    kx, kh = jax.random.split(key)
    w_x, w_h = beside(kx, glorot_uniform(), inputs), beside(kh, orthogonal(), hidden)
    return Recurrent(w_x, w_h, jnp.zeros(gates * hidden))


def check_recurrent(
    op: str,
    gates: int,
    params: Recurrent,
    state: CellState,
    x: Array,
    lengths: Array | None,
    *,
    reverse: bool,
    truncate: int | None,
) -> None:
    """Refuse what the layer of this name, of so many gates, cannot take: its op's door.

    Raises:
        TypeError: params are no `Recurrent` or the state no `CellState` of floating arrays, of one
            dtype with x; the lengths are not integers; or a setting is of another type.
        ValueError: the shapes do not fit, an array is missing or too many, a length is outside
            [0, T], or truncate is below 1.
    """
    check_kind(f"{op}: params", params, Recurrent)
    check_kind(f"{op}: state", state, CellState)
    given = params._asdict() | state._asdict()
    for name, value in given.items():
        needed = {"b_hn": op == "gru", "c": op == "lstm"}.get(name, True)
        if needed == (value is None):
            raise ValueError(
                f"{op}: {name} is {'None' if needed else 'an array'}; it must be "
                f"{'an array' if needed else 'None'}: take parameters from init_{op}, and a state "
                f"of h{' and c' if op == 'lstm' else ' alone'}"
            )
    check_one_dtype(op, **given, x=x)
    check_flag(f"{op}: reverse", reverse)
    if truncate is not None:
        hint = ", the steps that a gradient may go back, or None for all of them"
        check_integer(f"{op}: truncate", truncate, hint=hint)
    forms = {"w_x": "DG", "w_h": "HG", "b": "G", "b_hn": "H?", "h": "NH", "c": "NH?"}
    arrays = {name: (value, forms[name]) for name, value in given.items() if value is not None}
    fix = f"check that all are of one batch, or take parameters from init_{op}"
    sizes = check_shapes(op, fix, **arrays, x=(x, "NTD"))
    if gates * sizes.H != sizes.G:
        raise ValueError(
            f"{op}: w_h has shape {params.w_h.shape}; it must be (H, {gates} H), {gates} gates of "
            f"H units side by side: take parameters from init_{op}"
        )
    if 0 in (sizes.T, sizes.D):
        raise ValueError(
            f"{op}: x has shape {x.shape}; it must be (N, T, D) with at least one step of one "
            "feature: add the missing axis"
        )
    if lengths is not None:
        check_shapes(op, "pass one length per sequence", x=(x, "NTD"), lengths=(lengths, "N"))
        check_integers(f"{op}: lengths", lengths, "count the real steps, for example mask.sum(1)")
        rule = f"x has {sizes.T} steps: cut the length or pad x"
        check_range(f"{op}: length", lengths, sizes.T + 1, rule)


@partial(jax.jit, static_argnums=(0, 1))  # one program instead of one per operation
def drawn(op: str, gates: int, key: Array) -> tuple[Recurrent, CellState, Array, Array]:
    """Draw inputs of a layer: sequences of at most 3 steps, whole, empty, of one step, of two."""
    shapes = (2, gates * 5), (5, gates * 5), (gates * 5,), (5,), (4, 5), (4, 5), (4, 3, 2)
    keys = jax.random.split(key, len(shapes))
    w_x, w_h, b, b_hn, h, c, x = (
        0.5 * jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True)
    )
    params = Recurrent(w_x, w_h, b, b_hn if op == "gru" else None)
    return params, CellState(h, c if op == "lstm" else None), x, jnp.array([3, 0, 1, 2])
