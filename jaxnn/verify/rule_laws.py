"""Hold derivative rules to what they must keep beside the cotangents for all outputs at once.

each rule      right by itself, with all others replaced
value          its forward returns what the function does
each output    the cotangents are right for the cotangent of one output alone
forward mode   a custom_jvp gives the tangents of the function
"""

import functools
import operator
from typing import Any

import jax
import numpy as np

from jaxnn.verify.arguments import Call
from jaxnn.verify.authors import Rule
from jaxnn.verify.comparison import RELATIVE_TOLERANCE, allowed_error
from jaxnn.verify.cotangents import cotangents_by_rule
from jaxnn.verify.findings import described
from jaxnn.verify.nearby import plausible_rounding
from jaxnn.verify.oracle import stripped
from jaxnn.verify.point import Point
from jaxnn.verify.problem import bind
from jaxnn.verify.programs import Programs
from jaxnn.verify.report import Report
from jaxnn.verify.second_point import differing
from jaxnn.verify.trace import EPSILON, traced_as
from jaxnn.verify.values import both_gradients, evaluator_of, largest
from jaxnn.verify.weighted import Weighted

# So many rules are judged one by one, in one program.
MOST_RULES = 16


def each_rule(point: Point) -> tuple[str, ...]:
    """List every rule in the loss of a point, in order of execution, and whether it is right.

    A rule is right where the loss has the same gradient with it as with the function it decorates.
    """
    rules = point.rules[:MOST_RULES]
    verdicts = dict.fromkeys(
        point.rules, "replaced by the function it decorates; not judged by itself"
    )
    if rules:
        try:
            verdicts |= dict(zip(rules, _judged_rules(point, rules), strict=True))
        except Exception as error:  # whatever a rule raises where it runs
            verdicts |= dict.fromkeys(rules, f"could not be run: {described(error)}")
    return tuple(f"{rule}: {said}" for rule, said in verdicts.items())


def wrong_by_themselves(rules: tuple[str, ...]) -> list[str]:
    """Name the first rule that `each_rule` found wrong, if all of them together are right."""
    wrong = [line for line in rules if ": wrong" in line]
    return [f"right as a whole, but not by itself: {line}" for line in wrong[:1] if rules[1:]]


def _judged_rules(point: Point, rules: list[Rule]) -> list[str]:
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


# Two values of one function in float64, or in the width that something inside is rounded to.
SAME_VALUE, ULPS = 1e-9, 64
DIRECTIONS = 3


def value_disagreement(
    point: Point, of_rule: Weighted, of_base: Weighted, name: str, reference: str
) -> list[str]:
    """Say whether what comes out beside the derivative is the function's value.

    Args:
        point: looked at already.
        of_rule: the function, whose rule runs where it is differentiated.
        of_base: what it is compared with.
        name: of the function.
        reference: what that is called; empty for the function that the rule decorates.
    """

    def both(inputs: Any, douts: Any, settings: Any) -> Any:
        outputs, active = of_rule.of_floating(inputs, settings)
        plain, _ = of_base.of_floating(inputs, settings)
        try:
            by_rule = jax.vjp(outputs, active)[0]
        except Exception:  # without reverse mode there is no forward rule to be evaluator
            by_rule = outputs(active)
        return by_rule, stripped(plain)(active)

    ours, theirs = _run(point, "values", both)
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if at := _first_off(point, a, b):
            who = (
                f"{name} and its {reference}"
                if reference
                else f"the forward rule of {name} and the function it decorates"
            )
            which = f" in output {i + 1}" if len(ours) > 1 else ""
            return [f"{who} disagree in value{which}: {at}"]
    return []


def forward_rules(point: Point, of_rule: Weighted, of_base: Weighted, seed: int) -> list[str]:
    """Say whether forward mode, which a custom_jvp rules, gives the tangents of the function."""
    if not any(rule.kind == "custom_jvp" for rule in point.rules):
        return []
    rng = np.random.default_rng(seed)
    for _ in range(DIRECTIONS):
        tangents = [np.asarray(rng.normal(size=x.shape)) for x in point.floats]

        def both(inputs: Any, douts: Any, settings: Any, v: list[Any] = tangents) -> Any:
            outputs, active = of_rule.of_floating(inputs, settings)
            plain, _ = of_base.of_floating(inputs, settings)
            moves = [d.astype(x.dtype) for d, x in zip(v, active, strict=True)]
            return tuple(jax.jvp(f, (active,), (moves,))[1] for f in (outputs, stripped(plain)))

        try:
            ours, theirs = _run(point, "", both)
        except TypeError as error:  # beside a custom_vjp, which refuses forward mode
            if "custom_vjp" not in str(error):
                raise
            return []
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            if at := _first_off(point, a, b):
                which = f" of output {i + 1}" if len(ours) > 1 else ""
                return [
                    f"in forward mode the tangent{which} along a random direction is wrong: {at}"
                ]
    return []


def each_output_alone(
    point: Point, call: Call, report: Report, of_rule: Weighted, of_base: Weighted, name: str
) -> list[str]:
    """Say whether the cotangents are right where one output alone has a cotangent."""
    outputs = of_rule.floating()
    if len(outputs) < 2:
        return []
    for k in range(len(outputs)):
        problem = bind(
            functools.partial(of_base.loss, only=k),
            functools.partial(cotangents_by_rule, of_rule, only=k, name=name),
            call.params,
            call.args,
            {},
            names=call.names,
        )
        problem = problem._replace(loss=stripped(problem.loss))
        with point.precisely():
            arrays = point.floats, point.rest
            trace = traced_as(both_gradients(problem, point.way), arrays)
            evaluator = evaluator_of(
                problem,
                Programs(),
                "alone",
                *arrays,
                point.way,
                trace=trace,
                as_narrow_as=point.as_narrow_as,
            )
            there = evaluator.at(point.floats, point.rest)
            leaves = report.leaves
            found = differing(problem, there, point.floats, point.rest, leaves, point.stops_at)
        if found:
            return [
                f"right for a cotangent of all outputs, but wrong where output {k + 1} alone has "
                f"one: the cotangents of {', '.join(found)}"
            ]
    return []


def _run(point: Point, name: str, function: Any) -> Any:
    """What a function of the call returns, at the point looked at."""
    bound = point.problem.call(function)
    with point.precisely():
        programs = point.programs if name else Programs()
        return programs.get(name, bound, point.floats, point.rest).run(point.floats, point.rest)


def _first_off(point: Point, ours: Any, theirs: Any) -> str:
    """Where two arrays differ most, by more than rounding; empty where none does."""
    a, b = (np.asarray(x, np.float64) for x in (ours, theirs))
    allowed = max(SAME_VALUE, ULPS * point.here.width, point.stops_at) * (largest(b) or 1.0)
    with np.errstate(invalid="ignore"):
        off = ~((np.abs(a - b) <= allowed) | (a == b) | (np.isnan(a) & np.isnan(b)))
    if not off.any():
        return ""
    gaps = np.where(off, np.nan_to_num(np.abs(a - b), nan=np.inf), -1.0)
    at = np.unravel_index(int(gaps.argmax()), a.shape)
    where = f" at {[int(i) for i in at]}" if at else ""
    return f"{a[at]:.10g} against {b[at]:.10g}{where}"
