"""A backward that is given beside a function: what it is called with, and what it must return."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnn.verify.problem import Problem, is_floating
from jaxnn.verify.returned import Returned, structure
from jaxnn.verify.weighted import is_array_or_traced


def cotangents(
    backward: Callable[..., Any],
    inputs: tuple[Any, ...],
    outputs: Any,
    douts: list[Any],
    settings: dict[str, Any],
) -> tuple[Any, ...]:
    """What a backward returns for cotangents of the floating outputs; zeros where it is None.

    Raises:
        TypeError: it returns another number of them.
    """
    leaves, tree = jax.tree.flatten(outputs)
    given = iter(douts)
    dout = [next(given) if is_floating(x) else jnp.zeros(x.shape, x.dtype) for x in leaves]
    found = backward(*inputs, dout=jax.tree.unflatten(tree, dout), **settings)
    several = type(found) in (tuple, list)
    if not several or len(found) != len(inputs):
        what = f"{len(found)} cotangents" if several else f"a {type(found).__name__}"
        raise TypeError(
            f"backward returns {what}; it must return a tuple of one cotangent per input, and f "
            f"takes {len(inputs)}"
        )
    return tuple(
        jax.tree.map(_zeros, x) if dx is None else dx for x, dx in zip(inputs, found, strict=True)
    )


def check_cotangents(out: Returned, problem: Problem) -> None:
    """Refuse cotangents that are not one for every leaf of an input.

    Raises:
        ValueError: one is missing, or belongs to none.
    """
    dtypes = {path: x.dtype for path, x in zip(problem.paths, problem.floats, strict=True)}
    problems, faults = structure(out, problem.expected, dtypes)
    missing = [m for messages in faults.values() for m in messages if m.startswith("missing")]
    if problems or missing:
        raise ValueError(
            f"{(*problems, *missing)[0]}; backward must return a tuple of one cotangent per "
            f"input, with the containers of that input: {', '.join(problem.paths)}"
        )


def _zeros(x: Any) -> Any:
    """What no cotangent stands for; None for what has none."""
    return jnp.zeros_like(x) if is_array_or_traced(x) and is_floating(x) else None
