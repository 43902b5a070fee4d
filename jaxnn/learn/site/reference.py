"""Pages of every public module of jaxnn, made of the docstrings, for Sphinx's autodoc."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jaxnn
from jaxnn.op import Op

# Commands and pages, which one does not import; fast forms are reached by an op.
LEFT_OUT = ("jaxnn.learn.site", "jaxnn.learn.exercises", "jaxnn.ops.fast")
GROUPS = {
    "jaxnn.ops": "Operations: a forward and, below it, its backward",
    "jaxnn.models": "Models: `init_params`, `forward`, `loss`, `manual_grad`",
    "jaxnn.verify": "The verifier",
    "jaxnn.train": "Training",
    "jaxnn.learn": "Lessons and exercises",
    "jaxnn": "Everything else",
}


def modules() -> Iterator[str]:
    """The names of the modules that have a page."""
    yield "jaxnn"
    for module in pkgutil.walk_packages(jaxnn.__path__, "jaxnn."):
        parts = module.name.split(".")
        private = any(part.startswith("_") for part in parts) or parts[-1].endswith("_doors")
        if not private and not module.name.startswith(LEFT_OUT):
            yield module.name


def members(module: ModuleType) -> list[tuple[str, Any]]:
    """What is public in a module and defined there, in the order of its lines.

    Of a package it is what it exports and defines itself; others are on their modules' pages.
    """
    found = []
    for name, value in vars(module).items():
        if name.startswith("_") or isinstance(value, ModuleType):
            continue
        if isinstance(value, Op):
            own = getattr(value.plain.fwd, "__module__", None) == module.__name__
        else:
            own = getattr(value, "__module__", None) == module.__name__ and (
                inspect.isclass(value) or inspect.isfunction(value)
            )
        if own:
            found.append((name, value))
    return found


def page(name: str) -> str:
    """Return the page of a module, as reStructuredText."""
    module = importlib.import_module(name)
    lines = [name, "=" * len(name), "", f".. automodule:: {name}", "   :no-members:", ""]
    for member, value in members(module):
        lines += _of_op(name, member, value) if isinstance(value, Op) else _of(name, member, value)
    return "\n".join(lines) + "\n"


def _of(module: str, name: str, value: Any) -> list[str]:
    if not inspect.isclass(value):
        return [f".. autofunction:: {module}.{name}", ""]
    return [f".. autoclass:: {module}.{name}", "   :members:", ""]


def _of_op(module: str, name: str, op: Op[..., Any]) -> list[str]:
    """An op: how it is called, and its two functions, which follow where they have names."""
    pair = []
    for function in op.plain:
        own = str(getattr(function, "__name__", ""))
        public = getattr(importlib.import_module(module), own, None) is function
        pair.append(f":func:`~{module}.{own}`" if public else f"``{own}``")
    forms = "" if op.fast is op.plain else " It has a fast form, which runs in its place."
    return [
        f".. py:function:: {module}.{name}{_signature(op)}",
        "",
        f"   An op, whose derivative is written by hand: forward {pair[0]}, backward {pair[1]}."
        f"{forms}",
        "",
    ]


def _signature(op: Op[..., Any]) -> str:
    """The op's arguments, without their types, which those of its forward have."""
    parameters = op.__signature__.parameters.values()
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in parameters]
    return str(inspect.Signature(bare))


def write(folder: Path) -> None:
    """Write a page for each module, and the list of them."""
    folder.mkdir(exist_ok=True)
    names = sorted(modules())
    for name in names:
        (folder / f"{name}.rst").write_text(page(name), encoding="utf-8")
    lines = ["# Reference", "", "Every public function and class, from its docstring.", ""]
    left = set(names)
    for group, title in GROUPS.items():
        own = sorted(name for name in left if name == group or name.startswith(f"{group}."))
        left -= set(own)
        lines += [f"## {title}", "", "```{toctree}", ":maxdepth: 1", "", *own, "```", ""]
    (folder / "index.md").write_text("\n".join(lines), encoding="utf-8")
