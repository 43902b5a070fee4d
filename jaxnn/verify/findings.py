"""Hold what was found of one leaf: how far off, where (in words and as a picture), why."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

Leaf = np.ndarray[Any, Any]
Status = Literal["pass", "fail", "inconclusive", "skipped"]


@dataclass(frozen=True)
class Diagnosis:
    """A likely cause: one of a few words for programs, and a line for people.

    Where no cause is known, "location" is followed by the place where it begins to be wrong.
    """

    cause: str
    text: str

    @property
    def heading(self) -> str:
        """What the line for people is."""
        return "where it begins" if self.cause == "location" else "likely cause"


@dataclass(frozen=True)
class Disagreement:
    """One entry where the two gradients differ, and what the witnesses say of it.

    Attributes:
        index: where in the leaf.
        manual: the hand-written value.
        autodiff: automatic differentiation's value, in reverse mode.
        forward: its value in forward mode; None where a custom rule refuses that.
        slope: the centred difference; `error` its estimated error; `left` and `right` the
            one-sided differences.
        kink: whether left and right tend to different limits.
        ladder: the step lengths tried and the centred difference at each.
        verdict: who is wrong, in words.
        guilty: "hand-written", "autodiff", or "" where nobody surely is.
    """

    index: tuple[int, ...]
    manual: float
    autodiff: float
    forward: float | None
    slope: float
    error: float
    left: float
    right: float
    kink: bool
    ladder: tuple[tuple[float, float], ...]
    verdict: str
    guilty: Literal["hand-written", "autodiff", ""] = ""


@dataclass(frozen=True)
class Precision:
    """Errors of a leaf in the working dtype against float64, as its largest over the entries.

    Attributes:
        manual: of the hand-written gradient.
        autodiff: of automatic differentiation.
        allowed: what the hand-written gradient may be off by.
    """

    manual: float
    autodiff: float
    allowed: float


@dataclass(frozen=True)
class LeafReport:
    """The comparison of one leaf of the parameters, in float64.

    Attributes:
        path: as Python would write it after the parameters' name.
        shape: of the leaf.
        dtype: of the leaf as given, before it was lifted to float64.
        status: "pass", "fail", "inconclusive" or "skipped".
        scale: the largest absolute entry of autodiff's gradient.
        difference: the largest absolute difference between the two gradients; None where they
            could not be compared.
        tolerance: the difference allowed, computed from the scale and the rounding measured.
        sees: the smallest relative error of the leaf (of its scale) that would not have passed;
            None where the leaf is all zero or was not compared.
        wrong: the number of entries that differ by more.
        where: the slice that the wrong entries fill, as Python would index it.
        directions: how many directions the finite-difference witness tried.
        kinks: in how many of them left and right slopes differ, so that it could not tell.
        worst: the entry that differs most, where any does by more than the tolerance.
        precision: the errors in the working dtype; None where that is float64.
        diagnosis: a likely cause, where one fits.
        heat: the differences as a fraction of the scale, the largest of each cell of a coarse
            picture of the leaf; empty where nothing is wrong.
        messages: what else there is to say.
        declared: the relative tolerance declared for the leaf; 0 where none was.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    status: Status
    scale: float = 0.0
    difference: float | None = None
    tolerance: float = 0.0
    sees: float | None = None
    wrong: int = 0
    where: str = ""
    directions: int = 0
    kinks: int = 0
    worst: Disagreement | None = None
    precision: Precision | None = None
    diagnosis: Diagnosis | None = None
    heat: tuple[tuple[float, ...], ...] = ()
    messages: tuple[str, ...] = ()
    declared: float = 0.0

    def saying(self, *messages: str, **changes: Any) -> "LeafReport":
        """Return it with further messages, and with other changes."""
        return replace(self, messages=(*self.messages, *messages), **changes)


# A picture of a leaf's differences has at most so many rows and columns.
CELLS = 32


