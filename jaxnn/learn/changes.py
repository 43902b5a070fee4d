"""Small changes of a function's syntax tree: each undoes a mistake of one kind."""

import ast
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxnn.learn.axes import other_axes, other_slices
from jaxnn.learn.kinds import KINDS
from jaxnn.learn.slots import Slot, indices, recovering, slots, starts
from jaxnn.learn.statements import of_statements

_ORDER = {kind: number for number, kind in enumerate(KINDS)}
_EXTREMES = {"argmax": "argmin", "argmin": "argmax", "max": "min", "min": "max"}
_NUMBERS = (0, 1, 2, 3, 4, -1, -2, 0.5, 1.5, -0.5)


def changes(
    tree: ast.FunctionDef,
    values: dict[str, Any],
    parts: dict[int, set[str]],
    wrong: set[str],
    forward: list[Any],
    numbers: tuple[float, ...],
) -> list[tuple[str, Slot, ast.expr]]:
    """Return small changes, the likeliest first.

    Args:
        tree: of the backward.
        values: what its names were when it returned; one is put in another's place only if it has
            the same shape.
        parts: which cotangents each expression has a part in, by its node's id.
        wrong: the cotangents that are wrong; what has no part in them is left as it is, and what
            has a part in no right one is tried first.
        forward: values of the forward; a line that gives one of them again is right.
        numbers: factors and exponents of the forward.
    """
    values = {n: v for n, v in values.items() if isinstance(v, np.ndarray | int | float)}
    names = list(values)
    found = []
    of_places, of_starts = indices(tree), starts(tree)
    right = recovering(tree, values, forward)
    for slot in slots(tree):
        if id(slot.get()) in right:
            continue
        mine = parts.get(id(slot.get()), set())
        some = {w for w in wrong for m in mine if w == m or w.startswith(f"{m}[")}
        if mine and not some:
            continue
        rank = (some != wrong) + any(not any(w.startswith(m) for w in wrong) for m in mine)
        found += [
            (rank, _kind(kind, new, values, id(slot.get()) in of_places), slot, new)
            for kind, new in _changed(slot, slot.get(), names, id(slot.above) in of_starts)
            if _fits(slot.get(), new, values) and _is_mask(kind, new, values)
        ]
    for kind, slot, new in of_statements(tree, numbers):
        mine = parts.get(id(slot.get().value), wrong)
        if mine & {w.split("[")[0] for w in wrong} | mine & wrong:
            found.append((0, kind, slot, new))
    found.sort(key=lambda change: (change[0], _ORDER[change[1]]))
    return [(kind, slot, new) for _, kind, slot, new in found]


def _is_mask(kind: str, new: Any, values: dict[str, Any]) -> bool:
    """Whether what is put to zero by a condition on a value is a part of it, and not the whole."""
    if kind != "unmasked":
        return True
    positive = np.asarray(values[new.right.left.id]) > 0
    return bool(positive.any() and not positive.all())


def _kind(kind: str, new: Any, values: dict[str, Any], is_index: bool) -> str:
    """The kind of a change; a factor that is a mask has its own, and so has what is in an index."""
    if is_index and kind in ("constant", "extra term", "sign", "size"):
        return "index"
    other = values.get(getattr(new.right, "id", "")) if kind == "missing factor" else None
    return "unmasked" if getattr(other, "dtype", np.dtype(float)).kind == "b" else kind


def _fits(old: ast.expr, new: ast.expr, values: dict[str, Any]) -> bool:
    """Whether what stands for a name, or by which it is multiplied, leaves its shape."""
    if not isinstance(old, ast.Name) or old.id not in values:
        return not isinstance(new, ast.Name) or isinstance(values.get(new.id), np.ndarray)
    mine = values[old.id]
    others = {n.id for n in ast.walk(new) if isinstance(n, ast.Name)} - {old.id}
    for other in others & set(values):
        theirs = values[other]
        if isinstance(mine, np.ndarray) != isinstance(theirs, np.ndarray):
            return False
        if isinstance(new, ast.Name) and np.shape(mine) != np.shape(theirs):
            return False
        if not _joins(np.shape(mine), np.shape(theirs)):
            return False
    return True


