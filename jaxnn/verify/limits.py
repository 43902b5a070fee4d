"""What the numbers at a point cannot show, in words, and what was not tried there."""

from jaxnn.verify.elsewhere import MOST_EAGER
from jaxnn.verify.point import Point
from jaxnn.verify.width import EPSILON


def limits(point: Point) -> tuple[str, ...]:
    """What these numbers cannot show, in words."""
    found = []
    if point.obstacle:
        found.append(
            f"the functions do not take float64 ({point.obstacle}): what is smaller than the "
            "rounding of the dtypes given would not show"
        )
    elif point.here.width:
        narrow = next(name for name, e in EPSILON.items() if e == point.here.width)
        found.append(
            f"given float64, something inside computes in {narrow}, or is cast to it: "
            "errors smaller than its rounding would not show"
        )
    if point.way != "reverse mode":
        alone = ", which alone judged it" if point.way == "finite differences" else ""
        found.append(
            f"the loss has no derivative in reverse mode ({point.said}): {point.way}{alone}"
        )
    if point.draws_differ:
        found.append(
            "random numbers are drawn without a dtype, others in float64 than in the dtypes "
            "given: the precision was judged in these alone"
        )
    return tuple(found)


def too_long(point: Point) -> str:
    """What of the other ways to run it was not looked at, and why; empty where all were."""
    if point.problem.as_it_is:
        return (
            "how it does under jit or vmap: the hand-written gradient cannot be traced and was "
            "run as it is"
        )
    if point.programs.long:
        return (
            f"how it does under jit and vmap: its {point.programs.operations} operations were "
            "run one by one, which takes less time than to compile them"
        )
    if point.programs.operations <= MOST_EAGER:
        return ""
    return (
        f"whether it gives the same without jit: of {point.programs.operations} operations "
        f"(more than {MOST_EAGER}) each would be compiled by itself"
    )
