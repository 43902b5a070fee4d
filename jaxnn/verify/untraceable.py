"""Functions that cannot be traced: a gradient in NumPy is run as it is, a loss is refused.

NumPy cannot be called on what JAX traces, and need not be: a gradient has only to return numbers.
A loss must be differentiated, and so traced.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.verify.problem import Problem

_LOOKS_AT_VALUES = (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError)


def on_numbers(problem: Problem, floats: list[Any], rest: list[Any]) -> Any:
    """The hand-written gradient, called as it is: not traced, in NumPy where that was given.

    In the dtypes of `floats` and `rest`; what it returns becomes JAX's arrays.
    """
    return jax.tree.map(jnp.asarray, problem.manual_grad(*_as_given(problem, floats, rest)))


def as_it_is(problem: Problem, error: Exception) -> Problem:
    """The problem with its hand-written gradient to be called on numbers, as tracing it raised.

    Raises:
        Exception: it cannot be called on numbers either.
    """
    try:
        on_numbers(problem, problem.floats, problem.rest)
    except Exception as own:
        if isinstance(error.__cause__, _LOOKS_AT_VALUES):
            raise
        # What tracing raised is no fault of tracing; it is said of shapes, not of numbers.
        raise error from own
    return problem._replace(as_it_is=True)


def refuse_numpy(problem: Problem, error: Exception) -> None:
    """Say of a loss that cannot be traced, but called, what it must be written in.

    Raises:
        TypeError: it can be called on numbers.
    """
    try:
        problem.loss(*_as_given(problem, problem.floats, problem.rest))
    except Exception:  # then what tracing raised is the loss's own
        return
    first = (str(error).splitlines() or [""])[0]
    raise TypeError(
        "the loss runs on numbers but cannot be traced, as it must be to be differentiated (NumPy "
        "calls, `if` or `float` on an array, writing into one): write it with jax.numpy, jnp.where "
        f"and lax.cond. JAX says: {first}"
    ) from error


def _as_given(problem: Problem, floats: list[Any], rest: list[Any]) -> list[list[Any]]:
    """The arrays in NumPy where they were given so."""
    numpy = iter(problem.in_numpy)
    return [[np.array(x) if next(numpy) else x for x in leaves] for leaves in (floats, rest)]
