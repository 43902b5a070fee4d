"""Why a hand-written gradient is wrong, where one of the usual mistakes explains every entry.

Each explanation predicts the wrong gradient from the right one; it is given only where the
prediction is exact to rounding, and none is given where none is.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxnn.verify.compare import EXACT
from jaxnn.verify.extent import filled
from jaxnn.verify.point import Point
from jaxnn.verify.programs import Program
from jaxnn.verify.replay import Match, replay
from jaxnn.verify.report import Diagnosis, LeafReport
from jaxnn.verify.values import largest
from jaxnn.verify.width import EPSILON

Leaf = np.ndarray[Any, Any]
Numbers = list[tuple[float, str]]
READINGS = 4  # of one factor, at most: a configuration may hold a number many times


class Gradients(NamedTuple):
    """What explanations are looked for in: the comparable leaves, by path.

    Attributes:
        manual: the hand-written gradient in float64.
        autodiff: the right one.
        params: the parameters.
        wrong: which entries differ.
        numbers: what a factor may turn out to be, each with what it is.
        program: what computed both.
    """

    manual: dict[str, Leaf]
    autodiff: dict[str, Leaf]
    params: dict[str, Leaf]
    wrong: dict[str, Leaf]
    numbers: Numbers
    program: Program


def explained(leaves: list[LeafReport], point: Point) -> tuple[list[LeafReport], tuple[str, ...]]:
    """The leaves, the wrong ones with what explains them, and why the cause was not looked for.

    One mistake in the backward pass that explains every leaf is believed before several, unless
    one cause explains each leaf by itself; that only one index is wrong is the last resort. Where
    finite differences clear the hand-written gradient there is nothing to explain.
    """
    accused = [leaf for leaf in leaves if not (leaf.worst and leaf.worst.guilty == "autodiff")]
    found = _gradients(accused, point)
    wrong = [path for path, mask in found.wrong.items() if mask.any()]
    if not wrong:
        return leaves, ()
    by_leaf = _by_leaf(found)
    unexplained: tuple[str, ...] = ()
    if len({d.cause for d in by_leaf.values()}) != 1 or len(by_leaf) < len(wrong):
        try:
            matches = replay(point, found.manual)
        except Exception as error:  # whatever a loss may be made of; the verdict stands without
            first = (str(error).splitlines() or ["no message"])[0]
            unexplained = (
                f"mistakes could not be replayed in the loss's backward pass: "
                f"{type(error).__name__}: {first}",
            )
            matches = []
        ranked = [_ranked(match, found.numbers) for match in matches]
        if ranked:
            best = min(ranked, key=lambda pair: pair[0])[1]
            by_leaf = dict.fromkeys(wrong, best)
        else:
            by_leaf = {**_single_index(found), **by_leaf}
    return [
        dataclasses.replace(leaf, diagnosis=leaf.diagnosis or by_leaf.get(leaf.path))
        for leaf in leaves
    ], unexplained


def _gradients(leaves: list[LeafReport], point: Point) -> Gradients:
    """What there is to explain: the leaves that have numbers on both sides."""
    numbers = {path: i for i, path in enumerate(point.problem.paths)}
    compared = [
        leaf
        for leaf in leaves
        if leaf.difference is not None
        and np.isfinite(point.here.autodiff[numbers[leaf.path]]).all()
    ]
    manual = {leaf.path: point.here.manual[leaf.path] for leaf in compared}
    autodiff = {leaf.path: point.here.autodiff[numbers[leaf.path]] for leaf in compared}
    params = {
        leaf.path: np.asarray(point.floats[numbers[leaf.path]], np.float64) for leaf in compared
    }
    shapes = [x.shape for x in point.rest]
    return Gradients(
        manual,
        autodiff,
        params,
        {
            leaf.path: np.abs(manual[leaf.path] - autodiff[leaf.path]) > leaf.tolerance
            for leaf in compared
        },
        _numbers(point.problem.settings, shapes, params),
        point.here.program,
    )


def _ranked(match: Match, numbers: Numbers) -> tuple[int, Diagnosis]:
    """A match in words, and how telling it is: less is more."""
    mistake, c = match
    what = mistake.site.text
    if c == 0:
        # Where all that goes in is one number, a wrong derivative is a factor too.
        ranks = {"detached": 0, "wrong derivative": 6}
        rank = 1 if mistake.cut else ranks.get(mistake.cause, 4)
        return rank, Diagnosis(mistake.cause, f"{mistake.text} {what}")
    if abs(c + 1) <= 100 * EXACT:
        return 2, Diagnosis("sign", f"the sign of the cotangent is wrong at {what}")
    if abs(c - 2) <= 100 * EXACT:
        return 3, Diagnosis("doubled term", f"the cotangent counts twice at {what}")
    diagnosis = _factor(c, numbers)
    rank = 5 if _told(c, numbers) else 7
    return rank, Diagnosis(diagnosis.cause, f"{diagnosis.text}, the cotangent at {what}")


def _by_leaf(found: Gradients) -> dict[str, Diagnosis]:
    """For each wrong leaf the first explanation that fits it by itself, where one does."""
    return {
        path: diagnosis
        for path, wrong in found.wrong.items()
        if wrong.any() and (diagnosis := next(_explanations(path, found), None))
    }


def _explanations(path: str, found: Gradients) -> Iterator[Diagnosis]:
    """The explanations of one leaf, most specific first."""
    m, a, p, wrong = (
        getattr(found, name)[path] for name in ("manual", "autodiff", "params", "wrong")
    )

    def same(prediction: Leaf, where: Any = ...) -> bool:
        gap = largest((prediction - m)[where]) if prediction.shape == m.shape else np.inf
        return bool(gap <= EXACT * max(largest(m), largest(a)))

    if not m.any():
        yield Diagnosis("zeroed slice", "every entry is zero")
    # One number is always a multiple of another: only a telling multiple of it says something.
    c = _ratio(m, a)
    telling = np.count_nonzero(a) > 1
    if c is not None and same(c * a) and (telling or c in (-1.0, 2.0) or _told(c, found.numbers)):
        yield _factor(c, found.numbers)
    if m.ndim >= 2:
        for axes in itertools.islice(itertools.permutations(range(m.ndim)), 1, 24):
            if same(a.transpose(axes)):
                yield Diagnosis(
                    "transpose", f"axes permuted: it is transpose{axes} of the right one"
                )
            elif same(a.transpose(axes).reshape(m.shape)):
                yield Diagnosis("transpose", f"transpose{axes} of the right one, reshaped to fit")
        for axis in range(m.ndim):
            if order := _reordered(np.moveaxis(m, axis, 0), np.moveaxis(a, axis, 0)):
                yield Diagnosis(order[0], order[1].format(axis=axis))
    for other, b in found.autodiff.items():
        if other == path or b.size != m.size or not found.wrong[other].any():
            continue
        theirs = found.manual[other].reshape(a.shape)
        exchanged = largest(theirs - a) <= EXACT * max(largest(theirs), largest(a))
        if exchanged and same(b.reshape(m.shape)):
            yield Diagnosis("swapped leaves", f"it is the gradient of {other}: leaves swapped")
    coefficient = _ratio(m - a, p)
    if m.size > 1 and np.ptp(p) > 0 and coefficient and same(a + coefficient * p):
        missing = coefficient < 0
        yield Diagnosis(
            "parameter term",
            f"a term {abs(coefficient):.4g} times the parameter itself is "
            + (
                "missing: a regulariser forgotten?" if missing else "too much: a regulariser twice?"
            ),
        )
    narrow = found.program.rounded_to
    if narrow != "float64" and largest(m - a) <= 64 * EPSILON[narrow] * largest(a):
        yield Diagnosis("rounding", f"rounded to {narrow} inside, by a cast of its own")
    place = filled(wrong)
    if wrong.sum() > 1:
        c = _ratio(m[wrong], a[wrong])
        if c == 0.0 or not m[wrong].any():
            yield Diagnosis("zeroed slice", f"the wrong entries are zero: {place or 'a mask?'}")
        elif c is not None and same(c * a, wrong):
            diagnosis = _factor(c, found.numbers)
            yield Diagnosis(diagnosis.cause, f"{diagnosis.text}, in {place or 'the wrong entries'}")
    for axis in range(m.ndim):
        norms, products = (
            (x * a).sum(axis=tuple(i for i in range(m.ndim) if i != axis), keepdims=True)
            for x in (a, m)
        )
        scaled = a * np.divide(products, norms, out=np.ones_like(norms), where=norms > 0)
        entries = (a != 0).sum(axis=tuple(i for i in range(m.ndim) if i != axis))
        if m.ndim > 1 and (entries[entries > 0] > 1).all() and same(scaled):
            text = f"each slice along axis {axis} is multiplied by a number of its own"
            yield Diagnosis("factor", text)


def _single_index(found: Gradients) -> dict[str, Diagnosis]:
    """For each leaf that is wrong at one index of an axis only: that."""
    diagnoses = {}
    for path, wrong in found.wrong.items():
        for axis, size in enumerate(wrong.shape):
            at = np.flatnonzero(wrong.any(axis=tuple(i for i in range(wrong.ndim) if i != axis)))
            if len(at) == 1 and size > 2:
                text = f"only index {at[0]} of axis {axis} is wrong: one class or index left out?"
                diagnoses[path] = Diagnosis("index", text)
    return diagnoses


def _reordered(m: Leaf, a: Leaf) -> tuple[str, str] | None:
    """Whether the slices along the first axis are the right ones in another order."""
    if len(m) < 2:
        return None
    scale = EXACT * max(largest(m), largest(a))
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


def _ratio(m: Leaf, a: Leaf) -> float | None:
    """The c that makes c a closest to m; None where a is zero."""
    norm = float((a * a).sum())
    return float((m * a).sum()) / norm if norm > 0 and np.isfinite(norm) else None


def _factor(c: float, numbers: Numbers) -> Diagnosis:
    """A constant factor, in words; one of -1 is a sign."""
    if abs(c + 1) <= EXACT:
        return Diagnosis("sign", "the sign is wrong")
    text, readings = f"{c:.6g} times the right one", _told(c, numbers)
    if not readings:
        return Diagnosis("factor", text)
    causes, words = zip(*readings, strict=True)
    return Diagnosis(
        causes[0],
        text + (": beside the sign, " if c < 0 else ": ") + "; or ".join(words[:READINGS]),
    )


def _told(c: float, numbers: Numbers) -> list[tuple[str, str]]:
    """What a factor may be, cause and words: a setting or size, its inverse, root, n - 1 for n, 2.

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
    return [(cause, words) for value, cause, words in forms if abs(abs(c) - value) <= EXACT * value]


def _numbers(settings: Numbers, args: Any, params: dict[str, Leaf]) -> Numbers:
    """Each size once, batches first, then dimensions and numbers of entries; then settings."""
    sizes: dict[int, str] = {}
    for shape in args:
        if shape:
            sizes.setdefault(shape[0], "the batch size")
    for path, p in params.items():
        for size in p.shape:
            sizes.setdefault(size, f"a dimension of {path}")
    for shape in args:
        for size in shape:
            sizes.setdefault(size, "a dimension of an argument")
        for i in range(2, len(shape) + 1):
            sizes.setdefault(int(np.prod(shape[:i])), "a product of an argument's dimensions")
    for path, p in params.items():
        sizes.setdefault(p.size, f"the number of entries of {path}")
    return [(n, what) for n, what in (*sizes.items(), *settings) if n not in (0, 1)]
