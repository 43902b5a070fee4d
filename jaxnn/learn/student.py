"""Read and run a student's file: every fault becomes a sentence with the line."""

import ast
import difflib
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxnn import files
from jaxnn.learn import exercise, misuse
from jaxnn.learn.guard import Fault, printing, said, shown

MOST_BYTES = 2**20


class Work(NamedTuple):
    """A student's functions.

    Attributes:
        path: of their file; "" in a notebook.
        exercise: which one it is.
        grade: which grade of it.
        functions: by name.
        printed: what was printed while they were defined.
    """

    path: str
    exercise: exercise.Exercise
    grade: str
    functions: dict[str, Callable[..., Any]]
    printed: str


def read(path: str) -> Work:
    """Read a student's file and run it once.

    Raises:
        Fault: it cannot be read or run, or it cannot be told which exercise it is.
    """
    try:
        content = files.read_bytes(Path(path), MOST_BYTES)
    except (TypeError, ValueError) as error:
        raise Fault(str(error)) from None
    if b"\0" in content:
        raise Fault(f"{path} is no text; name the Python file that `start` wrote")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Fault(f"{path} is not UTF-8 text; save it as UTF-8") from None
    return parsed(path, text)


def parsed(path: str, text: str) -> Work:
    """Run a student's file, given its text.

    Raises:
        Fault: it cannot be run, or it cannot be told which exercise it is.
    """
    try:
        tree = ast.parse(text, path)
    except SyntaxError as error:
        raise Fault(_syntax(path, error)) from None
    except (RecursionError, MemoryError, ValueError):
        raise Fault(
            f"{path} cannot be read as Python: it goes too deep; write it simpler"
        ) from None
    found, grade = _which(path, tree)
    module = types.ModuleType("student")
    module.__file__ = path
    import linecache

    linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)
    sys.modules["student"] = module
    with printing() as printed, said(path), misuse.watched():
        exec(compile(tree, path, "exec"), module.__dict__)
    functions = {}
    for name in found.wanted(grade):
        functions[name] = _function(path, name, vars(module), tree, found.wanted(grade))
    return Work(path, found, grade, functions, shown(printed))


def _syntax(path: str, error: SyntaxError) -> str:
    line = (error.text or "").strip()
    at = f", line {error.lineno}" if error.lineno else ""
    return f"{path}{at} is no Python ({error.msg})" + (f": {line:.80}" if line else "")


def _which(path: str, tree: ast.Module) -> tuple[exercise.Exercise, str]:
    """Which exercise and grade a file is: by the line that `start` wrote, or its functions."""
    told = _constants(tree)
    defined = [n.name for n in tree.body if isinstance(n, ast.FunctionDef)]
    name = told.get("EXERCISE")
    if name is None:
        known = exercise.names()
        of = {d.rsplit("_", 1)[0] for d in defined if d.rsplit("_", 1)[0] in known}
        if len(of) != 1:
            raise Fault(
                f'{path} does not say which exercise it is; write EXERCISE = "NAME" in it, as '
                "`python -m jaxnn.learn start NAME` does"
            )
        name = of.pop()
    try:
        found = exercise.find(str(name))
    except ValueError as error:
        raise Fault(f"{path}: {error}") from None
    grade = told.get("GRADE") or ("easy" if f"{name}_steps" in defined else "fused")
    if grade not in found.grades:
        raise Fault(
            f"{path} has GRADE = {grade!r:.30}; the grades of {name} are {', '.join(found.grades)}"
        )
    return found, str(grade)


def _constants(tree: ast.Module) -> dict[str, Any]:
    """EXERCISE and GRADE, as they are assigned: one by one or together."""
    told: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
            pairs: list[tuple[ast.expr, ast.expr]] = [(target, value)]
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                pairs = list(zip(target.elts, value.elts, strict=False))
            for t, v in pairs:
                if isinstance(t, ast.Name) and isinstance(v, ast.Constant):
                    told[t.id] = v.value
    return told


def _function(
    path: str, name: str, scope: dict[str, Any], tree: ast.Module, wanted: tuple[str, ...]
) -> Callable[..., Any]:
    value = scope.get(name)
    if callable(value):
        return value  # type: ignore[no-any-return]
    if value is not None:
        raise Fault(f"{path}: {name} is {type(value).__name__}, no function; write def {name}(...)")
    defined = [n for n in tree.body if isinstance(n, ast.FunctionDef)]
    lines = {n.name: n.lineno for n in defined if n.name not in wanted}
    near = difflib.get_close_matches(name, lines, 1, 0.6)
    renamed = f"; did you mean {near[0]} in line {lines[near[0]]}? Call it {name}" if near else ""
    raise Fault(f"{path} has no function {name}" + (renamed or f"; write def {name}(...)"))
