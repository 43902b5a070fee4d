"""Points at which a student's functions are asked: inputs in float64, and what is right there."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.learn.exercise import Exercise
from jaxnn.learn.lines import Lines

Leaf = np.ndarray[Any, Any]
# A right answer in float64 is within so much of its scale; an explanation too.
EXACT = 1e-9
SEEDS = (0, 1)


class Point(NamedTuple):
    """One point.

    Attributes:
        inputs: of the forward, floating ones in float64.
        out: what the forward gives.
        dout: a random cotangent of it.
        right: autodiff's cotangents by name (for a dict of parameters as params['w']), in float64.
        lines: the forward line by line, where it is written so.
        values: all that has a name there: inputs, lines, the cotangent of the output.
    """

    inputs: tuple[Any, ...]
    out: Any
    dout: Any
    right: dict[str, Leaf]
    lines: Lines | None
    values: dict[str, Any]


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Compute in float64 inside."""
    with jax.enable_x64(True):
        yield


def lifted(tree: Any, dtype: Any = np.float64) -> Any:
    """Return floating arrays in a dtype, the others as they are."""
    return jax.tree.map(lambda x: jnp.asarray(x, dtype) if is_floating(x) else jnp.asarray(x), tree)


def is_floating(x: Any) -> bool:
    """Whether it has a cotangent."""
    return bool(jnp.issubdtype(jnp.result_type(x), jnp.floating))


_points: dict[tuple[str, int], Point] = {}


def point_of(exercise: Exercise, seed: int) -> Point:
    """Return an exercise's point of a seed, computed once. Call in `in_float64`."""
    key = exercise.name, seed
    if key not in _points:
        _points[key] = _made(exercise, seed)
    return _points[key]


def _made(exercise: Exercise, seed: int) -> Point:
    forward = exercise.module.forward
    inputs = lifted(exercise.module.example(jax.random.key(seed)))
    lines: Lines | None
    try:
        lines = Lines(forward, *inputs, seed=seed + 7)
        out, dout = lines.out, lines.dout
        values = dict(zip(lines.names, lines, strict=True))
    except (TypeError, ValueError):  # a whole model, written as one likes
        lines, out, values = None, forward(*inputs), {}
        dout = jax.random.normal(jax.random.key(seed + 7), jnp.shape(out), jnp.float64)
    return Point(
        inputs,
        out,
        dout,
        right_of(exercise, inputs, dout),
        lines,
        {**values, f"d{exercise.output}": dout},
    )


def right_of(exercise: Exercise, inputs: tuple[Any, ...], dout: Any) -> dict[str, Leaf]:
    """Return autodiff's cotangents of the exercise's own forward, by name."""
    places = [i for i, x in enumerate(inputs) if all(map(is_floating, jax.tree.leaves(x)))]

    def of_floating(*floating: Any) -> Any:
        given = list(inputs)
        for place, value in zip(places, floating, strict=True):
            given[place] = value
        return exercise.module.forward(*given)

    _, pull = jax.vjp(of_floating, *(inputs[i] for i in places))
    found: dict[str, Leaf] = {}
    for place, value in zip(places, pull(dout), strict=True):
        found |= named(exercise.inputs[place], value)
    return found


def named(name: str, tree: Any) -> dict[str, Any]:
    """Return the leaves of a pytree with their names, NumPy's arrays; a leaf None stays."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is None)
    return {
        f"{name}{jax.tree_util.keystr(path)}": leaf if leaf is None else np.asarray(leaf)
        for path, leaf in pairs
    }


def close(a: Leaf, b: Leaf, exact: float = EXACT) -> bool:
    """Whether two are equal to rounding, by the scale of the second; NaN is equal to nothing."""
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return False
    return float(np.abs(a - b).max(initial=0.0)) <= exact * float(np.abs(b).max(initial=0.0))
