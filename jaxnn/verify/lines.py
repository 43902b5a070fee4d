"""Put what was found of leaves in lines of text."""

import math
import textwrap
from collections import Counter
from collections.abc import Sequence

from jaxnn.verify.findings import Disagreement, LeafReport

# The columns of a terminal, which only names may exceed.
WIDTH = 100
HEADINGS = ("leaf", "shape", "status", "scale", "diff/scale", "sees", "error (autodiff)")
_FOLD = textwrap.TextWrapper(WIDTH, "  ", " " * 6, break_long_words=False, break_on_hyphens=False)


def relative_difference(leaf: LeafReport) -> float:
    """Return the difference as a fraction of the scale; as it is where the scale is 0."""
    difference = leaf.difference or 0.0
    return difference / leaf.scale if leaf.scale else difference


def row(leaf: LeafReport) -> tuple[str, ...]:
    """Return a leaf under the `HEADINGS`; the last is the error in its own dtype, and autodiff's.

    An error as large as the leaf, and still not seen, is no figure: nothing would be.
    """
    compared, p = leaf.difference is not None, leaf.precision
    return (
        leaf.path,
        f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]",
        leaf.status,
        f"{leaf.scale:.2e}" if compared else "-",
        f"{relative_difference(leaf):.1e}" if compared else "-",
        f"{leaf.sees:.1e}" if leaf.sees is not None and leaf.sees < 1 else "-",
        "-" if p is None else f"{p.manual:.0e} ({p.autodiff:.0e})",
    )


def details(leaf: LeafReport) -> list[str]:
    """List what a leaf's row does not say, in lines; those that go with another are indented."""
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
    """Say how many of a leaf's entries are wrong, and which."""
    size = math.prod(leaf.shape)
    fill = f"; they fill {leaf.where}" if leaf.where and leaf.wrong < size else ""
    return f"{leaf.wrong} of {size} entries differ by more than {leaf.tolerance:.1e}{fill}"


def sides_of(w: Disagreement) -> list[tuple[str, str]]:
    """List what each side says of one entry, labelled, with digits enough to see a difference."""
    digits = 10 if f"{w.manual:.10g}" != f"{w.autodiff:.10g}" else 17
    sides = f" (a kink: left {w.left:.6g}, right {w.right:.6g})" if w.kink else ""
    forward = [] if w.forward is None else [("forward mode", f"{w.forward:.{digits}g}")]
    return [
        ("hand-written", f"{w.manual:.{digits}g}"),
        ("autodiff", f"{w.autodiff:.{digits}g}"),
        *forward,
        ("finite differences", f"{w.slope:.10g} +- {w.error:.1g}{sides}"),
    ]


def table(shown: Sequence[LeafReport], hidden: Sequence[LeafReport]) -> list[str]:
    """The rows of the leaves shown, aligned, without empty columns; the others counted."""
    columns = [c for c in zip(HEADINGS, *map(row, shown), strict=True) if {*c[1:]} - {"-"}]
    padded = [[cell.ljust(max(map(len, column))) for cell in column] for column in columns]
    lines = ["  " + "  ".join(cells).rstrip() for cells in zip(*padded, strict=True)]
    counts = Counter(leaf.status for leaf in hidden)
    more = ", ".join(f"{count} {status}" for status, count in counts.items())
    return lines + ([f"  and {len(hidden)} more leaves: {more}"] if hidden else [])


def fold(texts: Sequence[str]) -> list[str]:
    """Fold lines for below a summary where they are too long."""
    return [line for text in texts for line in _FOLD.wrap(text)]
