"""Explain wrong cotangents: each by itself, by paths, by the smallest repair, by the verifier."""

import inspect
from typing import Any

import jax

from jaxnn.learn import paths, repair, words
from jaxnn.learn.causes import Case, Cause, of_one
from jaxnn.learn.points import drawn
from jaxnn.learn.student import Work
from jaxnn.op import Op
from jaxnn.verify import op as verify_op


def explained(work: Work, cases: list[Case], saved: Any) -> list[tuple[Case, Cause | None]]:
    """Return each wrong cotangent with its likely cause, or None."""
    found: dict[str, Cause] = {}
    for case in cases:
        cause = next(of_one(case), None)
        if cause is None:
            cause = paths.of_one(work.exercise, case)
        if cause is not None:
            found[case.name] = cause
    if work.grade == "easy":
        return [(case, found.get(case.name)) for case in cases]
    for name, fix in repair.repairs(work, cases, saved).items():
        old = found.get(name)
        found[name] = (
            fix.cause
            if old is None
            else old._replace(text=f"{old.text}; it is {fix.place} of your code")
        )
    left = [case for case in cases if case.name not in found]
    if left:
        found |= by_verifier(work, left)
    return [(case, found.get(case.name)) for case in cases]


def by_verifier(work: Work, cases: list[Case]) -> dict[str, Cause]:
    """What the verifier's search for a cause finds of them."""
    with jax.enable_x64(False):
        report = verify_op(pair_of(work), *drawn(work.exercise, 0))
    names = {case.name for case in cases}
    found = {}
    for leaf in report.leaves:
        name = f"d{leaf.path}"
        if name in names and leaf.diagnosis is not None:
            cause = words.in_words(name, leaf.diagnosis, work.exercise.module)
            if cause is not None:
                found[name] = cause
    return found


def pair_of(work: Work) -> Op[..., Any]:
    """Return the exercise's forward with the student's backward as an op."""
    exercise = work.exercise
    forward = exercise.module.forward

    def fwd(*inputs: Any) -> Any:
        own = work.functions.get(f"{exercise.name}_fwd") or exercise.function("fwd")
        return forward(*inputs), own(*inputs)[1]

    def bwd(saved: Any, dout: Any) -> Any:
        given = work.functions[f"{exercise.name}_bwd"](saved, dout)
        return tuple(given) if isinstance(given, tuple | list) else (given,)

    fwd.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    fwd.__name__ = exercise.name
    return Op(fwd, bwd)
