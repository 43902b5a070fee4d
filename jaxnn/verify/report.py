"""What a verification found: per leaf, then as a whole; as text and JSON."""

import json
import math
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from jaxnn.verify.findings import Diagnosis, Disagreement, LeafReport, Status

JSON_VERSION = 3


@dataclass(frozen=True)
class Report:
    """One verification. It is true in a condition exactly if it passed.

    Attributes:
        name: what was verified.
        loss: its value in float64; None where it could not be evaluated.
        leaves: one report per floating leaf of the parameters.
        problems: what is wrong with the gradient as a whole (its structure, its value, a law).
        seconds: the time it took, compilation included.
        chain: for gradients made of ops, the first that is wrong, or that none is; else empty.
        coverage: what these inputs cannot show.
        rules: each derivative rule that a person wrote in the function, by name, file and line, and
            how it was judged.
        elsewhere: how the gradient differs when it is run in another way (eagerly, under vmap);
            no part of the status.
        seed: of every random choice made.
        command: how to run the same verification again; empty where only the caller knows.
    """

    name: str
    loss: float | None
    leaves: tuple[LeafReport, ...]
    problems: tuple[str, ...]
    seconds: float
    chain: str = ""
    coverage: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    seed: int = 0
    command: str = ""

    @property
    def status(self) -> Status:
        """The worst of its parts: failure, then what is inconclusive; so is it to judge nothing."""
        statuses = {leaf.status for leaf in self.leaves}
        if self.problems or "fail" in statuses:
            return "fail"
        return "inconclusive" if "inconclusive" in statuses or statuses == {"skipped"} else "pass"

    def __bool__(self) -> bool:
        return self.status == "pass"

    def _repr_html_(self) -> str:
        """How a notebook shows it: what the page has of it."""
        from jaxnn.verify.page import to_fragment  # it needs what is here

        return to_fragment(self)

    def summary(self) -> str:
        """One line."""
        bad = [leaf for leaf in self.leaves if leaf.status in ("fail", "inconclusive")]
        skipped = sum(leaf.status == "skipped" for leaf in self.leaves)
        uncompared = [leaf for leaf in bad if leaf.difference is None]
        if self.problems:
            found = self.problems[0]
        elif uncompared:
            found = ": ".join((uncompared[0].path, *uncompared[0].messages[:1]))
        elif skipped == len(self.leaves):
            found = "nothing compared"
        else:
            # A gradient of 0 has no scale but rounding's.
            scaled = [x for x in self.leaves if x in bad or x.scale > x.tolerance] or self.leaves
            found = f"largest difference {max(map(ratio, scaled)):.1e} of the scale"
        leaves = "leaf" if len(self.leaves) == 1 else "leaves"
        start = f"{self.status.upper():<12} {self.name}: {f'{len(bad)} of ' if bad else ''}"
        start += f"{len(self.leaves)} {leaves}, {f'{skipped} skipped, ' if skipped else ''}"
        end = f", {self.seconds:.2f} s"
        room = max(40, WIDTH - len(start) - len(end))
        return start + textwrap.shorten(found, room, placeholder=" ...") + end

    def __str__(self) -> str:
        cause = shared_cause(self)
        above = [f"problem: {problem}" for problem in self.problems]
        above += [f"{cause.heading}: {cause.text}"] if cause else []
        if self.loss is not None:
            above.append(f"loss {self.loss:.10g} in float64, seed {self.seed}")
        ranked = sorted(self.leaves, key=lambda leaf: _ORDER.index(leaf.status))
        below = []
        for leaf in ranked[:ROWS]:
            below += details(replace(leaf, diagnosis=None) if leaf.diagnosis == cause else leaf)
        below += [f"chain: {self.chain}"] if self.chain else []
        lines = fold(above) + _table(ranked[:ROWS], ranked[ROWS:]) + fold([*below, *remarks(self)])
        again = [f"  again: {self.command}"] if self.command and not self else []
        return "\n".join([self.summary(), *lines, *again])


# The columns of a terminal, which only names may exceed; the leaves and the blind spots in a text.
WIDTH, ROWS, BLIND_SPOTS = 100, 16, 4
# What is in the remarks on ways to run that were not tried: they concern no number.
UNTRIED = ("whether it gives the same without jit", "how it does under jit")
HEADINGS = ("leaf", "shape", "status", "scale", "diff/scale", "sees", "error (autodiff)")
_ORDER: tuple[Status, ...] = ("fail", "inconclusive", "skipped", "pass")
_FOLD = textwrap.TextWrapper(WIDTH, "  ", " " * 6, break_long_words=False, break_on_hyphens=False)


def ratio(leaf: LeafReport) -> float:
    """The difference as a fraction of the scale; as it is where the scale is 0."""
    difference = leaf.difference or 0.0
    return difference / leaf.scale if leaf.scale else difference


