"""The linear layer.  y = x w + b;  dx = dy w^T,  dw = x^T dy,  db = sum of dy over the batch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.checks import check_array, check_params
from jaxnn.op import Op


class Linear(NamedTuple):
    """Weights `w` (inputs, outputs); biases `b` (outputs,), or None for a layer without."""

    w: Array
    b: Array | None = None


class LinearResiduals(NamedTuple):
    """What the backward of a linear layer needs: its parameters and its input."""

    params: Linear
    x: Array


def linear_fwd(params: Linear, x: Array) -> tuple[Array, LinearResiduals]:
    """A linear layer, y = x w + b, or x w where b is None.

    Saves x, w and b, all there already: no extra bytes. Nothing is recomputed.

    Args:
        params: w (I, O) and b (O,) or None.
        x: (..., I), of the dtype of w.

    Returns:
        y (..., O), residuals.

    Raises:
        TypeError: params are no `Linear`, or x or one of these is no array.
        ValueError: w and b do not fit, or x does not end in a dimension of size I.
    """
    check_params("linear", params, Linear)
    check_array("linear: x", x)
    w, b = params
    if w.ndim != 2 or (b is not None and b.shape != w.shape[1:]):
        raise ValueError(
            f"linear: w has shape {w.shape}, b {None if b is None else b.shape}; they must be "
            "(inputs, outputs), and (outputs,) or None: reshape one of them"
        )
    if x.ndim == 0 or x.shape[-1] != w.shape[0]:
        raise ValueError(
            f"linear: x has shape {x.shape} but w has shape {w.shape}; the last dimension of x "
            f"must equal the first of w ({w.shape[0]}): check the feature count or transpose w"
        )
    y = x @ w
    return y if b is None else y + b, LinearResiduals(params, x)


def linear_bwd(residuals: LinearResiduals, dy: Array) -> tuple[Linear, Array]:
    """dw = x^T dy and db = sum dy, over all leading dimensions; dx = dy w^T."""
    (w, b), x = residuals
    rows_x, rows_dy = x.reshape(-1, w.shape[0]), dy.reshape(-1, w.shape[1])
    dw = rows_x.T @ rows_dy
    db = None if b is None else rows_dy.sum(axis=0)
    dx = dy @ w.T
    return Linear(dw, db), dx


def _example(key: Array) -> tuple[Linear, Array]:
    kw, kb, kx = jax.random.split(key, 3)
    params = Linear(jax.random.normal(kw, (3, 5)), jax.random.normal(kb, (5,)))
    x = jax.random.normal(kx, (2, 7, 3))
    return params, x.at[0, 0].set(jnp.zeros(3))


linear = Op(linear_fwd, linear_bwd, example=_example)
