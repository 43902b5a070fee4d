"""Pages of reference, one for each public module, from its docstrings."""

import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import jaxnn
from jaxnn.op import Op

# What is public by itself; of the other packages it is every module, but doors and fast forms.
ENTRANCES = (
    *("jaxnn.op", "jaxnn.train", "jaxnn.verify", "jaxnn.learn"),
    *("jaxnn.data", "jaxnn.text", "jaxnn.augment"),
)
PACKAGES = ("jaxnn.models", "jaxnn.ops")
HEADINGS = ("Args", "Returns", "Raises", "Attributes", "Yields")


def modules() -> list[str]:
    """Return the names of the modules that have a page."""
    names = list(ENTRANCES)
    for package in PACKAGES:
        found = pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}.")
        names += [m.name for m in found if not (m.ispkg or m.name.endswith("_doors"))]
    return names


def write(folder: Path) -> None:
    """Write a page for each module, and one that lists them."""
    folder.mkdir()
    names = modules()
    for name in names:
        (folder / f"{name}.md").write_text(page(name))
    listed = "\n".join(names)
    (folder / "index.md").write_text(
        f"# Reference\n\njaxnn {jaxnn.__version__}, module by module.\n\n"
        f"```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```\n"
    )


def page(name: str) -> str:
    """Return a module's page: its ops, each with its two functions, then all its documentation."""
    module = importlib.import_module(name)
    ops = [(key, value) for key, value in vars(module).items() if isinstance(value, Op)]
    lines = [
        f"- `{key}` is `{op.plain.fwd.__name__}` with `{op.plain.bwd.__name__}`" for key, op in ops
    ]
    listed = "\n".join(["The ops of this module:\n", *lines, ""]) if lines else ""
    whole = "\n   :imported-members:" if hasattr(module, "__path__") else ""
    return (
        f"# {name}\n\n{listed}\n```{{eval-rst}}\n.. automodule:: {name}\n   :members:{whole}\n```\n"
    )


def as_rst(lines: list[str]) -> list[str]:
    """Return a docstring of the house as reStructuredText.

    Words in single backticks are code, indented blocks after an empty line are formulas, and
    characters with a meaning in reStructuredText mean themselves.
    """
    made: list[str] = []
    section, literal = False, False
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if line.strip() and indent == 0:
            section, literal = line.strip().rstrip(":") in HEADINGS and line.endswith(":"), False
        before = lines[number - 1] if number else ""
        if not section and indent >= 4 and not before.strip() and not literal:
            literal = True
            made += ["::", ""]
        made.append(line if literal else _escaped(line))
    return made


def _escaped(line: str) -> str:
    """Return a line with its code in double backticks and all else taken as it stands."""
    parts = re.split(r"(`[^`]+`)", line)
    return "".join(
        f"`{part}`" if part.startswith("`") and len(part) > 2 else _plain(part) for part in parts
    )


def _plain(text: str) -> str:
    return re.sub(r"(?<=\w)_(?!\w)|[*|\\`]", lambda found: "\\" + found[0], text)


def process(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: Any) -> None:
    """Rewrite a docstring in place: what autodoc calls for each of them."""
    lines[:] = as_rst(list(lines))


def skip_fields(_app: Any, _what: str, _name: str, member: Any, skip: Any, _options: Any) -> Any:
    """Leave out the fields of a NamedTuple, which its own documentation names."""
    return True if type(member).__name__ == "_tuplegetter" else skip
