"""Explain wrong cotangents: each by itself, by paths and slopes, by the smallest repair."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxnn.learn import local, paths, repair
from jaxnn.learn.case import Case, Cause
from jaxnn.learn.causes import of_one
from jaxnn.learn.points import Point, floats, point_at
from jaxnn.learn.student import Work


def explained(work: Work, cases: list[Case], saved: Any) -> list[tuple[Case, Cause | None]]:
    """Return each wrong cotangent with its likely cause, or None."""
    found: dict[str, Cause] = {}
    for case in cases:
        cause = next(_causes(work, case), None)
        if cause is not None:
            found[case.name] = cause
    for name, fix in repair.repairs(work, cases, saved).items():
        old = found.get(name)
        if old is None or old.kind == "other cotangent":  # why they are alike says more
            found[name] = fix.cause
        else:
            found[name] = old._replace(text=f"{old.text}; it is {fix.place} of your code")
    return [(case, found.get(case.name)) for case in cases]


def line_by_line(
    work: Work, cases: list[Case], points: list[Point], returned: list[dict[str, Any]]
) -> tuple[list[tuple[Case, Cause | None]], dict[str, str]]:
    """Return the lines that are wrong by themselves, and those that only follow, from which."""
    parts = [
        local.parts_of(work.exercise, point, given)
        for point, given in zip(points, returned, strict=True)
    ]
    wrong = [case for case in cases if not local.follows(case, parts)]
    wrong = wrong or cases
    first = wrong[0].name
    after = {case.name: first for case in cases if not any(case is w for w in wrong)}
    return [(case, local.cause_of(work.exercise, case, parts)) for case in wrong], after


def _causes(work: Work, case: Case) -> Iterator[Cause]:
    yield from of_one(case)
    if (cause := paths.of_one(work.exercise, case)) is not None:
        yield cause
    yield from _of_other_inputs(work, case)


def _of_other_inputs(work: Work, case: Case) -> Iterator[Cause]:
    """What would be right where an input is reversed, or transposed."""
    names = work.exercise.inputs
    for i, name in enumerate(names):
        x = case.points[0].inputs[i]
        if isinstance(x, dict) or not floats(x):
            continue
        for axis in range(np.ndim(x)):
            if np.shape(x)[axis] > 1 and case.fits(_where(work, case, i, axis)):
                yield Cause(
                    "time",
                    f"{case.name} would be right if {name} were reversed along axis {axis}",
                    f"Follow the places along axis {axis} of {name}: which of them meets which, "
                    "on the way forward and on the way back?",
                )


def _where(work: Work, case: Case, i: int, axis: int) -> Iterator[Any]:
    for point in case.points:
        inputs = list(point.inputs)
        inputs[i] = jax.numpy.asarray(np.flip(np.asarray(inputs[i]), axis))
        yield point_at(work.exercise, tuple(inputs), 0, point.dout).right[case.name[1:]]
