"""Activations and dropout, elementwise: y = f(x) and dx = f'(x) dy, for x of any shape.

    relu          max(x, 0)                             slope 0 or 1
    leaky_relu    x or slope x                          slope 1 or `slope`
    elu           x or alpha (exp(x) - 1)               slope 1 or alpha exp(x)
    selu          scale elu(x)                          slope scale or scale alpha exp(x)
    softplus      log(1 + exp(x))                       slope sigmoid(x)
    sigmoid       1 / (1 + exp(-x))                     slope y (1 - y)
    hard_sigmoid  min(max(x + 3, 0), 6) / 6             slope 0 or 1/6
    tanh          tanh(x)                               slope 1 - y^2

What is saved has the digits of the slope: y where it tells them (relu, sigmoid, tanh: no extra
bytes where the next layer keeps y as its input anyway), else x (far left every digit of elu's y is
-alpha's), or on which side of its kinks x is, one byte per element. At a kink the slope is the one
that `jax.nn` takes. Huge x of either sign give their true slope, never 0 times inf. Each raises a
TypeError for an x that is no floating array. All compute in float32 or wider and round once. Those
that fall before they rise are in `jaxnn.ops.gated`.

Dropout drops each element with probability `rate`: y = x / (1 - rate) where it is kept, else 0, so
that the mean of y is x, and dx = dy / (1 - rate) there. A model in evaluation leaves it out.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.checks import check_floating, check_key
from jaxnn.numerics import draw_kept, widen
from jaxnn.op import Op
from jaxnn.settings import check_number, check_rate

SELU_SCALE = 1.0507009873554805
SELU_ALPHA = 1.6732632423543772


def relu_fwd(x: Array) -> tuple[Array, Array]:
    """Return y = max(x, 0). The slope at 0 is taken to be 0, as in `jax.nn.relu`."""
    y = jax.nn.relu(x)
    return y, y


def relu_bwd(y: Array, dy: Array) -> tuple[Array]:
    """Return dx = dy where y > 0, else 0."""
    return (jnp.where(y > 0, dy, 0),)


def leaky_relu_fwd(x: Array, *, slope: float = 0.01) -> tuple[Array, Array]:
    """Return y = x where x >= 0, else slope x. The slope at 0 is 1, as in `jax.nn.leaky_relu`.

    Saves which x are >= 0, one byte per element: y tells only if `slope` is positive, and not of an
    x so small that slope x is 0. Maas, Hannun and Ng 2013, "Rectifier nonlinearities improve neural
    network acoustic models".

    Raises:
        TypeError, ValueError: the slope is no finite number.
    """
    positive = x >= 0
    return jnp.where(positive, x, (slope * widen(x)).astype(x.dtype)), positive


def leaky_relu_bwd(positive: Array, dy: Array, *, slope: float = 0.01) -> tuple[Array]:
    """Return dx = dy where x >= 0, else slope dy."""
    return (jnp.where(positive, dy, (slope * widen(dy)).astype(dy.dtype)),)


def elu_fwd(x: Array, *, alpha: float = 1.0) -> tuple[Array, Array]:
    """Return y = x where x > 0, else alpha (exp(x) - 1). The slope at 0 is alpha.

    Clevert, Unterthiner and Hochreiter 2016, "Fast and accurate deep network learning by
    exponential linear units".

    Raises:
        TypeError, ValueError: alpha is no finite number.
    """
    # Where x is positive its exponential is not used, and could overflow.
    below = jnp.where(x > 0, 0, widen(x))
    return jnp.where(x > 0, x, (alpha * jnp.expm1(below)).astype(x.dtype)), x


def elu_bwd(x: Array, dy: Array, *, alpha: float = 1.0) -> tuple[Array]:
    """Return dx = dy where x > 0, else dy alpha exp(x)."""
    below = jnp.where(x > 0, 0, widen(x))
    return (jnp.where(x > 0, dy, (widen(dy) * (alpha * jnp.exp(below))).astype(dy.dtype)),)


def selu_fwd(x: Array) -> tuple[Array, Array]:
    """Return y = scale elu(x): alpha and scale keep mean 0 and variance 1 of a normal x.

    The slope at 0 is scale alpha. Klambauer et al. 2017, "Self-normalizing neural networks",
    equation 2.
    """
    below = jnp.where(x > 0, 0, widen(x))
    y = SELU_SCALE * jnp.where(x > 0, widen(x), SELU_ALPHA * jnp.expm1(below))
    return y.astype(x.dtype), x


def selu_bwd(x: Array, dy: Array) -> tuple[Array]:
    """Return dx = scale dy where x > 0, else scale alpha exp(x) dy."""
    below = jnp.where(x > 0, 0, widen(x))
    dx = SELU_SCALE * widen(dy) * jnp.where(x > 0, 1, SELU_ALPHA * jnp.exp(below))
    return (dx.astype(dy.dtype),)


def softplus_fwd(x: Array) -> tuple[Array, Array]:
    """Return y = log(1 + exp(x)); x itself where x is large, so that nothing overflows.

    Dugas et al. 2001, "Incorporating second-order functional knowledge for better option pricing".
    """
    return jnp.logaddexp(widen(x), 0).astype(x.dtype), x


def softplus_bwd(x: Array, dy: Array) -> tuple[Array]:
    """Return dx = dy sigmoid(x)."""
    return ((widen(dy) * lax.logistic(widen(x))).astype(dy.dtype),)


def sigmoid_fwd(x: Array) -> tuple[Array, Array]:
    """Return y = 1 / (1 + exp(-x))."""
    y = lax.logistic(widen(x)).astype(x.dtype)
    return y, y


def sigmoid_bwd(y: Array, dy: Array) -> tuple[Array]:
    """Return dx = dy y (1 - y)."""
    wide = widen(y)
    return ((widen(dy) * wide * (1 - wide)).astype(dy.dtype),)


def hard_sigmoid_fwd(x: Array) -> tuple[Array, Array]:
    """Return y = min(max(x + 3, 0), 6) / 6. The slope at -3 and 3 is 0, as in `jax.nn`.

    Howard et al. 2019, "Searching for MobileNetV3", section 5.2.
    """
    y = (jax.nn.relu6(widen(x) + 3) / 6).astype(x.dtype)
    return y, (x > -3) & (x < 3)


def hard_sigmoid_bwd(rising: Array, dy: Array) -> tuple[Array]:
    """Return dx = dy / 6 where -3 < x < 3, else 0."""
    return (jnp.where(rising, dy / 6, 0),)


def tanh_fwd(x: Array) -> tuple[Array, Array]:
    """Return y = tanh(x)."""
    y = jnp.tanh(widen(x)).astype(x.dtype)
    return y, y


def tanh_bwd(y: Array, dy: Array) -> tuple[Array]:
    """Return dx = dy (1 - y^2), in factors: they keep the digits that 1 - y^2 loses near 1."""
    wide = widen(y)
    return ((widen(dy) * (1 - wide) * (1 + wide)).astype(dy.dtype),)


def dropout_fwd(x: Array, key: Array, *, rate: float) -> tuple[Array, Array]:
    """Put 0 in place of a share `rate` of x, drawn from `key`; divide the rest by 1 - rate.

    The same key drops the same elements, whatever the dtype of x, in the forward and the backward.
    Saves which elements are kept, one byte per element. Srivastava et al. 2014, "Dropout: a simple
    way to prevent neural networks from overfitting", with the scaling in training in place of
    evaluation.

    Args:
        x: any shape.
        key: a key of `jax.random`, typed or not; no other draw should use it.
        rate: the probability to drop an element (not to keep it), in [0, 1), exact to 2^-32.

    Returns:
        y (the shape of x), residuals.

    Raises:
        TypeError: x is no floating array, the key no key or the rate no number.
        ValueError: the rate is outside [0, 1).
    """
    kept = draw_kept(key, rate, x.shape)
    # Wide: in bfloat16 1 - rate is rounded, by 1 part in 256, and so would be the mean of y.
    return jnp.where(kept, (widen(x) / (1 - rate)).astype(x.dtype), 0), kept


def dropout_bwd(kept: Array, dy: Array, *, rate: float) -> tuple[Array, None]:
    """Return dx = dy / (1 - rate) where x was kept, else 0; the key has no cotangent."""
    return jnp.where(kept, (widen(dy) / (1 - rate)).astype(dy.dtype), 0), None


def _check(op: str, x: Array, *, slope: float = 0.0, alpha: float = 0.0) -> None:
    """Refuse what is no floating array, and settings outside their range."""
    check_floating(f"{op}: x", x)
    check_number(f"{op}: slope", slope)
    check_number(f"{op}: alpha", alpha)


def _check_dropout(x: Array, key: Array, *, rate: float) -> None:
    check_floating("dropout: x", x)
    check_rate("dropout: rate", rate)
    check_key("dropout: key", key, ", or leave dropout out in evaluation")


def _example(key: Array) -> tuple[Array]:
    """Normal values with the kinks at 0, -3 and 3, a tie, and both saturated ends."""
    x = jax.random.normal(key, (3, 1, 5)).at[1, 0, :2].set(jnp.array([-3.0, 3.0]))
    return (x.at[0, 0].set(jnp.array([0.0, 0.0, -30.0, 30.0, 30.0])),)


def _dropout_example(key: Array) -> tuple[Array, Array]:
    kx, kdrop = jax.random.split(key)
    return jax.random.normal(kx, (3, 1, 7)).at[0, 0, :2].set(0.0), kdrop


relu = Op(relu_fwd, relu_bwd, _example, check=partial(_check, "relu"))
leaky_relu = Op(
    leaky_relu_fwd,
    leaky_relu_bwd,
    _example,
    settings=({"slope": 0.2},),
    check=partial(_check, "leaky_relu"),
)
elu = Op(elu_fwd, elu_bwd, _example, settings=({"alpha": 0.7},), check=partial(_check, "elu"))
selu = Op(selu_fwd, selu_bwd, _example, check=partial(_check, "selu"))
softplus = Op(softplus_fwd, softplus_bwd, _example, check=partial(_check, "softplus"))
sigmoid = Op(sigmoid_fwd, sigmoid_bwd, _example, check=partial(_check, "sigmoid"))
hard_sigmoid = Op(
    hard_sigmoid_fwd, hard_sigmoid_bwd, _example, check=partial(_check, "hard_sigmoid")
)
tanh = Op(tanh_fwd, tanh_bwd, _example, check=partial(_check, "tanh"))
dropout = Op(
    dropout_fwd, dropout_bwd, _dropout_example, settings=({"rate": 0.3},), check=_check_dropout
)
