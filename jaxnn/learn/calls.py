"""Call a student's functions, and put what they return under the names of the inputs."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.learn import misuse
from jaxnn.learn.guard import Fault
from jaxnn.learn.points import floats, named
from jaxnn.learn.student import Work

Function = Callable[..., Any]


def call(work: Work, name: str, *args: Any) -> Any:
    """Call a student's function; one written in NumPy is given arrays of NumPy's, to see damage.

    Raises:
        Fault: it takes another number of arguments, or changes what it is given.
    """
    function = work.functions[name]
    _check_arity(work, name, len(args))
    if not takes_numpy(function):
        return _watched(name, function, args)
    copies = jax.tree.map(np.array, args)
    kept = jax.tree.map(np.array, args)
    result = _watched(name, function, copies)
    for parameter, now, before in zip(_parameters(function), copies, kept, strict=False):
        pairs = zip(jax.tree.leaves(now), jax.tree.leaves(before), strict=True)
        if not all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs):
            raise Fault(
                f"{name} changes its argument {parameter} in place, so that its caller's array is "
                "damaged: write x = x * 2 for x *= 2, or copy it first"
            )
    return result


def _watched(name: str, function: Function, args: Any) -> Any:
    with misuse.watched() as asked:
        result = function(*args)
    if asked:
        raise misuse.NotByHand(name, asked[0])
    return result


def takes_numpy(function: Function) -> bool:
    """Whether a function is written in NumPy and not in JAX."""
    scope = getattr(function, "__globals__", {})
    code = getattr(function, "__code__", None)
    used = {id(scope.get(name)) for name in (code.co_names if code is not None else ())}
    return id(np) in used and not {id(jnp), id(jax), id(jax.lax)} & used


def _parameters(function: Function) -> list[str]:
    return list(inspect.signature(function).parameters)


def _check_arity(work: Work, name: str, number: int) -> None:
    function = work.functions[name]
    try:
        inspect.signature(function).bind(*range(number))
    except TypeError:
        takes = _parameters(function)
        code = getattr(function, "__code__", None)
        line = f"{work.path}, line {code.co_firstlineno}: " if code and work.path else ""
        wanted = _parameters(work.exercise.function(name.rsplit("_", 1)[1]))[:number]
        raise Fault(
            f"{line}{name} takes {', '.join(takes) or 'nothing'}; it must take {number} arguments: "
            f"{', '.join(wanted)}"
        ) from None


def as_leaf(value: Any) -> Any:
    """Return an array as NumPy's; None for what is none."""
    if value is None:
        return None
    array = np.asarray(value)
    return array if array.dtype.kind in "fiubV" else None


def by_name(work: Work, name: str, given: Any, inputs: tuple[Any, ...]) -> dict[str, Any]:
    """Return what a backward returned, by the names of the cotangents.

    Raises:
        Fault: it has not the form of the inputs.
    """
    names = work.exercise.inputs
    if given is None:
        raise Fault(f"{name} is not written yet: it returns nothing")
    if not isinstance(given, tuple | list):
        given = (given,)
    if len(given) != len(names):
        flat = jax.tree.leaves(given, is_leaf=lambda x: x is None)
        if len(flat) != len(names):
            wanted = ", ".join(
                f"d{i}" if floats(x) else f"None for {i}"
                for i, x in zip(names, inputs, strict=True)
            )
            raise Fault(
                f"{name} returns {len(given)} cotangents; it must return {len(names)}, one for "
                f"each input: {wanted}"
            )
        given = flat
    found: dict[str, Any] = {}
    for i, value, x in zip(names, given, inputs, strict=True):
        if not floats(x):
            continue
        if isinstance(x, dict) and value is not None:
            if not isinstance(value, dict):
                raise Fault(f"{name}: d{i} must be a dictionary like {i}, with a cotangent each")
            if missing := [k for k in x if k not in value]:
                raise Fault(f"{name}: d{i} has no {missing[0]!r}; it must have what {i} has")
        found |= {k: as_leaf(v) for k, v in named(f"d{i}", value).items()}
    return found
