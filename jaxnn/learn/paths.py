"""Explain a wrong cotangent by the paths that a cotangent takes: left out, twice, with a factor.

Each use of a name in a line of the forward is a path. What comes back along it is multiplied by a
number (0: it is left out; 2: it counts twice), and the cotangents of the inputs change by as many
times what that path brings.
"""

import ast
import functools
import itertools
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax

from jaxnn.learn.causes import Case, Cause, number_in_words
from jaxnn.learn.exercise import Exercise
from jaxnn.learn.lines import Written
from jaxnn.learn.points import SEEDS, Leaf, close, floats, point_of

MOST_PAIRS = 100


class Path(NamedTuple):
    """A use of a name: in which line; how many lines use the name."""

    line: int
    name: str
    uses: int


class Cut(NamedTuple):
    """The paths of an exercise, and the cotangents without each one and each two of them."""

    paths: tuple[Path, ...]
    pairs: tuple[tuple[int, int], ...]
    without: list[dict[str, Leaf]]  # for each point, one row for each path, then for each pair


@functools.cache
def cut(exercise: Exercise) -> Cut | None:
    """Compute, once, the cotangents without each path. Call in `in_float64`."""
    points = [point_of(exercise, seed) for seed in SEEDS]
    lines = exercise.written
    if lines is None:
        return None
    floating = {n for n, value in points[0].values.items() if floats(value)}
    paths = [
        Path(i, name, sum(name in other.uses for other in lines.lines))
        for i, line in reversed(list(enumerate(lines.lines)))
        for name in line.uses
        if name in floating
    ]
    n = len(paths)
    pairs = list(itertools.combinations(range(n), 2))[:MOST_PAIRS]
    keep = np.ones((n + len(pairs), n))
    for row, held in enumerate([*((i,) for i in range(n)), *pairs]):
        keep[row, list(held)] = 0
    inputs = [i for i, name in enumerate(lines.inputs) if name in floating]
    run = jax.jit(
        jax.vmap(
            jax.grad(functools.partial(_loss, lines, tuple(paths), tuple(inputs)), argnums=0),
            in_axes=(None, None, None, 0),
        )
    )
    without = []
    for point in points:
        given = tuple(point.inputs[i] for i in inputs)
        found = run(given, point.inputs, point.dout, keep)
        without.append(
            {f"d{lines.inputs[i]}": np.asarray(v) for i, v in zip(inputs, found, strict=True)}
        )
    return Cut(tuple(paths), tuple(pairs), without)


def _loss(
    lines: Written,
    paths: tuple[Path, ...],
    places: tuple[int, ...],
    given: tuple[Any, ...],
    inputs: tuple[Any, ...],
    dout: Any,
    keep: Any,
) -> Any:
    """<dout, out>, where what comes back along each path is multiplied by a number."""
    values = dict(zip(lines.inputs, inputs, strict=True))
    values |= {lines.inputs[i]: v for i, v in zip(places, given, strict=True)}
    numbers = {(path.line, path.name): k for k, path in enumerate(paths)}
    for i, line in enumerate(lines.lines):
        seen = dict(values)
        for name in line.uses:
            if (i, name) in numbers:
                k = keep[numbers[i, name]]
                seen[name] = jax.tree.map(
                    lambda v, k=k: lax.stop_gradient(v) + k * (v - lax.stop_gradient(v)),
                    values[name],
                )
        values |= lines.run_line(i, seen)
    return (values[lines.result] * dout).sum()


def of_one(exercise: Exercise, case: Case) -> Cause | None:
    """Return the path, or the two, that explain every entry of a wrong cotangent."""
    found = cut(exercise)
    if found is None or case.name not in found.without[0]:
        return None
    if case.given[0].shape != case.right[0].shape:
        return None
    lines = exercise.written
    assert lines is not None
    singles = []
    for number, path in enumerate(found.paths):
        brought = [
            right - without[case.name][number]
            for right, without in zip(case.right, found.without, strict=True)
        ]
        factor = _factor(case, brought)
        if factor is not None:
            singles.append((_rank(path, factor), path, factor))
    if singles:
        _, path, factor = min(singles, key=lambda s: s[0])
        return _told(case, path, factor, lines)
    n = len(found.paths)
    for row, (a, b) in enumerate(found.pairs):
        if all(
            close(without[case.name][n + row], given)
            for without, given in zip(found.without, case.given, strict=True)
        ):
            first, second = found.paths[a], found.paths[b]
            return Cause(
                "path",
                f"{case.name}: two parts are missing: nothing flows back to {first.name} through "
                f"`{lines.lines[first.line].text}`, nor to {second.name} through "
                f"`{lines.lines[second.line].text}`",
                "Every line that uses a value sends something back to it: count the lines.",
            )
    return None


def _factor(case: Case, brought: list[Leaf]) -> float | None:
    """The number that a path must be multiplied by to give what was given, at both points."""
    numbers = []
    for given, right, part in zip(case.given, case.right, brought, strict=True):
        square = float((part * part).sum())
        scale = float(np.abs(right).max(initial=0.0))
        if float(np.abs(part).max(initial=0.0)) <= 1e-9 * scale or part.size < 2:
            return None
        k = float(((given - right) * part).sum()) / square
        if not close(right + k * part, given):
            return None
        numbers.append(1 + k)
    return numbers[0] if abs(numbers[0] - numbers[-1]) <= 1e-7 * (1 + abs(numbers[0])) else None


def _rank(path: Path, factor: float) -> tuple[int, int]:
    """A name that several lines use says more; then what is nearer to the output."""
    return (0 if path.uses > 1 else 1, -path.line)


def _told(case: Case, path: Path, factor: float, lines: Written) -> Cause | None:
    line = f"`{lines.lines[path.line].text}`"
    start = f"{case.name}: what comes back to {path.name} through {line}"
    if abs(factor) < 1e-7:
        return Cause(
            "path",
            f"{case.name}: nothing flows back to {path.name} through {line}",
            f"Which lines of the forward use {path.name}? Each of them adds a term."
            if path.uses > 1
            else "Every line sends something back to what it uses.",
        )
    if abs(factor - 2) < 1e-7:
        if _squared(lines.lines[path.line].text, path.name):
            return Cause("factor", f"{start} is twice what it must be", "Differentiate it alone.")
        return Cause("twice", f"{start} counts twice", "Is its term in two places of your code?")
    if abs(factor + 1) < 1e-7:
        return Cause("sign", f"{start} has the wrong sign", f"Differentiate {line} on paper.")
    cause = number_in_words(factor, case.sizes)
    return cause and cause._replace(
        text=f"{start} {cause.text}".replace("the right one", "what it must be")
    )


def _squared(text: str, name: str) -> bool:
    return any(
        isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and name in ast.unparse(node)
        for node in ast.walk(ast.parse(text))
    )
