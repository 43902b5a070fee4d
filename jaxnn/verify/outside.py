"""The door of every verification: it is entered from outside of JAX's transformations."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp

from jaxnn.verify.constants import by_width

Given = ParamSpec("Given")
Result = TypeVar("Result")


def outside(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """A function that looks at numbers and compiles, whatever it is called inside of.

    Called inside `jax.jit` and the like it refuses, in words; `jax.disable_jit` is lifted, and so
    is the search for NaN of `jax.debug_nans`: what is not finite is evidence here.

    Raises:
        TypeError: an argument is traced, or everything is.
    """

    @functools.wraps(function)
    def entered(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        if _is_traced((args, kwargs)):
            raise TypeError(
                f"verify.{function.__name__} is called inside jax.jit, or inside jax.vmap, grad or "
                "scan, where arrays have no values to look at: call it outside of the function "
                "that is transformed, on plain arrays"
            )
        by_width()
        with jax.disable_jit(False), jax.debug_nans(False), jax.debug_infs(False):
            return function(*args, **kwargs)

    return entered


def _is_traced(arguments: Any) -> bool:
    """Whether an array among the arguments is traced, or any array made here would be."""
    leaves = [*jax.tree.leaves(arguments), jnp.zeros(())]
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
