"""Find softmax and its like in a trace, and name the parts of their Jacobians.

softmax       y = e / sum e,  e = exp u        dx = y (dy - sum(y dy))
log-softmax   y = u - log sum e                dx = dy - exp(y) sum(dy)
log sum exp   y = log sum e                    dx = e / sum e dy
"""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.extend.core import JaxprEqn, Literal, Var

Made = dict[Any, JaxprEqn]
_THROUGH = {
    "broadcast_in_dim", "reshape", "squeeze", "expand_dims", "convert_element_type", "div", "mul",
    "add", "sub", "max", "sqrt", "rsqrt", "log", "integer_pow", "pow", "stop_gradient",
}  # fmt: skip
_SHAPING = {"broadcast_in_dim", "reshape", "squeeze", "expand_dims", "abs"}


def _source(v: Any, made: Made, *names: str) -> JaxprEqn | None:
    """The equation of one of these names that a variable comes from, in another shape at most."""
    while isinstance(v, Var) and v in made:
        eqn = made[v]
        if eqn.primitive.name in names:
            return eqn
        if eqn.primitive.name not in _SHAPING:
            return None
        v = eqn.invars[0]
    return None


def _summed(v: Any, made: Made) -> tuple[JaxprEqn, tuple[int, ...]] | None:
    """The exponential whose sum a variable is, and the axes of the sum."""
    total = _source(v, made, "reduce_sum")
    exponential = total and _source(total.invars[0], made, "exp")
    return (exponential, tuple(total.params["axes"])) if total and exponential else None


def _log_sum_exp(v: Any, z: Any, made: Made) -> tuple[int, ...] | None:
    """The axes of the sum if a variable is log sum exp z; z's maximum may be taken out of it."""
    total = _source(v, made, "log", "add")
    peak: Any = None
    if total and total.primitive.name == "add":
        peak = total.invars[1]
        total = _source(total.invars[0], made, "log")
    found = _summed(total.invars[0], made) if total else None
    if not found:
        return None
    u = found[0].invars[0]
    shifted = made[u] if isinstance(u, Var) and u in made else None
    if peak is None:
        return found[1] if u is z else None
    alike = shifted and shifted.primitive.name == "sub" and shifted.invars[0] is z
    return found[1] if shifted and alike and shifted.invars[1] is peak else None


def softmax_of(eqn: JaxprEqn, made: Made) -> tuple[str, Any, tuple[int, ...]] | None:
    """Say whether an equation ends one of the three: which, its u, and the axes of the sum."""
    name = eqn.primitive.name
    if name == "div":
        found = _summed(eqn.invars[1], made)
        if found and found[0].outvars[0] is eqn.invars[0]:
            return "softmax", found[0].invars[0], found[1]
    if name == "sub" and (axes := _log_sum_exp(eqn.invars[1], eqn.invars[0], made)):
        return "log-softmax", eqn.invars[0], axes
    if name == "log" and (found := _summed(eqn.invars[0], made)):
        return "log sum exp", found[0].invars[0], found[1]
    return None


def wrong_softmaxes(
    name: str, s: Array, u: Array, y: Array, axes: tuple[int, ...]
) -> Iterator[tuple[str, str, Any]]:
    """Yield mistakes in one of the three, of tangents s of its u, as added to y's: cause, words."""

    def of(v: Array, over: tuple[int, ...] = axes) -> Array:
        return v * (s - (v * s).sum(over, keepdims=True))

    diagonal, logs = "only the diagonal of {} dy, is taken at", "log-probabilities are taken for"
    if name == "softmax":
        words = diagonal.format("softmax's Jacobian, y (1 - y)")
        yield "missing term", words, y * (1 - y) * s - of(y)
        log_y = jnp.log(jnp.where(y > 0, y, 1))
        words = f"{logs} probabilities in softmax's Jacobian at"
        yield "wrong saved value", words, of(log_y) - of(y)
        for axis in (a for a in range(y.ndim) if (a,) != axes):
            words = f"softmax's Jacobian is summed over axis {axis}, not {axes[0]}, at"
            yield "wrong axis", words, of(y, (axis,)) - of(y)
    elif name == "log-softmax":
        p = jnp.exp(y)
        words = diagonal.format("log-softmax's Jacobian, (1 - exp(y))")
        yield "missing term", words, (1 - p) * s - (s - (p * s).sum(axes, keepdims=True))
    else:
        log_p = u - y.reshape([1 if axis in axes else n for axis, n in enumerate(u.shape)])
        finite = jnp.where(jnp.isfinite(log_p), log_p, 0)
        wrong = ((finite - jnp.exp(log_p)) * s).sum(axes).reshape(y.shape)
        yield "wrong saved value", f"{logs} probabilities in the derivative of", wrong


def end_of(v: Any, users: dict[Any, list[tuple[JaxprEqn, int]]], live: set[Any]) -> Any:
    """Find where what flows through a variable alone meets something else: equation, operand."""
    at = None
    while len(users.get(v, ())) == 1:
        eqn, _ = at = users[v][0]
        alone = sum(o in live for o in eqn.invars if isinstance(o, Var)) == 1
        if not alone or len(eqn.outvars) != 1:
            break
        v = eqn.outvars[0]
    return at


def part_of(eqn: JaxprEqn, j: int, made: Made) -> str:
    """Say what an operand is to an equation, if it comes of a sum, mean or maximum; else empty."""
    softmax = softmax_of(eqn, made)
    if softmax and j == 1:
        return {
            "softmax": "only a diagonal of softmax's Jacobian, y dy for y (dy - sum(y dy)): ",
            "log-softmax": "only a diagonal of log-softmax's Jacobian, no - exp(y) sum(dy): ",
        }.get(softmax[0], "")
    if eqn.primitive.name not in ("sub", "div", "mul"):
        return ""
    names: list[str] = []
    v = eqn.invars[j]
    while isinstance(v, Var) and v in made:
        producer = made[v]
        name = producer.primitive.name
        names.append(name)
        live = [o for o in producer.invars if not isinstance(o, Literal)]
        if name.startswith("reduce_") or name not in _THROUGH or len(live) != 1:
            break
        v = live[0]
    if names[-1:] == ["reduce_max"]:
        return "the maximum's part: "
    if names[-1:] != ["reduce_sum"]:
        return ""
    if "sqrt" in names or "rsqrt" in names:
        return "the part of the norm or standard deviation: "
    return "the mean's part: " if "div" in names else "the sum's part: "
