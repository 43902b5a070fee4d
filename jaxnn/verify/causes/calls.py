"""Note the calls of ops while a function runs: which op, on what, with what result.

Everything runs op by op, on numbers: compiled functions, scans and branches included. Under
`jax.vmap`, `jax.checkpoint` and `jax.grad` there are no numbers to see, and a function taken from
an op in advance (`f = op.fwd`, a partial of it) is not watched.
"""

import functools
import hashlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.calls import path_name
from jaxnn.op import Op, watched
from jaxnn.verify.problem import Problem, is_floating
from jaxnn.verify.values import by_path


class Forward(NamedTuple):
    """One call `out, residuals = op.fwd(*inputs, **static)`."""

    op: Op[..., Any]
    inputs: tuple[Any, ...]
    static: dict[str, Any]
    out: Any
    residuals: Any


class Backward(NamedTuple):
    """One call `cotangents = op.bwd(residuals, dout, **static)`."""

    op: Op[..., Any]
    residuals: Any
    dout: Any
    static: dict[str, Any]
    cotangents: Any


class Calls:
    """The calls of ops while a function runs on numbers, each noted when it returns.

    Attributes:
        forwards: those of a forward.
        backwards: those of a backward.
        unseen: the names of ops whose forward ran under a transformation, where no numbers are.
    """

    def __init__(self) -> None:
        """Start with none."""
        self.forwards: list[Forward] = []
        self.backwards: list[Backward] = []
        self.unseen: list[str] = []

    def run(self, function: Callable[..., Any], floats: list[Any], rest: list[Any]) -> None:
        """Call `function(floats, rest)` and note the calls of ops inside."""
        with watched(self._watch), jax.disable_jit():
            function(floats, rest)

    def _watch(self, op: Op[..., Any], role: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(plain)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = plain(*args, **kwargs)
            if role == "bwd":
                (residuals, dout), static = _by_position(plain, args, kwargs)
                self.backwards.append(Backward(op, residuals, dout, static, result))
                return result
            args, static = op.arranged(args, kwargs)
            if is_traced((args, result)):
                self.unseen.append(op.name)
            else:
                self.forwards.append(Forward(op, args, static, *result))
            return result

        return call


def forwards_of_backwards(calls: Calls) -> list[list[int]]:
    """List for each backward call the forward calls of its op that returned its residuals.

    By value, since a scan stacks and slices what passes through it. A rule that is right gives the
    same for equal residuals, whichever call they came from; where residuals say little, those of
    the shape of the cotangent and of the same settings are preferred.
    """
    returned: dict[Any, list[int]] = {}
    for i, forward in enumerate(calls.forwards):
        returned.setdefault((forward.op, _fingerprint(forward.residuals)), []).append(i)
    found = []
    for backward in calls.backwards:
        same: list[int] = []
        if not is_traced((backward.residuals, backward.dout, backward.cotangents)):
            same = returned.get((backward.op, _fingerprint(backward.residuals)), [])
        fit = [i for i in same if not shape_fault(calls.forwards[i], backward)] or same
        settings = repr(backward.static)
        found.append([i for i in fit if repr(calls.forwards[i].static) == settings] or fit)
    return found


def shape_fault(forward: Forward, backward: Backward) -> str:
    """Say how the shape of a cotangent differs from that of the result it belongs to."""
    got = by_path(backward.dout)
    for path, out in floating_leaves(forward.out).items():
        if path in got and jnp.shape(got[path]) != out.shape:
            return f"has shape {jnp.shape(got[path])}, the op's result {out.shape}"
    return ""


def true_douts(
    problem: Problem, floats: list[Any], rest: list[Any], results: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the loss's derivative in the result of every forward call, in call order."""

    def moved_loss(steps: list[dict[str, Any]]) -> Any:
        following = iter(steps)

        def watch(_: Op[..., Any], role: str, plain: Callable[..., Any]) -> Callable[..., Any]:
            if role == "bwd":
                return plain

            @functools.wraps(plain)
            def call(*args: Any, **kwargs: Any) -> Any:
                out, residuals = plain(*args, **kwargs)
                step = next(following)
                moved_out = jax.tree_util.tree_map_with_path(
                    lambda path, leaf: leaf + step.get(path_name(path), 0), out
                )
                return moved_out, residuals

            return call

        with watched(watch), jax.disable_jit():
            return problem.loss(floats, rest)

    douts: list[dict[str, Any]] = jax.grad(moved_loss)(
        [{path: jnp.zeros_like(x) for path, x in result.items()} for result in results]
    )
    return douts


def floating_leaves(tree: Any) -> dict[str, Any]:
    """Return the floating arrays of a pytree, by path."""
    return {
        path: leaf
        for path, leaf in by_path(tree).items()
        if hasattr(leaf, "dtype") and is_floating(leaf)
    }


def is_traced(tree: Any) -> bool:
    """Tell whether a pytree holds abstract values."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def _fingerprint(tree: Any) -> Any:
    """The same for two pytrees of equal values, and for no others."""

    def digest(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float):
            return repr(leaf)
        if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
            leaf = jax.random.key_data(jnp.asarray(leaf))
        x = np.asarray(leaf)
        return x.shape, str(x.dtype), hashlib.blake2b(x.tobytes()).digest()

    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(map(digest, leaves))


def _by_position(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call, arrays given by name (inputs, all of them) put in their position."""
    if any(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(kwargs)):
        bound = inspect.signature(function).bind(*args, **kwargs)
        return bound.args, bound.kwargs
    return args, kwargs


def nth_call(k: int, calls: Sequence[Any], kind: str) -> str:
    """Say which of the calls one is, in words, counting from 0."""
    n = k + 1
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending} of {len(calls)} {kind} call{'s' if len(calls) > 1 else ''}"
