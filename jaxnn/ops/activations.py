"""Activations.  Elementwise, y = f(x) and dx = f'(x) dy; softmax and log-softmax along one axis.

Each saves its output y alone, from which the derivative follows: one value per element, and no
extra bytes where the next layer keeps y as its input anyway. Nothing else is recomputed.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.op import Op


def relu_fwd(x: Array) -> tuple[Array, Array]:
    """y = max(x, 0), any shape. The slope at 0 is taken to be 0, as in `jax.nn.relu`."""
    y = jax.nn.relu(x)
    return y, y


def relu_bwd(y: Array, dy: Array) -> tuple[Array]:
    """dx = dy where y > 0, else 0."""
    return (jnp.where(y > 0, dy, 0),)


def sigmoid_fwd(x: Array) -> tuple[Array, Array]:
    """y = 1 / (1 + exp(-x)), any shape."""
    y = lax.logistic(x)
    return y, y


def sigmoid_bwd(y: Array, dy: Array) -> tuple[Array]:
    """dx = dy y (1 - y)."""
    return (dy * y * (1 - y),)


def tanh_fwd(x: Array) -> tuple[Array, Array]:
    """y = tanh(x), any shape."""
    y = jnp.tanh(x)
    return y, y


def tanh_bwd(y: Array, dy: Array) -> tuple[Array]:
    """dx = dy (1 - y^2), in factors: they keep the digits that 1 - y^2 loses near |y| = 1."""
    return (dy * (1 - y) * (1 + y),)


def log_softmax_fwd(x: Array, *, axis: int = -1) -> tuple[Array, Array]:
    """y_i = x_i - log sum_j exp(x_j) along `axis`, in nats; any shape.

    The largest x is subtracted first, which changes nothing but lets no exponential overflow.
    """
    shifted = x - lax.stop_gradient(x.max(axis, keepdims=True))
    y = shifted - jnp.log(jnp.exp(shifted).sum(axis, keepdims=True))
    return y, y


def log_softmax_bwd(y: Array, dy: Array, *, axis: int = -1) -> tuple[Array]:
    """dx = dy - exp(y) sum_j dy_j: exp(y) is the softmax."""
    return (dy - jnp.exp(y) * dy.sum(axis, keepdims=True),)


def softmax_fwd(x: Array, *, axis: int = -1) -> tuple[Array, Array]:
    """y_i = exp(x_i) / sum_j exp(x_j) along `axis`; any shape. Shifted as `log_softmax_fwd`."""
    exp = jnp.exp(x - lax.stop_gradient(x.max(axis, keepdims=True)))
    y = exp / exp.sum(axis, keepdims=True)
    return y, y


def softmax_bwd(y: Array, dy: Array, *, axis: int = -1) -> tuple[Array]:
    """dx_i = y_i (dy_i - sum_j dy_j y_j)."""
    return (y * (dy - (dy * y).sum(axis, keepdims=True)),)


def _example(key: Array) -> tuple[Array]:
    """Normal values with zeros (relu's kink), a tie for the maximum, and both saturated ends."""
    x = jax.random.normal(key, (3, 1, 5))
    return (x.at[0, 0].set(jnp.array([0.0, 0.0, -30.0, 30.0, 30.0])),)


_AXES = ({"axis": -1}, {"axis": 0})

relu = Op(relu_fwd, relu_bwd, example=_example)
sigmoid = Op(sigmoid_fwd, sigmoid_bwd, example=_example)
tanh = Op(tanh_fwd, tanh_bwd, example=_example)
log_softmax = Op(log_softmax_fwd, log_softmax_bwd, example=_example, settings=_AXES)
softmax = Op(softmax_fwd, softmax_bwd, example=_example, settings=_AXES)
