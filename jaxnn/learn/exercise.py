"""Exercises: find them, write the file that one starts with, say which one a file is."""

import ast
import functools
import importlib
import inspect
import pkgutil
import re
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from jaxnn.learn import exercises
from jaxnn.learn.lines import Written

GRADES = ("easy", "fused", "memory", "bug")
ABOUT = {
    "easy": "one line of the backward at a time",
    "fused": "the whole backward in a few lines",
    "memory": "forward and backward from shapes alone",
    "bug": "find the mistake that was planted in a backward",
}
# The order of the lessons where their files are not installed.
ORDER = (
    *("matmul", "linear", "activations", "losses", "softmax_cross_entropy", "regularisation"),
    *("initialisation", "mlp", "convolution", "pooling", "batch_norm", "layer_norm", "dropout"),
    *("embedding", "lstm", "gru", "attention", "rotary", "blockwise_attention"),
    *("linear_cross_entropy", "residual", "gpt", "memory", "numbers"),
    "collectives",
)


class Exercise(NamedTuple):
    """One exercise: its name, and the module that it is."""

    name: str
    module: ModuleType

    @property
    def lesson(self) -> str:
        """The name of its lesson, without number."""
        return str(self.module.LESSON)

    @property
    def grades(self) -> tuple[str, ...]:
        """Its grades, from easy to hard."""
        return (*self.module.GRADES, *(("bug",) if self.module.BUGS else ()))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the forward's inputs."""
        return tuple(self.module.INPUTS)

    @property
    def output(self) -> str:
        """The name of the forward's output."""
        return str(next(iter(self.module.OUTPUT)))

    @property
    def title(self) -> str:
        """What it is about, in a few words."""
        return (inspect.getdoc(self.module) or self.name).split(":")[0].split("\n")[0].rstrip(".")

    def function(self, role: str) -> Any:
        """Return the solution's function of a role: "fwd", "bwd" or "steps"."""
        return getattr(self.module, "steps" if role == "steps" else f"{self.name}_{role}")

    def wanted(self, grade: str) -> tuple[str, ...]:
        """Return the names of the functions that a file of a grade must have."""
        roles = ("steps",) if grade == "easy" else ("fwd", "bwd")
        return tuple(f"{self.name}_{role}" for role in roles)

    def blanks(self) -> list[tuple[str, str]]:
        """Return what the grade "easy" asks for: names, each with the line of the forward."""
        keys = list(_returned_keys(self.module.steps))
        written = self.written
        if written is None:
            return [(key, "") for key in keys]
        uses = {
            name: [i for i, line in enumerate(written.lines) if name in line.uses] or [-1]
            for name in written.names
        }
        # Known once all the lines that use a name were gone through, last to first.
        keys.sort(key=lambda k: (-min(uses[k]), -max(uses[k]), k in written.inputs))
        return [
            (k, "; ".join(line.text for line in reversed(written.lines) if k in line.uses))
            for k in keys
        ]

    @property
    def written(self) -> Written | None:
        """The lines of its forward; None for a whole model, whose forward is no list of lines."""
        return _written(self.module, self.inputs)


@functools.cache
def _written(module: ModuleType, inputs: tuple[str, ...]) -> Written | None:
    try:
        return Written(module.forward, inputs)
    except ValueError:
        return None


def _returned_keys(function: Any) -> list[str]:
    """The keys of the dictionary that a function returns, in order."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Dict):
            return [str(k.value) for k in node.value.keys if isinstance(k, ast.Constant)]
    raise ValueError(f"{function.__module__}.steps must return a dictionary written out")


@functools.cache
def lessons() -> tuple[str, ...]:
    """Return the names of the lessons in their order: as their files are numbered."""
    folder = Path(__file__).parent / "site" / "lessons"
    found = sorted(p.stem for p in folder.glob("*.md") if re.fullmatch(r"\d+_\w+", p.stem))
    named = [stem.split("_", 1)[1] for stem in found]
    return (*named, *(name for name in ORDER if name not in named))


def title_of(lesson: str) -> str:
    """Return a lesson's number and title; its name in words where its page is not there."""
    folder = Path(__file__).parent / "site" / "lessons"
    for path in folder.glob(f"[0-9]*_{lesson}.md"):
        number = path.stem.split("_")[0].lstrip("0")
        match = re.search(r"^# (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        if match and path.stem.split("_", 1)[1] == lesson:
            return f"{number}. {match[1].strip()}"
    return lesson.replace("_", " ").capitalize()


@functools.cache
def names() -> tuple[str, ...]:
    """Return the names of all exercises, without importing them."""
    return tuple(sorted(info.name for info in pkgutil.iter_modules(exercises.__path__)))


@functools.cache
def find(name: str) -> Exercise:
    """Return the exercise of a name.

    Raises:
        ValueError: there is none; the message has the closest.
    """
    if name not in names():
        import difflib

        near = difflib.get_close_matches(name, names(), 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else "`python -m jaxnn.learn` lists them"
        raise ValueError(f"there is no exercise {name!r:.40}; {hint}")
    return Exercise(name, importlib.import_module(f"jaxnn.learn.exercises.{name}"))


@functools.cache
def in_order() -> tuple[Exercise, ...]:
    """Return all exercises in the order of their lessons."""
    order = lessons()
    everything = [find(name) for name in names()]
    place = {e.name: order.index(e.lesson) if e.lesson in order else len(order) for e in everything}
    return tuple(sorted(everything, key=lambda e: (place[e.name], e.name != e.lesson, e.name)))
