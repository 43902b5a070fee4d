"""Points at which a student's functions are asked: inputs in float64, and what is right there."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.learn import draw
from jaxnn.learn.exercise import Exercise
from jaxnn.verify.draws import cotangent_rng

Leaf = np.ndarray[Any, Any]
# A right answer in float64 is within so much of its scale; an explanation too.
EXACT = 1e-9
SEEDS = (0, 1)
# Each of these programs is run a few times: what counts is how long it takes to compile.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class Point(NamedTuple):
    """One point.

    Attributes:
        inputs: of the forward, floating ones in float64.
        out: what the forward gives.
        dout: a random cotangent of it.
        right: autodiff's cotangents by name (for a dict of parameters as params['w']), in float64.
        inner: the same of the names that lines of the forward give.
        values: all that has a name there: inputs, lines, the cotangent of the output.
    """

    inputs: tuple[Any, ...]
    out: Any
    dout: Any
    right: dict[str, Leaf]
    inner: dict[str, Leaf]
    values: dict[str, Any]


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Compute in float64 inside."""
    with jax.enable_x64(True):
        yield


def lifted(tree: Any, dtype: Any = np.float64) -> Any:
    """Return floating arrays in a dtype, the others as they are."""
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x, dtype) if is_floating(x) else x), tree)


def is_floating(x: Any) -> bool:
    """Whether it has a cotangent."""
    return bool(jnp.issubdtype(jnp.result_type(x), jnp.floating))


def floats(tree: Any) -> bool:
    """Whether all leaves of an input have a cotangent."""
    return all(map(is_floating, jax.tree.leaves(tree)))


@functools.cache
def drawn(exercise: Exercise, seed: int) -> tuple[Any, ...]:
    """Return an exercise's example of a seed, in float32."""
    with jax.enable_x64(False):
        return draw.example(exercise.module.example, seed)


@functools.cache
def cotangent(exercise: Exercise, seed: int) -> Leaf:
    """Return a random cotangent of an exercise's output, in float64."""
    return cotangent_at(exercise, drawn(exercise, 0), seed)


def cotangent_at(exercise: Exercise, inputs: tuple[Any, ...], seed: int) -> Leaf:
    """Return a random cotangent of the output at given inputs, in float64."""
    shape = jax.eval_shape(exercise.module.forward, *inputs).shape
    return np.asarray(cotangent_rng(seed).standard_normal(shape))


@functools.cache
def point_of(exercise: Exercise, seed: int) -> Point:
    """Return an exercise's point of a seed, computed once. Call in `in_float64`."""
    return point_at(exercise, lifted(drawn(exercise, seed)), seed)


def point_at(exercise: Exercise, inputs: tuple[Any, ...], seed: int, dout: Any = None) -> Point:
    """Return what is right at given inputs; a cotangent is drawn. Call in `in_float64`."""
    if dout is None:
        dout = jnp.asarray(cotangent(exercise, seed))
    out, values, cotangents = _compiled(exercise)(inputs, dout)
    right: dict[str, Leaf] = {}
    for name in exercise.inputs:
        if name in cotangents:
            right |= named(name, cotangents.pop(name))
    return Point(
        inputs,
        out,
        dout,
        right,
        {name: np.asarray(value) for name, value in cotangents.items()},
        {**values, f"d{exercise.output}": dout},
    )


@functools.cache
def _compiled(exercise: Exercise) -> Any:
    """The forward and autodiff's cotangents of all that has a name, as one program."""
    written, names = exercise.written, exercise.inputs

    def run(values: dict[str, Any], moves: dict[str, Any]) -> dict[str, Any]:
        """Values by name, each moved as it is given: a move's gradient is that cotangent."""

        def moved(given: dict[str, Any]) -> dict[str, Any]:
            return {
                k: jax.tree.map(jnp.add, v, moves[k]) if k in moves else v for k, v in given.items()
            }

        values = moved(values)
        if written is None:
            return {exercise.output: exercise.module.forward(*(values[n] for n in names))}
        for number in range(len(written.lines)):
            values |= moved(written.run_line(number, values))
        return values

    @functools.partial(jax.jit, compiler_options=QUICK)
    def everything(inputs: tuple[Any, ...], dout: Any) -> tuple[Any, Any, Any]:
        given = dict(zip(names, inputs, strict=True))
        result = exercise.output if written is None else written.result
        known = {**given, **jax.eval_shape(lambda g: run(g, {}), given)}
        if written is None:
            known = given
        still = {
            k: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), v)
            for k, v in known.items()
            if all(jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(v))
        }

        def weighted(moves: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            values = run(given, moves)
            return (values[result] * dout).sum(), values

        cotangents, values = jax.grad(weighted, has_aux=True)(still)
        return values[result], {} if written is None else values, cotangents

    return everything


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


def apart(a: float, b: float) -> tuple[str, str]:
    """Write two numbers with six digits, or as many as it takes to tell them apart."""
    for digits in range(6, 18):
        first, second = f"{a:.{digits}g}", f"{b:.{digits}g}"
        if first != second:
            break
    return first, second
