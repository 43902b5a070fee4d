"""Explain a wrong cotangent by the paths that a cotangent takes: left out, twice, with a factor.

Each use of a name in a line of the forward is a path. What comes back along it is multiplied by a
number (0: it is left out; 2: it counts twice), and the cotangents of the inputs change by as many
times what that path brings.
"""

import ast
import functools
import itertools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnn.learn.case import Case, Cause
from jaxnn.learn.exercise import Exercise
from jaxnn.learn.factors import number_in_words
from jaxnn.learn.lines import Written
from jaxnn.learn.points import QUICK, SEEDS, Leaf, close, floats, point_of

MOST_PAIRS = 100
# Other derivatives of a line y = f(x) of one shape, in words.
SLOPES: tuple[tuple[str, Callable[[Any, Any], Any]], ...] = (
    ("1, as if it were handed on", lambda x, y: 1),
    ("y (1 - y), that of a sigmoid", lambda x, y: y * (1 - y)),
    ("1 - y**2, that of a tanh", lambda x, y: 1 - y**2),
    ("y, that of an exponential", lambda x, y: y),
    ("1 - y", lambda x, y: 1 - y),
    ("1 where x is positive, that of a ramp", lambda x, y: x > 0),
)


class Path(NamedTuple):
    """A use of a name: in which line; how many lines use the name."""

    line: int
    name: str
    uses: int


class Cut(NamedTuple):
    """The paths of an exercise, and the cotangents without each one and each two of them."""

    paths: tuple[Path, ...]
    pairs: tuple[tuple[int, int], ...]
    slopes: tuple[tuple[int, int], ...]  # a path, and which of SLOPES
    without: list[dict[str, Leaf]]  # for each point, a row for each path, pair and slope


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
    values = points[0].values
    slopes = [
        (i, j)
        for i, path in enumerate(paths)
        if len(given := lines.lines[path.line].gives) == 1
        and floating & set(lines.lines[path.line].uses) == {path.name}
        and getattr(values[given[0]], "shape", None) == getattr(values[path.name], "shape", ())
        for j in range(len(SLOPES))
    ]
    keep = np.ones((n + len(pairs) + len(slopes), n))
    for row, held in enumerate([*((i,) for i in range(n)), *pairs, *((i,) for i, _ in slopes)]):
        keep[row, list(held)] = 0
    bent = np.zeros((len(keep), n, len(SLOPES)))
    for row, (i, j) in enumerate(slopes, n + len(pairs)):
        bent[row, i, j] = 1
    inputs = [i for i, name in enumerate(lines.inputs) if name in floating]
    run = jax.jit(
        jax.vmap(
            jax.grad(functools.partial(_loss, lines, tuple(paths), tuple(inputs)), argnums=0),
            in_axes=(None, None, None, 0, 0),
        ),
        compiler_options=QUICK,
    )
    without = []
    for point in points:
        floating_inputs = tuple(point.inputs[i] for i in inputs)
        found = run(floating_inputs, point.inputs, point.dout, keep, bent)
        without.append(
            {f"d{lines.inputs[i]}": np.asarray(v) for i, v in zip(inputs, found, strict=True)}
        )
    return Cut(tuple(paths), tuple(pairs), tuple(slopes), without)


def _loss(
    lines: Written,
    paths: tuple[Path, ...],
    places: tuple[int, ...],
    given: tuple[Any, ...],
    inputs: tuple[Any, ...],
    dout: Any,
    keep: Any,
    bent: Any,
) -> Any:
    """<dout, out>, where what comes back along each path has a factor, or another slope."""
    values = dict(zip(lines.inputs, inputs, strict=True))
    values |= {lines.inputs[i]: v for i, v in zip(places, given, strict=True)}
    numbers = {(path.line, path.name): k for k, path in enumerate(paths)}
    for i, line in enumerate(lines.lines):
        seen = dict(values)
        for name in line.uses:
            if (i, name) in numbers:
                k = keep[numbers[i, name]]
                seen[name] = jax.tree.map(
                    functools.partial(_times, k),
                    values[name],
                )
        found = lines.run_line(i, seen)
        for name in line.uses:
            (y, *others) = found.values()
            if (i, name) in numbers and not others and jnp.shape(y) == jnp.shape(values[name]):
                x, stopped = values[name], lax.stop_gradient(values[name])
                held = jnp.where(jnp.isfinite(y), lax.stop_gradient(y), 0)
                slopes = [f(stopped, held) for _, f in SLOPES]
                slope = sum(k * v for k, v in zip(bent[numbers[i, name]], slopes, strict=True))
                found = {
                    n: v + slope * jnp.where(jnp.isfinite(x), x - stopped, 0)
                    for n, v in found.items()
                }
        values |= found
    return (values[lines.result] * dout).sum()


def _times(number: Any, value: Any) -> Any:
    """A value, where what comes back to it is multiplied by a number."""
    still = lax.stop_gradient(value)
    return jnp.where(jnp.isfinite(still), still + number * (value - still), value)


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
    for row, (i, j) in enumerate(found.slopes, n + len(found.pairs)):
        if case.fits(w[case.name][row] for w in found.without):
            return _other_slope(case, found.paths[i], SLOPES[j][0], lines)
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


def _other_slope(case: Case, path: Path, words: str, lines: Written) -> Cause:
    line = lines.lines[path.line]
    names = {"x": path.name, "y": line.gives[0]}
    if "where(" in line.text and words == SLOPES[0][0]:
        return Cause(
            "mask",
            f"{case.name}: what comes back through `{line.text}` is not masked",
            "Follow the mask: which entries reached the output, and which get nothing back?",
        )
    return Cause(
        "slope",
        f"{case.name}: in `{line.text}` the derivative with respect to {path.name} is taken as "
        + re.sub(r"\b[xy]\b", lambda match: names[match[0]], words),
        f"Differentiate `{line.text}` by itself, on paper.",
    )


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
    cause = number_in_words(factor, case)
    return cause and cause._replace(
        text=f"{start} {cause.text}".replace("the right one", "what it must be")
    )


def _squared(text: str, name: str) -> bool:
    return any(
        isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and name in ast.unparse(node)
        for node in ast.walk(ast.parse(text))
    )
