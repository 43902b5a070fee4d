"""Counts of what became of PyTorch's samples, in words and in the documentation."""

import collections
import re
from pathlib import Path
from typing import NamedTuple

from . import REASONS

README = Path(__file__).parents[3] / "jaxnn" / "ops" / "README.md"
START, END = "<!-- counts -->\n", "<!-- end of counts -->\n"
KINDS = ("agrees", "documented", "refused", "cannot", "differs", "fault")


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


def short(name):
    return name.removeprefix("nn.functional.").removeprefix("nn.")


def counted_names(page):
    """The functions and modules that the page's counts are of."""
    table = page.split(START)[1].split(END)[0]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("|")][2:-1]
    return {name for row in rows for name in re.findall(r"`(.*?)`", row[1])}


def write(counts, families):
    """The counts between their marks in the documentation, in place of those that were there."""
    page = README.read_text()
    before, rest = page.split(START)
    _, after = rest.split(END)
    README.write_text(before + START + table(counts, families) + END + after)


def table(counts, families):
    """A row for each family of functions, and why samples are refused or cannot be said."""
    lines = ["| of PyTorch | agree | less exact | refused | cannot be said |"]
    lines += ["|---|--:|--:|--:|--:|"]
    by_name = {count.name: count for count in counts}
    refused, cannot = collections.Counter(), collections.Counter()
    for names in families.values():
        found = [by_name[name] for name in names]
        said = ", ".join(f"`{short(count.name)}`" for count in found)
        lines.append(f"| {said} | {numbers(found)} |")
        for count in found:
            for reason, number in count.reasons.items():
                if reason.split()[0] in REASONS:
                    cannot[words(reason)] += number
                else:
                    refused[subject(reason)] += number
    lines += [f"| all | {numbers(counts)} |", "", f"Refused: {listed(refused)}.", ""]
    lines += [f"Cannot be said: {listed(cannot)}."]
    return "\n".join(lines) + "\n"


def numbers(counts):
    total = collections.Counter()
    for count in counts:
        total.update(count.kinds)
    return " | ".join(str(total[kind]) for kind in KINDS[:4])


def listed(reasons):
    return "; ".join(f"{reason} ({number})" for reason, number in reasons.most_common())


def words(reason):
    """A reason of ours in words, with the setting's name where it is one."""
    kind, _, detail = reason.partition(" ")
    return f"`{detail}`" if kind == "setting" else detail or REASONS[kind]


def subject(refusal):
    """What a refusal is about: the op and what stands before the first value."""
    return re.split(r" (?:is|are|has|have) ", refusal)[0]
