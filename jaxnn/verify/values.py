"""Evaluate both gradients at a point; a gradient that cannot be traced is run as it is.

NumPy cannot be called on what JAX traces, and need not be: a gradient has only to return numbers. A
loss must be differentiated, and so traced; one that cannot be is refused.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.calls import path_name
from jaxnn.verify.derivative import Way, derivative, measured, split
from jaxnn.verify.findings import Leaf, first_line
from jaxnn.verify.oracle import stripped
from jaxnn.verify.problem import Problem, is_floating, to_float64
from jaxnn.verify.programs import Program, Programs
from jaxnn.verify.trace import NotTraceable, Trace, epsilon_to, rounded_to, traced_as


@dataclasses.dataclass(frozen=True)
class Values:
    """Both gradients at one point: autodiff's by position, the hand-written by path.

    Attributes:
        loss: its value.
        evaluator: what computed them.
        autodiff: the gradient of the loss.
        manual: the hand-written gradient.
        out: the same as it was returned.
        uncertainty: what each entry of `autodiff` may be off by, where finite differences measured
            it; else None.
    """

    loss: float
    evaluator: "Evaluator"
    autodiff: list[Leaf]
    manual: dict[str, Leaf]
    out: Any
    uncertainty: list[Leaf] | None = None

    @property
    def program(self) -> Program:
        """What computed the gradient of the loss."""
        return self.evaluator.program

    @property
    def width(self) -> float:
        """The spacing at 1 of the dtype that both are held to; 0 for float64."""
        return self.evaluator.width

    @property
    def size(self) -> float:
        """The largest number that may have been rounded: the loss, or an entry of a gradient."""
        return max([abs(self.loss), *map(largest, self.autodiff)])


def both_gradients(
    problem: Problem, way: Way = "reverse mode"
) -> Callable[[list[Any], list[Any]], Any]:
    """Return a function of the loss, autodiff's gradient and, if traced, the hand-written one."""
    of_loss = derivative(problem.loss, way)

    def both(floats: list[Any], rest: list[Any]) -> Any:
        return *of_loss(floats, rest), () if problem.as_it_is else problem.manual_grad(floats, rest)

    return both


class Evaluator(NamedTuple):
    """What is asked for both gradients, at any point.

    Attributes:
        program: `both_gradients`, compiled.
        way: how the loss is differentiated in it.
        by_hand: the hand-written gradient where it is no part of the program, but called as it is.
        width: the spacing at 1 of the dtype that the loss is rounded to inside, and the
            hand-written gradient may be; 0 where that is float64.
        as_narrow_as: what `by_hand` may be rounded to.
    """

    program: Program
    way: Way = "reverse mode"
    by_hand: Callable[[list[Any], list[Any]], Any] | None = None
    width: float = 0.0
    as_narrow_as: float = 0.0

    def at(self, floats: list[Any], rest: list[Any]) -> Values:
        """Return both gradients, in the dtype of what is given."""
        value, found, out = self.program.run(floats, rest)
        uncertainty, evaluator = None, self
        if self.way == "forward mode":
            found = split(found, floats)
        elif self.way == "finite differences":
            found, uncertainty = measured(found, floats, self.program.epsilon)
        if self.by_hand is not None:
            out = self.by_hand(floats, rest)
        leaves = {path: leaf for path, leaf in by_path(out).items() if is_floating(leaf)}
        if self.by_hand is not None:
            # No trace says what it rounds to; what it returns does.
            returned = max((epsilon_to(str(leaf.dtype)) for leaf in leaves.values()), default=0.0)
            evaluator = self._replace(width=max(self.width, min(returned, self.as_narrow_as)))
        return Values(
            float(value),
            evaluator,
            [np.asarray(leaf, np.float64) for leaf in found],
            {path: np.asarray(leaf, np.float64) for path, leaf in leaves.items()},
            out,
            uncertainty,
        )


def evaluator_of(
    problem: Problem,
    programs: Programs,
    name: str,
    floats: list[Any],
    rest: list[Any],
    way: Way = "reverse mode",
    *,
    hastily: bool = True,
    trace: Trace | None = None,
    as_narrow_as: float = 0.0,
) -> Evaluator:
    """Compile what evaluates both gradients of a problem, under this name.

    Given its trace, the hand-written gradient is held to the width of the loss, or may be as narrow
    as said; else to that of both.
    """
    both = both_gradients(problem, way)
    program = programs.get(name, both, floats, rest, hastily=hastily, trace=trace)
    by_hand = functools.partial(on_numbers, problem) if problem.as_it_is else None
    width = epsilon_to(program.rounded_to)
    if trace is not None:
        outputs = 1 + {"reverse mode": len(floats), "forward mode": 1, "finite differences": 2}[way]
        of_loss = epsilon_to(rounded_to(trace.jaxpr, outputs))
        width = max(of_loss, min(width, as_narrow_as))
    return Evaluator(program, way, by_hand, width, as_narrow_as)


def in_float64(problem: Problem, programs: Programs, name: str) -> Values:
    """Evaluate both gradients in float64, the loss without its rules. Call under `enable_x64`."""
    problem = problem._replace(loss=stripped(problem.loss))
    floats, rest = to_float64(problem.floats), to_float64(problem.rest)
    return evaluator_of(problem, programs, name, floats, rest).at(floats, rest)


def by_path(tree: Any) -> dict[str, Any]:
    """Return the leaves of a pytree by the names of their paths."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def epsilon_of(dtype: Any) -> float:
    """Return the spacing of a dtype's numbers at 1."""
    return float(jnp.finfo(dtype).eps)  # type: ignore[no-untyped-call]


def largest(values: Leaf) -> float:
    """Return the largest finite absolute entry; 0 where there is none."""
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def first_index(mask: np.ndarray[Any, Any]) -> tuple[int, ...]:
    """Return where a mask is first true."""
    return tuple(int(i) for i in np.argwhere(mask)[0])


def on_numbers(problem: Problem, floats: list[Any], rest: list[Any]) -> Any:
    """Return the hand-written gradient, called as it is: not traced, in NumPy where that was given.

    In the dtypes of `floats` and `rest`; what it returns becomes JAX's arrays.
    """
    return jax.tree.map(jnp.asarray, problem.manual_grad(*as_given(problem, floats, rest)))


def as_it_is(problem: Problem, error: Exception) -> Problem:
    """Return the problem with its gradient to be called on numbers, as tracing it raised.

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
    """Return the trace of the loss, in the dtypes given.

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
        raise NotTraceable(
            "the loss runs on numbers but cannot be traced, as it must be to be differentiated "
            "(NumPy calls, `if` or `float` on an array, writing into one): write it with "
            f"jax.numpy, jnp.where and lax.cond. JAX says: {first_line(error.__cause__ or error)}"
        ) from error


def as_given(problem: Problem, floats: list[Any], rest: list[Any]) -> list[list[Any]]:
    """Return the arrays in NumPy where they were given so."""
    numpy = iter(problem.in_numpy)
    return [[np.array(x) if next(numpy) else x for x in leaves] for leaves in (floats, rest)]
