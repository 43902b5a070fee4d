"""Matrices with a rule: where to transpose, and what to halve."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from experiments.rules.rule import Generator, Mistake, Rule, normal, normals


def log_determinant(mistake: Mistake) -> Any:
    """t -> trace(a^-1 t), in forward mode."""

    @jax.custom_jvp
    def f(a: Array) -> Any:
        return jnp.linalg.slogdet(a)[1]

    @f.defjvp
    def f_jvp(primals: Any, tangents: Any) -> Any:
        (a,), (t,) = primals, tangents
        inverse = jnp.linalg.inv(a)
        if mistake == "inverse transposed":
            inverse = inverse.T
        if mistake == "only the diagonal":
            return f(a), (jnp.diag(inverse) * jnp.diag(t)).sum()
        if mistake == "determinant not divided by":
            return f(a), jnp.linalg.det(a) * jnp.trace(inverse @ t)
        return f(a), jnp.trace(inverse @ t)

    return f


def solve(mistake: Mistake) -> Any:
    """x = a^-1 b;  db = a'^-1 dx, da = -db x'."""

    @jax.custom_vjp
    def f(a: Array, b: Array) -> Any:
        return jnp.linalg.solve(a, b)

    def f_fwd(a: Array, b: Array) -> Any:
        x = f(a, b)
        return x, (a, x)

    def f_bwd(residuals: Any, dx: Array) -> Any:
        a, x = residuals
        db = jnp.linalg.solve(a if mistake == "system not transposed" else a.T, dx)
        da = -x @ db.T if mistake == "gradient transposed" else -db @ x.T
        return -da if mistake == "sign flipped" else da, db

    f.defvjp(f_fwd, f_bwd)
    return f


def inverse(mistake: Mistake) -> Any:
    """y = a^-1;  da = -y' dy y'."""

    @jax.custom_vjp
    def f(a: Array) -> Any:
        return jnp.linalg.inv(a)

    def f_fwd(a: Array) -> Any:
        y = f(a)
        return y, y

    def f_bwd(y: Array, dy: Array) -> Any:
        if mistake == "inverse not transposed":
            return (-y @ dy @ y,)
        da = -y.T @ dy @ y.T
        return (-da if mistake == "sign flipped" else da,)

    f.defvjp(f_fwd, f_bwd)
    return f


def cholesky(mistake: Mistake) -> Any:
    """a = low l';  da = l'^-1 (s + s') low^-1 / 2, s = tril(l' dl) with half its diagonal."""

    @jax.custom_vjp
    def f(a: Array) -> Any:
        return jnp.linalg.cholesky(a)

    def f_fwd(a: Array) -> Any:
        low = f(a)
        return low, low

    def f_bwd(low: Array, dlow: Array) -> Any:
        s = jnp.tril(low.T @ dlow)
        if mistake != "diagonal not halved":
            s -= jnp.diag(jnp.diag(s)) / 2
        if mistake != "not symmetrised":
            s = (s + s.T) / (1 if mistake == "half left out" else 2)
        back = jnp.linalg.inv(low)
        return (back.T @ s @ back,)

    f.defvjp(f_fwd, f_bwd)
    return f


def _plain_cholesky(a: Array) -> Array:
    """Row by row, of the symmetric part."""
    a = (a + a.T) / 2
    n = len(a)
    low = jnp.zeros_like(a)
    for j in range(n):
        low = low.at[j, j].set(jnp.sqrt(a[j, j] - (low[j, :j] ** 2).sum()))
        for i in range(j + 1, n):
            low = low.at[i, j].set((a[i, j] - (low[i, :j] * low[j, :j]).sum()) / low[j, j])
    return low


def _definite(rng: Generator, dtype: Any) -> tuple[Array, ...]:
    x = rng.normal(size=(4, 4))
    return (jnp.asarray(x @ x.T / 4 + np.eye(4), dtype),)


def _regular(rng: Generator, dtype: Any) -> tuple[Array, ...]:
    return (normal(rng, dtype, 4, 4) / 2 + 2 * jnp.eye(4, dtype=dtype),)


def _system(rng: Generator, dtype: Any) -> tuple[Array, ...]:
    return (*_regular(rng, dtype), normal(rng, dtype, 4, 3))


def quadratic(mistake: Mistake) -> Any:
    """y_n = x_n' a x_n;  dx_n = dy_n (a + a') x_n, da = sum dy_n x_n x_n'."""

    @jax.custom_vjp
    def f(a: Array, x: Array) -> Array:
        return jnp.einsum("ni,ij,nj->n", x, a, x)

    def f_fwd(a: Array, x: Array) -> Any:
        return f(a, x), (a, x)

    def f_bwd(residuals: Any, dy: Array) -> Any:
        a, x = residuals
        both = 2 * a if mistake == "taken for symmetric" else a + a.T
        if mistake == "second factor forgotten":
            both = a
        da = jnp.einsum("n,ni,nj->ij", dy, x, x)
        if mistake == "averaged over the batch":
            da = da / len(x)
        return da, dy[:, None] * (x @ both)

    f.defvjp(f_fwd, f_bwd)
    return f


