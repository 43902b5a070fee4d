"""Is a gradient as exact in the working dtype as autodiff's is there?"""

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxnn.verify.compare import Values, epsilon_of, first_index
from jaxnn.verify.programs import EPSILON
from jaxnn.verify.report import Diagnosis, LeafReport, Precision

# The hand-written error in the working dtype may be so many times autodiff's, plus so many times
# the dtype's epsilon at the leaf's scale: correct formulas differ by about 4 in either.
ERROR_RATIO = 8
ERROR_FLOOR = 8
# Where it is larger at the point given, luck is ruled out at so many more points nearby.
NEARBY = 4


def check_precision(
    leaf: LeafReport,
    number: int,
    here: tuple[Values, Values],
    nearby: Callable[[], list[tuple[Values, Values]]],
) -> LeafReport:
    """Whether the hand-written gradient is as exact in the working dtype as autodiff's there.

        error <= 8 (autodiff's error + epsilon scale),   errors against float64

    One point decides that it is. That it is not takes the median of the hand-written errors at
    several points, against the largest of autodiff's: one gradient may be exact by luck.

    Args:
        leaf: compared in float64 already.
        number: its position among the parameters.
        here: both gradients in the working dtype, and in float64.
        nearby: gives the same pairs at other points.
    """
    working, lifted = here
    values = working.manual[leaf.path]
    if not np.isfinite(values).all():
        at = first_index(~np.isfinite(values))
        message = f"the hand-written gradient is not finite in {leaf.dtype}: {values[at]} at {at}"
        return dataclasses.replace(
            leaf,
            status="fail",
            diagnosis=leaf.diagnosis
            or Diagnosis("not finite", f"{values[at]} begins at {list(at)}, in {leaf.dtype} only"),
            messages=(*leaf.messages, message),
        )
    if leaf.dtype == "float64" or leaf.wrong or not np.isfinite(lifted.autodiff[number]).all():
        return leaf

    epsilon = epsilon_of(leaf.dtype)

    def errors(pair: tuple[Values, Values]) -> tuple[float, float]:
        low, high = pair
        truth = high.autodiff[number]
        by_autodiff = np.abs(low.autodiff[number] - truth)
        finite = np.isfinite(by_autodiff).all()
        return (
            float(np.abs(low.manual[leaf.path] - truth).max(initial=0.0)),
            float(by_autodiff.max(initial=0.0)) if finite else np.inf,
        )

    def judged(manual: float, autodiff: float) -> Precision:
        floor = (ERROR_FLOOR * epsilon + leaf.declared) * leaf.scale
        return Precision(manual, autodiff, ERROR_RATIO * autodiff + floor)

    found = judged(*errors(here))
    if found.manual > found.allowed:
        manuals, autodiffs = zip(*[errors(pair) for pair in [here, *nearby()]], strict=True)
        found = judged(float(np.median(manuals)), max(autodiffs))
    if found.manual <= found.allowed:
        return dataclasses.replace(leaf, precision=found)
    message = (
        f"right in float64, but in {leaf.dtype} off by {found.manual:.1e}, autodiff by "
        f"{found.autodiff:.1e}: a narrower dtype inside, or numbers that cancel?"
    )
    relative = found.manual / leaf.scale if leaf.scale else np.inf
    narrower = [n for n, e in EPSILON.items() if epsilon < e and e / 64 <= relative <= 4 * e]
    cause = f"rounded to {narrower[0]} inside?" if narrower else "a formula that loses digits"
    return dataclasses.replace(
        leaf,
        status="fail",
        precision=found,
        diagnosis=Diagnosis("rounding", cause),
        messages=(*leaf.messages, message),
    )
