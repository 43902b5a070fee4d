"""Activations, elementwise: y = f(x) and dx = f'(x) dy, for x of any shape.

    relu          max(x, 0)                             slope 0 or 1
    leaky_relu    x or slope x                          slope 1 or `slope`
    elu           x or alpha (exp(x) - 1)               slope 1 or y + alpha
    selu          scale elu(x)                          slope scale or y + scale alpha
    softplus      log(1 + exp(x))                       slope 1 - exp(-y)
    sigmoid       s(x) = 1 / (1 + exp(-x))              slope y (1 - y)
    hard_sigmoid  min(max(x + 3, 0), 6) / 6             slope 0 or 1/6
    tanh          tanh(x)                               slope 1 - y^2
    silu          x s(x)                                slope s + x s (1 - s)
    gelu          x P(x), P the normal distribution     slope P + x P'
    mish          x t, t = tanh(softplus(x))            slope t + x (1 - t^2) s

Where the slope follows from y alone, y is saved: one value per element, and no extra bytes where
the next layer keeps y as its input anyway. SiLU, GELU and Mish fall before they rise, so that two
x share a y: these save x and compute once more what the slope needs. At a kink the slope is the one
that `jax.nn` takes. In all of them huge x of either sign gives its true slope, never 0 times inf.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.op import Op
from jaxnn.settings import check_flag, check_number

SELU_SCALE = 1.0507009873554805
SELU_ALPHA = 1.6732632423543772
_GELU_CUBIC = 0.044715


def relu_fwd(x: Array) -> tuple[Array, Array]:
    """y = max(x, 0), any shape. The slope at 0 is taken to be 0, as in `jax.nn.relu`."""
    y = jax.nn.relu(x)
    return y, y


def relu_bwd(y: Array, dy: Array) -> tuple[Array]:
    """dx = dy where y > 0, else 0."""
    return (jnp.where(y > 0, dy, 0),)


def leaky_relu_fwd(x: Array, *, slope: float = 0.01) -> tuple[Array, Array]:
    """y = x where x >= 0, else slope x; any shape. The slope at 0 is 1, as in `jax.nn.leaky_relu`.

    Saves which x are >= 0, one byte per element: y tells only if `slope` is positive, and not of an
    x so small that slope x is 0. Maas, Hannun and Ng 2013, "Rectifier nonlinearities improve neural
    network acoustic models".

    Raises:
        TypeError, ValueError: the slope is no finite number.
    """
    slope = check_number("leaky_relu: slope", slope)
    positive = x >= 0
    return jnp.where(positive, x, slope * x), positive


def leaky_relu_bwd(positive: Array, dy: Array, *, slope: float = 0.01) -> tuple[Array]:
    """dx = dy where x >= 0, else slope dy."""
    return (jnp.where(positive, dy, slope * dy),)


def elu_fwd(x: Array, *, alpha: float = 1.0) -> tuple[Array, Array]:
    """y = x where x > 0, else alpha (exp(x) - 1); any shape. The slope at 0 is alpha.

    Saves y. Clevert, Unterthiner and Hochreiter 2016, "Fast and accurate deep network learning by
    exponential linear units".

    Raises:
        TypeError: alpha is no number.
        ValueError: it is not finite, or negative, so that y does not tell the sign of x.
    """
    alpha = check_number(
        "elu: alpha",
        alpha,
        "finite and at least 0, for -alpha is the limit as x falls",
        lambda a: 0 <= a < math.inf,
    )
    # Where x is positive its exponential is not used, and could overflow.
    y = jnp.where(x > 0, x, alpha * jnp.expm1(jnp.where(x > 0, 0, x)))
    return y, y


def elu_bwd(y: Array, dy: Array, *, alpha: float = 1.0) -> tuple[Array]:
    """dx = dy where y > 0, else dy (y + alpha): alpha exp(x) is y + alpha."""
    return (jnp.where(y > 0, dy, dy * (y + alpha)),)


def selu_fwd(x: Array) -> tuple[Array, Array]:
    """y = scale elu(x), any shape; alpha and scale keep mean 0 and variance 1 of a normal x.

    Saves y. The slope at 0 is scale alpha. Klambauer et al. 2017, "Self-normalizing neural
    networks", equation 2.
    """
    y = SELU_SCALE * elu_fwd(x, alpha=SELU_ALPHA)[0]
    return y, y


def selu_bwd(y: Array, dy: Array) -> tuple[Array]:
    """dx = scale dy where y > 0, else dy (y + scale alpha)."""
    return (dy * jnp.where(y > 0, SELU_SCALE, y + SELU_SCALE * SELU_ALPHA),)


def softplus_fwd(x: Array) -> tuple[Array, Array]:
    """y = log(1 + exp(x)), any shape; x itself where x is large, so that nothing overflows.

    Saves y. Dugas et al. 2001, "Incorporating second-order functional knowledge for better option
    pricing".
    """
    y = jnp.logaddexp(x, 0)
    return y, y


def softplus_bwd(y: Array, dy: Array) -> tuple[Array]:
    """dx = dy (1 - exp(-y)), the sigmoid of x, as 2 t / (1 + t) with t = tanh(y / 2).

    So it keeps all its digits where y is near 0, as it would by `expm1`; on a CPU this takes 0.65
    times as long.
    """
    t = jnp.tanh(y / 2)
    return (dy * (2 * t / (1 + t)),)


def sigmoid_fwd(x: Array) -> tuple[Array, Array]:
    """y = 1 / (1 + exp(-x)), any shape."""
    y = lax.logistic(x)
    return y, y


def sigmoid_bwd(y: Array, dy: Array) -> tuple[Array]:
    """dx = dy y (1 - y)."""
    return (dy * y * (1 - y),)


def hard_sigmoid_fwd(x: Array) -> tuple[Array, Array]:
    """y = min(max(x + 3, 0), 6) / 6, any shape. The slope at -3 and 3 is 0, as in `jax.nn`.

    Saves y. Howard et al. 2019, "Searching for MobileNetV3", section 5.2.
    """
    y = jax.nn.relu6(x + 3) / 6
    return y, y


def hard_sigmoid_bwd(y: Array, dy: Array) -> tuple[Array]:
    """dx = dy / 6 where 0 < y < 1, else 0."""
    return (jnp.where((y > 0) & (y < 1), dy / 6, 0),)


def tanh_fwd(x: Array) -> tuple[Array, Array]:
    """y = tanh(x), any shape."""
    y = jnp.tanh(x)
    return y, y


def tanh_bwd(y: Array, dy: Array) -> tuple[Array]:
    """dx = dy (1 - y^2), in factors: they keep the digits that 1 - y^2 loses near |y| = 1."""
    return (dy * (1 - y) * (1 + y),)


def silu_fwd(x: Array) -> tuple[Array, Array]:
    """y = x s(x) with the sigmoid s, any shape; also called swish.

    Saves x; the backward computes s again. Elfwing, Uchibe and Doya 2018, "Sigmoid-weighted linear
    units for neural network function approximation in reinforcement learning".
    """
    return x * lax.logistic(x), x


def silu_bwd(x: Array, dy: Array) -> tuple[Array]:
    """dx = dy s (1 + x (1 - s))."""
    s = lax.logistic(x)
    return (dy * s * (1 + x * (1 - s)),)


def gelu_fwd(x: Array, *, approximate: bool = False) -> tuple[Array, Array]:
    """y = x P(x), any shape, with the distribution function P of the standard normal.

        exact          P(x) = erfc(-x / sqrt(2)) / 2: erfc keeps the digits of a small P
        approximate    P(x) = (1 + tanh(u)) / 2 = s(2 u),  u = sqrt(2 / pi) (x + 0.044715 x^3)

    The default is exact, as in PyTorch; `jax.nn.gelu` approximates unless told otherwise. Saves x;
    the backward computes P again. Hendrycks and Gimpel 2016, "Gaussian error linear units",
    section 2.

    Raises:
        TypeError: `approximate` is neither True nor False.
    """
    if check_flag("gelu: approximate", approximate):
        return x * lax.logistic(2 * _gelu_argument(x)), x
    return x * (lax.erfc(x * -math.sqrt(0.5)) / 2), x


def gelu_bwd(x: Array, dy: Array, *, approximate: bool = False) -> tuple[Array]:
    """dx = dy (P + x P').

    exact          P' = exp(-x^2 / 2) / sqrt(2 pi)
    approximate    P' = P (1 - P) 2 u',  u' = sqrt(2 / pi) (1 + 3 0.044715 x^2)
    """
    if approximate:
        # Where |x| >= 40, P' is 0 in every dtype; x P' must not become 0 times inf there.
        bounded = jnp.clip(x, -40, 40)
        p = lax.logistic(2 * _gelu_argument(x))
        du = math.sqrt(2 / math.pi) * (1 + 3 * _GELU_CUBIC * bounded * bounded)
        return (dy * p * (1 + bounded * (1 - p) * 2 * du),)
    z = x * -math.sqrt(0.5)
    # -(z * z), as erfc has it: XLA then takes one exponential for both.
    p, dp = lax.erfc(z) / 2, jnp.exp(-(z * z)) / math.sqrt(2 * math.pi)
    return (dy * (p + jnp.where(dp == 0, 0, x * dp)),)  # 0 where x is infinite


def _gelu_argument(x: Array) -> Array:
    return math.sqrt(2 / math.pi) * (x + _GELU_CUBIC * x * x * x)


def mish_fwd(x: Array) -> tuple[Array, Array]:
    """y = x t with t = tanh(softplus(x)), any shape.

    With the sigmoid s of x and q = 1 - s, that of -x, t is a fraction without log or tanh:

        t = ((1 + exp(x))^2 - 1) / ((1 + exp(x))^2 + 1) = s (1 + q) / (1 + q^2)

    Saves x; the backward computes s and q again. Misra 2020, "Mish: a self regularized
    non-monotonic activation function".
    """
    s, q = lax.logistic(x), lax.logistic(-x)
    return x * (s * (1 + q) / (1 + q * q)), x


def mish_bwd(x: Array, dy: Array) -> tuple[Array]:
    """dx = dy (t + x (1 - t^2) s), where 1 - t^2 = 4 q^2 / (1 + q^2)^2."""
    s, q = lax.logistic(x), lax.logistic(-x)
    square = 1 + q * q
    return (dy * s * (1 + q + x * (4 * q * q / square)) / square,)


def _example(key: Array) -> tuple[Array]:
    """Normal values with a zero (a kink of some), a tie, and both saturated ends."""
    x = jax.random.normal(key, (3, 1, 5))
    return (x.at[0, 0].set(jnp.array([0.0, 0.0, -30.0, 30.0, 30.0])),)


def _kinks_example(key: Array) -> tuple[Array]:
    """As `_example`, with the two kinks of the hard sigmoid."""
    (x,) = _example(key)
    return (x.at[1, 0, :2].set(jnp.array([-3.0, 3.0])),)


relu = Op(relu_fwd, relu_bwd, example=_example)
leaky_relu = Op(leaky_relu_fwd, leaky_relu_bwd, example=_example, settings=({"slope": 0.2},))
elu = Op(elu_fwd, elu_bwd, example=_example, settings=({"alpha": 0.7},))
selu = Op(selu_fwd, selu_bwd, example=_example)
softplus = Op(softplus_fwd, softplus_bwd, example=_example)
sigmoid = Op(sigmoid_fwd, sigmoid_bwd, example=_example)
hard_sigmoid = Op(hard_sigmoid_fwd, hard_sigmoid_bwd, example=_kinks_example)
tanh = Op(tanh_fwd, tanh_bwd, example=_example)
silu = Op(silu_fwd, silu_bwd, example=_example)
gelu = Op(gelu_fwd, gelu_bwd, example=_example, settings=({}, {"approximate": True}))
mish = Op(mish_fwd, mish_bwd, example=_example)