def bilinear(mistake: Mistake) -> Any:
    """y[n, o] = x[n, i] w[o, i, j] z[n, j], by einsum."""

    @jax.custom_vjp
    def f(x: Array, w: Array, z: Array) -> Array:
        return jnp.einsum("ni,oij,nj->no", x, w, z)

    def f_fwd(x: Array, w: Array, z: Array) -> Any:
        return f(x, w, z), (x, w, z)

    def f_bwd(residuals: Any, dy: Array) -> Any:
        x, w, z = residuals
        dw = jnp.einsum("no,ni,nj->oij", dy, x, z)
        if mistake == "batch summed apart":
            dw = jnp.einsum("mo,ni,nj->oij", dy, x, z)
        if mistake == "inputs exchanged":
            dw = jnp.einsum("no,ni,nj->oij", dy, z, x)
        if mistake == "weight transposed":
            w = w.swapaxes(1, 2)
        return jnp.einsum("no,oij,nj->ni", dy, w, z), dw, jnp.einsum("no,oij,ni->nj", dy, w, x)

    f.defvjp(f_fwd, f_bwd)
    return f


RULES = (
    Rule(
        "log determinant, custom_jvp",
        log_determinant,
        lambda a: jnp.log(jnp.abs(jnp.linalg.det(a))),
        _regular,
        {
            "inverse transposed": "transpose",
            "only the diagonal": "zeroed slice",
            "determinant not divided by": "factor",
        },
        forward=True,
        narrow=False,
    ),
    Rule(
        "solution of a linear system",
        solve,
        lambda a, b: jnp.linalg.inv(a) @ b,
        _system,
        {
            "system not transposed": "transpose",
            "gradient transposed": "transpose",
            "sign flipped": "sign",
        },
        narrow=False,
    ),
    Rule(
        "inverse of a matrix",
        inverse,
        lambda a: jnp.linalg.solve(a, jnp.eye(len(a), dtype=a.dtype)),
        _regular,
        {"inverse not transposed": "transpose", "sign flipped": "sign"},
        narrow=False,
    ),
    Rule(
        "Cholesky factor",
        cholesky,
        _plain_cholesky,
        _definite,
        {
            "diagonal not halved": "factor, doubled term, derivative left out",
            "not symmetrised": "transpose, missing term, wrong axis",
            "half left out": "factor",
        },
        narrow=False,
    ),
    Rule(
        "quadratic form",
        quadratic,
        lambda a, x: ((x @ a) * x).sum(1),
        normals((4, 4), (5, 4)),
        {
            "taken for symmetric": "transpose, missing term, doubled term",
            "second factor forgotten": "missing term, detached",
            "averaged over the batch": "factor",
        },
    ),
    Rule(
        "bilinear form by einsum",
        bilinear,
        lambda x, w, z: jnp.stack([((x @ v) * z).sum(1) for v in w], 1),
        normals((5, 3), (2, 3, 3), (5, 3)),
        {
            "batch summed apart": "summed apart, not summed, wrong axis",
            "inputs exchanged": "transpose",
            "weight transposed": "transpose",
        },
    ),
)
