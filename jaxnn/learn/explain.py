"""Explain wrong cotangents: each by itself, by paths and slopes, by the smallest repair."""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxnn.learn import local, paths, repair
from jaxnn.learn.calls import by_name, call
from jaxnn.learn.case import Case, Cause
from jaxnn.learn.causes import of_one
from jaxnn.learn.points import Point, floats, point_at
from jaxnn.learn.student import Work


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def _by_erf(x: Any, y: Any) -> Any:
    erf = np.vectorize(math.erf)
    return 0.5 * (1 + erf(x / 2**0.5)) + x * np.exp(-(x**2) / 2) / (2 * math.pi) ** 0.5


# More slopes of a whole function, as in `paths.SLOPES`.
WHOLE: tuple[tuple[str, Callable[[Any, Any], Any]], ...] = (
    ("the slope of a sigmoid at y: y is the output already", lambda x, y: _d_sigmoid(y)),
    ("the slope of the GELU that is written with erf", _by_erf),
    ("x, that of half a square", lambda x, y: x),
)


def _d_sigmoid(x: Any) -> Any:
    return _sigmoid(x) * (1 - _sigmoid(x))


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
    for case in cases:
        if case.name not in found and (cause := _not_linear(work, case, saved)) is not None:
            found[case.name] = cause
    return [(case, found.get(case.name)) for case in cases]


def _not_linear(work: Work, case: Case, saved: Any) -> Cause | None:
    """Whether it is no multiple of what comes back from the output, as every cotangent is."""
    name, point = f"{work.exercise.name}_bwd", case.points[0]
    if name not in work.functions or saved is None:
        return None
    turned = by_name(work, name, call(work, name, saved[0], -point.dout), point.inputs)
    value, given = turned.get(case.name), case.given[0]
    if value is None or np.shape(value) != given.shape or np.allclose(value, -given, 1e-9, 1e-12):
        return None
    dout = f"d{work.exercise.output}"
    if np.allclose(value, given, 1e-9, 1e-12):
        return Cause(
            "forward value",
            f"{case.name} does not depend on {dout}",
            f"A cotangent is made of what comes back from the output: each has {dout} in it.",
        )
    return Cause(
        "not linear",
        f"{case.name} is not proportional to {dout}: with minus {dout} it is not minus itself",
        "A backward multiplies and adds what comes back. A condition, a square or a function of it "
        "has no place there: of what in the forward must it be?",
    )


def line_by_line(
    work: Work, cases: list[Case], points: list[Point], returned: list[dict[str, Any]]
) -> tuple[list[tuple[Case, Cause | None]], dict[str, str]]:
    """Return the cotangents whose lines are wrong, and of the others why nothing is said yet."""
    parts = [
        local.parts_of(work.exercise, point, given)
        for point, given in zip(points, returned, strict=True)
    ]
    misshapen = {c.name[1:] for c in cases if c.given[0].shape != c.right[0].shape}
    after: dict[str, str] = {}
    for case in cases:
        if made_of := local.successors(work.exercise, case.name[1:]) & misshapen:
            first = min(made_of, key=[c.name[1:] for c in cases].index)
            after[case.name] = f"it is made of d{first}, which has a wrong shape"
    wrong = [c for c in cases if c.name not in after and not local.follows(c, parts)]
    wrong = wrong or cases
    for case in cases:
        if not any(case is w for w in wrong):
            also = f"it differs, as {wrong[0].name} does that it is made of; right if that were"
            after.setdefault(case.name, also)
    after = {name: why for name, why in after.items() if all(name != w.name for w in wrong)}
    return [(case, local.cause_of(work.exercise, case, parts)) for case in wrong], after


def _causes(work: Work, case: Case) -> Iterator[Cause]:
    yield from of_one(case)
    if (cause := paths.of_one(work.exercise, case)) is not None:
        yield cause
    yield from _whole_slope(work, case)
    yield from _of_other_inputs(work, case)


def _whole_slope(work: Work, case: Case) -> Iterator[Cause]:
    """The cotangent of the output times a slope that is another function's."""
    output, name = work.exercise.output, case.name[1:]
    if name not in work.exercise.inputs:
        return
    place = work.exercise.inputs.index(name)
    inputs = [point.inputs[place] for point in case.points]
    if not floats(inputs) or np.shape(inputs[0]) != np.shape(case.points[0].out):
        return
    names = {"x": name, "y": output}
    for words, slope in (*paths.SLOPES[1:], *WHOLE):
        if case.fits(
            slope(np.asarray(x), np.asarray(point.out)) * np.asarray(point.dout)
            for x, point in zip(inputs, case.points, strict=True)
        ):
            told = "".join(names.get(part, part) for part in re.split(r"\b([xy])\b", words))
            yield Cause(
                "slope",
                f"{case.name} is d{output} times {told}",
                "Is this the derivative of the very formula of the forward? Differentiate it line "
                "by line; and what else does one value of the input reach?",
            )


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
