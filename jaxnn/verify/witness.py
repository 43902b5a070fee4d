"""Finite differences in the witness box: do they confirm both gradients, or one, or neither?"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxnn.verify.compare import first_index
from jaxnn.verify.finite_differences import Slope
from jaxnn.verify.report import Disagreement, LeafReport, Status

# A leaf of up to this many entries is witnessed entry by entry, a larger one along random lines.
FEW_ENTRIES = 32
LINES = 2
# So many of the entries that differ most are put to the witness one by one.
WORST_ENTRIES = 16


def testify(
    leaf: LeafReport,
    manual: np.ndarray[Any, Any],
    autodiff: np.ndarray[Any, Any],
    slope: Callable[[np.ndarray[Any, Any]], Slope],
) -> LeafReport:
    """Ask finite differences: of the whole leaf, and of the entries that differ most."""
    autodiff = np.where(np.isfinite(autodiff), autodiff, manual)
    if leaf.wrong:
        return _accuse(leaf, manual, autodiff, slope)
    if manual.size <= FEW_ENTRIES:
        directions = [_unit(manual.shape, i) for i in range(manual.size)]
    else:
        rng = np.random.default_rng(0)
        directions = [rng.normal(size=manual.shape) for _ in range(LINES)]
    messages, kinks, silent = list(leaf.messages), 0, 0
    for direction in directions:
        s, value = slope(direction), float((autodiff * direction).sum())
        kinks += s.kink
        silent += not s.resolves(value)
        one = np.count_nonzero(direction) == 1
        where = f"along entry {list(first_index(direction != 0))}" if one else "along a random line"
        if s.kink and one and not s.admits(value):
            messages.append(
                f"{where} both gradients give {value:.10g}, outside the slopes left and right "
                f"of a kink there, {s.left:.6g} and {s.right:.6g}"
            )
        elif not s.kink and np.isfinite(s.error) and not s.agrees_with(value):
            messages.append(
                f"{where} both gradients give {value:.10g}, but finite differences "
                f"{s.centred:.10g} +- {s.error:.1g}: is there a custom derivative rule or a "
                "stop_gradient in the loss?"
            )
    status: Status = "inconclusive" if messages else "pass"
    if silent == len(directions) > 0:
        messages.append(
            "finite differences could not testify: in every direction they meet a kink, a loss "
            "that is not finite, or a slope too small for them"
        )
    return dataclasses.replace(
        leaf, status=status, directions=len(directions), kinks=kinks, messages=tuple(messages)
    )


def _accuse(
    leaf: LeafReport,
    manual: np.ndarray[Any, Any],
    autodiff: np.ndarray[Any, Any],
    slope: Callable[[np.ndarray[Any, Any]], Slope],
) -> LeafReport:
    """Of a leaf whose gradients differ: whose entries do finite differences confirm?"""
    order = np.argsort(-np.abs(manual - autodiff), axis=None)[: min(leaf.wrong, WORST_ENTRIES)]
    found = []
    for flat in order:
        at = tuple(int(i) for i in np.unravel_index(flat, manual.shape))
        s, m, a = slope(_unit(manual.shape, flat)), float(manual[at]), float(autodiff[at])
        by_manual, by_autodiff = s.agrees_with(m), s.agrees_with(a)
        if not np.isfinite(s.error):
            verdict = "finite differences cannot tell: the loss is not finite around this point"
        elif s.admits(m):
            verdict = "a kink: the hand-written value is a subgradient, as good as autodiff's"
        elif by_autodiff and not by_manual:
            verdict = "finite differences side with autodiff: the hand-written gradient is wrong"
        elif by_manual and not by_autodiff:
            verdict = "finite differences side with the hand-written gradient: autodiff is wrong"
        elif by_manual:
            verdict = "finite differences are too coarse to tell which of the two is wrong"
        elif s.kink:
            verdict = "a kink: the hand-written value is not between the slopes on its two sides"
        else:
            verdict = "finite differences confirm neither: both look wrong"
        found.append(Disagreement(at, m, a, s.centred, s.error, s.left, s.right, s.kink, verdict))
        if not s.admits(m):
            break
    messages = list(leaf.messages)
    if s.admits(m) and leaf.wrong > len(found):
        messages.append(f"all {len(found)} entries looked at lie at kinks; the others may not")
    doubtful = leaf.status == "inconclusive" and by_manual
    return dataclasses.replace(
        leaf,
        status="inconclusive" if s.admits(m) or doubtful else "fail",
        directions=len(found),
        kinks=sum(d.kink for d in found),
        worst=found[-1],
        messages=tuple(messages),
    )


def _unit(shape: tuple[int, ...], flat: int) -> np.ndarray[Any, Any]:
    """The direction of one entry."""
    direction = np.zeros(shape)
    direction.flat[flat] = 1.0
    return direction
