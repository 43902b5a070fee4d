"""Is a gradient as exact in the working dtype as autodiff's is there?"""

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxnn.verify.compare import allowed_error
from jaxnn.verify.findings import Diagnosis, LeafReport, Precision
from jaxnn.verify.values import Values, epsilon_of, first_index, largest
from jaxnn.verify.width import EPSILON

# Where it is larger at the point given, luck is ruled out at so many more points nearby.
NEARBY = 4


def check_precision(
    leaf: LeafReport,
    number: int,
    here: tuple[Values, Values],
    nearby: Callable[[], list[tuple[Values, Values]]],
    noise: Callable[[], list[float]] | None = None,
) -> LeafReport:
    """Whether the hand-written gradient is as exact in the working dtype as autodiff's there.

        error <= 8 (autodiff's error + epsilon scale),   errors against float64

    One point decides that it is. That it is not takes the median of the hand-written errors at
    several points, against the largest of autodiff's: one gradient may be exact by luck. Where
    float64 is no truth, since something inside is as narrow there, or draws other random numbers,
    the error is the distance of the two gradients in the working dtype, and autodiff's the `noise`.
    What only finite differences could judge has no precision to compare with.

    Args:
        leaf: compared in float64 already.
        number: its position among the parameters.
        here: both gradients in the working dtype, and in float64.
        nearby: gives the same pairs at other points.
        noise: gives what rounding moves autodiff's gradients by, where float64 is no truth.
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
    if leaf.dtype == "float64" or leaf.wrong or working is lifted or lifted.uncertainty is not None:
        return leaf
    epsilon = epsilon_of(leaf.dtype)
    known = np.isfinite(lifted.autodiff[number])

    def errors(pair: tuple[Values, Values]) -> tuple[float, float]:
        low, high = pair
        if noise is not None:
            difference = (low.manual[leaf.path] - low.autodiff[number])[known]
            return largest(difference), noise()[number]
        truth = high.autodiff[number]
        finite = known & np.isfinite(truth)
        by_autodiff = np.abs(low.autodiff[number] - truth)[finite]
        return (
            float(np.abs(low.manual[leaf.path] - truth)[finite].max(initial=0.0)),
            float(by_autodiff.max(initial=0.0)) if np.isfinite(by_autodiff).all() else np.inf,
        )

    def judged(manual: float, autodiff: float) -> Precision:
        allowed = allowed_error(autodiff, epsilon, leaf.scale) + leaf.declared * leaf.scale
        return Precision(manual, autodiff, allowed)

    found = judged(*errors(here))
    if found.manual > found.allowed:
        manuals, autodiffs = zip(*[errors(pair) for pair in [here, *nearby()]], strict=True)
        found = judged(float(np.median(manuals)), max(autodiffs))
    if found.manual <= found.allowed:
        return dataclasses.replace(leaf, precision=found)
    right = "of another width than float64" if noise is not None else "right in float64"
    message = (
        f"{right}, but in {leaf.dtype} off by {found.manual:.1e}, autodiff by "
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
