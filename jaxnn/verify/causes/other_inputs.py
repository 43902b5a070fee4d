"""Find the other inputs, transposed, shifted or left out, of which a wrong gradient is right.

Autodiff's gradient is taken again where one array of the call is another one, and compared. That
says of an input what a replay says of an operation, and needs no more compiling.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.verify.causes.evidence import Gradients
from jaxnn.verify.causes.jaxprs import work_of
from jaxnn.verify.causes.replay import MOST_WORK
from jaxnn.verify.findings import Diagnosis
from jaxnn.verify.point import Point
from jaxnn.verify.problem import is_floating
from jaxnn.verify.values import largest

# So many other inputs are tried at most, the first axes of the first arrays first.
MOST_INPUTS = 256


class Other(NamedTuple):
    """Other inputs of the loss.

    Attributes:
        cause: what they would be a cause of.
        words: what is another, in words.
        arrays: those that are others, by their number among the parameters and the other arrays.
        beside: the parameters of whose own gradient they say nothing.
    """

    cause: str
    words: str
    arrays: dict[int, Any]
    beside: tuple[int, ...] = ()


def other_inputs(point: Point, found: Gradients) -> dict[str, Diagnosis]:
    """Return the wrong leaves that are the right gradient of other inputs, each with which.

    Inputs that explain more leaves come first.
    """
    arrays = [*point.floats, *point.rest]
    paths, ours = point.problem.paths, len(point.floats)
    evaluator = point.here.evaluator._replace(by_hand=None)
    # One number, as often as need be, and zeros come of many other inputs.
    known = {path: np.isfinite(a) for path, a in found.autodiff.items()}
    wrong = [path for path, mask in found.wrong.items() if (mask & known[path]).any()]
    telling = [path for path in wrong if np.ptp(found.manual[path]) > 0]
    others = list(itertools.islice(_others(point), MOST_INPUTS)) if telling else []
    closed = jax.make_jaxpr(point.truth.loss)(point.floats, point.rest)
    if len(others) * work_of(closed.jaxpr) > MOST_WORK:
        return {}
    matches: list[tuple[Diagnosis, list[str]]] = []
    for other in others:
        given = [other.arrays.get(i, x) for i, x in enumerate(arrays)]
        gradient = evaluator.at(given[:ours], given[ours:]).autodiff
        explained = [
            path
            for path in telling
            if (number := paths.index(path)) not in other.beside
            and _same(path, gradient[number], found)
        ]
        if explained:
            text = f"it is the right gradient where {other.words}"
            matches.append((Diagnosis(other.cause, text), explained))
    diagnoses: dict[str, Diagnosis] = {}
    for diagnosis, explained in sorted(matches, key=lambda match: -len(match[1])):
        diagnoses = {**dict.fromkeys(explained, diagnosis), **diagnoses}
    return diagnoses


def _same(path: str, gradient: np.ndarray[Any, Any], found: Gradients) -> bool:
    m, a = found.manual[path], found.autodiff[path]
    gap = np.abs(gradient - m)[np.isfinite(a)]
    return bool((gap <= found.exact * max(largest(m), largest(a))).all())


def _others(point: Point) -> Iterator[Other]:
    """Every array of the call as it may have been taken for by mistake."""
    names = [*point.problem.paths, *point.problem.others]
    arrays = [*point.floats, *point.rest]
    ours = len(point.floats)
    for i, (name, x) in enumerate(zip(names, arrays, strict=True)):
        for cause, words, value in _taken_for(x, i < ours):
            # What x is multiplied by has nothing to do with x; its own slope at 1 may be anything.
            beside = (i,) if cause == "derivative left out" else ()
            yield Other(cause, words.format(name), {i: value}, beside)
    given = [i for i in range(ours, len(arrays)) if is_floating(arrays[i])]
    for kept in given if len(given) > 2 else ():
        zeros = {i: jnp.zeros_like(arrays[i]) for i in given if i != kept}
        words = " and ".join(names[i] for i in zeros)
        yield Other("missing term", f"{words} are left out (0)", zeros)


def _taken_for(x: Any, parameter: bool) -> Iterator[tuple[str, str, Any]]:
    """What an array may be taken for: cause, words, and the other array."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        for i in range(2):
            yield "mask", f"another key is drawn with, fold_in({{}}, {i})", jax.random.fold_in(x, i)
            if x.ndim == 0:
                words = f"another key is drawn with, split({{}})[{i}]"
                yield "mask", words, jax.random.split(x)[i]
        return
    for a, b in itertools.combinations(range(x.ndim), 2):
        if x.shape[a] == x.shape[b] > 1:
            words = "{} is transposed" if x.ndim == 2 else f"axes {a}, {b} of {{}} are exchanged"
            yield "transpose", words, jnp.swapaxes(x, a, b)
    for axis, size in enumerate(x.shape):
        if size > 1:
            yield "flip", f"{{}} is reversed along axis {axis}", jnp.flip(x, axis)
        for shift in (1, -1) if size > 2 else ():
            words = f"{{}} is shifted by {shift} along axis {axis}"
            yield "shifted", words, jnp.roll(x, shift, axis)
        if size > 2 and size % 2 == 0:
            words = f"the halves of {{}} are exchanged along axis {axis}"
            yield "permuted", words, jnp.roll(x, size // 2, axis)
    if jnp.issubdtype(x.dtype, jnp.integer):
        yield "shifted", "{} is larger by 1", x + 1
        yield "shifted", "{} is smaller by 1", x - 1
        yield "sign", "{} has the other sign", -x
    elif is_floating(x):
        yield "derivative left out", "{} is left out (1)", jnp.ones_like(x)
        # Not of a parameter: much has the slope 1 at 0, where what is forgotten is the derivative.
        if not parameter:
            yield "missing term", "{} is left out (0)", jnp.zeros_like(x)
            for axis in range(x.ndim if x.ndim > 1 else 0):
                summed = jnp.broadcast_to(x.sum(axis, keepdims=True), x.shape)
                words = f"{{}} is summed over axis {axis} by itself, not with what it multiplies"
                yield "summed apart", words, summed