def row(leaf: LeafReport) -> tuple[str, ...]:
    """A leaf under the `HEADINGS`; the last is the error in its own dtype, and autodiff's.

    An error as large as the leaf, and still not seen, is no figure: nothing would be.
    """
    compared, p = leaf.difference is not None, leaf.precision
    return (
        leaf.path,
        f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]",
        leaf.status,
        f"{leaf.scale:.2e}" if compared else "-",
        f"{ratio(leaf):.1e}" if compared else "-",
        f"{leaf.sees:.1e}" if leaf.sees is not None and leaf.sees < 1 else "-",
        "-" if p is None else f"{p.manual:.0e} ({p.autodiff:.0e})",
    )


def details(leaf: LeafReport) -> list[str]:
    """What a leaf's row does not say, in lines of text; those that go with another indented."""
    lines = [f"{leaf.path}: {message}" for message in leaf.messages]
    if w := leaf.worst:
        at = f"at {list(w.index)}: " if w.index else ""
        lines.append(f"{leaf.path}: {extent(leaf)}")
        for i, (label, value) in enumerate(sides_of(w)):
            lines.append(f"    {' ' * len(at) if i else at}{label:<18}  {value}")
        lines.append(f"    {w.verdict}")
    elif leaf.where:
        lines.append(f"{leaf.path}: where: {leaf.where}")
    return lines + (
        [f"{leaf.path}: {leaf.diagnosis.heading}: {leaf.diagnosis.text}"] if leaf.diagnosis else []
    )


def extent(leaf: LeafReport) -> str:
    """How many of a leaf's entries are wrong, and which."""
    size = math.prod(leaf.shape)
    fill = f"; they fill {leaf.where}" if leaf.where and leaf.wrong < size else ""
    return f"{leaf.wrong} of {size} entries differ by more than {leaf.tolerance:.1e}{fill}"


def sides_of(w: Disagreement) -> list[tuple[str, str]]:
    """What each side says of one entry, labelled, with digits enough to see that they differ."""
    digits = 10 if f"{w.manual:.10g}" != f"{w.autodiff:.10g}" else 17
    sides = f" (a kink: left {w.left:.6g}, right {w.right:.6g})" if w.kink else ""
    forward = [] if w.forward is None else [("forward mode", f"{w.forward:.{digits}g}")]
    return [
        ("hand-written", f"{w.manual:.{digits}g}"),
        ("autodiff", f"{w.autodiff:.{digits}g}"),
        *forward,
        ("finite differences", f"{w.slope:.10g} +- {w.error:.1g}{sides}"),
    ]


def shared_cause(report: Report) -> Diagnosis | None:
    """The one diagnosis of all the leaves that fail (that are in doubt, where none fails)."""
    found = {leaf.diagnosis for leaf in report.leaves if leaf.status == report.status != "pass"}
    return found.pop() if len(found) == 1 else None


def remarks(report: Report) -> list[str]:
    """The rules found, what the report could not see, in one line, and what differs elsewhere."""
    lines = unseen(report)
    shown, more = lines[:BLIND_SPOTS], len(lines) - BLIND_SPOTS
    shown += (f"and {more} more",) if more > 0 else ()
    coverage = [f"cannot see: {'; '.join(shown)}"] if shown else []
    rules = [f"rule: {rule}" for rule in report.rules]
    return rules + coverage + [f"elsewhere: {line}" for line in report.elsewhere]


def unseen(report: Report) -> tuple[str, ...]:
    """What the report could not see; last in what ways the gradient was not run."""
    return tuple(sorted(report.coverage, key=lambda line: any(way in line for way in UNTRIED)))


def _table(shown: Sequence[LeafReport], hidden: Sequence[LeafReport]) -> list[str]:
    """The rows of the leaves shown, aligned, without empty columns; the others counted."""
    columns = [c for c in zip(HEADINGS, *map(row, shown), strict=True) if {*c[1:]} - {"-"}]
    padded = [[cell.ljust(max(map(len, column))) for cell in column] for column in columns]
    lines = ["  " + "  ".join(cells).rstrip() for cells in zip(*padded, strict=True)]
    counts = Counter(leaf.status for leaf in hidden)
    more = ", ".join(f"{count} {status}" for status, count in counts.items())
    return lines + ([f"  and {len(hidden)} more leaves: {more}"] if hidden else [])


def fold(texts: Sequence[str]) -> list[str]:
    """Lines for below a summary, folded where they are too long."""
    return [line for text in texts for line in _FOLD.wrap(text)]


def to_json(reports: Sequence[Report]) -> str:
    """The reports as JSON: {"version", "reports"}, fields as in the dataclasses here.

    A number that JSON cannot hold (NaN, infinity) is written as a string.
    """
    rows = [{"status": report.status, **asdict(report)} for report in reports]
    return json.dumps(
        _finite({"version": JSON_VERSION, "reports": rows}), indent=2, allow_nan=False
    )


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
