"""Find where the cotangents of a hand-written gradient begin to differ, if no cause explains it.

    the loss, equation by equation    ->  every variable's true value and cotangent
    the hand-written gradient         ->  every number that it computes on its way
    a cotangent that is among these   ->  is right, up to a factor and the order of its axes
    from one of these, rightly        ->  follows the wrong gradient: the rest is right again

Between the last right cotangent and the first number from which the rest follows lies the mistake.
It is given as a place only where both are found on every path to every wrong leaf.
"""

from collections.abc import Iterator
from itertools import islice, permutations
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.verify.causes.jaxprs import unrolled
from jaxnn.verify.causes.taps import Tap, Tapped, backwards, needed_by
from jaxnn.verify.findings import Diagnosis, Leaf
from jaxnn.verify.point import Point
from jaxnn.verify.values import largest

# Numbers that are looked at on either side: above this, they are not.
MOST_NUMBERS = 1_000_000
MOST_ORDERS = 24  # of an array's axes


class FirstDifference(NamedTuple):
    """What was found out beside the usual mistakes.

    Attributes:
        place: where the cotangents begin to differ; None where that is not sure.
        values: the wrong leaves that are a value of the forward pass, each with which.
    """

    place: Diagnosis | None
    values: dict[str, Diagnosis]


def first_difference(
    point: Point, manual: dict[str, Leaf], wrong: list[str], exact: float
) -> FirstDifference:
    """Find where a wrong gradient begins to differ, and wrong leaves that are forward values.

    Args:
        point: the problem, and the right gradient.
        manual: the hand-written gradient by path.
        wrong: the paths of the leaves that are wrong.
        exact: what rounding may leave, as a part of the scale.
    """
    problem, floats, rest = point.problem, point.floats, point.rest
    closed = jax.make_jaxpr(point.truth.loss)(floats, rest)
    closed = unrolled(closed, floats, rest, point.programs_of_loss)
    ours = jax.make_jaxpr(problem.manual_grad)(floats, rest)
    numbers = [problem.paths.index(path) for path in wrong]

    def tapped(floats: list[Any], rest: list[Any], steps: Any) -> tuple[Tapped, Any, set[int]]:
        taps = Tapped(steps)
        given = [taps.tap("", set(), x) for x in floats] + [(x, set[int]()) for x in rest]
        args, origins = zip(*given, strict=True)
        ((loss, last),) = taps.run(closed, args, origins, "")
        return taps, loss, last

    def values(floats: list[Any], rest: list[Any]) -> Any:
        return tapped(floats, rest, None)[0].values

    def cotangents(floats: list[Any], rest: list[Any], steps: Any) -> Any:
        return jax.grad(lambda s: tapped(floats, rest, s)[1])(steps), values(floats, rest)

    def pushed(floats: list[Any], rest: list[Any], cotangent: list[Any]) -> Any:
        return jax.vjp(lambda f: values(f, rest), floats)[1](cotangent)[0]

    def computed(floats: list[Any], rest: list[Any]) -> Any:
        taps = Tapped()
        args = [*floats, *rest]
        taps.run(ours, args, [set[int]()] * len(args), "")
        return taps.values

    structure: list[Any] = []

    def rehearsed(floats: list[Any], rest: list[Any]) -> Any:
        taps, _, last = tapped(floats, rest, None)
        structure.extend((taps.taps, last))
        return taps.values

    shapes = jax.eval_shape(rehearsed, floats, rest)
    taps, last = structure
    size = sum(x.size for x in (*shapes, *jax.eval_shape(computed, floats, rest)))
    if size > MOST_NUMBERS or len(last) != 1:
        return FirstDifference(None, {})
    zeros = [jnp.zeros(x.shape, x.dtype) for x in shapes]
    program = point.programs_of_loss.get("cotangents", cotangents, floats, rest, zeros)
    truth, forward = ([np.asarray(x) for x in xs] for xs in program.run(floats, rest, zeros))
    mine = point.programs.get("on the way", computed, floats, rest).run(floats, rest)
    got = [m for m in map(np.asarray, mine) if m.size > 1 and np.isfinite(m).all() and m.any()]

    back = point.programs_of_loss.get("pushed back", pushed, floats, rest, zeros)

    def follows(number: int, cotangent: Leaf) -> bool:
        """Whether a multiple of a cotangent gives the gradient that was written."""
        step = jnp.asarray(cotangent, zeros[number].dtype)
        steps = [*zeros[:number], step, *zeros[number + 1 :]]
        leaves = back.run(floats, rest, steps)
        given = np.concatenate([np.asarray(leaves[i]).ravel() for i in numbers])
        wanted = np.concatenate([manual[path].ravel() for path in wrong])
        return _alike(given, wanted, exact)

    necks = [n for n in backwards(taps, last) if needed_by(n, taps, next(iter(last)), numbers)]
    place = None
    right = [n for n in necks if n in last or _is_there(truth[n], got, forward, exact)]
    # Where the right one is there, and another of its shape is used, the rest may follow from that.
    for number in (*necks[necks.index(right[-1]) + 1 :], right[-1]):
        alike = [m for m in got if m.size == truth[number].size]
        wanted = truth[number].shape
        if any(follows(number, m) for x in alike for m in _orders(x, wanted)):
            place = _in_words(taps, right[-1], number, necks, problem.paths)
            break
    named = dict[str, Diagnosis]()
    for path in wrong:
        m = manual[path]
        for tap, x in zip(taps[len(floats) :], forward[len(floats) :], strict=True):
            same = x.shape == m.shape and np.isfinite(x).all() and m.size > 1 and np.ptp(m) > 0
            if same and largest(x - m) <= exact * largest(m):
                words = f"it is the output of {tap.words}, a value of the forward, not a gradient"
                named.setdefault(path, Diagnosis("forward value", words))
    return FirstDifference(place, named)


