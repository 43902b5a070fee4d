"""Batch normalisation in training: every feature brought to mean 0 and variance 1 over the batch.

x (N, C): N examples of C features; scale (C,), shift (C,);  y (N, C)
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.ops import batch_norm, normalisation

LESSON = "batch_norm"
INPUTS = {"x": "(N, C)", "scale": "(C,)", "shift": "(C,)"}
OUTPUT = {"y": "(N, C)"}
GRADES = ("easy", "fused", "memory")
HINTS = (
    "Go through the forward from its last line to its first. The mean and the variance were "
    "computed from x, so that x has an influence through both of them too.",
    "Everything with the shape (C,) met N rows: its cotangent is a sum over axis 0, and has the "
    "shape (C,). A cotangent (N, C) of scale would be broadcast later, and no error be raised.",
    "The short form of dx has three terms in one bracket, times scale and rstd: dy, its mean over "
    "the batch, and x_hat times the mean of dy x_hat.",
)


def forward(x: Array, scale: Array, shift: Array) -> Array:
    """Return y = scale x_hat + shift, x_hat of mean 0 and variance 1 in each column."""
    mu = x.mean(0)
    centred = x - mu
    var = (centred**2).mean(0)
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
    drstd = (dx_hat * centred).sum(0)
    dvar = -0.5 * drstd * rstd**3
    dcentred = dx_hat * rstd + 2 * centred * dvar / len(x)
    dmu = -dcentred.sum(0)
    dx = dcentred + dmu / len(x)
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


def batch_norm_fwd(
    x: Array, scale: Array, shift: Array
) -> tuple[Array, tuple[Array, Array, Array]]:
    """Return y, and what the backward needs: x_hat, 1/sigma, scale."""
    centred = x - x.mean(0)
    rstd = lax.rsqrt((centred**2).mean(0) + 1e-5)
    x_hat = centred * rstd
    return scale * x_hat + shift, (x_hat, rstd, scale)


def batch_norm_bwd(saved: tuple[Array, Array, Array], dy: Array) -> tuple[Array, Array, Array]:
    """Return the cotangents of x, scale and shift."""
    x_hat, rstd, scale = saved
    dshift, dscale = dy.sum(0), (dy * x_hat).sum(0)
    dx = scale * rstd * (dy - dshift / len(dy) - x_hat * dscale / len(dy))
    return dx, dscale, dshift


def library(x: Array, scale: Array, shift: Array) -> Array:
    """Return the library's own, to compare with."""
    params = normalisation.Scale(scale, shift)
    running = batch_norm.Running(jnp.zeros_like(scale), jnp.ones_like(scale))
    return batch_norm.batch_norm(params, running, x, training=True)[0]


def example(key: Array) -> tuple[Array, Array, Array]:
    """Draw x (4, 3), scale and shift."""
    a, b, c = jax.random.split(key, 3)
    x = jax.random.normal(a, (4, 3)) * 1.5 + 0.4
    return x, jax.random.normal(b, (3,)) + 1.3, jax.random.normal(c, (3,))


BUGS = (
    (
        "dy - dshift / len(dy) - x_hat * dscale / len(dy)",
        "dy - dshift / len(dy)",
        "x moves the variance too; that path takes off what is in the direction of x_hat.",
    ),
    (
        "dx = scale * rstd * (dy - dshift / len(dy) - x_hat * dscale / len(dy))",
        "dx = scale * rstd * (dy - dshift - x_hat * dscale)",
        "What goes through a mean is divided by the number of examples.",
    ),
)
