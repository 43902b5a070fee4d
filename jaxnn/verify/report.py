"""What a verification found: per leaf, then as a whole; as text, JSON and HTML."""

import html
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["pass", "fail", "inconclusive"]
JSON_VERSION = 1


@dataclass(frozen=True)
class Disagreement:
    """One entry where the two gradients differ, and what finite differences say of it.

    Attributes:
        index: where in the leaf.
        manual: the hand-written value.
        autodiff: automatic differentiation's value.
        slope: the centred difference; `error` its estimated error; `left` and `right` the
            one-sided differences.
        kink: whether left and right tend to different limits.
        verdict: who is wrong, in words.
    """

    index: tuple[int, ...]
    manual: float
    autodiff: float
    slope: float
    error: float
    left: float
    right: float
    kink: bool
    verdict: str


@dataclass(frozen=True)
class LeafReport:
    """The comparison of one leaf of the parameters, in float64.

    Attributes:
        path: as Python would write it after the parameters' name.
        shape: of the leaf.
        dtype: of the leaf as given, before it was lifted to float64.
        status: "pass", "fail" or "inconclusive".
        scale: the largest absolute entry of autodiff's gradient.
        difference: the largest absolute difference between the two gradients; None where they
            could not be compared.
        tolerance: the difference allowed, computed from the scale and the rounding measured.
        wrong: the number of entries that differ by more.
        directions: how many directions the finite-difference witness tried.
        kinks: in how many of them left and right slopes differ, so that it could not testify.
        worst: the entry that differs most, where any does by more than the tolerance.
        messages: what else there is to say.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    status: Status
    scale: float = 0.0
    difference: float | None = None
    tolerance: float = 0.0
    wrong: int = 0
    directions: int = 0
    kinks: int = 0
    worst: Disagreement | None = None
    messages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """One verification. It is true in a condition exactly if it passed.

    Attributes:
        name: what was verified.
        loss: its value in float64; None where it could not be evaluated.
        leaves: one report per floating leaf of the parameters.
        problems: what is wrong with the gradient as a whole (its structure, its value).
        seconds: the time it took, compilation included.
    """

    name: str
    loss: float | None
    leaves: tuple[LeafReport, ...]
    problems: tuple[str, ...]
    seconds: float

    @property
    def status(self) -> Status:
        """The worst of its parts: a failure outweighs what is inconclusive."""
        statuses = [leaf.status for leaf in self.leaves]
        if self.problems or "fail" in statuses:
            return "fail"
        return "inconclusive" if "inconclusive" in statuses else "pass"

    def __bool__(self) -> bool:
        return self.status == "pass"

    def summary(self) -> str:
        """One line."""
        bad = [leaf for leaf in self.leaves if leaf.status != "pass"]
        uncompared = [leaf for leaf in bad if leaf.difference is None]
        if self.problems:
            found = self.problems[0]
        elif uncompared:
            found = f"{uncompared[0].path}: {uncompared[0].messages[0]}"
        else:
            relative = max((_ratio(leaf) for leaf in self.leaves), default=0.0)
            found = f"largest difference {relative:.1e} of its leaf's scale"
        count = f"{len(bad)} of {len(self.leaves)}" if bad else f"{len(self.leaves)}"
        leaves = "leaf" if len(self.leaves) == 1 else "leaves"
        start = f"{self.status.upper():<12} {self.name}"
        return f"{start}: {count} {leaves}, {found}, {self.seconds:.2f} s"

    def __str__(self) -> str:
        lines = [self.summary()]
        if self.loss is not None:
            lines.append(f"  loss {self.loss:.10g} in float64")
        lines += [f"  problem: {problem}" for problem in self.problems]
        if not self.leaves:
            return "\n".join(lines)
        rows = [_HEADINGS, *(_row(leaf) for leaf in self.leaves)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADINGS))]
        lines += [
            "  "
            + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        for leaf in self.leaves:
            lines += [f"  {line}" for line in details(leaf)]
        return "\n".join(lines)


def _ratio(leaf: LeafReport) -> float:
    difference = leaf.difference or 0.0
    return difference / leaf.scale if leaf.scale else difference


_HEADINGS = ("leaf", "shape", "status", "scale", "difference", "tolerance", "finite differences")


def _row(leaf: LeafReport) -> tuple[str, ...]:
    if leaf.difference is None:
        numbers = ("-", "-", "-", "not asked")
    else:
        agreed = f"{leaf.directions} asked" + (f", {leaf.kinks} at a kink" if leaf.kinks else "")
        numbers = (f"{leaf.scale:.2e}", f"{leaf.difference:.1e}", f"{leaf.tolerance:.1e}", agreed)
    return (leaf.path, str(leaf.shape), leaf.status, *numbers)


def details(leaf: LeafReport) -> list[str]:
    """What a leaf's row of numbers does not say, in lines of text."""
    lines = [f"{leaf.path}: {message}" for message in leaf.messages]
    if leaf.worst:
        w = leaf.worst
        lines += [
            f"{leaf.path}{list(w.index)}: hand-written {w.manual:.10g}, autodiff "
            f"{w.autodiff:.10g}; {leaf.wrong} of {math.prod(leaf.shape)} entries differ",
            f"    finite differences {w.slope:.10g} +- {w.error:.1g} "
            f"(left {w.left:.6g}, right {w.right:.6g})",
            f"    {w.verdict}",
        ]
    return lines


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
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value


def to_html(reports: Sequence[Report]) -> str:
    """The reports as one self-contained page."""
    parts = [_PAGE_START]
    for report in reports:
        parts.append(
            f"<details class={report.status}{'' if report else ' open'}>"
            f"<summary>{html.escape(report.summary())}</summary>"
        )
        parts += [f"<p>{html.escape(problem)}</p>" for problem in report.problems]
        parts.append("<table><tr>" + "".join(f"<th>{h}</th>" for h in _HEADINGS) + "</tr>")
        for leaf in report.leaves:
            cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in _row(leaf))
            parts.append(f"<tr class={leaf.status}>{cells}</tr>")
            parts += [
                f"<tr class={leaf.status}><td colspan={len(_HEADINGS)}>{line}</td></tr>"
                for line in map(html.escape, details(leaf))
            ]
        parts.append("</table></details>")
    return "\n".join([*parts, "</html>\n"])


_PAGE_START = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>jaxnn.verify</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
summary { cursor: pointer; font-weight: 600; padding: .3rem .6rem; margin: .3rem 0 }
table { border-collapse: collapse; margin: .5rem 1rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .15rem .8rem; border-bottom: 1px solid #ddd }
.pass > summary { background: #e3f4e5 } .fail > summary, tr.fail { background: #fbe3e1 }
.inconclusive > summary, tr.inconclusive { background: #fcf3d5 }
</style>
<h1>Gradients, by hand and by machine</h1>"""
