"""Why a hand-written gradient is wrong: honest mistakes, replayed in autodiff's own backward pass.

The loss is traced, and evaluated equation by equation with one mistake at a time planted in the
derivative of one equation (its value stays right):

    cut        the cotangent of one operand is left out: wholly, in the first or last step of a
               scan, at one class, or for all but one slice of what was broadcast
    saved      the derivative is taken at another value: the wrong one saved, one shifted by one
               along an axis, a transposed matrix, a flipped kernel, an inverted mask
    slope      an elementwise derivative is taken as 1, or as what is written for it in haste

If the hand-written gradient is what one of these gives, in every entry of every leaf, that is the
diagnosis, with the line of the loss where it happened. A cut explains more than itself: a gradient
is linear in each cotangent, so if the error is t times what a cut takes away, the cotangent was
multiplied by 1 - t there: a sign, a term counted twice, a forgotten 1/n.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr

from jaxnn.verify.compare import EXACT
from jaxnn.verify.cuts import Mistake
from jaxnn.verify.jaxprs import work_of
from jaxnn.verify.planted import Planted
from jaxnn.verify.point import Point

# Mistakes times numbers computed in one gradient: above this, replaying takes minutes.
MOST_WORK = 2e9


class Match(NamedTuple):
    """A mistake that explains the gradient; a cut one by this factor on its cotangent."""

    mistake: Mistake
    factor: float


def replay(point: Point, manual: dict[str, np.ndarray[Any, Any]]) -> list[Match]:
    """The mistakes that give the hand-written gradient, each by itself.

    Args:
        point: the problem, and the right gradient.
        manual: the hand-written gradient by path; leaves that are missing are not looked at.
    """
    problem, floats, rest = point.truth, point.floats, point.rest
    given = [i for i, path in enumerate(problem.paths) if path in manual]
    right = [jnp.asarray(point.here.autodiff[i]) for i in given]
    targets = [jnp.asarray(manual[problem.paths[i]]) for i in given]
    closed = jax.make_jaxpr(problem.loss)(floats, rest)
    # The maximum that a softmax subtracts changes nothing, until a mistake is made beside it.
    for stopped in (frozenset({"stop_gradient", "reduce_max"}), frozenset({"stop_gradient"})):
        rehearsal = Planted(None, stopped)
        jax.eval_shape(lambda f, r, q=rehearsal: q.loss(closed, f, r), floats, rest)
        mistakes = list(rehearsal.mistakes)
        if not 0 < len(mistakes) * work_of(closed.jaxpr) <= MOST_WORK:
            return []
        program = point.programs_of_loss.get(
            f"replay {given} {sorted(stopped)}",
            functools.partial(_scores, closed, given, len(mistakes), stopped),
            floats,
            rest,
            right,
            targets,
        )
        base, scores = program.run(floats, rest, right, targets)
        if base <= EXACT:
            return _matches(mistakes, scores)
    return []  # a rule of its own says otherwise than the formula that was replayed


def _scores(
    closed: ClosedJaxpr,
    given: list[int],
    count: int,
    stopped: frozenset[str],
    floats: list[Any],
    rest: list[Any],
    right: list[Any],
    targets: list[Any],
) -> Any:
    """How far the replayed gradient with no mistake is off, and how well each mistake fits.

    For each: the multiple t of its effect d that is closest to the error r, how much of r that
    leaves, how much t = 1 leaves (both of r's size), and how many entries d is in.
    """
    scales = [jnp.maximum(jnp.abs(a).max(initial=0.0), 1e-300) for a in right]

    def off(gradient: list[Any]) -> Any:
        return jnp.concatenate(
            [((g - a) / s).ravel() for g, a, s in zip(gradient, right, scales, strict=True)]
        )

    def effect(number: Any) -> Any:
        chosen = (jnp.arange(count + 1) == number).astype(float)
        gradient = jax.grad(lambda f: Planted(chosen, stopped).loss(closed, f, rest))(floats)
        return off([gradient[i] for i in given])

    r = off(targets)
    size = jnp.abs(r).max()

    def score(number: Any) -> Any:
        d = effect(number)
        t = (d @ r) / jnp.maximum(d @ d, 1e-300)
        shown = (jnp.abs(d) > 1e-6 * jnp.abs(d).max()).sum()
        left = jnp.abs(r - t * d).max() / size, jnp.abs(r - d).max() / size
        return t, *left, shown, jnp.abs(d).max()

    *fits, sizes = lax.map(score, jnp.arange(count + 1))
    return sizes[0], [fit[1:] for fit in fits]


def _matches(mistakes: list[Mistake], scores: list[Any]) -> list[Match]:
    """The mistakes that fit the whole error."""
    found = []
    for mistake, t, as_multiple, as_it_is, entries in zip(
        mistakes, *(np.asarray(x).tolist() for x in scores), strict=True
    ):
        if as_it_is <= 100 * EXACT:
            found.append(Match(mistake, 0.0))
        elif mistake.cut and as_multiple <= 100 * EXACT and entries > 1:
            found.append(Match(mistake, 1 - t))
    return found
