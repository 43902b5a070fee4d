"""Rotary positions: pairs of a head's numbers turn by angles that grow with the position.

So the product of a query and a key depends on how far apart they are. At position t, of the pairs
i = 0 .. D/2 - 1:

    theta_ti  = t base^(-2i/D)
    y_i       = x_i cos theta_ti - x_{i+D/2} sin theta_ti
    y_{i+D/2} = x_{i+D/2} cos theta_ti + x_i sin theta_ti

The transpose of a rotation is the rotation back: dx is dy turned by -theta.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnn.op import Op
from jaxnn.ops.attention_doors import check_rotary


def rotary_fwd(x: Array, positions: Array, *, base: float = 10000.0) -> tuple[Array, Array]:
    """Turn queries or keys by their positions, as above: y of the shape of x.

    The pairs are number i of the first half and number i of the second, as in Llama's published
    weights; the paper's are neighbours. Saves the positions, which are there already; sine and
    cosine are recomputed, of angles in float32 or wider: in bfloat16 position 257 would be 256.

    Args:
        x: (N, T, H, D), D even.
        positions: integers (T,), or (N, T) where the rows differ.
        base: what turns slowest does so once in about 2 pi base positions; above 0.

    Raises:
        TypeError: x is no floating array, the positions no array of integers, or the base no
            number.
        ValueError: x is not (N, T, H, D), D is odd, the positions do not fit, or the base is not
            finite and above 0.

    Su et al. (2021), "RoFormer", equation 34.
    """
    cos, sin = _cos_and_sin(positions, x, base)
    first, second = jnp.split(x, 2, axis=-1)
    y = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return y, positions


def rotary_bwd(positions: Array, dy: Array, *, base: float = 10000.0) -> tuple[Array, None]:
    """Return dx = dy turned back by the same angles."""
    cos, sin = _cos_and_sin(positions, dy, base)
    first, second = jnp.split(dy, 2, axis=-1)
    dx = jnp.concatenate([first * cos + second * sin, second * cos - first * sin], axis=-1)
    return dx, None


def _cos_and_sin(positions: Array, x: Array, base: float) -> tuple[Array, Array]:
    """Of the angles (..., T, 1, D/2), in the dtype of x."""
    wide = np.promote_types(x.dtype, np.float32)
    frequencies = base ** (-jnp.arange(0, x.shape[-1], 2, dtype=wide) / x.shape[-1])
    angles = positions.astype(wide)[..., None, None] * frequencies
    return jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)


def _example(key: Array) -> tuple[Array, Array]:
    """Rows at different positions, position 0 among them and one far off."""
    positions = jnp.array([[0, 1, 2, 3, 4], [7, 8, 9, 10, 1000], [0, 0, 3, 1, 2]])
    return jax.random.normal(key, (3, 5, 2, 6)), positions


rotary = Op(rotary_fwd, rotary_bwd, _example, ({}, {"base": 100.0}), check=check_rotary)
