"""Activations and dropout, elementwise: y = f(x) and dx = f'(x) dy, for x of any shape.

    relu         max(x, 0)                    slope 0 or 1
    softplus     log(1 + exp(beta x)) / beta  slope sigmoid(beta x)
    log_sigmoid  -log(1 + exp(-x))            slope sigmoid(-x)
    sigmoid      1 / (1 + exp(-x))            slope y (1 - y)
    tanh         tanh(x)                      slope 1 - y^2
    soft_sign    x / (1 + |x|)                slope 1 / (1 + |x|)^2

What is saved has the digits of the slope: y where it tells them (relu, sigmoid, tanh: no extra
bytes where the next layer keeps y as its input anyway), else x, one value per element. At a kink
the slope is that of `jax.nn`. Huge x of either sign give their true slope, never 0 times inf. Each
raises a TypeError for an x that is no floating array. All compute in float32 or wider and
round once. More are in `jaxnn.ops.piecewise_linear`, `exponential_linear` and `shrinkage`; those
that fall before they rise are in `jaxnn.ops.gated`.

Dropout drops each element with probability `rate`: y = x / (1 - rate) where it is kept, else 0, so
that the mean of y is x, and dx = dy / (1 - rate) there. A model in evaluation leaves it out.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.checks import check_floating, check_key
from jaxnn.numerics import draw_kept, in_dtype_of, rounded_once
from jaxnn.op import Op
from jaxnn.ops.activation_doors import door_of, example
from jaxnn.settings import check_rate


def relu_fwd(x: Array) -> tuple[Array, Array]:
    """Return y = max(x, 0). The slope at 0 is taken to be 0, as in `jax.nn.relu`."""
    y = jax.nn.relu(x)
    return y, y


def relu_bwd(y: Array, dy: Array) -> tuple[Array]:
    """Return dx = dy where y > 0, else 0."""
    return (jnp.where(y > 0, dy, 0),)


@rounded_once
def softplus_fwd(
    x: Array, *, beta: float = 1.0, threshold: float | None = None
) -> tuple[Array, Array]:
    """Return y = log(1 + exp(beta x)) / beta; x itself where x is large, so that nothing overflows.

    With a threshold y is x, and its slope 1, wherever beta x is above it: 20 is PyTorch's, where
    the rest is 2e-9. Dugas et al. 2001, "Incorporating second-order functional knowledge for better
    option pricing".

    Raises:
        TypeError, ValueError: beta is no number, or not finite and above 0; the threshold is no
            finite number, or None for none.
    """
    y = jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(beta * x))) / beta
    return y if threshold is None else jnp.where(beta * x > threshold, x, y), x


@rounded_once
def softplus_bwd(
    x: Array, dy: Array, *, beta: float = 1.0, threshold: float | None = None
) -> tuple[Array]:
    """Return dx = dy sigmoid(beta x), or dy above the threshold."""
    dx = dy * lax.logistic(beta * x)
    return (dx if threshold is None else jnp.where(beta * x > threshold, dy, dx),)


@rounded_once
def log_sigmoid_fwd(x: Array) -> tuple[Array, Array]:
    """Return y = log sigmoid(x) = -softplus(-x), in nats; about x far left, where sigmoid is 0."""
    return -jnp.logaddexp(-x, 0), x


@rounded_once
def log_sigmoid_bwd(x: Array, dy: Array) -> tuple[Array]:
    """Return dx = dy sigmoid(-x)."""
    return (dy * lax.logistic(-x),)


@rounded_once
def sigmoid_fwd(x: Array) -> tuple[Array, Array]:
    """Return y = 1 / (1 + exp(-x))."""
    y = lax.logistic(x)
    return y, y


@rounded_once
def sigmoid_bwd(y: Array, dy: Array) -> tuple[Array]:
    """Return dx = dy y (1 - y)."""
    return (dy * y * (1 - y),)


@rounded_once
def tanh_fwd(x: Array) -> tuple[Array, Array]:
    """Return y = tanh(x)."""
    y = jnp.tanh(x)
    return y, y


@rounded_once
def tanh_bwd(y: Array, dy: Array) -> tuple[Array]:
    """Return dx = dy (1 - y^2), in factors: they keep the digits that 1 - y^2 loses near 1."""
    return (dy * (1 - y) * (1 + y),)


@rounded_once
def soft_sign_fwd(x: Array) -> tuple[Array, Array]:
    """Return y = x / (1 + |x|). At infinity y is NaN, as in `jax.nn`, and the slope 0, its limit.

    Bergstra et al. 2009, "Quadratic polynomials learn better image features".
    """
    return x / (1 + jnp.abs(x)), x


@rounded_once
def soft_sign_bwd(x: Array, dy: Array) -> tuple[Array]:
    """Return dx = dy / (1 + |x|)^2."""
    return (dy / (1 + jnp.abs(x)) ** 2,)


@rounded_once
def dropout_fwd(x: Array, key: Array, *, rate: float) -> tuple[Array, Array]:
    """Put 0 in place of a share `rate` of x, drawn from `key`; divide the rest by 1 - rate.

    The same key drops the same elements, whatever the dtype of x, in the forward and the backward.
    Saves which elements are kept, one byte per element. Srivastava et al. 2014, "Dropout: a simple
    way to prevent neural networks from overfitting", with the scaling in training in place of
    evaluation.

    Args:
        x: any shape.
        key: a key of `jax.random`, typed or not; no other draw should use it.
        rate: the probability to drop an element (not to keep it), in [0, 1), exact to 2^-32. JAX
            may trace it: then it is as exact as its dtype, and not checked.

    Returns:
        y (the shape of x), residuals.

    Raises:
        TypeError: x is no floating array, the key no key or the rate no number.
        ValueError: the rate is outside [0, 1).
    """
    kept = draw_kept(key, rate, x.shape)
    # Wide: in bfloat16 1 - rate is rounded, by 1 part in 256, and so would be the mean of y.
    return jnp.where(kept, x / (1 - in_dtype_of(rate, x)), 0), kept


@rounded_once
def dropout_bwd(kept: Array, dy: Array, *, rate: float) -> tuple[Array, None]:
    """Return dx = dy / (1 - rate) where x was kept, else 0; the key has no cotangent."""
    return jnp.where(kept, dy / (1 - in_dtype_of(rate, dy)), 0), None


def _check_dropout(x: Array, key: Array, *, rate: float) -> None:
    check_floating("dropout: x", x)
    check_rate("dropout: rate", rate)
    check_key("dropout: key", key, ", or leave dropout out in evaluation")


def _dropout_example(key: Array) -> tuple[Array, Array]:
    kx, kdrop = jax.random.split(key)
    return jax.random.normal(kx, (3, 1, 7)).at[0, 0, :2].set(0.0), kdrop


relu = Op(relu_fwd, relu_bwd, example, check=door_of("relu"))
softplus = Op(
    softplus_fwd,
    softplus_bwd,
    example,
    settings=({}, {"beta": 2.0, "threshold": 3.0}),
    check=door_of("softplus"),
)
log_sigmoid = Op(log_sigmoid_fwd, log_sigmoid_bwd, example, check=door_of("log_sigmoid"))
sigmoid = Op(sigmoid_fwd, sigmoid_bwd, example, check=door_of("sigmoid"))
tanh = Op(tanh_fwd, tanh_bwd, example, check=door_of("tanh"))
soft_sign = Op(soft_sign_fwd, soft_sign_bwd, example, check=door_of("soft_sign"))
dropout = Op(
    dropout_fwd, dropout_bwd, _dropout_example, settings=({"rate": 0.3},), check=_check_dropout
)
