"""GPT-2 and single ops on one GPU, in minutes: what says most comes first, and no failure ends it.

    python -m experiments.benchmark.gpu --json out/gpu.json        on a GPU, twelve minutes
    python -m experiments.benchmark.gpu --small 16 --minutes 4     on a CPU, to see it run

It needs jax, optax, chex and tqdm; PyTorch and Flax where they are to be compared with. Every
figure is a line as soon as it is there, and in the file after each arm. An arm that fails, or
disagrees, is named with its reason, and the next has its turn; what the minutes left are too short
for is named at the end. The exit status is 1 if something disagreed, or what is by hand failed,
else 0.

1. What the card does: one product of bfloat16, one copy.
2. Attention in its fast form, cuDNN's kernels on a GPU, against the plain pair, there and back:
   both in bfloat16, against the plain pair in float32 of the same numbers. The fast form may be off
   by `TIMES` times what the plain form is, and by a rounding.
3. GPT-2 124M in bfloat16, T 1024: tokens a second, "of product" the counted operations a second as
   a share of one large product's, temporary memory, seconds to compile, and times as long as by
   hand, more being better for us; with batches of 8 and 32, and as whole steps with an optimizer.
4. Single ops, likewise.

JAX is given `MEMORY` of the card's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise;
PyTorch, in a process of its own, has the rest. No flags of XLA's are set: those that are, are told.
"""

import argparse
import contextlib
import json as json_format
import math
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax.numpy as jnp

from experiments.benchmark import measure, show
from experiments.benchmark.arms import (
    AUTODIFF,
    BY_HAND,
    COMPILED,
    EQUINOX,
    FLAX,
    PYTORCH,
    Arm,
    Builds,
    Case,
    LeftOutError,
    answer,
    copy,
    in_a_line,
    named,
    off,
    precision,
    product,
)
from experiments.benchmark.attention_check import check_attention
from experiments.benchmark.cases import Sizes, cases
from experiments.benchmark.measure import COPY, PRODUCT, time_in_turns
from experiments.benchmark.worker import Worker, working

MEMORY = "0.6"
SMALL = 16  # of smaller sizes heads would have no features
CUDNN = named(AUTODIFF, "cuDNN attention")
# The cases, those that say most first; of each the arms that are wanted, in this order, all others
# after them where there is a `...`; and about how many seconds an arm takes.
FIRST, REST = (BY_HAND, CUDNN, PYTORCH, COMPILED), (BY_HAND, AUTODIFF, PYTORCH, COMPILED, ...)
PLAN: tuple[tuple[str, tuple[Any, ...], float], ...] = (
    ("gpt2-124m", (*FIRST, FLAX), 60),
    ("gpt2-124m-b32", (BY_HAND, CUDNN, COMPILED), 60),
    ("gpt2-124m-step", FIRST[:2], 60),
    ("attention-bf16-t1024", FIRST, 15),
    ("lm-head-bf16", REST, 15),
    ("gpt2-124m", (AUTODIFF, EQUINOX, ...), 60),
    ("attention-bf16-t4096", FIRST, 15),
    ("layer-norm-bf16", REST, 10),
    ("embedding-bf16", REST, 10),
    ("conv-bf16", REST, 15),
    ("layer-norm", REST, 10),
    ("embedding-50k", REST, 10),
    ("conv-stride1", REST, 15),
    ("lm-head-50k", REST, 15),
    ("attention-t1024", REST, 15),
)


class Run:
    """What was measured so far, and how long there is left.

    Attributes:
        figures: as JSON has them.
        wrong: what disagreed or failed, in words.
        skipped: what there was no time for.
    """

    def __init__(self, minutes: float, file: Path | None, small: int, rounds: int) -> None:
        """A run that has so many minutes, counted from now."""
        self._ends, self._file = time.monotonic() + 60 * minutes, file
        self.small, self.rounds = small, rounds
        self.order = random.Random(0)
        self.figures: dict[str, Any] = {"cases": {}}
        self.wrong: list[str] = []
        self.skipped: list[str] = []
        self.answers: dict[str, Any] = {}

    def has(self, seconds: float) -> bool:
        """Whether there are so many left; of smaller cases they are fewer."""
        return time.monotonic() + seconds / self.small < self._ends

    def say(self, words: str) -> None:
        """A line, and the file as far as it goes."""
        print(words, flush=True)
        self.keep()

    def keep(self) -> None:
        """Write the figures, whole or not at all: a run that is ended in the middle has them."""
        if self._file is None:
            return
        self.figures |= {"wrong": self.wrong, "skipped": self.skipped}
        part = self._file.with_name(self._file.name + ".part")
        part.write_text(json_format.dumps(self.figures, indent=1) + "\n")
        part.replace(self._file)


