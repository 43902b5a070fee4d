"""Compare again at a second point, where nothing is 0, 1 or equal to something else.

A factor of 1, a term of 0 and two equal inputs hide a mistake. Both gradients are compared again
where the floating arrays are moved, and where the numbers among the arguments are. A gradient must
be right for all parameters; that the other arguments are what they are may be what it relies on
(labels that are 0 or 1, a matrix that is symmetric), so what differs with them is only named.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.verify.comparison import compare_in_float64
from jaxnn.verify.findings import LeafReport
from jaxnn.verify.nearby import apart_of, noise_of, rounding_of
from jaxnn.verify.point import Point
from jaxnn.verify.problem import Problem, is_floating
from jaxnn.verify.report import Report
from jaxnn.verify.values import Values

# A move is so much of an array's size; where it leaves the domain, it is tried the other way and
# less far.
MOVE = 0.3
TRIES = (1.0, -1.0, 0.1)
# So many arguments are moved by themselves to find the one that matters.
MOST_ALONE = 16


class Second(NamedTuple):
    """What the second point shows.

    Attributes:
        report: the one of the point given, or of the second where the gradient is wrong there.
        said: what there is to say beside it.
        seen: whether both gradients could be compared there.
    """

    report: Report
    said: tuple[str, ...] = ()
    seen: bool = True


def second_point(
    point: Point,
    report: Report,
    judge: Callable[[Point], Report],
    functions: tuple[Any, ...],
) -> Second:
    """Compare both gradients where the arrays are moved.

    Args:
        point: the one given, where they agree.
        report: of that point.
        judge: gives the report at a point.
        functions: as for `Point`.
    """
    rng, leaves = np.random.default_rng(1), report.leaves
    given = point.floats, point.rest
    with point.precisely():
        for size in TRIES:
            floats, rest = ([moved_off(x, size * MOVE, rng) for x in arrays] for arrays in given)
            there = _values(point, floats, rest)
            if there is not None:
                break
        else:
            said = (
                "what values of 0 or 1 and equal ones hide: at a second point, moved off them, the "
                "loss or a gradient is not finite"
            )
            return Second(report, (said,), False)
        also = point.stops_at, point.epsilon
        of_whole = tuple(_blamed(point, *_counted_on(point.rest), leaves))
        if not differing(point.problem, there, floats, rest, leaves, *also):
            return Second(report, of_whole)
        here = _values(point, floats, given[1])
        of_parameters = here is not None and differing(
            point.problem, here, floats, given[1], leaves, *also
        )
        floating = [k for k, x in enumerate(rest) if is_floating(x)]
        found = () if of_parameters else tuple(_blamed(point, rest, floating, leaves))
    if not of_parameters:
        unnamed = "the two gradients differ where all arguments are moved off 0, 1 and equal values"
        return Second(report, of_whole + (found or (unnamed,)))
    as_given = [
        jax.device_put(np.asarray(x).astype(g.dtype))
        for x, g in zip(floats, point.problem.floats, strict=True)
    ]
    again = judge(Point(point.problem._replace(floats=as_given), functions))
    where = "where the parameters are moved off 0, 1 and each other"
    if again.status != "fail":
        return Second(report, (f"the gradients differ {where}, but nothing shows who is wrong",))
    problem = (
        f"right at the point given, but wrong {where}: this is the report of that second point"
    )
    return Second(dataclasses.replace(again, problems=(problem, *again.problems)))


def _counted_on(rest: list[Any]) -> tuple[list[Any], list[int]]:
    """Integer arrays that are all 0 or all 1, increased by one, and which they are."""

    def chosen(x: Any) -> bool:
        whole = jnp.issubdtype(x.dtype, jnp.integer) and x.size
        return bool(whole and np.ptp(np.asarray(x)) == 0 and np.asarray(x).flat[0] in (0, 1))

    return [x + 1 if chosen(x) else x for x in rest], [k for k, x in enumerate(rest) if chosen(x)]


def _blamed(
    point: Point,
    rest: list[Any],
    chosen: list[int],
    leaves: tuple[LeafReport, ...],
) -> list[str]:
    """The arguments that make the two gradients differ where they are moved, each by itself.

    Those that are equal are named together.
    """
    alike: dict[Any, tuple[list[str], list[str]]] = {}
    also = point.stops_at, point.epsilon
    for k in chosen[:MOST_ALONE]:
        alone = [*point.rest[:k], rest[k], *point.rest[k + 1 :]]
        there = _values(point, point.floats, alone)
        if there is None:
            continue
        if found_in := differing(point.problem, there, point.floats, alone, leaves, *also):
            x = np.asarray(point.rest[k])
            everywhere = " everywhere" if x.size > 1 else ""
            is_what = f" is {x.flat[0]:g}{everywhere}" if x.size and np.ptp(x) == 0 else ""
            name = point.problem.others[k] + is_what
            alike.setdefault((x.shape, x.tobytes()), ([], found_in))[0].append(name)
    return [
        f"{' and '.join(named)}{' (equal)' if named[1:] else ''}: where "
        f"{'one' if named[1:] else 'it'} is moved, the gradients of {', '.join(of[:4])} differ: is "
        "it left out, or relied on?"
        for named, of in alike.values()
    ]


def _values(point: Point, floats: list[Any], rest: list[Any]) -> Values | None:
    """Both gradients there; None where the loss or one of them is not finite."""
    found = point.here.evaluator.at(floats, rest)
    arrays = (*found.autodiff, *found.manual.values())
    finite = np.isfinite(found.loss) and all(np.isfinite(x).all() for x in arrays)
    return found if finite else None


def differing(
    problem: Problem,
    there: Values,
    floats: list[Any],
    rest: list[Any],
    leaves: tuple[LeafReport, ...],
    stops_at: float = 0.0,
    epsilon: float = 0.0,
) -> list[str]:
    """Return the leaves that passed, and whose gradients differ there.

    Args:
        problem: the two functions.
        there: both gradients.
        floats: the parameters there.
        rest: the other arrays.
        leaves: as they are at the point given.
        stops_at: what a loop that stops by itself may leave, as a part of the scale.
        epsilon: of the dtypes that `rest` was given in, where it is as it was given.
    """

    def rounding() -> list[float]:
        if there.width:
            return noise_of(there, floats, rest, there.width)
        return rounding_of(problem, there, floats, rest)

    def apart() -> list[float]:
        return apart_of(there, floats, rest, problem.paths, epsilon)

    found = []
    for i, leaf in enumerate(leaves):
        if leaf.status == "pass" and leaf.difference is not None:
            again = LeafReport(leaf.path, leaf.shape, leaf.dtype, "fail", declared=leaf.declared)
            if compare_in_float64(again, there, i, rounding, stops_at, apart).status == "fail":
                found.append(leaf.path)
    return found


def moved_off(x: Any, size: float, rng: np.random.Generator) -> Any:
    """Return a floating array at a generic point close by, of the same kind.

    Masks and one-hot rows stay; what is symmetric, sorted, a row of probabilities, not negative,
    or between 0 and 1 stays so.
    """
    if not is_floating(x):
        return x
    given = np.asarray(x, np.float64)
    values = set(np.unique(given).tolist()) if given.size else set()
    if values == {0.0, 1.0} or not given.size or not np.isfinite(given).all():
        return x
    scale = np.abs(given).max() or 1.0
    step = size * rng.uniform(0.5, 1.0, given.shape)
    constant = given.size > 1 and np.ptp(given) == 0
    if constant or given.ndim == 0:
        moved = given + scale * step
    elif (given >= 0).all():
        moved = given * (1 + step) + 0.1 * abs(size) * scale * rng.uniform(0.5, 1.0, given.shape)
        if given.max() <= 1:
            moved /= max(1.0, 1.05 * moved.max())
    else:
        moved = given + scale * step * rng.choice([-1.0, 1.0], given.shape)
    if given.ndim and len(given) > 1 and (given >= 0).all():
        sums = given.sum(-1, keepdims=True)
        if given.shape[-1] > 1 and np.abs(sums - 1).max() < 1e-5 and not constant:
            moved /= moved.sum(-1, keepdims=True)
    if given.ndim > 1 and given.shape[-1] == given.shape[-2] and not constant:
        turned = np.swapaxes(given, -1, -2)
        if np.array_equal(given, turned):
            moved = (moved + np.swapaxes(moved, -1, -2)) / 2
    if given.ndim == 1 and len(given) > 2 and (np.diff(given) > 0).all():
        moved = np.sort(moved)
    return jax.device_put(moved.astype(x.dtype))
