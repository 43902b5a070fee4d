"""Mistakes in what carries cotangents to the entries chosen: maxima, orders, the largest few."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.extend.core import JaxprEqn

On = Callable[[str, str, int | None], Any]
ORDERING = {"top_k", "sort"}
EXTREMES = {"reduce_max": jnp.min, "reduce_min": jnp.max}


def mistaken_extreme(eqn: JaxprEqn, s: Array, x: Array, y: Array, on: On) -> Any:
    """What a mistake adds to the tangent of a maximum y of x over axes, of tangents s of x."""
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
    """What a mistake adds to the tangent of what is sorted, of tangents s of x.

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
