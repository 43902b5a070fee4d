"""Arms compared and timed: in turns, in rounds, in an order shuffled anew each round."""

import dataclasses
import math
import random
import time
from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.benchmark.arms import (
    AUTODIFF,
    COMPILED,
    PYTORCH,
    Arm,
    Case,
    LeftOutError,
    compiled,
    copy,
    in_a_line,
    on_accelerator,
    precision,
    product,
)

PRODUCT, COPY = "one large product", "one large copy"
# Enough to keep a processor busy, and far more than its caches hold.
PRODUCT_SIZE, COPY_SIZE = 2048, 2**26
QUICK_PRODUCT_SIZE, QUICK_COPY_SIZE = 512, 2**24
ACCELERATOR_PRODUCT_SIZE, ACCELERATOR_COPY_SIZE = 8192, 2**29
TURN_SECONDS = 0.02  # at least so long does a turn take: what is shorter is called more often
STRONGEST = "strongest"
AGAINST = {
    AUTODIFF: AUTODIFF,
    STRONGEST: "the strongest form for jax.grad",
    PYTORCH: "PyTorch, eager",
}

clock = time.perf_counter


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
    """

    case: Case
    arms: dict[str, Arm]
    seconds: dict[str, list[float]]
    left_out: dict[str, str]
    disagree: tuple[str, ...]
    rate: float | None

    def time(self, arm: str) -> Spread:
        """Seconds per call."""
        return _spread(self.seconds[arm])

    def ratio(self, arm: str) -> Spread | None:
        """Times as long as the base arm, round by round; None if the base was not timed."""
        if self.case.base not in self.seconds:
            return None
        pairs = zip(self.seconds[arm], self.seconds[self.case.base], strict=True)
        return _spread([theirs / ours for theirs, ours in pairs])

    def rival(self, against: str) -> str | None:
        """The arm that the base has to beat: one of `AGAINST`, where there is one."""
        rivals = {
            AUTODIFF: [arm for arm in self.seconds if arm == AUTODIFF],
            STRONGEST: [arm for arm in self.seconds if arm.startswith(AUTODIFF)],
            PYTORCH: [a for a in self.seconds if a.startswith(PYTORCH) and a != COMPILED],
        }[against]
        return min(rivals, key=lambda arm: median(self.seconds[arm]), default=None)

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


def floor_sizes(quick: bool) -> tuple[int, int]:
    """The sizes of one large product and one large copy."""
    if on_accelerator():
        return ACCELERATOR_PRODUCT_SIZE, ACCELERATOR_COPY_SIZE
    return (QUICK_PRODUCT_SIZE, QUICK_COPY_SIZE) if quick else (PRODUCT_SIZE, COPY_SIZE)


def measure(
    case: Case,
    rounds: int,
    order: random.Random,
    product_size: int = PRODUCT_SIZE,
    skip: Iterable[str] = (),
) -> Result:
    """Build the arms, compare what they give, and time those that agree.

    A rival that fails is left out; where the base or `jax.grad` itself fails, nothing is measured.
    """
    with precision(case.dtype):
        return _measure(case, rounds, order, product_size, skip)


def _measure(
    case: Case, rounds: int, order: random.Random, product_size: int, skip: Iterable[str]
) -> Result:
    builds = {name: build for name, build in case.make().items() if name not in skip}
    arms, left_out = {}, {}
    for name in order.sample(list(builds), len(builds)):
        try:
            arms[name] = builds[name]()
            arms[name].run()
        except LeftOutError as reason:
            left_out[name] = str(reason)
        except RuntimeError as error:  # XLA's and PyTorch's: no memory, no such kernel
            if name in (case.base, AUTODIFF):
                raise
            arms.pop(name, None)
            left_out[name] = in_a_line(error)
    arms = {name: arms[name] for name in builds if name in arms}
    wrong = _disagreeing(arms, case)
    agreed = {name: arm for name, arm in arms.items() if name not in wrong}
    timed = agreed | ({PRODUCT: product(product_size, case.dtype)} if case.flops else {})
    seconds = time_in_turns({name: arm.run for name, arm in timed.items()}, rounds, order)
    rate = _rate(product_size, seconds.pop(PRODUCT)) if case.flops else None
    known = {name: arm._replace(run=_done) for name, arm in agreed.items()}
    return Result(case, known, seconds, left_out | wrong, tuple(wrong), rate)


def _done() -> tuple[Any, Any]:
    """In the place of an arm's program, whose memory is free again."""
    raise RuntimeError("the arm was measured, and its program is gone")


def time_in_turns(
    runs: Mapping[str, Callable[[], Any]], rounds: int, order: random.Random
) -> dict[str, list[float]]:
    """Seconds per call of each, a value per round; each round in a new order."""

    def turn(run: Callable[[], Any], calls: int) -> float:
        run()  # wakes threads, fills caches
        started = clock()
        for _ in range(calls):
            run()
        return (clock() - started) / calls

    calls = {
        name: math.ceil(min(max(TURN_SECONDS / max(turn(run, 1), 1e-9), 1), 1000))
        for name, run in runs.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name in order.sample(list(runs), len(runs)):
            seconds[name].append(turn(runs[name], calls[name]))
    return seconds


def _disagreeing(arms: Mapping[str, Arm], case: Case) -> dict[str, str]:
    """The arms whose result or gradient is not `jax.grad`'s, or else the base's, and by what."""
    reference = AUTODIFF if AUTODIFF in arms else case.base
    if reference not in arms:
        return {}
    expected = _answer(arms[reference])
    wrong = {}
    for name, arm in arms.items():
        for what, a, b in zip(("result", "gradient"), _answer(arm), expected, strict=True):
            difference = _difference(a, b)
            if what == "gradient" and a.dtype != b.dtype:  # it did other work
                wrong[name] = f"its {what} is {a.dtype}, {reference}'s {b.dtype}"
            elif not difference <= case.agree:
                wrong[name] = f"its {what} is not {reference}'s: off by {difference:.1e} of scale"
    return wrong


def _answer(arm: Arm) -> list[Any]:
    """The first array of the result, and of the gradients."""
    leaves = [jax.tree.leaves(part) for part in arm.run()]
    return [arm.read(part[0]) if part else np.zeros(()) for part in leaves]


def _difference(a: Any, b: Any) -> float:
    """The largest by the scale; infinite where the shapes differ, NaN where a number is none."""
    if a.shape != b.shape:
        return math.inf
    a, b = a.astype(np.float64), b.astype(np.float64)
    scale = float(np.abs(b).max()) or 1.0
    return float(np.abs(a - b).max()) / scale


def floors(product_size: int, copy_size: int, rounds: int, order: random.Random) -> Floors:
    """What one large product and one large copy reach alone."""
    with precision(np.float32):
        compiled(lambda x: (x + 1, ()), np.zeros(3, np.float32))  # JAX starts
        arms = {PRODUCT: product(product_size).run, COPY: copy(copy_size).run}
    seconds = time_in_turns(arms, rounds, order)
    return Floors(_rate(product_size, seconds[PRODUCT]), 8 * copy_size / median(seconds[COPY]))


def _rate(size: int, seconds: list[float]) -> float:
    return 2 * size**3 / median(seconds)


def _spread(values: list[float]) -> Spread:
    return Spread(*map(float, np.quantile(values, [0.25, 0.5, 0.75])))
