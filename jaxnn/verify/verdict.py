"""Judge a problem at a point, whatever its functions are.

both gradients                -> structure, shapes, dtypes; finite?
in float64                    -> hand-written against autodiff, every entry
along lines                   -> finite differences: who is wrong?
in the working dtype          -> is it as precise as autodiff?
with faults planted           -> what could not be seen?
where it is wrong             -> where, and why?
"""

import dataclasses
import logging
from collections.abc import Mapping

import numpy as np

from jaxnn.verify.causes import find_causes
from jaxnn.verify.comparison import EXACT
from jaxnn.verify.coverage import limits_at, undetected_faults
from jaxnn.verify.findings import LeafReport
from jaxnn.verify.lines import relative_difference
from jaxnn.verify.other_ways import precise_enough_at, run_in_other_ways
from jaxnn.verify.point import Point
from jaxnn.verify.report import Report
from jaxnn.verify.returned import structural_faults
from jaxnn.verify.witness import STOPPED

log = logging.getLogger("jaxnn.verify")
# So many leaves are witnessed one by one; of more, as many groups along one random line each.
MOST_WITNESSED = 32
# Where devices compute the same in narrower a dtype, so many units in its last place are rounding.
ROUNDING = 32
# Of a group along whose line finite differences do not agree, so many leaves are asked about alone.
MOST_IN_DOUBT = 4


def verdict(point: Point, skip: Mapping[str, str], seed: int) -> Report:
    """Judge a problem at a point, whatever its functions are.

    Args:
        point: both gradients there.
        skip: leaves that are not judged, each with the reason.
        seed: of the random lines.
    """
    problem = point.problem
    dtypes = {path: x.dtype for path, x in zip(problem.paths, problem.floats, strict=True)}
    problems, faults = structural_faults(point.working.out, problem.expected, dtypes)
    leaves: list[LeafReport] = []
    for i, path in enumerate(problem.paths):
        x = problem.floats[i]
        declared = problem.tolerances.get(path, 0.0)
        leaf = LeafReport(
            path, x.shape, str(x.dtype), "fail", declared=declared, messages=faults[path]
        )
        if path in skip:
            reason = f"not judged: {skip[path]}"
            leaf = dataclasses.replace(leaf, status="skipped", messages=(reason,))
        elif not leaf.messages:
            log.debug("comparing %s", path)
            leaf = point.compare_in_float64(leaf, i)
            if leaf.difference is not None and not leaf.wrong:
                problems += undetected_faults(leaf, point.here, i, lambda: point.rounding)
        leaves.append(leaf)
    leaves = _witnessed(point, leaves, seed)
    leaves = [
        leaf
        if leaf.status == "skipped" or faults[leaf.path]
        else point.compare_in_own_dtype(leaf, i)
        for i, leaf in enumerate(leaves)
    ]
    if problem.on_mesh:
        exact = max(EXACT, ROUNDING * point.here.width)
        with point.precisely():
            problems += problem.on_mesh.differing(point.floats, point.rest, exact)
    if conflict := _conflict(point, leaves):
        problems += (conflict,)
        leaves = [
            dataclasses.replace(leaf, status="fail") if leaf.wrong and leaf.kinks else leaf
            for leaf in leaves
        ]
    if not np.isfinite(point.here.loss):
        problems += (
            f"the loss is {point.here.loss} in float64: check the inputs, labels among them",
        )
    said = {STOPPED for leaf in leaves if STOPPED in leaf.messages}
    report = Report(
        "",
        point.here.loss,
        tuple(leaves),
        problems,
        0.0,
        coverage=(*said, *limits_at(point)),
        seed=seed,
    )
    if any(leaf.status == "fail" and leaf.wrong for leaf in leaves):
        report = find_causes(point, report)
    log.debug("running it in other ways")
    precise_enough = precise_enough_at(point, report.leaves)
    others = run_in_other_ways(problem, point.working, point.programs, precise_enough)
    return dataclasses.replace(report, elsewhere=others)


def _witnessed(point: Point, leaves: list[LeafReport], seed: int) -> list[LeafReport]:
    """The leaves that could be compared, after the witnesses were heard."""
    asked = [i for i, leaf in enumerate(leaves) if leaf.difference is not None]
    if len(asked) <= MOST_WITNESSED:
        return [
            point.ask_witnesses(leaf, i, seed) if i in asked else leaf
            for i, leaf in enumerate(leaves)
        ]
    # One by one only those that are in question, the worst first; the others in groups.
    found = list(leaves)
    doubtful = [i for i in asked if leaves[i].status != "pass"]
    for i in sorted(doubtful, key=lambda i: -relative_difference(leaves[i]))[:MOST_WITNESSED]:
        found[i] = point.ask_witnesses(leaves[i], i, seed)
    alike = [i for i in asked if leaves[i].status == "pass"]
    for k in range(min(MOST_WITNESSED, len(alike))):
        group = alike[k::MOST_WITNESSED]
        if point.agrees_along_a_line(group, seed):
            for i in group:
                found[i] = dataclasses.replace(leaves[i], directions=1)
            continue
        for i in group[:MOST_IN_DOUBT]:
            found[i] = point.ask_witnesses(leaves[i], i, seed)
        for i in group[MOST_IN_DOUBT:]:
            said = (
                *leaves[i].messages,
                "finite differences could not tell alone, as one of many",
            )
            found[i] = dataclasses.replace(leaves[i], messages=said)
    return found


def _conflict(point: Point, leaves: list[LeafReport]) -> str:
    """What no subgradient is, where every entry that differs from autodiff's lies at a kink."""
    at_kinks = [leaf for leaf in leaves if leaf.wrong and leaf.kinks and leaf.status == "pass"]
    if not at_kinks or any(leaf.wrong and leaf.status == "fail" for leaf in leaves):
        return ""
    log.debug("kinks together")
    judged = {leaf.path for leaf in leaves if leaf.status == "pass"}
    manual = {path: g for path, g in point.here.manual.items() if path in judged}
    return point.close_by.conflict(manual, point.here.autodiff, point.problem.paths)