def slice_filled(mask: np.ndarray[Any, Any]) -> str:
    """Name the slice that a mask's true entries fill; empty if they fill none, or one entry.

    A slice is a product of index sets, one per axis, as in `[:, 3]`; of a square matrix also its
    diagonal, or one side of it.
    """
    if mask.sum() <= 1 or mask.ndim == 0:
        return ""
    if mask.all():
        return "every entry"
    axes = range(mask.ndim)
    sets = [np.flatnonzero(mask.any(axis=tuple(a for a in axes if a != axis))) for axis in axes]
    if mask[np.ix_(*sets)].all():
        names = (
            ("row", "column") if mask.ndim == 2 else tuple(f"axis {axis}, index" for axis in axes)
        )
        index = ", ".join(_indices(s, n) for s, n in zip(sets, mask.shape, strict=True))
        fixed = [
            f"{names[axis]} {s[0]}" for axis, s in enumerate(sets) if len(s) == 1 < mask.shape[axis]
        ]
        return f"[{index}]" + (f" ({'; '.join(fixed)})" if fixed and mask.ndim > 1 else "")
    if mask.ndim == 2 and mask.shape[0] == mask.shape[1]:
        square = np.ones(mask.shape, bool)
        for shape, name in (
            (np.eye(len(mask), dtype=bool), "the diagonal"),
            (~np.eye(len(mask), dtype=bool), "everything off the diagonal"),
            (np.triu(square), "the upper triangle"),
            (np.triu(square, 1), "the strict upper triangle"),
            (np.tril(square), "the lower triangle"),
            (np.tril(square, -1), "the strict lower triangle"),
        ):
            if (mask == shape).all():
                return name
    return ""


def _indices(found: np.ndarray[Any, Any], size: int) -> str:
    """One axis of a slice, as Python would index it."""
    if len(found) == size:
        return ":"
    if len(found) == 1:
        return str(found[0])
    step = int(found[1] - found[0])
    if (np.diff(found) == step).all():
        return f"{found[0]}:{found[-1] + 1}" + (f":{step}" if step > 1 else "")
    return str(found.tolist()) if len(found) <= 6 else f"{len(found)} of {size}"


def heat(values: np.ndarray[Any, Any]) -> tuple[tuple[float, ...], ...]:
    """Return a coarse picture of an array as a matrix: the largest value of each cell."""
    matrix = values.reshape(-1, values.shape[-1]) if values.ndim else values.reshape(1, 1)
    for axis in (0, 1):
        starts = np.unique(np.linspace(0, matrix.shape[axis], CELLS, endpoint=False).astype(int))
        matrix = np.maximum.reduceat(matrix, starts, axis=axis)
    return tuple(tuple(row) for row in matrix.tolist())


class Gap(NamedTuple):
    """The entry of a leaf that differs most, in multiples of what it may differ by."""

    excess: float
    entry: str
    got: float
    wanted: float


def gaps(
    got: Mapping[str, Leaf], wanted: Mapping[str, Leaf], allowed: Mapping[str, float]
) -> dict[str, Gap]:
    """Return the leaves that differ by more than is allowed; NaN differs from everything."""
    found = {}
    for path, leaf in wanted.items():
        with np.errstate(invalid="ignore"):  # infinity minus infinity is NaN
            excess = np.array(np.abs(got[path] - leaf) / allowed[path])  # no scalar of NumPy's
        excess[~np.isfinite(excess)] = np.inf
        if (excess > 1).any():
            at = np.unravel_index(int(excess.argmax()), leaf.shape)
            name = f"{path}{list(map(int, at))}" if at else path
            found[path] = Gap(float(excess[at]), name, float(got[path][at]), float(leaf[at]))
    return found


def worst_gap(found: dict[str, Gap]) -> str:
    """Return the largest of the gaps, in words."""
    gap = max(found.values())
    others = f" ({len(found) - 1} more leaves differ)" if len(found) > 1 else ""
    return f"{gap.got:.10g} at {gap.entry}, not {gap.wanted:.10g}{others}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).splitlines() or ["no message"])[0]


def described(error: BaseException, at: str = "") -> str:
    """Say an error's type, where it was raised, and the first line of its message."""
    return f"{type(error).__name__}{at}: {first_line(error)}"