def main(words: Sequence[str] | None = None) -> int:
    """Measure what there is time for."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmark.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--small", type=_positive(int, SMALL), default=1, help="divides sizes (1)")
    parser.add_argument("--minutes", type=_positive(float), default=12, help="at most so long (12)")
    parser.add_argument("--rounds", type=_positive(int), default=5, help="turns of every arm (5)")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--torch", type=Path, help="Python that has PyTorch (this one)")
    given = parser.parse_args(words)
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", MEMORY)  # before JAX looks
    if given.json:
        try:
            show.check_file("--json", given.json)
        except ValueError as error:
            parser.error(str(error))
    run = Run(given.minutes, given.json, given.small, given.rounds)
    try:
        _measured(run, given.torch)
    except KeyboardInterrupt:
        run.say("interrupted: the figures are of what was measured before")
        return 128 + signal.SIGINT
    if run.skipped:
        run.say(f"no time for: {', '.join(run.skipped)}")
    run.say(f"WRONG: {'; '.join(run.wrong)}" if run.wrong else "all agree")
    return 1 if run.wrong else 0


def _measured(run: Run, torch: Path | None) -> None:
    """All of the plan that there is time for."""
    run.figures["about"] = about = show.about()
    run.say(", ".join(f"{name} {value}" for name, value in about.items()))
    for part in (_floors, _attention):
        _tried(run, part.__name__.strip("_"), partial(part, run))
    sizes = Sizes(run.small)
    with contextlib.ExitStack() as stack:
        worker = Worker(None)
        try:
            worker = stack.enter_context(working(torch, sizes))
        except Exception as error:  # whatever it is, JAX's arms need no PyTorch
            run.say(f"{PYTORCH}: {in_a_line(error)}")
        run.figures["worker"] = worker.about
        known = cases(sizes)
        for name, wanted, seconds in PLAN:
            if run.has(seconds):
                _tried(run, name, partial(_case, run, known, worker, name, wanted, seconds))
            else:
                run.skipped.append(name)


def _tried(run: Run, name: str, part: Callable[[], None]) -> None:
    """Do a part; whatever goes wrong in it is told, and the run goes on."""
    try:
        part()
    except Exception as error:
        run.figures.setdefault("failed", {})[name] = in_a_line(error)
        run.wrong.append(f"{name} failed")
        run.say(f"{name}: FAILED, {in_a_line(error)}")


def _floors(run: Run) -> None:
    """What the card can do."""
    _, numbers = measure.floor_sizes(quick=run.small > 1)
    size = max(64, measure.ACCELERATOR_PRODUCT_SIZE // run.small)
    arms = {PRODUCT: product(size, jnp.bfloat16), COPY: copy(numbers // run.small)}
    seconds = {name: median(s) for name, s in time_in_turns(arms, run.rounds, run.order).items()}
    rates = 2 * size**3 / seconds[PRODUCT], 8 * (numbers // run.small) / seconds[COPY]
    run.figures["product_flops_per_second"], run.figures["copy_bytes_per_second"] = rates
    run.say(
        f"one product of {size}x{size} matrices of bfloat16: {rates[0] / 1e12:.4g} TFLOP/s; "
        f"one copy: {rates[1] / 1e12:.4g} TB/s"
    )


def _attention(run: Run) -> None:
    """The fast form held to the plain one."""
    for line, right in check_attention(run.small):
        run.figures.setdefault("attention", []).append(line)
        if not right:
            run.wrong.append(line)
        run.say(f"attention: {line}")


def _case(
    run: Run, known: dict[str, Case], worker: Worker, name: str, wanted: Any, seconds: float
) -> None:
    """The arms that are wanted, one after the other; then those that agree in turns."""
    case = known[name]
    into = run.figures["cases"].setdefault(name, {"what": case.what, "arms": {}, "left_out": {}})
    run.say(f"\n{name}: {case.what}")
    with precision(case.dtype):
        builds = case.make() | worker.builds(name)
        arms: dict[str, Arm] = {}
        for arm in _in_order(builds, wanted, into):
            if not run.has(seconds):
                run.skipped.append(f"{name}: {arm}")
                continue
            try:
                built = builds[arm]()
                reason = _disagreement(run, name, arm, answer(built), case)
                if reason is None:
                    _tell(run, case, into, arm, built, time_in_turns({arm: built}, 1, run.order))
                    arms[arm] = built
                    continue
                run.wrong.append(f"{name}: {arm}, {reason}")
            except LeftOutError as error:
                reason = str(error)
            except Exception as error:  # no memory, no such kernel, a process that has ended
                reason = in_a_line(error)
                if arm == case.base:
                    run.wrong.append(f"{name}: {arm} failed")
            into["left_out"][arm] = reason
            run.say(f"  {arm}: left out, {reason}")
        if arms:
            run.say("  in turns:")
        in_turns = time_in_turns(arms, run.rounds, run.order)
        for arm, built in arms.items():
            _tell(run, case, into, arm, built, in_turns)


def _in_order(builds: Builds, wanted: Sequence[Any], into: Any) -> Iterator[str]:
    """The names of arms, first those that are wanted, then, after `...`, all; none twice."""
    done = {*into["arms"], *into["left_out"]}
    for want in wanted:
        names = [*builds] if want is ... else [want] if want in builds else []
        for arm in names:
            if arm not in done:
                done.add(arm)
                yield arm


def _disagreement(run: Run, name: str, arm: str, given: Any, case: Case) -> str | None:
    """How an arm's first arrays are not those of the first arm of the case; None if they are."""
    first, expected = run.answers.setdefault(name, (arm, given))
    for what, a, b in zip(("result", "gradient"), given, expected, strict=True):
        apart = off(a, b)
        if not apart <= case.agree:
            return f"its {what} is not that {first}: off by {apart:.1e} of scale"
    return None


