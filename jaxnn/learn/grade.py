"""Grade a student's functions: which cotangents are right, and why the others may be wrong."""

import time
from typing import Any

import numpy as np

from jaxnn.learn import explain, misuse, precise, sizes
from jaxnn.learn.calls import as_leaf, by_line, by_name, call
from jaxnn.learn.case import Case, Cause, sizes_of
from jaxnn.learn.factors import numbers_of
from jaxnn.learn.guard import LIMIT, Fault, limited, printing, said, shown
from jaxnn.learn.points import (
    SEEDS,
    Leaf,
    Point,
    apart,
    close,
    in_float64,
    point_of,
)
from jaxnn.learn.result import Result, Row
from jaxnn.learn.student import Work
from jaxnn.verify.findings import slice_filled


def graded(work: Work, limit: float = LIMIT) -> Result:
    """Grade what a student wrote; whatever it does becomes a sentence."""
    started = time.perf_counter()
    about: dict[str, Any] = {"exercise": work.exercise.name, "grade": work.grade}
    with printing() as printed:
        try:
            with limited(limit), said(work.path):
                about |= _graded(work)
        except Fault as fault:
            unwritten = "not written yet" in str(fault)
            about |= {"fault": str(fault), "kind": "not yet" if unwritten else fault.kind}
    text = work.printed + shown(printed)
    return Result(**about, printed=text, seconds=time.perf_counter() - started)


def _graded(work: Work) -> dict[str, Any]:
    for name, function in work.functions.items():
        if asked := misuse.found(function):
            raise misuse.NotByHand(name, asked)
    with in_float64():
        points = [point_of(work.exercise, seed) for seed in SEEDS]
        found = _easy(work, points) if work.grade == "easy" else _pair(work, points)
    if all(row.status == "right" for row in found):
        found = (sizes if work.grade == "easy" else precise).rows(work, found)
    notes: tuple[str, ...] = ()
    if work.grade == "bug" and all(row.status == "right" for row in found):
        said = work.exercise.module.BUGS[0][2]
        notes = (f"The mistake that was planted: {said}",)
    return {"rows": tuple(found), "notes": notes}


def _easy(work: Work, points: list[Point]) -> list[Row]:
    """Grade the backward one line at a time."""
    (name,) = work.functions
    written = work.exercise.written
    assert written is not None
    wanted = [blank for blank, _ in work.exercise.blanks()]
    returned = []
    for point in points:
        values = [point.values[n] for n in written.names]
        returned.append(by_line(work, name, call(work, name, *values, point.dout)))
    right = [{f"d{k}": {**p.right, **p.inner}[k] for k in wanted} for p in points]
    return _rows(work, points, returned, right)


def _pair(work: Work, points: list[Point]) -> list[Row]:
    """Grade a forward and its backward."""
    fwd_name, bwd_name = work.exercise.wanted(work.grade)
    returned: list[dict[str, Any]] = []
    saved_all: list[Any] = []
    for point in points:
        if fwd_name in work.functions:
            both = call(work, fwd_name, *point.inputs)
            if both is None:
                raise Fault(f"{fwd_name} is not written yet: it returns nothing")
            if not (isinstance(both, tuple) and len(both) == 2):
                raise Fault(
                    f"{fwd_name} must return two things: {work.exercise.output}, and what the "
                    "backward needs"
                )
            out, saved = both
            if row := _forward_row(work, out, point):
                return [row]
        else:
            _, saved = work.exercise.function("fwd")(*point.inputs)
        saved_all.append(saved)
    for point, saved in zip(points, saved_all, strict=True):
        given = call(work, bwd_name, saved, point.dout)
        returned.append(by_name(work, bwd_name, given, point.inputs))
    right = [{f"d{k}": v for k, v in p.right.items()} for p in points]
    return _rows(work, points, returned, right, saved_all)


def _forward_row(work: Work, out: Any, point: Point) -> Row | None:
    """What is wrong with the value of a student's own forward, if anything is."""
    name, right = work.exercise.output, np.asarray(point.out, np.float64)
    look = "Get the forward right first: compare it with the lines of the exercise by numbers."
    given = as_leaf(name, out)
    if given is None:
        return Row(name, "not yet", "the forward returns None for it")
    if given.shape != right.shape:
        text = f"the forward gives shape {given.shape}; it must be {right.shape}"
        return Row(name, "wrong", text, "forward", look=look)
    if close(given.astype(np.float64), right, 1e-6):
        return None
    return Row(
        name, "wrong", f"the forward's value, {difference(given, right)}", "forward", look=look
    )


def difference(given: Leaf, right: Leaf) -> str:
    """How far two arrays of one shape are apart, and where."""
    with np.errstate(all="ignore"):
        gap = np.nan_to_num(np.abs(given - right), nan=np.inf)
    scale = float(np.abs(right).max(initial=0.0))
    mask = gap > 1e-9 * scale
    at = np.unravel_index(int(gap.argmax()), gap.shape)
    where = slice_filled(mask) or f"{int(mask.sum())} of {mask.size} entries"
    place = f" at {[int(i) for i in at]}" if at else ""
    has, must = apart(float(given[at]), float(right[at]))
    return f"{where}; most{place}: {has}, where it must be {must}"


def _rows(
    work: Work,
    points: list[Point],
    returned: list[dict[str, Any]],
    right: list[dict[str, Leaf]],
    saved: Any = None,
) -> list[Row]:
    rows: dict[str, Row] = {}
    letters = sizes_of(
        {**work.exercise.module.INPUTS, **work.exercise.module.OUTPUT},
        {
            **dict(zip(work.exercise.inputs, points[0].inputs, strict=True)),
            work.exercise.output: points[0].out,
        },
    )
    numbers = numbers_of(work.exercise.module.forward)
    cases: list[Case] = []
    for name in right[0]:
        given = [r.get(name) for r in returned]
        if any(g is None for g in given):
            rows[name] = Row(name, "not yet")
            continue
        wide = [np.asarray(g, np.float64) for g in given]
        truth = [np.asarray(r[name], np.float64) for r in right]
        if all(
            close(g, t) or (not t.any() and not g.any()) or _tiny(g, t, points)
            for g, t in zip(wide, truth, strict=True)
        ):
            rows[name] = Row(name, "right")
            continue
        cases.append(Case(name, wide, truth, points, letters, returned, numbers))
    if cases and work.grade == "easy":
        explained, after = explain.line_by_line(work, cases, points, returned)
        rows |= {name: Row(name, "after", why) for name, why in after.items()}
    else:
        explained = explain.explained(work, cases, saved) if cases else []
    for case, cause in explained:
        at = 0 if not close(case.given[0], case.right[0]) else 1
        same_shape = case.given[at].shape == case.right[at].shape
        where = difference(case.given[at], case.right[at]) if same_shape else ""
        cause = cause or Cause("", "", "")
        rows[case.name] = Row(case.name, "wrong", where, cause.kind, cause.text, cause.look)
    return [rows[name] for name in right[0]]


def _tiny(given: Leaf, truth: Leaf, points: list[Point]) -> bool:
    """Whether both are rounding of what must be 0 (by the scale of the other cotangents)."""
    if given.shape != truth.shape or not np.isfinite(given).all():
        return False
    scale = max(float(np.abs(v).max(initial=0.0)) for v in points[0].right.values())
    return bool(np.abs(truth).max(initial=0.0) < 1e-12 * scale > np.abs(given).max(initial=0.0))
