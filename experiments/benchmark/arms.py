"""What is measured: a case has arms, an arm does the whole of the case's work.

The inputs are the same for all, and so is the work: forward and backward, for a result and all its
gradients. By hand, that is `op.fwd` and `op.bwd` or a model's `manual_value_and_grad`; by
`jax.grad`, `jax.vjp` of the same forward or `jax.value_and_grad` of the model's loss. Arms called
"jax.grad, ..." are stronger forms for autodiff of the same function; those of Flax NNX and Equinox
are in `experiments.benchmark.frameworks`. PyTorch's are in a process of their own, see
`experiments.benchmark.worker`. No arm donates, all compute in the case's dtype.

On a GPU, JAX multiplies matrices of float32 in TF32 unless it is told not to, PyTorch only if it is
told to: here both are told not to. `jax.grad`'s results are then known to 1e-3 and better, and an
arm that is off by more is wrong.
"""

import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

BY_HAND, AUTODIFF, PYTORCH = "by hand", "jax.grad", "PyTorch"
COMPILED = f"{PYTORCH} compiled"
FLAX, EQUINOX = "Flax NNX", "Equinox"
# Products of float32: the CPU knows no other than full ones, other backends are asked for them.
FULL = "float32"


class LeftOutError(Exception):
    """An arm that cannot run here, with the reason."""


def in_a_line(error: Exception) -> str:
    """What failed, and how it begins to say why."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0]}"


class Arm(NamedTuple):
    """One way to do a case's work, ready to run.

    Attributes:
        run: does it, waits for it, and returns (result, gradients); of each the first leaf is
            compared with the other arms'.
        temporary: bytes that the compiled program needs beside its inputs and outputs; None where
            nothing says.
        compile_seconds: tracing included; None where nothing is compiled.
        moved: bytes of its inputs and outputs: what has to pass through memory once.
        read: an array that `run` returned, as NumPy's, in its dtype.
        seconds: that so many calls take, after an untimed one or not; by default `run` is called
            here.
    """

    run: Callable[[], tuple[Any, Any]]
    temporary: int | None = None
    compile_seconds: float | None = None
    moved: int | None = None
    read: Callable[[Any], Any] = np.asarray
    seconds: Callable[[int, bool], float] | None = None


Builds = dict[str, Callable[[], Arm]]


class Case(NamedTuple):
    """Work to measure.

    Attributes:
        what: sizes and settings, in words.
        make: draws the inputs; what builds each arm, by its name.
        step: whether it is a model's training step.
        flops: floating-point operations of its products, where they are counted.
        base: the arm that the others are compared with.
        agree: how far from `jax.grad`'s an arm's results may be, by the scale of each.
        dtype: what it is computed in, and the product that its rate is compared with.
        peers: what builds PyTorch's arms, where PyTorch is.
        most_rounds: fewer turns than asked for, of what takes many seconds.
        tokens: of a step of a language model, how many it reads.
    """

    what: str
    make: Callable[[], Builds]
    step: bool = False
    flops: float | None = None
    base: str = BY_HAND
    agree: float = 1e-3
    dtype: Any = jnp.float32
    peers: Callable[[], Builds] = dict
    most_rounds: int | None = None
    tokens: int | None = None


def answer(arm: Arm) -> list[Any]:
    """The first array of an arm's result, and of its gradients, as NumPy's."""
    leaves = [jax.tree.leaves(part) for part in arm.run()]
    return [arm.read(part[0]) if part else np.zeros(()) for part in leaves]


def off(a: Any, b: Any) -> float:
    """The largest difference of two arrays by the scale of the second.

    Infinite where their shapes differ, NaN where a number is none: neither is at most anything.
    """
    if a.shape != b.shape:
        return math.inf
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    scale = float(np.abs(b).max()) or 1.0
    return float(np.abs(a - b).max()) / scale


def cores() -> int:
    """How many cores this process may use, and JAX does."""
    return len(os.sched_getaffinity(0))


def on_accelerator() -> bool:
    """Whether JAX computes on something other than the CPU."""
    return jax.default_backend() != "cpu"


def precision(dtype: Any) -> AbstractContextManager[Any]:
    """In which products of float32 are full ones; those of other dtypes are left alone."""
    asked = FULL if on_accelerator() and dtype == jnp.float32 else None
    within: AbstractContextManager[Any] = jax.default_matmul_precision(asked)
    return within


def compiled(function: Callable[..., tuple[Any, Any]], *inputs: Any) -> Arm:
    """`function(*inputs)` as a compiled program, with nothing of it compiled before."""
    jax.clear_caches()
    started = time.perf_counter()
    program = jax.jit(function).lower(*inputs).compile()
    seconds = time.perf_counter() - started
    memory = program.memory_analysis()
    arm = Arm(lambda: jax.block_until_ready(program(*inputs)), compile_seconds=seconds)
    if memory is None:
        return arm
    moved = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return arm._replace(temporary=memory.temp_size_in_bytes, moved=moved)


def product(size: int, dtype: Any = jnp.float32) -> Arm:
    """One product of two square matrices: what the machine can do, 2 size^3 operations."""
    a, b = (normal(seed, size, size).astype(dtype) for seed in range(2))
    return compiled(lambda a, b: (a @ b, ()), a, b)


def copy(size: int) -> Arm:
    """So many numbers read and written again: what the memory can do, 8 bytes for each."""
    return compiled(lambda x: (x + 1, ()), normal(0, size))


def named(arm: str, form: str) -> str:
    """An arm's name: of a form of it, where it is not the plain one."""
    return f"{arm}, {form}" if form else arm


def normal(seed: int, *shape: int) -> Array:
    """Numbers drawn from N(0, 1)."""
    return jax.random.normal(jax.random.key(seed), shape)


def integers(seed: int, below: int, *shape: int) -> Array:
    """Numbers drawn from 0 to `below` - 1."""
    return jax.random.randint(jax.random.key(seed), shape, 0, below)


def cotangent(out: Any) -> Any:
    """A random array for every leaf of a result, scaled as a mean loss would."""
    leaves, tree = jax.tree.flatten(out)
    size = max(math.prod(leaf.shape) for leaf in leaves)
    drawn = [
        (normal(10 + i, *leaf.shape) / size**0.5).astype(leaf.dtype)
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(tree, drawn)
