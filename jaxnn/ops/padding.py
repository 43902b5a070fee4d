"""Padding of sequences, images and volumes (N, ..., C) at the ends of their axes of positions.

    y[o] = x[i(o)]      dx[i] = sum of dy[o] over the o with i(o) = i

along one axis after another; i(o) is o less the padding before it where that is a position; else

    constant     none: y is a value, with no gradient
    reflect      mirrored at the middle of the first and last position:  c b | a b c | b a
    replicate    the first or the last:                                  a a | a b c | c c
    circular     as if the sequence began anew:                          b c | a b c | a b
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnn.numerics import widen
from jaxnn.op import Op
from jaxnn.ops.windows import add_at, ends_per_axis, take_at
from jaxnn.ops.windows_doors import check_pad

Sides = int | tuple[tuple[int, int], ...]
NUMPYS = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}  # its words for modes


def _source(h: int, ends: tuple[int, int], mode: str) -> Any:
    """Return i(o) along an axis, where every o has one: NumPy pads the positions themselves."""
    how: Any = NUMPYS[mode]
    return np.pad(np.arange(h), ends, how)


def pad_fwd(
    x: Array, *, padding: Sides = 1, mode: str = "constant", value: float = 0.0
) -> tuple[Array, Array]:
    """Pad every axis of positions. Saves x for its shape: no extra bytes.

    Args:
        x: (N, ..., C), one to three axes of positions.
        padding: one number for all sides, or (before, after) per axis.
        mode: "constant", "reflect", "replicate" or "circular", as in PyTorch.
        value: of "constant".

    Returns:
        y (N, ..., C), residuals.

    Raises:
        TypeError: x is no array of floating numbers, or a setting is of another type.
        ValueError: x has not three to five axes, or a 0 but for N; a setting has the wrong form;
            "reflect" needs more positions than it pads, "circular" as many.
    """
    sides = ends_per_axis(padding, x.ndim - 2)
    if mode == "constant":
        return jnp.pad(x, ((0, 0), *sides, (0, 0)), constant_values=value), x
    y = x
    for axis, ends in enumerate(sides, 1):
        y = take_at(y, _source(x.shape[axis], ends, mode), axis)
    return y, x


def pad_bwd(
    x: Array, dy: Array, *, padding: Sides = 1, mode: str = "constant", value: float = 0.0
) -> tuple[Array]:
    """Return dx = the dy of a position and of its copies, added up in float32 or wider."""
    sides = ends_per_axis(padding, x.ndim - 2)
    if mode == "constant":
        inner = [slice(lo, lo + h) for h, (lo, _) in zip(x.shape[1:-1], sides, strict=True)]
        return (dy[:, *inner],)
    dx = widen(dy)
    for axis, ends in enumerate(sides, 1):
        dx = add_at(dx, _source(x.shape[axis], ends, mode), axis, x.shape[axis])
    return (dx.astype(x.dtype),)


pad = Op(
    pad_fwd,
    pad_bwd,
    check=check_pad,
    example=lambda key: (jax.random.normal(key, (3, 4, 5, 2)),),
    settings=(
        {"padding": ((0, 2), (1, 0)), "value": 2.0},
        {"padding": ((3, 2), (1, 4)), "mode": "reflect"},
        {"padding": ((0, 6), (5, 1)), "mode": "replicate"},
        {"padding": ((4, 2), (1, 5)), "mode": "circular"},
    ),
)
