"""How fast, how lean: by hand, by `jax.grad` and in PyTorch, on the same work in one run.

    python -m experiments.benchmark             every case; an hour
    python -m experiments.benchmark --quick     fewer and smaller; a minute
    python -m experiments.benchmark --case gpt-large lstm-b32 --rounds 21
    python -m experiments.benchmark --json out/benchmark.json --plot out/benchmark.png

The arms of a case (see `experiments.benchmark_cases`) first show that they agree: one that is off
by more than 1e-3 of the scale (`Case.agree`) is not timed, and the exit status is 1. Then they take
turns, in rounds, in an order shuffled anew each round, after an untimed call each. A ratio is the
median over the rounds of an arm's seconds by those by hand in the same round: 2 is twice as long.
"strongest" is the fastest form for autodiff, PyTorch the fastest of its eager ones. Temporary
memory is what the compiled program says it needs beside its inputs and outputs.

Where a case's operations are counted (`benchmark_cases.transformer_flops`), one large product of
two float32 matrices takes its turns too: "of peak" is the rate by hand as a share of its.

Where other work shares the cores, PyTorch's threads wait for each other in a busy loop, and two of
them can take fifty times as long as one: set OMP_WAIT_POLICY=PASSIVE there.
"""

import dataclasses
import gc
import importlib.metadata
import json as json_format
import math
import os
import platform
import random
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import cli, pictures
from experiments.benchmark_cases import (
    AUTODIFF,
    BY_HAND,
    COMPILED,
    PYTORCH,
    Arm,
    Case,
    LeftOutError,
    cases,
    compiled,
    cores,
    product,
)

PRODUCT = "one large product"
PRODUCT_SIZE, QUICK_PRODUCT_SIZE = 2048, 512
TURN_SECONDS = 0.02  # at least so long does a turn take: what is shorter is called more often
QUICK_SMALL, QUICK_ROUNDS = 4, 3
QUICK = (
    "mlp-small", "cnn-small", "rnn-small", "gpt-small", "autoencoder-small", "lm-head-50k",
    "attention-t256", "lstm-b4", "conv-stride1", "max-pool", "layer-norm", "embedding-256",
    "moons", "ladder",
)  # fmt: skip
STRONGEST = "strongest"
AGAINST = {
    AUTODIFF: AUTODIFF,
    STRONGEST: "the strongest form for jax.grad",
    PYTORCH: "PyTorch, eager",
}
SETTINGS = ("XLA_FLAGS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")  # of the environment
PACKAGES = ("jax", "jaxlib", "numpy", "torch")

clock = time.perf_counter


class Spread(NamedTuple):
    """Quartiles."""

    low: float
    middle: float
    high: float


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


def main(
    case: tuple[str, ...] = (),
    rounds: int = 11,
    quick: bool = False,
    seed: int = 0,
    json: Path | None = None,
    plot: Path | None = None,
) -> int:
    """Time hand-written gradients beside jax.grad and PyTorch.

    Args:
        case: Only these cases.
        rounds: Turns of every arm.
        quick: Smaller sizes, three rounds, no compiled PyTorch; unless named, a few cases.
        seed: Of the order in which the arms take turns.
        json: File for all figures.
        plot: File for a bar chart of the ratios.
    """
    cli.check_positive(rounds=rounds)
    for option, path in (("--json", json), ("--plot", plot)):
        if path:
            _check_file(option, path)
    chosen = _chosen(cases(QUICK_SMALL if quick else 1), case, quick)
    order = random.Random(seed)
    size = QUICK_PRODUCT_SIZE if quick else PRODUCT_SIZE
    if quick:
        rounds = QUICK_ROUNDS

    about = _about()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    results: dict[str, Result] = {}
    rate = _product_rate(size, rounds, order)
    print(f"one product of {size}x{size} matrices: {rate / 1e9:.0f} GFLOP/s")
    try:
        for name, one in chosen.items():
            results[name] = measure(one, rounds, order, size, {COMPILED} if quick else ())
            _print_case(name, results[name])
            gc.collect()
    except KeyboardInterrupt:
        print(f"interrupted: the figures are of the first {len(results)} cases")

    _print_table(results)
    means = _means(results)
    for against, mean in means.items():
        print(f"models' steps, geometric mean against {against}: {mean:.2f}")
    if json:
        figures = _figures(results, about, rate, means)
        json.write_text(json_format.dumps(figures, indent=1) + "\n")
        print(f"wrote {json}")
    if plot:
        pictures.benchmark(plot, _bars(results))
    wrong = [f"{name}: {arm}" for name, result in results.items() for arm in result.disagree]
    if wrong:
        print(f"DISAGREE, and were not timed: {'; '.join(wrong)}")
    return 1 if wrong else 0


