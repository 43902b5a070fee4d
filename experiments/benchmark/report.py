"""The spread of the figures over whole runs, versions of JAX and machines; and what may be claimed.

    python -m experiments.benchmark.report                  the runs that are kept beside this file
    python -m experiments.benchmark.report out/benchmark    those of a folder that --out named
    python -m experiments.benchmark.report out/benchmark --keep NAME      and keep them as NAME
    python -m experiments.benchmark.report --write          put the kept ones into the README

Runs of one machine with the same versions are a group. Of a ratio there is one number a run, the
median over its rounds; a cell has the median of these and, in brackets, their lower quartile. A
claim is the least of the groups' lower quartiles, rounded down: it held in three of four runs,
everywhere. A mean over the models' steps is taken of runs that have a rival at as many of them as
any run has: of one that was interrupted, or of a few cases, it would be a mean of other things.
"""

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import numpy as np

from experiments.benchmark import machine
from experiments.benchmark.results import AGAINST, FRAMEWORKS, in_digits, megabytes

HERE = Path(__file__).parent
KEPT, PAGE, PICTURE = HERE / "figures", HERE / "README.md", HERE / "cpu.png"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
ABOUT = ("jax", "processor", "cores", "sizes", "jaxlib", "Python", "flax", "equinox", "torch")
Run = dict[str, Any]


def read(paths: Iterable[Path]) -> list[Run]:
    """The runs in files and folders of them, as `slim` leaves them.

    Raises:
        ValueError: there is no such file, or it holds no figures of the benchmark.
    """
    runs: list[Run] = []
    for path in paths:
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        for file in files:
            try:
                found = json.loads(file.read_text())
                kept = found if isinstance(found, list) else [slim(found)]
                groups(kept)
                runs += kept
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{file} cannot be read as figures ({error!r}); it must be a file that "
                    "python -m experiments.benchmark --out FOLDER wrote"
                ) from error
    return runs


def slim(figures: Mapping[str, Any]) -> Run:
    """What the tables need of one run's figures: no single rounds, and of the arms the rivals."""
    cases = {}
    for name, case in figures["cases"].items():
        arms = case["arms"]
        hand = arms.get("by hand")
        if hand is None:
            continue
        cases[name] = {
            "step": case["model_step"],
            "ms": _short(1e3 * hand["quartiles"][1]),
            "bytes": hand["temporary_bytes"],
            "product": case["share_of_product_rate"] and _short(case["share_of_product_rate"]),
            "busy": case["busy"] and _short(case["busy"]),
            "against": {
                rival: {
                    "arm": found["arm"],
                    "ratio": _short(found["ratio"][1]),
                    "bytes": arms[found["arm"]]["temporary_bytes"],
                }
                for rival, found in case["against"].items()
            },
        }
    return {
        "about": {name: figures["about"].get(name, "unknown") for name in ABOUT},
        "cases": cases,
    }


def _short(number: float) -> float:
    return float(f"{number:.4g}")


def groups(runs: Iterable[Run]) -> dict[tuple[str, ...], list[Run]]:
    """The runs of one machine with the same versions, together."""
    found: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        found.setdefault(tuple(run["about"][name] for name in ABOUT), []).append(run)
    return found


def low(values: Sequence[float]) -> float:
    """The lower quartile."""
    return float(np.quantile(values, 0.25))


def ratios(runs: Iterable[Run], rival: str) -> dict[str, list[float]]:
    """By case, a rival's ratio in each run that has it."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for name, case in run["cases"].items():
            if rival in case["against"]:
                found.setdefault(name, []).append(case["against"][rival]["ratio"])
    return found


def steps(run: Run) -> int:
    """How many of the models' training steps it has."""
    return sum(case["step"] for case in run["cases"].values())


def means(runs: Sequence[Run], rival: str, most: int) -> list[float]:
    """Of each run, the geometric mean of a rival's ratios over the models' training steps.

    Of runs that have the rival at as many as `most` of them.
    """
    return _means([_of_steps(run, rival, "ratio") for run in runs], most)


def leaner(runs: Sequence[Run], rival: str, most: int) -> list[float]:
    """Likewise of a rival's memory over ours."""
    return _means([_of_steps(run, rival, "bytes") for run in runs], most)


def _means(of_runs: Sequence[Sequence[float]], most: int) -> list[float]:
    return [geometric_mean(values) for values in of_runs if values and len(values) == most]


def _of_steps(run: Run, rival: str, what: str) -> list[float]:
    steps = [case for case in run["cases"].values() if case["step"] and rival in case["against"]]
    if what == "ratio":
        return [case["against"][rival]["ratio"] for case in steps]
    theirs = [(case["against"][rival]["bytes"], case["bytes"]) for case in steps]
    return [a / b for a, b in theirs if a and b]


def claims(runs: Iterable[Run]) -> dict[str, float]:
    """By rival, how many times as long a training step takes it at least, in every group."""
    runs = list(runs)
    most = max(map(steps, runs), default=0)
    found = {r: [means(group, r, most) for group in groups(runs).values()] for r in AGAINST}
    least = {rival: [low(of) for of in groups_of if of] for rival, groups_of in found.items()}
    return {rival: math.floor(100 * min(of)) / 100 for rival, of in least.items() if of}


def slower(runs: Iterable[Run], rival: str) -> dict[str, float]:
    """The models' steps whose ratio, in two digits, is below 1 in some group, and the least one."""
    found: dict[str, float] = {}
    for group in groups(runs).values():
        of_models = {name for run in group for name, case in run["cases"].items() if case["step"]}
        for name, values in ratios(group, rival).items():
            if name in of_models and round(low(values), 2) < 1:
                found[name] = min(low(values), found.get(name, math.inf))
    return found


