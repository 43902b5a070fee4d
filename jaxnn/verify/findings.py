"""What a verification found of one leaf: how far off, where, who is wrong, and why."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["pass", "fail", "inconclusive", "skipped"]


@dataclass(frozen=True)
class Diagnosis:
    """A likely cause: one of a few words for programs, and a line for people.

    Where no cause is known, "location" is followed by the place where it begins to be wrong.
    """

    cause: str
    text: str

    @property
    def heading(self) -> str:
        """What the line for people is."""
        return "where it begins" if self.cause == "location" else "likely cause"


@dataclass(frozen=True)
class Disagreement:
    """One entry where the two gradients differ, and what the witnesses say of it.

    Attributes:
        index: where in the leaf.
        manual: the hand-written value.
        autodiff: automatic differentiation's value, in reverse mode.
        forward: its value in forward mode; None where a custom rule refuses that.
        slope: the centred difference; `error` its estimated error; `left` and `right` the
            one-sided differences.
        kink: whether left and right tend to different limits.
        ladder: the step lengths tried and the centred difference at each.
        verdict: who is wrong, in words.
        guilty: "hand-written", "autodiff", or "" where nobody surely is.
    """

    index: tuple[int, ...]
    manual: float
    autodiff: float
    forward: float | None
    slope: float
    error: float
    left: float
    right: float
    kink: bool
    ladder: tuple[tuple[float, float], ...]
    verdict: str
    guilty: Literal["hand-written", "autodiff", ""] = ""


@dataclass(frozen=True)
class Precision:
    """Errors of a leaf in the working dtype against float64, as its largest over the entries.

    Attributes:
        manual: of the hand-written gradient.
        autodiff: of automatic differentiation.
        allowed: what the hand-written gradient may be off by.
    """

    manual: float
    autodiff: float
    allowed: float


@dataclass(frozen=True)
class LeafReport:
    """The comparison of one leaf of the parameters, in float64.

    Attributes:
        path: as Python would write it after the parameters' name.
        shape: of the leaf.
        dtype: of the leaf as given, before it was lifted to float64.
        status: "pass", "fail", "inconclusive" or "skipped".
        scale: the largest absolute entry of autodiff's gradient.
        difference: the largest absolute difference between the two gradients; None where they
            could not be compared.
        tolerance: the difference allowed, computed from the scale and the rounding measured.
        sees: the smallest relative error of the leaf (of its scale) that would not have passed;
            None where the leaf is all zero or was not compared.
        wrong: the number of entries that differ by more.
        where: the slice that the wrong entries fill, as Python would index it.
        directions: how many directions the finite-difference witness tried.
        kinks: in how many of them left and right slopes differ, so that it could not testify.
        worst: the entry that differs most, where any does by more than the tolerance.
        precision: the errors in the working dtype; None where that is float64.
        diagnosis: a likely cause, where one fits.
        heat: the differences as a fraction of the scale, the largest of each cell of a coarse
            picture of the leaf; empty where nothing is wrong.
        messages: what else there is to say.
        declared: the relative tolerance declared for the leaf; 0 where none was.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    status: Status
    scale: float = 0.0
    difference: float | None = None
    tolerance: float = 0.0
    sees: float | None = None
    wrong: int = 0
    where: str = ""
    directions: int = 0
    kinks: int = 0
    worst: Disagreement | None = None
    precision: Precision | None = None
    diagnosis: Diagnosis | None = None
    heat: tuple[tuple[float, ...], ...] = ()
    messages: tuple[str, ...] = ()
    declared: float = 0.0
