"""Exponents: the slope of a curve where both axes are logarithmic, whole and between neighbours.

    y = c x^a    log y = log c + a log x    a: the line through all points by least squares,
                                            or through two neighbours alone

Where a is not the same everywhere the curve is no power, and bends: by more than `BEND` from one
neighbouring pair to the next, or, little by little, from the first pair to the last.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

BEND = 0.25  # less than a seventh of a curve from x^1 to x^2 is noise of a clock, or padding


class Bend(NamedTuple):
    """Where a curve bends: at which size, or (`sudden` False) around it, from what slope to what.

    Attributes:
        at: the size.
        before: the slope up to it; of a slow bend, between the first two sizes.
        after: the slope from it on; of a slow bend, between the last two.
        sudden: whether it lies at that one size.
    """

    at: float
    before: float
    after: float
    sudden: bool


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return the exponent a of the power c x^a that fits best, by least squares of the logarithms.

    Raises:
        ValueError: there are fewer than two sizes, or one or a value is not above 0.
    """
    x, y = _logarithms(sizes, values)
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())


def local_slopes(sizes: Sequence[float], values: Sequence[float]) -> list[float]:
    """Return the exponent between each size and the next; raises as `slope`."""
    x, y = _logarithms(sizes, values)
    return [float(each) for each in np.diff(y) / np.diff(x)]


def bends(sizes: Sequence[float], values: Sequence[float], least: float = BEND) -> list[Bend]:
    """Return where the local slope changes by more than `least`, or else between which ends.

    Several turns in the same direction, size after size, are one bend, at the largest of them.

    Raises:
        ValueError: as `slope`.
    """
    local = local_slopes(sizes, values)
    found: list[Bend] = []
    largest = 0.0
    turns = [b - a for a, b in pairwise(local)]
    for i, turn in enumerate(turns):
        if abs(turn) <= least:
            continue
        bend = Bend(float(sizes[i + 1]), local[i], local[i + 1], sudden=True)
        goes_on = i > 0 and abs(turns[i - 1]) > least and turns[i - 1] * turn > 0
        if goes_on:
            last = found.pop()
            at = bend.at if abs(turn) > largest else last.at
            bend = Bend(at, last.before, bend.after, sudden=True)
        largest = max(largest, abs(turn)) if goes_on else abs(turn)
        found.append(bend)
    if not found and local and abs(local[-1] - local[0]) > least:
        middle = float(np.sqrt(sizes[0] * sizes[-1]))
        found.append(Bend(middle, local[0], local[-1], sudden=False))
    return found


def _logarithms(sizes: Sequence[float], values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(sizes, float), np.asarray(values, float)
    if x.shape != y.shape or len(x) < 2:
        raise ValueError(
            f"there are {x.size} sizes and {y.size} values; a slope needs as many of each, "
            "two at least: measure more sizes"
        )
    for name, each in (("sizes", x), ("values", y)):
        if not (np.isfinite(each) & (each > 0)).all():
            raise ValueError(
                f"{name} are {each.tolist()}; all must be finite and above 0 to have logarithms: "
                "leave the others out"
            )
    return np.log(x), np.log(y)
