"""Ask finite differences whether they confirm both gradients, or one, or neither.

Forward-mode differentiation is heard beside them where the two gradients differ, and at kinks the
gradients close by.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from jaxnn.verify.findings import Disagreement, Leaf, LeafReport
from jaxnn.verify.finite_differences import Slope
from jaxnn.verify.nearby import Slopes
from jaxnn.verify.values import first_index, largest

# A leaf of up to this many entries is witnessed entry by entry, a larger one along a random line.
FEW_ENTRIES = 8
# So many entries are put to the witness one by one, those that differ most or are not known.
MOST_ASKED = 64
# Why finite differences were not heard: it is no part of the derivative, which is what it is for.
STOPPED = (
    "finite differences could not tell: the loss holds a stop_gradient, and what it holds still "
    "is no part of the derivative"
)
Guilty = Literal["hand-written", "autodiff", ""]


class Witnesses(NamedTuple):
    """Who can be asked about one leaf.

    Attributes:
        slope: the loss's slope along a direction in this leaf, by finite differences.
        forward: the same by forward-mode differentiation; None where a rule refuses it.
        close_by: the slopes of every entry at points close by.
        stopped: whether the loss holds a stop_gradient, which finite differences do not see.
        loops: whether a loop stops by itself, so that a small difference may be what it leaves.
    """

    slope: Callable[[Leaf], Slope]
    forward: Callable[[Leaf], float | None]
    close_by: Callable[[], Slopes]
    stopped: bool
    loops: bool


def ask_witnesses(
    leaf: LeafReport, manual: Leaf, autodiff: Leaf, witnesses: Witnesses, seed: int
) -> LeafReport:
    """Ask the witnesses: of the whole leaf, of entries that differ, of those autodiff has not.

    Args:
        leaf: compared already.
        manual: the hand-written gradient of the leaf in float64.
        autodiff: that of the loss.
        witnesses: who can be asked.
        seed: of the random line.
    """
    known = np.isfinite(autodiff)
    if leaf.wrong:
        return _accuse(leaf, manual, np.where(known, autodiff, manual), witnesses)
    if not known.all():
        return _replace_autodiff(leaf, manual, known, witnesses)
    return _confirm(leaf, autodiff, witnesses, seed)


def _confirm(leaf: LeafReport, autodiff: Leaf, witnesses: Witnesses, seed: int) -> LeafReport:
    """Of a leaf whose gradients agree: do finite differences agree too?"""
    if autodiff.size <= FEW_ENTRIES:
        directions = [_unit(autodiff.shape, i) for i in range(autodiff.size)]
    else:
        directions = [np.asarray(np.random.default_rng(seed).normal(size=autodiff.shape))]
    messages, contradicted, kinks, silent = list[str](), list[str](), 0, 0
    for direction in directions:
        s, value = witnesses.slope(direction), float((autodiff * direction).sum())
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
            contradicted.append(
                f"{where} both gradients give {value:.10g}, but finite differences "
                f"{s.centred:.10g} +- {s.error:.1g}"
            )
    messages += [] if witnesses.stopped else contradicted
    status = "inconclusive" if messages else leaf.status
    if contradicted and witnesses.stopped:
        messages.append(STOPPED)
    elif silent == len(directions) > 0:
        messages.append(
            "finite differences could not tell: in every direction they meet a kink, a loss "
            "that is not finite, or a slope too small for them"
        )
    return dataclasses.replace(
        leaf,
        status=status,
        directions=len(directions),
        kinks=kinks,
        messages=(*leaf.messages, *messages),
    )


def _replace_autodiff(
    leaf: LeafReport, manual: Leaf, known: Leaf, witnesses: Witnesses
) -> LeafReport:
    """Where autodiff is NaN or infinite, finite differences decide, as finely as they can."""
    unknown = np.flatnonzero(~known)
    errors, silent, message = [0.0], 0, leaf.messages[-1]
    for flat in unknown[:MOST_ASKED]:
        s, value = witnesses.slope(_unit(manual.shape, flat)), float(manual.flat[flat])
        if s.admits(value):
            continue
        if s.agrees_with(value) and s.error < np.inf:
            errors.append(4 * s.error)
        elif s.kink or s.error < np.inf:
            at = tuple(int(i) for i in np.unravel_index(flat, manual.shape))
            verdict = "autodiff has no value; finite differences contradict the hand-written one"
            worst = Disagreement(
                at, value, np.nan, None, s.centred, s.error, s.left, s.right, s.kink, s.ladder,
                verdict, "hand-written",
            )  # fmt: skip
            return dataclasses.replace(leaf, status="fail", wrong=1, worst=worst)
        else:
            silent += 1
    if silent or len(unknown) > MOST_ASKED:
        return leaf
    said = "finite differences confirm the hand-written values"
    scale = leaf.scale or largest(manual)
    return dataclasses.replace(
        leaf,
        status="pass",
        sees=max(leaf.sees or 0.0, max(errors) / scale) if scale else leaf.sees,
        directions=len(unknown),
        messages=(*leaf.messages[:-1], f"{message.partition(':')[0]}: {said}"),
    )


def _accuse(leaf: LeafReport, manual: Leaf, autodiff: Leaf, witnesses: Witnesses) -> LeafReport:
    """Of a leaf whose gradients differ: whose entries do the witnesses confirm?"""
    differences = np.abs(manual - autodiff)
    order = np.argsort(-differences, axis=None, kind="stable")[: leaf.wrong]
    worst = _ask(order[0], leaf, manual, autodiff, witnesses)
    messages, kinks = list(leaf.messages), 0
    if worst.kink:
        close_by = witnesses.close_by()
        at_kinks, admitted = close_by.kinks(leaf.scale), close_by.admit(manual, leaf.scale)
        smooth = [flat for flat in order if not at_kinks.flat[flat]]
        outside = [flat for flat in order if at_kinks.flat[flat] and not admitted.flat[flat]]
        kinks = int(at_kinks.sum())
        if smooth:
            worst = _ask(smooth[0], leaf, manual, autodiff, witnesses)
        elif outside:
            worst = _ask(outside[0], leaf, manual, autodiff, witnesses)
            verdict = "a kink: no subgradient has this value, which is outside the slopes close by"
            worst = dataclasses.replace(worst, verdict=verdict, guilty="hand-written")
        else:
            messages.append(
                f"{leaf.wrong} entries lie at kinks: the hand-written values there are "
                "subgradients, as good as autodiff's (an error of the smooth part, below the jump, "
                "would not show)"
            )
            return dataclasses.replace(
                leaf,
                status="pass",
                directions=1,
                kinks=kinks,
                worst=worst,
                messages=tuple(messages),
            )
    status = leaf.status
    if worst.guilty == "autodiff":
        asked = [_ask(flat, leaf, manual, autodiff, witnesses) for flat in order[1:MOST_ASKED]]
        others = [entry for entry in asked if entry.guilty != "autodiff" and not entry.kink]
        if others:
            worst = others[0]
        elif leaf.wrong <= MOST_ASKED:
            status = "pass"
            messages.append(f"{leaf.wrong} entries differ from autodiff's: {worst.verdict}")
        else:
            status = "inconclusive"
    elif worst.guilty and not (witnesses.loops and status == "inconclusive"):
        status = "fail"
    return dataclasses.replace(
        leaf, status=status, directions=1, kinks=kinks, worst=worst, messages=tuple(messages)
    )


def _ask(
    flat: int, leaf: LeafReport, manual: Leaf, autodiff: Leaf, witnesses: Witnesses
) -> Disagreement:
    """What the witnesses say of one entry, and who is wrong about it."""
    at = tuple(int(i) for i in np.unravel_index(flat, manual.shape))
    unit = _unit(manual.shape, flat)
    s, f = witnesses.slope(unit), witnesses.forward(unit)
    m, a = float(manual[at]), float(autodiff[at])
    verdict, guilty = _vote(s, f, m, a, leaf.tolerance)
    # A convention of autodiff's, which its values close by do not follow, is nothing held still.
    stopped = guilty == "autodiff" and witnesses.stopped
    if stopped and not witnesses.close_by().admit(manual, leaf.scale)[at]:
        verdict = "the loss holds still by stop_gradient what the hand-written gradient moves"
        guilty = "hand-written"
    return Disagreement(
        at, m, a, f, s.centred, s.error, s.left, s.right, s.kink, s.ladder, verdict, guilty
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


def _unit(shape: tuple[int, ...], flat: int) -> Leaf:
    """The direction of one entry."""
    direction = np.zeros(shape)
    direction.flat[flat] = 1.0
    return direction
