"""Finite differences in the witness box: do they confirm both gradients, or one, or neither?

Forward-mode differentiation is heard beside them where the two gradients differ.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from jaxnn.verify.compare import first_index
from jaxnn.verify.finite_differences import Slope
from jaxnn.verify.report import Disagreement, LeafReport, Status

# A leaf of up to this many entries is witnessed entry by entry, a larger one along a random line.
FEW_ENTRIES = 8
# So many of the entries that differ most are put to the witness one by one, while at kinks.
WORST_ENTRIES = 64

Guilty = Literal["hand-written", "autodiff", ""]
Direction = np.ndarray[Any, Any]


def testify(
    leaf: LeafReport,
    manual: np.ndarray[Any, Any],
    autodiff: np.ndarray[Any, Any],
    slope: Callable[[Direction], Slope],
    forward: Callable[[Direction], float | None],
    seed: int,
) -> LeafReport:
    """Ask finite differences: of the whole leaf, and of the entries that differ most.

    Args:
        leaf: compared already.
        manual: the hand-written gradient of the leaf in float64.
        autodiff: that of reverse-mode differentiation.
        slope: the loss's slope along a direction in this leaf.
        forward: the same by forward-mode differentiation; None where a rule refuses it.
        seed: of the random line.
    """
    autodiff = np.where(np.isfinite(autodiff), autodiff, manual)
    if leaf.wrong:
        return _accuse(leaf, manual, autodiff, slope, forward)
    if manual.size <= FEW_ENTRIES:
        directions = [_unit(manual.shape, i) for i in range(manual.size)]
    else:
        directions = [np.random.default_rng(seed).normal(size=manual.shape)]
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
    slope: Callable[[Direction], Slope],
    forward: Callable[[Direction], float | None],
) -> LeafReport:
    """Of a leaf whose gradients differ: whose entries do the witnesses confirm?"""
    differences = np.abs(manual - autodiff)
    order = np.argsort(-differences, axis=None)[: min(leaf.wrong, WORST_ENTRIES)]
    status, messages = leaf.status, list(leaf.messages)
    asked = 0
    for flat in order:
        asked += 1
        at = tuple(int(i) for i in np.unravel_index(flat, manual.shape))
        unit = _unit(manual.shape, flat)
        s, f, m, a = slope(unit), forward(unit), float(manual[at]), float(autodiff[at])
        verdict, guilty = _vote(s, f, m, a, leaf.tolerance)
        worst = Disagreement(
            at, m, a, f, s.centred, s.error, s.left, s.right, s.kink, s.ladder, verdict, guilty
        )
        if not s.admits(m):
            break
    if s.admits(m):
        status = "pass"
        messages.append(
            f"{leaf.wrong} entries lie at kinks: the hand-written values there are subgradients, "
            "as good as autodiff's (an error of the smooth part, below the jump, would not show)"
        )
        if leaf.wrong > asked:
            status = "inconclusive"
            messages[-1] = f"all {asked} entries looked at lie at kinks; the others may not"
    elif s.kink or (leaf.status == "inconclusive" and guilty != "hand-written"):
        status = "inconclusive"
    else:
        status = "fail"
    return dataclasses.replace(
        leaf,
        status=status,
        directions=asked,
        kinks=(asked - 1) + s.kink,
        worst=worst,
        messages=tuple(messages),
    )


def _vote(
    s: Slope, forward: float | None, manual: float, autodiff: float, tolerance: float
) -> tuple[str, Guilty]:
    """Who is wrong about one entry, in words, and which side surely is."""
    by_manual, by_autodiff = s.agrees_with(manual), s.agrees_with(autodiff)
    if not np.isfinite(s.error):
        return "finite differences cannot tell: the loss is not finite around this point", ""
    if s.admits(manual):
        return "a kink: the hand-written value is a subgradient, as good as autodiff's", ""
    if by_autodiff and not by_manual:
        return (
            "finite differences side with autodiff: the hand-written gradient is wrong",
            "hand-written",
        )
    if by_manual and not by_autodiff:
        return (
            "finite differences side with the hand-written gradient: autodiff is wrong",
            "autodiff",
        )
    if by_manual:
        coarse = "finite differences are too coarse to tell which of the two is wrong"
        if forward is not None and abs(forward - autodiff) <= tolerance:
            return f"{coarse}; forward mode sides with autodiff's reverse mode", ""
        if forward is not None and abs(forward - manual) <= tolerance:
            return f"{coarse}; forward mode sides with the hand-written gradient", ""
        return coarse, ""
    if s.kink:
        return "a kink: the hand-written value is not between the slopes on its two sides", ""
    return "finite differences confirm neither: both look wrong", "hand-written"


def _unit(shape: tuple[int, ...], flat: int) -> Direction:
    """The direction of one entry."""
    direction = np.zeros(shape)
    direction.flat[flat] = 1.0
    return direction
