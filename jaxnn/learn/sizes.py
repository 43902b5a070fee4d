"""Points of other sizes: a size that is written as a number is right at the example's alone.

Every letter of the shapes that stands by itself grows by one, where the forward allows it.
"""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.learn.calls import by_line, by_name, call
from jaxnn.learn.case import sizes_of
from jaxnn.learn.exercise import Exercise
from jaxnn.learn.guard import Fault, said
from jaxnn.learn.points import (
    Leaf,
    close,
    cotangent_at,
    drawn,
    in_float64,
    is_floating,
    lifted,
    point_at,
)
from jaxnn.learn.result import Row
from jaxnn.learn.student import Work


@functools.cache
def grown(exercise: Exercise, seed: int) -> tuple[Any, ...]:
    """Return an exercise's example of a seed, in float32, with larger sizes."""
    inputs = drawn(exercise, seed)
    for letter in _free(exercise):
        inputs = _grow(exercise, inputs, letter)
    return inputs


@functools.cache
def cotangent(exercise: Exercise, seed: int) -> Leaf:
    """Return a random cotangent of the output at `grown`, in float64."""
    return cotangent_at(exercise, grown(exercise, 0), seed)


@functools.cache
def _free(exercise: Exercise) -> tuple[str, ...]:
    """The sizes that the forward leaves free."""
    inputs, found = drawn(exercise, 0), []
    for letter in _letters(exercise):
        larger = _grow(exercise, inputs, letter)
        try:
            jax.eval_shape(exercise.module.forward, *larger)
        except (TypeError, ValueError):
            continue
        inputs = larger
        found.append(letter)
    return tuple(found)


def _letters(exercise: Exercise) -> list[str]:
    """The sizes that stand by themselves wherever they stand in inputs, and are not divided."""
    texts = (*exercise.module.INPUTS.values(), *exercise.module.OUTPUT.values())
    parts = [p.strip() for text in texts for p in re.sub(r"\.\.\.", "", text).split(",")]
    bound = {
        letter
        for part in parts
        if re.search(r"/|\d[A-Z]", part)
        for letter in re.findall(r"[A-Z]", part)
    }
    example = dict(zip(exercise.inputs, drawn(exercise, 0), strict=True))
    return [letter for letter in sizes_of(exercise.module.INPUTS, example) if letter not in bound]


def _grow(exercise: Exercise, inputs: tuple[Any, ...], letter: str) -> tuple[Any, ...]:
    found = []
    for value, text in zip(inputs, exercise.module.INPUTS.values(), strict=True):
        match = re.search(r"\(([^()]*)\)", text)
        sizes = [s.strip() for s in match[1].split(",") if s.strip()] if match else []
        if not isinstance(value, dict) and len(sizes) == np.ndim(value):
            array = np.asarray(value)
            for axis in (i for i, size in enumerate(sizes) if size == letter):
                first = np.take(array, [0], axis)
                more = first * np.float32(1.3) if is_floating(array) else first
                array = np.concatenate([array, more.astype(array.dtype)], axis)
            value = jnp.asarray(array)
        found.append(value)
    return tuple(found)


def rows(work: Work, found: list[Row]) -> list[Row]:
    """Return the rows of a work that is right at the example's sizes, as they are at others.

    Raises:
        Fault: it cannot run there.
    """
    exercise = work.exercise
    small, large = drawn(exercise, 0), grown(exercise, 0)
    with in_float64():
        dout = jnp.asarray(cotangent(exercise, 5))
        point = point_at(exercise, lifted(large), 5, dout)
        try:
            with said(work.path):
                given = _returned(work, point)
        except Fault as fault:
            where = f"right where {_in_words(exercise, small)}"
            raise Fault(f"{where}; where {_in_words(exercise, large)}, {fault}") from None
    right = {f"d{k}": v for k, v in {**point.right, **point.inner}.items()}
    scale = max(float(np.abs(v).max(initial=0.0)) for v in point.right.values())
    return [
        _row(row, exercise)
        if row.name in right and not _same(given.get(row.name), right[row.name], scale)
        else row
        for row in found
    ]


def _returned(work: Work, point: Any) -> dict[str, Any]:
    """What the work gives back at a point."""
    exercise = work.exercise
    if exercise.written is not None and work.grade == "easy":
        values = [point.values[n] for n in exercise.written.names]
        name = f"{exercise.name}_steps"
        return by_line(work, name, call(work, name, *values, point.dout))
    fwd, bwd = (f"{exercise.name}_{role}" for role in ("fwd", "bwd"))
    own = fwd in work.functions
    _, saved = call(work, fwd, *point.inputs) if own else exercise.function("fwd")(*point.inputs)
    return by_name(work, bwd, call(work, bwd, saved, point.dout), point.inputs)


def _same(given: Any, right: Leaf, scale: float) -> bool:
    if given is None or np.shape(given) != right.shape:
        return False
    wide = np.asarray(given, np.float64)
    return close(wide, right) or float(np.abs(wide - right).max(initial=0.0)) < 1e-9 * scale


def _row(row: Row, exercise: Exercise) -> Row:
    small, large = (_in_words(exercise, f(exercise, 0)) for f in (drawn, grown))
    return Row(
        row.name,
        "wrong",
        f"right where {small}, but not where {large}",
        "size",
        f"{row.name} is right for the sizes of the example alone",
        "Is a size written as a number, or taken from another axis that is as long? An array's own "
        "shape says it.",
    )


def _in_words(exercise: Exercise, inputs: tuple[Any, ...]) -> str:
    sizes = sizes_of(exercise.module.INPUTS, dict(zip(exercise.inputs, inputs, strict=True)))
    return ", ".join(f"{letter} = {n}" for letter, n in sizes.items())
