"""Grade a student's functions: which cotangents are right, and why the others may be wrong."""

import inspect
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.learn import explain, misuse, precise
from jaxnn.learn.causes import Case, Cause, sizes_of
from jaxnn.learn.points import (
    SEEDS,
    Leaf,
    Point,
    close,
    in_float64,
    is_floating,
    named,
    point_of,
)
from jaxnn.learn.result import Result, Row
from jaxnn.learn.student import LIMIT, Fault, Work, limited, printing, said, shown
from jaxnn.verify.findings import slice_filled

Function = Callable[..., Any]


def graded(work: Work, limit: float = LIMIT) -> Result:
    """Grade what a student wrote; whatever it does becomes a sentence."""
    started = time.perf_counter()
    about: dict[str, Any] = {"exercise": work.exercise.name, "grade": work.grade}
    with printing() as printed:
        try:
            with limited(limit), said(work.path, limit):
                about |= _graded(work)
        except Fault as fault:
            unwritten = "not written yet" in str(fault)
            about |= {"fault": str(fault), "kind": "not yet" if unwritten else "fault"}
    text = work.printed + shown(printed)
    return Result(**about, printed=text, seconds=time.perf_counter() - started)


def _graded(work: Work) -> dict[str, Any]:
    for name, function in work.functions.items():
        if asked := misuse.found(function):
            text = (
                f"{name} asks {asked} for the derivative; that gives the right numbers, but the "
                "exercise is to write the derivative yourself: use arithmetic alone"
            )
            return {"fault": text, "kind": "autodiff"}
    with in_float64():
        points = [point_of(work.exercise, seed) for seed in SEEDS]
        found = _easy(work, points) if work.grade == "easy" else _pair(work, points)
    if work.grade != "easy" and all(row.status == "right" for row in found):
        found = precise.rows(work) or found
    return {"rows": tuple(found)}


def _easy(work: Work, points: list[Point]) -> list[Row]:
    """Grade the backward one line at a time: the first wrong one first."""
    (name,) = work.functions
    returned = []
    for point in points:
        values = [point.values[n] for n in (point.lines.names if point.lines else ())]
        _check_arity(work, name, len(values) + 1)
        given = call(work, name, *values, point.dout)
        if not isinstance(given, dict):
            raise Fault(f"{name} must return a dictionary of cotangents, as `start` wrote it")
        returned.append({f"d{k}": _array(v) for k, v in given.items()})
    wanted = [blank for blank, _ in work.exercise.blanks()]
    right = [{f"d{k}": np.asarray(p.lines.cotangent(k)) for k in wanted} for p in points if p.lines]
    rows = _rows(work, points, returned, right)
    wrong = [row.name for row in rows if row.status == "wrong"]
    if wrong:
        first = wrong[0]
        rows = [
            Row(
                row.name,
                "after",
                f"it differs too, and may follow from {first} above: look at it after that",
            )
            if row.status == "wrong" and row.name != first
            else row
            for row in rows
        ]
    return rows


def _pair(work: Work, points: list[Point]) -> list[Row]:
    """Grade a forward and its backward."""
    fwd_name, bwd_name = work.exercise.wanted(work.grade)
    returned: list[dict[str, Any]] = []
    saved_all: list[Any] = []
    for point in points:
        if fwd_name in work.functions:
            _check_arity(work, fwd_name, len(point.inputs))
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
        _check_arity(work, bwd_name, 2)
        given = call(work, bwd_name, saved, point.dout)
        returned.append(_by_name(work, bwd_name, given, point))
    right = [{f"d{k}": v for k, v in p.right.items()} for p in points]
    return _rows(work, points, returned, right, saved_all)


def call(work: Work, name: str, *args: Any) -> Any:
    """Call a student's function; one written in NumPy is given arrays of NumPy's, to see damage.

    Raises:
        Fault: it changes what it is given.
    """
    function = work.functions[name]
    if not takes_numpy(function):
        return function(*args)
    copies = jax.tree.map(np.array, args)
    kept = jax.tree.map(np.array, args)
    result = function(*copies)
    pairs = zip(jax.tree.leaves(copies), jax.tree.leaves(kept), strict=True)
    if not all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs):
        changed = [
            parameter
            for parameter, a, b in zip(
                inspect.signature(function).parameters, copies, kept, strict=False
            )
            if any(
                not np.array_equal(x, y)
                for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
            )
        ]
        raise Fault(
            f"{name} changes its argument {changed[0] if changed else ''} in place, so that its "
            "caller's array is damaged: write x = x * 2 for x *= 2, or copy it first"
        )
    return result


