"""Which wrong gradients do gradient checkers catch, which right ones do they accuse, how fast?

    python -m experiments.verifier_benchmark                        some three hours; exit status 0
    python -m experiments.verifier_benchmark --every 4 --seeds 1    half an hour
    python -m experiments.verifier_benchmark --quick                a minute
    python -m experiments.verifier_benchmark --rules --seeds 1      an hour, the second catalogue

Plants every kind of fault of `experiments.faulty_layers.CAUSES` in the hand-written gradients of
small networks, and asks `verify.gradient`, `jax.test_util.check_grads`,
`chex.assert_numerical_grads` and, where PyTorch is installed, `torch.autograd.gradcheck` (in
float64 only) about each, and about right gradients. A fault counts if it changes some entry by
more than 1e-6 of its leaf's largest, in float64 against `jax.grad`; in bfloat16 by more than 5%.

Promised of `verify.gradient`: every fault that counts is caught, no right gradient fails, the
planted cause is named in 90%, and none is called a sign, a factor or a transpose that is not.
Exit status 1 if a promise is broken; every miss and every wrong diagnosis is printed by name.

With --rules the same is asked about `experiments.rules`: rules as people write them, right and with
honest mistakes, each handed over with the least glue; `experiments.rules.run` has what is promised.
"""

import functools
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from experiments import cli, pictures, torch_peer
from experiments.faulty_checkers import CHECKERS, FLOAT64_ONLY, OURS, Answer, Checker, ask
from experiments.faulty_gradients import AWKWARD, SYSTEMS
from experiments.faulty_layers import CAUSES, Batch, Params, System
from experiments.rules import run

COUNTS_FROM = {"float64": 1e-6, "float32": 1e-6, "bfloat16": 0.05}
SIZES: tuple[int, ...] = (0, 1)
NEVER_WRONG = frozenset({"sign", "factor", "transpose"})
NAMED = 0.9  # of the faults caught, at least


class Case(NamedTuple):
    """One gradient at one point; `fault` is None for the right one."""

    system: System
    fault: str | None
    dtype: str
    size: int
    seed: int

    def __str__(self) -> str:
        """Its name in a list of misses."""
        fault = self.fault or "right gradient"
        return f"{self.system.name}: {fault}, {self.dtype}, size {self.size}, seed {self.seed}"


class Result(NamedTuple):
    """What one checker said of one case; `first` where nothing had been compiled for it."""

    checker: str
    case: Case
    answer: Answer
    seconds: float
    first: bool

    @property
    def cause_named(self) -> bool:
        """Whether the planted cause is among those that the checker names."""
        return bool(self.answer.causes & CAUSES[self.case.fault or ""])

    @property
    def wrong_causes(self) -> frozenset[str]:
        """Those named that do not describe the fault."""
        return self.answer.causes - CAUSES[self.case.fault or ""]


