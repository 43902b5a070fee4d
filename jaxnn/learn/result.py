"""What was found of a student's work: one row for each cotangent, as text and HTML."""

import html
import textwrap
from dataclasses import dataclass, field
from typing import Literal

Status = Literal["right", "wrong", "not yet", "after"]
WIDTH = 96
WORDS = {"right": "right", "wrong": "wrong", "not yet": "not written yet", "after": "look after"}


@dataclass(frozen=True)
class Row:
    """One cotangent (or value of the forward).

    Attributes:
        name: as `dx`.
        status: how it is; "after" where it may follow from a wrong one above.
        where: by how much it differs, and where.
        kind: of the likely cause, one word for programs; "" for none.
        cause: the likely cause.
        look: what to look at next.
    """

    name: str
    status: Status
    where: str = ""
    kind: str = ""
    cause: str = ""
    look: str = ""


@dataclass(frozen=True)
class Result:
    """How a student's work is graded. It is true in a condition exactly if all of it is right."""

    exercise: str
    grade: str
    rows: tuple[Row, ...] = ()
    fault: str = ""
    kind: str = ""
    notes: tuple[str, ...] = ()
    printed: str = ""
    seconds: float = 0.0
    said: str = field(default="")

    @property
    def status(self) -> Literal["right", "wrong", "not yet"]:
        """The whole: right, wrong, or not done yet."""
        if self.fault:
            return "not yet" if self.kind == "not yet" else "wrong"
        states = {row.status for row in self.rows}
        if states <= {"right"} and states:
            return "right"
        return "not yet" if states <= {"not yet", "right"} else "wrong"

    def __bool__(self) -> bool:
        return self.status == "right"

    @property
    def summary(self) -> str:
        """One line."""
        what = " ".join(filter(None, (self.exercise, self.grade and f"({self.grade})")))
        if self.fault:
            return self.fault
        done = sum(row.status == "right" for row in self.rows)
        if self.status == "right":
            return f"{what}: right. {self.said}".rstrip()
        if self.status == "not yet":
            return f"{what}: not done yet; {done} of {len(self.rows)} written and right"
        return f"{what}: {done} of {len(self.rows)} right"

    def __str__(self) -> str:
        lines = textwrap.wrap(self.summary, WIDTH, break_long_words=False) or [""]
        width = max((len(row.name) for row in self.rows), default=0)
        shared = self._shared()
        for row in self.rows:
            lines += _folded(f"  {row.name:<{width}}  {WORDS[row.status]}", row.where, width + 4)
            if row.cause and row is shared.get((row.cause, row.look), row):
                lines += _folded(" " * (width + 4) + "likely cause", row.cause, width + 6)
            if row.look and row is shared.get((row.cause, row.look), row):
                lines += _folded(" " * (width + 4) + "look at", row.look, width + 6)
        lines += [line for note in self.notes for line in _folded("", note, 0)]
        if self.printed:
            lines += ["your code printed:"]
            lines += [f"  | {line}" for line in self.printed.rstrip("\n").split("\n")]
        return "\n".join(lines)

    def _shared(self) -> dict[tuple[str, str], Row]:
        """The last row of each cause: rows with one cause have it once."""
        return {(row.cause, row.look): row for row in self.rows if row.cause or row.look}

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        rows = "".join(
            f"<tr><td><code>{html.escape(row.name)}</code></td><td>{WORDS[row.status]}</td>"
            f"<td style='text-align:left'>{_cell(row)}</td></tr>"
            for row in self.rows
        )
        table = f"<table>{rows}</table>" if rows else ""
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        printed = f"<pre>{html.escape(self.printed)}</pre>" if self.printed else ""
        return f"<p><strong>{html.escape(self.summary)}</strong></p>{table}{notes}{printed}"


def _cell(row: Row) -> str:
    parts = [row.where, row.cause and f"Likely cause: {row.cause}", row.look]
    return "<br>".join(html.escape(part) for part in parts if part)


def _folded(start: str, text: str, indent: int) -> list[str]:
    if not text:
        return [start]
    full = f"{start}: {text}" if start else text
    return textwrap.wrap(
        full, WIDTH, subsequent_indent=" " * indent, break_long_words=False, drop_whitespace=True
    )
