"""List values that an operand may wrongly have had in a backward pass, and rearrangements."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn

from jaxnn.verify.causes.jaxprs import name_of

Plain = dict[Any, tuple[str, Any]]
# So many other values of the right shape are tried as the wrong one saved.
MOST_OTHERS = 8
BILINEAR = {"dot_general", "mul", "conv_general_dilated"}
TAKING = {"gather", "slice", "dynamic_slice"}


def saved_values(
    eqn: JaxprEqn, j: int, x: Any, pointwise: bool, plain: Plain
) -> Iterator[tuple[str, str, Any]]:
    """Yield values operand j may wrongly have had in the backward pass: cause, words, value."""
    name = eqn.primitive.name
    predicate = name == "select_n" and j == 0
    if predicate and x.dtype == bool:
        yield "mask", "the mask is inverted: not", ~x
    if pointwise and cuts(eqn):
        yield "mask", "the mask is inverted: minus", -x
    if predicate or pointwise or name == "dot_general":
        axes = range(min(x.ndim - 1, 2)) if name == "dot_general" else range(x.ndim)
        for axis, shift in ((a, s) for a in axes for s in (1, -1) if x.shape[a] > 2):
            words = f"shifted by {shift} along axis {axis}: the saved"
            yield "shifted", words, jnp.roll(x, shift, axis)
    if name == "gather" and j == 1:
        yield from _indices(x, plain)
        for column, shift in ((c, s) for c in range(x.shape[-1]) for s in (1, -1)):
            words = f"shifted by {shift} along axis 0: column {column + 1} of the indices in"
            yield "shifted", words, x.at[..., column].set(jnp.roll(x[..., column], shift, 0))
        aval: Any = eqn.invars[0].aval
        sizes = aval.shape
        for column, axis in enumerate(eqn.params["dimension_numbers"].start_index_map):
            for shift in (1, -1):
                words = f"off by {shift}: column {column + 1} of the indices in"
                yield "index", words, x.at[..., column].set((x[..., column] + shift) % sizes[axis])
    for words, value in rearranged(eqn, j, x) if name not in TAKING else ():
        yield cause_of(words), words, value
    if name in BILINEAR:
        for words, value in values_alike(eqn, j, x, plain):
            yield "wrong saved value", f"{words} was saved instead of", value


def _indices(x: Any, plain: Plain) -> Iterator[tuple[str, str, Any]]:
    """Other indices than those of a gather: of other axes, and other arrays of integers."""
    columns = range(x.shape[-1])
    for a, b in itertools.combinations(range(x.ndim - 1), 2):
        if min(x.shape[a], x.shape[b]) > 1:
            words = f"axes {a} and {b} transposed, then reshaped: the indices in"
            yield "index", words, jnp.swapaxes(x, a, b).reshape(x.shape)
    for a, b in itertools.combinations(columns, 2):
        words = f"rows for columns: columns {a + 1} and {b + 1} are exchanged of the indices in"
        yield "index", words, x.at[..., a].set(x[..., b]).at[..., b].set(x[..., a])
    size = x[..., 0].size
    found = [
        (words, value)
        for words, value in plain.values()
        if value.size == size and jnp.issubdtype(value.dtype, jnp.integer) and value.ndim
    ]
    for words, value in found[-MOST_OTHERS:] if size > 1 else ():
        other = value.reshape(x.shape[:-1]).astype(x.dtype)
        for c in columns:
            yield (
                "index",
                f"{words} was taken for column {c + 1} of the indices in",
                x.at[..., c].set(other),
            )


def rearranged(eqn: JaxprEqn, j: int, x: Any) -> Iterator[tuple[str, Any]]:
    """Yield a matrix transposed (or reshaped to look so), a kernel flipped, its channels swapped.

    Of the same shape; the map of x is linear, so that tangents may be rearranged too.
    """
    name = eqn.primitive.name
    if name == "dot_general" and x.ndim >= 2 and min(x.shape[-2:]) > 1:
        swapped = (*x.shape[:-2], x.shape[-1], x.shape[-2])
        words = "transposed:" if x.shape[-1] == x.shape[-2] else "reshaped, not transposed:"
        yield words, jnp.swapaxes(x.reshape(swapped), -1, -2)
    if name in TAKING and j == 0 and x.ndim >= 2 and x.shape[-1] == x.shape[-2] > 1:
        yield "rows for columns, an index of another axis:", jnp.swapaxes(x, -1, -2)
    if name == "conv_general_dilated" and j == 1:
        out_channels, in_channels, *spatial = eqn.params["dimension_numbers"].rhs_spec
        yield "flipped in space:", jnp.flip(x, spatial)
        if x.shape[out_channels] == x.shape[in_channels]:
            yield "input and output channels swapped:", jnp.swapaxes(x, out_channels, in_channels)


def cause_of(words: str) -> str:
    """Return the cause that a rearrangement is, by its words."""
    return next((c for c in ("flip", "index") if c in words), "transpose")


def values_alike(eqn: JaxprEqn, j: int, x: Any, plain: Plain) -> list[tuple[str, Any]]:
    """List other values of an operand's shape and dtype, those made nearest to it first."""
    order = {v: i for i, v in enumerate(plain)}
    here = order.get(eqn.invars[j], len(order))
    same = [
        (abs(order[v] - here), words, lax.stop_gradient(value))
        for v, (words, value) in plain.items()
        if v is not eqn.invars[j] and value.shape == x.shape and value.dtype == x.dtype
    ]
    return [(words, value) for _, words, value in sorted(same, key=lambda s: s[0])[:MOST_OTHERS]]


def cuts(eqn: JaxprEqn) -> bool:
    """Tell whether an equation is a maximum, whose derivative is a mask."""
    return eqn.primitive.name == "max" or name_of(eqn) == "relu"


def axes_in_words(axes: tuple[int, ...]) -> str:
    """Name axes as one says them."""
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {axes}"
