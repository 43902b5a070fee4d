"""Ask everything that is asked of a call with its parameters first.

bind          -> a problem: two functions of arrays
a point       -> both gradients there
the verdict   -> right or wrong, leaf by leaf; each rule inside by itself
a second one  -> is it right where nothing is 0, 1 or equal to something else?
laws          -> what a mean over a batch obeys; the gradient's own derivative
coverage      -> what could not be seen
"""

import dataclasses
import logging
import time
from collections.abc import Mapping
from typing import Any

from jaxnn.verify.arguments import Call
from jaxnn.verify.batch import BatchLaws
from jaxnn.verify.coverage import too_long, warnings
from jaxnn.verify.door import check_skip, check_tolerance
from jaxnn.verify.laws import batch_laws as check_batch_laws
from jaxnn.verify.mesh import Spread
from jaxnn.verify.neutral_settings import neutral_settings
from jaxnn.verify.on_mesh import on_mesh
from jaxnn.verify.point import Point
from jaxnn.verify.problem import Problem, bind
from jaxnn.verify.report import Report
from jaxnn.verify.returned import WRAPPERS, Expected, Returned
from jaxnn.verify.rule_laws import each_rule
from jaxnn.verify.second_order import second_order as check_second_order
from jaxnn.verify.second_point import second_point
from jaxnn.verify.verdict import verdict

log = logging.getLogger("jaxnn.verify")


def judge(
    call: Call,
    kwargs: dict[str, Any],
    *,
    has_aux: bool = False,
    skip: Mapping[str, str] | None = None,
    tolerance: Mapping[str, tuple[float, str]] | None = None,
    batch_laws: BatchLaws | None = None,
    second_order: bool = False,
    seed: int = 0,
    spread: Spread | None = None,
) -> tuple[Report, Point]:
    """Report, as `gradient` does, of a call with its parameters first, and the point looked at.

    Raises:
        TypeError, ValueError: as `gradient`.
    """
    started = time.perf_counter()
    loss, manual_grad, params, args, names = call
    settings, also = True, (loss, manual_grad, has_aux)

    def problem_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Problem:
        problem = bind(
            loss,
            manual_grad,
            params,
            args,
            kwargs,
            names=names,
            has_aux=has_aux,
            settings=settings,
        )
        return on_mesh(problem, manual_grad, spread) if spread else problem

    log.debug("both gradients")
    point = Point(problem_of(args, kwargs), also)
    if point.working.out.unasked:
        settings = False
        point = Point(problem_of(args, kwargs), also)
    skip = {
        **left_out(point.working.out, point.problem.expected),
        **check_skip(skip or {}, point.problem.paths),
    }
    declared = check_tolerance(tolerance or {}, point.problem.paths)
    point.declare({path: d.relative for path, d in declared.items()})
    problem = point.problem
    report = verdict(point, skip, seed)
    report = dataclasses.replace(report, rules=each_rule(point))

    def on_other(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Problem:
        other = problem_of(args, kwargs)
        return other._replace(tolerances=problem.tolerances, as_it_is=problem.as_it_is)

    seen, said = False, tuple[str, ...]()
    if report.status == "pass":
        log.debug("a second point")
        report, said, seen = second_point(
            point,
            report,
            lambda there: verdict(there, skip, seed),
            also,
        )
        said += neutral_settings((loss, manual_grad), on_other, args, kwargs)
    problems = list(report.problems)

    with point.precisely():
        if batch_laws:
            log.debug("batch laws")
            problems += check_batch_laws(batch_laws, on_other, args, kwargs, seed)
        if second_order:
            log.debug("second order")
            problems += check_second_order(problem, point.floats, point.rest, seed)
    cannot = warnings(point, report.leaves, seen)
    form = point.working.out.form
    taken = (f"what manual_grad returns beside its gradient, in {form}",) if form else ()
    last = (too_long(point),) if too_long(point) else ()
    report = dataclasses.replace(
        report,
        name=getattr(manual_grad, "__qualname__", repr(manual_grad))
        + (f" on {spread}" if spread else ""),
        leaves=tuple(
            leaf.saying(str(declared[leaf.path])) if leaf.path in declared else leaf
            for leaf in report.leaves
        ),
        problems=tuple(problems),
        coverage=(*report.coverage, *taken, *said, *cannot, *last),
        seconds=time.perf_counter() - started,
    )
    return report, point


def left_out(out: Returned, expected: Expected) -> dict[str, str]:
    """Return the leaves of which a gradient holds no variable of the same kind, with the reason.

    A variable is what wraps one array: where some of a kind are there, none may be missing.
    """
    kinds = {
        name: kind
        for (path, name), kind in zip(expected.names, _innermost(expected.structure), strict=True)
        if path and getattr(path[-1], "name", None) in WRAPPERS
    }
    there = {kind for name, kind in kinds.items() if name in out.leaves}
    return {
        name: f"of the kind {kind.__name__}, of which the gradient holds none"
        for name, kind in kinds.items()
        if there and kind not in there
    }


def _innermost(tree: Any, holder: Any = None) -> list[Any]:
    """The container that holds each leaf of a structure."""
    if tree.num_nodes == 1:
        return [holder] * tree.num_leaves
    kind = tree.node_data()[0]
    return [found for child in tree.children() for found in _innermost(child, kind)]
