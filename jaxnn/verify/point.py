"""Evaluate both gradients and the loss at a point: in float64, in their own dtype, and nearby."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxnn.verify.comparison import NEARBY_POINTS, compare_in_float64, compare_in_own_dtype
from jaxnn.verify.derivative import Way, ways_of
from jaxnn.verify.findings import LeafReport, first_line
from jaxnn.verify.finite_differences import Line
from jaxnn.verify.nearby import SlopesCloseBy, apart_of, moved, noise_of, rounding_of
from jaxnn.verify.oracle import rules_in, stripped
from jaxnn.verify.problem import Problem, is_floating, to_float64
from jaxnn.verify.programs import Programs
from jaxnn.verify.trace import EPSILON, Trace, draws_of, primitives_of, rounded_to, traced_as
from jaxnn.verify.values import (
    Values,
    as_it_is,
    both_gradients,
    epsilon_of,
    evaluator_of,
    traced_loss,
)
from jaxnn.verify.witness import Witnesses, ask_witnesses

# A loop that stops by itself, or its derivative, may be off by so many units in the last place of
# the dtype given.
STOPS = 64


class Point:
    """A problem where it is looked at.

    Attributes:
        problem: the two functions as they were given.
        truth: the same, but that in the loss every derivative rule that a person wrote is replaced
            by the function it decorates: what is differentiated.
        rules: these rules.
        way: how the loss is differentiated, and `said` what JAX said of the ways before.
        floats: the parameters in float64, or as given where the functions do not take float64.
        rest: the other arrays, likewise.
        programs: whatever was compiled for this problem.
        epsilon: the spacing at 1 of the narrowest dtype given; `width`, of what the loss casts to.
        here: both gradients at `floats`.
        working: both gradients in the dtypes given; `here` where those are float64.
        obstacle: what JAX said where the functions could not be traced in float64; else empty.
    """

    def __init__(self, problem: Problem, functions: tuple[Any, ...]):
        """Trace, compile or find again, and evaluate both gradients.

        Raises:
            TypeError: the functions cannot be traced.
            ValueError: the loss is not a scalar, or has no derivative that could be looked at.
        """
        given = problem.floats, problem.rest
        loss = traced_loss(problem)
        by_hand: Trace | None = None
        try:
            by_hand = traced_as(problem.manual_grad, given)
        except Exception as error:  # whatever NumPy makes of what is traced
            if problem.on_mesh:
                raise
            problem = as_it_is(problem, error)
        self.problem, self.rules = problem, rules_in(loss.jaxpr)
        self.truth = problem._replace(loss=stripped(problem.loss)) if self.rules else problem
        self._loss, dtypes = functions[0], [str(x.dtype) for leaves in given for x in leaves]
        also = functions, by_hand[1:] if by_hand else None, tuple(dtypes)
        widths = {x.dtype for x in (*problem.floats, *problem.rest) if is_floating(x)}
        self.epsilon = max(map(epsilon_of, widths))
        self.width = max(self.epsilon, EPSILON[rounded_to(loss.jaxpr)])
        self.obstacle, self._x64 = "", True
        with self.precisely():
            self.floats, self.rest = to_float64(problem.floats), to_float64(problem.rest)
            try:
                self._trace(also)
            except Exception as error:  # of whatever insists on the dtypes given
                self.obstacle = first_line(error)
        if self.obstacle:
            # Where the functions cannot be traced as they were given either, the error is theirs.
            self._x64 = bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]
            self.floats, self.rest = problem.floats, problem.rest
            self._trace(also)
        with self.precisely():
            arrays = self.floats, self.rest
            precise = evaluator_of(
                self.truth,
                self.programs,
                "precise",
                *arrays,
                self.way,
                trace=self._both,
                as_narrow_as=self.as_narrow_as,
            )
            self.here = precise.at(self.floats, self.rest)
            self.line = Line(self.truth.loss, self.floats, self.rest, self.programs)
        self.working = self.here
        if not self.obstacle and any(dtype != np.float64 for dtype in widths):
            working = evaluator_of(
                self.truth, self.programs, "working", *given, self.way, hastily=False
            )
            self.working = working.at(*given)
        primitives = primitives_of(loss.jaxpr)
        self.stopped = "stop_gradient" in primitives
        self.loops = "while" in primitives | (primitives_of(by_hand.jaxpr) if by_hand else set())
        self._draws = draws_of(loss.jaxpr)

    def _trace(self, also: Any) -> None:
        """Trace both gradients, and find what was compiled of an equal trace."""
        self.way: Way = "reverse mode"
        self.said = ""
        try:
            self._find(also)
        except Exception:
            # The loss itself is traced first: whatever that raises is a matter of the loss.
            traced_as(self.truth.loss, (self.floats, self.rest))
            self.way, self.said = ways_of(self.truth.loss, self.floats, self.rest)
            if self.way == "reverse mode":
                raise
            self._find(also)

    def _find(self, also: Any) -> None:
        arrays = self.floats, self.rest
        self._both = traced_as(both_gradients(self.truth, self.way), arrays)
        self.programs = Programs.found(self._both, arrays, also)

    def declare(self, tolerances: Mapping[str, float]) -> None:
        """Allow a part of the scale of these leaves, by name, to differ."""
        self.problem, self.truth = (
            problem._replace(tolerances=tolerances) for problem in (self.problem, self.truth)
        )

    def precisely(self) -> Any:
        """Return the context in which `floats` keep their dtype."""
        return jax.enable_x64(self._x64)

    @functools.cached_property
    def rounding(self) -> list[float]:
        """How far rounding moves each leaf's gradients: that of the width something is rounded to.

        In float64 a bound on what either gradient is off by, else an estimate of autodiff's error.
        """
        with self.precisely():
            if self.here.width:
                return noise_of(self.here, self.floats, self.rest, self.here.width)
            return rounding_of(self.problem, self.here, self.floats, self.rest)

    @functools.cached_property
    def apart(self) -> list[float]:
        """How far both gradients of each leaf move apart by the rounding of what was given."""
        with self.precisely():
            return apart_of(self.here, self.floats, self.rest, self.problem.paths, self.epsilon)

    @functools.cached_property
    def noise(self) -> list[float]:
        """How far rounding moves autodiff's gradients in the dtypes given."""
        return noise_of(self.working, self.problem.floats, self.problem.rest, self.width)

    @functools.cached_property
    def nearby(self) -> list[tuple[Values, Values]]:
        """Both gradients in the working dtype and in float64, at a few points close by."""
        rng, pairs = np.random.default_rng(0), []
        for _ in range(NEARBY_POINTS):
            floats, rest = (
                moved(leaves, 4 * self.epsilon, rng)
                for leaves in (self.problem.floats, self.problem.rest)
            )
            low = self.working.evaluator.at(floats, rest)
            with self.precisely():
                high = self.here.evaluator.at(to_float64(floats), to_float64(rest))
            pairs.append((low, high))
        return pairs

    @functools.cached_property
    def close_by(self) -> SlopesCloseBy:
        """Autodiff's gradients so close by that only kinks make them differ."""
        return SlopesCloseBy(
            self.floats, self._precise(lambda floats: self.here.evaluator.at(floats, self.rest))
        )

    @functools.cached_property
    def programs_of_loss(self) -> Programs:
        """Whatever was compiled of the loss alone, for any gradient of it."""
        arrays = self.floats, self.rest
        return Programs.found(traced_as(self.truth.loss, arrays), arrays, self._loss)

    @functools.cached_property
    def draws_differ(self) -> bool:
        """Whether the loss draws other random numbers in float64 than in the dtypes given."""
        if not self._draws or self.working is self.here:
            return False
        with self.precisely():
            lifted: Trace = traced_as(self.problem.loss, (self.floats, self.rest))
        return self._draws != draws_of(lifted.jaxpr)

    @property
    def as_narrow_as(self) -> float:
        """What a hand-written gradient may be rounded to: the dtypes given; 0 for float64."""
        return self.epsilon if self.epsilon > EPSILON["float64"] else 0.0

    @property
    def stops_at(self) -> float:
        """What a loop that stops by itself may leave, as a part of the scale."""
        return STOPS * self.as_narrow_as if self.loops else 0.0

    def compare_in_float64(self, leaf: LeafReport, number: int) -> LeafReport:
        """Compare the two gradients of one leaf in float64, entry by entry."""
        return compare_in_float64(
            leaf, self.here, number, lambda: self.rounding, self.stops_at, lambda: self.apart
        )

    def ask_witnesses(self, leaf: LeafReport, number: int, seed: int) -> LeafReport:
        """Ask the witnesses of a leaf that was compared."""
        slope, forward = (
            self._precise(functools.partial(f, number))
            for f in (self.line.slope, self.line.forward)
        )
        witnesses = Witnesses(
            slope, forward, lambda: self.close_by.slopes[number], self.stopped, self.loops
        )
        manual, autodiff = self.here.manual[leaf.path], self.here.autodiff[number]
        return ask_witnesses(leaf, manual, autodiff, witnesses, seed)

    def agrees_along_a_line(self, numbers: list[int], seed: int) -> bool:
        """Tell whether finite differences agree with autodiff where several leaves move at once."""
        rng = np.random.default_rng(seed)
        shapes = {i: self.here.autodiff[i].shape for i in numbers}
        directions = {i: np.asarray(rng.normal(size=shape)) for i, shape in shapes.items()}
        value = sum(float((self.here.autodiff[i] * d).sum()) for i, d in directions.items())
        with self.precisely():
            slope = self.line.along(directions)
        return slope.agrees_with(value) and slope.resolves(value)

    def compare_in_own_dtype(self, leaf: LeafReport, number: int) -> LeafReport:
        """Judge whether a leaf is as exact in its own dtype as autodiff is."""
        alone = self.draws_differ or self.here.width >= epsilon_of(leaf.dtype)
        noise = (lambda: self.noise) if alone else None
        both = self.working, self.here
        return compare_in_own_dtype(leaf, number, both, lambda: self.nearby, noise)

    def _precise(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            with self.precisely():
                return function(*args)

        return call
