"""Explain a wrong gradient where one of the usual mistakes gives every entry of it.

Each explanation predicts the wrong gradient from the right one; it is given only where the
prediction is exact to rounding. Where none is, the place where the cotangents begin to differ is
looked for, which is no cause and is called a location.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxnn.verify.causes.devices import on_devices
from jaxnn.verify.causes.evidence import Gradients, Numbers, away_from_kinks, gradients_of
from jaxnn.verify.causes.first_difference import FirstDifference, first_difference
from jaxnn.verify.causes.one_leaf import explanations, factor, is_setting, readings_of
from jaxnn.verify.causes.other_inputs import other_inputs
from jaxnn.verify.causes.pointwise import pointwise
from jaxnn.verify.causes.replay import Match, replay
from jaxnn.verify.comparison import EXACT
from jaxnn.verify.findings import Diagnosis, LeafReport, described
from jaxnn.verify.point import Point

_IN_LOSS = "in the loss's backward pass"


def explain_leaves(
    leaves: list[LeafReport], point: Point
) -> tuple[list[LeafReport], tuple[str, ...]]:
    """Return the leaves, the wrong ones explained, and why the cause was not looked for.

    One mistake in the backward pass that explains every leaf is believed before several, unless
    one cause explains each leaf by itself; that only one index is wrong is the last resort. Where
    finite differences clear the hand-written gradient there is nothing to explain.
    """
    accused = [leaf for leaf in leaves if not (leaf.worst and leaf.worst.guilty == "autodiff")]
    found = gradients_of(accused, point)
    wrong = [path for path, mask in found.wrong.items() if mask.any()]
    if not wrong:
        return leaves, ()
    by_leaf: dict[str, Diagnosis] = {}
    unexplained: tuple[str, ...] = ()
    if point.problem.on_mesh:
        what = "its collectives could not be mended"
        by_leaf, unexplained = _tried(what, {}, on_devices, point, found)
    if not by_leaf:
        by_leaf, reason = _causes(found, point)
        unexplained += reason
    if len(by_leaf) < len(wrong):
        alike, reason = _tried(
            f"other inputs could not be tried {_IN_LOSS}", {}, other_inputs, point, found
        )
        by_leaf, unexplained = {**alike, **by_leaf}, unexplained + reason
    if len(by_leaf) < len(wrong) and (smooth := away_from_kinks(found, point)):
        again, reason = _causes(smooth, point)
        by_leaf, unexplained = {**again, **by_leaf}, unexplained + reason
    by_leaf = {**_single_index(found), **by_leaf}
    left = [path for path in wrong if path not in by_leaf]
    if left:
        beside, reason = _tried(
            f"where it begins to differ could not be looked for {_IN_LOSS}",
            FirstDifference(None, {}),
            first_difference,
            point,
            found.manual,
            left,
            found.exact,
        )
        places = dict.fromkeys(left, beside.place) if beside.place else {}
        by_leaf |= places | beside.values
        unexplained += reason
    return [
        dataclasses.replace(leaf, diagnosis=leaf.diagnosis or by_leaf.get(leaf.path))
        for leaf in leaves
    ], unexplained


def _causes(found: Gradients, point: Point) -> tuple[dict[str, Diagnosis], tuple[str, ...]]:
    """What explains the wrong leaves, and why mistakes could not be replayed."""
    wrong = [path for path, mask in found.wrong.items() if mask.any()]
    by_leaf = _by_leaf(found)
    if len({d.cause for d in by_leaf.values()}) == 1 and len(by_leaf) == len(wrong):
        return by_leaf, ()
    matches, reason = _tried(f"mistakes could not be replayed {_IN_LOSS}", [], replay, point, found)
    settings = point.problem.settings
    ranked = [r for match in matches if (r := _ranked(match, found, settings))]
    if ranked:
        return dict.fromkeys(wrong, min(ranked, key=lambda pair: pair[0])[1]), reason
    for path in (path for path in wrong if path not in by_leaf):
        cause, unread = _tried(
            f"its slopes could not be looked at {_IN_LOSS}", None, pointwise, point, path, found
        )
        by_leaf, reason = by_leaf | ({path: cause} if cause else {}), reason + unread
    return by_leaf, reason


def _tried(
    what: str, otherwise: Any, look: Callable[..., Any], *args: Any
) -> tuple[Any, tuple[str, ...]]:
    """What `look` finds, or why it finds nothing: whatever a loss may be made of is evaluated."""
    try:
        return look(*args), ()
    except Exception as error:  # the verdict stands without
        return otherwise, (f"{what}: {described(error)}",)


def _ranked(match: Match, found: Gradients, settings: Numbers) -> tuple[int, Diagnosis] | None:
    """A match in words, and how telling it is: less is more."""
    mistake, c = match
    close = max(100 * EXACT, found.exact)
    what = mistake.site.text
    if c == 0:
        # Where all that goes in is one number, a wrong derivative is a factor too; and of cuts that
        # come to the same, the one whose operand has a name says most.
        ranks = {"detached": 0, "index": 4, "wrong axis": 4, "wrong derivative": 7}
        rank = (1 if ": " in mistake.text else 2) if mistake.cut else ranks.get(mistake.cause, 5)
        if mistake.text.startswith("the exponent"):
            rank = 2  # a number that is left out says more than that something is twice as much
        return rank, Diagnosis(mistake.cause, f"{mistake.text} {what}")
    if abs(c + 1) <= close:
        return 3, Diagnosis("sign", f"the sign of the cotangent is wrong at {what}")
    if abs(c - 2) <= close and not is_setting(c, settings):
        text = (
            f"the term is subtracted twice that goes through {what}"
            if mistake.subtracted
            else f"the cotangent counts twice at {what}"
        )
        return 3, Diagnosis("doubled term", text)
    diagnosis = factor(c, found.numbers, found.exact)
    if diagnosis is None:
        return None
    rank = 6 if readings_of(c, found.numbers, found.exact) else 8
    return rank, Diagnosis(diagnosis.cause, f"{diagnosis.text}, the cotangent at {what}")


def _by_leaf(found: Gradients) -> dict[str, Diagnosis]:
    """For each wrong leaf the first explanation that fits it by itself, where one does."""
    return {
        path: diagnosis
        for path, wrong in found.wrong.items()
        if (wrong & np.isfinite(found.autodiff[path])).any()
        and (diagnosis := next(explanations(path, found), None))
    }


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
