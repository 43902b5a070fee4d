"""What JAX refuses of a function with derivative rules: said of the rule, and what to do."""

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path

import jax

# What JAX's complaints begin with or hold, and what a rule must be instead.
_FORMS = {
    "Custom VJP bwd rule": (
        "the backward rule of {} must return a tuple of one cotangent per input, each of its "
        "input's shape and dtype (None where there is none)"
    ),
    "Custom VJP fwd rule": (
        "the forward rule of {} must return (output, residuals), the output like the function's own"
    ),
    "Custom JVP rule": (
        "the forward-mode rule of {} must return (output, tangents), alike in shape and dtype"
    ),
    "No VJP defined": "{} has no rule yet: give it one with defvjp(forward, backward)",
    "No JVP defined": "{} has no rule yet: give it one with defjvp(rule)",
    "is not a valid JAX type": (
        "the forward rule of {} must save arrays alone among its residuals: what is no array is "
        "for a setting (nondiff_argnums), or for the function around the rule to hold"
    ),
    "could not be resolved to positional-only": (
        "{} takes an argument by name alone, which no function with a rule can: let it be given by "
        "position too (no * before it)"
    ),
}


def refuse_form(name: str, error: Exception) -> None:
    """Say of a rule that JAX refuses what it must be.

    Raises:
        TypeError: JAX refuses its form.
    """
    first = " ".join(str(error).split())
    for start, what in _FORMS.items():
        if start in first:
            raise TypeError(f"{what.format(name)}. JAX says: {first:.400}") from error


@contextlib.contextmanager
def in_words(name: str) -> Iterator[None]:
    """What JAX raises when it traces a function for its outputs, in words.

    Raises:
        TypeError: JAX refuses the form of a rule in it, or cannot trace it.
    """
    try:
        yield
    except jax.errors.JAXTypeError as error:
        raise TypeError(
            f"{name} looks at the values of its arrays (NumPy calls, `if` or `float` on an array); "
            "it must be traceable by jax.jit: use jax.numpy, jnp.where and lax.cond. JAX says: "
            f"{str(error).splitlines()[0]}"
        ) from error
    except Exception as error:
        refuse_form(name, error)
        raise


def raised_by_jax(error: Exception) -> bool:
    """Whether an exception comes from inside JAX, and not from the function that it runs."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Path(jax.__file__).parent in Path(last.filename).parents
