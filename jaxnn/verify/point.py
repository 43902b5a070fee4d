"""Both gradients and the loss at the arrays given: in float64, in their own dtype, and nearby."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxnn.verify import compare
from jaxnn.verify.compare import Values, both_gradients, evaluate, moved, program_of_both
from jaxnn.verify.elsewhere import MOST_EAGER
from jaxnn.verify.finite_differences import Line
from jaxnn.verify.precision import NEARBY, check_precision
from jaxnn.verify.problem import Problem, is_floating, to_float64
from jaxnn.verify.programs import Programs, traced_as
from jaxnn.verify.report import LeafReport
from jaxnn.verify.untraceable import as_it_is, refuse_numpy
from jaxnn.verify.witness import testify


class Point:
    """A problem where it is looked at.

    Attributes:
        problem: the two functions.
        floats: the parameters in float64, or as given where the functions do not take float64.
        rest: the other arrays, likewise.
        programs: whatever was compiled for this problem.
        here: both gradients at `floats`.
        working: both gradients in the dtypes given; `here` where those are float64.
        obstacle: what JAX said where the functions could not be traced in float64; else empty.
    """

    def __init__(self, problem: Problem, functions: tuple[Any, ...]):
        """Trace, compile or find again, and evaluate both gradients.

        Raises:
            TypeError: the functions cannot be traced.
            ValueError: the loss is not a scalar.
        """
        given = problem.floats, problem.rest
        by_hand: tuple[str, ...] = ()
        try:
            by_hand = traced_as(problem.manual_grad, given)[1:]
        except Exception as error:  # whatever NumPy makes of what is traced
            problem = as_it_is(problem, error)
        both = both_gradients(problem)
        self._loss, dtypes = functions[0], [str(x.dtype) for leaves in given for x in leaves]
        also = functions, by_hand, tuple(dtypes)
        self.problem, self.obstacle = problem, ""
        self._x64 = True
        with self.precisely():
            self.floats, self.rest = to_float64(problem.floats), to_float64(problem.rest)
            try:
                self.programs = self._found(both, also)
            except TypeError as error:
                self.obstacle = str(error).splitlines()[0]
        if self.obstacle:
            # Where the functions cannot be traced as they were given either, the error is theirs.
            self._x64 = bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]
            self.floats, self.rest = problem.floats, problem.rest
            try:
                self.programs = self._found(both, also)
            except Exception as error:
                refuse_numpy(problem, error)
                raise
        with self.precisely():
            program = program_of_both(problem, self.programs, "precise", self.floats, self.rest)
            self.here = evaluate(program, self.floats, self.rest)
            self.line = Line(problem.loss, self.floats, self.rest, self.programs)
        widths = {x.dtype for x in (*problem.floats, *problem.rest) if is_floating(x)}
        self.epsilon = max(map(compare.epsilon_of, widths))
        self.working = self.here
        if not self.obstacle and any(dtype != np.float64 for dtype in widths):
            program = program_of_both(problem, self.programs, "working", *given, hastily=False)
            self.working = evaluate(program, problem.floats, problem.rest)

    def precisely(self) -> Any:
        """The context in which `floats` keep their dtype."""
        return jax.enable_x64(self._x64)

    @functools.cached_property
    def rounding(self) -> list[float]:
        """How far each leaf's gradients move when every input does, in its last place."""
        with self.precisely():
            return compare.rounding_of(self.problem, self.here, self.floats, self.rest)

    @functools.cached_property
    def nearby(self) -> list[tuple[Values, Values]]:
        """Both gradients in the working dtype and in float64, at a few points close by."""
        rng, pairs = np.random.default_rng(0), []
        for _ in range(NEARBY):
            floats, rest = (
                moved(leaves, 4 * self.epsilon, rng)
                for leaves in (self.problem.floats, self.problem.rest)
            )
            low = evaluate(self.working.program, floats, rest)
            with self.precisely():
                high = evaluate(self.here.program, to_float64(floats), to_float64(rest))
            pairs.append((low, high))
        return pairs

    @functools.cached_property
    def programs_of_loss(self) -> Programs:
        """Whatever was compiled of the loss alone, for any gradient of it."""
        return self._found(self.problem.loss, self._loss)

    def _found(self, traced: Callable[..., Any], also: Any) -> Programs:
        return Programs.found(traced, (self.floats, self.rest), also)

    def compare(self, leaf: LeafReport, number: int, seed: int) -> LeafReport:
        """One leaf: every entry in float64, the witnesses, then the precision."""
        leaf = compare.compare(leaf, self.here, number, lambda: self.rounding)
        if leaf.difference is not None:
            manual, autodiff = self.here.manual[leaf.path], self.here.autodiff[number]
            slope, forward = (
                self._precise(functools.partial(f, number))
                for f in (self.line.slope, self.line.forward)
            )
            leaf = testify(leaf, manual, autodiff, slope, forward, seed)
        return check_precision(leaf, number, (self.working, self.here), lambda: self.nearby)

    @property
    def limits(self) -> tuple[str, ...]:
        """What these numbers cannot show, in words."""
        found, narrow = [], self.here.program.rounded_to
        if self.obstacle:
            found.append(
                f"the functions do not take float64 ({self.obstacle}): what is smaller than the "
                "rounding of the dtypes given would not show"
            )
        elif narrow != "float64":
            found.append(
                f"given float64, something inside computes in {narrow}, or is cast to it: "
                "errors smaller than its rounding would not show"
            )
        if self.problem.as_it_is:
            found.append(
                "how it does under jit or vmap: the hand-written gradient cannot be traced and was "
                "run as it is"
            )
        elif self.programs.operations > MOST_EAGER:
            found.append(
                f"whether it gives the same without jit: of {self.programs.operations} operations "
                f"(more than {MOST_EAGER}) each would be compiled by itself"
            )
        return tuple(found)

    def within(self, leaves: list[LeafReport]) -> Callable[[str, np.ndarray[Any, Any]], bool]:
        """Whether values of a leaf, computed in some way, are as precise as they must be."""
        by_path = {leaf.path: (leaf, self.here.autodiff[i]) for i, leaf in enumerate(leaves)}

        def within(path: str, values: np.ndarray[Any, Any]) -> bool:
            leaf, truth = by_path[path]
            # Another order of the same sums is off by as much again.
            allowed = 4 * max(
                leaf.precision.allowed if leaf.precision else 0.0,
                leaf.tolerance,
                compare.plausible_rounding(self.here.loss),
            )
            return values.shape == truth.shape and bool((np.abs(values - truth) <= allowed).all())

        return within

    def _precise(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            with self.precisely():
                return function(*args)

        return call
