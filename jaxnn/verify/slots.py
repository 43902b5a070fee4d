"""Find numbers and arrays inside arguments, and put others in their places.

A configuration may be a dataclass, a mapping, a tuple, a namespace or an object of a class of the
caller's, with others inside. What is changed is a copy: the caller's own stays as it is.
"""

import copy
import dataclasses
import enum
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# So many holders inside each other are looked into.
DEEPEST = 4
# Objects of these packages are no configurations of the caller's.
_LIBRARIES = {"builtins", "functools", "jax", "jaxlib", "numpy"}


class Slot(NamedTuple):
    """A number or an array in an argument.

    Attributes:
        name: the argument's, and the path inside it.
        value: what is held.
        put: `put(argument, new)` is such an argument with another value in this place; it raises
            what the argument's class does.
    """

    name: str
    value: Any
    put: Callable[[Any, Any], Any]


class _Item(NamedTuple):
    """What a holder holds: the path to it, itself, how to find it, and how to replace it."""

    path: str
    value: Any
    get: Callable[[Any], Any]
    put: Callable[[Any, Any], Any]


def slots_in(name: str, value: Any, depth: int = 0) -> Iterator[Slot]:
    """Yield every number and floating array in an argument, the argument itself if it is one."""
    if is_scalar(value) or _is_array(value):
        yield Slot(name, value, lambda _, new: new)
    elif depth < DEEPEST:
        # What was handed over by name is called by that name alone.
        start = "" if depth == 0 and isinstance(value, SimpleNamespace) else name
        for item in _items(value):
            path = item.path if start else item.path.removeprefix(".")
            for inner in slots_in(start + path, item.value, depth + 1):
                yield Slot(inner.name, inner.value, _through(item, inner))


def is_scalar(value: Any) -> bool:
    """Tell whether this is a number of Python's or NumPy's, and no truth value."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray) and jnp.issubdtype(value.dtype, np.floating)


def _through(item: _Item, inner: Slot) -> Callable[[Any, Any], Any]:
    return lambda holder, new: item.put(holder, inner.put(item.get(holder), new))


def _items(value: Any) -> Iterator[_Item]:
    if isinstance(value, Mapping):
        yield from (_of_mapping(key, item) for key, item in value.items())
    elif isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        yield from (_of_sequence(i, item) for i, item in enumerate(value))
    elif isinstance(value, tuple):
        yield from (_of_object(key, getattr(value, key), _in_tuple) for key in value._fields)  # type: ignore[attr-defined]
    elif _is_configuration(value):
        by_class = dataclasses.is_dataclass(value)
        names = [f.name for f in dataclasses.fields(value) if f.init] if by_class else _names(value)
        put = dataclasses.replace if by_class else _in_object
        found = ((key, getattr(value, key)) for key in names if hasattr(value, key))
        yield from (_of_object(key, item, put) for key, item in found)


def _is_configuration(value: Any) -> bool:
    package = type(value).__module__.partition(".")[0]
    own = isinstance(value, SimpleNamespace) or package not in _LIBRARIES
    return own and not isinstance(value, type | enum.Enum | jax.core.Tracer)


def _names(value: Any) -> list[str]:
    """The attributes of an object."""
    slots = [getattr(base, "__slots__", ()) for base in type(value).__mro__]
    listed = [name for s in slots for name in ([s] if isinstance(s, str) else s)]
    return [*getattr(value, "__dict__", ()), *listed]


def _of_mapping(key: Any, item: Any) -> _Item:
    def put(holder: Any, new: Any) -> Any:
        other = copy.copy(holder)
        other[key] = new
        return other

    return _Item(f"[{key!r}]", item, lambda holder: holder[key], put)


def _of_sequence(i: int, item: Any) -> _Item:
    def put(holder: Any, new: Any) -> Any:
        return type(holder)([*holder[:i], new, *holder[i + 1 :]])

    return _Item(f"[{i}]", item, lambda holder: holder[i], put)


def _of_object(key: str, item: Any, replace: Callable[..., Any]) -> _Item:
    return _Item(
        f".{key}",
        item,
        lambda holder: getattr(holder, key),
        lambda holder, new: replace(holder, **{key: new}),
    )


def _in_tuple(holder: Any, **new: Any) -> Any:
    return holder._replace(**new)


def _in_object(holder: Any, **new: Any) -> Any:
    """A copy with other attributes.

    Raises:
        TypeError: it is its own copy.
    """
    other = copy.copy(holder)
    if other is holder:
        raise TypeError(f"a {type(holder).__name__} cannot be copied")
    for key, value in new.items():
        object.__setattr__(other, key, value)
    return other
