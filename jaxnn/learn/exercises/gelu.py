"""GELU, the formula with tanh: x times nearly the normal distribution function of x.

x (N, C): N examples of C features;  y (N, C)
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.ops.gated import gelu

LESSON = "activations"
INPUTS = {"x": "(N, C)"}
OUTPUT = {"y": "(N, C)"}
GRADES = ("easy", "fused", "memory")
HINTS = (
    "x is used three times: in its cube, in the line of u, and as a factor of y. dx is the sum of "
    "what comes back on the three ways.",
    "The slope of tanh is one minus its square, of which the forward has the value already.",
    "y = x (1 + t) / 2: directly dy (1 + t) / 2, and through t dy x / 2 (1 - t^2) times the slope "
    "of u, which is 0.79788456 (1 + 3 0.044715 x^2). The formula with erf has another slope.",
)


def forward(x: Array) -> Array:
    """Return x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2."""
    cube = x**3
    u = 0.7978845608028654 * (x + 0.044715 * cube)
    t = jnp.tanh(u)
    y = 0.5 * x * (1 + t)
    return y


def steps(x: Array, cube: Array, u: Array, t: Array, y: Array, dy: Array) -> dict[str, Array]:
    """Go back through the lines; x is in three of them."""
    dt = 0.5 * x * dy
    du = (1 - t**2) * dt
    dcube = 0.7978845608028654 * 0.044715 * du
    dx = 0.5 * (1 + t) * dy + 0.7978845608028654 * du + 3 * x**2 * dcube
    return {"t": dt, "u": du, "cube": dcube, "x": dx}


def gelu_fwd(x: Array) -> tuple[Array, Array]:
    """Return y, and what the backward needs: x."""
    t = jnp.tanh(0.7978845608028654 * (x + 0.044715 * x**3))
    return 0.5 * x * (1 + t), x


def gelu_bwd(x: Array, dy: Array) -> tuple[Array]:
    """Return the cotangent of x, by the slope of the same formula."""
    t = jnp.tanh(0.7978845608028654 * (x + 0.044715 * x**3))
    du = 0.7978845608028654 * (1 + 3 * 0.044715 * x**2)
    return (dy * (0.5 * (1 + t) + 0.5 * x * (1 - t) * (1 + t) * du),)


def library(x: Array) -> Array:
    """Return the library's own, to compare with."""
    return jnp.asarray(gelu(x, approximate=True))


def example(key: Array) -> tuple[Array]:
    """Draw x (4, 5)."""
    return (1.5 * jax.random.normal(key, (4, 5)),)


BUGS = (
    (
        "dy * (0.5 * (1 + t) + 0.5 * x * (1 - t) * (1 + t) * du)",
        "dy * (jax.scipy.stats.norm.cdf(x) + x * jax.scipy.stats.norm.pdf(x))",
        "This is the slope of the formula with erf, and the forward has the one with tanh: nearly "
        "the same, and not the gradient of this function.",
    ),
    (
        "0.044715 * x**2)",
        "0.044715 * x)",
        "The slope of a cube is three times the square.",
    ),
)
