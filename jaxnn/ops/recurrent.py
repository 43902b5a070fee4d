"""Recurrent layers: at each step of a sequence, from the state h (and c) of the step before.

    rnn     h' = tanh(a),  a = x_t w_x + b + h w_h
            da = dh' (1 - h'^2)

    lstm    a likewise, in four parts;  i, f, o = sigmoid(a_i, a_f, a_o),  g = tanh(a_g)
            c' = f c + i g,  h' = o tanh(c')
            dc' gains dh' o (1 - tanh(c')^2);  di = dc' g,  df = dc' c,  dg = dc' i,  dc = dc' f

    gru     a_r, a_z likewise;  r, z = sigmoid(a_r, a_z),  q = h w_hn + b_hn
            n = tanh(a_n),  a_n = x_t w_xn + b_n + r q,  h' = (1 - z) n + z h
            dn = dh' (1 - z),  dz = dh' (h - n),  dr = da_n q,  dq = da_n r,  dh = dh' z

The product x w_x is taken for all steps at once; only h w_h waits for the step before. On the way
back only da and dh = da w_h^T wait for the step after. With da known for all steps the rest is

    dx = da w_x^T,  dw_x = sum of x_t^T da_t,  dw_h = sum of h_{t-1}^T da_t,  db = sum of da_t

with dq for da_n in dh and dw_h of the gru, whose db_hn is the sum of dq. Saved are x, the states
before each step, and the gates (rnn has h' for one): per example, step and hidden unit 2 values for
rnn, 6 for lstm, 5 for gru. The lstm's c' and its tanh are recomputed. Below, each cell is a step
and its backward; `_over_steps` and `_over_steps_bwd` make functions of whole sequences of them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.checks import check_integers, check_kind, check_one_dtype, check_range, check_shapes
from jaxnn.op import Op
from jaxnn.ops.recurrent_parts import GATES, CellState, Recurrent, example
from jaxnn.settings import check_flag, check_integer


class RecurrentResiduals(NamedTuple):
    """Inputs x (T, N, D), `real` (T, N, 1) or None, states before and gates, each (T, N, H)."""

    params: Recurrent
    x: Array  # 0 in the padding
    real: Array | None  # False in the padding; None where there is none
    befores: CellState
    gates: tuple[Array, ...]  # lstm i, f, g, o; gru r, z, n, q; rnn h'


Output = tuple[Array, CellState]
Gates = tuple[Array, ...]


def _over_steps(step: Callable[..., tuple[CellState, Gates]]) -> Callable[..., Any]:
    """Make a forward of `step`: of x_t w_x + b, h w_h, the state and b_hn, next state and gates."""

    def fwd(
        params: Recurrent,
        state: CellState,
        x: Array,
        lengths: Array | None,
        *,
        reverse: bool = False,
        truncate: int | None = None,
    ) -> tuple[Output, RecurrentResiduals]:
        t = jnp.arange(x.shape[1], dtype=jnp.int32)[:, None, None]
        real = None if lengths is None else t < lengths.astype(jnp.int32)[:, None]
        x = _where(real, x.swapaxes(0, 1))  # 0, or NaN in the padding would reach dw_x
        kept = _kept(t, real, reverse, truncate)

        def walk(last: CellState, at: Any) -> tuple[CellState, Any]:
            a_x, real, kept = at
            before = _where(kept, last, lax.stop_gradient(last))
            after, gates = step(a_x + params.b, before.h @ params.w_h, before, params.b_hn)
            return _where(real, after, before), (last, gates)

        xs = x @ params.w_x, real, kept
        final, (befores, gates) = lax.scan(walk, state, xs, reverse=reverse)
        h = [final.h[None], befores.h[:-1]] if reverse else [befores.h[1:], final.h[None]]
        y = _where(real, jnp.concatenate(h)).swapaxes(0, 1)
        return (y, final), RecurrentResiduals(params, x, real, befores, gates)

    fwd.__name__, fwd.__doc__ = step.__name__, step.__doc__
    return fwd


def _over_steps_bwd(step_bwd: Callable[..., tuple[Array, Any, Any]]) -> Callable[..., Any]:
    """Make a backward of `step_bwd`, which returns da and what reaches h and c past the gates."""

    def bwd(
        saved: RecurrentResiduals, dout: Any, *, reverse: bool = False, truncate: int | None = None
    ) -> tuple[Recurrent, CellState, Array, None]:
        (w_x, w_h, _, b_hn), x, real, befores, gates = saved
        dy, dfinal = dout
        dy = _where(real, dy.swapaxes(0, 1))
        kept = _kept(jnp.arange(len(x))[:, None, None], real, reverse, truncate)
        h, w_h_t = len(w_h), w_h.T  # once: the loop would read w_h across its rows at every step

        def into_h(gates: Gates, da: Array) -> Array:  # of h w_h: in the gru's q it is r da_n
            return da if b_hn is None else jnp.append(da[..., :-h], gates[0] * da[..., -h:], -1)

        def walk(dafter: CellState, at: Any) -> tuple[CellState, Array]:
            dy, gates, before, real, kept = at
            dafter = CellState(dafter.h + dy, dafter.c)
            da, dh, dc = step_bwd(gates, before, *dafter)
            dbefore = CellState(dh + into_h(gates, da) @ w_h_t, dc)
            return _where(kept, _where(real, dbefore, dafter)), _where(real, da)

        xs = dy, gates, befores, real, kept
        dstate, da = lax.scan(walk, dfinal, xs, reverse=not reverse)
        da_h = into_h(gates, da)
        dw_x = lax.collapse(x, 0, 2).T @ lax.collapse(da, 0, 2)
        dw_h = lax.collapse(befores.h, 0, 2).T @ lax.collapse(da_h, 0, 2)
        db_hn = None if b_hn is None else da_h[..., -h:].sum((0, 1))
        dx = (da @ w_x.T).swapaxes(0, 1)
        return Recurrent(dw_x, dw_h, da.sum((0, 1)), db_hn), dstate, dx, None

    bwd.__name__, bwd.__doc__ = step_bwd.__name__, step_bwd.__doc__
    return bwd


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


@_over_steps
def rnn_fwd(a_x: Array, a_h: Array, before: CellState, b_hn: None) -> tuple[CellState, Gates]:
    """Run the tanh network of Elman (1990) over whole sequences: ((y, final), residuals).

    Takes params: w_x (D, H), w_h (H, H), b (H,); state: h (N, H) before the first step; x (N, T, D)
    with T at least 1; lengths: None, or integers (N,), how many of the T steps are real, the rest
    being padding, whatever it holds (under jit one above T counts as T, one below 0 as 0).
    y (N, T, H) is h after each step, 0 in the padding; `final` the state after the last. `reverse`:
    go from each sequence's last real step to its first. `truncate`: let no gradient pass between
    the real steps t - 1 and t where t is a multiple of this (Williams and Peng, 1990).

    Raises:
        TypeError: params are no `Recurrent` or the state no `CellState` of floating arrays, of one
            dtype with x; the lengths are not integers; or a setting is of another type.
        ValueError: the shapes do not fit, a length is outside [0, T], or truncate is below 1.
    """
    h = jnp.tanh(a_x + a_h)
    return CellState(h), (h,)


@_over_steps_bwd
def rnn_bwd(gates: Gates, before: CellState, dh: Array, dc: None) -> tuple[Array, Any, Any]:
    """Return every cotangent from da = dh' (1 - h'^2), a step at a time; lengths have none."""
    (h,) = gates
    return dh * (1 - h) * (1 + h), 0.0, None


@_over_steps
def lstm_fwd(a_x: Array, a_h: Array, before: CellState, b_hn: None) -> tuple[CellState, Gates]:
    """Run long short-term memory with forget gates (Gers et al., 2000), all else as `rnn_fwd`."""
    a_i, a_f, a_g, a_o = jnp.split(a_x + a_h, 4, -1)
    i, f, g, o = lax.logistic(a_i), lax.logistic(a_f), jnp.tanh(a_g), lax.logistic(a_o)
    c = f * before.c + i * g
    return CellState(o * jnp.tanh(c), c), (i, f, g, o)


@_over_steps_bwd
def lstm_bwd(gates: Gates, before: CellState, dh: Array, dc: Array) -> tuple[Array, Any, Any]:
    """Return as `rnn_bwd` every cotangent, da through the four gates."""
    i, f, g, o = gates
    tanh_c = jnp.tanh(f * before.c + i * g)
    dc += dh * o * (1 - tanh_c) * (1 + tanh_c)
    da_i = dc * g * i * (1 - i)
    da_f = dc * before.c * f * (1 - f)
    da_g = dc * i * (1 - g) * (1 + g)
    da_o = dh * tanh_c * o * (1 - o)
    return jnp.concatenate([da_i, da_f, da_g, da_o], -1), 0.0, dc * f


@_over_steps
def gru_fwd(a_x: Array, a_h: Array, before: CellState, b_hn: Array) -> tuple[CellState, Gates]:
    """Run gated recurrent units (Cho et al., 2014, eqs. 5 to 8), all else as `rnn_fwd`.

    The reset gate multiplies after the product with w_h, hence the second bias b_hn: the form of
    cuDNN and PyTorch.
    """
    (x_r, x_z, x_n), (h_r, h_z, h_n) = jnp.split(a_x, 3, -1), jnp.split(a_h, 3, -1)
    r, z, q = lax.logistic(x_r + h_r), lax.logistic(x_z + h_z), h_n + b_hn
    n = jnp.tanh(x_n + r * q)
    return CellState((1 - z) * n + z * before.h), (r, z, n, q)


@_over_steps_bwd
def gru_bwd(gates: Gates, before: CellState, dh: Array, dc: None) -> tuple[Array, Any, Any]:
    """Return as `rnn_bwd` every cotangent, da through the three gates, and dh' z past them."""
    r, z, n, q = gates
    da_n = dh * (1 - z) * (1 - n) * (1 + n)
    da_r = da_n * q * r * (1 - r)
    da_z = dh * (before.h - n) * z * (1 - z)
    return jnp.concatenate([da_r, da_z, da_n], -1), dh * z, None


