"""Many examples in parts: a model of ten thousand images in the memory of a few hundred."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.settings import check_integer
from jaxnn.train.doors import count_examples


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
        TypeError, ValueError: the size is no integer of at least 1, the arrays do not share a first
            dimension, or an array returned has another number of rows than it was given.
    """
    n = count_examples(batch)
    size = min(check_integer("size", size), n)
    batch = jax.tree.map(jnp.asarray, batch)
    starts = jnp.arange(0, n - size + 1, size)
    rest = n % size

    def part(start: Array | int, rows: int) -> Any:
        cut = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, rows), batch)
        return jax.tree.map(partial(_checked, rows), function(cut))

    outs = lax.map(lambda start: part(start, size), starts)
    last = [part(n - rest, rest)] if rest else []

    def joined(full: Array, *last: Array) -> Array:
        if full.ndim == 1:
            return (size * full.sum() + rest * sum(last)) / n
        return jnp.concatenate([full.reshape(-1, *full.shape[2:]), *last])

    return jax.tree.map(joined, outs, *last)


def _checked(rows: int, out: Any) -> Any:
    """Refuse what is neither a scalar nor has a row for each of so many examples."""
    if jnp.shape(out)[:1] not in ((), (rows,)):
        raise ValueError(
            f"in_parts: the function returned shape {jnp.shape(out)} for {rows} examples; it must "
            "return scalars, or arrays with a row per example"
        )
    return out
