"""Compare numbers that must be equal but for rounding, with their shapes and dtypes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Rounding errors of a short calculation, in units of the last place of its largest entry.
UNITS = 4096


class WrongStep(AssertionError):  # noqa: N818
    """A step of a backward, or of a derivation, that is not equal to what it must be."""


class Row(NamedTuple):
    """One comparison: of what, its shapes and dtypes in words, the largest difference."""

    label: str
    kind: str
    difference: float


class Checked(NamedTuple):
    """Comparisons that all came out equal; shown as a line each."""

    rows: tuple[Row, ...]

    def __repr__(self) -> str:
        width = max(len(row.label) for row in self.rows)
        return "\n".join(
            f"{row.label:<{width}}  {row.kind}: equal, largest difference {row.difference:.1e}"
            for row in self.rows
        )


def same(got: Any, wanted: Any, label: str = "both") -> Checked:
    """Hold one pytree of arrays to another: values to rounding, shapes and dtypes.

    Raises:
        WrongStep: they differ.
    """
    return Checked((Row(label, *compared(label, got, wanted)),))


def compared(label: str, got: Any, wanted: Any) -> tuple[str, float]:
    """Hold one pytree to another; return shapes and dtypes in words, and the largest difference.

    Raises:
        WrongStep: the two differ.
    """
    left, right = jax.tree.leaves(got), jax.tree.leaves(wanted)
    if len(left) != len(right):
        raise WrongStep(f"{label}: {len(left)} arrays, where there must be {len(right)}")
    largest = 0.0
    for a, b in zip(left, right, strict=True):
        a, b = jnp.asarray(a), jnp.asarray(b)
        if a.shape != b.shape or a.dtype != b.dtype:
            raise WrongStep(f"{label}: it is {_kind(a)}; it must be {_kind(b)}")
        if not a.size:
            continue
        x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
        # Infinities are equal or not, and no measure of rounding.
        largest_of_y = float(np.abs(y[np.isfinite(y)]).max(initial=np.finfo(np.float64).tiny))
        allowed = UNITS * _unit(a.dtype) * largest_of_y
        with np.errstate(invalid="ignore"):
            difference = np.where(x == y, 0, np.abs(x - y))
        if not (difference <= allowed).all():  # NaN is not
            at = np.unravel_index(int(np.nan_to_num(difference, nan=np.inf).argmax()), x.shape)
            where = f" at {list(map(int, at))}" if at else ""
            raise WrongStep(f"{label}: {x[at]:.10g}{where}; it must be {y[at]:.10g}")
        largest = max(largest, float(difference.max()))
    kinds = ", ".join(dict.fromkeys(_kind(jnp.asarray(leaf)) for leaf in right))
    return kinds, largest


def _unit(dtype: Any) -> float:
    """The unit in the last place of 1; 0 for integers, which are equal or not."""
    floating = jnp.issubdtype(dtype, jnp.floating)
    return float(jnp.finfo(dtype).eps) if floating else 0.0  # type: ignore[no-untyped-call]


def _kind(array: jax.Array) -> str:
    return f"{array.shape} {array.dtype}"
