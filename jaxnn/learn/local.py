"""Hold each line of a backward to its own: given the cotangents that a student has after it.

What comes back to a name is a sum over the lines that use it; each part is that line's derivative
times the cotangent of what it gives. With the student's own cotangents put in, a line that is right
gives what is right there, even where an earlier one was wrong.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.learn.case import Case, Cause
from jaxnn.learn.causes import of_one
from jaxnn.learn.exercise import Exercise
from jaxnn.learn.factors import number_in_words
from jaxnn.learn.points import QUICK, Leaf, Point, close

Parts = dict[str, dict[int, Leaf]]  # of each name, what comes back through each line


@functools.cache
def _compiled(exercise: Exercise) -> Any:
    written = exercise.written
    assert written is not None

    @functools.partial(jax.jit, compiler_options=QUICK)
    def parts(values: dict[str, Any], cotangents: dict[str, Any]) -> dict[str, dict[int, Any]]:
        found: dict[str, dict[int, Any]] = {}
        for i, line in enumerate(written.lines):
            uses = [n for n in line.uses if n in cotangents]
            gives = [n for n in line.gives if n in cotangents]
            if not uses or not gives:
                continue

            def run(*given: Any, i: int = i, uses: Any = uses, gives: Any = gives) -> Any:
                after = written.run_line(i, {**values, **dict(zip(uses, given, strict=True))})
                return tuple(after[n] for n in gives)

            _, pull = jax.vjp(run, *(values[n] for n in uses))
            back = pull(tuple(cotangents[n] for n in gives))
            for name, value in zip(uses, back, strict=True):
                found.setdefault(name, {})[i] = value
        return found

    return parts


def parts_of(exercise: Exercise, point: Point, given: dict[str, Any]) -> Parts:
    """Return what must come back to each name, given a student's cotangents of what is after it."""
    right = {**point.right, **point.inner}
    cotangents = {}
    for name, value in right.items():
        mine = given.get(f"d{name}")
        fits = mine is not None and np.shape(mine) == value.shape
        cotangents[name] = jnp.asarray(mine if fits else value, value.dtype)
    values = {name: point.values[name] for name in exercise.written.names}  # type: ignore[union-attr]
    cotangents[exercise.written.result] = point.dout  # type: ignore[union-attr]
    found = _compiled(exercise)(values, cotangents)
    return {
        name: {i: np.asarray(v) for i, v in sorted(lines.items())} for name, lines in found.items()
    }


def successors(exercise: Exercise, name: str) -> set[str]:
    """Return the names that are made of one in a line of the forward."""
    written = exercise.written
    assert written is not None
    return {given for line in written.lines if name in line.uses for given in line.gives}


def follows(case: Case, parts: list[Parts]) -> bool:
    """Whether a cotangent is right, given what the student has after it."""
    wanted = [_sum(p, case.name[1:]) for p in parts]
    return all(
        w is not None and close(given, w) for given, w in zip(case.given, wanted, strict=True)
    )


def _sum(parts: Parts, name: str) -> Any:
    return sum(parts[name].values()) if name in parts else None


def cause_of(exercise: Exercise, case: Case, parts: list[Parts]) -> Cause | None:
    """Return why a cotangent is wrong, given what the student has after it."""
    name = case.name[1:]
    if not all(name in p for p in parts):
        return next(of_one(case), None)
    held = case._replace(right=[np.asarray(_sum(p, name)) for p in parts])
    if (cause := next(of_one(held), None)) is not None:
        return cause
    written = exercise.written
    assert written is not None
    for i in parts[0][name] if len(parts[0][name]) > 1 else ():
        factor = _factor(held, [p[name][i] for p in parts])
        if factor is None:
            continue
        line = f"`{written.lines[i].text}`"
        if abs(factor) < 1e-7:
            return Cause(
                "path",
                f"{case.name}: nothing flows back to {name} through {line}",
                f"Which lines of the forward use {name}? Each of them adds a term.",
            )
        told = number_in_words(factor, case)
        if told is not None:
            start = f"{case.name}: what comes back to {name} through {line} "
            text = told.text.replace("the right one", "what it must be")
            return told._replace(text=start + text)
    lines = [written.lines[i].text for i in parts[0][name]]
    shown = " and ".join(f"`{text}`" for text in lines)
    return Cause(
        "line",
        f"{case.name} is not the derivative of {shown} times what comes back from there, "
        "even with the cotangents that you have so far",
        f"Differentiate it with respect to {name} by itself, on paper; write the shapes beside it.",
    )


def _factor(case: Case, part: list[Leaf]) -> float | None:
    """The number that one part must be multiplied by to give what was given, at every point."""
    numbers = []
    for given, right, p in zip(case.given, case.right, part, strict=True):
        square = float((p * p).sum())
        if given.shape != right.shape or square == 0:
            return None
        k = float(((given - right) * p).sum()) / square
        if not close(right + k * p, given):
            return None
        numbers.append(1 + k)
    return numbers[0] if abs(numbers[0] - numbers[-1]) <= 1e-7 * (1 + abs(numbers[0])) else None
