"""Move to points nearby: how far rounding moves both gradients, and which slopes meet at a kink.

Rounding is measured by moving every input in its last place. At a kink a function has several
slopes: the gradients at points very close by, on all sides, are what a subgradient is a mixture of.
Entry by entry it lies between the least and the largest of them; and along a direction in which all
of them have one and the same slope (the tied entries of a maximum moved together, say) it has that
slope too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnn.verify.findings import Leaf
from jaxnn.verify.problem import Problem, is_floating
from jaxnn.verify.trace import EPSILON
from jaxnn.verify.values import Values, largest

# What is a small part of the scale, and how much further a move goes to tell rounding from a kink.
SMALL, FURTHER = 1e-3, 64


def moved(leaves: list[Any], size: float, rng: np.random.Generator) -> list[Any]:
    """Move the floating arrays at random, by up to `size` of each entry (of 1 where it is 0)."""

    def move(x: Any) -> Any:
        if not is_floating(x):
            return x
        step = rng.uniform(size=x.shape) * np.where(np.asarray(x, np.float64) == 0, 1.0, x)
        return jax.device_put(np.asarray(x) + (size * step).astype(x.dtype))

    return [move(x) for x in leaves]


def rounding_of(problem: Problem, here: Values, floats: list[Any], rest: list[Any]) -> list[float]:
    """Measure how far each leaf's gradients move if all inputs move in their last place (float64).

    The larger of the two gradients' moves, and the smaller for two random moves in opposite
    directions: a kink on one side is not rounding. Times 64, for sums of many terms; bounded by the
    scale of the whole problem, so that a kink on both sides excuses nothing.
    """
    rng = np.random.default_rng(0)

    def moves(sign: int) -> list[float]:
        near = (moved(leaves, sign * 2.0**-51, rng) for leaves in (floats, rest))
        there = here.evaluator.at(*near)
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
    """Measure how far the two gradients of a leaf move apart if inputs move in their last place.

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
            there = here.evaluator.at(*near)
            moves.append([largest(b - a) for a, b in zip(before, apart(there), strict=True)])
    scales = map(largest, here.autodiff)
    return [
        64 * min(float(move), epsilon * scale)
        for move, scale in zip(np.median(moves, axis=0), scales, strict=True)
    ]


# So many draws tell how far rounding moves a gradient; their median leaves out a kink close by.
DRAWS = 5


def noise_of(here: Values, floats: list[Any], rest: list[Any], epsilon: float) -> list[float]:
    """Measure how far autodiff's gradient of each leaf is off if it is rounded to `epsilon` at 1.

    Every input is moved in its last place of that width: the largest change of an entry, as the
    median of several draws. A change that is no small part of the scale is rounding only if it
    grows with the move: that at a kink does not.
    """
    rng = np.random.default_rng(0)

    def changes(size: float) -> list[float]:
        draws = []
        for k in range(DRAWS):
            near = (moved(leaves, (-1) ** k * size, rng) for leaves in (floats, rest))
            there = here.evaluator.at(*near)
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
    """Return what float64 may round away in numbers of the size of the loss, or of 1."""
    return 64 * 2.0**-52 * max(1.0, abs(loss))


# How far away the gradients close by are taken, relative to an entry (to 1 where it is smaller):
# what they differ by is a kink, as no bend shows so close.
CLOSE = 1e-7
# So many of them find either side of a kink, and each of up to some twenty tied entries.
SAMPLES = 128
# So many entries at kinks are looked at together, at twice as many points and a few more.
TOGETHER = 192
MORE = 64
# What differs by less of the scale is the same slope.
SAME_SLOPE = 1e-4
Evaluate = Callable[[list[Any]], Values]


class Slopes(NamedTuple):
    """The least and the largest slope of every entry of one leaf close by."""

    low: Leaf
    high: Leaf

    def kinks(self, scale: float) -> Leaf:
        """Return which entries lie at a kink."""
        return self.high - self.low > SAME_SLOPE * scale

    def admit(self, gradient: Leaf, scale: float) -> Leaf:
        """Return which entries of a gradient lie between the slopes."""
        slack = SAME_SLOPE * scale
        return (self.low - slack <= gradient) & (gradient <= self.high + slack)


