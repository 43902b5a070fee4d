"""RMS normalisation: every row divided by its root mean square, then scaled; no mean is taken off.

x (N, C): N examples of C features; scale (C,);  y (N, C)
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn import ops

LESSON = "layer_norm"
INPUTS = {"x": "(N, C)", "scale": "(C,)"}
OUTPUT = {"y": "(N, C)"}
HINTS = (
    "x is used twice: in x_hat as it stands, and in the mean of its squares.",
    "The factor 1/sigma is one number per row, so its cotangent is a sum over the row.",
    "The short form has two terms, both times rstd: the cotangent of x_hat, minus x_hat times a "
    "mean over the row.",
)
GRADES = ("easy", "fused", "memory")
BUGS = (
    (
        "dx_hat - x_hat * (dx_hat * x_hat).mean(-1, keepdims=True)",
        "dx_hat - dx_hat.mean(-1, keepdims=True)",
        "No mean was taken off in the forward: what is missing is the path through sigma.",
    ),
    ("dx_hat = scale * dy", "dx_hat = dy", "The scale stands between y and x_hat."),
)


def forward(x: Array, scale: Array) -> Array:
    """Divide by the root mean square, and scale."""
    square = (x**2).mean(-1, keepdims=True)
    rstd = 1 / jnp.sqrt(square + 1e-5)
    x_hat = x * rstd
    y = scale * x_hat
    return y


def steps(
    x: Array, scale: Array, square: Array, rstd: Array, x_hat: Array, y: Array, dy: Array
) -> dict[str, Array]:
    """Go back through the lines of the forward."""
    dscale = (dy * x_hat).sum(0)
    dx_hat = scale * dy
    drstd = (dx_hat * x).sum(-1, keepdims=True)
    dsquare = -0.5 * rstd**3 * drstd
    dx = dx_hat * rstd + dsquare * 2 * x / x.shape[-1]
    return {"scale": dscale, "x_hat": dx_hat, "rstd": drstd, "square": dsquare, "x": dx}


def rms_norm_fwd(x: Array, scale: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    """Divide by the root mean square, and scale; what is saved comes second."""
    rstd = jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    x_hat = x * rstd
    return scale * x_hat, (x_hat, rstd, scale)


def rms_norm_bwd(saved: tuple[Array, Array, Array], dy: Array) -> tuple[Array, Array]:
    """Return dx and dscale."""
    x_hat, rstd, scale = saved
    dx_hat = scale * dy
    dx = rstd * (dx_hat - x_hat * (dx_hat * x_hat).mean(-1, keepdims=True))
    return dx, (dy * x_hat).sum(0)


def example(key: Array) -> tuple[Array, Array]:
    """Draw x and the scale."""
    one, two = jax.random.split(key)
    return 0.4 + jax.random.normal(one, (3, 5)), 0.5 + jax.random.uniform(two, (5,))


def library(x: Array, scale: Array) -> Array:
    """Return what the library's op gives."""
    y: Array = ops.normalisation.rms_norm(ops.normalisation.Scale(scale, None), x)
    return y
