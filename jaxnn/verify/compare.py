"""Two gradients of one problem, compared: first what they are, then their numbers."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxnn.verify.lift import Problem, compiled, is_floating, path_name
from jaxnn.verify.report import LeafReport

# Two correct float64 gradients agree to about 1e-15 of a leaf's scale; a wrong one does not come
# within 1e-10 of it by luck.
RELATIVE_TOLERANCE = 1e-10


@dataclasses.dataclass(frozen=True)
class Values:
    """Both gradients at one point: autodiff's by position, the hand-written by path."""

    loss: float
    autodiff: list[np.ndarray[Any, Any]]
    manual: dict[str, np.ndarray[Any, Any]]


def evaluate(problem: Problem, floats: list[Any], rest: list[Any]) -> Values:
    """Both gradients, from one program, in the dtype of what is given."""

    def both(floats: list[Any], rest: list[Any]) -> Any:
        value, autodiff = jax.value_and_grad(problem.loss)(floats, rest)
        return value, autodiff, problem.manual_grad(floats, rest)

    value, autodiff, manual = compiled(both, floats, rest)(floats, rest)
    return Values(
        float(value),
        [np.asarray(leaf, np.float64) for leaf in autodiff],
        {
            path: np.asarray(leaf, np.float64)
            for path, leaf in by_path(manual).items()
            if is_floating(leaf)
        },
    )


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by the names of their paths."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def structure(problem: Problem, out: Any) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """What is wrong with the hand-written gradient before any number: as a whole, and by path."""
    expected, got = dict(zip(problem.paths, problem.floats, strict=True)), by_path(out)
    faults: dict[str, tuple[str, ...]] = {}
    for path, leaf in expected.items():
        if path not in got:
            faults[path] = ("missing from the hand-written gradient",)
            continue
        faults[path] = tuple(
            f"the hand-written gradient has {what} {theirs}, the parameter {ours}"
            for what, theirs, ours in (
                ("shape", got[path].shape, leaf.shape),
                ("dtype", got[path].dtype, leaf.dtype),
            )
            if theirs != ours
        )
    problems = [
        f"the hand-written gradient has a leaf {path} that the parameters lack"
        for path in got
        if path not in expected and path not in problem.not_floating
    ]
    if not problems and all(path in got for path in expected):
        floating_only = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if path_name(path) in expected else None, out
        )
        theirs: Any = jax.tree.structure(floating_only)
        ours: Any = jax.tree.structure(problem.expected)
        if theirs != ours:
            problems.append(f"the hand-written gradient is a {theirs}, the parameters a {ours}")
    return tuple(problems), faults


def rounding_of(problem: Problem, here: Values, floats: list[Any], rest: list[Any]) -> list[float]:
    """How far autodiff's gradient moves, leaf by leaf, if every input moves in its last place.

    The smaller of two random moves in opposite directions: a kink on one side is not rounding.
    Bounded by the scale of the whole problem, so that a kink on both sides excuses nothing.
    """
    rng = np.random.default_rng(0)

    def moved(sign: int) -> list[np.ndarray[Any, Any]]:
        def move(x: Any) -> Any:
            if not is_floating(x):
                return x
            return x * (1 + sign * 2.0**-51 * rng.uniform(size=x.shape))

        return evaluate(problem, [move(x) for x in floats], [move(x) for x in rest]).autodiff

    bound = 1e-12 * max([abs(here.loss), *(largest(g) for g in here.autodiff)])
    return [
        min(64 * min(largest(up - g), largest(down - g)), bound)
        for g, up, down in zip(here.autodiff, moved(1), moved(-1), strict=True)
    ]


def largest(values: np.ndarray[Any, Any]) -> float:
    """The largest absolute entry; 0 where there is none."""
    return float(np.abs(values).max(initial=0.0))


def compare(
    leaf: LeafReport,
    manual: np.ndarray[Any, Any],
    autodiff: np.ndarray[Any, Any],
    rounding: Callable[[], list[float]],
    number: int,
) -> LeafReport:
    """The two float64 gradients of one leaf, entry by entry."""
    for side, values in (("hand-written", manual), ("autodiff", autodiff)):
        if not np.isfinite(values).all():
            at = first_index(~np.isfinite(values))
            message = (
                f"the {side} gradient is not finite in float64: {values[at]} at {at}, "
                f"{(~np.isfinite(values)).sum()} such entries"
            )
            return dataclasses.replace(leaf, messages=(message,))
    difference, scale = largest(manual - autodiff), largest(autodiff)
    tolerance = RELATIVE_TOLERANCE * scale
    if difference > tolerance:
        tolerance += rounding()[number]
    wrong = int((np.abs(manual - autodiff) > tolerance).sum())
    return dataclasses.replace(
        leaf,
        status="fail" if wrong else "pass",
        scale=scale,
        difference=difference,
        tolerance=tolerance,
        wrong=wrong,
    )


def first_index(mask: np.ndarray[Any, Any]) -> tuple[int, ...]:
    """Where a mask is first true."""
    return tuple(int(i) for i in np.argwhere(mask)[0])


def check_working(leaf: LeafReport, manual: Any) -> LeafReport:
    """In the dtype that was given the hand-written gradient must be finite too."""
    values = np.asarray(manual, np.float64)
    if np.isfinite(values).all():
        return leaf
    at = first_index(~np.isfinite(values))
    message = f"the hand-written gradient is not finite in {leaf.dtype}: {values[at]} at {at}"
    return dataclasses.replace(leaf, status="fail", messages=(*leaf.messages, message))
