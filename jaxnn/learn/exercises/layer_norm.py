"""Layer normalisation: every row brought to mean 0 and variance 1, then scaled and shifted.

x (N, C): N examples of C features; scale (C,), shift (C,);  y (N, C)
"""

import jax
from jax import Array, lax

from jaxnn.ops import normalisation

LESSON = "layer_norm"
INPUTS = {"x": "(N, C)", "scale": "(C,)", "shift": "(C,)"}
OUTPUT = {"y": "(N, C)"}
GRADES = ("easy", "fused", "memory")
HINTS = (
    "Go through the forward from its last line to its first. A name that two lines use gets two "
    "terms: x, and x - mu, are used more than once.",
    "What was broadcast on the way forward is summed on the way back: scale (C,) meets N rows, so "
    "its cotangent is a sum over the rows. mu (N, 1) meets C columns.",
    "The short form of dx has three terms inside one bracket, all times rstd. Two of them are "
    "means over a row: of the cotangent of x_hat, and of that times x_hat.",
)


def forward(x: Array, scale: Array, shift: Array) -> Array:
    """Return y = scale x_hat + shift, x_hat of mean 0 and variance 1 in each row."""
    mu = x.mean(-1, keepdims=True)
    centred = x - mu
    var = (centred**2).mean(-1, keepdims=True)
    rstd = lax.rsqrt(var + 1e-5)
    x_hat = centred * rstd
    y = scale * x_hat + shift
    return y


def steps(
    x: Array,
    scale: Array,
    shift: Array,
    mu: Array,
    centred: Array,
    var: Array,
    rstd: Array,
    x_hat: Array,
    y: Array,
    dy: Array,
) -> dict[str, Array]:
    """Return the cotangent of every name, one line of the forward at a time, last to first."""
    dshift = dy.sum(0)
    dscale = (dy * x_hat).sum(0)
    dx_hat = dy * scale
    drstd = (dx_hat * centred).sum(-1, keepdims=True)
    dvar = -0.5 * drstd * rstd**3
    dcentred = dx_hat * rstd + 2 * centred * dvar / x.shape[-1]
    dmu = -dcentred.sum(-1, keepdims=True)
    dx = dcentred + dmu / x.shape[-1]
    return {
        "x_hat": dx_hat,
        "rstd": drstd,
        "var": dvar,
        "centred": dcentred,
        "mu": dmu,
        "x": dx,
        "scale": dscale,
        "shift": dshift,
    }


def layer_norm_fwd(
    x: Array, scale: Array, shift: Array
) -> tuple[Array, tuple[Array, Array, Array]]:
    """Return y, and what the backward needs: x_hat, 1/sigma, scale."""
    centred = x - x.mean(-1, keepdims=True)
    rstd = lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    x_hat = centred * rstd
    return scale * x_hat + shift, (x_hat, rstd, scale)


def layer_norm_bwd(saved: tuple[Array, Array, Array], dy: Array) -> tuple[Array, Array, Array]:
    """Return the cotangents of x, scale and shift."""
    x_hat, rstd, scale = saved
    dx_hat = dy * scale
    through_mean = dx_hat.mean(-1, keepdims=True)
    through_variance = x_hat * (dx_hat * x_hat).mean(-1, keepdims=True)
    dx = rstd * (dx_hat - through_mean - through_variance)
    return dx, (dy * x_hat).sum(0), dy.sum(0)


def library(x: Array, scale: Array, shift: Array) -> Array:
    """Return the library's own, to compare with."""
    return normalisation.layer_norm(normalisation.Scale(scale, shift), x)


def example(key: Array) -> tuple[Array, Array, Array]:
    """Draw x (4, 3), scale and shift."""
    a, b, c = jax.random.split(key, 3)
    x = jax.random.normal(a, (4, 3)) * 1.5 + 0.4
    return x, jax.random.normal(b, (3,)) + 1.3, jax.random.normal(c, (3,))


BUGS = (
    (
        "dx_hat - through_mean - through_variance",
        "dx_hat - through_variance",
        "The mean that is taken off in the forward has a part in the backward too.",
    ),
    (
        "(dy * x_hat).sum(0)",
        "(dy * x_hat).mean(0)",
        "scale is used once for every row, so that its cotangent is a sum over rows, no mean.",
    ),
)
