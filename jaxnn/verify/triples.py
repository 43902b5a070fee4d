"""Compare an array with a reference of the same width and the truth in float64."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxnn.verify.comparison import RELATIVE_TOLERANCE, allowed_error
from jaxnn.verify.findings import Leaf, LeafReport, Precision, Status, heat, slice_filled
from jaxnn.verify.trace import EPSILON
from jaxnn.verify.values import first_index, largest


class Triple(NamedTuple):
    """One array three times.

    Attributes:
        got: the implementation's.
        low: the reference's, in the dtypes given.
        truth: the reference's in float64.
        dtype: of the implementation's.
        floating: whether it holds real numbers.
    """

    got: Leaf
    low: Leaf
    truth: Leaf
    dtype: str
    floating: bool


def compare_with_reference(
    leaf: LeafReport,
    here: Triple,
    epsilon: float,
    noise: float,
    nearby: Callable[[], list[Triple]],
) -> LeafReport:
    """Compare one array with the truth.

        error <= 8 (the reference's error + epsilon scale)

    One point decides that it is near enough; that it is not takes the median of several, against
    the largest of the reference's errors: it may be exact by luck.

    Args:
        leaf: its name, shape and dtype.
        here: the array, the reference's in the same dtype, and the truth.
        epsilon: the spacing at 1 that it is held to.
        noise: how far rounding moves the reference, where float64 is no truth; else 0.
        nearby: the same at other points.
    """
    if here.got.shape != here.truth.shape:
        message = f"has shape {here.got.shape}, the reference {here.truth.shape}"
        return dataclasses.replace(leaf, messages=(message,))
    if not here.floating:
        off = here.got != here.truth
        if not off.any():
            return dataclasses.replace(leaf, status="pass", difference=0.0)
        at = first_index(off)
        message = f"{here.got[at]} at {list(at)}, the reference {here.truth[at]}"
        return dataclasses.replace(
            leaf, messages=(message,), where=slice_filled(off), wrong=int(off.sum()), difference=1.0
        )
    lost = ~np.isfinite(here.got) & np.isfinite(here.truth)
    if lost.any():
        at = first_index(lost)
        message = (
            f"{here.got[at]} at {list(at)} ({lost.sum()} such entries), where the reference gives "
            f"{here.truth[at]:.6g}: a masked place, or an overflow?"
        )
        return dataclasses.replace(leaf, messages=(message,), where=slice_filled(lost))
    scale = largest(here.truth)

    def errors(triple: Triple) -> tuple[float, float]:
        known = np.isfinite(triple.truth)
        mine, theirs = (
            float(np.abs(x - triple.truth)[known].max(initial=0.0))
            for x in (triple.got, triple.low)
        )
        return mine, max(theirs, noise) if np.isfinite(theirs) else np.inf

    def precision(mine: float, theirs: float) -> Precision:
        exact = RELATIVE_TOLERANCE if epsilon == EPSILON["float64"] else 0.0
        allowed = allowed_error(theirs, epsilon, scale) + (leaf.declared + exact) * scale
        return Precision(mine, theirs, allowed)

    found = precision(*errors(here))
    if not found.manual <= found.allowed:
        mine, theirs = zip(*[errors(triple) for triple in (here, *nearby())], strict=True)
        found = precision(float(np.median(mine)), max(theirs))
    known = np.isfinite(here.truth)
    differences = np.where(known, np.abs(here.got - np.where(known, here.truth, 0.0)), 0.0)
    leaf = dataclasses.replace(
        leaf,
        scale=scale,
        difference=largest(differences),
        tolerance=found.allowed,
        sees=found.allowed / scale if scale else None,
        precision=found,
    )
    messages = []
    if not known.all():
        at = first_index(~known)
        messages.append(
            f"the reference gives {here.truth[at]} at {list(at)} ({(~known).sum()} such entries): "
            "not judged there"
        )
    if found.manual <= found.allowed:
        status: Status = "pass" if known.any() or not known.size else "inconclusive"
        return dataclasses.replace(leaf, status=status, messages=tuple(messages))
    mask = differences > found.allowed
    at = first_index(differences == differences.max())
    where = f" at {list(at)}" if at else ""
    messages.append(
        f"off by {found.manual:.1e}, the reference in {leaf.dtype} by {found.autodiff:.1e}: "
        f"{here.got[at]:.10g}{where}, in float64 {here.truth[at]:.10g}"
    )
    return dataclasses.replace(
        leaf,
        wrong=int(mask.sum()),
        where=slice_filled(mask),
        heat=heat(differences / (scale or 1.0)) if differences.size else (),
        messages=tuple(messages),
    )
