"""Solvers with a rule that is right as far as they converge: that tolerance is declared."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from experiments.rules.rule import Generator, Mistake, Rule, normal

STEPS = 40
SPAN = 1.0  # of the ordinary differential equation, in time
SOLVED = 1e-4, "the iteration stops short of the fixed point"
DISCRETISED = 1e-3, "the adjoint is discretised by steps of its own"


def fixed_point(mistake: Mistake) -> Any:
    """z = tanh(z w + x), by iteration;  g = dz + (g (1 - z^2)) w', by iteration too."""

    @jax.custom_vjp
    def f(w: Array, x: Array) -> Array:
        def unfinished(state: Any) -> Any:
            z, before, i = state
            return (jnp.abs(z - before).max() > 1e-6) & (i < STEPS)

        def step(state: Any) -> Any:
            z, _, i = state
            return jnp.tanh(z @ w + x), z, i + 1

        return lax.while_loop(unfinished, step, (jnp.tanh(x), jnp.zeros_like(x), 0))[0]

    def f_fwd(w: Array, x: Array) -> Any:
        z = f(w, x)
        return z, (w, z)

    def f_bwd(residuals: Any, dz: Array) -> Any:
        w, z = residuals
        slope = 1 - z * z
        back = w if mistake == "weight not transposed" else w.T

        def step(_: Any, g: Array) -> Any:
            through = (g * slope) @ back
            return dz - through if mistake == "sign of the system" else dz + through

        steps = 0 if mistake == "one step only" else STEPS
        dx = lax.fori_loop(0, steps, step, dz) * slope
        return z.T @ dx, dx

    f.defvjp(f_fwd, f_bwd)
    return f


def _plain_fixed_point(w: Array, x: Array) -> Array:
    z = jnp.zeros_like(x)
    for _ in range(STEPS):
        z = jnp.tanh(z @ w + x)
    return z


def _contraction(rng: Generator, dtype: Any) -> tuple[Array, ...]:
    return normal(rng, dtype, 3, 3) * 0.3, normal(rng, dtype, 5, 3)


def root(mistake: Mistake) -> Any:
    """y with y^3 + y = x, by Newton's method;  t -> t / (3 y^2 + 1)."""

    @jax.custom_jvp
    def f(x: Array) -> Any:
        def step(_: Any, y: Array) -> Any:
            return y - (y**3 + y - x) / (3 * y**2 + 1)

        return lax.fori_loop(0, 12, step, x)

    @f.defjvp
    def f_jvp(primals: Any, tangents: Any) -> Any:
        (x,), (t,) = primals, tangents
        y = f(x)
        at = x if mistake == "slope at the input" else y
        slope = 3 * at**2 + (0 if mistake == "linear term forgotten" else 1)
        return y, -t / slope if mistake == "sign flipped" else t / slope

    return f


def _plain_root(x: Array) -> Array:
    s = jnp.arcsinh(1.5 * 3**0.5 * x)
    return 2 / 3**0.5 * jnp.sinh(s / 3)


def _numbers(rng: Generator, dtype: Any) -> tuple[Array, ...]:
    return (normal(rng, dtype, 7),)


def ordinary(mistake: Mistake) -> Any:
    """y' = tanh(w y) from y0, by Runge and Kutta's steps; the adjoint a' = -a dy'/dy backwards."""

    def slope(y: Array, w: Array) -> Array:
        return jnp.tanh(w @ y)

    def integrated(derivative: Any, state: Any, steps: int, h: float) -> Any:
        def moved(state: Any, k: Any, by: float) -> Any:
            return jax.tree.map(lambda s, d: s + by * d, state, k)

        def step(_: Any, state: Any) -> Any:
            k1 = derivative(state)
            k2 = derivative(moved(state, k1, h / 2))
            k3 = derivative(moved(state, k2, h / 2))
            k4 = derivative(moved(state, k3, h))
            return jax.tree.map(
                lambda s, a, b, c, d: s + h / 6 * (a + 2 * b + 2 * c + d), state, k1, k2, k3, k4
            )

        return lax.fori_loop(0, steps, step, state)

    @jax.custom_vjp
    def f(w: Array, y0: Array) -> Any:
        return integrated(lambda y: slope(y, w), y0, STEPS, SPAN / STEPS)

    def f_fwd(w: Array, y0: Array) -> Any:
        y = f(w, y0)
        return y, (w, y)

    def f_bwd(residuals: Any, dy: Array) -> Any:
        w, y = residuals

        def backwards(state: Any) -> Any:
            y, a, _ = state
            out, pull = jax.vjp(slope, y, w)
            da, dw = pull(a)
            return -out, -da if mistake == "sign of the adjoint" else da, dw

        steps = STEPS // 2 if mistake == "half the way back" else STEPS
        start = y, dy, jnp.zeros_like(w)
        _, a, dw = integrated(backwards, start, steps, SPAN / STEPS)
        if mistake == "adjoint held fixed":
            return dw, dy
        return dw, a

    f.defvjp(f_fwd, f_bwd)
    return f


def _plain_ordinary(w: Array, y0: Array) -> Array:
    """The midpoint method, in shorter steps."""
    h = SPAN / (4 * STEPS)

    def step(_: Any, y: Array) -> Array:
        return y + h * jnp.tanh(w @ (y + h / 2 * jnp.tanh(w @ y)))

    y: Array = lax.fori_loop(0, 4 * STEPS, step, y0)
    return y


def _matrix_and_start(rng: Generator, dtype: Any) -> tuple[Array, ...]:
    return normal(rng, dtype, 3, 3), normal(rng, dtype, 3)


RULES = (
    Rule(
        "fixed point by a while loop",
        fixed_point,
        _plain_fixed_point,
        _contraction,
        {
            "weight not transposed": "transpose",
            "one step only": "missing term, detached",
            "sign of the system": "sign",
        },
        declared={"tolerance": {"w": SOLVED, "x": SOLVED}},
        exact=1e-4,
        narrow=False,
    ),
    Rule(
        "root by Newton's method, custom_jvp",
        root,
        _plain_root,
        _numbers,
        {
            "slope at the input": "wrong saved value",
            "linear term forgotten": "missing term, wrong saved value",
            "sign flipped": "sign",
        },
        forward=True,
        declared={"tolerance": {"x": (1e-6, "twelve steps of Newton's method")}},
    ),
    Rule(
        "adjoint of a differential equation",
        ordinary,
        _plain_ordinary,
        _matrix_and_start,
        {
            "sign of the adjoint": "sign",
            "half the way back": "missing term, factor, not summed",
            "adjoint held fixed": "missing term, detached, derivative left out",
        },
        declared={"tolerance": {"w": DISCRETISED, "y0": DISCRETISED}},
        exact=1e-3,
        narrow=False,
    ),
)
