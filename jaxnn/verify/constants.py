"""NumPy arrays that a function holds, in a verification that traces it in two widths.

What JAX makes of such an array it keeps for as long as a trace with it lives, and takes it again
under another `jax_enable_x64`: a loss over float64 data would meet its own float32 constants when
it is lifted, and float64 ones when it is used after.
"""

import functools

import numpy as np


@functools.cache
def by_width() -> None:
    """Have JAX convert NumPy arrays by the width that is set, and not by one remembered."""
    try:
        from jax._src import dtypes, literals  # no public name registers a conversion

        handlers = dtypes.canonicalize_value_handlers

        def converted(x: np.ndarray) -> np.ndarray:
            return literals.TypedNdArray(np.asarray(x, dtypes.canonicalize_dtype(x.dtype)))

        converted(np.zeros(1))
    except (ImportError, AttributeError):  # a JAX that has none of this remembers nothing
        return
    handlers[np.ndarray] = converted
