"""Recurrences with a rule: a scan forwards, another backwards, a carry between."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from experiments.rules.rule import Generator, Mistake, Rule, normal, normals

BLOCK = 3


def linear(mistake: Mistake) -> Any:
    """h_t = a_t h_{t-1} + x_t;  g_t = dh_t + a_{t+1} g_{t+1}, dx_t = g_t, da_t = g_t h_{t-1}."""

    @jax.custom_vjp
    def f(a: Array, x: Array) -> Any:
        def step(h: Array, now: Any) -> Any:
            h = now[0] * h + now[1]
            return h, h

        return lax.scan(step, jnp.zeros_like(x[0]), (a, x))[1]

    def f_fwd(a: Array, x: Array) -> Any:
        h = f(a, x)
        return h, (a, h)

    def f_bwd(residuals: Any, dh: Array) -> Any:
        a, h = residuals
        after = jnp.concatenate([a[1:], jnp.zeros_like(a[:1])])
        if mistake == "a of the same step":
            after = a
        before = jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]])
        if mistake == "state after the step":
            before = h
        if mistake == "first step's mask forgotten":
            before = before.at[0].set(h[0])
        first = jnp.arange(len(a)) % BLOCK == BLOCK - 1

        def step(g: Array, now: Any) -> Any:
            dh, after, last_of_block = now
            if mistake == "carry lost between blocks":
                g = jnp.where(last_of_block, 0, g)
            g = dh + after * g
            return g, g

        _, g = lax.scan(step, jnp.zeros_like(dh[0]), (dh, after, first), reverse=True)
        return g * before, g

    f.defvjp(f_fwd, f_bwd)
    return f


def _plain_linear(a: Array, x: Array) -> Any:
    return lax.associative_scan(lambda p, q: (p[0] * q[0], q[0] * p[1] + q[1]), (a, x))[1]


def returns(mistake: Mistake) -> Any:
    """G_t = r_t + gamma G_{t+1}, the sum of what follows; the backward runs forwards."""

    def summed(x: Array, gamma: Any, reverse: bool) -> Any:
        def step(total: Array, now: Array) -> Any:
            total = now + gamma * total
            return total, total

        return lax.scan(step, jnp.zeros_like(x[0]), x, reverse=reverse)[1]

    @partial(jax.custom_vjp, nondiff_argnums=(1,))
    def f(r: Array, gamma: float) -> Any:
        return summed(r, gamma, reverse=True)

    def f_fwd(r: Array, gamma: float) -> Any:
        return f(r, gamma), None

    def f_bwd(gamma: float, _: None, dy: Array) -> Any:
        if mistake == "the discount forgotten":
            return (jnp.cumsum(dy, 0),)
        if mistake == "last step skipped":
            return (summed(jnp.asarray(dy).at[-1].set(0), gamma, reverse=False),)
        return (summed(dy, gamma, reverse=mistake == "time not reversed"),)

    f.defvjp(f_fwd, f_bwd)
    return f


def _plain_returns(r: Array, gamma: float) -> Array:
    t = jnp.arange(len(r))
    ahead = t - t[:, None]
    return jnp.where(ahead >= 0, gamma ** ahead.clip(0), 0) @ r


def running_product(mistake: Mistake) -> Any:
    """y_t = x_1 ... x_t;  dx_s = (sum over t >= s of dy_t y_t) / x_s."""

    @jax.custom_vjp
    def f(x: Array) -> Array:
        return jnp.cumprod(x, 0)

    def f_fwd(x: Array) -> Any:
        y = f(x)
        return y, (x, y)

    def f_bwd(residuals: Any, dy: Array) -> Any:
        x, y = residuals
        if mistake == "not divided by x":
            return (jnp.cumsum((dy * y)[::-1], 0)[::-1],)
        if mistake == "time not reversed":
            return (jnp.cumsum(dy * y, 0) / x,)
        if mistake == "only its own step":
            return (dy * y / x,)
        return (jnp.cumsum((dy * y)[::-1], 0)[::-1] / x,)

    f.defvjp(f_fwd, f_bwd)
    return f


def _plain_product(x: Array) -> Array:
    return jnp.stack([jnp.prod(x[: t + 1], 0) for t in range(len(x))])


def _away_from_zero(rng: Generator, dtype: Any) -> tuple[Array, ...]:
    x = rng.uniform(0.5, 1.5, size=(5, 3)) * rng.choice([-1, 1], size=(5, 3))
    return (jnp.asarray(x, dtype),)


def cell(mistake: Mistake) -> Any:
    """h_t = tanh(x_t + h_{t-1} u) over time, the last one returned: du sums over the steps."""

    @jax.custom_vjp
    def f(u: Array, x: Array) -> Any:
        return f_fwd(u, x)[0]

    def f_fwd(u: Array, x: Array) -> Any:
        def step(h: Array, now: Array) -> Any:
            h = jnp.tanh(now + h @ u)
            return h, h

        last, h = lax.scan(step, jnp.zeros_like(x[0]), x)
        return last, (u, h)

    def f_bwd(residuals: Any, dlast: Array) -> Any:
        u, h = residuals
        before = jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]])

        def step(carry: Any, now: Any) -> Any:
            (dh, du), (h, before) = carry, now
            dz = dh if mistake == "slope left out" else dh * (1 - h * h)
            back = u if mistake == "weight not transposed" else u.T
            return (dz @ back, du + before.T @ dz), dz

        start = dlast, jnp.zeros_like(u)
        (_, du), dx = lax.scan(step, start, (h, before), reverse=True)
        return before[-1].T @ dx[-1] if mistake == "steps not summed" else du, dx

    f.defvjp(f_fwd, f_bwd)
    return f


def _plain_cell(u: Array, x: Array) -> Array:
    h = jnp.zeros_like(x[0])
    for now in x:
        h = jnp.tanh(now + h @ u)
    return h


def _gates_and_inputs(rng: Generator, dtype: Any) -> tuple[Array, ...]:
    gates = jnp.asarray(rng.uniform(0.2, 0.9, size=(7, 4)), dtype)
    return gates, normal(rng, dtype, 7, 4)


RULES = (
    Rule(
        "linear recurrence",
        linear,
        _plain_linear,
        _gates_and_inputs,
        {
            "a of the same step": "shifted, wrong saved value",
            "state after the step": "shifted, wrong saved value",
            "first step's mask forgotten": "index, mask, missing term",
            "carry lost between blocks": "detached, missing term",
        },
    ),
    Rule(
        "discounted returns",
        returns,
        _plain_returns,
        normals((5, 3)),
        {
            "the discount forgotten": "factor, derivative left out, missing term",
            "last step skipped": "missing term, index",
            "time not reversed": "flip, transpose",
        },
        settings={"gamma": 0.8},
    ),
    Rule(
        "running product",
        running_product,
        _plain_product,
        _away_from_zero,
        {
            "not divided by x": "factor, derivative left out",
            "time not reversed": "flip, transpose",
            "only its own step": "not summed, missing term, detached",
        },
    ),
    Rule(
        "recurrent cell",
        cell,
        _plain_cell,
        normals((4, 4), (5, 3, 4)),
        {
            "slope left out": "derivative left out",
            "steps not summed": "not summed, missing term, detached",
            "weight not transposed": "transpose",
        },
    ),
)
