"""Softmax along one axis: scores to probabilities.

    y_i = exp(x_i / T) / sum_j exp(x_j / T)        dx_i = y_i (dy_i - sum_j dy_j y_j) / T
    log y_i = x_i - log sum_j exp(x_j)             dx_i = dy_i - y_i sum_j dy_j

The largest x is subtracted first, which changes nothing but lets no exponential overflow. A mask
leaves elements out of the sum and gives them probability 0. Where everything in the sum is -inf, y
is NaN, as that of `jax.nn.softmax` is: hide such elements by a mask. Sums are in float32 or wider.

Each saves its output alone, from which the derivative follows: one value per element, and no extra
bytes where the next layer keeps it as its input anyway. Nothing else is recomputed.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxnn.checks import check_array, check_floating
from jaxnn.numerics import widen
from jaxnn.op import Op
from jaxnn.settings import check_integer, check_number


def softmax_fwd(x: Array, *, axis: int = -1, temperature: float = 1.0) -> tuple[Array, Array]:
    """y_i = exp(x_i / T) / sum_j exp(x_j / T) along `axis`, any shape, with the temperature T.

    A high temperature evens the probabilities out, a low one leaves nearly all to the largest.
    Saves y. Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network",
    equation 1.

    Raises:
        TypeError: x is no floating array, the axis no integer or the temperature no number.
        ValueError: x has no such axis or it is empty; the temperature is not finite and positive in
            the dtype of x or float32, the wider.
    """
    _check_axis("softmax", x, axis)
    temperature = _check_temperature("softmax", x, temperature)
    wide = widen(x)
    exp = jnp.exp((wide - lax.stop_gradient(wide.max(axis, keepdims=True))) / temperature)
    y = (exp / exp.sum(axis, keepdims=True)).astype(x.dtype)
    return y, y


def softmax_bwd(y: Array, dy: Array, *, axis: int = -1, temperature: float = 1.0) -> tuple[Array]:
    """dx_i = y_i (dy_i - sum_j dy_j y_j) / T."""
    p, dp = widen(y), widen(dy)
    dx = p * (dp - (dp * p).sum(axis, keepdims=True)) / temperature
    return (dx.astype(y.dtype),)


def masked_softmax_fwd(
    x: Array, mask: Array, *, axis: int = -1, temperature: float = 1.0
) -> tuple[Array, Array]:
    """The softmax over the elements that may be seen; the others, whatever they hold, get 0.

    Where nothing along `axis` may be seen, y is 0 and so is dx, not NaN. Saves y: it is 0 where the
    mask is False, so the backward needs no mask.

    Args:
        x: the scores, any shape.
        mask: booleans, True where x may be seen; of a shape that broadcasts to that of x.
        axis: the axis along which the probabilities sum to 1.
        temperature: T of `softmax_fwd`.

    Returns:
        y (the shape of x), residuals.

    Raises:
        TypeError: the mask is not boolean.
        ValueError: it does not broadcast to the shape of x.
        TypeError, ValueError: as `softmax_fwd`.
    """
    _check_axis("masked_softmax", x, axis)
    temperature = _check_temperature("masked_softmax", x, temperature)
    _check_mask(x, mask)
    wide = widen(x)
    largest = lax.stop_gradient(wide.max(axis, keepdims=True, where=mask, initial=-jnp.inf))
    # Masked before exp, not after: an exponential that overflowed would make its slope NaN.
    exp = jnp.exp(jnp.where(mask, wide - largest, -jnp.inf) / temperature)
    total = exp.sum(axis, keepdims=True)
    y = (exp / jnp.where(total == 0, 1, total)).astype(x.dtype)
    return y, y


def masked_softmax_bwd(
    y: Array, dy: Array, *, axis: int = -1, temperature: float = 1.0
) -> tuple[Array, None]:
    """As `softmax_bwd`, 0 where y is; the mask has no cotangent."""
    (dx,) = softmax_bwd(y, dy, axis=axis, temperature=temperature)
    return dx, None


def log_softmax_fwd(x: Array, *, axis: int = -1) -> tuple[Array, Array]:
    """y_i = x_i - log sum_j exp(x_j) along `axis`, in nats; any shape. Saves y.

    Raises:
        TypeError, ValueError: as `softmax_fwd`.
    """
    _check_axis("log_softmax", x, axis)
    wide = widen(x)
    shifted = wide - lax.stop_gradient(wide.max(axis, keepdims=True))
    y = (shifted - jnp.log(jnp.exp(shifted).sum(axis, keepdims=True))).astype(x.dtype)
    return y, y


def log_softmax_bwd(y: Array, dy: Array, *, axis: int = -1) -> tuple[Array]:
    """dx = dy - exp(y) sum_j dy_j: exp(y) is the softmax."""
    dp = widen(dy)
    dx = dp - jnp.exp(widen(y)) * dp.sum(axis, keepdims=True)
    return (dx.astype(y.dtype),)


def _check_axis(op: str, x: Array, axis: Any) -> None:
    check_floating(f"{op}: x", x)
    check_integer(
        f"{op}: axis", axis, -max(x.ndim, 1), f", to name an axis of x of shape {x.shape}"
    )
    if x.ndim <= max(axis, 0) or x.shape[axis] == 0:
        raise ValueError(
            f"{op}: axis is {axis}, x has shape {x.shape}; it must be an axis of x that is not "
            "empty: pass -1 for the last"
        )


def _check_temperature(op: str, x: Array, temperature: Any) -> float:
    # What is no normal number, a processor may take for 0.
    limits = np.finfo(np.promote_types(x.dtype, np.float32))
    return check_number(
        f"{op}: temperature",
        temperature,
        f"finite and positive in {limits.dtype}, for it divides the scores: pass 1 for the plain "
        "softmax, or take argmax for the limit of 0",
        lambda t: float(limits.tiny) <= t <= float(limits.max),
    )


def _check_mask(x: Array, mask: Array) -> None:
    check_array("masked_softmax: mask", mask)
    if mask.dtype != jnp.bool_:
        raise TypeError(
            f"masked_softmax: mask has dtype {mask.dtype}; it must be of booleans, True where x "
            "may be seen: pass mask > 0 for ones and zeros, or mask > -1 for a mask made to be "
            "added"
        )
    try:
        fits = np.broadcast_shapes(mask.shape, x.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"masked_softmax: the mask has shape {mask.shape}, x {x.shape}; the mask must "
            "broadcast to the shape of x: give it size 1 where it is the same for all of x"
        )


def _example(key: Array) -> tuple[Array]:
    """Normal values with a tie for the maximum, and both saturated ends."""
    x = jax.random.normal(key, (3, 1, 5))
    return (x.at[0, 0].set(jnp.array([0.0, 0.0, -30.0, 30.0, 30.0])),)


def _masked_example(key: Array) -> tuple[Array, Array]:
    """Rows that see everything, nothing, one element, and not the largest, along either axis."""
    x = jax.random.normal(key, (4, 1, 5)).at[3, 0, 0].set(30.0)
    mask = jnp.array(
        [[1, 1, 1, 1, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 1, 1, 0, 0]], dtype=bool
    )
    return x, mask[:, None]


softmax = Op(
    softmax_fwd,
    softmax_bwd,
    example=_example,
    settings=({"axis": -1}, {"axis": 0, "temperature": 0.6}),
)
masked_softmax = Op(
    masked_softmax_fwd,
    masked_softmax_bwd,
    example=_masked_example,
    settings=({}, {"temperature": 0.6, "axis": 0}),
)
log_softmax = Op(
    log_softmax_fwd, log_softmax_bwd, example=_example, settings=({"axis": -1}, {"axis": 0})
)
