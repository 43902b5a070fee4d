"""Counts of what became of PyTorch's samples, in words and in the documentation."""

from pathlib import Path
from typing import NamedTuple

README = Path(__file__).parents[3] / "jaxnn" / "ops" / "README.md"
START, END = "<!-- counts -->\n", "<!-- end of counts -->\n"
KINDS = ("agrees", "refused", "cannot", "differs", "fault")


class Count(NamedTuple):
    """Of a function: how many samples of each kind, why not, and those that are wrong, in words."""

    name: str
    kinds: dict[str, int]
    reasons: dict[str, int]
    wrong: list[str]

    def __str__(self):
        kinds = ", ".join(f"{self.kinds[kind]} {kind}" for kind in KINDS if kind in self.kinds)
        lines = [f"{self.name}: {kinds or 'no samples'}"]
        lines += [f"    {number} {reason}" for reason, number in self.reasons.items()]
        return "\n".join([*lines, *(f"    {each}" for each in self.wrong)])


def write(counts):
    """The counts between their marks in the documentation, in place of those that were there."""
    text = README.read_text()
    before, rest = text.split(START)
    _, after = rest.split(END)
    README.write_text(before + START + table(counts) + END + after)


def table(counts):
    lines = ["| PyTorch | agree | refused | not to be said | why |", "|---|--:|--:|--:|---|"]
    total = collections.Counter()
    for count in sorted(counts, key=lambda count: count.name.lower()):
        total.update(count.kinds)
        lines.append(
            row(f"`{count.name.removeprefix('nn.functional.')}`", count.kinds, count.reasons)
        )
    lines.append(row("all", total, {}))
    return "\n".join(lines) + "\n"


def row(name, kinds, reasons):
    numbers = [str(kinds.get(kind, 0) or "") for kind in KINDS[:3]]
    said = collections.Counter()
    for reason, number in reasons.items():
        said[short(reason)] += number
    return f"| {name} | {' | '.join(numbers)} | {'; '.join(said)} |"


def short(reason):
    """Of a refusal the setting that it is about: what stands before its first value."""
    if ":" not in reason:
        return reason
    return re.split(r" (is|are|has|have) ", reason.split(": ", 1)[1])[0]
