"""Hold derivatives of elementwise functions: the usual ones, and what is written in haste."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from jaxnn.verify.causes.jaxprs import On, bind_equation, name_of, with_mistake

Slope = Callable[[Any], Any]
# A derivative written in terms of the output: f'(x) at y = f(x).
OF_OUTPUT: dict[str, Slope] = {
    "tanh": lambda y: 1 - y * y,
    "logistic": lambda y: y * (1 - y),
    "exp": lambda y: y,
}
# The same, written down wrongly: the derivative, and what was taken for it.
SLIPS: dict[str, tuple[str, dict[str, Slope]]] = {
    "tanh": (
        "1 - y^2",
        {
            "1 - y": lambda y: 1 - y,
            "1 + y^2": lambda y: 1 + y * y,
            "y (1 - y), the slope of a sigmoid,": lambda y: y * (1 - y),
        },
    ),
    "logistic": (
        "y (1 - y)",
        {
            "1 - y": lambda y: 1 - y,
            "y": lambda y: y,
            "y (1 + y)": lambda y: y * (1 + y),
            "1 - y^2, the slope of tanh,": lambda y: 1 - y * y,
        },
    ),
    "sqrt": ("1 / (2 y)", {"1/2": lambda y: 0.5 + 0 * y, "1 / (2 y^2)": lambda y: 0.5 / (y * y)}),
}
# At the input x, by name.
ACTIVATIONS: dict[str, Slope] = {
    "tanh": lambda x: 1 - jnp.tanh(x) ** 2,
    "sigmoid": lambda x: lax.logistic(x) * (1 - lax.logistic(x)),
    "ReLU": lambda x: (x > 0).astype(x.dtype),
    "leaky ReLU (0.01)": lambda x: jnp.where(x > 0, 1, 0.01),
    "leaky ReLU (0.2)": lambda x: jnp.where(x > 0, 1, 0.2),
    "SiLU": lambda x: lax.logistic(x) * (1 + x * (1 - lax.logistic(x))),
    "GELU by erf": lambda x: _derivative(lambda x: x * (1 + lax.erf(x / 2**0.5)) / 2, x),
    "GELU by tanh": lambda x: _derivative(
        lambda x: x * (1 + jnp.tanh((2 / jnp.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2, x
    ),
    "GELU by sigmoid": lambda x: _derivative(lambda x: x * lax.logistic(1.702 * x), x),
    "softplus": lax.logistic,
    "ELU": lambda x: jnp.where(x > 0, 1, jnp.exp(jnp.minimum(x, 0))),
    "softsign": lambda x: 1 / (1 + jnp.abs(x)) ** 2,
}
_LINEAR = {"add", "add_any", "convert_element_type", "copy", "mul", "neg", "sub"}
_FEW = ("tanh", "sigmoid", "ReLU")
_ELEMENTWISE = {
    "abs", "add", "add_any", "and", "atan", "cbrt", "clamp", "convert_element_type", "copy", "cos",
    "div", "eq", "erf", "exp", "exp2", "expm1", "ge", "gt", "integer_pow", "is_finite", "le", "log",
    "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "not", "or", "pow", "rsqrt",
    "select_n", "sign", "sin", "sqrt", "square", "stop_gradient", "sub", "tanh",
}  # fmt: skip
_CURVED = {
    "abs", "atan", "clamp", "erf", "exp", "exp2", "expm1", "log", "log1p", "logistic", "max", "min",
    "select_n", "tanh",
}  # fmt: skip


def other_slopes(name: str, x: Any, few: bool) -> Iterator[tuple[str, str, Any]]:
    """Yield the derivatives of other activations than the one of this name: cause, words, value.

    A few, for what is in a loop, where each takes long to compile.
    """
    for other in _FEW if few else ACTIVATIONS:
        slope = ACTIVATIONS[other]
        if other.lower() != {"logistic": "sigmoid", "max": "relu"}.get(name, name):
            words = f"the derivative of {other} is taken for that of"
            yield "wrong derivative", words, slope(x)


def written_out(jaxpr: Jaxpr, live: set[Any]) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Find elementwise functions of several equations: where each ends, its only live input.

    Then what is handed to an activation after a formula that is not linear, and the only live
    input of that.

    Args:
        jaxpr: the equations.
        live: its variables that are differentiated.
    """
    root, cones = dict[Any, Any](), dict[Any, list[JaxprEqn]]()
    bent, inner = set[Any](), dict[Any, Any]()
    last_use: dict[Any, int] = {}
    for number, eqn in enumerate(jaxpr.eqns):
        operands: list[Any] = [v for v in eqn.invars if not isinstance(v, Literal) and v in live]
        last_use |= dict.fromkeys(operands, number)
        roots = {root.get(v, v) for v in operands}
        out: Any = eqn.outvars[0] if len(eqn.outvars) == 1 else None
        if out is None or out not in live or len(roots) != 1 or not _elementwise(eqn):
            continue
        if {v.aval.shape for v in operands} == {out.aval.shape} != {()}:
            root[out] = roots.pop()
            if bent & {*operands} and _curves(eqn):
                inner |= {v: root[out] for v in operands if v in bent}
            if bent & {*operands} or eqn.primitive.name not in _LINEAR or len(operands) > 1:
                bent.add(out)
            cones.setdefault(root[out], []).append(eqn)
    outs = [v for v in jaxpr.outvars if not isinstance(v, Literal)]
    last_use |= dict.fromkeys(outs, len(jaxpr.eqns))
    numbers = {id(eqn): number for number, eqn in enumerate(jaxpr.eqns)}
    ends = {}
    for start, eqns in cones.items():
        # All that flows on passes through a variable that is the only one still needed.
        needed, since, necks = {start}, list[JaxprEqn](), list[tuple[Any, list[JaxprEqn]]]()
        for eqn in eqns:
            since.append(eqn)
            needed = {v for v in needed if last_use.get(v, -1) > numbers[id(eqn)]} | {
                eqn.outvars[0]
            }
            if len(needed) == 1:
                necks.append((eqn.outvars[0], since))
                since = []
        u = start
        for v, made in necks:
            several = len(made) > 1 or (name_of(made[0]) != "relu" and _has_rule(made[0]))
            if several and any(map(_curves, made)):
                ends[v] = u
            u = v
        if necks and u not in ends and any(map(_curves, eqns)) and len(eqns) > 1:
            ends[u] = start
    return ends, inner


