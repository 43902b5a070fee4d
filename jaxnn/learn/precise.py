"""What is right in float64 is asked again as it is used: in float32, and of large inputs.

The truth is autodiff's in float64. How much of it float32 can hold is seen by moving every input by
its last digit: a rule may lose a few times as much, and no more.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.learn import sizes
from jaxnn.learn.calls import by_name, call
from jaxnn.learn.points import (
    Leaf,
    in_float64,
    is_floating,
    lifted,
    point_at,
)
from jaxnn.learn.result import Row
from jaxnn.learn.sizes import cotangent, grown
from jaxnn.learn.student import Work

EPS = float(np.finfo(np.float32).eps)
# So many times what a move of the inputs by their last digit does, and so much of the scale.
SLACK, SHARE = 64.0, 2e-4
MOVES = 3
# The first input as the exercise draws it, and larger.
CHANGES: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    ("", lambda x: x),
    (" times 100", lambda x: x * 100),
    (" plus 1000", lambda x: x + 1000),
)


def rows(work: Work, found: list[Row]) -> list[Row]:
    """Return the rows of a work that is right in float64, with what is wrong in float32.

    The sizes are not those of the example, so that what holds for these alone is seen too.
    """
    for number, (text, change) in enumerate(CHANGES):
        first, *rest = (jax.tree.map(np.asarray, value) for value in grown(work.exercise, number))
        moved = jax.tree.map(lambda x, c=change: _float32(c(x)) if is_floating(x) else x, first)
        where = f"with {work.exercise.inputs[0]}{text}" if text else ""
        try:
            lost, failed = _at(work, (moved, *rest), where), None
        except Exception as error:
            lost, failed = None, error
        if lost or failed:
            of_sizes = sizes.rows(work, found)
            if any(row.status == "wrong" for row in of_sizes):
                return of_sizes
        if failed:
            raise failed
        if lost:
            others = [row for row in found if row.name != lost.name]
            place = [row.name for row in found].index(lost.name) if len(others) < len(found) else 0
            return [*others[:place], lost, *others[place:]]
    return found


def _float32(x: Any) -> Any:
    return np.asarray(x, np.float32)


def _at(work: Work, inputs: tuple[Any, ...], where: str) -> Row | None:
    """What is wrong at one point."""
    exercise = work.exercise
    dout = np.asarray(cotangent(exercise, 3), np.float32)
    with in_float64():
        point = point_at(exercise, lifted(inputs), 3, jnp.asarray(dout, jnp.float64))
        spread = _spread(work, inputs, dout, point.right)
    held, out = point.right, np.asarray(point.out)
    given = jax.tree.map(jnp.asarray, inputs)
    fwd, bwd = (f"{exercise.name}_{role}" for role in ("fwd", "bwd"))
    own = fwd in work.functions
    got, saved = call(work, fwd, *given) if own else exercise.function("fwd")(*given)
    if _fits(out) and not np.isfinite(got).all():
        return _overflow(exercise.output, f"the forward {where}".rstrip())
    mine = by_name(work, bwd, call(work, bwd, saved, jnp.asarray(dout)), inputs)
    for name, truth in held.items():
        value = mine.get(f"d{name}")
        if value is None or not _fits(truth):
            continue
        if not np.isfinite(value).all():
            return _overflow(f"d{name}", f"d{name} {where}".rstrip())
        error = float(np.abs(value - truth).max(initial=0.0))
        scale = float(np.abs(truth).max(initial=0.0))
        if error > SLACK * spread[name] + SHARE * scale + _rounding(held, dout, inputs):
            return _lost(f"d{name}", where, error, scale)
    return None


def _fits(value: Leaf) -> bool:
    """Whether float32 can hold it."""
    return bool((np.abs(value) < np.finfo(np.float32).max).all())


def _rounding(held: dict[str, Leaf], dout: Leaf, inputs: tuple[Any, ...]) -> float:
    """What may be left where a small cotangent is a difference of large values."""
    amounts = [_most(v) for v in (dout, *held.values()) if _fits(v)]
    large = [_most(x) for x in jax.tree.leaves(inputs) if is_floating(x)]
    return 8 * EPS * max(amounts) * max(1.0, *large)


def _most(value: Any) -> float:
    return float(np.abs(value).max(initial=0.0))


def _spread(
    work: Work, inputs: tuple[Any, ...], dout: Leaf, held: dict[str, Leaf]
) -> dict[str, float]:
    """How far each cotangent goes where the inputs are moved by their last digit in float32."""
    most = dict.fromkeys(held, 0.0)
    for seed in range(MOVES):
        generator = np.random.default_rng(seed)

        def move(x: Any, generator: Any = generator) -> Any:
            if not is_floating(x):
                return x
            return np.asarray(x, np.float64) * (1 + EPS * generator.uniform(-1, 1, np.shape(x)))

        moved = lifted(jax.tree.map(move, inputs))
        there = point_at(work.exercise, moved, 3, jnp.asarray(dout, jnp.float64)).right
        for name, value in there.items():
            with np.errstate(all="ignore"):
                gap = float(np.abs(value - held[name]).max(initial=0.0))
            most[name] = max(most[name], gap) if np.isfinite(gap) else np.inf
    return most


def _lost(name: str, where: str, error: float, scale: float) -> Row:
    return Row(
        name,
        "wrong",
        f"right in float64; in float32{where and f', {where},'} off by {error:.1e} where the "
        f"largest is {scale:.1e}",
        "precision",
        f"{name} is right in float64, but loses digits in float32",
        "Which two numbers that are nearly alike are subtracted from each other? In a variance, "
        "take the mean off before you square; a difference of two values of the forward, divided "
        "by a small step, is no derivative.",
    )


def _overflow(name: str, what: str) -> Row:
    return Row(
        name,
        "wrong",
        f"{what}: NaN or infinite in float32, where the true value is finite",
        "precision",
        f"{name} is right in float64, but overflows in float32",
        "What goes into exp, or is squared? Take the largest off first, or rearrange.",
    )