def _tell(
    run: Run, case: Case, into: Any, arm: str, built: Arm, times: dict[str, list[float]]
) -> None:
    """An arm's figures, as a line and in the file."""
    seconds = median(times[arm])
    found = into["arms"].setdefault(arm, {}) | {
        "seconds": times[arm],
        "temporary_bytes": built.temporary,
        "compile_seconds": built.compile_seconds,
    }
    into["arms"][arm] = found
    words = [f"{1e3 * seconds:.4g} ms"]
    if case.tokens:
        found["tokens_per_second"] = case.tokens / seconds
        words.append(f"{case.tokens / seconds:,.0f} tokens/s")
    rate = run.figures.get("product_flops_per_second")
    if case.flops and rate:
        found["share_of_product_rate"] = case.flops / seconds / rate
        words.append(f"{case.flops / seconds / rate:.1%} of product")
    if built.temporary is not None:
        words.append(f"{built.temporary / 1e6:,.0f} MB")
    if built.compile_seconds is not None:
        words.append(f"compiled in {built.compile_seconds:.1f} s")
    base = into["arms"].get(case.base)
    if base and arm != case.base:
        found["ratio"] = seconds / median(base["seconds"])
        before = "" if case.base in times else " before"
        words.append(f"{found['ratio']:.2f} times as long as {case.base}{before}")
    run.say(f"  {arm}: {', '.join(words)}")


def _positive(kind: Callable[[str], Any], most: float = math.inf) -> Callable[[str], Any]:
    def read(word: str) -> Any:
        with contextlib.suppress(ValueError):
            if 0 < (number := kind(word)) <= most:
                return number
        whole = "a whole number" if kind is int else "a number"
        limit = "" if most == math.inf else f" and at most {most:g}"
        raise argparse.ArgumentTypeError(f"{word} must be {whole} above 0{limit}")

    return read


if __name__ == "__main__":
    sys.exit(main())
