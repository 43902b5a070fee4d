"""Normalisations with a rule: float32 inside, statistics as outputs, a norm at 0."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from experiments.rules.rule import Generator, Mistake, Rule, normal, normals

EPSILON = 1e-5  # added to a variance


def rms_norm(mistake: Mistake) -> Any:
    """y = w x r in float32, r = 1 / sqrt(mean x^2);  dx = r (g - x r^2 mean(g x)), g = w dy."""

    @jax.custom_vjp
    def f(x: Array, w: Array) -> Array:
        z = x.astype(jnp.float32)
        r = lax.rsqrt((z * z).mean(-1, keepdims=True) + EPSILON)
        return (z * r * w.astype(jnp.float32)).astype(x.dtype)

    def f_fwd(x: Array, w: Array) -> Any:
        return f(x, w), (x, w)

    def f_bwd(residuals: Any, dy: Array) -> Any:
        x, w = residuals
        z, dz = x.astype(jnp.float32), dy.astype(jnp.float32)
        r = lax.rsqrt((z * z).mean(-1, keepdims=True) + EPSILON)
        g = dz if mistake == "gain left out" else dz * w.astype(jnp.float32)
        dx = r * g
        if mistake != "mean's part forgotten":
            dx -= r**3 * z * (g * z).mean(-1, keepdims=True)
        hat = z if mistake == "gain from what was not normalised" else z * r
        return dx.astype(x.dtype), (dz * hat).sum(0).astype(w.dtype)

    f.defvjp(f_fwd, f_bwd)
    return f


def _plain_rms_norm(x: Array, w: Array) -> Array:
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + EPSILON) * w


def _statistics(z: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """(z - mean) / std over some axes, and 1 / std."""
    centred = z - z.mean(axes, keepdims=True)
    r = lax.rsqrt((centred**2).mean(axes, keepdims=True) + EPSILON)
    return centred * r, r


def layer_norm(mistake: Mistake) -> Any:
    """dx = r (g - mean g - x̂ mean(g x̂)), g = gain dy, in float32; x̂ and r are kept."""

    @jax.custom_vjp
    def f(x: Array, gain: Array, bias: Array) -> Any:
        return f_fwd(x, gain, bias)[0]

    def f_fwd(x: Array, gain: Array, bias: Array) -> Any:
        hat, r = _statistics(x.astype(jnp.float32), (-1,))
        y = hat * gain.astype(jnp.float32) + bias.astype(jnp.float32)
        return y.astype(x.dtype), (hat, r, gain)

    def f_bwd(residuals: Any, dy: Array) -> Any:
        hat, r, gain = residuals
        dy32 = dy.astype(jnp.float32)
        g = dy32 * gain.astype(jnp.float32)
        n = g.shape[-1] - 1 if mistake == "n - 1 for n" else g.shape[-1]
        mean = g.mean(-1, keepdims=True)
        dx = g - hat * (g * hat).sum(-1, keepdims=True) / n
        if mistake != "mean's part forgotten":
            dx -= mean
        dgain, dbias = (dy32 * hat).sum(0), dy32.sum(0)
        if mistake == "gain and bias swapped":
            dgain, dbias = dbias, dgain
        return (r * dx).astype(dy.dtype), dgain.astype(dy.dtype), dbias.astype(dy.dtype)

    f.defvjp(f_fwd, f_bwd)
    return f


def _plain_layer_norm(x: Array, gain: Array, bias: Array) -> Array:
    return jax.nn.standardize(x, epsilon=EPSILON) * gain + bias


def group_norm(mistake: Mistake) -> Any:
    """x [N, T, G, C] normalised over T and C in float32, with one gain for each of G and C."""

    @jax.custom_vjp
    def f(x: Array, gain: Array) -> Array:
        hat, _ = _statistics(x.astype(jnp.float32), (1, 3))
        return (hat * gain.astype(jnp.float32)).astype(x.dtype)

    def f_fwd(x: Array, gain: Array) -> Any:
        return f(x, gain), (x, gain)

    def f_bwd(residuals: Any, dy: Array) -> Any:
        x, gain = residuals
        hat, r = _statistics(x.astype(jnp.float32), (1, 3))
        dy32 = dy.astype(jnp.float32)
        g = dy32 * gain.astype(jnp.float32)
        axes = (1, 2) if mistake == "sums over the other axis" else (1, 3)
        dx = g - g.mean(axes, keepdims=True)
        if mistake != "variance's part forgotten":
            dx -= hat * (g * hat).mean(axes, keepdims=True)
        if mistake != "deviation left out":
            dx *= r
        return dx.astype(x.dtype), (dy32 * hat).sum((0, 1)).astype(gain.dtype)

    f.defvjp(f_fwd, f_bwd)
    return f


def _plain_group_norm(x: Array, gain: Array) -> Array:
    mean, variance = x.mean((1, 3), keepdims=True), x.var((1, 3), keepdims=True)
    return (x - mean) / jnp.sqrt(variance + EPSILON) * gain


def batch_norm(mistake: Mistake) -> Any:
    """x̂ and the batch's mean and variance, all three with a cotangent."""

    @jax.custom_vjp
    def f(x: Array) -> Any:
        return _statistics(x, (0,))[0], x.mean(0), x.var(0)

    def f_fwd(x: Array) -> Any:
        return f(x), x

    def f_bwd(x: Array, cotangents: Any) -> Any:
        dy, dmean, dvariance = cotangents
        hat, r = _statistics(x, (0,))
        n = len(x)
        dx = r * (dy - dy.mean(0) - hat * (dy * hat).mean(0))
        if mistake == "statistics ignored":
            return (dx,)
        dx += dmean if mistake == "mean's 1/n forgotten" else dmean / n
        squares = 1 if mistake == "the 2 of the square forgotten" else 2
        return (dx + squares * dvariance * (x - x.mean(0)) / n,)

    f.defvjp(f_fwd, f_bwd)
    return f


