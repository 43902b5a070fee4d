"""The verdict on a problem at a point, whatever its functions are.

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

from jaxnn.verify.chain import locate
from jaxnn.verify.coverage import survivors
from jaxnn.verify.diagnose import explained
from jaxnn.verify.elsewhere import elsewhere
from jaxnn.verify.point import Point
from jaxnn.verify.report import LeafReport, Report
from jaxnn.verify.returned import structure

log = logging.getLogger("jaxnn.verify")


def verdict(point: Point, skip: Mapping[str, str], seed: int) -> Report:
    """What there is to say of a problem at a point, whatever its functions are."""
    problem = point.problem
    dtypes = {path: x.dtype for path, x in zip(problem.paths, problem.floats, strict=True)}
    problems, faults = structure(point.working.out, problem.expected, dtypes)
    leaves: list[LeafReport] = []
    for i, path in enumerate(problem.paths):
        x = problem.floats[i]
        declared = problem.tolerances.get(path, 0.0)
        leaf = LeafReport(path, x.shape, str(x.dtype), "fail", declared, messages=faults[path])
        if path in skip:
            reason = f"not judged: {skip[path]}"
            leaf = dataclasses.replace(leaf, status="skipped", messages=(reason,))
        elif not leaf.messages:
            log.debug("comparing %s", path)
            leaf = point.compare(leaf, i, seed)
            if leaf.difference is not None and not leaf.wrong:
                problems += survivors(leaf, point.here, i)
        leaves.append(leaf)
    if not np.isfinite(point.here.loss):
        problems += (
            f"the loss is {point.here.loss} in float64: check the inputs, labels among them",
        )
    chain = ""
    unexplained: tuple[str, ...] = ()
    if any(leaf.status == "fail" and leaf.wrong for leaf in leaves):
        log.debug("looking for the cause")
        with point.precisely():
            leaves, unexplained = explained(leaves, point)
            chain = locate(problem, point.floats, point.rest)
    log.debug("running it in other ways")
    return Report(
        "",
        point.here.loss,
        tuple(leaves),
        problems,
        0.0,
        chain=chain,
        coverage=(*unexplained, *point.limits),
        elsewhere=elsewhere(
            problem,
            problem.floats,
            problem.rest,
            point.working,
            point.programs,
            point.within(leaves),
        ),
        seed=seed,
    )
