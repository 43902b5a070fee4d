"""Report what a verification found: per leaf, then as a whole; as text, JSON and a page."""

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from jaxnn.verify.findings import Diagnosis, LeafReport, Status
from jaxnn.verify.lines import WIDTH, details, fold, relative_difference, table
from jaxnn.verify.page import Section, fragment, page

JSON_VERSION = 3
# The leaves and the blind spots in a text; and the order of the leaves.
ROWS, BLIND_SPOTS = 16, 4
ORDER: tuple[Status, ...] = ("fail", "inconclusive", "skipped", "pass")
# What is in the remarks on ways to run that were not tried: they concern no number.
UNTRIED = ("whether it gives the same without jit", "how it does under")


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

    @property
    def shared_cause(self) -> Diagnosis | None:
        """The one diagnosis of all the leaves that fail (that are in doubt, where none fails)."""
        found = {leaf.diagnosis for leaf in self.leaves if leaf.status == self.status != "pass"}
        return found.pop() if len(found) == 1 else None

    @property
    def unseen(self) -> list[str]:
        """What the report could not see; last in what ways the gradient was not run."""
        return sorted(self.coverage, key=lambda line: any(way in line for way in UNTRIED))

    def remarks(self) -> list[str]:
        """List the rules found, what the report could not see, and what differs in other ways."""
        shown, more = self.unseen[:BLIND_SPOTS], len(self.coverage) - BLIND_SPOTS
        shown += [f"and {more} more"] if more > 0 else []
        coverage = [f"cannot see: {'; '.join(shown)}"] if shown else []
        rules = [f"rule: {rule}" for rule in self.rules]
        return rules + coverage + [f"elsewhere: {line}" for line in self.elsewhere]

    @property
    def section(self) -> Section:
        """What a page has of it."""
        cause, bad = self.shared_cause, ("fail", "inconclusive")
        said = [leaf for leaf in self.leaves if leaf.status not in bad]
        facts = [
            *(("problem", problem) for problem in self.problems),
            *(((cause.heading, cause.text),) if cause else ()),
            *((("chain", self.chain),) if self.chain else ()),
            *((leaf.path, message) for leaf in said for message in leaf.messages),
            *(("rule", rule) for rule in self.rules),
            *((("cannot see", "\n".join(self.unseen)),) if self.coverage else ()),
            *(("elsewhere", line) for line in self.elsewhere),
            *((("loss in float64", f"{self.loss:.10g}"),) if self.loss is not None else ()),
            ("seed", str(self.seed)),
        ]
        return Section(self.status, self.summary()[12:], facts, self.leaves, self.command)

    def _repr_html_(self) -> str:
        """How a notebook shows it: what the page has of it."""
        return fragment(self.section)

    def summary(self) -> str:
        """Return one line."""
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
            found = f"largest difference {max(map(relative_difference, scaled)):.1e} of the scale"
        leaves = "leaf" if len(self.leaves) == 1 else "leaves"
        start = f"{self.status.upper():<12} {self.name}: {f'{len(bad)} of ' if bad else ''}"
        start += f"{len(self.leaves)} {leaves}, {f'{skipped} skipped, ' if skipped else ''}"
        end = f", {self.seconds:.2f} s"
        room = max(40, WIDTH - len(start) - len(end))
        return start + textwrap.shorten(found, room, placeholder=" ...") + end

    def __str__(self) -> str:
        cause = self.shared_cause
        above = [f"problem: {problem}" for problem in self.problems]
        above += [f"{cause.heading}: {cause.text}"] if cause else []
        if self.loss is not None:
            above.append(f"loss {self.loss:.10g} in float64, seed {self.seed}")
        ranked = sorted(self.leaves, key=lambda leaf: ORDER.index(leaf.status))
        below = []
        for leaf in ranked[:ROWS]:
            below += details(replace(leaf, diagnosis=None) if leaf.diagnosis == cause else leaf)
        below += [f"chain: {self.chain}"] if self.chain else []
        lines = fold(above) + table(ranked[:ROWS], ranked[ROWS:]) + fold([*below, *self.remarks()])
        again = [f"  again: {self.command}"] if self.command and not self else []
        return "\n".join([self.summary(), *lines, *again])


def to_json(reports: Sequence[Report]) -> str:
    """Return the reports as JSON: {"version", "reports"}, fields as in the dataclasses here.

    A number that JSON cannot hold (NaN, infinity) is written as a string.
    """
    rows = [{"status": report.status, **asdict(report)} for report in reports]
    return json.dumps(
        _finite({"version": JSON_VERSION, "reports": rows}), indent=2, allow_nan=False
    )


def to_html(reports: Sequence[Report]) -> str:
    """Render the reports as one self-contained page."""
    return page([report.section for report in reports])


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
