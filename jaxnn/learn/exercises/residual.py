"""A residual block: an RMS norm and a linear layer, and the input added to what they give.

x (N, C): N examples of C features; scale (C,);  w (C, C), b (C,);  y (N, C)
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.ops.linear import Linear, linear
from jaxnn.ops.normalisation import Scale, rms_norm

LESSON = "residual"
INPUTS = {"x": "(N, C)", "scale": "(C,)", "w": "(C, C)", "b": "(C,)"}
OUTPUT = {"y": "(N, C)"}
HINTS = (
    "y is a sum of two terms, so dy goes to both, whole and unchanged: to x directly, and to the "
    "branch. dx is what comes back on both ways, added.",
    "Walk the branch from its end as if there were no skip: db, dw and the cotangent of the "
    "normed rows are those of a linear layer; then comes the norm.",
    "x is used three times: in y, in x_hat, and in rstd. Through rstd comes "
    "-x_hat * rstd * mean(dx_hat * x_hat) over the features; through x_hat directly "
    "dx_hat * rstd; and through the skip dy.",
)
GRADES = ("easy", "fused", "memory")
EPS = 1e-5


def forward(x: Array, scale: Array, w: Array, b: Array) -> Array:
    """Return x + rms_norm(x) w + b."""
    rstd = ((x**2).mean(1, keepdims=True) + EPS) ** -0.5
    x_hat = x * rstd
    normed = scale * x_hat
    branch = normed @ w + b
    y = x + branch
    return y


def steps(
    x: Array,
    scale: Array,
    w: Array,
    b: Array,
    rstd: Array,
    x_hat: Array,
    normed: Array,
    branch: Array,
    y: Array,
    dy: Array,
) -> dict[str, Array]:
    """Return the cotangent of every line and input, last line first."""
    dbranch = dy
    db = dbranch.sum(0)
    dw = normed.T @ dbranch
    dnormed = dbranch @ w.T
    dscale = (dnormed * x_hat).sum(0)
    dx_hat = dnormed * scale
    drstd = (dx_hat * x).sum(1, keepdims=True)
    dx = dy + dx_hat * rstd - drstd * rstd**3 * x / x.shape[1]
    return {
        "rstd": drstd,
        "x_hat": dx_hat,
        "normed": dnormed,
        "branch": dbranch,
        "x": dx,
        "scale": dscale,
        "w": dw,
        "b": db,
    }


def residual_fwd(
    x: Array, scale: Array, w: Array, b: Array
) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    """Return y, and what the backward needs."""
    rstd = ((x**2).mean(1, keepdims=True) + EPS) ** -0.5
    x_hat = x * rstd
    return x + (scale * x_hat) @ w + b, (x_hat, rstd, scale, w)


def residual_bwd(
    saved: tuple[Array, Array, Array, Array], dy: Array
) -> tuple[Array, Array, Array, Array]:
    """Return dx, dscale, dw, db."""
    x_hat, rstd, scale, w = saved
    dnormed = dy @ w.T
    dx_hat = dnormed * scale
    dbranch = rstd * (dx_hat - x_hat * (dx_hat * x_hat).mean(1, keepdims=True))
    return dy + dbranch, (dnormed * x_hat).sum(0), (scale * x_hat).T @ dy, dy.sum(0)


def example(key: Array) -> tuple[Array, Array, Array, Array]:
    """Return a small point at which nothing is 0, 1 or equal to anything else."""
    kx, ks, kw, kb = jax.random.split(key, 4)
    x = jax.random.normal(kx, (5, 3))
    scale = jax.random.uniform(ks, (3,), minval=0.5, maxval=2.0)
    return x, scale, jax.random.normal(kw, (3, 3)), jax.random.normal(kb, (3,))


def library(x: Array, scale: Array, w: Array, b: Array) -> Array:
    """Return the same, by the library's ops."""
    normed = rms_norm(Scale(scale, None), x, eps=EPS)
    return jnp.asarray(x + linear(Linear(w, b), normed))


BUGS = (
    (
        "(scale * x_hat).T @ dy",
        "x_hat.T @ dy",
        "w was multiplied by the scaled features, and the rule had them without their scale.",
    ),
    (
        "return dy + dbranch,",
        "return dbranch,",
        "x goes to y on two ways: through the branch, and past it. The rule had only what comes "
        "back through the branch; dy itself belongs to dx as well.",
    ),
    (
        "dnormed = dy @ w.T",
        "dnormed = dy @ w",
        "Back through normed @ w goes dy times the transpose of w. As w is square, no shape "
        "tells of a missing transpose.",
    ),
    (
        "rstd * (dx_hat - x_hat * (dx_hat * x_hat).mean(1, keepdims=True))",
        "rstd * dx_hat",
        "1/sigma depends on x too. The rule took it for a constant: the term with "
        "mean(dx_hat * x_hat) was missing.",
    ),
)
