"""Rotary positions: pairs of a head's numbers turn by angles that grow with the position.

So the product of a query and a key depends on how far apart they are. At position t, of the pairs
i = 0 .. D/2 - 1:

    f_i       = base^(-2i/D)                      the angle per position, slower with every pair
    theta_ti  = t f_i
    y_i       = x_i cos theta_ti - x_{i+D/2} sin theta_ti
    y_{i+D/2} = x_{i+D/2} cos theta_ti + x_i sin theta_ti

The transpose of a rotation is the rotation back: dx is dy turned by -theta.

A model that has learned its positions from short texts reads longer ones if slow pairs turn more
slowly still, by a `Scaling`:

    f_i <- f_i (keep_i + (1 - keep_i) / factor)
    keep_i = min(max((turns_i - low) / (high - low), 0), 1),  turns_i = positions f_i / (2 pi)

or f_i / factor throughout (Chen et al., 2023, "Extending context window of large language models
via positional interpolation"). The other is that of Llama 3.1.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.numerics import widen
from jaxnn.op import Op
from jaxnn.ops.attention_doors import check_rotary


class Scaling(NamedTuple):
    """How much slower pairs turn: a setting, of Python's numbers.

    Attributes:
        factor: by which a frequency is divided; at least 1.
        low: what turns less often than this within `positions` is slowed by the whole factor. None,
            with the two that follow, to slow all alike.
        high: what turns more often than this stays as it was; above `low`. Between the two it is a
            mean of both.
        positions: how many the model has learned from.
    """

    factor: float
    low: float | None = None
    high: float | None = None
    positions: int | None = None


def rotary_fwd(
    x: Array, positions: Array, *, base: float = 10000.0, scaling: Scaling | None = None
) -> tuple[Array, Array]:
    """Turn queries or keys by their positions, as above: y of the shape of x.

    The pairs are number i of the first half and number i of the second, as in Llama's published
    weights; the paper's are neighbours. Saves the positions, which are there already; sine and
    cosine are recomputed. Angles and products are in float32 or wider: in bfloat16 position 257
    would be 256.

    Args:
        x: (N, T, H, D), D even.
        positions: integers (T,), or (N, T) where the rows differ.
        base: what turns slowest does so once in about 2 pi base positions; above 0, and not
            so near it that an angle could be infinite in float32 or wider.
        scaling: of the frequencies, None for none.

    Raises:
        TypeError: x is no floating array, the positions no array of integers, the base no number,
            or the scaling neither a `Scaling` of numbers nor None.
        ValueError: x is not (N, T, H, D), D is odd, the positions do not fit, the base is not
            finite and positive in float32 or wider or so near 0 that an angle could be infinite,
            or a part of the scaling is outside its range or lacks another.

    Su et al. (2021), "RoFormer", equation 34.
    """
    return _turned(x, positions, 1, base, scaling), positions


def rotary_bwd(
    positions: Array, dy: Array, *, base: float = 10000.0, scaling: Scaling | None = None
) -> tuple[Array, None]:
    """Return dx = dy turned back by the same angles."""
    return _turned(dy, positions, -1, base, scaling), None


def _turned(x: Array, positions: Array, way: int, base: float, scaling: Scaling | None) -> Array:
    """x turned by way theta, rounded to its dtype once."""
    first, second = jnp.split(widen(x), 2, axis=-1)
    frequencies = base ** (-jnp.arange(0, x.shape[-1], 2, dtype=first.dtype) / x.shape[-1])
    if scaling is not None:
        frequencies = _slowed(frequencies, scaling)
    angles = positions.astype(first.dtype)[..., None, None] * frequencies
    cos, sin = jnp.cos(angles), way * jnp.sin(angles)
    turned = first * cos - second * sin, second * cos + first * sin
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def _slowed(frequencies: Array, scaling: Scaling) -> Array:
    """The frequencies of a `Scaling`, as above."""
    factor, low, high, positions = scaling
    if low is None or high is None or positions is None:
        return frequencies / factor
    turns = positions * frequencies / (2 * math.pi)
    keep = jnp.clip((turns - low) / (high - low), 0, 1)
    return frequencies * (keep + (1 - keep) / factor)


def _example(key: Array) -> tuple[Array, Array]:
    """Rows at different positions, position 0 among them and one far off."""
    positions = jnp.array([[0, 1, 2, 3, 4], [7, 8, 9, 10, 1000], [0, 0, 3, 1, 2]])
    return jax.random.normal(key, (3, 5, 2, 6)), positions


rotary = Op(
    rotary_fwd,
    rotary_bwd,
    example=_example,
    settings=(
        {},
        {"base": 100.0, "scaling": Scaling(4.0)},
        # Of the three frequencies one is kept, one halved in part, one halved.
        {"base": 100.0, "scaling": Scaling(2.0, 1.0, 4.0, 64)},
    ),
    check=partial(check_rotary, Scaling),
)
