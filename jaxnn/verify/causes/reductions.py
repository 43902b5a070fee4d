"""Plant mistakes in sums, maxima, orders, the largest few, and in running sums and products.

cumsum        y_t = x_1 + ... + x_t              dy_t = sum over s <= t of dx_s
cumprod       y_t = x_1 ... x_t                  dy_t = y_t sum over s <= t of dx_s / x_s
cumlogsumexp  y_t = log(e^x_1 + ... + e^x_t)     dy_t = e^-y_t sum over s <= t of e^x_s dx_s

Each function yields mistakes: the cause, words, and what is added to the tangent of y. It is given
tangents s of x.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import JaxprEqn

from jaxnn.verify.causes.saved_values import MOST_OTHERS, axes_in_words

ORDERING = {"top_k", "sort"}
EXTREMES = {"reduce_max": jnp.min, "reduce_min": jnp.max}
Mistakes = Iterator[tuple[str, str, Any]]


def wrong_extremes(eqn: JaxprEqn, s: Array, x: Array, y: Array) -> Mistakes:
    """Yield the mistakes in a maximum or minimum y of x over axes."""
    name, axes = eqn.primitive.name, tuple(eqn.params["axes"])

    def picked(mask: Array) -> Any:
        return jnp.where(mask, s, 0).sum(axes)

    mask = x == jnp.expand_dims(y, axes)
    opposite = x == EXTREMES[name](x, axes, keepdims=True)
    right = picked(mask) / mask.sum(axes)
    yield "mask", "each of the entries that tie gets the whole cotangent of", picked(mask) - right
    sides = ("smallest", "largest") if name == "reduce_max" else ("largest", "smallest")
    words = "the {} is taken for the {} in".format(*sides)
    yield "mask", words, picked(opposite) / opposite.sum(axes) - right


def wrong_orders(eqn: JaxprEqn, s: Array, x: Array) -> Mistakes:
    """Yield the mistakes in what is sorted: entries go to places, and their cotangents back."""
    if eqn.primitive.name == "sort":
        axis = eqn.params["dimension"]
        kept, places = x.shape[axis], jnp.argsort(x, axis)
    else:
        axis, kept = eqn.params.get("axis", -1) % x.ndim, eqn.params["k"]
        places = jnp.argsort(-x, axis)[(*[slice(None)] * axis, slice(kept))]
    right = jnp.take_along_axis(s, places, axis)
    own = jnp.arange(kept).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    again = jnp.argsort(places, axis) if kept == x.shape[axis] else places
    undone = "the order is not undone: "
    wrong = [
        (f"{undone}their places are sorted, of what goes through", jnp.sort(places, axis)),
        (
            f"{undone}the first entry gets the first cotangent, of",
            jnp.broadcast_to(own, places.shape),
        ),
        ("the order is applied a second time, not undone, to the cotangent of", again),
    ]
    for words, at in wrong:
        yield "permuted", words, jnp.take_along_axis(s, at, axis) - right
    for other in (a for a in range(x.ndim) if a != axis and x.shape[a] > 1):
        for shift in (1, -1):
            words = f"shifted by {shift} along axis {other}: the places in"
            at = jnp.roll(places, shift, other)
            yield "shifted", words, jnp.take_along_axis(s, at, axis) - right


# What stands before the sum, and inside it: of x and y.
FACTORS: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "cumsum": lambda x, y: (jnp.ones_like(x), jnp.ones_like(x)),
    "cumprod": lambda x, y: (y, 1 / x),
    "cumlogsumexp": lambda x, y: (jnp.exp(-y), jnp.exp(x)),
}


def wrong_running(eqn: JaxprEqn, s: Any, x: Any, y: Any) -> Mistakes:
    """Yield the mistakes in a running sum or product."""
    axis, reverse = eqn.params["axis"], eqn.params["reverse"]
    before, inside = FACTORS[eqn.primitive.name](x, y)

    def summed(s: Any, backwards: bool = reverse) -> Any:
        return lax.cumsum(s, axis, reverse=backwards)

    right, own = before * summed(inside * s), before * inside * s
    words = "time is not reversed: the cotangents are summed in the direction of"
    yield "flip", words, before * summed(inside * s, not reverse) - right
    yield "not summed", "each step has its own cotangent alone, not their sum, in", own - right
    yield "shifted", "each step's own cotangent is left out of the sum in", -own
    if eqn.primitive.name != "cumsum":
        words = "the factor of each step's {} is left out of"
        yield "derivative left out", words.format("input"), before * summed(s) - right
        yield "derivative left out", words.format("output"), summed(inside * s) - right


def wrong_axes(eqn: JaxprEqn, s: Array, out: Array) -> Mistakes:
    """Yield a sum's other axes of equal size."""
    right = tuple(eqn.params["axes"])
    for axes in itertools.islice(itertools.combinations(range(s.ndim), len(right)), MOST_OTHERS):
        left = tuple(n for axis, n in enumerate(s.shape) if axis not in axes)
        if axes != right and left == out.shape != ():
            words = f"spread over {axes_in_words(axes)}, not {axes_in_words(right)}:"
            yield "wrong axis", f"{words} the cotangent of", s.sum(axes) - s.sum(right)
