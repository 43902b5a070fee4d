"""Kinks: where a function has several slopes, which values a subgradient may have.

The gradients at points very close by, on all sides, are what a subgradient is a mixture of. Entry
by entry it lies between the least and the largest of them; and along a direction in which all of
them have one and the same slope (the tied entries of a maximum moved together, say) it has that
slope too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxnn.verify.values import Values, largest

# How far away the gradients close by are taken, relative to an entry (to 1 where it is smaller):
# what they differ by is a kink, as no bend shows so close.
REACH = 1e-7
# So many of them find either side of a kink, and each of up to some twenty tied entries.
SAMPLES = 128
# So many entries at kinks are looked at together, at twice as many points and a few more.
TOGETHER = 192
MORE = 64
# What differs by less of the scale is the same slope.
SAME = 1e-4

Leaf = np.ndarray[Any, Any]
Evaluate = Callable[[list[Any]], Values]


class Slopes(NamedTuple):
    """The least and the largest slope of every entry of one leaf close by."""

    low: Leaf
    high: Leaf

    def kinks(self, scale: float) -> Leaf:
        """Which entries lie at a kink."""
        return self.high - self.low > SAME * scale

    def admit(self, gradient: Leaf, scale: float) -> Leaf:
        """Which entries of a gradient lie between the slopes."""
        slack = SAME * scale
        return (self.low - slack <= gradient) & (gradient <= self.high + slack)


class Nearby:
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
            REACH * np.maximum(1.0, np.abs(x)) * self._rng.normal(size=x.shape)
            for x in self._floats
        ]
        return self._at([x + h for x, h in zip(self._floats, steps, strict=True)]).autodiff

    def conflict(self, manual: dict[str, Leaf], autodiff: list[Leaf], paths: list[str]) -> str:
        """What no subgradient could have along some direction; empty where nothing is.

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
            differs = np.abs(manual[path] - autodiff[k]) > SAME * scale
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
        one_slope = rows[np.append(sizes, np.zeros(len(rows) - len(sizes))) <= SAME * scale]
        off = one_slope.T @ (one_slope @ (np.array([values[i] for i in order]) - mean))
        if np.abs(off).max(initial=0.0) <= 10 * SAME * scale:
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