def measure(
    case: Case,
    rounds: int,
    order: random.Random,
    product_size: int = PRODUCT_SIZE,
    skip: Iterable[str] = (),
) -> Result:
    """Build the arms, compare what they give, and time those that agree."""
    builds = {name: build for name, build in case.make().items() if name not in skip}
    arms, left_out = {}, {}
    for name in order.sample(list(builds), len(builds)):
        try:
            arms[name] = builds[name]()
        except LeftOutError as reason:
            left_out[name] = str(reason)
    arms = {name: arms[name] for name in builds if name in arms}
    wrong = _disagreeing(arms, case)
    agreed = {name: arm for name, arm in arms.items() if name not in wrong}
    timed = agreed | ({PRODUCT: product(product_size)} if case.flops else {})
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
            if not difference <= case.agree:
                wrong[name] = f"its {what} is not {reference}'s: off by {difference:.1e} of scale"
    return wrong


def _answer(arm: Arm) -> list[Any]:
    """The first array of the result, and of the gradients."""
    leaves = [jax.tree.leaves(part) for part in arm.run()]
    return [np.asarray(part[0]) if part else np.zeros(()) for part in leaves]


def _difference(a: Any, b: Any) -> float:
    """The largest by the scale; infinite where the shapes differ, NaN where a number is none."""
    if a.shape != b.shape:
        return math.inf
    scale = float(np.abs(b).max()) or 1.0
    return float(np.abs(a - b).max()) / scale


def _check_file(option: str, path: Path) -> None:
    """See now, not after an hour, that a file can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise ValueError(
            f"{option} {path} cannot be written ({error.strerror}); name a file that can"
        ) from error


def _chosen(known: dict[str, Case], names: tuple[str, ...], quick: bool) -> dict[str, Case]:
    """The cases asked for, or all; quickly, `QUICK`.

    Raises:
        ValueError: there is no such case.
    """
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"--case {' '.join(unknown)}: there are only {', '.join(known)}")
    if names:
        return {name: known[name] for name in names}
    if not quick:
        return known
    return {name: known[name] for name in QUICK}


def _about() -> dict[str, str]:
    """The machine, and the versions of what runs on it."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    device = jax.devices()[0]
    return {
        "cores": str(cores()),
        "machine": platform.machine(),
        "device": device.device_kind,
        "Python": platform.python_version(),
        **versions,
        **{name: os.environ[name] for name in SETTINGS if name in os.environ},
    }


def _product_rate(size: int, rounds: int, order: random.Random) -> float:
    """What one large product reaches alone, in operations per second."""
    compiled(lambda x: (x + 1, ()), np.zeros(3, np.float32))  # JAX starts
    seconds = time_in_turns({PRODUCT: product(size).run}, rounds, order)
    return _rate(size, seconds[PRODUCT])


def _rate(size: int, seconds: list[float]) -> float:
    return 2 * size**3 / median(seconds)


def _spread(values: list[float]) -> Spread:
    return Spread(*map(float, np.quantile(values, [0.25, 0.5, 0.75])))


