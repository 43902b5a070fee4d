"""Gather what a cause is looked for in: what of two gradients can be compared, and how closely.

An entry whose right value is unknown (autodiff has none, or it lies at a kink) is NaN.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxnn.verify.comparison import EXACT
from jaxnn.verify.findings import Leaf, LeafReport
from jaxnn.verify.point import Point
from jaxnn.verify.problem import is_floating
from jaxnn.verify.values import largest

Numbers = list[tuple[float, str]]


class Gradients(NamedTuple):
    """What explanations are looked for in: the comparable leaves, by path.

    Attributes:
        manual: the hand-written gradient in float64.
        autodiff: the right one.
        params: the parameters.
        wrong: which entries differ.
        numbers: what a factor may turn out to be, each with what it is.
        arguments: the other arrays of the call.
        narrow: what the hand-written gradient is rounded to, where the loss is not; or float64.
        weighs: whether the loss is linear in one of these arguments, by its position.
        exact: what an exact prediction may be off by, as a part of the scale: rounding.

    An entry of `autodiff` that cannot be compared is NaN, and what is predicted there unknown.
    """

    manual: dict[str, Leaf]
    autodiff: dict[str, Leaf]
    params: dict[str, Leaf]
    wrong: dict[str, Leaf]
    numbers: Numbers
    arguments: list[Leaf]
    narrow: str
    weighs: Callable[[int], bool]
    exact: float


def numbers_of(settings: Numbers, shapes: Any, params: dict[str, Leaf]) -> Numbers:
    """List settings; then each size once, batches first, then dimensions, numbers of entries."""
    sizes: dict[int, str] = {}
    for shape in shapes:
        if shape:
            sizes.setdefault(shape[0], "the batch size")
    for path, p in params.items():
        for size in p.shape:
            sizes.setdefault(size, f"a dimension of {path}")
    for shape in shapes:
        for size in shape:
            sizes.setdefault(size, "a dimension of an argument")
        for i in range(2, len(shape) + 1):
            sizes.setdefault(int(np.prod(shape[:i])), "a product of an argument's dimensions")
    for path, p in params.items():
        sizes.setdefault(p.size, f"the number of entries of {path}")
    return [(n, what) for n, what in itertools.chain(settings, sizes.items()) if n not in (0, 1)]


# A leaf is explained where the right value of more than this part of its entries is known.
KNOWN_PART = 0.5
# What rounding to a narrower dtype leaves of an exact prediction, in the dtype's epsilons.
ROUNDING = 32
# An error of fewer times what that leaves says too little to be explained.
TELLING = 10
# What agrees to no more than this part of the scale is not explained.
COARSE = 1e-4


def gradients_of(leaves: list[LeafReport], point: Point) -> Gradients:
    """Return what there is to explain: the leaves that have numbers on both sides."""
    numbers = {path: i for i, path in enumerate(point.problem.paths)}
    compared = [
        leaf
        for leaf in leaves
        if leaf.difference is not None
        and np.isfinite(point.here.autodiff[numbers[leaf.path]]).mean() > KNOWN_PART
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
    """Return the same gradients without their entries at kinks; None if that gains nothing."""
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
        mask.any() and np.isfinite(smooth[path]).mean() <= KNOWN_PART
        for path, mask in wrong.items()
    )
    if few or not gained or not any(mask.any() for mask in wrong.values()):
        return None
    return found._replace(autodiff=smooth, wrong=wrong)
