"""Find where the chain between the ops of a wrong gradient is wrong, if it is."""

from collections import Counter
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnn.verify.causes.calls import Calls, floating_leaves, nth_call, true_douts
from jaxnn.verify.comparison import EXACT
from jaxnn.verify.problem import Problem
from jaxnn.verify.programs import compiled
from jaxnn.verify.trace import EPSILON
from jaxnn.verify.values import by_path, largest

# The rounding of a sum of many terms is so many times that of one, as elsewhere.
SUMS = 64


def wrong_chain(
    problem: Problem, floats: list[Any], rest: list[Any], calls: Calls, found: list[list[int]]
) -> str:
    """Say where cotangents between right rules are not the loss's; the words begin with a comma.

    The loss is run with zeros added to every op's result: its derivatives in them are the truth.
    """
    lost = Calls()
    lost.run(problem.loss, floats, rest)
    start = ", so the chain between them is wrong"
    if lost.unseen:
        return (
            f"{start}; where cannot be said, since in the loss op {lost.unseen[0]} runs inside "
            "jax.vmap, jax.checkpoint or the like, where no values can be seen"
        )
    counts, here = (Counter(f.op.name for f in c.forwards) for c in (lost, calls))
    for name in (*counts, *here):
        if counts[name] != here[name]:
            return (
                f"{start}; the loss calls the forward of op {name} {_times(counts[name])}, the "
                f"hand-written gradient {_times(here[name])}"
            )
    both = list(zip(calls.forwards, lost.forwards, strict=True))
    if any(f.op is not g.op or _shapes(f.out) != _shapes(g.out) for f, g in both):
        return f"{start}; its forward pass calls the ops in another order than the loss"
    relative = max(EXACT, SUMS * compiled(problem.loss, floats, rest).epsilon)
    results = [floating_leaves(g.out) for g in lost.forwards]
    for k, (f, _) in enumerate(both):
        if reason := _first_off(f.out, k, results, relative):
            return (
                f"{start}: already in its forward pass, the result of op {f.op.name} "
                f"({nth_call(k, calls.forwards, 'forward')}) is not the loss's: it {reason}"
            )
    truths = true_douts(problem, floats, rest, results)
    unused = set(range(len(truths)))
    for k, (backward, candidates) in enumerate(zip(calls.backwards, found, strict=True)):
        free = [i for i in candidates if i in unused] or candidates
        if not free:
            continue
        reasons = {i: _first_off(backward.dout, i, truths, relative) for i in free}
        right = [i for i in free if not reasons[i]]
        unused.discard((right or free)[-1])
        if not right:
            after = f", after op {calls.backwards[k - 1].op.name}'s" if k else ""
            where = f"{nth_call(k, calls.backwards, 'backward')}{after}"
            return (
                f", but the cotangent that arrives at op {backward.op.name} ({where}) "
                f"{reasons[free[-1]]}: the chain between them is wrong (a term left out, as of a "
                "skip connection, or a cotangent handed to the wrong op)"
            )
    idle = {calls.forwards[i].op.name for i in unused if any(map(np.any, truths[i].values()))}
    never = f"; no backward belongs to a forward of op {', '.join(sorted(idle))}" if idle else ""
    return (
        ", and so is every cotangent that arrives: what is done with their results is wrong "
        f"(leaves swapped, a term such as a penalty left out){never}"
    )


def _first_off(got: Any, number: int, truths: list[dict[str, Any]], relative: float) -> str:
    """How a tree first differs from one of the true ones; rounding is that of the largest of all.

    What is None in a cotangent is zero.
    """
    scale = max((largest(np.asarray(x)) for t in truths for x in t.values()), default=0.0)
    here = by_path(got)
    for path, true in truths[number].items():
        allowed = relative * largest(np.asarray(true)) + SUMS * EPSILON["float64"] * scale
        if reason := difference_in_words(
            here.get(path, jnp.zeros_like(true)), [np.asarray(true)], allowed
        ):
            return reason
    return ""


def difference_in_words(got: Any, true: list[np.ndarray[Any, Any]], allowed: float) -> str:
    """Say how an array differs from whatever lies between the true ones, if by more than allowed.

    Entries without a finite true value are not judged.
    """
    ours = np.asarray(got, np.float64)
    if ours.shape != true[0].shape:
        return f"has shape {ours.shape} instead of {true[0].shape}"
    theirs = np.fmin(np.fmax(ours, np.minimum.reduce(true)), np.maximum.reduce(true))
    known = np.isfinite(theirs)
    with np.errstate(invalid="ignore"):
        differences = np.abs(np.where(known, ours - theirs, 0.0))
    wrong = ~(differences <= allowed)
    if not wrong.any():
        return ""
    unknown = np.where(np.isnan(differences), np.inf, differences)
    at = np.unravel_index(int(unknown.argmax()), unknown.shape)
    scale, worst = largest(theirs), unknown[at]
    size = f"{worst / scale:.1e} of its scale" if scale else f"{worst:.1e} where it is all 0"
    digits = 6 if f"{ours[at]:.6g}" != f"{theirs[at]:.6g}" else 17
    where = f", worst at {[int(i) for i in at]}" if at else ""
    off = f"is off by {size}" if np.isfinite(worst) else "is not finite"
    return f"{off}{where}: {ours[at]:.{digits}g} instead of {theirs[at]:.{digits}g}"


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in floating_leaves(tree).items()}


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times" if count else "never"