def _check(op: str, *inputs: Any, reverse: bool, truncate: int | None) -> None:
    params, state, x, lengths = inputs
    check_kind(f"{op}: params", params, Recurrent)
    check_kind(f"{op}: state", state, CellState)
    given = params._asdict() | state._asdict()
    lacking = {"rnn": ("b_hn", "c"), "lstm": ("b_hn",), "gru": ("c",)}[op]
    for name, value in given.items():
        if (value is None) != (name in lacking):
            found, must = ("an array", "None") if name in lacking else ("None", "an array")
            raise ValueError(
                f"{op}: {name} is {found}; it must be {must}: take parameters from init_{op}, and "
                f"a state of h{' and c' if op == 'lstm' else ' alone'}"
            )
    check_one_dtype(op, **given, x=x)
    check_flag(f"{op}: reverse", reverse)
    if truncate is not None:
        check_integer(f"{op}: truncate", truncate, hint=", or None for no truncation")
    forms = {"w_x": "DG", "w_h": "HG", "b": "G", "b_hn": "H", "h": "NH", "c": "NH"}
    arrays = {name: (value, forms[name]) for name, value in given.items() if value is not None}
    fix = f"check that all are of one batch, or take parameters from init_{op}"
    sizes = check_shapes(op, fix, **arrays, x=(x, "NTD"))
    for what, size in (("steps", sizes.T), ("features", sizes.D)):
        check_integer(f"{op}: the number of {what} of x (N, T, D) of shape {x.shape}", size)
    if GATES[op] * sizes.H != sizes.G:
        raise ValueError(
            f"{op}: w_h has shape {params.w_h.shape}; it must be (H, {GATES[op]} H), gates of H "
            f"units side by side: take parameters from init_{op}"
        )
    if lengths is not None:
        check_shapes(op, "pass one length per sequence", x=(x, "NTD"), lengths=(lengths, "N"))
        check_integers(f"{op}: lengths", lengths, "count the real steps, for example mask.sum(1)")
        rule = f"x has {sizes.T} steps: cut the length or pad x"
        check_range(f"{op}: length", lengths, sizes.T + 1, rule)


rnn = Op(rnn_fwd, rnn_bwd, partial(example, "rnn"), check=partial(_check, "rnn"))
lstm = Op(lstm_fwd, lstm_bwd, partial(example, "lstm"), check=partial(_check, "lstm"))
gru = Op(
    gru_fwd, gru_bwd, partial(example, "gru"), ({"reverse": True},), check=partial(_check, "gru")
)