def _has_rule(eqn: JaxprEqn) -> bool:
    return bool(eqn.primitive.name == "custom_jvp_call")


def _curves(eqn: JaxprEqn) -> bool:
    """Whether an activation may be made of an equation; a square, say, is none."""
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    if inner is not None:
        return any(map(_curves, getattr(inner, "jaxpr", inner).eqns))
    return eqn.primitive.name in _CURVED


def _elementwise(eqn: JaxprEqn) -> bool:
    name = eqn.primitive.name
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    if name in ("custom_jvp_call", "jit", "pjit") and inner is not None:
        return all(map(_elementwise, getattr(inner, "jaxpr", inner).eqns))
    shapes = {getattr(v.aval, "shape", ()) for v in eqn.invars}
    return name in _ELEMENTWISE or (name == "broadcast_in_dim" and shapes == {()})


def at_input(jaxpr: Jaxpr, u: Any, v: Any, env: dict[Any, Any]) -> tuple[Any, Any, Any]:
    """Return an elementwise function from u to v: its input, its output, its derivative."""

    def function(x: Any) -> Any:
        values = {**{k: lax.stop_gradient(value) for k, value in env.items()}, u: x}
        inner = {u}
        for eqn in jaxpr.eqns:
            if v in inner:
                break
            if any(not isinstance(o, Literal) and o in inner for o in eqn.invars):
                operands = [o.val if isinstance(o, Literal) else values[o] for o in eqn.invars]
                values.update(zip(eqn.outvars, bind_equation(eqn, operands), strict=True))
                inner |= set(eqn.outvars)
        return values[v]

    x = lax.stop_gradient(env[u])
    y, slope = jax.jvp(function, (x,), (jnp.ones_like(x),))
    return x, y, slope


def mistaken_slopes(s: Any, x: Any, y: Any, slope: Any, on: On, few: bool) -> Any:
    """Return what a mistake adds to the tangent of an elementwise function, s being its input's."""
    wrong = [
        *other_slopes("", x, few),
        ("derivative left out", "the derivative is taken as 1 in what ends in", jnp.ones_like(x)),
        ("wrong saved value", "the value is taken for the derivative of what ends in", y),
    ]
    added = (
        (cause, words.replace("that of", "that of what ends in"), value - slope)
        for cause, words, value in wrong
    )
    return with_mistake(jnp.zeros_like(x), added, on) * s


def _derivative(function: Slope, x: Any) -> Any:
    return jax.jvp(function, (x,), (jnp.ones_like(x),))[1]
