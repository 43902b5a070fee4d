"""Asks every checker about every rule of the catalogue; prints a table and what was promised.

Promised of `jaxnn.verify`: every wrong form fails, every right one passes, the cause is named for
80% of the wrong ones, and none wrongly. A wrong form is asked about in bfloat16 if it changes some
entry by more than 5% of its leaf's largest.
"""

import importlib.util
from collections import Counter
from collections.abc import Iterable
from statistics import mean
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from experiments import torch_peer
from experiments.faulty_checkers import Answer, ask
from experiments.rules import RULES
from experiments.rules.change import changes
from experiments.rules.checkers import FLOAT64_ONLY, OURS, PEERS, answer, glue
from experiments.rules.rule import Mistake, Rule

DTYPES = ("float64", "float32", "bfloat16")
SEEN_IN_BFLOAT16 = 0.05
NAMED = 0.8  # of the wrong forms caught, at least


class Case(NamedTuple):
    """One form of a rule in one dtype; `mistake` is None for the right one."""

    rule: Rule
    mistake: Mistake
    dtype: str
    seed: int

    def __str__(self) -> str:
        """Its name in a list of misses."""
        return f"{self.rule.name}: {self.mistake or 'right form'}, {self.dtype}, seed {self.seed}"


class Result(NamedTuple):
    """What one checker said of one case."""

    checker: str
    case: Case
    answer: Answer

    @property
    def true_causes(self) -> frozenset[str]:
        """Those named that describe the mistake."""
        return self.answer.causes & set(self.case.rule.wrong[self.case.mistake or ""].split(", "))

    @property
    def wrong_causes(self) -> frozenset[str]:
        """Those named that do not."""
        return self.answer.causes - self.true_causes


def compare(seed: int, seeds: int, every: int, peers: bool) -> bool:
    """Ask, and print what came of it.

    Args:
        seed: the first seed of the inputs.
        seeds: how many of them for each form.
        every: only every n-th rule.
        peers: whether to ask the other checkers too.

    Returns:
        Whether all that was promised is kept.
    """
    chosen = RULES[::every]
    asked_of = [rule for rule in chosen if _installed(rule.needs)]
    for rule in chosen:
        if rule not in asked_of:
            needs = f'{rule.needs} is not installed; pip install -e ".[rules]"'
            print(f"{rule.name} is not asked about: {needs}")
    cases = [case for rule in asked_of for case in _cases(rule, range(seed, seed + seeds))]
    results: list[Result] = []
    try:
        bar: Iterable[Case] = tqdm(cases, desc="rules", leave=False, disable=None)
        for case in bar:
            if results and case.rule is not results[-1].case.rule:
                jax.clear_caches()  # what was compiled for one rule is of no use to another
            results += _ask(case, peers)
    except KeyboardInterrupt:
        print(f"interrupted: the figures are of the first {len(results)} answers")
    wrong = sum(len(rule.wrong) for rule in asked_of)
    print(f"{len(asked_of)} rules with {wrong} mistakes; {len(cases)} forms asked about")
    _print_table(results, [OURS, *((PEERS | FLOAT64_ONLY) if peers else ())], asked_of)
    if peers and not torch_peer.installed:
        print(f"PyTorch has no row: {torch_peer.MISSING}")
    return _print_promises([r for r in results if r.checker == OURS])


def _installed(package: str) -> bool:
    return not package or importlib.util.find_spec(package) is not None


def _cases(rule: Rule, seeds: Iterable[int]) -> list[Case]:
    """Every form of a rule in every dtype that it is asked about in."""
    dtypes = DTYPES if rule.narrow else DTYPES[:2]
    cases = [Case(rule, None, dtype, seed) for seed in seeds for dtype in dtypes]
    for seed in seeds:
        for mistake, change in changes(rule, seed).items():
            if mistake:
                seen = dtypes[: 2 if change <= SEEN_IN_BFLOAT16 else 3]
                cases += [Case(rule, mistake, dtype, seed) for dtype in seen]
    return cases


