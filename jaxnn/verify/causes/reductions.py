"""Plant mistakes in sums, maxima, orders, the largest few, and in running sums and products.

cumsum        y_t = x_1 + ... + x_t              dy_t = sum over s <= t of dx_s
cumprod       y_t = x_1 ... x_t                  dy_t = y_t sum over s <= t of dx_s / x_s
cumlogsumexp  y_t = log(e^x_1 + ... + e^x_t)     dy_t = e^-y_t sum over s <= t of e^x_s dx_s


The mistakes that can be made in the derivative of one equation.

Each is a value that an operand wrongly had, or another linear map of its tangent, beside the words
for it. `on(cause, words, operand)` registers a mistake and is 1 if it is the one to make, else 0.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import JaxprEqn

from jaxnn.verify.causes.jaxprs import On
from jaxnn.verify.causes.saved_values import MOST_OTHERS, axes_in_words

ORDERING = {"top_k", "sort"}
EXTREMES = {"reduce_max": jnp.min, "reduce_min": jnp.max}


def mistaken_extreme(eqn: JaxprEqn, s: Array, x: Array, y: Array, on: On) -> Any:
    """Return what a mistake adds to the tangent of a maximum y of x over axes, s being x's."""
    name = eqn.primitive.name
    axes = tuple(eqn.params["axes"])

    def picked(mask: Array) -> Any:
        return jnp.where(mask, s, 0).sum(axes)

    other = EXTREMES[name](x, axes, keepdims=True)
    mask, opposite = x == jnp.expand_dims(y, axes), x == other
    right = picked(mask) / mask.sum(axes)
    words = "each of the entries that tie gets the whole cotangent of"
    added = jnp.where(on("mask", words, None) > 0, picked(mask) - right, 0)
    words = (
        "the smallest is taken for the largest in"
        if name == "reduce_max"
        else "the largest is taken for the smallest in"
    )
    wrong = picked(opposite) / opposite.sum(axes)
    return added + jnp.where(on("mask", words, None) > 0, wrong - right, 0)


def mistaken_order(eqn: JaxprEqn, s: Array, x: Array, on: On) -> Any:
    """Return what a mistake adds to the tangent of what is sorted, of tangents s of x.

    The entries kept go to places of their own, and their cotangents back.
    """
    name = eqn.primitive.name
    if name == "sort":
        axis, kept = eqn.params["dimension"], x.shape[eqn.params["dimension"]]
        places = jnp.argsort(x, axis)
    else:
        axis = eqn.params.get("axis", -1) % x.ndim
        kept = eqn.params["k"]
        places = jnp.argsort(-x, axis)
        places = places[(*[slice(None)] * axis, slice(kept))]
    right = jnp.take_along_axis(s, places, axis)
    own = jnp.arange(kept).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    wrong = {
        "the order is not undone: their places are sorted, of what goes through": jnp.sort(
            places, axis
        ),
        "the order is not undone: the first entry gets the first cotangent, of": jnp.broadcast_to(
            own, places.shape
        ),
        "the order is applied a second time, not undone, to the cotangent of": jnp.argsort(
            places, axis
        )
        if kept == x.shape[axis]
        else places,
    }
    added = jnp.zeros_like(right)
    for words, at in wrong.items():
        which = on("permuted", words, None)
        added = jnp.where(which > 0, jnp.take_along_axis(s, at, axis) - right, added)
    for other in (a for a in range(x.ndim) if a != axis and x.shape[a] > 1):
        for shift in (1, -1):
            words = f"shifted by {shift} along axis {other}: the places in"
            at = jnp.roll(places, shift, other)
            which = on("shifted", words, None)
            added = jnp.where(which > 0, jnp.take_along_axis(s, at, axis) - right, added)
    return added


# What stands before the sum, and inside it: of x and y.
FACTORS: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "cumsum": lambda x, y: (jnp.ones_like(x), jnp.ones_like(x)),
    "cumprod": lambda x, y: (y, 1 / x),
    "cumlogsumexp": lambda x, y: (jnp.exp(-y), jnp.exp(x)),
}


def mistaken_running(eqn: JaxprEqn, s: Any, x: Any, y: Any, on: On) -> Any:
    """Return what a mistake adds to the tangent of a running sum or product, of tangents s of x."""
    if eqn.primitive.name not in FACTORS:
        return 0
    axis, reverse = eqn.params["axis"], eqn.params["reverse"]
    before, inside = FACTORS[eqn.primitive.name](x, y)

    def summed(s: Any, backwards: bool) -> Any:
        return lax.cumsum(s, axis, reverse=backwards)

    def wrong() -> Iterator[tuple[str, str, Any]]:
        right = before * summed(inside * s, reverse)
        words = "time is not reversed: the cotangents are summed in the direction of"
        yield "flip", words, before * summed(inside * s, not reverse) - right
        own = before * inside * s
        yield "not summed", "each step has its own cotangent alone, not their sum, in", own - right
        yield "shifted", "each step's own cotangent is left out of the sum in", -own
        if eqn.primitive.name != "cumsum":
            words = "the factor of each step's input is left out of"
            yield "derivative left out", words, before * summed(s, reverse) - right
            words = "the factor of each step's output is left out of"
            yield "derivative left out", words, summed(inside * s, reverse) - right

    added = jnp.zeros_like(y)
    for cause, words, value in wrong():
        added = jnp.where(on(cause, words, None) > 0, value, added)
    return added


def other_axes(eqn: JaxprEqn, s: Array, out: Array, on: On) -> Any:
    """Return what is added to the slope of a sum if it were over other axes of equal size."""
    right, added = tuple(eqn.params["axes"]), jnp.zeros_like(out)
    for axes in itertools.islice(itertools.combinations(range(s.ndim), len(right)), MOST_OTHERS):
        left = tuple(n for axis, n in enumerate(s.shape) if axis not in axes)
        if axes != right and left == out.shape != ():
            words = (
                f"spread over {axes_in_words(axes)}, not {axes_in_words(right)}: the cotangent of"
            )
            added = jnp.where(on("wrong axis", words, None) > 0, s.sum(axes) - s.sum(right), added)
    return added
