"""Docstrings of this library as reStructuredText: code in single backticks, formulas indented."""

import re
from collections.abc import Sequence

# What reStructuredText would read as the beginning of an emphasis, a reference or a substitution.
SPECIAL = re.compile(r"[\\*|]|(?<=\w)_(?!\w)")
CODE = re.compile(r"(`[^`]+`)")
SECTION = re.compile(r"(Args|Returns|Raises|Attributes|Yields|Note|Example|Examples):$")


def _text(line: str) -> str:
    """One line of words: code in double backticks, and no character that has a meaning."""
    parts = CODE.split(line)
    return "".join(
        f"`{part}`" if CODE.fullmatch(part) else SPECIAL.sub(r"\\\g<0>", part) for part in parts
    )


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def converted(lines: Sequence[str]) -> list[str]:
    """Return a docstring's lines for Sphinx: text escaped, indented blocks as they stand."""
    done: list[str] = []
    in_block = in_section = False
    for i, line in enumerate(lines):
        blank_before = i == 0 or not lines[i - 1].strip()
        if not line.strip():
            done.append("")
            continue
        if SECTION.match(line):
            in_section, in_block = True, False
            done.append(line)
            continue
        if _indent(line) == 0:
            in_section = in_block = False
        if not in_section and not in_block and blank_before and _indent(line) >= 4:
            in_block = True
            done += ["::", ""]
        done.append(line if in_block else " " * _indent(line) + _text(line.lstrip()))
    return done


def process(
    app: object, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Sphinx's hook `autodoc-process-docstring`, run before Napoleon reads the sections."""
    lines[:] = converted(lines)
