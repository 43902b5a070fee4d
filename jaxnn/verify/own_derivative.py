"""What JAX gives for a function's derivative, its rules run: what is on trial."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.verify.derivative import derivative
from jaxnn.verify.form_of_rules import raised_by_jax, refuse_form
from jaxnn.verify.jaxprs import primitives_of
from jaxnn.verify.problem import is_floating
from jaxnn.verify.weighted import Weighted, is_array_or_traced

# What a custom_vjp function becomes in forward mode: it can be traced, and not run.
_BACKWARD_ONLY = "custom_lin"


def differentiated(
    weighted: Weighted,
    inputs: Any,
    douts: list[Any],
    settings: Any,
    only: int | None = None,
    name: str = "f",
) -> Any:
    """What JAX gives for a function's derivative: its rules run. None for what is not floating.

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
