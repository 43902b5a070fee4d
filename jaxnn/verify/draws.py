"""Draw the cotangents of outputs, with which a backward is asked."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array


def draw_cotangent(rng: np.random.Generator, like: Any, scale: float = 1.0) -> Array:
    """Draw a cotangent of the shape and dtype of an output: normal numbers, times `scale`.

    Random, because ones hide what sums to zero, as in softmax.
    """
    return jnp.asarray(np.asarray(scale * rng.normal(size=like.shape)).astype(like.dtype))


def cotangent_rng(seed: int) -> np.random.Generator:
    """Return a generator of cotangents, whose numbers are not those of the seed alone.

    Somebody's inputs may be drawn with that: a wrong transpose is right where dy equals x.
    """
    return np.random.default_rng((seed, 0x646F7574))  # "dout"
