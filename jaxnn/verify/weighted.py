"""A function of any inputs and outputs as a loss: its outputs times random cotangents, summed."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from jaxnn.verify.arguments import is_array
from jaxnn.verify.derivative import Way, derivative
from jaxnn.verify.problem import is_floating


class Weighted:
    """A function, called with inputs like some that are given.

    Attributes:
        f: the function.
        settings: what it is handed by name.
        leaves: of the inputs, with their structure `tree`.
        arrays: which of these are arrays.
    """

    def __init__(self, f: Callable[..., Any], inputs: tuple[Any, ...], settings: dict[str, Any]):
        """Keep the function and its call."""
        self.f, self.settings = f, settings
        self.leaves, self.tree = jax.tree.flatten(inputs)
        self.arrays = [i for i, x in enumerate(self.leaves) if is_array(x)]

    @functools.cached_property
    def outputs(self) -> Any:
        """What the function returns, in shapes and dtypes; it is traced for that."""
        return jax.eval_shape(self.of_arrays, [self.leaves[i] for i in self.arrays])

    def of_arrays(self, arrays: list[Any]) -> Any:
        """The outputs, of the arrays among the inputs alone."""
        leaves = list(self.leaves)
        for i, x in zip(self.arrays, arrays, strict=True):
            leaves[i] = x
        return self.f(*jax.tree.unflatten(self.tree, leaves), **self.settings)

    def trace(self) -> ClosedJaxpr:
        """The traced function."""
        return jax.make_jaxpr(self.of_arrays)([self.leaves[i] for i in self.arrays])

    def check_outputs(self, name: str) -> None:
        """Refuse a function without a floating output.

        Raises:
            ValueError: it has none.
        """
        if not self.floating():
            got = ", ".join(str(x) for x in jax.tree.leaves(self.outputs)) or "nothing"
            raise ValueError(
                f"{name} returns {got}; it must return at least one floating array, with whose "
                "cotangent a rule is verified"
            )

    def floating(self) -> list[int]:
        """Which of the outputs' leaves are floating."""
        return [i for i, x in enumerate(jax.tree.leaves(self.outputs)) if is_floating(x)]

    def cotangents(self, seed: int) -> list[Any]:
        """Random cotangents of the floating outputs.

        Random, because ones hide what sums to zero, as in softmax; large, because a rule must be
        linear in them.
        """
        rng = np.random.default_rng(seed)
        outputs = jax.tree.leaves(self.outputs)
        return [
            jax.device_put(
                np.asarray(-10 * rng.normal(size=outputs[i].shape)).astype(outputs[i].dtype)
            )
            for i in self.floating()
        ]

    def loss(
        self, inputs: Any, cotangents: list[Any], settings: Any, only: int | None = None
    ) -> Any:
        """The outputs times their cotangents, summed: of all outputs, or of one."""
        outputs = jax.tree.leaves(self.f(*inputs, **vars(settings)))
        return self.summed([outputs[i] for i in self.floating()], cotangents, only)

    @staticmethod
    def summed(outputs: list[Any], douts: list[Any], only: int | None = None) -> Any:
        """Outputs times cotangents, summed."""
        terms = [(o * d).sum() for o, d in zip(outputs, douts, strict=True)]
        return sum(terms) if only is None else terms[only]

    def of_floating(self, inputs: Any, settings: Any) -> tuple[Callable[..., Any], list[Any]]:
        """The floating outputs as a function of the floating inputs, and these."""
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
    """Whether a leaf is an array, traced or not."""
    return isinstance(leaf, jax.core.Tracer) or is_array(leaf)


def differentiated(
    weighted: Weighted,
    inputs: Any,
    douts: list[Any],
    settings: Any,
    only: int | None = None,
    name: str = "f",
) -> Any:
    """What JAX gives for a function's derivative: its rules run. None for what is not floating.

    Raises:
        TypeError: a rule has not the form that JAX asks for.
        ValueError: there is no derivative in reverse or forward mode.
    """
    outputs, active = weighted.of_floating(inputs, settings)

    def loss(active: list[Any], douts: list[Any]) -> Any:
        return weighted.summed(outputs(active), douts, only)

    way: Way = "reverse mode"
    try:
        _, found = derivative(loss, way)(active, douts)
    except Exception as error:  # each primitive without a rule has an error of its own
        _refuse_form(name, error)
        way, said = "forward mode", " ".join(str(error).split())
        try:
            _, found = derivative(loss, way)(active, douts)
        except Exception as second:
            raise ValueError(
                f"{name} has no derivative of its own, in reverse mode or in forward mode; give it "
                "a rule with jax.custom_vjp, or compare it with a plain function by "
                f"verify.against. JAX says: {said:.300}"
            ) from second
    if way == "forward mode":
        ends = np.cumsum([x.size for x in active])[:-1]
        parts = jnp.split(found, ends)
        found = [p.reshape(x.shape).astype(x.dtype) for p, x in zip(parts, active, strict=True)]
    leaves, tree = jax.tree.flatten(inputs)
    gradients = iter(found)
    floating = [is_array_or_traced(x) and is_floating(x) for x in leaves]
    return jax.tree.unflatten(tree, [next(gradients) if f else None for f in floating])


def _refuse_form(name: str, error: Exception) -> None:
    """Say of a rule that JAX refuses what it must be.

    Raises:
        TypeError: JAX refuses its form.
    """
    first = " ".join(str(error).split())
    for start, what in _FORMS.items():
        if start in first:
            raise TypeError(f"{what.format(name)}. JAX says: {first:.400}") from error


# What JAX's complaints of a rule's form begin with, and what to do.
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
}
