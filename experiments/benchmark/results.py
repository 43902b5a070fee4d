"""What was measured of a case: times by arm and round, and their ratios to those by hand."""

import dataclasses
from typing import NamedTuple

import numpy as np

from experiments.benchmark.arms import AUTODIFF, COMPILED, EQUINOX, FLAX, PYTORCH, Arm, Case

STRONGEST, FRAMEWORKS = "strongest", "frameworks"
AGAINST = {
    AUTODIFF: AUTODIFF,
    STRONGEST: "the strongest form for jax.grad",
    FRAMEWORKS: f"the faster of {FLAX} and {EQUINOX}",
    PYTORCH: "PyTorch, eager",
    COMPILED: "PyTorch, compiled",
}


class Spread(NamedTuple):
    """Quartiles."""

    low: float
    middle: float
    high: float


class Floors(NamedTuple):
    """What the machine can do.

    Attributes:
        product: operations per second of one large product of matrices.
        copy: bytes per second read and written by one large copy.
    """

    product: float
    copy: float


@dataclasses.dataclass
class Result:
    """What was measured of a case.

    Attributes:
        case: the case.
        arms: those that were timed, without their programs.
        seconds: of each, per call, a value per round.
        left_out: why other arms were not timed.
        disagree: those of them that gave another result.
        rate: operations per second of one large product in turn with them, where there are `flops`.
        busy: the share of the cores' time that others had meanwhile; None if unknown.
    """

    case: Case
    arms: dict[str, Arm]
    seconds: dict[str, list[float]]
    left_out: dict[str, str]
    disagree: tuple[str, ...]
    rate: float | None
    busy: float | None

    def time(self, arm: str) -> Spread:
        """Seconds per call."""
        return spread(self.seconds[arm])

    def ratio(self, arm: str) -> Spread | None:
        """Times as long as the base arm, round by round; None if the base was not timed."""
        if self.case.base not in self.seconds:
            return None
        pairs = zip(self.seconds[arm], self.seconds[self.case.base], strict=True)
        return spread([theirs / ours for theirs, ours in pairs])

    def rival(self, against: str) -> str | None:
        """The arm that the base has to beat: one of `AGAINST`, where there is one."""
        rivals = {
            AUTODIFF: [arm for arm in self.seconds if arm == AUTODIFF],
            STRONGEST: [arm for arm in self.seconds if arm.startswith(AUTODIFF)],
            FRAMEWORKS: [arm for arm in self.seconds if arm.startswith((FLAX, EQUINOX))],
            PYTORCH: [a for a in self.seconds if a.startswith(PYTORCH) and a != COMPILED],
            COMPILED: [arm for arm in self.seconds if arm == COMPILED],
        }[against]
        return min(rivals, key=self._slowness, default=None)

    def _slowness(self, arm: str) -> float:
        """What the rivals are compared by: what is reported of them, where the base was timed."""
        ratio = self.ratio(arm)
        return ratio.middle if ratio else self.time(arm).middle

    def against(self) -> dict[str, Spread]:
        """The ratios to the rivals there are."""
        found = {name: self.rival(name) for name in AGAINST}
        ratios = {name: self.ratio(arm) for name, arm in found.items() if arm}
        return {name: ratio for name, ratio in ratios.items() if ratio}

    @property
    def share(self) -> float | None:
        """The base's rate of counted operations, as a share of the product's."""
        if not (self.case.flops and self.rate and self.case.base in self.seconds):
            return None
        return self.case.flops / self.time(self.case.base).middle / self.rate

    def copy_share(self, floors: Floors) -> float | None:
        """The base's inputs and outputs per second, as a share of the bytes that a copy moves."""
        if self.case.base not in self.seconds:
            return None
        moved = self.arms[self.case.base].moved
        return moved and moved / self.time(self.case.base).middle / floors.copy


def in_digits(number: float, most: int = 3) -> str:
    """A number in so many significant digits, never as a power of ten."""
    return np.format_float_positional(number, most, fractional=False, trim="-")


def megabytes(size: int | None, most: int = 3) -> str:
    """Bytes in millions, in so many digits; "-" where they are not known."""
    return "-" if size is None else in_digits(size / 1e6, most)


def spread(values: list[float]) -> Spread:
    """The quartiles of some numbers."""
    return Spread(*map(float, np.quantile(values, [0.25, 0.5, 0.75])))