def sentence(runs: Iterable[Run]) -> str:
    """What may be claimed of the models' training steps."""
    runs = list(runs)
    where = " and ".join(sorted({run["about"]["jax"] for run in runs}))
    least = [f"{at_least:.2f} by {AGAINST[rival]}" for rival, at_least in claims(runs).items()]
    words = ", ".join(least).replace(" by ", " times as long by ", 1)
    return f"a training step takes at least {words}, in the geometric mean (jax {where})"


def table(runs: Sequence[Run]) -> str:
    """A group's figures, in Markdown."""
    heads = ["case", "by hand, ms", *AGAINST, "MB", "jax.grad's", f"{FRAMEWORKS}'", "of product"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name in dict.fromkeys(name for run in runs for name in run["cases"]):
        cases = [run["cases"][name] for run in runs if name in run["cases"]]
        cells = [name, in_digits(median(case["ms"] for case in cases))]
        cells += [_spread(ratios(runs, rival).get(name)) for rival in AGAINST]
        cells += [megabytes(cases[-1]["bytes"])]
        for rival in ("jax.grad", FRAMEWORKS):
            cells.append(megabytes(cases[-1]["against"].get(rival, {}).get("bytes")))
        shares = [case["product"] for case in cases if case["product"]]
        cells.append(f"{median(shares):.0%}" if shares else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(values: Sequence[float] | None) -> str:
    return f"{median(values):.2f} ({low(values):.2f})" if values else "-"


def report(runs: Sequence[Run]) -> str:
    """Every group's table, with its versions, and what may be claimed; in Markdown."""
    parts = []
    most = max(map(steps, runs))
    for group in groups(runs).values():
        about = ", ".join(f"{name} {value}" for name, value in group[0]["about"].items())
        cases = [pair for run in group for pair in run["cases"].items()]
        busy = sorted({name for name, case in cases if machine.is_much(case["busy"])})
        whole = [steps(run) for run in group].count(most)
        fewer = f" and {len(group) - whole} with fewer steps" if whole < len(group) else ""
        parts.append(f"{whole} whole run{'s' * (whole != 1)}{fewer}: {about}.")
        if busy:
            parts.append(f"Others used the cores in some run of {', '.join(busy)}.")
        parts.append(table(group))
        more = {rival: leaner(group, rival, most) for rival in AGAINST}
        said = [f"{median(of):.2f} times by {AGAINST[rival]}" for rival, of in more.items() if of]
        if said:
            parts.append(f"Memory of the models' steps, geometric mean: {', '.join(said)}.")
    if claims(runs):
        claimed = sentence(runs)
        parts.append(f"{claimed[0].upper()}{claimed[1:]}.")
    for rival in AGAINST:
        if not_all := slower(runs, rival):
            named = ", ".join(f"{name} {least:.2f}" for name, least in sorted(not_all.items()))
            parts.append(f"Steps that {AGAINST[rival]} is faster at, somewhere: {named}.")
    return "\n\n".join(parts) + "\n"


def bars(runs: Sequence[Run]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """By case and rival, the quartiles over the runs of their ratios."""
    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    for rival, label in AGAINST.items():
        for case, values in ratios(runs, rival).items():
            low, middle, high = map(float, np.quantile(values, [0.25, 0.5, 0.75]))
            found.setdefault(case, {})[label] = (low, middle, high)
    return found


def draw(runs: Sequence[Run]) -> None:
    """The picture on the page: bars of the group that has the newest JAX."""
    from experiments import pictures  # which needs matplotlib, as nothing else here does

    *_, newest = sorted(groups(runs).values(), key=lambda group: _version(group[0]))
    pictures.benchmark(PICTURE, bars(newest))


def _version(run: Run) -> tuple[int, ...]:
    return tuple(int(part) for part in run["about"]["jax"].split(".") if part.isdigit())


def main(words: Sequence[str] | None = None) -> int:
    """Print what runs show; keep them; put the kept ones into the README."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmark.report")
    parser.add_argument("paths", nargs="*", type=Path, help="files or folders; else the kept ones")
    parser.add_argument("--keep", metavar="NAME", help="keep these runs under a name")
    parser.add_argument("--write", action="store_true", help="put the kept ones into the README")
    options = parser.parse_args(words)
    if options.keep and not options.paths:
        parser.error(f"--keep {options.keep} keeps the runs of files or folders; name them")
    if options.keep and options.keep != Path(options.keep).name:
        parser.error(f"--keep {options.keep} names a file beside the others; give it no folder")
    try:
        runs = read(options.paths or [KEPT])
    except ValueError as error:
        parser.error(str(error))
    if not runs:
        where = ", ".join(map(str, options.paths or [KEPT]))
        parser.error(f"there are no figures in {where}; name a folder of --out")
    sizes = {run["about"]["sizes"] for run in runs}
    if options.keep and sizes != {"full"}:
        parser.error(
            f"--keep {options.keep} would keep sizes {sorted(sizes)}; claims are of full ones: "
            "name runs without --quick"
        )
    if options.keep:
        KEPT.mkdir(exist_ok=True)
        (KEPT / f"{options.keep}.json").write_text(json.dumps(runs, separators=(",", ":")) + "\n")
    if options.write:
        kept = read([KEPT])
        draw(kept)
        PAGE.write_text(written(PAGE.read_text(), report(kept)))
    print(report(runs))
    return 0


def written(page: str, figures: str) -> str:
    """A page with the figures between its two marks.

    Raises:
        ValueError: it has no such marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no {BEGIN} with {END} after it; put both where they belong")
    return f"{before}{BEGIN}\n\n{figures}\n{END}{after}"


if __name__ == "__main__":
    raise SystemExit(main())
