"""How narrow a function computes, whatever it is given: what its results are rounded to."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

EPSILON = {
    "bfloat16": 2.0**-7,
    "float16": 2.0**-10,
    "float32": 2.0**-23,
    "float64": 2.0**-52,
}
_FORMATS = {(8, 7): "bfloat16", (5, 10): "float16", (8, 23): "float32"}  # of lax.reduce_precision
# What moves numbers, chooses among them or changes their signs rounds nothing.
_EXACT = {
    "abs", "and", "argmax", "argmin", "broadcast_in_dim", "clamp", "concatenate", "copy", "copy_p",
    "cummax", "cummin", "device_put", "dynamic_slice", "dynamic_update_slice", "expand_dims",
    "gather", "get", "iota", "max", "min", "neg", "not", "optimization_barrier", "or", "pad",
    "reduce_max", "reduce_min", "reshape", "rev", "scatter", "select_and_gather_add", "select_n",
    "sign", "slice", "sort", "split", "squeeze", "stop_gradient", "swap", "tile", "transpose",
    "zeros_like",
}  # fmt: skip

_DRAWS = {"random_bits", "threefry2x32", "rng_bit_generator"}
# What hands its inputs to one jaxpr, in order, and its results back.
_CALLS = {"jit", "pjit", "closed_call", "remat", "checkpoint", "custom_jvp_call", "custom_vjp_call"}


def epsilon_to(name: str) -> float:
    """The spacing at 1 of a dtype that something is rounded to; 0 for float64."""
    return 0.0 if name == "float64" else EPSILON[name]


def rounded_to(closed: ClosedJaxpr, outputs: int | None = None) -> str:
    """The narrowest dtype of any arithmetic on the inputs, or of a cast from a wider one.

    Constants do not round a result; nor do integers and masks that become floating, or the bits of
    a random draw.

    Args:
        closed: the traced function.
        outputs: only what the first so many of its outputs need is looked at; None for all.
    """
    found: set[str] = set()
    jaxpr = closed.jaxpr
    eqns = jaxpr.eqns if outputs is None else _needed(jaxpr, outputs)
    _walk(jaxpr, eqns, [True] * len(jaxpr.invars), found)
    return next((name for name in EPSILON if name in found), "float64")


def _needed(jaxpr: Jaxpr, outputs: int) -> list[JaxprEqn]:
    """The equations that the first outputs need."""
    needed = {v for v in jaxpr.outvars[:outputs] if not isinstance(v, Literal)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            kept.append(eqn)
            needed |= {v for v in eqn.invars if not isinstance(v, Literal)}
    return kept[::-1]


def _walk(jaxpr: Jaxpr, eqns: Any, depends: list[bool], found: set[str]) -> list[bool]:
    """Which results depend on the inputs, given which of a jaxpr's inputs do.

    Args:
        jaxpr: the function.
        eqns: those of its equations that are looked at.
        depends: of each of its inputs, whether it depends on what was given.
        found: what something is rounded to is added to it.
    """
    live = {v for v, on in zip(jaxpr.invars, depends, strict=True) if on}
    for eqn in eqns:
        own = [not isinstance(v, Literal) and v in live for v in eqn.invars]
        inputs = [v for v, on in zip(eqn.invars, own, strict=True) if on]
        if not inputs or eqn.primitive.name in _DRAWS:
            continue
        outs = [True] * len(eqn.outvars)
        inner = [
            value.jaxpr if isinstance(value, ClosedJaxpr) else value
            for value in jax.tree.leaves(
                list(eqn.params.values()), is_leaf=lambda v: isinstance(v, ClosedJaxpr | Jaxpr)
            )
            if isinstance(value, ClosedJaxpr | Jaxpr)
        ]
        for value in inner:
            called = eqn.primitive.name in _CALLS and len(value.invars) == len(own)
            given = own if called else [True] * len(value.invars)
            through = _walk(value, value.eqns, given, found)
            outs = through if called else outs
        if not inner:
            found |= _rounded_by(eqn, inputs)
        live |= {v for v, on in zip(eqn.outvars, outs, strict=True) if on}
    return [not isinstance(v, Literal) and v in live for v in jaxpr.outvars]


def _rounded_by(eqn: JaxprEqn, inputs: list[Any]) -> set[str]:
    """The dtypes that one equation rounds to."""
    name = eqn.primitive.name
    given = min((EPSILON[str(v.aval.dtype)] for v in inputs if _floating(v)), default=1.0)
    if name == "reduce_precision":
        to = _FORMATS.get((eqn.params["exponent_bits"], eqn.params["mantissa_bits"]))
        return {to} if to and EPSILON[to] > given else set()
    outputs = {str(v.aval.dtype) for v in eqn.outvars if _floating(v)}  # type: ignore[attr-defined]
    if name == "convert_element_type":
        return {dtype for dtype in outputs if EPSILON[dtype] > given}
    return set() if name in _EXACT else outputs


def _floating(v: Any) -> bool:
    """Whether a variable holds real floating numbers of a width that is known here."""
    dtype = getattr(v.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating) and str(dtype) in EPSILON
