"""The exercises, one module each: a forward line by line, its backward in single steps and short.

A module has LESSON, INPUTS, OUTPUT, HINTS, GRADES and BUGS; `forward`, the reference of all grades;
`steps`, the solution of the grade "easy"; `NAME_fwd` and `NAME_bwd`, the solution of "fused" and
"memory"; `library`, the library's own op on the same inputs; `example`, a small generic point.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import Array

Numbers = np.ndarray[Any, Any]


def normals(key: Array, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Numbers]:
    """Draw an array of standard-normal numbers for every shape, by name.

    All in one draw, and in NumPy's arrays: JAX would compile a program for every shape, which takes
    seconds in a whole model.
    """
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    parts = np.split(np.asarray(jax.random.normal(key, (ends[-1],))), ends[:-1])
    pairs = zip(shapes.items(), parts, strict=True)
    return {name: part.reshape(shape) for (name, shape), part in pairs}
