"""Changes of a whole line: what must be changed in several places of it, or is written in place."""

import ast
import copy
from collections.abc import Iterator
from typing import Any

from jaxnn.learn.slots import Slot

_REDUCED = ("sum", "mean")


def of_statements(
    tree: ast.FunctionDef, numbers: tuple[float, ...]
) -> Iterator[tuple[str, Slot, Any]]:
    """Yield changes of lines: their kind, the line's place, what stands there instead."""
    for above in ast.walk(tree):
        lines = getattr(above, "body", ())
        for at, line in enumerate(lines if isinstance(lines, list) else ()):
            slot = Slot(above, "body", at)
            match line:
                case ast.Assign(targets=[ast.Subscript() as target], value=value):
                    yield "overwritten", slot, ast.AugAssign(target, ast.Add(), value)
                case ast.AugAssign(target=ast.Subscript(value=array, slice=index), op=ast.Add()):
                    index = copy.deepcopy(index)
                    at_once = ast.parse("np.add.at(0, 0, 0)").body[0]
                    at_once.value.args = [_read(array), index, line.value]  # type: ignore[attr-defined]
                    yield "overwritten", slot, at_once
                case ast.Assign() | ast.Return():
                    yield from (("axis", slot, new) for new in _other_axes(line))
                    yield from (("constant", slot, new) for new in _other_numbers(line, numbers))


def _read(array: ast.expr) -> ast.expr:
    found = copy.deepcopy(array)
    for node in ast.walk(found):
        if isinstance(node, ast.Name | ast.Subscript | ast.Attribute):
            node.ctx = ast.Load()
    return found


def _other_axes(line: Any) -> Iterator[Any]:
    """All the sums and means of a line over another axis."""
    if sum(map(_is_reduced, ast.walk(line))) < 2:
        return
    for axis in (0, -1, None):
        new = copy.deepcopy(line)
        for node in [n for n in ast.walk(new) if isinstance(n, ast.Call) and _is_reduced(n)]:
            over = ast.parse(repr(axis), mode="eval").body
            node.keywords = [k for k in node.keywords if k.arg not in ("axis", "keepdims")]
            node.keywords.append(ast.keyword("keepdims", ast.Constant(True)))
            node.args = [over]
        yield new


def _other_numbers(line: Any, numbers: tuple[float, ...]) -> Iterator[Any]:
    """A number that a line has several times, as one of the forward's."""
    constants = [n.value for n in ast.walk(line) if isinstance(n, ast.Constant)]
    held = [n for n in constants if isinstance(n, int | float) and not isinstance(n, bool)]
    for number in sorted({n for n in held if held.count(n) > 1}):
        for other in numbers:
            new = copy.deepcopy(line)
            for node in ast.walk(new):
                if isinstance(node, ast.Constant) and node.value == number:
                    node.value = other
            yield new


def _is_reduced(node: Any) -> bool:
    """Whether it is x.sum(...) or x.mean(...) of an array."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in _REDUCED
        and not (isinstance(node.func.value, ast.Name) and node.func.value.id in ("jnp", "np"))
    )
