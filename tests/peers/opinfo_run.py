"""All samples of PyTorch's OpInfo and ModuleInfo for the ops here, in all dtypes, counted.

    python tests/peers/opinfo_run.py                      # all, two hours on two cores
    python tests/peers/opinfo_run.py softmax nn.LSTM      # some
    python tests/peers/opinfo_run.py --most 80            # of each function so many kinds, quickly
    python tests/peers/opinfo_run.py --write              # and the counts into jaxnn/ops/README.md

Prints a line for every function: how many samples agree with PyTorch in every dtype, are refused
in words, cannot be expressed, and for which reasons. A sample that differs, or ends in an exception
that is not ours, is printed whole, and the exit status is 1. Compiled programs are kept where
JAX_COMPILATION_CACHE_DIR says.
"""

import argparse
import collections
import concurrent.futures
import functools
import multiprocessing
import os
import sys
import warnings

sys.path.insert(0, "tests")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # programs found again, each with a warning

import conftest  # noqa: F401  (compiled quickly, and once)
import torch
from opinfo.compare import DTYPES, judge, likeness
from opinfo.report import Count, write
from opinfo.samples import cases, families


def counted(name, most=None):
    """What became of a function's samples; those that differ in their numbers only are asked once.

    Of more than `most` kinds of them so many, evenly from first to last.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    kinds, reasons, wrong, groups = collections.Counter(), collections.Counter(), [], {}
    for case in cases(name):
        groups.setdefault(likeness(case), []).append(case)
    groups = list(groups.values())
    if most and len(groups) > most:
        groups = [groups[number * len(groups) // most] for number in range(most)]
    for group in groups:
        outcome, dtype = worst(group[0])
        kinds[outcome.kind] += len(group)
        if outcome.kind in ("differs", "fault", "documented"):
            wrong.append(f"{outcome.kind} {dtype}: {group[0]}: {outcome.reason}")
        elif outcome.kind != "agrees":
            reasons[f"{outcome.reason} {outcome.detail}".strip()] += len(group)
    return Count(name, dict(kinds), dict(reasons), wrong)


def worst(case):
    """The first outcome that is not agreement, and its dtype."""
    for dtype in DTYPES:
        outcome = judge(case, dtype)
        if outcome.kind != "agrees":
            break
    return outcome, dtype


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="functions or modules, none for all")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--most", type=int, help="so many kinds of samples of each, none for all")
    parser.add_argument("--write", action="store_true", help="the counts into jaxnn/ops/README.md")
    options = parser.parse_args()
    names = options.names or [name for family in families().values() for name in family]
    counts = []
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.processes, context) as pool:
        for count in pool.map(functools.partial(counted, most=options.most), names):
            counts.append(count)
            print(count, flush=True)
    total = collections.Counter()
    for count in counts:
        total.update(count.kinds)
    print("all:", ", ".join(f"{number} {kind}" for kind, number in total.items()))
    if options.write:
        write(counts, families())
    sys.exit(any(count.kinds.keys() & {"differs", "fault"} for count in counts))


if __name__ == "__main__":
    main()
