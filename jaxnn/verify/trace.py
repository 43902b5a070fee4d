"""Trace functions: what they do with arrays, and how narrow they compute, whatever is given.

Two functions of equal traces do the same.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from jaxnn.verify.findings import first_line

# A function of more equations runs operation by operation.
MOST_COMPILED = 2_500


class Trace(NamedTuple):
    """What a function does with arrays: two of equal text, constants and results do the same.

    Attributes:
        stage: what JAX traced.
        text: the trace in words, which do not say what its constants are; empty where it is too
            long to be worth comparing, or does not say which Python function is called back.
        constants: a digest of these.
        results: the containers of what it returns, with their names.
    """

    stage: Any
    text: str
    constants: str
    results: Any

    @property
    def jaxpr(self) -> ClosedJaxpr:
        """The traced function."""
        closed: ClosedJaxpr = self.stage.jaxpr
        return closed

    @property
    def long(self) -> bool:
        """Whether it takes less time to run it operation by operation than to compile it."""
        return count_of(self.jaxpr.jaxpr) > MOST_COMPILED


def traced_as(function: Callable[..., Any], arrays: Any) -> Trace:
    """Return what a function does with arrays such as these.

    Raises:
        NotTraceable: it looks at their values.
    """
    with _in_words():
        stage: Any = jax.jit(lambda *a: function(*a)).trace(*arrays)
    results = jax.tree.structure(stage.out_info)
    if count_of(stage.jaxpr.jaxpr) > MOST_COMPILED:
        return Trace(stage, "", "", results)
    text = str(stage.jaxpr)
    return Trace(stage, "" if "callback" in text else text, _digest(stage.jaxpr), results)


class NotTraceable(TypeError):  # noqa: N818 (a TypeError of the caller's, told from others)
    """A function that looks at the values of its arrays, and cannot be traced."""


def _digest(closed: ClosedJaxpr) -> str:
    """A hash of every constant in a trace, which its text does not show."""
    digest = hashlib.blake2b()

    def add(value: Any) -> None:
        if jnp.issubdtype(jnp.result_type(value), jax.dtypes.extended):
            value = jax.random.key_data(value)
        digest.update(np.asarray(value).tobytes())

    def walk(jaxpr: ClosedJaxpr | Jaxpr) -> None:
        for constant in jaxpr.consts if isinstance(jaxpr, ClosedJaxpr) else ():
            add(constant)
        for eqn in jaxpr.eqns:
            for operand in eqn.invars:
                if isinstance(operand, Literal):
                    add(operand.val)
            for inner in inner_jaxprs(eqn):
                walk(inner)

    walk(closed)
    return digest.hexdigest()


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    """What JAX raises for functions that look at values, in words."""
    try:
        yield
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError) as error:
        raise NotTraceable(
            "a function under verification looks at the values of its arrays (NumPy calls, `if` or "
            f"`float` on an array); it must be traceable by jax.jit: use jax.numpy, jnp.where and "
            f"lax.cond. JAX says: {first_line(error)}"
        ) from error


def count_of(jaxpr: Jaxpr) -> int:
    """Return the equations of a jaxpr, those of the functions that it calls included."""
    total = 0
    for eqn in jaxpr.eqns:
        inner = eqn.params.get("jaxpr") if eqn.primitive.name in ("jit", "pjit") else None
        total += count_of(inner.jaxpr) if isinstance(inner, ClosedJaxpr) else 1
    return total


def inner_jaxprs(eqn: JaxprEqn) -> list[Any]:
    """Return the functions, loops and branches inside an equation, as jaxprs, closed or not."""

    def is_jaxpr(value: Any) -> bool:
        return isinstance(value, ClosedJaxpr | Jaxpr)

    return list(filter(is_jaxpr, jax.tree.leaves([*eqn.params.values()], is_leaf=is_jaxpr)))


def equations_of(jaxpr: ClosedJaxpr | Jaxpr) -> Iterator[JaxprEqn]:
    """Yield every equation of a jaxpr, with those of the functions, loops and branches inside."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in inner_jaxprs(eqn):
            yield from equations_of(inner)


def primitives_of(closed: ClosedJaxpr) -> set[str]:
    """Return the names of all primitives in a traced function."""
    return {eqn.primitive.name for eqn in equations_of(closed)}


def draws_of(closed: ClosedJaxpr) -> list[str]:
    """Return the random bits that a traced function draws, by shape and width, in order."""
    return [
        str([v.aval for v in eqn.outvars])
        for eqn in equations_of(closed)
        if eqn.primitive.name in _DRAWS
    ]


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
    """Return the spacing at 1 of a dtype that something is rounded to; 0 for float64."""
    return 0.0 if name == "float64" else EPSILON[name]


def rounded_to(closed: ClosedJaxpr, outputs: int | None = None) -> str:
    """Return the narrowest dtype of any arithmetic on the inputs, or of a cast from a wider one.

    Constants do not round a result; nor do integers and masks that become floating, or the bits of
    a random draw.

    Args:
        closed: the traced function.
        outputs: only what the first so many of its outputs need is looked at; None for all.
    """
    found: set[str] = set()
    jaxpr = closed.jaxpr
    eqns = jaxpr.eqns if outputs is None else _needed(jaxpr, outputs)
    _depends(jaxpr, eqns, [True] * len(jaxpr.invars), found)
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


def _depends(jaxpr: Jaxpr, eqns: Any, depends: list[bool], found: set[str]) -> list[bool]:
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
        inner = inner_jaxprs(eqn)
        for value in (getattr(value, "jaxpr", value) for value in inner):
            called = eqn.primitive.name in _CALLS and len(value.invars) == len(own)
            given = own if called else [True] * len(value.invars)
            through = _depends(value, value.eqns, given, found)
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
