"""Many examples in parts: a model of ten thousand images in the memory of a few hundred."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.checks import check_array
from jaxnn.settings import check_integer
from jaxnn.train.doors import as_arrays, check_function, count_examples, traced_in_words


def in_parts(function: Callable[[Any], Any], batch: Any, size: int = 512) -> Any:
    """Return `function(batch)`, computed from parts of at most `size` examples, one after another.

        accuracy = in_parts(lambda part: cnn.accuracy(params, part, config), held_out)
        p = in_parts(lambda inputs: cnn.probabilities(params, inputs, config), inputs)

    Args:
        function: of a batch; returns a pytree of scalars, each a mean over the batch's examples,
            and of arrays with a row for each.
        batch: arrays, or a pytree of them, whose first dimension counts the examples.
        size: at least 1; the memory needed grows with it.

    Returns:
        That pytree: scalars averaged over all examples, rows one after another.

    Raises:
        TypeError, ValueError: the size is no integer of at least 1; the batch is none, or its
            arrays do not share a first dimension; the function takes other arguments, looks at a
            value while it is traced, or returns what is no array, or one with another number of
            rows than it was given.
    """
    check_function("function", function, "function(batch) -> scalars, or rows", 1)
    batch = as_arrays("batch", batch)
    n = count_examples(batch)
    size = min(check_integer("size", size), n)
    starts = jnp.arange(0, n - size + 1, size)
    rest = n % size

    def part(start: Array | int, rows: int) -> Any:
        cut = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, rows), batch)
        return jax.tree.map(partial(_checked, rows), function(cut))

    with traced_in_words("function"):
        outs = lax.map(lambda start: part(start, size), starts)
    last = [part(n - rest, rest)] if rest else []

    def joined(full: Array, *last: Array) -> Array:
        if full.ndim == 1:
            # In float32 at least: in float16 a sum is infinite soon.
            dtype = jnp.result_type(full.dtype, 1.0)
            wide = jnp.promote_types(dtype, jnp.float32)
            total = size * full.sum(dtype=wide) + rest * sum(jnp.asarray(x, wide) for x in last)
            return (total / n).astype(dtype)
        return jnp.concatenate([full.reshape(-1, *full.shape[2:]), *last])

    return jax.tree.map(joined, outs, *last)


def _checked(rows: int, out: Any) -> Any:
    """Refuse what is neither a scalar nor has a row for each of so many examples."""
    if not isinstance(out, bool | int | float):
        check_array("in_parts: what the function returns", out)
    if jnp.shape(out)[:1] not in ((), (rows,)):
        raise ValueError(
            f"in_parts: the function returned shape {jnp.shape(out)} for {rows} examples; it must "
            "return scalars, or arrays with a row per example"
        )
    return out
