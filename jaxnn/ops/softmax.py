"""Softmax along one axis: scores to probabilities.

    y_i = exp(x_i / T) / sum_j exp(x_j / T)        dx_i = y_i (dy_i - sum_j dy_j y_j) / T
    log y_i = x_i - log sum_j exp(x_j)             dx_i = dy_i - y_i sum_j dy_j

The largest x is subtracted first, which changes nothing but lets no exponential overflow. A mask
leaves elements out of the sum and gives them probability 0.

Each saves its output alone, from which the derivative follows: one value per element, and no extra
bytes where the next layer keeps it as its input anyway. Nothing else is recomputed.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxnn.op import Op


def softmax_fwd(x: Array, *, axis: int = -1, temperature: float = 1.0) -> tuple[Array, Array]:
    """y_i = exp(x_i / T) / sum_j exp(x_j / T) along `axis`, any shape, with the temperature T.

    A high temperature evens the probabilities out, a low one leaves nearly all to the largest.
    Saves y. Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network",
    equation 1.

    Raises:
        ValueError: the temperature is not positive.
    """
    _check_temperature("softmax", temperature)
    exp = jnp.exp((x - lax.stop_gradient(x.max(axis, keepdims=True))) / temperature)
    y = exp / exp.sum(axis, keepdims=True)
    return y, y


def softmax_bwd(y: Array, dy: Array, *, axis: int = -1, temperature: float = 1.0) -> tuple[Array]:
    """dx_i = y_i (dy_i - sum_j dy_j y_j) / T."""
    return (y * (dy - (dy * y).sum(axis, keepdims=True)) / temperature,)


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
        ValueError: it does not broadcast to the shape of x, or the temperature is not positive.
    """
    _check_temperature("masked_softmax", temperature)
    _check_mask(x, mask)
    largest = lax.stop_gradient(x.max(axis, keepdims=True, where=mask, initial=-jnp.inf))
    # Masked before exp, not after: an exponential that overflowed would make its slope NaN.
    exp = jnp.exp(jnp.where(mask, x - largest, -jnp.inf) / temperature)
    total = exp.sum(axis, keepdims=True)
    y = exp / jnp.where(total == 0, 1, total)
    return y, y


def masked_softmax_bwd(
    y: Array, dy: Array, *, axis: int = -1, temperature: float = 1.0
) -> tuple[Array, None]:
    """As `softmax_bwd`, 0 where y is; the mask has no cotangent."""
    (dx,) = softmax_bwd(y, dy, axis=axis, temperature=temperature)
    return dx, None


def log_softmax_fwd(x: Array, *, axis: int = -1) -> tuple[Array, Array]:
    """y_i = x_i - log sum_j exp(x_j) along `axis`, in nats; any shape. Saves y."""
    shifted = x - lax.stop_gradient(x.max(axis, keepdims=True))
    y = shifted - jnp.log(jnp.exp(shifted).sum(axis, keepdims=True))
    return y, y


def log_softmax_bwd(y: Array, dy: Array, *, axis: int = -1) -> tuple[Array]:
    """dx = dy - exp(y) sum_j dy_j: exp(y) is the softmax."""
    return (dy - jnp.exp(y) * dy.sum(axis, keepdims=True),)


def _check_temperature(name: str, temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(
            f"{name}: temperature is {temperature}; it divides the scores and must be positive: "
            "pass 1 for the plain softmax, or take argmax for the limit of 0"
        )


def _check_mask(x: Array, mask: Array) -> None:
    if getattr(mask, "dtype", None) != jnp.bool_:
        raise TypeError(
            f"masked_softmax: the mask has dtype {getattr(mask, 'dtype', type(mask).__name__)}; "
            "it must be an array of booleans, True where x may be seen: pass mask > 0 for ones and "
            "zeros, or mask > -1 for a mask made to be added"
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
