"""Explain one leaf of a wrong gradient by itself, with no look at how it was computed.

A factor in words is a setting, a size, or what is made of them in haste.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxnn.verify.causes.evidence import Gradients, Numbers
from jaxnn.verify.comparison import EXACT
from jaxnn.verify.findings import Diagnosis, Leaf, slice_filled
from jaxnn.verify.trace import EPSILON
from jaxnn.verify.values import largest

WELL_KNOWN = 1e-5  # a factor that is known less well is many of these by chance
READINGS = 4  # of one factor, at most: a configuration may hold a number many times


def closest_multiple(m: Leaf, a: Leaf) -> float | None:
    """Return the c that makes c a closest to m, where both are known; None where a is zero."""
    known = np.isfinite(m) & np.isfinite(a)
    m, a = m[known], a[known]
    norm = float((a * a).sum())
    return float((m * a).sum()) / norm if norm > 0 and np.isfinite(norm) else None


def factor(c: float, numbers: Numbers, exact: float = EXACT) -> Diagnosis | None:
    """Put a constant factor in words; -1 is a sign, what cannot be told from 1 is nothing.

    `exact` is how well it is known.
    """
    if abs(c + 1) <= exact:
        return Diagnosis("sign", "the sign is wrong")
    if abs(abs(c) - 1) <= 2 * exact:
        return None
    text = f"{c:.6g}" if abs(abs(c) - 1) > 1e-5 else f"{c:.10g}"
    text, readings = f"{text} times the right one", readings_of(c, numbers, exact)
    if not readings:
        return Diagnosis("factor", text)
    causes, words = zip(*readings, strict=True)
    return Diagnosis(
        causes[0],
        text + (": beside the sign, " if c < 0 else ": ") + "; or ".join(words[:READINGS]),
    )


def readings_of(c: float, numbers: Numbers, exact: float = EXACT) -> list[tuple[str, str]]:
    """List what a factor may be: a setting or size, its inverse, root: cause, words.

    One number may be several of these, and be it by chance: only what is true of it is said.
    """
    forms: list[tuple[float, str, str]] = []
    for n, what in numbers:
        k = f"{n:.15g}"
        forms += [(n, "factor", f"{k} is {what}"), (1 / n, "factor", f"1/{k}, and {k} is {what}")]
    forms += [
        (2, "factor", "counted twice, or the 2 of a square"),
        (0.5, "factor", "halved, or the 2 of a square forgotten"),
    ]
    for n, what in numbers:
        if n > 1 and n == int(n):
            k, one_less, against = f"{n:.15g}", f"{n - 1:.15g}", "n against n-1"
            forms += [
                (n**0.5, "factor", f"the square root of {k}, {what}"),
                (n**-0.5, "factor", f"1 / the square root of {k}, {what}"),
                (n / (n - 1), against, f"{k}/{one_less}, which is n / (n - 1) for n = {k}, {what}"),
                ((n - 1) / n, against, f"{one_less}/{k}, which is (n - 1) / n for n = {k}, {what}"),
            ]
    close = min(exact, WELL_KNOWN)
    return [(cause, words) for value, cause, words in forms if abs(abs(c) - value) <= close * value]


def is_setting(c: float, settings: Numbers) -> bool:
    """Tell whether a factor is a setting, or one's inverse."""
    return any(
        abs(abs(c) - value) <= EXACT * value for n, _ in settings if n for value in (n, 1 / n)
    )


MOST_KEPT = 24  # sets of axes that slices are taken along


def explanations(path: str, found: Gradients) -> Iterator[Diagnosis]:
    """Yield the explanations of one leaf, most specific first."""
    m, a, p, wrong = (
        getattr(found, name)[path] for name in ("manual", "autodiff", "params", "wrong")
    )

    def same(prediction: Leaf, where: Any = ...) -> bool:
        gap = largest((prediction - m)[where]) if prediction.shape == m.shape else np.inf
        return bool(gap <= found.exact * max(largest(m), largest(a)))

    if not m.any():
        yield Diagnosis("zeroed slice", "every entry is zero")
    # One number is always a multiple of another: only a telling multiple of it says something.
    c = closest_multiple(m, a)
    telling = np.count_nonzero(a) > 1
    if (
        c is not None
        and same(c * a)
        and (telling or c in (-1.0, 2.0) or readings_of(c, found.numbers))
    ):
        yield from _told(factor(c, found.numbers, found.exact))
    complete = bool(np.isfinite(a).all())
    if m.ndim >= 2 and complete:
        for axes in itertools.islice(itertools.permutations(range(m.ndim)), 1, 24):
            if same(a.transpose(axes)):
                yield Diagnosis(
                    "transpose", f"axes permuted: it is transpose{axes} of the right one"
                )
            elif same(a.transpose(axes).reshape(m.shape)):
                yield Diagnosis("transpose", f"transpose{axes} of the right one, reshaped to fit")
        for axis in range(m.ndim):
            moved = np.moveaxis(m, axis, 0), np.moveaxis(a, axis, 0)
            if order := _reordered(moved[0], moved[1], found.exact):
                yield Diagnosis(order[0], order[1].format(axis=axis))
    yield from _of_another_leaf(path, found)
    yield from _handed_back(path, found)
    for what, value in (("itself", p), ("'s signs", np.sign(p))):
        c = closest_multiple(m - a, value)
        if m.size > 1 and np.ptp(value) > 0 and c and same(a + c * value):
            name = f"the parameter{' ' * (what == 'itself')}{what}"
            kind = "a regulariser" if what == "itself" else "an L1 regulariser"
            verb = (
                f"is missing: {kind} forgotten?"
                if c < 0
                else f"is too much: {kind} on {path} too, or twice?"
            )
            yield Diagnosis("parameter term", f"a term {abs(c):.4g} times {name} {verb}")
    narrow = found.narrow
    if narrow != "float64" and largest(m - a) <= 64 * EPSILON[narrow] * largest(a):
        yield Diagnosis("rounding", f"rounded to {narrow} inside, by a cast of its own")
    place = slice_filled(wrong)
    if wrong.sum() > 1:
        c = closest_multiple(m[wrong], a[wrong])
        if not m[wrong].any():
            yield Diagnosis("zeroed slice", f"the wrong entries are zero: {place or 'a mask?'}")
        elif c is not None and same(c * a, wrong):
            for d in _told(factor(c, found.numbers, found.exact)):
                yield Diagnosis(d.cause, f"{d.text}, in {place or 'the wrong entries'}")
    known = np.where(np.isfinite(a), a, 0.0)
    kept = [k for n in range(1, m.ndim) for k in itertools.combinations(range(m.ndim), n)]
    for axes in kept[:MOST_KEPT]:
        others = tuple(i for i in range(m.ndim) if i not in axes)
        norms, products = ((x * known).sum(axis=others, keepdims=True) for x in (known, m))
        scaled = a * np.divide(products, norms, out=np.ones_like(norms), where=norms > 0)
        entries = (known != 0).sum(axis=others)
        if (entries[entries > 0] > 1).all() and same(scaled):
            along = f"axis {axes[0]}" if len(axes) == 1 else f"axes {axes}"
            text = f"each slice along {along} is multiplied by a number of its own"
            yield Diagnosis("factor", text)


