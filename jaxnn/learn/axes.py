"""Other axes and other slices of an expression."""

import ast
from collections.abc import Iterator
from typing import Any

_REDUCTIONS = ("sum", "mean", "max", "min", "prod", "flip", "cumsum", "softmax", "concatenate")
_AXES: tuple[Any, ...] = (0, 1, -1, 2, -2, None, (0, 1), (0, 2), (1, 2), (0, 1, 2))


def other_axes(e: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    """Yield the same call over other axes."""
    attr = getattr(e.func, "attr", "")
    if attr not in _REDUCTIONS:
        return
    owner = getattr(e.func, "value", None)
    is_module = isinstance(owner, ast.Name) and owner.id in ("jnp", "np", "numpy", "nn")
    at = 1 if is_module else 0
    for axis in _AXES:
        new = ast.parse(repr(axis), mode="eval").body
        keywords = [k for k in e.keywords if k.arg != "axis"]
        if len(e.args) > at:
            args = [*e.args[:at], new, *e.args[at + 1 :]]
            yield "axis", ast.Call(e.func, args, keywords)
        else:
            yield "axis", ast.Call(e.func, e.args, [*keywords, ast.keyword("axis", new)])


def other_slices() -> Iterator[ast.expr]:
    """Yield slices that are off by one, reversed, or of everything."""
    for lower, upper, step in ((None, -1, None), (1, None, None), (None, None, -1), (None,) * 3):
        parts = [None if p is None else ast.Constant(p) for p in (lower, upper, step)]
        yield ast.Slice(*parts)