def _plain_batch_norm(x: Array) -> Any:
    mean = x.mean(0)
    variance = ((x - mean) ** 2).mean(0)
    return (x - mean) / jnp.sqrt(variance + EPSILON), mean, variance


def safe_norm(mistake: Mistake) -> Any:
    """|x| of each row; at 0, where autodiff is NaN, the gradient is 0."""

    @jax.custom_vjp
    def f(x: Array) -> Array:
        return jnp.sqrt((x * x).sum(-1))

    def f_fwd(x: Array) -> Any:
        y = f(x)
        return y, (x, y)

    def f_bwd(residuals: Any, dy: Array) -> Any:
        x, y = residuals
        y, dy = y[:, None], dy[:, None]
        safe = jnp.where(y > 0, y, 1)
        if mistake == "norm not divided by":
            return (dy * x,)
        if mistake == "norm squared":
            return (dy * x / safe**2,)
        if mistake == "one at 0":
            return (jnp.where(y > 0, dy * x / safe, 2 * dy),)
        return (dy * x / safe,)

    f.defvjp(f_fwd, f_bwd)
    return f


def _plain_norm(x: Array) -> Array:
    squares = (x * x).sum(-1)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def _row_of_zeros(rng: Generator, dtype: Any) -> tuple[Array, ...]:
    return (normal(rng, dtype, 5, 3).at[2].set(0),)


RULES = (
    Rule(
        "RMS norm in float32",
        rms_norm,
        _plain_rms_norm,
        normals((5, 7), (7,)),
        {
            "mean's part forgotten": "missing term, detached",
            "gain left out": "factor, derivative left out",
            "gain from what was not normalised": "wrong saved value",
        },
        exact=1e-5,
    ),
    Rule(
        "layer norm in float32",
        layer_norm,
        _plain_layer_norm,
        normals((5, 7), (7,), (7,)),
        {
            "mean's part forgotten": "missing term, detached",
            "n - 1 for n": "n against n-1",
            "gain and bias swapped": "swapped leaves",
        },
        exact=1e-5,
    ),
    Rule(
        "group norm in float32",
        group_norm,
        _plain_group_norm,
        normals((5, 4, 2, 3), (2, 3)),
        {
            "sums over the other axis": "not summed, wrong axis",
            "variance's part forgotten": "missing term, detached",
            "deviation left out": "factor, derivative left out",
        },
        exact=1e-5,
    ),
    Rule(
        "batch norm that returns its statistics",
        batch_norm,
        _plain_batch_norm,
        normals((5, 3)),
        {
            "statistics ignored": "missing term, zeroed slice",
            "mean's 1/n forgotten": "factor",
            "the 2 of the square forgotten": "factor, derivative left out",
        },
    ),
    Rule(
        "norm that is safe at 0",
        safe_norm,
        _plain_norm,
        _row_of_zeros,
        {
            "norm not divided by": "derivative left out, factor",
            "norm squared": "factor, wrong saved value",
            "one at 0": "index, zeroed slice, not finite, mask",
        },
    ),
)
