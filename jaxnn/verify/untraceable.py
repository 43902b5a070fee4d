"""Functions that cannot be traced: a gradient in NumPy is run as it is, a loss is refused.

NumPy cannot be called on what JAX traces, and need not be: a gradient has only to return numbers.
A loss must be differentiated, and so traced.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.verify.problem import Problem
from jaxnn.verify.trace import NotTraceable, Trace, traced_as


def on_numbers(problem: Problem, floats: list[Any], rest: list[Any]) -> Any:
    """The hand-written gradient, called as it is: not traced, in NumPy where that was given.

    In the dtypes of `floats` and `rest`; what it returns becomes JAX's arrays.
    """
    return jax.tree.map(jnp.asarray, problem.manual_grad(*as_given(problem, floats, rest)))


def as_it_is(problem: Problem, error: Exception) -> Problem:
    """The problem with its hand-written gradient to be called on numbers, as tracing it raised.

    Raises:
        Exception: it cannot be called on numbers either.
    """
    try:
        on_numbers(problem, problem.floats, problem.rest)
    except Exception as own:
        if isinstance(error, NotTraceable):
            raise
        # What tracing raised is no fault of tracing; it is said of shapes, not of numbers.
        raise error from own
    return problem._replace(as_it_is=True)


def traced_loss(problem: Problem) -> Trace:
    """The trace of the loss, in the dtypes given.

    Raises:
        NotTraceable: it cannot be traced, but called: it must be written in something else.
        Exception: what the loss raises in either way.
    """
    try:
        return traced_as(problem.loss, (problem.floats, problem.rest))
    except Exception as error:
        try:
            problem.loss(*as_given(problem, problem.floats, problem.rest))
        except Exception:  # then what tracing raised is the loss's own
            raise error from error.__cause__
        first = (str(error.__cause__ or error).splitlines() or [""])[0]
        raise NotTraceable(
            "the loss runs on numbers but cannot be traced, as it must be to be differentiated "
            "(NumPy calls, `if` or `float` on an array, writing into one): write it with "
            f"jax.numpy, jnp.where and lax.cond. JAX says: {first}"
        ) from error


def as_given(problem: Problem, floats: list[Any], rest: list[Any]) -> list[list[Any]]:
    """The arrays in NumPy where they were given so."""
    numpy = iter(problem.in_numpy)
    return [[np.array(x) if next(numpy) else x for x in leaves] for leaves in (floats, rest)]