def _in_words(
    taps: list[Tap], right: int, wrong: int, necks: list[int], paths: list[str]
) -> Diagnosis:
    """The operations between a right cotangent and one that is not, in backward order."""
    first = taps[right].words
    if not first:
        text = f"the right gradient of {paths[right]} is computed, and another one returned"
    elif wrong == right or wrong in taps[right].sources:
        text = f"the cotangents differ from {first} on: what arrives there is right"
    else:
        between = [n for n in necks if wrong < n < right and taps[n].words]
        second = taps[min(between)].words if between else first
        text = (
            f"the cotangents differ from a place between {first} and {second} on: what arrives at "
            "the first is right"
        )
    return Diagnosis("location", text)


def _orders(x: Leaf, shape: tuple[int, ...]) -> Iterator[Leaf]:
    """An array with its axes in every order, in this shape."""
    for axes in islice(permutations(range(x.ndim)), MOST_ORDERS):
        yield x.transpose(axes).reshape(shape)


def _is_there(cotangent: Leaf, computed: list[Leaf], forward: list[Leaf], exact: float) -> bool:
    """Whether a true cotangent, or a multiple of it, was computed by hand, as a cotangent.

    What is a multiple of a value of the forward too would be there without any backward.
    """
    if cotangent.size < 2 or np.ptp(np.abs(cotangent)) <= exact * largest(cotangent):
        return False  # it says too little
    multiples = list(_multiples(cotangent, computed, exact))
    before = list(_multiples(cotangent, forward, exact))
    if not before:
        return bool(multiples)
    return _one_is(multiples, exact) and not _one_is(before, exact)


def _one_is(multiples: list[float], exact: float) -> bool:
    return any(abs(c - 1) <= exact for c in multiples)


def _multiples(cotangent: Leaf, computed: list[Leaf], exact: float) -> Iterator[float]:
    """How often each array goes into a cotangent, of those that do, in some order of its axes."""
    for m in computed:
        if m.size == cotangent.size and np.isfinite(m).all() and (norm := float((m * m).sum())) > 0:
            for c in _orders(cotangent, (-1,)):
                if _alike(m.ravel(), c, exact):
                    yield float(m.ravel() @ c) / norm


def _alike(x: Leaf, wanted: Leaf, exact: float) -> bool:
    """Whether some multiple of x is what is wanted."""
    if not np.isfinite(x).all():
        return False
    norm = float(x @ x)
    return norm > 0 and largest(float(x @ wanted) / norm * x - wanted) <= exact * largest(wanted)
