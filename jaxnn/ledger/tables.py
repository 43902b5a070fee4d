"""The ledger as text: a line per kind, axes and place, predicted and found, and seconds."""

from collections.abc import Mapping, Sequence

from jaxnn.ledger.machines import Machine, seconds
from jaxnn.ledger.sent import Group, Sent, Total, totals

HEAD = ("", "collective", "over", "predicted", "bytes", "found", "bytes", "seconds", "why")


def ledger_table(
    predicted: Sequence[Sent],
    found: Sequence[Sent] | None,
    mesh: Mapping[str, int],
    machine: Machine,
) -> str:
    """Return the table: of each group how many arrays and bytes, predicted and found, and seconds.

    What differs has "!" before it. Seconds are of what is predicted. `found` is None where nothing
    was compiled.
    """
    ours, theirs = totals(predicted), totals(found or ())
    rows = [HEAD]
    for group in ours | theirs:
        paper, program = (t.get(group, Total(0, 0)) for t in (ours, theirs))
        differs = found is not None and paper != program
        time = sum(seconds(s, mesh, machine) for s in predicted if Group.of(s) == group)
        place = "in the loop" if group.in_loop else "once"
        rows.append(
            (
                "!" if differs else "",
                group.kind,
                f"{' x '.join(group.axes) or '?'}, {place}",
                f"{paper.times:,}",
                human(paper.bytes),
                "-" if found is None else f"{program.times:,}",
                "-" if found is None else human(program.bytes),
                f"{time:.2e}",
                _why(predicted, found, group),
            )
        )
    return columns(rows)


def _why(predicted: Sequence[Sent], found: Sequence[Sent] | None, group: Group) -> str:
    """The largest of a group on paper or, of what was not predicted, its place in the source."""
    lines = [s for s in predicted if Group.of(s) == group]
    lines = lines or [s for s in found or () if Group.of(s) == group]
    largest = max(lines, key=lambda sent: sent.bytes)
    others = len({sent.why for sent in lines}) - 1
    return f"{largest.why}{f', and {others} more' if others else ''}"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Set rows in columns: words to the left, what starts with a digit to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    numbers = [
        all(row[i][:1].isdigit() or row[i] == "-" for row in rows[1:]) for i in range(len(widths))
    ]
    lines = [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numbers, strict=True)
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def human(size: float) -> str:
    """Return bytes in words: 1536 is '1.5 KB', of 1,000 bytes."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"
