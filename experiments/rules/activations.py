"""Elementwise functions with a rule: kinks, slopes of a similar function, stable forms."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from experiments.rules.rule import Generator, Mistake, Rule, normal, normals

ROOT = 0.7978845608028654  # of 2 / pi
CUBE = 0.044715


def leaky_relu(mistake: Mistake) -> Any:
    """dx = dy where x > 0, 0.1 dy elsewhere."""

    @jax.custom_vjp
    def f(x: Array) -> Array:
        return jnp.where(x > 0, x, 0.1 * x)

    def f_fwd(x: Array) -> Any:
        return f(x), x

    def f_bwd(x: Array, dy: Array) -> Any:
        positive = x < 0 if mistake == "mask inverted" else x > 0
        slope = {"slope forgotten": 0.0, "slope negative": -0.1}.get(mistake or "", 0.1)
        return (jnp.where(positive, dy, slope * dy),)

    f.defvjp(f_fwd, f_bwd)
    return f


def _with_zeros(rng: Generator, dtype: Any) -> tuple[Array, ...]:
    return (normal(rng, dtype, 4, 7).at[0, 0].set(0),)


def gelu(mistake: Mistake) -> Any:
    """y = x p, p = (1 + tanh u) / 2, u = ROOT (x + CUBE x^3);  dx = dy (p + x p' u')."""

    @jax.custom_vjp
    def f(x: Array) -> Array:
        return 0.5 * x * (1 + jnp.tanh(ROOT * (x + CUBE * x**3)))

    def f_fwd(x: Array) -> Any:
        return f(x), x

    def f_bwd(x: Array, dy: Array) -> Any:
        if mistake == "slope of the exact GELU":
            density = jnp.exp(-0.5 * x * x) * (2 * jnp.pi) ** -0.5
            return (dy * (0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5) + x * density),)
        t = jnp.tanh(ROOT * (x + CUBE * x**3))
        inner = ROOT * (1 + 3 * CUBE * x * x)
        if mistake == "inner derivative left out":
            inner = jnp.ones_like(x)
        dx = 0.5 * (1 + t)
        if mistake != "product's second term forgotten":
            dx += 0.5 * x * (1 - t * t) * inner
        return (dy * dx,)

    f.defvjp(f_fwd, f_bwd)
    return f


def softplus(mistake: Mistake) -> Any:
    """y = log(1 + exp(beta x)) / beta;  dx = dy sigmoid(beta x)."""

    @partial(jax.custom_vjp, nondiff_argnums=(1,))
    def f(x: Array, beta: float) -> Array:
        return jnp.logaddexp(beta * x, 0) / beta

    def f_fwd(x: Array, beta: float) -> Any:
        return f(x, beta), x

    def f_bwd(beta: float, x: Array, dy: Array) -> Any:
        if mistake == "beta forgotten":
            return (dy * jax.nn.sigmoid(x),)
        s = jax.nn.sigmoid(beta * x)
        if mistake == "beta not cancelled":
            s = beta * s
        if mistake == "sigmoid of the wrong side":
            s = 1 - s
        return (dy * s,)

    f.defvjp(f_fwd, f_bwd)
    return f


def swish(mistake: Mistake) -> Any:
    """y = x sigmoid(beta x), beta learnt: dbeta sums over everything."""

    @jax.custom_vjp
    def f(x: Array, beta: Array) -> Array:
        return x * jax.nn.sigmoid(beta * x)

    def f_fwd(x: Array, beta: Array) -> Any:
        return f(x, beta), (x, beta)

    def f_bwd(residuals: Any, dy: Array) -> Any:
        x, beta = residuals
        s = jax.nn.sigmoid(beta * x)
        slope = x * s if mistake == "derivative of exp" else x * s * (1 - s)
        dx = dy * (s + slope) if mistake == "beta left out of dx" else dy * (s + beta * slope)
        if mistake == "dbeta averaged":
            return dx, (dy * x * slope).mean(0)
        return dx, (dy * x * slope).sum(0)

    f.defvjp(f_fwd, f_bwd)
    return f


def sigmoid(mistake: Mistake) -> Any:
    """A rule of forward mode: t -> y (1 - y) t."""

    @jax.custom_jvp
    def f(x: Array) -> Array:
        return 1 / (1 + jnp.exp(-x))

    @f.defjvp
    def f_jvp(primals: Any, tangents: Any) -> Any:
        (y,), (t,) = map(f, primals), tangents
        if mistake == "1 - y forgotten":
            return y, y * t
        if mistake == "sign inside":
            return y, y * (1 + y) * t
        return y, y * (1 - y) * t

    return f


def log1mexp(mistake: Mistake) -> Any:
    """y = log(1 - exp(-x)) for x > 0;  t -> t / (exp(x) - 1)."""

    @jax.custom_jvp
    def f(x: Array) -> Array:
        return jnp.where(
            x > 0.7, jnp.log1p(-jnp.exp(-jnp.maximum(x, 0.7))), jnp.log(-jnp.expm1(-x))
        )

    @f.defjvp
    def f_jvp(primals: Any, tangents: Any) -> Any:
        (x,), (t,) = primals, tangents
        if mistake == "1 not subtracted":
            return f(x), t * jnp.exp(-x)
        return f(x), -t / jnp.expm1(x) if mistake == "sign flipped" else t / jnp.expm1(x)

    return f


def _positive(rng: Generator, dtype: Any) -> tuple[Array, ...]:
    return (jnp.asarray(rng.uniform(0.1, 3, size=(3, 7)), dtype),)


def log_cosh(mistake: Mistake) -> Any:
    """y = log(cosh(x)) without overflow, dx = dy tanh(x), by `jax.custom_gradient`."""

    @jax.custom_gradient  # type: ignore[untyped-decorator, unused-ignore]
    def f(x: Array) -> Any:
        size = jnp.abs(x)

        def bwd(dy: Array) -> Any:
            if mistake == "tanh's own slope":
                return dy * (1 - jnp.tanh(x) ** 2)
            return dy * jnp.tanh(size if mistake == "of the absolute value" else x)

        return size + jnp.log1p(jnp.exp(-2 * size)) - jnp.log(2.0).astype(x.dtype), bwd

    return f


RULES = (
    Rule(
        "leaky ReLU at its kink",
        leaky_relu,
        lambda x: jnp.where(x > 0, x, 0.1 * x),
        _with_zeros,
        {
            "mask inverted": "mask",
            "slope forgotten": "zeroed slice, mask, wrong derivative",
            "slope negative": "sign",
        },
    ),
    Rule(
        "GELU by tanh",
        gelu,
        partial(jax.nn.gelu, approximate=True),
        normals((5, 7)),
        {
            "slope of the exact GELU": "wrong derivative",
            "inner derivative left out": "derivative left out",
            "product's second term forgotten": "missing term, detached",
        },
    ),
    Rule(
        "softplus, beta not differentiated",
        softplus,
        lambda x, beta: jax.nn.softplus(beta * x) / beta,
        normals((4, 7)),
        {
            "beta forgotten": "wrong saved value, wrong derivative, factor",
            "beta not cancelled": "factor",
            "sigmoid of the wrong side": "wrong saved value, wrong derivative, flip, sign",
        },
        settings={"beta": 2.5},
    ),
    Rule(
        "swish with a learnt beta",
        swish,
        lambda x, beta: x / (1 + jnp.exp(-beta * x)),
        normals((5, 7), (7,)),
        {
            "derivative of exp": "wrong saved value, wrong derivative, derivative left out",
            "beta left out of dx": "derivative left out, factor",
            "dbeta averaged": "factor, not summed",
        },
    ),
    Rule(
        "sigmoid, custom_jvp",
        sigmoid,
        jax.nn.sigmoid,
        normals((4, 7)),
        {
            "1 - y forgotten": "wrong saved value, wrong derivative",
            "sign inside": "wrong saved value, wrong derivative",
        },
        forward=True,
    ),
    Rule(
        "log(1 - exp(-x)), custom_jvp",
        log1mexp,
        lambda x: jnp.log1p(-jnp.exp(-x)),
        _positive,
        {
            "1 not subtracted": "missing term, wrong saved value, wrong derivative",
            "sign flipped": "sign",
        },
        forward=True,
    ),
    Rule(
        "log cosh, custom_gradient",
        log_cosh,
        lambda x: jnp.log(jnp.cosh(x)),
        normals((5, 7)),
        {
            "tanh's own slope": "wrong saved value, wrong derivative",
            "of the absolute value": "sign, mask, wrong saved value",
        },
    ),
)
