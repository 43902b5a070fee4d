"""Explain wrong cotangents: each by itself, by paths, by the smallest repair, by the verifier."""

from typing import Any

import jax

from jaxnn.learn import paths, repair, words
from jaxnn.learn.causes import Case, Cause, of_one
from jaxnn.learn.precise import pair_of
from jaxnn.learn.student import Work
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
        inputs = work.exercise.module.example(jax.random.key(0))
        report = verify_op(pair_of(work), *inputs)
    names = {case.name for case in cases}
    found = {}
    for leaf in report.leaves:
        name = f"d{leaf.path}"
        if name in names and leaf.diagnosis is not None:
            cause = words.in_words(name, leaf.diagnosis, work.exercise.module)
            if cause is not None:
                found[name] = cause
    return found