@functools.cache
def _joins(mine: tuple[int, ...], theirs: tuple[int, ...]) -> bool:
    """Whether the second is broadcast to the first."""
    try:
        return np.broadcast_shapes(mine, theirs) == mine
    except ValueError:
        return False


def _changed(
    slot: Slot, e: Any, names: list[str], is_start: bool
) -> Iterator[tuple[str, ast.expr]]:
    whole = isinstance(slot.above, ast.Assign | ast.Return | ast.Tuple)
    if is_start:
        yield "start", ast.BinOp(e, ast.Mult(), ast.Constant(0))
    match e:
        case ast.Call(func=ast.Attribute(value=owner, attr="sum" | "mean" as attr)):
            other = "mean" if attr == "sum" else "sum"
            yield "mean", ast.Call(ast.Attribute(owner, other, ast.Load()), e.args, e.keywords)
            for name in names if attr == "mean" else ():
                weighted = ast.BinOp(ast.Name(name, ast.Load()), ast.Mult(), owner)
                yield (
                    "weights",
                    ast.Call(ast.Attribute(weighted, other, ast.Load()), e.args, e.keywords),
                )
        case ast.Call(func=ast.Attribute(value=owner, attr=str() as attr)) if attr in _EXTREMES:
            other = _EXTREMES[attr]
            yield (
                "extreme",
                ast.Call(ast.Attribute(owner, other, ast.Load()), e.args, e.keywords),
            )
        case ast.Subscript(value=owner, slice=ast.Constant(value=int())):
            summed = ast.Attribute(owner, "sum", ast.Load())
            yield "one of many", ast.Call(summed, [ast.Constant(0)], [])
        case ast.Call(func=ast.Name(id="reversed"), args=[steps]):
            yield "time", steps
        case ast.Call(func=ast.Name(id="range")) if isinstance(slot.above, ast.For):
            yield "time", ast.Call(ast.Name("reversed", ast.Load()), [e], [])
        case ast.Call(func=ast.Name(id="len"), args=[array]):
            for axis in (-1, 1):
                shape = ast.Attribute(array, "shape", ast.Load())
                yield "size", ast.Subscript(shape, ast.Constant(axis), ast.Load())
        case ast.Subscript(value=ast.Attribute(attr="shape") as shape):
            for axis in (0, -1, 1):
                yield "size", ast.Subscript(shape, ast.Constant(axis), ast.Load())
        case ast.Call(func=ast.Attribute(attr="exp" | "log" | "sign" | "abs" | "tanh"), args=[x]):
            yield "function", x
        case ast.Call(func=ast.Attribute(value=owner, attr="set" | "add" as attr)):
            other = "add" if attr == "set" else "set"
            yield (
                "overwritten",
                ast.Call(ast.Attribute(owner, other, ast.Load()), e.args, e.keywords),
            )
    if isinstance(e, ast.Call):
        yield from other_axes(e)
    match e:
        case ast.BinOp(left=a, op=ast.Add(), right=b):
            yield "sign", ast.BinOp(a, ast.Sub(), b)
            yield from (("extra term", a), ("extra term", b))
        case ast.BinOp(left=a, op=ast.Sub(), right=b):
            yield "sign", ast.BinOp(a, ast.Add(), b)
            yield "sign", ast.BinOp(b, ast.Sub(), a)
            yield from (("extra term", a), ("extra term", b))
        case ast.BinOp(left=a, op=ast.Mult(), right=b):
            yield from (("too much", a), ("too much", b))
            yield "too much", ast.BinOp(a, ast.Div(), b)
        case ast.BinOp(left=a, op=ast.Div(), right=b):
            yield "too much", a
            yield "too much", ast.BinOp(a, ast.Mult(), b)
        case ast.BinOp(left=a, op=ast.MatMult(), right=b):
            yield "transpose", ast.BinOp(b, ast.MatMult(), a)
            for left, right in ((_t(a), b), (a, _t(b)), (_t(a), _t(b)), (b, _t(a)), (_t(b), a)):
                yield "transpose", ast.BinOp(left, ast.MatMult(), right)
        case ast.UnaryOp(op=ast.USub() | ast.Invert() as op, operand=a):
            yield ("sign" if isinstance(op, ast.USub) else "mask"), a
        case ast.Attribute(attr="T", value=a):
            yield "transpose", a
        case ast.Compare(left=a, ops=[op], comparators=[b]):
            for other_op in (ast.Gt(), ast.Lt(), ast.GtE(), ast.LtE(), ast.Eq(), ast.NotEq()):
                if type(other_op) is not type(op):
                    yield "mask", ast.Compare(a, [other_op], [b])
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            if not isinstance(slot.above, ast.keyword | ast.Slice | ast.Subscript):
                for n in (*_NUMBERS, number + 1, number - 1, number * 2, number / 2):
                    if n != number:
                        yield "constant", ast.Constant(n)
        case ast.Slice():
            yield from (("time", new) for new in other_slices())
        case ast.Call(func=ast.Attribute(attr="where"), args=[c, a, b]):
            yield "mask", ast.Call(e.func, [c, b, a], e.keywords)
        case ast.Tuple() if isinstance(slot.above, ast.Return):
            yield from (("swapped", ast.Tuple(parts, ast.Load())) for parts in _exchanged(e.elts))
        case ast.List():
            yield from (("exchanged", ast.List(parts, ast.Load())) for parts in _exchanged(e.elts))
        case ast.Subscript(value=a):
            yield "time", a
        case ast.Name(ctx=ast.Load(), id=used) if used in names:
            rest = ast.BinOp(ast.Constant(1), ast.Sub(), e)
            yield "own factor", ast.BinOp(e, ast.Mult(), rest)
            for name in names:
                if name != used:
                    yield "wrong value", ast.Name(name, ast.Load())
                    yield "missing factor", ast.BinOp(e, ast.Mult(), ast.Name(name, ast.Load()))
            yield "slope", ast.BinOp(e, ast.Mult(), e)
            exp = ast.Attribute(ast.Name("jnp", ast.Load()), "exp", ast.Load())
            yield "function", ast.Call(exp, [e], [])
            yield "slope", ast.BinOp(ast.Constant(1), ast.Sub(), e)
            yield "mask", ast.UnaryOp(ast.Invert(), e)
    if isinstance(e, ast.BinOp | ast.Name | ast.Call | ast.Subscript) and not _is_index(slot):
        if whole and not isinstance(e, ast.Tuple):
            yield "sign", ast.UnaryOp(ast.USub(), e)
        for name in names:
            given = ast.Name(name, ast.Load())
            if whole and not isinstance(e, ast.Name):
                yield "missing factor", ast.BinOp(e, ast.Mult(), given)
            if whole or isinstance(e, ast.Call):
                yield "missing term", ast.BinOp(given, ast.Add(), e)
            if isinstance(e, ast.BinOp):
                yield "wrong value", given
            if whole:
                positive = ast.Compare(given, [ast.Gt()], [ast.Constant(0)])
                yield "unmasked", ast.BinOp(e, ast.Mult(), positive)
        if whole or isinstance(e, ast.BinOp):
            for axis in (0, -1, 1):
                summed = ast.Attribute(e, "sum", ast.Load())
                keep = ast.keyword("keepdims", ast.Constant(True))
                yield "broadcast", ast.Call(summed, [ast.Constant(axis)], [keep])


def _exchanged(parts: list[Any]) -> Iterator[list[Any]]:
    for i, j in itertools.combinations(range(len(parts)), 2):
        other = list(parts)
        other[i], other[j] = other[j], other[i]
        yield other


def _is_index(slot: Slot) -> bool:
    return isinstance(slot.above, ast.Subscript) and slot.field == "slice"


def _t(node: ast.expr) -> ast.expr:
    return ast.Attribute(node, "T", ast.Load())
