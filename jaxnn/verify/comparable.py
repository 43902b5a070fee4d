"""What of two gradients can be compared, and how closely, where a cause is looked for.

An entry whose right value is unknown (autodiff has none, or it lies at a kink) is NaN.
"""

import functools
from typing import Any

import numpy as np

from jaxnn.verify.compare import EXACT
from jaxnn.verify.factors import numbers_of
from jaxnn.verify.findings import LeafReport
from jaxnn.verify.one_leaf import Gradients
from jaxnn.verify.point import Point
from jaxnn.verify.problem import is_floating
from jaxnn.verify.values import largest

# A leaf is explained where the right value of more than this part of its entries is known.
KNOWN = 0.5
# What rounding to a narrower dtype leaves of an exact prediction, in the dtype's epsilons.
ROUNDING = 32
# An error of fewer times what that leaves says too little to be explained.
TELLING = 10
# What agrees to no more than this part of the scale is not explained.
COARSE = 1e-4


def gradients_of(leaves: list[LeafReport], point: Point) -> Gradients:
    """What there is to explain: the leaves that have numbers on both sides."""
    numbers = {path: i for i, path in enumerate(point.problem.paths)}
    compared = [
        leaf
        for leaf in leaves
        if leaf.difference is not None
        and np.isfinite(point.here.autodiff[numbers[leaf.path]]).mean() > KNOWN
    ]
    manual = {leaf.path: point.here.manual[leaf.path] for leaf in compared}
    autodiff = {
        leaf.path: np.where(np.isfinite(a := point.here.autodiff[numbers[leaf.path]]), a, np.nan)
        for leaf in compared
    }
    params = {
        leaf.path: np.asarray(point.floats[numbers[leaf.path]], np.float64) for leaf in compared
    }
    shapes = [x.shape for x in point.rest]
    failed = {leaf.path: leaf.status == "fail" and leaf.wrong > 0 for leaf in compared}
    program = point.here.program
    wrong = {
        leaf.path: np.abs(manual[leaf.path] - autodiff[leaf.path]) > leaf.tolerance
        for leaf in compared
    }
    exact = max(_exact(point), *(leaf.declared for leaf in compared), 0.0)
    for path, a in autodiff.items():
        if not wrong[path].any():  # finite differences contradict it where autodiff has no value
            wrong[path] = np.isnan(a) & failed[path]
        if exact > EXACT and largest(manual[path] - a) < TELLING * exact * largest(a):
            wrong[path] &= np.isnan(a)
    return Gradients(
        manual,
        autodiff,
        params,
        wrong,
        numbers_of(point.problem.settings, shapes, params),
        [np.asarray(x, np.float64) for x in _floating(point)],
        program.rounded_to if program.epsilon > point.here.width else "float64",
        functools.partial(_weighs, point),
        exact,
    )


def _exact(point: Point) -> float:
    """What rounding may leave of an exact prediction, where that is little enough to tell."""
    rounding = ROUNDING * point.here.width
    return rounding if EXACT < rounding < COARSE else EXACT


def _floating(point: Point) -> list[Any]:
    """The floating arrays of the call that are no parameters."""
    return [x for x in point.rest if is_floating(x)]


def _weighs(point: Point, number: int) -> bool:
    """Whether the loss is linear in one of these: a cotangent is what the outputs are weighed by.

    What weighs nothing is none: the loss depends on it.
    """
    place = [i for i, x in enumerate(point.rest) if is_floating(x)][number]

    def loss(times: float) -> float:
        rest = [x * times if i == place else x for i, x in enumerate(point.rest)]
        return float(point.here.program.run(point.floats, rest)[0])

    zero, one, two = map(loss, (0.0, 1.0, 2.0))
    size = max(abs(zero), abs(one), abs(two))
    close = _exact(point) * size
    return abs(two - 2 * one + zero) <= close < abs(one - zero)


def away_from_kinks(found: Gradients, point: Point) -> Gradients | None:
    """The same gradients without their entries at kinks; None where there is nothing to gain."""
    if point.programs.long:
        return None
    slopes = dict(zip(point.problem.paths, point.close_by.slopes, strict=True))
    smooth = {
        path: np.where(slopes[path].kinks(largest(a)), np.nan, a)
        for path, a in found.autodiff.items()
    }
    wrong = {path: mask & np.isfinite(smooth[path]) for path, mask in found.wrong.items()}
    gained = any(
        np.isnan(smooth[path]).sum() > np.isnan(a).sum() for path, a in found.autodiff.items()
    )
    few = any(
        mask.any() and np.isfinite(smooth[path]).mean() <= KNOWN for path, mask in wrong.items()
    )
    if few or not gained or not any(mask.any() for mask in wrong.values()):
        return None
    return found._replace(autodiff=smooth, wrong=wrong)
