"""Compute the cotangents on trial: those JAX gives by a function's own rules, or a backward's."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.verify.derivative import derivative
from jaxnn.verify.problem import Problem, is_floating
from jaxnn.verify.returned import Returned, structural_faults
from jaxnn.verify.trace import primitives_of
from jaxnn.verify.weighted import Weighted, is_array_or_traced, raised_by_jax, refuse_form

# What a custom_vjp function becomes in forward mode: it can be traced, and not run.
_BACKWARD_ONLY = "custom_lin"


def cotangents_by_rule(
    weighted: Weighted,
    inputs: Any,
    douts: list[Any],
    settings: Any,
    only: int | None = None,
    name: str = "f",
) -> Any:
    """Return what JAX gives for a function's derivative, its rules run; None if not floating.

    Raises:
        TypeError: a rule has not the form that JAX asks for.
        ValueError: there is no derivative in reverse or forward mode.
        Exception: what a rule raises itself.
    """
    outputs, active = weighted.of_floating(inputs, settings)

    def loss(active: list[Any], douts: list[Any]) -> Any:
        return weighted.summed(outputs(active), douts, only)

    try:
        _, found = derivative(loss, "reverse mode")(active, douts)
    except Exception as error:  # each primitive without a rule has an error of its own
        refuse_form(name, error)
        found = _by_tangents(loss, active, douts, name, error)
    leaves, tree = jax.tree.flatten(inputs)
    gradients = iter(found)
    floating = [is_array_or_traced(x) and is_floating(x) for x in leaves]
    return jax.tree.unflatten(tree, [next(gradients) if f else None for f in floating])


def _by_tangents(
    loss: Any, active: list[Any], douts: list[Any], name: str, error: Exception
) -> list[Any]:
    """The derivative in forward mode, where JAX refuses reverse mode with an error.

    Raises:
        ValueError: it refuses both.
        Exception: what a rule raises itself.
    """
    forward = derivative(loss, "forward mode")
    advice = (
        "give it a rule with jax.custom_vjp, or compare it with a plain function by verify.against"
    )
    try:
        if _BACKWARD_ONLY in primitives_of(jax.make_jaxpr(forward)(active, douts)):
            advice = (
                "a custom_vjp inside has reverse mode alone, and that is what failed: mend its "
                "backward rule, or what it is differentiated through (a while_loop as a scan)"
            )
            raise error
        _, found = forward(active, douts)
    except Exception as last:
        if not raised_by_jax(error):
            raise error from None
        said = " ".join(str(error).split())
        raise ValueError(
            f"{name} has no derivative of its own, in reverse mode or in forward mode; {advice}. "
            f"JAX says: {type(error).__name__}: {said:.300}"
        ) from last
    ends = np.cumsum([x.size for x in active])[:-1]
    parts = jnp.split(found, ends)
    return [p.reshape(x.shape).astype(x.dtype) for p, x in zip(parts, active, strict=True)]


def cotangents_by_backward(
    backward: Callable[..., Any],
    inputs: tuple[Any, ...],
    outputs: Any,
    douts: list[Any],
    settings: dict[str, Any],
) -> tuple[Any, ...]:
    """Return a backward's cotangents for those of the floating outputs; zeros where it has None.

    Raises:
        TypeError: it returns another number of them.
    """
    leaves, tree = jax.tree.flatten(outputs)
    given = iter(douts)
    dout = [next(given) if is_floating(x) else jnp.zeros(x.shape, x.dtype) for x in leaves]
    found = backward(*inputs, dout=jax.tree.unflatten(tree, dout), **settings)
    several = type(found) in (tuple, list)
    if not several or len(found) != len(inputs):
        what = f"{len(found)} cotangents" if several else f"a {type(found).__name__}"
        raise TypeError(
            f"backward returns {what}; it must return a tuple of one cotangent per input, and f "
            f"takes {len(inputs)}"
        )
    return tuple(
        jax.tree.map(_zeros, x) if dx is None else dx for x, dx in zip(inputs, found, strict=True)
    )


def check_cotangents(out: Returned, problem: Problem) -> None:
    """Refuse cotangents that are not one for every leaf of an input.

    Raises:
        ValueError: one is missing, or belongs to none.
    """
    dtypes = {path: x.dtype for path, x in zip(problem.paths, problem.floats, strict=True)}
    problems, faults = structural_faults(out, problem.expected, dtypes)
    missing = [m for messages in faults.values() for m in messages if m.startswith("missing")]
    if problems or missing:
        raise ValueError(
            f"{(*problems, *missing)[0]}; backward must return a tuple of one cotangent per "
            f"input, with the containers of that input: {', '.join(problem.paths)}"
        )


def _zeros(x: Any) -> Any:
    """What no cotangent stands for; None for what has none."""
    return jnp.zeros_like(x) if is_array_or_traced(x) and is_floating(x) else None
