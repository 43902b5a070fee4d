"""What is measured: a case has arms, an arm does the whole of the case's work.

The inputs are the same for all, and so is the work: forward and backward, for a result and all its
gradients. By hand, that is `op.fwd` and `op.bwd` or a model's `manual_value_and_grad`; by
`jax.grad`, `jax.vjp` of the same forward or `jax.value_and_grad` of the model's loss. Arms called
"jax.grad, ..." are stronger forms for autodiff of the same function. What PyTorch does is in
`experiments.benchmark.in_torch`. No arm donates, all compute in float32.
"""

import math
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from jax import Array

BY_HAND, AUTODIFF, PYTORCH = "by hand", "jax.grad", "PyTorch"
COMPILED = f"{PYTORCH} compiled"


class LeftOutError(Exception):
    """An arm that cannot run here, with the reason."""


class Arm(NamedTuple):
    """One way to do a case's work, ready to run.

    Attributes:
        run: does it, waits for it, and returns (result, gradients); of each the first leaf is
            compared with the other arms'.
        temporary: bytes that the compiled program needs beside its inputs and outputs; None where
            nothing says.
        compile_seconds: tracing included; None where nothing is compiled.
        moved: bytes of its inputs and outputs: what has to pass through memory once.
    """

    run: Callable[[], tuple[Any, Any]]
    temporary: int | None = None
    compile_seconds: float | None = None
    moved: int | None = None


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
    """

    what: str
    make: Callable[[], Builds]
    step: bool = False
    flops: float | None = None
    base: str = BY_HAND
    agree: float = 1e-3


def cores() -> int:
    """How many cores this process may use, and JAX does."""
    return len(os.sched_getaffinity(0))


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


def product(size: int) -> Arm:
    """One product of two square matrices: what the machine can do, 2 size^3 operations."""
    a, b = normal(0, size, size), normal(1, size, size)
    return compiled(lambda a, b: (a @ b, ()), a, b)


def copy(size: int) -> Arm:
    """So many numbers read and written again: what the memory can do, 8 bytes for each."""
    return compiled(lambda x: (x + 1, ()), normal(0, size))


def peers(works: Callable[[Any], Any]) -> Builds:
    """PyTorch's arms, which import it no earlier than this."""
    from experiments import torch_peer

    def missing(reason: str) -> Arm:
        raise LeftOutError(reason)

    if not torch_peer.installed:
        return {PYTORCH: partial(missing, torch_peer.MISSING)}
    if jax.default_backend() != "cpu":
        return {PYTORCH: partial(missing, f"it would run on the CPU, JAX on {jax.devices()[0]}")}
    from experiments.benchmark import in_torch

    return in_torch.builds(works(in_torch))


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
    drawn = [normal(10 + i, *leaf.shape) / size**0.5 for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(tree, drawn)
