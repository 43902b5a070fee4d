"""Call a student's functions, and put what they return under the names of the inputs."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.learn import misuse
from jaxnn.learn.guard import Fault
from jaxnn.learn.points import floats
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


def by_line(work: Work, name: str, given: Any) -> dict[str, Any]:
    """Return what the lines of a backward gave, by the names of the cotangents.

    Raises:
        Fault: it is no dictionary, or has a name that is none of the exercise's.
    """
    if not isinstance(given, dict):
        raise Fault(f"{name} must return a dictionary of cotangents, as `start` wrote it")
    wanted, written = [blank for blank, _ in work.exercise.blanks()], work.exercise.written
    known = {*wanted, *(written.names if written else ()), work.exercise.output}
    found = {}
    for key, value in given.items():
        if key not in known and str(key)[1:] not in known:
            raise Fault(f"{name} returns {key!r:.40}; its names are {', '.join(wanted)}")
        label = f"d{key}" if key in known else key  # "dx" is taken for "x"
        found[label] = as_leaf(label, value)
    return found


def as_leaf(name: str, value: Any) -> Any:
    """Return what was given for a name as NumPy's array; None for what is not written yet.

    Raises:
        Fault: it is no array of real numbers.
    """
    if value is None or value is ...:
        return None
    kind = f"a {type(value).__name__}"
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise Fault(f"{name} is {kind} that makes no array ({error!s:.100})") from None
    if array.dtype.kind in "fiub" or jnp.issubdtype(array.dtype, jnp.floating):
        return array
    kind = f"an array of {array.dtype}" if hasattr(value, "dtype") else kind
    raise Fault(f"{name} is {kind}; it must be an array of real numbers")


def by_name(work: Work, name: str, given: Any, inputs: tuple[Any, ...]) -> dict[str, Any]:
    """Return what a backward returned, by the names of the cotangents.

    Raises:
        Fault: it has not the form of the inputs.
    """
    names = work.exercise.inputs
    if given is None:
        raise Fault(f"{name} is not written yet: it returns nothing")
    one = len(names) == 1 and isinstance(given, list) and len(given) != 1  # its rows
    parts = given if isinstance(given, tuple | list) and not one else (given,)
    if len(parts) != len(names) and not isinstance(given, dict):
        parts = jax.tree.leaves(parts, is_leaf=lambda x: x is None)
    if len(parts) != len(names):
        wanted = [
            f"d{i}" if floats(x) else f"None for {i}" for i, x in zip(names, inputs, strict=True)
        ]
        if isinstance(given, tuple | list):
            what = f"{len(given)} cotangent" + "s" * (len(given) != 1)
        else:
            what = f"a {type(given).__name__}"
        must = f"{len(names)} cotangents, one for each input, in a tuple" if len(names) > 1 else ""
        raise Fault(
            f"{name} returns {what}; it must return {must or '1 cotangent'}: {', '.join(wanted)}"
        )
    found: dict[str, Any] = {}
    for i, value, x in zip(names, parts, inputs, strict=True):
        if floats(x):
            found |= _leaves(f"d{i}", value, x)
    return found


def _leaves(name: str, value: Any, like: Any) -> dict[str, Any]:
    """The arrays of a cotangent, by name; those that a dictionary of parameters has."""
    if value is None or not isinstance(like, dict):
        return {name: as_leaf(name, value)}
    if not isinstance(value, dict):
        raise Fault(f"{name} must be a dictionary like {name[1:]}, with a cotangent each")
    found: dict[str, Any] = {}
    for key, inner in like.items():
        if key not in value:
            raise Fault(f"{name} has no {key!r}; it must have what {name[1:]} has")
        found |= _leaves(f"{name}[{key!r}]", value[key], inner)
    return found
