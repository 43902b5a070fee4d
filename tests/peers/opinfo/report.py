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
