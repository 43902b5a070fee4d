"""How far rounding moves both gradients, measured by moving every input in its last place."""

from typing import Any

import jax
import numpy as np

from jaxnn.verify.problem import Problem, is_floating
from jaxnn.verify.values import Leaf, Values, largest
from jaxnn.verify.width import EPSILON

# What is a small part of the scale, and how much further a move goes to tell rounding from a kink.
SMALL, FURTHER = 1e-3, 64


def moved(leaves: list[Any], size: float, rng: np.random.Generator) -> list[Any]:
    """The floating arrays moved at random, by up to `size` of each entry (of 1 where it is 0)."""

    def move(x: Any) -> Any:
        if not is_floating(x):
            return x
        step = rng.uniform(size=x.shape) * np.where(np.asarray(x, np.float64) == 0, 1.0, x)
        return jax.device_put(np.asarray(x) + (size * step).astype(x.dtype))

    return [move(x) for x in leaves]


def rounding_of(problem: Problem, here: Values, floats: list[Any], rest: list[Any]) -> list[float]:
    """How far the gradients of each leaf move if every input moves in its last place, in float64.

    The larger of the two gradients' moves, and the smaller for two random moves in opposite
    directions: a kink on one side is not rounding. Times 64, for sums of many terms; bounded by the
    scale of the whole problem, so that a kink on both sides excuses nothing.
    """
    rng = np.random.default_rng(0)

    def moves(sign: int) -> list[float]:
        near = (moved(leaves, sign * 2.0**-51, rng) for leaves in (floats, rest))
        there = here.asked.at(*near)
        autodiff = [
            largest(g - g_here) for g, g_here in zip(there.autodiff, here.autodiff, strict=True)
        ]
        manual = {path: largest(there.manual[path] - g) for path, g in here.manual.items()}
        return [max(a, manual.get(p, a)) for p, a in zip(problem.paths, autodiff, strict=True)]

    bound = 1e-12 * here.size
    with np.errstate(invalid="ignore"):  # infinity minus infinity is no move
        ups, downs = moves(1), moves(-1)
    return [min(64 * min(up, down), bound) for up, down in zip(ups, downs, strict=True)]


def apart_of(
    here: Values, floats: list[Any], rest: list[Any], paths: list[str], epsilon: float
) -> list[float]:
    """How far the two gradients of each leaf move apart if what was given moves in its last place.

    Rows that sum to 1 and unit vectors are so only to the last place of the dtype that they were
    given in, and a gradient that relies on it is off by as much in float64. A gradient that is
    wrong by a part of itself moves by that part of a last place only. Times 64, as in
    `rounding_of`, and no more than so many last places of the scale; for float32 alone, since of
    wider numbers nothing is left, and the last place of narrower ones is no small move.
    """
    if epsilon != EPSILON["float32"]:
        return [0.0] * len(paths)
    rng = np.random.default_rng(0)

    def apart(values: Values) -> list[Leaf]:
        by_hand = [values.manual.get(path) for path in paths]
        return [
            m - a if m is not None and m.shape == a.shape else np.zeros(a.shape)
            for m, a in zip(by_hand, values.autodiff, strict=True)
        ]

    with np.errstate(invalid="ignore"):  # infinity minus infinity is no move
        before, moves = apart(here), []
        for sign in (1, -1, 1, -1):
            near = (moved(leaves, sign * epsilon, rng) for leaves in (floats, rest))
            there = here.asked.at(*near)
            moves.append([largest(b - a) for a, b in zip(before, apart(there), strict=True)])
    scales = map(largest, here.autodiff)
    return [
        64 * min(float(move), epsilon * scale)
        for move, scale in zip(np.median(moves, axis=0), scales, strict=True)
    ]


# So many draws tell how far rounding moves a gradient; their median leaves out a kink close by.
DRAWS = 5


def noise_of(here: Values, floats: list[Any], rest: list[Any], epsilon: float) -> list[float]:
    """How far autodiff's gradient of each leaf is off where it is rounded to `epsilon` at 1.

    Every input is moved in its last place of that width: the largest change of an entry, as the
    median of several draws. A change that is no small part of the scale is rounding only if it
    grows with the move: that at a kink does not.
    """
    rng = np.random.default_rng(0)

    def changes(size: float) -> list[float]:
        draws = []
        for k in range(DRAWS):
            near = (moved(leaves, (-1) ** k * size, rng) for leaves in (floats, rest))
            there = here.asked.at(*near)
            with np.errstate(invalid="ignore"):
                pairs = zip(there.autodiff, here.autodiff, strict=True)
                draws.append([largest(g - now) for g, now in pairs])
        return [float(x) for x in np.median(draws, axis=0)]

    found = changes(epsilon)
    small = [SMALL * largest(g) for g in here.autodiff]
    if epsilon > EPSILON["float32"] or not any(f > s for f, s in zip(found, small, strict=True)):
        return found
    wider = changes(FURTHER * epsilon)
    return [min(f, max(w / FURTHER, s)) for f, w, s in zip(found, wider, small, strict=True)]


def plausible_rounding(loss: float) -> float:
    """What float64 may round away in numbers of the size of the loss, or of 1."""
    return 64 * 2.0**-52 * max(1.0, abs(loss))