class SlopesCloseBy:
    """Autodiff's gradients at points close to the one given, as far as they are finite."""

    def __init__(self, floats: list[Any], at: Evaluate):
        """Draw and evaluate `SAMPLES` points; `at(floats)` gives both gradients."""
        self._floats = [np.asarray(x, np.float64) for x in floats]
        self._at, self._rng = at, np.random.default_rng(0)
        self.slopes: list[Slopes] = []
        for sample in (self._sample() for _ in range(SAMPLES)):
            if not self.slopes:
                self.slopes = [Slopes(leaf, leaf) for leaf in sample]
            self.slopes = [
                Slopes(np.fmin(s.low, leaf), np.fmax(s.high, leaf))
                for s, leaf in zip(self.slopes, sample, strict=True)
            ]

    def _sample(self) -> list[Leaf]:
        steps = [
            CLOSE * np.maximum(1.0, np.abs(x)) * self._rng.normal(size=x.shape)
            for x in self._floats
        ]
        return self._at([x + h for x, h in zip(self._floats, steps, strict=True)]).autodiff

    def conflict(self, manual: dict[str, Leaf], autodiff: list[Leaf], paths: list[str]) -> str:
        """Say what no subgradient could have along some direction; empty where nothing is.

        Args:
            manual: the hand-written gradient by path; every entry of it alone is admitted.
            autodiff: that of the loss at the point itself.
            paths: of the leaves.
        """
        scale = max(map(largest, autodiff), default=0.0)
        names, values, chosen = [], [], []
        for k, (path, s) in enumerate(zip(paths, self.slopes, strict=True)):
            if path not in manual or manual[path].shape != s.low.shape:
                continue
            differs = np.abs(manual[path] - autodiff[k]) > SAME_SLOPE * scale
            for flat in np.flatnonzero(s.kinks(scale)):
                at = np.unravel_index(flat, s.low.shape)
                chosen.append((not differs[at], k, flat))
                names.append(f"{path}{[int(i) for i in at]}" if at else path)
                values.append(float(manual[path][at]))
        # Those that differ from autodiff's first: the others are with them what they are tied to.
        order = sorted(range(len(chosen)), key=lambda i: chosen[i])[:TOGETHER]
        if not order:
            return ""
        samples = np.array(
            [
                [sample[chosen[i][1]].flat[chosen[i][2]] for i in order]
                for sample in (self._sample() for _ in range(2 * len(order) + MORE))
            ]
        )
        samples = samples[np.isfinite(samples).all(axis=1)]
        if len(samples) < len(order) + MORE // 2:
            return ""
        mean = samples.mean(axis=0)
        _, sizes, rows = np.linalg.svd((samples - mean) / np.sqrt(len(samples)))
        one_slope = rows[np.append(sizes, np.zeros(len(rows) - len(sizes))) <= SAME_SLOPE * scale]
        off = one_slope.T @ (one_slope @ (np.array([values[i] for i in order]) - mean))
        if np.abs(off).max(initial=0.0) <= 10 * SAME_SLOPE * scale:
            return ""
        direction = off / np.abs(off).max()
        direction[np.abs(direction) < 1e-3] = 0.0
        moving = [names[order[i]] for i in np.argsort(-np.abs(direction), kind="stable")]
        moving = moving[: np.count_nonzero(direction)]
        more = f" and {len(moving) - 4} more" if len(moving) > 4 else ""
        ours = float(direction @ [values[i] for i in order])
        return (
            f"no subgradient is this: each entry by itself could be, but where "
            f"{', '.join(moving[:4])}{more} move together the loss has one slope, "
            f"{float(direction @ mean):.6g}, and the hand-written gradient {ours:.6g}"
        )
