"""Measure slopes from function values alone: the witness that shares nothing with gradients."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax

from jaxnn.verify.programs import Programs

# Step lengths, longest first. Truncation rules at one end and rounding at the other; which step
# is best depends on the function, so all are tried.
STEPS = np.array([1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7])
# Where the slopes on the two sides differ at the shortest of those, shorter ones tell a kink from
# a bend: what is smooth over 1e-9 of a unit is no kink.
SHORTER = np.array([1e-8, 1e-9, 1e-10, 1e-11, 1e-12, 1e-13])
# A step of fewer units in the last place of 1 than that is left out.
CLEAR = 2**13
# A loss is trusted to this many units in the last place: its own sums round too.
_ULPS = 16
Loss = Callable[[list[Any], list[Any]], Any]


class Slope(NamedTuple):
    """The slope of a scalar function at a point, along one direction, in float64.

    Attributes:
        centred: the centred difference at the step with the smallest estimated error.
        error: that estimate; infinite if no step gave finite values.
        left: the backward difference at the smallest step.
        right: the forward difference at the same step.
        kink: whether left and right tend to different limits.
        ladder: the step lengths tried and the centred difference at each.
    """

    centred: float
    error: float
    left: float
    right: float
    kink: bool
    ladder: tuple[tuple[float, float], ...]

    def resolves(self, value: float) -> bool:
        """Tell whether this slope is accurate enough to judge `value`; never at a kink."""
        large_enough = value == 0 or 4 * self.error <= max(abs(value), abs(self.centred))
        return not self.kink and large_enough and self.error < np.inf

    def agrees_with(self, value: float) -> bool:
        """Tell whether `value` lies within the accuracy of this slope; never at a kink."""
        return not self.kink and abs(value - self.centred) <= 4 * self.error + 1e-7 * abs(value)

    def admits(self, value: float) -> bool:
        """Tell whether `value` is a subgradient at a kink: between the slopes on both sides."""
        low, high = sorted((self.left, self.right))
        slack = 1e-5 * max(abs(low), abs(high)) + (self.error if self.error < np.inf else 0.0)
        return self.kink and low - slack <= value <= high + slack


class Line:
    """A loss along straight lines through one point: one compiled program, any direction."""

    def __init__(self, loss: Loss, floats: Any, rest: Any, programs: Programs):
        """Compile `loss(floats + t direction, rest)` over the steps t."""

        def values(floats: list[Any], rest: list[Any], direction: list[Any], ts: Any) -> Any:
            def at(t: Any) -> Any:
                return loss(_along(floats, direction, t), rest)

            return jax.vmap(at)(ts) if programs.long else lax.map(at, ts)

        self.floats, self.rest = floats, rest
        self.still = [np.zeros(x.shape) for x in floats]
        ts = np.zeros(2 * len(STEPS) + 1)
        self.program = programs.get("line", values, floats, rest, self.still, ts)
        self._loss, self._programs = loss, programs

    def slope(self, leaf: int, direction: np.ndarray[Any, Any]) -> Slope:
        """Return the slope when leaf number `leaf` alone moves along `direction` (of its shape)."""
        return self.along({leaf: direction})

    def along(self, directions: Mapping[int, np.ndarray[Any, Any]]) -> Slope:
        """Return the slope when these leaves move, each along a direction of its shape."""
        # Steps are relative to the leaves' size along the direction, where that is above 1.
        sizes = [np.abs(np.asarray(self.floats[i])[d != 0]) for i, d in directions.items()]
        length = max(1.0, float(np.concatenate([x.ravel() for x in sizes]).mean()))
        moved = self._only(directions)

        def at(h: np.ndarray[Any, Any]) -> tuple[Any, Any, Any, Any, float]:
            ts = np.concatenate([[0.0], h, -h])
            f = np.asarray(self.program.run(self.floats, self.rest, moved, ts), np.float64)
            return h, f[0], f[1 : len(h) + 1], f[len(h) + 1 :], self.program.epsilon

        slope = slope_of(*at(STEPS * length))
        if slope.kink and _is_bend(slope.right - slope.left, *at(SHORTER)):
            return slope._replace(kink=False, error=np.inf)
        return slope

    def forward(self, leaf: int, direction: np.ndarray[Any, Any]) -> float | None:
        """Return the slope by forward-mode differentiation; None where JAX has no rule for it."""

        def slope(floats: list[Any], rest: list[Any], direction: list[Any]) -> Any:
            at = functools.partial(_along, floats, direction)
            return jax.jvp(lambda t: loss(at(t), rest), (0.0,), (1.0,))[1]

        loss, moved = self._loss, self._only({leaf: direction})
        try:
            program = self._programs.get("forward", slope, self.floats, self.rest, moved)
        except Exception:  # each primitive without a rule has an error of its own
            return None
        return float(program.run(self.floats, self.rest, moved))

    def _only(self, directions: Mapping[int, np.ndarray[Any, Any]]) -> list[Any]:
        return [directions.get(i, still) for i, still in enumerate(self.still)]


def _along(floats: list[Any], direction: list[Any], t: Any) -> list[Any]:
    """The point t further along a direction, in the dtypes of the point."""
    return [x + (t * d).astype(x.dtype) for x, d in zip(floats, direction, strict=True)]


def _is_bend(gap: float, h: Any, here: float, ahead: Any, behind: Any, epsilon: float) -> bool:
    """Whether a gap between the slopes on two sides closes at shorter steps.

    Looked at where rounding leaves a tenth of it: the gap of a kink stays, that of a bend is
    proportional to the step. (Where rounding hides it at every step, it stays a kink.)
    """
    with np.errstate(invalid="ignore", over="ignore"):
        noise = _ULPS * epsilon * max(1.0, abs(here)) / h
        gaps = (ahead - 2 * here + behind) / h
    clear = np.flatnonzero(noise < 0.1 * abs(gap))
    return bool(clear.size and abs(gaps[clear[-1]]) < 0.5 * abs(gap))


def slope_of(h: Any, here: Any, ahead: Any, behind: Any, epsilon: float) -> Slope:
    """Choose among the differences at steps h, given f(0), f(h), f(-h) and how f is rounded.

    Steps over which a function that is rounded so coarsely shows nothing else are left out.
    """
    kept = max(2, int((h >= CLEAR * epsilon).sum()))
    h, ahead, behind = h[:kept], ahead[:kept], behind[:kept]
    with np.errstate(invalid="ignore", over="ignore"):
        centred = (ahead - behind) / (2 * h)
        left, right = (here - behind) / h, (ahead - here) / h
        # A loss below 1 is rarely made of numbers below 1 (a saturated softmax is not).
        f = np.array([here, *ahead, *behind])
        size = np.max(np.abs(f), initial=1.0, where=np.isfinite(f))
        rounding = _ULPS * epsilon * size / h
        # One-sided slopes differ by h f'' where f is smooth; extrapolate their gap to h = 0. At a
        # kink, centred differences settle nevertheless; where f is mostly noise they do not.
        gap = abs((10 * (right - left)[-1] - (right - left)[-2]) / 9)
        steep = 1e-5 * max(abs(left[-1]), abs(right[-1]))
        settled = abs(centred[-1] - centred[-2]) <= 0.1 * gap
        kink = bool(settled and gap > 3 * rounding[-1] + steep)
        if not kink:  # then what f(h) - 2 f(0) + f(-h) leaves at the smallest step is noise
            rounding = np.maximum(rounding, np.abs(ahead - 2 * here + behind)[-1] / h)
        # Where f is smooth, a step ten times shorter leaves a hundredth of the change as error; the
        # whole change is counted, because kinks close by make it shrink more slowly.
        change = np.abs(np.diff(centred, prepend=np.nan))
        error = change + rounding
        error = np.where(np.isfinite(error), error, np.inf)
        best = int(np.argmin(error))
    return Slope(
        centred=float(centred[best]),
        error=float(error[best]),
        left=float(left[-1]),
        right=float(right[-1]),
        kink=kink,
        ladder=tuple(zip(h.tolist(), centred.tolist(), strict=True)),
    )
