"""Why one cotangent is wrong: the usual mistakes, each of which must explain every entry."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxnn.learn.case import Case, Cause
from jaxnn.learn.factors import few_digits, number_in_words
from jaxnn.learn.points import Leaf, close
from jaxnn.learn.shapes import of_shape


def of_one(case: Case) -> Iterator[Cause]:
    """Yield what explains one cotangent by itself, the plainest first."""
    name, given, right = case.name, case.given, case.right
    if given[0].shape != right[0].shape:
        yield from of_shape(case)
        return
    if not all(np.isfinite(m).all() for m in given):
        yield _not_finite(case)
        return
    if not any(m.any() for m in given):
        yield Cause(
            "zero",
            f"{name} is zero throughout",
            "Zeros say that the output does not depend on it, and it does: find the lines of the "
            "forward that use it.",
        )
        return
    if cause := _factor(case):
        yield cause
    yield from _given_back(case)
    yield from _reordered(case)
    yield from _masked(case)
    yield from few_digits(case)


def ratio(m: Leaf, a: Leaf) -> float | None:
    """The number that the second is multiplied by in the first, or None."""
    square = float((a * a).sum())
    if square == 0:
        return None
    c = float((m * a).sum()) / square
    return c if c and close(m, c * a) else None


def _factor(case: Case) -> Cause | None:
    found = [ratio(m, a) for m, a in zip(case.given, case.right, strict=True)]
    if None in found or case.right[0].size == 0:
        return None
    first, second = found[0], found[-1]
    cause = number_in_words(first or 0.0, case, second)
    return cause and cause._replace(text=f"{case.name} {cause.text}")


def _given_back(case: Case) -> Iterator[Cause]:
    """What came in, or another cotangent, in place of this one."""
    name = case.name
    for other in case.points[0].right:
        if f"d{other}" != name and case.fits(
            _if_shape(point.right[other], given)
            for point, given in zip(case.points, case.given, strict=True)
        ):
            theirs = case.returned[0].get(f"d{other}")
            mine = case.right[0]
            swapped = theirs is not None and np.shape(theirs) == mine.shape
            swapped = swapped and close(np.asarray(theirs, np.float64), mine)
            yield Cause(
                "swapped" if swapped else "other cotangent",
                f"{name} is d{other}" + (f", and d{other} is {name}" if swapped else ""),
                "Return the cotangents in the order of the forward's inputs.",
            )
    for value in case.points[0].values:
        for sign, words in ((1, ""), (-1, "minus ")):
            if case.fits(
                _if_shape(sign * point.values[value], given)
                for point, given in zip(case.points, case.given, strict=True)
            ):
                if value.startswith("d"):
                    yield Cause(
                        "handed on",
                        f"{name} is {words}{value}, handed on as it came",
                        "Is there no line between the two that changes it? Each line of the "
                        "forward multiplies the cotangent by its derivative.",
                    )
                else:
                    yield Cause(
                        "forward value",
                        f"{name} is {words}the value of {value}, no cotangent",
                        "A cotangent depends on what comes back from the output: return "
                        f"{name}, not a value of the forward.",
                    )


def _if_shape(value: Any, like: Leaf) -> Leaf | None:
    array = np.asarray(value)
    return array if array.shape == like.shape and array.dtype.kind == "f" else None


def _reordered(case: Case) -> Iterator[Cause]:
    right, name = case.right, case.name
    for axis in range(right[0].ndim):
        if right[0].shape[axis] < 2:
            continue
        if case.fits(np.flip(r, axis) for r in right):
            yield Cause(
                "time",
                f"{name} is right but reversed along axis {axis}",
                "The backward goes through the steps from last to first; put what it gives back "
                "into the order of the forward.",
            )
        for shift in (1, -1):
            if right[0].shape[axis] > 2 and case.fits(np.roll(r, shift, axis) for r in right):
                yield _off_by_one(name, axis, shift)
            if case.fits(_moved(r, shift, axis) for r in right):
                yield _off_by_one(name, axis, shift)
    for axes in itertools.islice(itertools.permutations(range(right[0].ndim)), 1, 24):
        if case.fits(r.transpose(axes).reshape(r.shape) for r in right):
            yield Cause(
                "transpose",
                f"{name} has the right entries in the order of its transpose",
                "Was it reshaped where it must be transposed? A reshape keeps the order in memory.",
            )


def _masked(case: Case) -> Iterator[Cause]:
    """Every entry is right, or zero where it must not be, or not zero where it must be."""
    lost = kept = same = 0
    for given, right in reversed(list(zip(case.given, case.right, strict=True))):
        gap = np.abs(given - right) > 1e-9 * np.abs(right).max()
        if (gap & (given != 0) & (right != 0)).any():
            return
        if gap.any():  # what is counted is of the first point that differs, as shown beside it
            lost = int((gap & (given == 0)).sum())
            kept = int((gap & (right == 0)).sum())
            same = int((~gap & (right != 0)).sum())
    if same and kept:
        yield Cause(
            "mask",
            f"{case.name} is right where it has a value and must have one; "
            + f"{kept} {'entry has' if kept == 1 else 'entries have'} one that must be zero"
            + (f", and {lost} are zero that must not be" if lost else ""),
            "Is it the very mask of the forward? One that is drawn anew is another one. Which "
            "entries reached the output, and which get nothing back?",
        )


def _moved(array: Leaf, shift: int, axis: int) -> Leaf:
    moved = np.roll(array, shift, axis)
    edge = [slice(None)] * array.ndim
    edge[axis] = slice(0, 1) if shift > 0 else slice(-1, None)
    moved[tuple(edge)] = 0
    return moved


def _off_by_one(name: str, axis: int, shift: int) -> Cause:
    where = "late" if shift > 0 else "early"
    return Cause(
        "time",
        f"{name} is right but one place too {where} along axis {axis}",
        "Write down which value each step used: the one before it, or its own?",
    )


def _not_finite(case: Case) -> Cause:
    given = case.given[0] if not np.isfinite(case.given[0]).all() else case.given[-1]
    at = np.argwhere(~np.isfinite(given))
    first = given[tuple(at[0])]
    where = f"at {at[0].tolist()}" if given.ndim else ""
    what = "NaN" if np.isnan(first) else "infinite"
    return Cause(
        "nan",
        f"{case.name} is {what} {where} ({len(at)} of {given.size} entries)".replace("  ", " "),
        "NaN comes from 0/0, from infinity minus infinity or from the logarithm or root of a "
        "negative number; infinity from a division by 0, log 0 or an exp that overflows. Print "
        "what you divide by, and what goes into log, sqrt and exp.",
    )
