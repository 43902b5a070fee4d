"""Find the smallest change of a student's backward that makes a cotangent right: where it is wrong.

A change is believed only if the cotangent is then right at two points, and no other one is spoilt.
What is said is where it is and of what kind, never what to write.
"""

import ast
import time
import types
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnn.learn.case import Case, Cause
from jaxnn.learn.changes import changes
from jaxnn.learn.influence import locals_of, outputs
from jaxnn.learn.kinds import KINDS
from jaxnn.learn.misuse import tree_of
from jaxnn.learn.points import close, named
from jaxnn.learn.stand_in import as_array, as_numpy
from jaxnn.learn.student import Work

BUDGET = 0.8  # seconds of the processor


class Repair(NamedTuple):
    """A cause, and the place of it in the student's code."""

    cause: Cause
    place: str


def repairs(work: Work, cases: list[Case], saved: Any) -> dict[str, Repair]:
    """Return, for each wrong cotangent that one small change makes right, what kind and where."""
    function = work.functions.get(f"{work.exercise.name}_bwd")
    tree = tree_of(function) if isinstance(function, types.FunctionType) else None
    if function is None or tree is None or saved is None:
        return {}
    trial = _Trial(work, function, tree, cases, saved)
    if not trial.usable:
        return {}
    found: dict[str, Repair] = {}
    wrong = {case.name[1:] for case in cases}
    parts = outputs(tree, work.exercise.inputs)
    point, dout = cases[0].points[0], f"d{work.exercise.output}"
    forward = [v for n, v in point.values.items() if n != dout and not isinstance(v, dict)]
    possible = changes(tree, trial.values(), parts, wrong, forward, cases[0].numbers)
    deadline = time.process_time() + BUDGET
    for kind, slot, new in possible:
        if time.process_time() > deadline or len(found) == len(cases):
            break
        old = slot.get()
        line = getattr(old, "lineno", tree.lineno)
        slot.put(ast.copy_location(new, old))
        ast.fix_missing_locations(slot.get())
        try:
            right = [name for name in trial.made_right() if name not in found]
        finally:
            slot.put(old)
        text, look = KINDS[kind]
        for name in right:
            cause = Cause(kind, f"{name}: {_line(function, line)} {text}", look)
            found[name] = Repair(cause, f"in line {line}")
    return found


def _line(function: Any, number: int) -> str:
    import linecache

    text = linecache.getline(function.__code__.co_filename, number).strip()
    return f"line {number}, `{text}`," if text else f"line {number}"


class _Trial:
    """Runs a changed backward at both points."""

    def __init__(
        self, work: Work, function: Any, tree: ast.FunctionDef, cases: list[Case], saved: Any
    ) -> None:
        self.work, self.tree, self.cases = work, tree, cases
        self.points = cases[0].points
        tree.decorator_list = []
        scope = dict(function.__globals__)
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            scope[name] = cell.cell_contents
        self.scope = {k: as_numpy(v) for k, v in scope.items()}
        self.args = [
            jax.tree.map(as_array, (s, p.dout)) for s, p in zip(saved, self.points, strict=True)
        ]
        self.before = self._run(0)
        self.usable = self._as_given()

    def _as_given(self) -> bool:
        return self.before is not None and all(
            case.name in self.before and _alike(self.before[case.name], case.given[0])
            for case in self.cases
        )

    def values(self) -> dict[str, Any]:
        """What the names of the backward are when it returns."""
        return locals_of(lambda: self._run(0), self.tree.name)

    def _run(self, i: int) -> dict[str, Any] | None:
        scope = dict(self.scope)
        try:
            module = ast.Module([self.tree], [])
            with np.errstate(all="ignore"):
                exec(compile(module, "<a change>", "exec"), scope)
                given = scope[self.tree.name](*self.args[i])
            given = given if isinstance(given, tuple | list) else (given,)
            found: dict[str, Any] = {}
            for name, value in zip(self.work.exercise.inputs, given, strict=True):
                found |= named(f"d{name}", value)
        except Exception:  # a change need not make sense
            return None
        return found

    def made_right(self) -> list[str]:
        """The wrong cotangents that are right now, if none is spoilt."""
        after = self._run(0)
        if after is None or self.before is None:
            return []
        wrong = {case.name: case for case in self.cases}
        right = [n for n, c in wrong.items() if _is(after.get(n), c.right[0])]
        if not right or any(
            not _alike(after.get(n), v) for n, v in self.before.items() if n not in wrong
        ):
            return []
        again = self._run(1)
        return [n for n in right if again is not None and _is(again.get(n), wrong[n].right[1])]


def _is(given: Any, right: Any) -> bool:
    return given is not None and close(np.asarray(given, np.float64), right)


def _alike(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return a.shape == b.shape and bool(np.allclose(a, b, 1e-9, 1e-12, equal_nan=True))
