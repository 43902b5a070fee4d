"""What a derivative rule must keep beside its cotangents for all outputs at once.

value          its forward returns what the function does
each output    the cotangents are right for the cotangent of one output alone
forward mode   a custom_jvp gives the tangents of the function
"""

import functools
from typing import Any

import jax
import numpy as np

from jaxnn.verify.generic import differing
from jaxnn.verify.oracle import stripped
from jaxnn.verify.own_derivative import differentiated
from jaxnn.verify.point import Point
from jaxnn.verify.positions import Call
from jaxnn.verify.problem import bind
from jaxnn.verify.programs import Programs
from jaxnn.verify.report import Report
from jaxnn.verify.trace import traced_as
from jaxnn.verify.values import ask, both_gradients, largest
from jaxnn.verify.weighted import Weighted

# Two values of one function in float64, or in the width that something inside is rounded to.
SAME, ULPS = 1e-9, 64
DIRECTIONS = 3


def disagreement(
    point: Point, of_rule: Weighted, of_base: Weighted, name: str, reference: str
) -> list[str]:
    """Whether what comes out beside the derivative is the function's value.

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
        except Exception:  # without reverse mode there is no forward rule to be asked
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
    """Whether forward mode, which a custom_jvp rules, gives the tangents of the function."""
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


def alone(
    point: Point, call: Call, report: Report, of_rule: Weighted, of_base: Weighted, name: str
) -> list[str]:
    """Whether the cotangents are right where one output alone has a cotangent."""
    outputs = of_rule.floating()
    if len(outputs) < 2:
        return []
    for k in range(len(outputs)):
        problem = bind(
            functools.partial(of_base.loss, only=k),
            functools.partial(differentiated, of_rule, only=k, name=name),
            call.params,
            call.args,
            {},
            names=call.names,
        )
        problem = problem._replace(loss=stripped(problem.loss))
        with point.precisely():
            arrays = point.floats, point.rest
            trace = traced_as(both_gradients(problem, point.way), arrays)
            asked = ask(
                problem,
                Programs(),
                "alone",
                *arrays,
                point.way,
                trace=trace,
                as_narrow_as=point.as_narrow_as,
            )
            there = asked.at(point.floats, point.rest)
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
    allowed = max(SAME, ULPS * point.here.width, point.stops_at) * (largest(b) or 1.0)
    with np.errstate(invalid="ignore"):
        off = ~((np.abs(a - b) <= allowed) | (a == b) | (np.isnan(a) & np.isnan(b)))
    if not off.any():
        return ""
    gaps = np.where(off, np.nan_to_num(np.abs(a - b), nan=np.inf), -1.0)
    at = np.unravel_index(int(gaps.argmax()), a.shape)
    where = f" at {[int(i) for i in at]}" if at else ""
    return f"{a[at]:.10g} against {b[at]:.10g}{where}"
