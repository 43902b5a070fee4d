"""Softmax along one axis: scores to probabilities.

    y_i = exp(x_i / T) / sum_j exp(x_j / T)        dx_i = y_i (dy_i - sum_j dy_j y_j) / T
    log y_i = x_i - log sum_j exp(x_j)             dx_i = dy_i - y_i sum_j dy_j

The largest x is subtracted first, which changes nothing but lets no exponential overflow. A mask
leaves elements out of the sum and gives them probability 0. Where everything in the sum is -inf, y
is NaN, as that of `jax.nn.softmax` is: hide such elements by a mask. Sums are in float32 or wider.

Each saves its output (and its mask, where that does not show), from which the derivative follows:
one value per element, and no extra bytes where the next layer keeps it as its input anyway. Nothing
else is recomputed.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.checks import check_broadcasts, check_floating
from jaxnn.numerics import divide, widen
from jaxnn.op import Op
from jaxnn.settings import check_integer, check_normal


def softmax_fwd(x: Array, *, axis: int = -1, temperature: float = 1.0) -> tuple[Array, Array]:
    """Return y_i = exp(x_i / T) / sum_j exp(x_j / T) along `axis`, with the temperature T.

    A high temperature evens the probabilities out, a low one leaves nearly all to the largest.
    Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network", equation 1.

    Args:
        x: the scores, any shape.
        axis: the axis along which the probabilities sum to 1.
        temperature: T.

    Returns:
        y (the shape of x), residuals.

    Raises:
        TypeError: x is no floating array, the axis no integer or the temperature no number.
        ValueError: x has no such axis; the temperature is not finite and positive in
            the dtype of x or float32, the wider.
    """
    wide = widen(x)
    largest = lax.stop_gradient(wide.max(axis, keepdims=True, initial=-jnp.inf))
    shifted = wide - largest
    exp = jnp.exp(shifted / temperature)
    total = exp.sum(axis, keepdims=True)
    y = (exp / total).astype(x.dtype)
    return y, y


def softmax_bwd(y: Array, dy: Array, *, axis: int = -1, temperature: float = 1.0) -> tuple[Array]:
    """Return dx_i = y_i (dy_i - sum_j dy_j y_j) / T."""
    p, dp = widen(y), widen(dy)
    mean = (dp * p).sum(axis, keepdims=True)
    dx = p * (dp - mean) / temperature
    return (dx.astype(y.dtype),)


def masked_softmax_fwd(
    x: Array, mask: Array, *, axis: int = -1, temperature: float = 1.0
) -> tuple[Array, Array]:
    """Return the softmax over the elements that may be seen; the others, whatever they hold, get 0.

    Where nothing along `axis` may be seen, y is 0 and so is dx, not NaN.

    Args:
        x: the scores, any shape.
        mask: booleans, True where x may be seen; of a shape that broadcasts to that of x.
        axis: as in `softmax_fwd`.
        temperature: as in `softmax_fwd`.

    Returns:
        y (the shape of x), residuals.

    Raises:
        TypeError: the mask is not boolean.
        ValueError: it does not broadcast to the shape of x.
        TypeError, ValueError: as `softmax_fwd`.
    """
    wide = widen(x)
    largest = lax.stop_gradient(wide.max(axis, keepdims=True, where=mask, initial=-jnp.inf))
    # Masked before exp, not after: an exponential that overflowed would make its slope NaN.
    exp = jnp.exp(jnp.where(mask, wide - largest, -jnp.inf) / temperature)
    total = exp.sum(axis, keepdims=True)
    y = divide(exp, total).astype(x.dtype)
    return y, y


def masked_softmax_bwd(
    y: Array, dy: Array, *, axis: int = -1, temperature: float = 1.0
) -> tuple[Array, None]:
    """Return dx as `softmax_bwd`: 0 where y is, so it needs no mask. The mask has no cotangent."""
    p, dp = widen(y), widen(dy)
    mean = (dp * p).sum(axis, keepdims=True)
    dx = p * (dp - mean) / temperature
    return dx.astype(y.dtype), None


def log_softmax_fwd(x: Array, *, axis: int = -1) -> tuple[Array, Array]:
    """Return y_i = x_i - log sum_j exp(x_j) along `axis`, in nats, for x of any shape.

    Raises:
        TypeError, ValueError: as `softmax_fwd`.
    """
    wide = widen(x)
    largest = lax.stop_gradient(wide.max(axis, keepdims=True, initial=-jnp.inf))
    shifted = wide - largest
    total = jnp.exp(shifted).sum(axis, keepdims=True)
    y = (shifted - jnp.log(total)).astype(x.dtype)
    return y, y


def log_softmax_bwd(y: Array, dy: Array, *, axis: int = -1) -> tuple[Array]:
    """Return dx = dy - exp(y) sum_j dy_j: exp(y) is the softmax."""
    p, dp = jnp.exp(widen(y)), widen(dy)
    dx = dp - p * dp.sum(axis, keepdims=True)
    return (dx.astype(y.dtype),)


class MaskedResiduals(NamedTuple):
    """What a masked log-softmax gave, and where it may be seen."""

    y: Array
    mask: Array


def masked_log_softmax_fwd(
    x: Array, mask: Array, *, axis: int = -1
) -> tuple[Array, MaskedResiduals]:
    """Return the log-softmax over the elements that may be seen; the others get -inf, the log of 0.

    What is hidden has no gradient, whatever cotangent it gets; where nothing may be seen, all are
    -inf. (To weight y by probabilities of which hidden ones are 0, take `jnp.where` first: 0 times
    -inf is no number.)

    Args:
        x: the scores, any shape.
        mask: as in `masked_softmax_fwd`.
        axis: as in `softmax_fwd`.

    Returns:
        y (the shape of x), in nats, residuals.

    Raises:
        TypeError, ValueError: as `masked_softmax_fwd`.
    """
    wide = widen(x)
    largest = lax.stop_gradient(wide.max(axis, keepdims=True, where=mask, initial=-jnp.inf))
    shifted = jnp.where(mask, wide - largest, -jnp.inf)
    total = jnp.exp(shifted).sum(axis, keepdims=True)
    logs = shifted - jnp.log(jnp.where(total == 0, 1, total))
    y = jnp.where(mask, logs, -jnp.inf).astype(x.dtype)
    return y, MaskedResiduals(y, mask)


def masked_log_softmax_bwd(
    residuals: MaskedResiduals, dy: Array, *, axis: int = -1
) -> tuple[Array, None]:
    """Return dx as `log_softmax_bwd`, of what may be seen; 0 elsewhere."""
    y, mask = residuals
    p, dp = jnp.exp(widen(y)), jnp.where(mask, widen(dy), 0)
    dx = dp - p * dp.sum(axis, keepdims=True)
    return dx.astype(y.dtype), None


def _check(op: str, x: Array, *, axis: int, temperature: float = 1.0) -> None:
    check_floating(f"{op}: x", x)
    check_integer(f"{op}: axis", axis, -max(x.ndim, 1), f", to name an axis of x {x.shape}")
    if x.ndim <= max(axis, 0):
        rule = "it must be an axis of x: pass -1 for the last"
        raise ValueError(f"{op}: axis is {axis}, x has shape {x.shape}; {rule}")
    hint = ": 1 for the plain softmax, argmax is the limit of 0"
    check_normal(f"{op}: temperature", temperature, x.dtype, hint)


def _check_masked(op: str, x: Array, mask: Array, *, axis: int, temperature: float = 1.0) -> None:
    _check(op, x, axis=axis, temperature=temperature)
    check_broadcasts(f"{op}: mask", mask, x.shape, "give it size 1 where x shares it")


def _example(key: Array) -> tuple[Array]:
    """Normal values with a tie for the maximum, and both saturated ends."""
    x = jax.random.normal(key, (3, 1, 5))
    return (x.at[0, 0].set(jnp.array([0.0, 0.0, -30.0, 30.0, 30.0])),)


def _masked_example(key: Array) -> tuple[Array, Array]:
    """Rows that see everything, nothing, one element, and not the largest, along either axis."""
    x = jax.random.normal(key, (4, 1, 5)).at[3, 0, 0].set(30.0)
    rows = [[1, 1, 1, 1, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 1, 1, 0, 0]]
    return x, jnp.array(rows, bool)[:, None]


def _seen_example(key: Array) -> tuple[Array, Array]:
    """As for the softmax, with nothing hidden: what is infinite has no finite differences."""
    return *_example(key), jnp.ones((1, 5), bool)


_SETTINGS = ({"axis": -1}, {"axis": 0, "temperature": 0.6})
_AXES = ({"axis": -1}, {"axis": 0})

softmax = Op(softmax_fwd, softmax_bwd, _example, _SETTINGS, check=partial(_check, "softmax"))
masked_softmax = Op(
    masked_softmax_fwd,
    masked_softmax_bwd,
    _masked_example,
    _SETTINGS,
    check=partial(_check_masked, "masked_softmax"),
)
log_softmax = Op(
    log_softmax_fwd, log_softmax_bwd, _example, _AXES, check=partial(_check, "log_softmax")
)
masked_log_softmax = Op(
    masked_log_softmax_fwd,
    masked_log_softmax_bwd,
    _seen_example,
    _AXES,
    check=partial(_check_masked, "masked_log_softmax"),
)
