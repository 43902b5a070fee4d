"""Evaluate an implementation and its reference at one point, and the reference in float64."""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.verify.cotangents import check_cotangents, cotangents_by_backward, cotangents_by_rule
from jaxnn.verify.derivative import derivative, split, ways_of
from jaxnn.verify.nearby import DRAWS, moved
from jaxnn.verify.oracle import rules_in, stripped
from jaxnn.verify.problem import bind, is_floating, to_float64
from jaxnn.verify.programs import Program, compiled
from jaxnn.verify.trace import EPSILON, epsilon_to
from jaxnn.verify.triples import Triple
from jaxnn.verify.values import as_given, as_it_is, epsilon_of, largest, on_numbers
from jaxnn.verify.weighted import Weighted, check_same_outputs

Compute = Callable[[list[Any], list[Any]], dict[str, Any]]


class SideBySide:
    """Two functions of the same inputs, with what is computed of them at any point.

    Attributes:
        problem: the reference's outputs times cotangents as a loss, beside it f's derivative.
        floats: the floating inputs.
        rest: the other arrays, and the cotangents.
        narrow: the spacing at 1 that the reference is rounded to in float64, where something
            inside is narrower; else 0.
        width: the spacing at 1 of what f is rounded to; 0 for float64.
        limits: what cannot be compared, in words.
        rules: the derivative rules in f.
    """

    def __init__(
        self,
        f: Callable[..., Any],
        reference: Callable[..., Any],
        inputs: tuple[Any, ...],
        settings: dict[str, Any],
        names: tuple[str, ...],
        backward: Callable[..., Any] | None,
        seed: int,
    ):
        """Trace and compile what can be.

        Raises:
            ValueError: they return different things; or there is no floating input or output.
        """
        self.name = getattr(f, "__name__", type(f).__name__)
        self._of_f = Weighted(f, inputs, settings)
        self._of_reference = Weighted(reference, inputs, settings)
        self._of_reference.check_outputs(getattr(reference, "__name__", "the reference"))
        douts = self._of_reference.cotangents(seed)
        self._backward = backward
        by_hand = self._by_backward if backward else self._by_rule
        args = douts, SimpleNamespace(**settings)
        self.problem = bind(self._of_reference.loss, by_hand, inputs, args, {}, names=names)
        self.floats, self.rest = self.problem.floats, self.problem.rest
        self.limits: list[str] = []
        self.rules: tuple[str, ...] = ()
        self.width = 0.0
        self._values = self._values_of_f()
        self._gradient = self._gradient_of_f()
        self._way, said = ways_of(stripped(self.problem.loss), self.floats, self.rest)
        if self._way == "finite differences":
            raise ValueError(
                f"the reference has no derivative in reverse or forward mode ({said:.200}); write "
                "it in plain JAX"
            )
        self._low = self._compiled_reference(self.floats, self.rest)
        with jax.enable_x64(True):
            self._high = self._compiled_reference(to_float64(self.floats), to_float64(self.rest))
        self.narrow = epsilon_to(self._high.rounded_to)
        if self.double and self.width == EPSILON["float32"]:
            self.limits.append(
                f"given float64, {self.name} computes in float32 inside: errors smaller than its "
                "rounding would not show"
            )

    @property
    def double(self) -> bool:
        """Whether float64 is given."""
        return all(x.dtype == np.float64 for x in self.floats)

    def epsilon_of(self, dtype: str) -> float:
        """Return the spacing at 1 that an array of f's is held to: its dtype's.

        Given float64, a kernel may compute in float32 all the same, and is held to that.
        """
        narrower = self.width == EPSILON["float32"] and dtype == "float64"
        return EPSILON["float32"] if narrower else epsilon_of(dtype)

    def at(self, floats: list[Any], rest: list[Any]) -> dict[str, Triple]:
        """Return every output, then every cotangent of a floating input, by its name."""
        got = {**self._values(floats, rest), **self._gradient(floats, rest)}
        low = self._reference(self._low, floats, rest)
        with jax.enable_x64(True):
            high = self._reference(self._high, to_float64(floats), to_float64(rest))
        return {
            name: Triple(
                np.asarray(x, np.float64),
                np.asarray(low[name], np.float64),
                np.asarray(high[name], np.float64),
                str(x.dtype),
                is_floating(x),
            )
            for name, x in got.items()
        }

    def loss(self) -> float:
        """Return the reference's outputs times the cotangents, in float64."""
        with jax.enable_x64(True):
            arrays = to_float64(self.floats), to_float64(self.rest)
            return float(self._high.run(*arrays)[1])

    def noise(self) -> dict[str, float]:
        """Return how far rounding moves each array of the reference, in the dtypes given.

        Every input is moved in its last place: the largest change, as the median of several draws.
        """
        rng = np.random.default_rng(0)
        here = self._reference(self._low, self.floats, self.rest)
        epsilon = max(epsilon_of(x.dtype) for x in self.floats)
        draws = []
        for k in range(DRAWS):
            near = moved(self.floats, (-1) ** k * epsilon, rng)
            there = self._reference(self._low, near, self.rest)
            draws.append([largest(np.asarray(there[n]) - np.asarray(here[n])) for n in here])
        return dict(zip(here, np.median(draws, axis=0).tolist(), strict=True))

    def differs_again(self) -> str:
        """Say what is not the same, to the bit, when f is run twice; empty where all is."""
        first, second = (
            {**self._values(self.floats, self.rest), **self._gradient(self.floats, self.rest)}
            for _ in range(2)
        )
        for name, x in first.items():
            a, b = np.asarray(x), np.asarray(second[name])
            if not np.array_equal(a, b, equal_nan=is_floating(x)):
                at = [int(i) for i in np.argwhere(a != b)[0]]
                return (
                    f"{self.name} is not deterministic: run twice, {name} is {a[tuple(at)]} and "
                    f"{b[tuple(at)]} at {at}"
                )
        return ""

    def _values_of_f(self) -> Compute:
        """How f's outputs are computed: compiled, or called as it is."""

        def values(inputs: Any, douts: Any, settings: Any) -> Any:
            return self._of_f.f(*inputs, **vars(settings))

        bound = self.problem.call(values)

        def as_it_was_given(floats: list[Any], rest: list[Any]) -> Any:
            return bound(*as_given(self.problem, floats, rest))

        try:
            traced, shapes = jax.make_jaxpr(bound, return_shape=True)(self.floats, self.rest)
        except Exception as error:  # whatever NumPy makes of what is traced
            try:
                shapes = as_it_was_given(self.floats, self.rest)
            except Exception:
                raise error from None
            self.limits.append(
                f"how {self.name} does under jit: it cannot be traced and was run as it is"
            )
            run = as_it_was_given
        else:
            self.rules = tuple(f"{rule}: a part of {self.name}" for rule in rules_in(traced))
            program = compiled(bound, self.floats, self.rest, hastily=False)
            run = program.run
            self.width = max(self.width, epsilon_to(program.rounded_to))
        check_same_outputs(shapes, self._of_reference.outputs, self.name)
        return lambda floats, rest: _named(run(floats, rest))

    def _gradient_of_f(self) -> Compute:
        """How f's derivative, or the backward that is given, is computed; nothing without one.

        Raises:
            ValueError: there is not one cotangent for every input.
        """
        problem = self.problem
        try:
            program = compiled(problem.manual_grad, self.floats, self.rest, hastily=False)
        except Exception as error:
            if self._backward is None:
                said = " ".join(str(error).split())
                self.limits.append(f"the gradient, as {self.name} has none: {said:.300}")
                return lambda floats, rest: {}
            problem = self.problem = as_it_is(problem, error)
            run: Callable[..., Any] = functools.partial(on_numbers, problem)
        else:
            run = program.run
            self.width = max(self.width, epsilon_to(program.rounded_to))
        check_cotangents(run(self.floats, self.rest), problem)
        return lambda floats, rest: run(floats, rest).leaves

    def _by_rule(self, inputs: Any, douts: list[Any], settings: Any) -> Any:
        return cotangents_by_rule(self._of_f, inputs, douts, settings, name=self.name)

    def _by_backward(self, inputs: Any, douts: list[Any], settings: Any) -> Any:
        assert self._backward is not None
        outputs = self._of_reference.outputs
        return cotangents_by_backward(self._backward, inputs, outputs, douts, vars(settings))

    def _compiled_reference(self, floats: list[Any], rest: list[Any]) -> Program:
        """The reference's outputs, and the gradient of their weighted sum."""

        def values(inputs: Any, douts: Any, settings: Any) -> Any:
            return self._of_reference.f(*inputs, **vars(settings))

        outputs = self.problem.call(values)
        gradient = derivative(stripped(self.problem.loss), self._way)

        def both(floats: list[Any], rest: list[Any]) -> Any:
            return outputs(floats, rest), *gradient(floats, rest)

        return compiled(both, floats, rest, hastily=False)

    def _reference(self, program: Program, floats: list[Any], rest: list[Any]) -> dict[str, Any]:
        outputs, _, found = program.run(floats, rest)
        leaves = split(found, floats) if self._way == "forward mode" else found
        return {**_named(outputs), **dict(zip(self.problem.paths, leaves, strict=True))}


def _named(outputs: Any) -> dict[str, Any]:
    """The outputs by name: `out`, or `out[0]`, `out['y']`."""
    return {
        f"out{jax.tree_util.keystr(path)}": jnp.asarray(x)
        for path, x in jax.tree_util.tree_leaves_with_path(outputs)
    }
