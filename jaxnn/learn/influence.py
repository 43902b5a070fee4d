"""Which cotangents each expression of a backward has a part in, and what shapes its names have."""

import ast
import sys
from collections.abc import Iterator
from typing import Any


def outputs(tree: ast.FunctionDef, inputs: tuple[str, ...]) -> dict[int, set[str]]:
    """Return, for each expression's node (by id), the inputs whose cotangent it has a part in.

    An input that is a dictionary, whose cotangent is written out as one, has a name for each key,
    as params['w']. Names are followed through all statements, whatever their order: a name that
    has several values has a part in what any of them has.
    """
    of_name: dict[str, set[str]] = {}
    written = {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    pairs = [pair for node in ast.walk(tree) for pair in _assigned(node)]
    of_node: dict[int, set[str]] = {}
    before = -1
    while before != (before := sum(map(len, of_name.values()))):
        for node in ast.walk(tree):
            if isinstance(node, ast.Return) and node.value is not None:
                _returned(node.value, inputs, written, of_name, of_node)
        for targets, value in pairs:
            if isinstance(value, ast.Dict) and any(t in written for t in targets):
                continue
            parts = set().union(*(of_name.get(name, set()) for name in targets))
            _give(value, parts, of_name, of_node)
    return of_node


def _assigned(node: ast.AST) -> Iterator[tuple[list[str], ast.expr]]:
    """Names, and the expression that they get a value from."""
    if isinstance(node, ast.Assign):
        names = [n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)]
        pairs = list(zip(node.targets, [node.value], strict=False))
        target, value = pairs[0]
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for t, v in zip(target.elts, value.elts, strict=False):
                yield [n.id for n in ast.walk(t) if isinstance(n, ast.Name)], v
        else:
            yield names, value
    elif isinstance(node, ast.AugAssign | ast.AnnAssign) and node.value is not None:
        yield [n.id for n in ast.walk(node.target) if isinstance(n, ast.Name)], node.value
    elif isinstance(node, ast.For):
        yield [n.id for n in ast.walk(node.target) if isinstance(n, ast.Name)], node.iter
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        owner = getattr(node.value.func, "value", None)
        if isinstance(owner, ast.Name):  # dx.append(...)
            yield [owner.id], node.value


def _returned(
    value: ast.expr,
    inputs: tuple[str, ...],
    written: dict[str, ast.Dict],
    of_name: dict[str, set[str]],
    of_node: dict[int, set[str]],
) -> None:
    parts = value.elts if isinstance(value, ast.Tuple | ast.List) else [value]
    if len(parts) != len(inputs):
        _give(value, set(inputs), of_name, of_node)
        return
    for name, part in zip(inputs, parts, strict=True):
        known = written.get(part.id) if isinstance(part, ast.Name) else part
        if isinstance(known, ast.Dict):
            for key, item in zip(known.keys, known.values, strict=True):
                label = f"[{key.value!r}]" if isinstance(key, ast.Constant) else ""
                _give(item, {name + label}, of_name, of_node)
        else:
            _give(part, {name}, of_name, of_node)
    of_node[id(value)] = set(inputs)


def _give(
    node: ast.AST, parts: set[str], of_name: dict[str, set[str]], of_node: dict[int, set[str]]
) -> None:
    for inner in ast.walk(node):
        of_node.setdefault(id(inner), set()).update(parts)
        if isinstance(inner, ast.Name):
            of_name.setdefault(inner.id, set()).update(parts)


def locals_of(run: Any, name: str) -> dict[str, Any]:
    """Call, and return what the names of a function of that name were when it returned."""
    found: dict[str, Any] = {}

    def look(frame: Any, event: str, _: Any) -> None:
        if event == "return" and frame.f_code.co_name == name:
            found.update(frame.f_locals)

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        run()
    finally:
        sys.setprofile(before)
    return found