def takes_numpy(function: Function) -> bool:
    """Whether a function is written in NumPy and not in JAX."""
    scope = getattr(function, "__globals__", {})
    used = {scope.get(name) for name in _names(getattr(function, "__code__", None))}
    return np in used and not {jnp, jax, jax.lax} & used


def _names(code: Any) -> set[str]:
    return set(code.co_names) if code is not None else set()


def _check_arity(work: Work, name: str, number: int) -> None:
    function = work.functions[name]
    try:
        inspect.signature(function).bind(*range(number))
    except TypeError:
        takes = list(inspect.signature(function).parameters)
        code = getattr(function, "__code__", None)
        line = f"{work.path}, line {code.co_firstlineno}: " if code and work.path else ""
        wanted = list(inspect.signature(_solution(work, name)).parameters)[:number]
        raise Fault(
            f"{line}{name} takes {', '.join(takes) or 'nothing'}; it must take {number} arguments: "
            f"{', '.join(wanted)}"
        ) from None


def _solution(work: Work, name: str) -> Function:
    role = name.rsplit("_", 1)[1]
    return work.exercise.function(role)  # type: ignore[no-any-return]


def _array(value: Any) -> Any:
    """A leaf as NumPy's array; None stays, and so does what is no array."""
    if value is None:
        return None
    array = np.asarray(value)
    return array if array.dtype.kind in "fiubV" else None


def _by_name(work: Work, name: str, given: Any, point: Point) -> dict[str, Any]:
    """What a backward returned, by the names of the cotangents.

    Raises:
        Fault: it has not the form of the inputs.
    """
    inputs = work.exercise.inputs
    if given is None:
        raise Fault(f"{name} is not written yet: it returns nothing")
    if not isinstance(given, tuple | list):
        given = (given,)
    if len(given) != len(inputs):
        flat = jax.tree.leaves(given, is_leaf=lambda x: x is None)
        if len(flat) != len(inputs):
            wanted = ", ".join(
                f"d{i}" if _floats(x) else f"None for {i}"
                for i, x in zip(inputs, point.inputs, strict=True)
            )
            raise Fault(
                f"{name} returns {len(given)} cotangents; it must return {len(inputs)}, one for "
                f"each input: {wanted}"
            )
        given = flat
    found: dict[str, Any] = {}
    for i, value, x in zip(inputs, given, point.inputs, strict=True):
        if not _floats(x):
            continue
        if isinstance(x, dict) and value is not None:
            if not isinstance(value, dict):
                raise Fault(f"{name}: d{i} must be a dictionary like {i}, with a cotangent each")
            if missing := [k for k in x if k not in value]:
                raise Fault(f"{name}: d{i} has no {missing[0]!r}; it must have what {i} has")
        found |= {k: _array(v) for k, v in named(f"d{i}", value).items()}
    return found


def _floats(x: Any) -> bool:
    return all(map(is_floating, jax.tree.leaves(x)))


def _forward_row(work: Work, out: Any, point: Point) -> Row | None:
    """What is wrong with the value of a student's own forward, if anything is."""
    name, right = work.exercise.output, np.asarray(point.out, np.float64)
    look = "Get the forward right first: compare it with the lines of the exercise by numbers."
    given = _array(out)
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
    return f"{where}; most{place}: {given[at]:.6g}, where it must be {right[at]:.6g}"


def _rows(
    work: Work,
    points: list[Point],
    returned: list[dict[str, Any]],
    right: list[dict[str, Leaf]],
    saved: Any = None,
) -> list[Row]:
    rows: dict[str, Row] = {}
    sizes = sizes_of(
        {**work.exercise.module.INPUTS, **work.exercise.module.OUTPUT},
        {
            **dict(zip(work.exercise.inputs, points[0].inputs, strict=True)),
            work.exercise.output: points[0].out,
        },
    )
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
        cases.append(Case(name, wide, truth, points, sizes, returned))
    for case, cause in explain.explained(work, cases, saved) if cases else []:
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
