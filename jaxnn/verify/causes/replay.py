"""Replay honest mistakes in autodiff's own backward pass, to find the one that was made.

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

from jaxnn.verify.causes.cuts import Mistake, Site
from jaxnn.verify.causes.evidence import Gradients
from jaxnn.verify.causes.jaxprs import unrolled, work_of
from jaxnn.verify.causes.planted import Planted
from jaxnn.verify.comparison import EXACT
from jaxnn.verify.point import Point

# Mistakes times numbers computed in one gradient: above this, replaying takes minutes.
MOST_WORK = 2e9


class Match(NamedTuple):
    """A mistake that explains the gradient; a cut one by this factor on its cotangent."""

    mistake: Mistake
    factor: float


def replay(point: Point, found: Gradients) -> list[Match]:
    """Return the mistakes that give the hand-written gradient, each by itself.

    Args:
        point: the problem, and the right gradient.
        found: both gradients by path; leaves that are missing are not looked at, nor entries whose
            right value is unknown.
    """
    problem, floats, rest = point.truth, point.floats, point.rest
    given = [i for i, path in enumerate(problem.paths) if path in found.manual]
    paths = [problem.paths[i] for i in given]
    right = [jnp.asarray(found.autodiff[path]) for path in paths]
    targets = [jnp.asarray(found.manual[path]) for path in paths]
    closed = jax.make_jaxpr(problem.loss)(floats, rest)
    closed = unrolled(closed, floats, rest, point.programs_of_loss)
    # The maximum that a softmax subtracts changes nothing, until a mistake is made beside it.
    for stopped in (frozenset({"stop_gradient", "reduce_max"}), frozenset({"stop_gradient"})):
        rehearsal = Planted(None, stopped)
        jax.eval_shape(lambda f, r, q=rehearsal: q.loss(closed, f, r), floats, rest)
        mistakes, members = _with_repeated(list(rehearsal.mistakes))
        if not mistakes:
            continue
        if len(mistakes) * work_of(closed.jaxpr) > MOST_WORK:
            return []
        program = point.programs_of_loss.get(
            f"replay {given} {sorted(stopped)}",
            functools.partial(_scores, closed, given, members, stopped),
            floats,
            rest,
            right,
            targets,
        )
        base, scores = program.run(floats, rest, right, targets)
        if base <= found.exact:
            size, fits = scores
            return _matches(mistakes, size, fits, found.exact)
    return []  # a rule of its own says otherwise than the formula that was replayed


def _with_repeated(mistakes: list[Mistake]) -> tuple[list[Mistake], np.ndarray[Any, Any]]:
    """The mistakes, and those of the same words at several places as one: a line that runs twice.

    Beside each mistake's number, from 1, that of the one that it is part of; 0 for none.
    """
    alike: dict[Mistake, list[int]] = {}
    for number, mistake in enumerate(mistakes, 1):
        everywhere = mistake._replace(site=Site((), mistake.site.text))
        alike.setdefault(everywhere, []).append(number)
    members = np.zeros(len(mistakes) + 1, int)
    found = list(mistakes)
    for mistake, numbers in alike.items():
        if len(numbers) > 1 and "(" in mistake.site.text:  # else there is no line
            found.append(mistake)
            members[numbers] = len(found)
    return found, members


def _scores(
    closed: ClosedJaxpr,
    given: list[int],
    members: np.ndarray[Any, Any],
    stopped: frozenset[str],
    floats: list[Any],
    rest: list[Any],
    right: list[Any],
    targets: list[Any],
) -> Any:
    """How far the replayed gradient with no mistake is off, and how well each mistake fits.

    Then the size of the error r, and for each mistake: the multiple t of its effect d that is
    closest to r, how much that leaves, how much t = 1 leaves, and how many entries d is in.
    """
    known = [jnp.isfinite(a) for a in right]
    scales = [
        jnp.abs(jnp.where(k, a, 0)).max(initial=1e-300) for a, k in zip(right, known, strict=True)
    ]

    def off(gradient: list[Any]) -> Any:
        return jnp.concatenate(
            [
                jnp.where(k, (g - a) / s, 0).ravel()
                for g, a, s, k in zip(gradient, right, scales, known, strict=True)
            ]
        )

    def effect(number: Any) -> Any:
        chosen = ((jnp.arange(len(members)) == number) | (jnp.asarray(members) == number)) & (
            number > 0
        )
        chosen = chosen.astype(float)
        gradient = jax.grad(lambda f: Planted(chosen, stopped).loss(closed, f, rest))(floats)
        return off([gradient[i] for i in given])

    r = off(targets)
    size = jnp.abs(r).max()

    def score(number: Any) -> Any:
        d = effect(number)
        t = (d @ r) / jnp.maximum(d @ d, 1e-300)
        shown = (jnp.abs(d) > 1e-6 * jnp.abs(d).max()).sum()
        left = jnp.abs(r - t * d).max(), jnp.abs(r - d).max()
        return t, *left, shown, jnp.abs(d).max()

    *fits, sizes = lax.map(score, jnp.arange(max(len(members), members.max() + 1)))
    return sizes[0], (size, [fit[1:] for fit in fits])


def _matches(mistakes: list[Mistake], size: Any, scores: list[Any], exact: float) -> list[Match]:
    """The mistakes that fit the whole error, of this size, to rounding.

    That to a narrower dtype is a part of the scale, not of the error.
    """
    found = list[Match]()
    allowed = max(100 * EXACT * float(size), exact if exact > EXACT else 0.0)
    for mistake, t, as_multiple, as_it_is, entries in zip(
        mistakes, *(np.asarray(x).tolist() for x in scores), strict=True
    ):
        if as_it_is <= allowed:
            found.append(Match(mistake, 0.0))
        elif mistake.cut and as_multiple <= allowed and entries > 1:
            found.append(Match(mistake, 1 - t))
    return found
