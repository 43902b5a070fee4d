"""The places of a function's syntax tree in which something else may be put."""

import ast
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

_OF_PLACES = ("range", "arange", "one_hot", "roll", "tril", "triu")


class Slot(NamedTuple):
    """A place in a tree that holds an expression: the node above, its field, where in a list."""

    above: ast.AST
    field: str
    at: int | None

    def get(self) -> Any:
        """Return the expression."""
        held = getattr(self.above, self.field)
        return held if self.at is None else held[self.at]

    def put(self, node: Any) -> None:
        """Put another in its place."""
        if self.at is None:
            setattr(self.above, self.field, node)
        else:
            getattr(self.above, self.field)[self.at] = node


def slots(tree: ast.FunctionDef) -> Iterator[Slot]:
    """Yield the places of all expressions that are read."""
    for statement in tree.body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Constant | ast.FunctionDef | ast.arguments):
                continue
            for field, value in ast.iter_fields(node):
                if field in ("targets", "target", "func", "annotation", "decorator_list"):
                    continue
                if isinstance(value, ast.expr):
                    yield Slot(node, field, None)
                elif isinstance(value, list):
                    yield from (
                        Slot(node, field, i) for i, v in enumerate(value) if isinstance(v, ast.expr)
                    )


def indices(tree: ast.FunctionDef) -> set[int]:
    """Return all that is in an index, a slice or a range, by its node's id."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript):
            found.append(node.slice)
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            found += node.args if called in _OF_PLACES else []
    return {id(inner) for node in found for inner in ast.walk(node)}


def starts(tree: ast.FunctionDef) -> set[int]:
    """Return the lines, by id, that give a first value to what a loop then carries along."""
    loops = [node for node in tree.body if isinstance(node, ast.For | ast.While)]
    carried = {
        node.id
        for loop in loops
        for node in ast.walk(loop)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    return {
        id(line)
        for line in tree.body
        if isinstance(line, ast.Assign)
        and all(isinstance(t, ast.Name) and t.id in carried for t in line.targets)
    }


def recovering(tree: ast.FunctionDef, values: dict[str, Any], forward: list[Any]) -> set[int]:
    """Return all, by id, in the lines that give a name, once, a value that the forward had."""
    stored = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and _is_stored(n)]
    found: set[int] = set()
    for line in tree.body:
        match line:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                if (
                    not isinstance(value, ast.Name | ast.Constant)
                    and stored.count(name) == 1
                    and any(_equal(values.get(name), v) for v in forward)
                ):
                    found |= {id(inner) for inner in ast.walk(value)}
    return found


def _is_stored(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


def _equal(a: Any, b: Any) -> bool:
    if np.ndim(a) == 0 or np.shape(a) != np.shape(b) or np.asarray(a).dtype.kind != "f":
        return False
    return bool(np.allclose(a, b, 1e-9, 1e-12))