def _told(diagnosis: Diagnosis | None) -> Iterator[Diagnosis]:
    if diagnosis is not None:
        yield diagnosis


def _of_another_leaf(path: str, found: Gradients) -> Iterator[Diagnosis]:
    """Leaves swapped, in a ring too, and copies of another leaf's gradient."""
    m, a = found.manual[path], found.autodiff[path]
    if np.ptp(m) == 0:  # one number, as often as need be, is no copy of anything
        return
    for other, b in found.autodiff.items():
        if other == path or b.size != m.size:
            continue
        theirs = b.reshape(m.shape)
        if not np.isfinite(theirs).all() or (
            largest(theirs - m) > found.exact * max(largest(m), largest(a))
        ):
            continue
        if not found.wrong[other].any():
            yield Diagnosis("copied leaf", f"it is a copy of the gradient of {other}")
            continue
        got = found.manual[other].reshape(a.shape)
        exchanged = largest(got - a) <= found.exact * max(largest(got), largest(a))
        if exchanged or _in_ring(path, found):
            yield Diagnosis("swapped leaves", f"it is the gradient of {other}: leaves swapped")
        else:
            yield Diagnosis("copied leaf", f"it is the gradient of {other}")


def _in_ring(path: str, found: Gradients) -> bool:
    """Whether another leaf is given the gradient of this one."""
    a = found.autodiff[path]
    return any(
        other != path
        and m.size == a.size
        and largest(m.reshape(a.shape) - a) <= found.exact * max(largest(m), largest(a))
        for other, m in found.manual.items()
    )


def _handed_back(path: str, found: Gradients) -> Iterator[Diagnosis]:
    """What came in, in place of a gradient: a parameter, or an argument."""
    m = found.manual[path]
    if m.size < 2 or np.ptp(m) == 0:  # constants are alike by chance
        return
    for i, x in enumerate(found.arguments):
        alike = x.shape == m.shape and np.isfinite(x).all()
        if alike and largest(x - m) <= found.exact * largest(m) and found.weighs(i):
            words = "the cotangent is handed on as it came: the derivative is left out"
            yield Diagnosis("derivative left out", words)
    arguments = [("an argument, as it came in", x) for x in found.arguments]
    others = [(f"the parameter {q}", x) for q, x in found.params.items() if q != path]
    given = [("the parameter itself", found.params[path]), *others, *arguments]
    for what, x in given:
        for sign, words in ((1, ""), (-1, "minus ")):
            alike = x.shape == m.shape and np.isfinite(x).all()
            if alike and largest(sign * x - m) <= found.exact * largest(m):
                yield Diagnosis("forward value", f"it is {words}{what}, not a gradient")


def _reordered(m: Leaf, a: Leaf, exact: float) -> tuple[str, str] | None:
    """Whether the slices along the first axis are the right ones in another order."""
    if len(m) < 2:
        return None
    scale = exact * max(largest(m), largest(a))
    flat_m, flat_a = m.reshape(len(m), -1), a.reshape(len(a), -1)
    if len(m) > 512 or flat_a.shape[1] < 2:
        return None
    order = [int(np.argmin(np.abs(flat_a - row).max(axis=1, initial=0.0))) for row in flat_m]
    if len(set(order)) < len(order) or np.abs(flat_a[order] - flat_m).max() > scale:
        return None
    n = len(order)
    if order == list(range(n)):
        return None
    if order == list(range(n))[::-1]:
        return "flip", "reversed along axis {axis}"
    for shift in (1, -1):
        if order == [(i - shift) % n for i in range(n)] and n > 2:
            return "shifted", f"shifted by {shift} along axis {{axis}}"
    return "permuted", f"the slices along axis {{axis}} are in the order {order[:12]}"
