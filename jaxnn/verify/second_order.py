"""Compare the gradient's own derivative with autodiff's Hessian-vector product.

Dg(x) v = H(x) v
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.verify.findings import described, gaps, worst_gap
from jaxnn.verify.laws import relative_of
from jaxnn.verify.nearby import plausible_rounding
from jaxnn.verify.problem import Problem, is_floating
from jaxnn.verify.programs import Program, compiled
from jaxnn.verify.values import by_path, largest

DIRECTIONS = 3


def second_order(
    problem: Problem, floats: list[Any], rest: list[Any], seed: int
) -> tuple[str, ...]:
    """Say what is wrong with the hand-written gradient's own derivative, along random lines.

    Args:
        problem: the two functions.
        floats: the parameters in float64. Call under `enable_x64`.
        rest: the other arrays, likewise.
        seed: of the directions.
    """

    def by_hand(floats: list[Any], rest: list[Any]) -> Any:
        leaves = by_path(problem.manual_grad(floats, rest))
        return {p: leaf for p, leaf in leaves.items() if p in problem.paths and is_floating(leaf)}

    def by_autodiff(floats: list[Any], rest: list[Any]) -> Any:
        value, leaves = jax.value_and_grad(problem.loss)(floats, rest)
        return dict(zip(problem.paths, leaves, strict=True)), value

    def derivative(gradient: Callable[..., Any]) -> Program:
        def along(floats: list[Any], rest: list[Any], direction: list[Any]) -> Any:
            return jax.jvp(lambda x: gradient(x, rest), (floats,), (direction,))

        return compiled(along, floats, rest, floats)

    programs = []
    for who, gradient in (("hand-written gradient", by_hand), ("loss's gradient", by_autodiff)):
        try:
            programs.append(derivative(gradient))
        except (TypeError, ValueError, NotImplementedError) as error:
            return (
                f"second order: the {who} cannot be differentiated in forward mode "
                f"({described(error)}); does it call a jax.custom_vjp "
                "function, or leave JAX?",
            )
    manual, autodiff = programs
    rng = np.random.default_rng(seed)
    for number in range(DIRECTIONS):
        normal = [rng.normal(size=x.shape) for x in floats]
        norm = np.sqrt(sum(float((n * n).sum()) for n in normal)) or 1.0
        v = [jnp.asarray(n / norm, x.dtype) for n, x in zip(normal, floats, strict=True)]
        _, product = manual.run(floats, rest, v)
        (_, value), (hessian, _) = autodiff.run(floats, rest, v)
        ours, theirs = (
            {path: np.asarray(leaf, np.float64) for path, leaf in leaves.items()}
            for leaves in (product, hessian)
        )
        theirs = {p: theirs[p] for p, leaf in ours.items() if leaf.shape == theirs[p].shape}
        floor = plausible_rounding(float(value))
        allowed = {p: relative_of(programs) * largest(leaf) + floor for p, leaf in theirs.items()}
        if gap := gaps(ours, theirs, allowed):
            return (
                f"second order: along random direction {number + 1} the hand-written gradient's "
                f"own derivative is {worst_gap(gap)}, which is autodiff's Hessian-vector product; "
                "is there a stop_gradient or a custom derivative rule in it?",
            )
    return ()
