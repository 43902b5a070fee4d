"""Where the wrong entries of an array are: in words, and as a coarse picture."""

from typing import Any

import numpy as np

# A picture of a leaf's differences has at most so many rows and columns.
CELLS = 32


def filled(mask: np.ndarray[Any, Any]) -> str:
    """The slice that a mask's true entries fill, in words; empty if they fill none, or one entry.

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
    """A coarse picture of an array as a matrix: the largest value of each cell."""
    matrix = values.reshape(-1, values.shape[-1]) if values.ndim else values.reshape(1, 1)
    for axis in (0, 1):
        starts = np.unique(np.linspace(0, matrix.shape[axis], CELLS, endpoint=False).astype(int))
        matrix = np.maximum.reduceat(matrix, starts, axis=axis)
    return tuple(tuple(row) for row in matrix.tolist())
