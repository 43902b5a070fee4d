"""Traces: what is inside a function, a loop or a branch counts as much as what is around it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxnn.verify.trace import draws_of, primitives_of, rounded_to, traced_as

X = jnp.arange(3.0)


def jitted(f):
    return jax.jit(f)


def scanned(f):
    return lambda x: lax.scan(lambda carry, _: (f(carry), None), x, None, 2)[0]


def branching(f):
    return lambda x: lax.cond(x.sum() > 0, f, lambda x: x, x)


INSIDE = pytest.mark.parametrize("inside", [jitted, scanned, branching])


def held(values):
    array = np.asarray(values)
    return lambda x: x + array


@INSIDE
def test_functions_that_hold_other_numbers_have_other_traces(inside):
    one, same, other = (
        traced_as(inside(held(values)), (X,))[1:]
        for values in ([1.0, 2, 3], [1.0, 2, 3], [1.0, 2, 4])
    )
    assert one == same
    assert one != other


@INSIDE
def test_what_is_inside_is_found(inside):
    def f(x):
        return lax.stop_gradient(jnp.sin(x)) + jax.random.normal(jax.random.key(0), x.shape)

    closed = jax.make_jaxpr(inside(f))(X)
    assert {"stop_gradient", "sin"} <= primitives_of(closed)
    assert draws_of(closed) == draws_of(jax.make_jaxpr(f)(X)) != []
    narrow = jax.make_jaxpr(inside(lambda x: x.astype(jnp.bfloat16).astype(x.dtype)))(X)
    assert rounded_to(narrow) == "bfloat16"
