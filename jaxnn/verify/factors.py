"""What a factor may be, in words: a setting, a size, or what is made of them in haste."""

import itertools
from typing import Any

import numpy as np

from jaxnn.verify.compare import EXACT
from jaxnn.verify.findings import Diagnosis

Leaf = np.ndarray[Any, Any]
Numbers = list[tuple[float, str]]
KNOWN = 1e-5  # a factor that is known less well is many of these by chance
READINGS = 4  # of one factor, at most: a configuration may hold a number many times


def ratio(m: Leaf, a: Leaf) -> float | None:
    """The c that makes c a closest to m, where both are known; None where a is zero."""
    known = np.isfinite(m) & np.isfinite(a)
    m, a = m[known], a[known]
    norm = float((a * a).sum())
    return float((m * a).sum()) / norm if norm > 0 and np.isfinite(norm) else None


def factor(c: float, numbers: Numbers, exact: float = EXACT) -> Diagnosis | None:
    """A constant factor, in words; one of -1 is a sign, one that cannot be told from 1 nothing.

    `exact` is how well it is known.
    """
    if abs(c + 1) <= exact:
        return Diagnosis("sign", "the sign is wrong")
    if abs(abs(c) - 1) <= 2 * exact:
        return None
    text = f"{c:.6g}" if abs(abs(c) - 1) > 1e-5 else f"{c:.10g}"
    text, readings = f"{text} times the right one", told(c, numbers, exact)
    if not readings:
        return Diagnosis("factor", text)
    causes, words = zip(*readings, strict=True)
    return Diagnosis(
        causes[0],
        text + (": beside the sign, " if c < 0 else ": ") + "; or ".join(words[:READINGS]),
    )


def told(c: float, numbers: Numbers, exact: float = EXACT) -> list[tuple[str, str]]:
    """What a factor may be: a setting or size, its inverse, 2, root, n - 1 for n: cause, words.

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
    close = min(exact, KNOWN)
    return [(cause, words) for value, cause, words in forms if abs(abs(c) - value) <= close * value]


def is_setting(c: float, settings: Numbers) -> bool:
    """Whether a factor is a setting, or one's inverse."""
    return any(
        abs(abs(c) - value) <= EXACT * value for n, _ in settings if n for value in (n, 1 / n)
    )


def numbers_of(settings: Numbers, shapes: Any, params: dict[str, Leaf]) -> Numbers:
    """Settings first; then each size once, batches first, then dimensions, numbers of entries."""
    sizes: dict[int, str] = {}
    for shape in shapes:
        if shape:
            sizes.setdefault(shape[0], "the batch size")
    for path, p in params.items():
        for size in p.shape:
            sizes.setdefault(size, f"a dimension of {path}")
    for shape in shapes:
        for size in shape:
            sizes.setdefault(size, "a dimension of an argument")
        for i in range(2, len(shape) + 1):
            sizes.setdefault(int(np.prod(shape[:i])), "a product of an argument's dimensions")
    for path, p in params.items():
        sizes.setdefault(p.size, f"the number of entries of {path}")
    return [(n, what) for n, what in itertools.chain(settings, sizes.items()) if n not in (0, 1)]
