"""Make a loss of any function: its outputs times random cotangents, summed.

What JAX refuses of a function with derivative rules is said of the rule, and what to do.
"""

import contextlib
import functools
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr

from jaxnn.verify.arguments import is_array
from jaxnn.verify.draws import cotangent_rng, draw_cotangent
from jaxnn.verify.findings import first_line
from jaxnn.verify.problem import is_floating

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
    """Yield what JAX raises when it traces a function for its outputs, in words.

    Raises:
        TypeError: JAX refuses the form of a rule in it, or cannot trace it.
    """
    try:
        yield
    except jax.errors.JAXTypeError as error:
        raise TypeError(
            f"{name} looks at the values of its arrays (NumPy calls, `if` or `float` on an array); "
            "it must be traceable by jax.jit: use jax.numpy, jnp.where and lax.cond. JAX says: "
            f"{first_line(error)}"
        ) from error
    except Exception as error:
        refuse_form(name, error)
        raise


def raised_by_jax(error: Exception) -> bool:
    """Tell whether an exception comes from inside JAX, and not from the function that it runs."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Path(jax.__file__).parent in Path(last.filename).parents


class Weighted:
    """A function, called with inputs like some that are given.

    Attributes:
        f: the function.
        name: what it is called.
        settings: what it is handed by name.
        leaves: of the inputs, with their structure `tree`.
        arrays: which of these are arrays.
    """

    def __init__(self, f: Callable[..., Any], inputs: tuple[Any, ...], settings: dict[str, Any]):
        """Keep the function and its call."""
        self.f, self.settings = f, settings
        self.name = getattr(f, "__name__", type(f).__name__)
        self.leaves, self.tree = jax.tree.flatten(inputs)
        self.arrays = [i for i, x in enumerate(self.leaves) if is_array(x)]

    @functools.cached_property
    def outputs(self) -> Any:
        """What the function returns, in shapes and dtypes; it is traced for that."""
        with in_words(self.name):
            return jax.eval_shape(self.of_arrays, [self.leaves[i] for i in self.arrays])

    def of_arrays(self, arrays: list[Any]) -> Any:
        """Return the outputs, of the arrays among the inputs alone."""
        leaves = list(self.leaves)
        for i, x in zip(self.arrays, arrays, strict=True):
            leaves[i] = x
        return self.f(*jax.tree.unflatten(self.tree, leaves), **self.settings)

    def trace(self) -> ClosedJaxpr:
        """Return the traced function."""
        with in_words(self.name):
            return jax.make_jaxpr(self.of_arrays)([self.leaves[i] for i in self.arrays])

    def check_outputs(self, name: str) -> None:
        """Refuse a function without a floating output.

        Raises:
            ValueError: it has none.
        """
        if not self.floating():
            kinds = [f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(self.outputs)]
            complex_ = any(kind.startswith("complex") for kind in kinds)
            raise ValueError(
                f"{name} returns {', '.join(kinds) or 'nothing'}; it must return at least one "
                "floating array, with whose cotangent a rule is verified"
                + (": of complex ones return the real and the imaginary part" * complex_)
            )

    def floating(self) -> list[int]:
        """Return which of the outputs' leaves are floating."""
        return [i for i, x in enumerate(jax.tree.leaves(self.outputs)) if is_floating(x)]

    def cotangents(self, seed: int) -> list[Any]:
        """Draw random cotangents of the floating outputs.

        Large, because a rule must be linear in them.
        """
        rng, outputs = cotangent_rng(seed), jax.tree.leaves(self.outputs)
        return [draw_cotangent(rng, outputs[i], -10) for i in self.floating()]

    def loss(
        self, inputs: Any, cotangents: list[Any], settings: Any, only: int | None = None
    ) -> Any:
        """Return the outputs times their cotangents, summed: of all outputs, or of one."""
        outputs = jax.tree.leaves(self.f(*inputs, **vars(settings)))
        return self.summed([outputs[i] for i in self.floating()], cotangents, only)

    @staticmethod
    def summed(outputs: list[Any], douts: list[Any], only: int | None = None) -> Any:
        """Return outputs times cotangents, summed."""
        terms = [(o * d).sum() for o, d in zip(outputs, douts, strict=True)]
        return sum(terms) if only is None else terms[only]

    def of_floating(self, inputs: Any, settings: Any) -> tuple[Callable[..., Any], list[Any]]:
        """Return the floating outputs as a function of the floating inputs, and these."""
        leaves, tree = jax.tree.flatten(inputs)
        chosen = [i for i, x in enumerate(leaves) if is_array_or_traced(x) and is_floating(x)]

        def outputs(active: list[Any]) -> list[Any]:
            given = list(leaves)
            for i, x in zip(chosen, active, strict=True):
                given[i] = x
            found = jax.tree.leaves(self.f(*jax.tree.unflatten(tree, given), **vars(settings)))
            return [found[i] for i in self.floating()]

        return outputs, [leaves[i] for i in chosen]


def check_same_outputs(ours: Any, theirs: Any, name: str) -> None:
    """Refuse a reference that returns something else than the function does.

    Raises:
        ValueError: the outputs have another structure, or other shapes.
    """
    structures: list[Any] = [jax.tree.structure(out) for out in (ours, theirs)]
    shapes = [[jnp.shape(x) for x in jax.tree.leaves(out)] for out in (ours, theirs)]
    if structures[0] == structures[1] and shapes[0] == shapes[1]:
        return
    got, wanted = (
        jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", out)
        for out in (theirs, ours)
    )
    raise ValueError(
        f"the reference returns {got}, {name} returns {wanted}; both must return the same "
        "containers of arrays of the same shapes"
    )


def is_array_or_traced(leaf: Any) -> bool:
    """Tell whether a leaf is an array, traced or not."""
    return isinstance(leaf, jax.core.Tracer) or is_array(leaf)
