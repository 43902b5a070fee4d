"""Compare two gradients of one leaf: in float64, then in the leaf's own dtype."""

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxnn.verify.findings import Diagnosis, LeafReport, Precision, heat, slice_filled
from jaxnn.verify.nearby import plausible_rounding
from jaxnn.verify.trace import EPSILON
from jaxnn.verify.values import Values, epsilon_of, first_index, largest

# Two correct float64 gradients agree to about 1e-15 of a leaf's scale; a wrong one does not come
# within 1e-10 of it by luck.
RELATIVE_TOLERANCE = 1e-10
# Where both are rounded to a narrower dtype, either may be off by so many times autodiff's own
# error there, plus so many times the dtype's epsilon at the leaf's scale: correct formulas differ
# by about 4 in either.
ERROR_RATIO = 8
ERROR_FLOOR = 8
# An explanation of a wrong gradient is exact if it leaves so much of its scale: rounding, no more.
EXACT = 1e-9


def allowed_error(autodiff: float, epsilon: float, scale: float) -> float:
    """Return what a gradient may be off by if autodiff is off so much: ratio error + floor eps."""
    return ERROR_RATIO * autodiff + ERROR_FLOOR * epsilon * scale


def compare_in_float64(
    leaf: LeafReport,
    values: Values,
    number: int,
    rounding: Callable[[], list[float]],
    stops_at: float = 0.0,
    apart: Callable[[], list[float]] | None = None,
) -> LeafReport:
    """Compare the two float64 gradients of one leaf, entry by entry.

    The status is "inconclusive" where rounding might explain the difference, where autodiff is not
    finite but the hand-written gradient is, and where it was measured too coarsely to tell.

    Args:
        leaf: its name and shape.
        values: both gradients.
        number: which leaf it is.
        rounding: gives what rounding moves each leaf by.
        stops_at: what a loop that stops by itself may leave, as a part of the scale.
        apart: gives what the rounding of the arguments as they were given moves both apart by.
    """
    manual, autodiff = values.manual[leaf.path], values.autodiff[number]
    if not np.isfinite(manual).all():
        at = first_index(~np.isfinite(manual))
        message = (
            f"the hand-written gradient is not finite in float64: {manual[at]} at {at}, "
            f"{(~np.isfinite(manual)).sum()} such entries"
        )
        text = f"{manual[at]} begins at {list(at)}: 0/0, or an overflow?"
        return dataclasses.replace(
            leaf,
            messages=(message,),
            diagnosis=Diagnosis("not finite", text),
            where=slice_filled(~np.isfinite(manual)),
        )
    comparable = np.isfinite(autodiff)
    differences = np.abs(manual - np.where(comparable, autodiff, manual))
    difference, scale = largest(differences), largest(autodiff)
    plausible = plausible_rounding(values.loss)
    messages, relied_on = list[str](), tuple[str, ...]()
    if values.width:
        # The same width on both sides: as much as autodiff's own rounding there allows.
        tolerance = allowed_error(rounding()[number], values.width, scale)
        doubt, sees = 0.0, tolerance
    else:
        tolerance, doubt = RELATIVE_TOLERANCE * scale, 0.0
        sees = tolerance + plausible
        if difference > tolerance:
            # Rounding that was measured and is small is allowed; what rounding might explain, but
            # was not seen to, is left in doubt.
            measured = rounding()[number]
            tolerance += min(measured, plausible)
            doubt = max(measured, plausible, stops_at * scale)
        if apart and tolerance < difference <= (as_given := apart()[number]):
            tolerance, sees, relied_on = as_given, sees + as_given, (_RELIED_ON,)
    unsure = np.zeros(manual.shape)
    if values.uncertainty is not None:
        unsure = values.uncertainty[number]
        sees += largest(unsure)
    tolerance += leaf.declared * scale
    sees += leaf.declared * scale
    mask = differences > tolerance + unsure
    wrong = int(mask.sum())
    if 0 < difference <= doubt and wrong:
        messages.append(
            f"the difference of {difference:.1e} may be "
            + (
                f"rounding: {_TOO_FINE}"
                if difference <= max(measured, plausible)
                else f"what a loop that stops by itself leaves: {_STOPS}"
            )
        )
    if not comparable.all():
        at = first_index(~comparable)
        messages.append(
            f"autodiff gives {autodiff[at]} at {at} ({(~comparable).sum()} such entries), the "
            f"hand-written gradient {manual[at]:.6g}: has a masked branch no derivative there?"
        )
    if not np.isfinite(unsure).all():
        at = first_index(~np.isfinite(unsure))
        messages.append(
            f"finite differences, which alone could judge, meet a kink at {at} "
            f"({(~np.isfinite(unsure)).sum()} such entries)"
        )
    return dataclasses.replace(
        leaf,
        status="fail" if wrong and difference > doubt else "inconclusive" if messages else "pass",
        scale=scale,
        difference=difference,
        tolerance=tolerance,
        sees=sees / scale if scale else None,
        wrong=wrong,
        where=slice_filled(mask),
        heat=heat(differences / (scale or 1.0)) if wrong else (),
        messages=(*messages, *relied_on),
    )


_TOO_FINE = (
    "float64 carries no more of numbers near 1 (or of the loss) that cancel here; verify at other "
    "parameters, or a larger loss, too"
)
_RELIED_ON = (
    "the gradients differ by what the rounding of the arguments makes of them: does one rely on "
    "what these are to the last place only (rows that sum to 1, unit vectors)? less would not show"
)
_STOPS = (
    "a solver is right to what it converged to; declare how well, "
    "tolerance={leaf: (1e-6, 'the solver stops at 1e-6')}, or let it go on"
)
# Where it is larger at the point given, luck is ruled out at so many more points nearby.
NEARBY_POINTS = 4


def compare_in_own_dtype(
    leaf: LeafReport,
    number: int,
    here: tuple[Values, Values],
    nearby: Callable[[], list[tuple[Values, Values]]],
    noise: Callable[[], list[float]] | None = None,
) -> LeafReport:
    """Judge whether the hand-written gradient is as exact in the working dtype as autodiff's there.

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
