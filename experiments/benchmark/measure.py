"""Arms compared and timed: in turns, in rounds, in an order shuffled anew each round."""

import math
import random
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from experiments.benchmark import machine
from experiments.benchmark.arms import (
    AUTODIFF,
    Arm,
    Builds,
    Case,
    LeftOutError,
    answer,
    compiled,
    copy,
    in_a_line,
    off,
    on_accelerator,
    precision,
    product,
)
from experiments.benchmark.results import Floors, Result

PRODUCT, COPY = "one large product", "one large copy"
# Enough to keep a processor busy, and far more than its caches hold.
PRODUCT_SIZE, COPY_SIZE = 2048, 2**26
QUICK_PRODUCT_SIZE, QUICK_COPY_SIZE = 512, 2**24
ACCELERATOR_PRODUCT_SIZE, ACCELERATOR_COPY_SIZE = 8192, 2**29
TURN_SECONDS = 0.05  # at least so long does a turn take: what is shorter is called more often
SHORTEST = 1e-5  # no call counts as shorter: so often, and no more, is one called in a turn
ENOUGH_SECONDS = 10.0  # of a whole run's case: a pause of the machine spoils a short turn
WARM_SECONDS = 0.2  # of what takes longer the first call is as good as the next
TRIES = 3  # at most so often is a case timed, while others have much of the cores' time
clock = time.perf_counter


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
    peers: Builds | None = None,
    pids: Iterable[int] = (),
    enough: float = 0.0,
) -> Result:
    """Build the arms, compare what they give, and time those that agree.

    A rival that fails is left out; where the base or `jax.grad` itself fails, nothing is measured.
    Of a case whose inputs are not there all is left out.
    Where others used the cores meanwhile, all is timed again, and the calmest times are kept.

    Args:
        case: the case.
        rounds: turns of every arm, at least.
        order: draws the order of the arms, anew in each round.
        product_size: of the one large product.
        skip: names of arms that are not wanted.
        peers: what builds more arms.
        pids: of the processes that these are in.
        enough: seconds that all turns take, at least; short ones have more rounds.
    """
    with precision(case.dtype):
        try:
            builds = case.make() | (peers or {})
        except LeftOutError as reason:
            return Result(case, {}, {}, {case.base: str(reason)}, (), None, None)
        builds = {name: build for name, build in builds.items() if name not in skip}
        return _measure(case, builds, rounds, order, product_size, pids, enough)


def _measure(
    case: Case,
    builds: Builds,
    rounds: int,
    order: random.Random,
    product_size: int,
    pids: Iterable[int],
    enough: float,
) -> Result:
    arms: dict[str, Arm] = {}
    answers, left_out = {}, {}
    for name in order.sample(list(builds), len(builds)):
        try:
            arms[name] = builds[name]()
            answers[name] = answer(arms[name])
        except LeftOutError as reason:
            left_out[name] = str(reason)
        except RuntimeError as error:  # XLA's and PyTorch's: no memory, no such kernel
            if name in (case.base, AUTODIFF):
                raise
            left_out[name] = in_a_line(error)
    arms = {name: arms[name] for name in builds if name in answers}
    wrong = _disagreeing(answers, case)
    agreed = {name: arm for name, arm in arms.items() if name not in wrong}
    timed = agreed | ({PRODUCT: product(product_size, case.dtype)} if case.flops else {})
    if case.most_rounds:
        rounds, enough = min(rounds, case.most_rounds), 0.0
    take = partial(time_in_turns, timed, rounds, order, enough)
    seconds, busy = _calmest(take, tuple(pids))
    rate = _rate(product_size, seconds.pop(PRODUCT)) if case.flops else None
    known = {name: arm._replace(run=_done, seconds=None) for name, arm in agreed.items()}
    return Result(case, known, seconds, left_out | wrong, tuple(wrong), rate, busy)


def _calmest(
    take: Callable[[], dict[str, list[float]]], pids: tuple[int, ...]
) -> tuple[dict[str, list[float]], float | None]:
    """The times, taken again while others are busy, and the share that others had."""
    taken: list[tuple[float, dict[str, list[float]]]] = []
    while len(taken) < TRIES:
        before = machine.use(pids)
        seconds = take()
        busy = machine.others(before, machine.use(pids))
        if busy is None:
            return seconds, None
        taken.append((busy, seconds))
        if not machine.is_much(busy):
            break
    busy, seconds = min(taken, key=lambda one: one[0])
    return seconds, busy


def _done() -> tuple[Any, Any]:
    """In the place of an arm's program, whose memory is free again."""
    raise RuntimeError("the arm was measured, and its program is gone")


def time_in_turns(
    arms: Mapping[str, Arm], rounds: int, order: random.Random, enough: float = 0.0
) -> dict[str, list[float]]:
    """Seconds per call of each, a value per round; each round in a new order.

    There are `rounds`, or more, until they took `enough` seconds. How often an arm is called in a
    turn is told by its fastest call so far: one that a pause of the machine met says nothing.
    """

    def turn(arm: Arm, calls: int, warm: bool) -> float:
        return (arm.seconds or partial(timed, arm.run))(calls, warm) / calls

    def first(arm: Arm) -> float:
        seconds = turn(arm, 1, False)
        return turn(arm, 1, False) if seconds < WARM_SECONDS else seconds

    least = {name: first(arm) for name, arm in arms.items()}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    taken, total = 0, 0.0
    while taken < rounds or (arms and total < enough):
        for name in order.sample(list(arms), len(arms)):
            calls = math.ceil(max(TURN_SECONDS / max(least[name], SHORTEST), 1))
            warm = least[name] < WARM_SECONDS
            each = turn(arms[name], calls, warm)
            seconds[name].append(each)
            least[name] = min(least[name], each)
            total += (calls + warm) * max(each, SHORTEST)
        taken += 1
    return seconds


def timed(run: Callable[[], Any], calls: int, warm: bool = True) -> float:
    """Seconds that so many calls take; if `warm`, after one that wakes threads and fills caches."""
    if warm:
        run()
    started = clock()
    for _ in range(calls):
        run()
    return clock() - started


def _disagreeing(answers: Mapping[str, list[Any]], case: Case) -> dict[str, str]:
    """The arms whose result or gradient is not `jax.grad`'s, or else the base's, and by what."""
    reference = AUTODIFF if AUTODIFF in answers else case.base
    if reference not in answers:
        return {}
    wrong = {}
    for name, given in answers.items():
        for what, a, b in zip(("result", "gradient"), given, answers[reference], strict=True):
            apart = off(a, b)
            if what == "gradient" and a.dtype != b.dtype:  # it did other work
                wrong[name] = f"its {what} is {a.dtype}, {reference}'s {b.dtype}"
            elif not apart <= case.agree:
                wrong[name] = f"its {what} is not {reference}'s: off by {apart:.1e} of scale"
    return wrong


def floors(product_size: int, copy_size: int, rounds: int, order: random.Random) -> Floors:
    """What one large product and one large copy reach alone."""
    with precision(np.float32):
        compiled(lambda x: (x + 1, ()), np.zeros(3, np.float32))  # JAX starts
        arms = {PRODUCT: product(product_size), COPY: copy(copy_size)}
    seconds = time_in_turns(arms, rounds, order)
    return Floors(_rate(product_size, seconds[PRODUCT]), 8 * copy_size / median(seconds[COPY]))


def _rate(size: int, seconds: list[float]) -> float:
    return 2 * size**3 / median(seconds)
