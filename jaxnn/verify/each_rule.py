"""Each derivative rule inside a function, judged by itself, with all others replaced."""

import functools
import operator
from typing import Any

import jax
import numpy as np

from jaxnn.verify.compare import RELATIVE_TOLERANCE, allowed_error
from jaxnn.verify.oracle import Rule, stripped
from jaxnn.verify.point import Point
from jaxnn.verify.rounding import plausible_rounding
from jaxnn.verify.values import largest
from jaxnn.verify.width import EPSILON

# So many rules are judged one by one, in one program.
MOST_RULES = 16


def each_rule(point: Point) -> tuple[str, ...]:
    """Every rule in the loss of a point, in order of execution, and whether it is right there.

    A rule is right where the loss has the same gradient with it as with the function it decorates.
    """
    rules = point.rules[:MOST_RULES]
    verdicts = dict.fromkeys(
        point.rules, "replaced by the function it decorates; not judged by itself"
    )
    if rules:
        try:
            verdicts |= dict(zip(rules, _judged(point, rules), strict=True))
        except Exception as error:  # whatever a rule raises where it runs
            first = (str(error).splitlines() or [""])[0]
            verdicts |= dict.fromkeys(rules, f"could not be run: {type(error).__name__}: {first}")
    return tuple(f"{rule}: {said}" for rule, said in verdicts.items())


def wrong_by_themselves(rules: tuple[str, ...]) -> list[str]:
    """The first of the rules that `each_rule` found wrong, where all of them together are right."""
    wrong = [line for line in rules if ": wrong" in line]
    return [f"right as a whole, but not by itself: {line}" for line in wrong[:1] if rules[1:]]


def _judged(point: Point, rules: list[Rule]) -> list[str]:
    def gradients(floats: list[Any], rest: list[Any]) -> Any:
        with_one = [stripped(point.problem.loss, functools.partial(operator.eq, r)) for r in rules]
        return [jax.grad(loss)(floats, rest) for loss in with_one]

    with point.precisely():
        program = point.programs.get("each rule", gradients, point.floats, point.rest)
        found = program.run(point.floats, point.rest)
    return [_said(point, leaves) for leaves in found]


def _said(point: Point, leaves: list[Any]) -> str:
    """Whether the gradient with one rule alive is that of the function."""
    here, worst = point.here, 0.0
    close_by = None
    for number, (leaf, truth) in enumerate(zip(leaves, here.autodiff, strict=True)):
        got = np.asarray(leaf, np.float64)
        known = np.isfinite(truth)
        scale = largest(truth)
        allowed = RELATIVE_TOLERANCE * scale + plausible_rounding(here.loss)
        if here.width:
            allowed = allowed_error(point.rounding[number], here.width, scale)
        if here.uncertainty is not None:
            allowed += largest(here.uncertainty[number])
        declared = point.problem.tolerances.get(point.problem.paths[number], 0.0)
        allowed += max(point.stops_at, declared, EPSILON["float64"]) * scale
        off = known & ~(np.abs(got - truth) <= allowed)
        if off.any() and np.isfinite(got).all():
            close_by = close_by or point.close_by
            slopes = close_by.slopes[number]
            off &= ~(slopes.kinks(scale) & slopes.admit(got, scale))
        if off.any():
            gaps = np.abs(got - truth)[off]
            gap = float(gaps.max()) if np.isfinite(gaps).all() else np.inf
            worst = max(worst, gap / (scale or 1.0))
    if not worst:
        return "right"
    return f"wrong: off by {worst:.1e} of the scale" if np.isfinite(worst) else "wrong: not finite"
