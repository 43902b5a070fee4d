"""Parameters and states of recurrent layers, and how the parameters are first drawn."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import glorot_uniform, orthogonal

from jaxnn.checks import check_key
from jaxnn.settings import check_integer

GATES = {"rnn": 1, "lstm": 4, "gru": 3}


class Recurrent(NamedTuple):
    """Parameters of a recurrent layer: G gates side by side, in PyTorch's order.

    Attributes:
        w_x: (D, G H), from the input: G is 1 for rnn, 4 for lstm (i f g o), 3 for gru (r z n).
        w_h: (H, G H), from the state.
        b: (G H,).
        b_hn: (H,), of the gru's q; None for the others.
        w_hr: (H, P), of an lstm whose state h is projected to P features; w_h is (P, G H) then.
    """

    w_x: Array
    w_h: Array
    b: Array
    b_hn: Any = None
    w_hr: Any = None


class CellState(NamedTuple):
    """What passes from step to step: `h` (N, H) and, for lstm, the memory `c` (N, H), else None.

    Of an lstm with a projection h is (N, P).
    """

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
    return _init("rnn", key, inputs, hidden)


def init_lstm(key: Array, inputs: int, hidden: int) -> Recurrent:
    """Draw parameters of `lstm` as `init_rnn`; forget gates of b = 1 (Jozefowicz et al., 2015)."""
    params = _init("lstm", key, inputs, hidden)
    return params._replace(b=params.b.at[hidden : 2 * hidden].set(1))


def init_gru(key: Array, inputs: int, hidden: int) -> Recurrent:
    """Draw parameters of `gru` as `init_rnn`; b_hn = 0."""
    return _init("gru", key, inputs, hidden)._replace(b_hn=jnp.zeros(hidden))


def _init(layer: str, key: Array, inputs: int, hidden: int) -> Recurrent:
    check_key(f"init_{layer}: key", key)
    check_integer(f"init_{layer}: inputs", inputs)
    check_integer(f"init_{layer}: hidden", hidden)
    gates = GATES[layer]

    def beside(key: Array, draw: Callable[..., Array], rows: int) -> Array:
        keys = jax.random.split(key, gates)
        return jnp.concatenate([draw(k, (rows, hidden)) for k in keys], 1)

    kx, kh = jax.random.split(key)
    w_x, w_h = beside(kx, glorot_uniform(), inputs), beside(kh, orthogonal(), hidden)
    return Recurrent(w_x, w_h, jnp.zeros(gates * hidden))


@partial(jax.jit, static_argnums=0)  # one program instead of one per operation
def example(op: str, key: Array) -> tuple[Recurrent, CellState, Array, Array]:
    """Draw inputs of a layer: sequences of at most 3 steps, whole, empty, of one step, of two.

    An lstm has a projection.
    """
    wide, p = GATES[op] * 5, 3 if op == "lstm" else 5
    shapes = (2, wide), (p, wide), (wide,), (5,), (5, p), (4, p), (4, 5), (4, 3, 2)
    keys = jax.random.split(key, len(shapes))
    w_x, w_h, b, b_hn, w_hr, h, c, x = (
        0.5 * jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True)
    )
    params, state = Recurrent(w_x, w_h, b), CellState(h)
    if op == "lstm":
        params, state = params._replace(w_hr=w_hr), CellState(h, c)
    if op == "gru":
        params = params._replace(b_hn=b_hn)
    return params, state, x, jnp.array([3, 0, 1, 2])
