"""What autodiff cannot look into, asked beside a plain reference: kernels, a callback."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import pallas as pl

from experiments.rules.rule import Mistake, Rule, normals


def product(mistake: Mistake) -> Any:
    """a b by a Pallas kernel, and so are da = dy b' and db = a' dy."""

    def kernel(a: Any, b: Any, out: Any) -> None:
        out[...] = jnp.dot(a[...], b[...], preferred_element_type=jnp.float32).astype(out.dtype)

    def multiply(a: Array, b: Array) -> Array:
        shape = jax.ShapeDtypeStruct((a.shape[0], b.shape[1]), a.dtype)
        run: Any = pl.pallas_call(kernel, out_shape=shape, interpret=True)
        out: Array = run(a, b)
        return out

    @jax.custom_vjp
    def f(a: Array, b: Array) -> Array:
        return multiply(a, b)

    def f_fwd(a: Array, b: Array) -> Any:
        return f(a, b), (a, b)

    def f_bwd(residuals: Any, dy: Array) -> Any:
        a, b = residuals
        da = multiply(dy, b if mistake == "weight not transposed" else b.T)
        if mistake == "last row left out":
            return da.at[-1].set(0), multiply(a.T, dy)
        db = multiply(a.T, dy)
        return da, db / len(a) if mistake == "averaged over the rows" else db

    f.defvjp(f_fwd, f_bwd)
    return f


def softmax(mistake: Mistake) -> Any:
    """softmax of each row by a Pallas kernel, and its backward by another."""

    def forward_kernel(x: Any, out: Any) -> None:
        z = x[...].astype(jnp.float32)
        e = jnp.exp(z - z.max(1, keepdims=True))
        out[...] = (e / e.sum(1, keepdims=True)).astype(out.dtype)

    def backward_kernel(p: Any, dp: Any, out: Any) -> None:
        y, d = p[...].astype(jnp.float32), dp[...].astype(jnp.float32)
        axis = 0 if mistake == "sum over the other axis" else 1
        total = (y * d).sum(axis, keepdims=True)
        if mistake == "only the diagonal":
            total = y * d
        out[...] = (y * d if mistake == "sum forgotten" else y * (d - total)).astype(out.dtype)

    def run(kernel: Any, *arrays: Array) -> Array:
        shape = jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype)
        call: Any = pl.pallas_call(kernel, out_shape=shape, interpret=True)
        out: Array = call(*arrays)
        return out

    @jax.custom_vjp
    def f(x: Array) -> Array:
        return run(forward_kernel, x)

    def f_fwd(x: Array) -> Any:
        p = f(x)
        return p, p

    def f_bwd(p: Array, dp: Array) -> Any:
        return (run(backward_kernel, p, dp),)

    f.defvjp(f_fwd, f_bwd)
    return f


def called_back(mistake: Mistake) -> Any:
    """sin(x) / x by NumPy outside of JAX;  dx = dy (cos(x) - y) / x."""

    def outside(function: Any, *arrays: Array) -> Array:
        shape = jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype)
        out: Array = jax.pure_callback(function, shape, *arrays, vmap_method="legacy_vectorized")
        return out

    @jax.custom_vjp
    def f(x: Array) -> Array:
        return outside(lambda x: np.asarray(np.sin(x) / x, x.dtype), x)

    def f_fwd(x: Array) -> Any:
        y = f(x)
        return y, (x, y)

    def f_bwd(residuals: Any, dy: Array) -> Any:
        x, y = residuals
        if mistake == "quotient's second term forgotten":
            return (dy * jnp.cos(x) / x,)
        top = jnp.cos(x) - y
        if mistake == "sign flipped":
            top = -top
        return (dy * (top if mistake == "not divided by x" else top / x),)

    f.defvjp(f_fwd, f_bwd)
    return f


RULES = (
    Rule(
        "matrix product by a Pallas kernel",
        product,
        lambda a, b: a @ b,
        normals((5, 3), (3, 3)),
        {
            "weight not transposed": "transpose",
            "last row left out": "zeroed slice, index",
            "averaged over the rows": "factor",
        },
        door="against",
        exact=1e-5,
    ),
    Rule(
        "softmax by Pallas kernels",
        softmax,
        jax.nn.softmax,
        normals((5, 7)),
        {
            "sum over the other axis": "wrong axis, not summed",
            "only the diagonal": "missing term",
            "sum forgotten": "missing term, detached",
        },
        door="against",
        exact=1e-5,
    ),
    Rule(
        "function called back to NumPy",
        called_back,
        lambda x: jnp.sin(x) / x,
        normals((5, 3)),
        {
            "quotient's second term forgotten": "missing term, detached",
            "sign flipped": "sign",
            "not divided by x": "derivative left out, factor",
        },
        door="against",
        narrow=False,
    ),
)