def main(
    seed: int = 0,
    seeds: int = 2,
    every: int = 1,
    correct_runs: int = 1000,
    peers: bool = True,
    quick: bool = False,
    rules: bool = False,
    out: Path = Path("out/verifier_benchmark"),
) -> int:
    """Compare gradient checkers on planted faults and on right gradients.

    Args:
        seed: The first seed of parameters and batches.
        seeds: How many seeds for each fault, dtype and size.
        every: Only every n-th pair of a system and a fault, or every n-th rule.
        correct_runs: Right gradients shown to the verifier, at least; peers see a fifth of them.
        peers: Whether to ask the other checkers too.
        quick: One seed, the small size, one system, and every ninth fault of it at most; of the
            rules every ninth.
        rules: Ask about the rules in place of the networks; there is no picture of them.
        out: Folder for the picture.
    """
    cli.check_positive(seeds=seeds, every=every, correct_runs=correct_runs)
    if rules:
        kept = run.compare(seed, 1 if quick else seeds, max(every, 9) if quick else every, peers)
        return 0 if kept else 1
    folder = cli.folder(out)
    systems, sizes = SYSTEMS, SIZES
    if quick:
        seeds, every, correct_runs, systems, sizes = 1, max(every, 9), 3, SYSTEMS[:1], SIZES[:1]

    pairs = [(system, fault) for system in systems for fault in system.faults][::every]
    wrong = [
        Case(system, fault, dtype, size, s)
        for (system, fault), size in itertools.product(pairs, sizes)
        for dtype, s in itertools.product(COUNTS_FROM, range(seed, seed + seeds))
    ]
    correct = systems if quick else (*systems, *AWKWARD)
    kinds = list(itertools.product(correct, sizes, COUNTS_FROM))
    runs = -(-correct_runs // len(kinds))
    seen_by_peers = min(runs, max(2, runs // 5))
    right = [
        Case(system, None, dtype, size, seed + i)
        for system, size, dtype in kinds
        for i in range(runs)
    ]

    results: list[Result] = []
    too_small = 0
    try:
        for case in _progress([*wrong, *right], "gradients"):
            with jax.enable_x64(case.dtype == "float64"):
                params, batch = case.system.make(case.seed, case.size, case.dtype)
            if case.fault and _change(case, params, batch) <= COUNTS_FROM[case.dtype]:
                too_small += 1
                continue
            asked = _checkers(
                case.dtype, peers and (bool(case.fault) or case.seed < seed + seen_by_peers)
            )
            first = not case.fault and case.seed == seed
            results += _ask(case, params, batch, asked, first)
    except KeyboardInterrupt:
        print(f"interrupted: the figures are of the first {len(results)} answers")

    print(
        f"{len({fault for _, fault in pairs})} kinds of fault in {len(systems)} systems, "
        f"{len(pairs)} pairs; {len(wrong)} wrong gradients, {too_small} of them too little wrong "
        f"to count; {len(right)} right gradients"
    )
    asked_of = _checkers("float64", peers)
    _print_table(results, asked_of)
    if peers and not torch_peer.installed:
        print(f"PyTorch has no rows: {torch_peer.MISSING}")
    kept = _print_promises([r for r in results if r.checker == OURS])
    rates = {name: _rates(results, name) for name in asked_of}
    pictures.verifier(folder / "verifier_benchmark.png", rates, len(wrong) - too_small)
    if diagnosed := _by_kind(results):
        pictures.causes(folder / "causes.png", diagnosed)
    return 0 if kept else 1


def _progress(cases: list[Case], what: str) -> Iterable[Case]:
    bar: Iterable[Case] = tqdm(cases, desc=what, leave=False, disable=None)
    return bar


def _checkers(dtype: str, peers: bool) -> dict[str, Checker]:
    if not peers:
        return {OURS: CHECKERS[OURS]}
    return CHECKERS | (FLOAT64_ONLY if dtype == "float64" else {})


@functools.cache
def _gradient(system: System, fault: str | None) -> Callable[..., Params]:
    """The same object at every call: what is compiled for it is found again."""
    return functools.partial(system.manual_grad, fault=fault)


def _ask(
    case: Case, params: Params, batch: Batch, checkers: dict[str, Checker], first: bool = False
) -> list[Result]:
    """Every checker about one case; if it is the first of its kind, each with nothing compiled."""
    results = []
    for name, check in checkers.items():
        if first:
            jax.clear_caches()
        with jax.enable_x64(case.dtype == "float64"):
            started = time.perf_counter()
            answer = ask(check, case.system.loss, _gradient(case.system, case.fault), params, batch)
            seconds = time.perf_counter() - started
        results.append(Result(name, case, answer, seconds, first))
    return results


@functools.cache
def _all_gradients(system: System) -> Callable[[Params, Batch], tuple[Params, dict[str, Params]]]:
    """`jax.grad`'s gradient, and the hand-written one with each fault, as one program."""

    def gradients(params: Params, batch: Batch) -> tuple[Params, dict[str, Params]]:
        faulty = {fault: system.manual_grad(params, batch, fault) for fault in system.faults}
        return jax.grad(system.loss)(params, batch), faulty

    program: Callable[..., Any] = jax.jit(gradients)
    return program


def _change(case: Case, params: Params, batch: Batch) -> float:
    """By how much of a leaf's scale the fault changes its worst entry, in float64."""
    x, labels = batch
    with jax.enable_x64(True):
        lifted = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
        truth, faulty = _all_gradients(case.system)(lifted, (np.asarray(x, np.float64), labels))  # type: ignore[arg-type]

    def change(right: Any, wrong: Any) -> float:
        worst, scale = float(np.abs(wrong - right).max()), float(np.abs(right).max())
        return np.inf if np.isnan(worst) else worst / scale if scale else np.inf * (worst > 0)

    wrong = faulty[case.fault or ""]
    return max(change(np.asarray(truth[name]), np.asarray(wrong[name])) for name in truth)


def _share(results: list[Result], *verdicts: str) -> float:
    """The share with one of these verdicts; no number where there are none."""
    if not results:
        return float("nan")
    return sum(r.answer.verdict in verdicts for r in results) / len(results)


def _rates(results: list[Result], checker: str) -> dict[str, tuple[float, float]]:
    """By dtype: the share of wrong gradients caught, and of right ones that raise an alarm."""
    rates = {}
    for dtype in COUNTS_FROM:
        its = [r for r in results if r.checker == checker and r.case.dtype == dtype]
        wrong, right = ([r for r in its if bool(r.case.fault) is w] for w in (True, False))
        rates[dtype] = _share(wrong, "fail"), _share(right, "fail", "raised")
    return rates


def _print_table(results: list[Result], checkers: Iterable[str]) -> None:
    """Detection, false alarms and time of every checker."""
    groups = ("wrong, caught", "right, accused", "seconds")
    heads = (*COUNTS_FROM, *COUNTS_FROM, "first", "again")
    print(f"\n{'':27}" + "".join(f"{group:^30}" for group in groups))
    print(f"{'':27}" + "".join(f"{head:>10}" for head in heads))
    for checker in checkers:
        right = [r for r in results if r.checker == checker and not r.case.fault]
        rates = _rates(results, checker).values()
        cells = [f"{caught:.2%}" for caught, _ in rates] + [f"{alarm:.2%}" for _, alarm in rates]
        times = [[r.seconds for r in right if r.first is first] for first in (True, False)]
        cells += [f"{median(t):.3f}" if t else "-" for t in times]
        print(f"{checker:27}" + "".join(f"{'-' if c == 'nan%' else c:>10}" for c in cells))
    print()
    for (checker, what), number in Counter(
        (r.checker, r.answer.error or r.answer.verdict)
        for r in results
        if r.answer.verdict in ("raised", "inconclusive")
    ).items():
        print(f"{checker}: {number} times {what}")


def _by_kind(results: list[Result]) -> dict[str, tuple[float, float, float]]:
    """Per kind of fault that we caught: the shares named, named wrongly, and given no cause."""
    shares = {}
    for kind in CAUSES:
        its = [r for r in results if r.checker == OURS and r.case.fault == kind]
        caught = [r for r in its if r.answer.verdict == "fail"]
        if caught:
            named = sum(r.cause_named for r in caught) / len(caught)
            none = sum(not r.answer.causes for r in caught) / len(caught)
            shares[kind] = named, 1 - named - none, none
    return shares


def _print_promises(ours: list[Result]) -> bool:
    """What was promised of us and whether it is kept, with every case that breaks a promise."""
    missed = [r for r in ours if r.case.fault and r.answer.verdict != "fail"]
    alarms = [r for r in ours if not r.case.fault and r.answer.verdict in ("fail", "raised")]
    caught = [r for r in ours if r.case.fault and r.answer.verdict == "fail"]
    for r in missed:
        print(f"missed ({r.answer.verdict})  {r.case}")
    for r in alarms:
        print(f"false alarm  {r.case} {r.answer.error}")
    for r in caught:
        if r.wrong_causes:
            print(f"wrong diagnosis ({', '.join(sorted(r.wrong_causes))})  {r.case}")
    named = sum(r.cause_named for r in caught) / len(caught) if caught else 0.0
    silent = sum(not r.answer.causes for r in caught) / len(caught) if caught else 0.0
    mistaken = sum(bool(r.wrong_causes & NEVER_WRONG) for r in caught)
    promises = {
        f"{len(caught)} of {len(caught) + len(missed)} faults caught": not missed,
        f"{len(alarms)} false alarms": not alarms,
        f"the cause named in {named:.1%}, none given in {silent:.1%}": named >= NAMED,
        f"{mistaken} wrong about {', '.join(sorted(NEVER_WRONG))}": not mistaken,
    }
    for what, kept in promises.items():
        print(f"promise {'kept' if kept else 'BROKEN'}: {what}")
    return all(promises.values())


if __name__ == "__main__":
    cli.run(main)