def _means(results: Mapping[str, Result]) -> dict[str, float]:
    """The geometric means of the ratios over the models' training steps."""
    ratios = [result.against() for result in results.values() if result.case.step]
    given = {name: [r[name].middle for r in ratios if name in r] for name in AGAINST}
    return {name: geometric_mean(values) for name, values in given.items() if values}


def _bars(results: Mapping[str, Result]) -> dict[str, dict[str, Spread]]:
    """The ratios to draw, by case and rival."""
    ours = {name: result for name, result in results.items() if result.case.base == BY_HAND}
    bars = {
        name: {AGAINST[rival]: ratio for rival, ratio in result.against().items()}
        for name, result in ours.items()
    }
    return {name: ratios for name, ratios in bars.items() if ratios}


def _print_case(name: str, result: Result) -> None:
    """Every arm of a case, each on a line."""
    print(f"\n{name}: {result.case.what}")
    print(f"  {'':46}{'ms':>10}{'quartiles':>24}{'MB':>9}{'compile s':>11}{'ratio':>8}")
    for arm, (_, temporary, compile_seconds) in result.arms.items():
        low, middle, high = (f"{1e3 * seconds:.4g}" for seconds in result.time(arm))
        ratio = result.ratio(arm)
        print(
            f"  {arm:46}{middle:>10}{f'{low} to {high}':>24}"
            f"{_cell(temporary and temporary / 1e6, '.4g'):>9}{_cell(compile_seconds, '.2f'):>11}"
            f"{_cell(ratio and ratio.middle, '.2f'):>8}"
        )
    for arm, reason in result.left_out.items():
        print(f"  {arm}: {'DISAGREES' if arm in result.disagree else 'left out'}, {reason}")


def _print_table(results: Mapping[str, Result]) -> None:
    """Every case on a line: by hand, and times as long as that."""
    heads = (BY_HAND + ", ms", *AGAINST, "MB", "jax.grad's", "compile s", "jax.grad's", "of peak")
    print(f"\n{'':20}" + "".join(f"{head:>13}" for head in heads))
    for name, result in results.items():
        if result.case.base != BY_HAND or BY_HAND not in result.arms:
            continue
        ratios, arms = result.against(), [result.arms.get(arm) for arm in (BY_HAND, AUTODIFF)]
        cells = [f"{1e3 * result.time(BY_HAND).middle:.4g}"]
        cells += [_cell(ratios[a].middle if a in ratios else None, ".2f") for a in AGAINST]
        bytes_ = [arm and arm.temporary for arm in arms]
        cells += [_cell(None if b is None else b / 1e6, ".4g") for b in bytes_]
        cells += [_cell(arm and arm.compile_seconds, ".2f") for arm in arms]
        cells.append(_cell(result.share, ".0%"))
        print(f"{name:20}" + "".join(f"{cell:>13}" for cell in cells))
    print()


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _figures(
    results: Mapping[str, Result], about: dict[str, str], rate: float, means: dict[str, float]
) -> dict[str, Any]:
    """All figures, as JSON has them."""
    return {
        "about": about,
        "product_flops_per_second": rate,
        "geometric_means": means,
        "cases": {name: _figures_of(result) for name, result in results.items()},
    }


def _figures_of(result: Result) -> dict[str, Any]:
    arms = {
        name: {
            "seconds": result.seconds[name],
            "quartiles": result.time(name),
            "ratio": result.ratio(name),
            "temporary_bytes": arm.temporary,
            "compile_seconds": arm.compile_seconds,
        }
        for name, arm in result.arms.items()
    }
    return {
        "what": result.case.what,
        "model_step": result.case.step,
        "flops": result.case.flops,
        "share_of_product_rate": result.share,
        "against": {
            name: {"arm": result.rival(name), "ratio": ratio}
            for name, ratio in result.against().items()
        },
        "arms": arms,
        "left_out": result.left_out,
        "disagree": result.disagree,
    }


if __name__ == "__main__":
    cli.run(main)
