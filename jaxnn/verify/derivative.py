"""Differentiate a loss in reverse mode, or how else JAX allows it.

reverse mode         jax.value_and_grad
forward mode         one tangent per coordinate: through `while`, which reverse mode refuses
finite differences   a ladder of steps per coordinate: through callbacks and kernels
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnn.verify.findings import first_line
from jaxnn.verify.finite_differences import STEPS, Loss, slope_of

Way = Literal["reverse mode", "forward mode", "finite differences"]
WAYS: tuple[Way, ...] = ("reverse mode", "forward mode", "finite differences")
# Forward mode and finite differences take a pass or more for every coordinate.
MOST_COORDINATES = 2048


class Measured(NamedTuple):
    """A gradient by finite differences: the values, and what each may be off by.

    Attributes:
        slopes: the centred differences, leaf by leaf.
        errors: their estimated errors; infinite at kinks and where the loss is not finite.
    """

    slopes: list[np.ndarray[Any, Any]]
    errors: list[np.ndarray[Any, Any]]


def derivative(loss: Loss, way: Way) -> Callable[[list[Any], list[Any]], tuple[Any, Any]]:
    """Return a function of the same arrays that returns the loss and its gradient, a leaf each.

    By finite differences it returns the loss along every coordinate, for `measured` to read.
    """
    if way == "reverse mode":
        return jax.value_and_grad(loss)

    def by_coordinate(floats: list[Any], rest: list[Any]) -> tuple[Any, Any]:
        def forward(number: Any) -> Any:
            unit = _unit(floats, number)
            return jax.jvp(lambda x: loss(x, rest), (floats,), (unit,))[1]

        def ladder(number: Any) -> Any:
            unit = _unit(floats, number)
            sizes = [jnp.abs(x * e).sum() for x, e in zip(floats, unit, strict=True)]
            length = sum(size.astype(jnp.result_type(float)) for size in sizes)

            def at(step: Any) -> Any:
                t = step * jnp.maximum(1.0, length)
                moved = [x + (t * e).astype(x.dtype) for x, e in zip(floats, unit, strict=True)]
                return loss(moved, rest)

            return lax.map(at, np.concatenate([[0.0], STEPS, -STEPS])), length

        one = forward if way == "forward mode" else ladder
        return loss(floats, rest), lax.map(one, jnp.arange(sum(x.size for x in floats)))

    return by_coordinate


def split(flat: Any, floats: list[Any]) -> list[np.ndarray[Any, Any]]:
    """Return one number per coordinate, as the leaves have them."""
    ends = np.cumsum([x.size for x in floats])[:-1]
    parts = np.split(np.asarray(flat, np.float64), ends)
    return [part.reshape(x.shape) for part, x in zip(parts, floats, strict=True)]


def measured(ladders: Any, floats: list[Any], epsilon: float) -> Measured:
    """Return the gradient that the loss along every coordinate shows, rounded to `epsilon` at 1."""
    values, lengths = (np.asarray(x, np.float64) for x in ladders)
    n = len(STEPS)
    slopes, errors = np.zeros(len(values)), np.zeros(len(values))
    for i, (f, length) in enumerate(zip(values, lengths, strict=True)):
        s = slope_of(STEPS * max(1.0, length), f[0], f[1 : n + 1], f[n + 1 :], epsilon)
        slopes[i], errors[i] = s.centred, np.inf if s.kink else 4 * s.error + 1e-7 * abs(s.centred)
    return Measured(split(slopes, floats), split(errors, floats))


def ways_of(loss: Loss, floats: list[Any], rest: list[Any]) -> tuple[Way, str]:
    """Return the first way in which a traced loss has a derivative, and what JAX said before.

    Raises:
        ValueError: only a way by coordinates is left, and they are too many.
    """
    said = ""
    for way in WAYS:
        coordinates = sum(x.size for x in floats)
        if way != "reverse mode" and coordinates > MOST_COORDINATES:
            raise ValueError(
                f"the loss has no derivative in reverse mode ({said}), and {coordinates} "
                f"coordinates are more than the {MOST_COORDINATES} that are looked at one by one; "
                "verify with smaller arrays, or against a reference that JAX can differentiate"
            )
        try:
            jax.eval_shape(derivative(loss, way), floats, rest)
        except Exception as error:  # each primitive without a rule has an error of its own
            first = first_line(error).partition(". ")[0]
            said = said or f"{type(error).__name__}: {first:.160}"
        else:
            return way, said
    raise ValueError(f"the loss can be traced but not evaluated along a line: {said}")


def _unit(floats: list[Any], number: Any) -> list[Any]:
    """1 at a coordinate counted through all leaves, 0 elsewhere."""
    units, start = [], 0
    for x in floats:
        unit = jnp.arange(start, start + x.size) == number
        units.append(unit.reshape(x.shape).astype(x.dtype))
        start += x.size
    return units
