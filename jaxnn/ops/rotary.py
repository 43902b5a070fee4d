"""Rotary position embedding: pairs of a head's numbers turn by angles that grow with the position.

So the product of a query and a key depends on how far apart they are. At position t, for the pairs
i = 0 .. D/2 - 1:

    theta_ti  = t base^(-2i/D)
    y_i       = x_i cos theta_ti - x_{i+D/2} sin theta_ti
    y_{i+D/2} = x_{i+D/2} cos theta_ti + x_i sin theta_ti

A rotation's transpose is the rotation back: dx is dy turned by -theta.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnn.checks import check_array, check_floating
from jaxnn.op import Op
from jaxnn.settings import check_number


def rotary_fwd(x: Array, positions: Array, *, base: float = 10000.0) -> tuple[Array, Array]:
    """Queries or keys turned by their positions, as above; y has the shape of x.

    The pairs are number i of the first half and number i of the second, as in Llama's published
    weights; the paper's pairs are neighbours, a permutation of the same.

    Saves the positions, which are there already: no extra bytes. Sine and cosine are recomputed.
    Angles are computed in float32 or wider, whatever the dtype of x: in bfloat16 a position above
    256 would be another.

    Args:
        x: (N, T, H, D), D even.
        positions: integers (T,), or (N, T) where the rows differ.
        base: of the geometric series of frequencies, above 0; what turns slowest does so once in
            about 2 pi base positions.

    Raises:
        TypeError: x is no floating array, the positions no array of integers, or the base no
            number.
        ValueError: x is not (N, T, H, D), D is odd, the positions do not fit, or the base is not
            finite and above 0.

    Su et al. (2021), "RoFormer", equation 34.
    """
    check_floating("rotary: x", x)
    check_array("rotary: positions", positions)
    if x.ndim != 4:
        raise ValueError(
            f"rotary: x has shape {x.shape}; it must be (batch, positions, heads, size): reshape "
            "it to four dimensions"
        )
    if x.shape[3] % 2:
        raise ValueError(
            f"rotary: x has shape {x.shape}, heads of size {x.shape[3]}; the size must be even, "
            "because its halves are paired: choose an even head size"
        )
    if not jnp.issubdtype(positions.dtype, jnp.integer):
        raise TypeError(
            f"rotary: positions have dtype {positions.dtype}; they must be integers, which have no "
            "gradient: cast them with positions.astype(int)"
        )
    if positions.shape not in (x.shape[1:2], x.shape[:2]):
        raise ValueError(
            f"rotary: positions have shape {positions.shape}, x {x.shape}; there must be one "
            f"for each of the {x.shape[1]} positions, {x.shape[1:2]} or {x.shape[:2]}: pass "
            f"jnp.arange({x.shape[1]}), or slice what you have"
        )
    base = check_number(
        "rotary: base",
        base,
        "finite and above 0, for example 10000.0",
        lambda b: 0 < b < math.inf,
    )
    return _turned(x, positions, base, 1), positions


def rotary_bwd(positions: Array, dy: Array, *, base: float = 10000.0) -> tuple[Array, None]:
    """dx = dy turned back by the same angles; positions have none."""
    return _turned(dy, positions, base, -1), None


def _turned(x: Array, positions: Array, base: float, sign: int) -> Array:
    """The two halves of x turned as a pair, by `sign` times the angles.

    The sign is the angle's: a position may be unsigned, and has no negative.
    """
    wide = np.promote_types(x.dtype, np.float32)
    frequencies = base ** (-jnp.arange(0, x.shape[-1], 2, dtype=wide) / x.shape[-1])
    angles = sign * positions.astype(wide)[..., None, None] * frequencies  # (..., T, 1, D/2)
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _example(key: Array) -> tuple[Array, Array]:
    """Rows at different positions, position 0 among them and one far off."""
    positions = jnp.array([[0, 1, 2, 3, 4], [7, 8, 9, 10, 1000], [0, 0, 3, 1, 2]])
    return jax.random.normal(key, (3, 5, 2, 6)), positions


rotary = Op(rotary_fwd, rotary_bwd, example=_example, settings=({}, {"base": 100.0}))