def _ask(case: Case, peers: bool) -> list[Result]:
    results = []
    checkers = [OURS, *(PEERS if peers else ())]
    checkers += FLOAT64_ONLY if peers and case.dtype == "float64" else ()
    for checker in checkers:
        with jax.enable_x64(case.dtype == "float64"):
            inputs = case.rule.inputs(np.random.default_rng(case.seed), case.dtype)
            made = case.rule.make(case.mistake)
            said = ask(answer, checker, case.rule, made, inputs)
        results.append(Result(checker, case, said))
    return results


def _share(results: list[Result], *verdicts: str) -> str:
    if not results:
        return "-"
    return f"{sum(r.answer.verdict in verdicts for r in results) / len(results):.1%}"


def _print_table(results: list[Result], checkers: list[str], rules: list[Rule]) -> None:
    """Of every checker: detection, refusals, causes, lines of glue."""
    groups = {"wrong, caught": 30, "right, refused": 30, "cause": 20, "lines of glue": 20}
    heads = (*DTYPES, *DTYPES, "named", "wrong", "mean", "most")
    print(f"\n{'':27}" + "".join(f"{group:^{width}}" for group, width in groups.items()))
    print(f"{'':27}" + "".join(f"{head:>10}" for head in heads))
    for checker in checkers:
        its = [r for r in results if r.checker == checker]
        wrong, right = ([r for r in its if bool(r.case.mistake) is w] for w in (True, False))
        cells = [_share([r for r in wrong if r.case.dtype == d], "fail") for d in DTYPES]
        cells += [
            _share([r for r in right if r.case.dtype == d], "fail", "inconclusive", "raised")
            for d in DTYPES
        ]
        caught = [r for r in wrong if r.answer.verdict == "fail"]
        if checker == OURS and caught:
            cells += [f"{mean(bool(r.true_causes) for r in caught):.1%}"]
            cells += [f"{mean(bool(r.wrong_causes) for r in caught):.1%}"]
        else:
            cells += ["-", "-"]
        lines = [glue(checker, rule) for rule in rules]
        cells += [f"{mean(lines):.1f}", str(max(lines))]
        print(f"{checker:27}" + "".join(f"{cell:>10}" for cell in cells))
    print()
    for (checker, what), number in Counter(
        (r.checker, r.answer.error or r.answer.verdict)
        for r in results
        if r.answer.verdict in ("raised", "inconclusive")
    ).items():
        print(f"{checker}: {number} times {what}")


def _print_promises(ours: list[Result]) -> bool:
    """What was promised of us and whether it is kept, with every case that breaks a promise."""
    wrong = [r for r in ours if r.case.mistake]
    missed = [r for r in wrong if r.answer.verdict != "fail"]
    caught = [r for r in wrong if r.answer.verdict == "fail"]
    refused = [r for r in ours if not r.case.mistake and r.answer.verdict != "pass"]
    mistaken = [r for r in caught if r.wrong_causes]
    for what, its in (("missed", missed), ("right, refused", refused)):
        for r in its:
            print(f"{what} ({r.answer.error or r.answer.verdict})  {r.case}")
    for r in mistaken:
        print(f"wrong cause ({', '.join(sorted(r.wrong_causes))})  {r.case}")
    for r in caught:
        if not r.answer.causes:
            print(f"no cause  {r.case}")
    named = sum(bool(r.true_causes) for r in caught) / len(caught) if caught else 0.0
    promises = {
        f"{len(caught)} of {len(wrong)} wrong forms caught": not missed,
        f"{len(refused)} right forms refused": not refused,
        f"the cause named in {named:.1%}": named >= NAMED,
        f"{len(mistaken)} causes wrong": not mistaken,
    }
    for what, kept in promises.items():
        print(f"promise {'kept' if kept else 'BROKEN'}: {what}")
    return all(promises.values())
