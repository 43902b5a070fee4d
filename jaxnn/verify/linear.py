"""Linear scans, whose derivative is the transpose of their own map."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from jaxnn.verify.jaxprs import bind_equation, inner_of, live_in, scan_ends
from jaxnn.verify.mistakes import shadow
from jaxnn.verify.problem import is_floating

_LINEAR = {
    "add", "add_any", "sub", "neg", "reshape", "transpose", "broadcast_in_dim", "squeeze",
    "convert_element_type", "concatenate", "slice", "rev", "reduce_sum", "copy", "pad", "cumsum",
}  # fmt: skip
_BILINEAR = {"mul", "dot_general", "conv_general_dilated"}


def turned(eqn: JaxprEqn, alive: list[bool]) -> Iterator[tuple[int, int]]:
    """The outputs of a scan that have a slice for every step and are linear in one operand alone.

    Each by its number among those outputs, with the operand, of the same shape.
    """
    closed, (n, k) = inner_of(eqn), scan_ends(eqn)
    live = [j for j, a in enumerate(alive) if a and is_floating(eqn.invars[j].aval)]
    if closed is None or len(live) != 1 or live[0] < k:
        return
    jaxpr, shape = closed.jaxpr, eqn.invars[live[0]].aval.shape  # type: ignore[attr-defined]
    if _is_linear(jaxpr, {jaxpr.invars[live[0]], *jaxpr.invars[n:k]}):
        for i, out in enumerate(eqn.outvars[k - n :]):
            if out.aval.shape == shape:  # type: ignore[attr-defined]
                yield i, live[0]


def _is_linear(jaxpr: Jaxpr, live: set[Any]) -> bool:
    """Whether all that depends on live variables is linear in them, or a constant beside it."""
    found = live_in(jaxpr, live)
    for eqn in jaxpr.eqns:
        given = [not isinstance(v, Literal) and v in found for v in eqn.invars]
        name, inner = eqn.primitive.name, inner_of(eqn)
        if not any(given) or name in _LINEAR or (name in _BILINEAR and sum(given) == 1):
            continue
        if name == "div" and not given[1]:
            continue
        if inner is None or name == "scan":
            return False
        arguments = {v for v, g in zip(inner.jaxpr.invars, given, strict=True) if g}
        if not _is_linear(inner.jaxpr, arguments):
            return False
    return True


def forwards(eqn: JaxprEqn, xs: list[Any], ends: tuple[int, int], on: Any) -> Any:
    """What a mistake adds to an output's tangent if its own map is applied to its cotangent.

    `ends` are the output and the operand.
    """
    i, j = ends

    def f(x: Any) -> Any:
        return bind_equation(eqn, [*at[:j], x, *at[j + 1 :]])[i]

    at = lax.stop_gradient(xs)
    s = shadow(xs[j])
    _, pull = jax.vjp(f, at[j])
    _, move = jax.jvp(f, (at[j],), (s,))
    return jnp.where(on > 0, pull(s)[0] - move, 0)
