"""Search for the cause of a wrong gradient: whatever is only used to say why.

Nothing here decides whether a gradient is right, and nothing else of the verifier calls more of it
than `find_causes`.
"""

import dataclasses
import logging

from jaxnn.verify.causes.chain import locate
from jaxnn.verify.causes.diagnose import explain_leaves
from jaxnn.verify.point import Point
from jaxnn.verify.report import Report

log = logging.getLogger("jaxnn.verify")


def find_causes(point: Point, report: Report) -> Report:
    """Return the report of a wrong gradient with a likely cause; the search can be interrupted."""
    log.debug("looking for the cause")
    try:
        with point.precisely():
            leaves, unexplained = explain_leaves(list(report.leaves), point)
            chain = ""
            if not point.problem.on_mesh:  # inside shard_map no values can be seen
                chain = locate(point.problem, point.floats, point.rest)
    except KeyboardInterrupt:
        said = ("the search for the cause was interrupted",)
        return dataclasses.replace(report, coverage=(*said, *report.coverage))
    return dataclasses.replace(
        report, leaves=tuple(leaves), chain=chain, coverage=(*unexplained, *report.coverage)
    )
