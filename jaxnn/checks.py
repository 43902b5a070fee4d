"""Settings and arrays checked at the door, in words: the name and value, the rule, the fix.

Each check returns the value as plain Python has it, so that a setting that NumPy made does not
widen what is computed with it.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def check_number(
    name: str, value: Any, rule: str = "finite", holds: Callable[[float], bool] = math.isfinite
) -> float:
    """A real number for which `holds` is true, as a float.

    Args:
        name: of the setting, with its owner's before it, as in "dropout: rate".
        value: what was given.
        rule: what must hold, in words that follow "must be", and the fix.
        holds: the same as a function; NaN should fail it.

    Raises:
        TypeError: it is no number, or traced by JAX.
        ValueError: the rule does not hold.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} is {value!r}; it must be a number of Python's, {rule}")
    if not holds(float(value)):
        raise ValueError(f"{name} is {value}; it must be {rule}")
    return float(value)


def check_integer(name: str, value: Any, least: int = 1, hint: str = "") -> int:
    """An integer of at least `least`, as an int; True and False are none.

    Raises:
        TypeError: it is no integer.
        ValueError: it is smaller.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r}; it must be an integer of at least {least}{hint}")
    if value < least:
        raise ValueError(f"{name} is {value}; it must be at least {least}{hint}")
    return int(value)


def check_flag(name: str, value: Any) -> bool:
    """True or False.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {value!r}; it must be True or False")
    return bool(value)


def check_choice(name: str, value: Any, choices: Any) -> str:
    """One of these words.

    Raises:
        ValueError: it is none of them.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, choices))}")
    return value


def check_array(name: str, value: Any) -> None:
    """Refuse what has no shape and dtype, as lists and Python's numbers have none.

    Raises:
        TypeError: it is no array.
    """
    if not (hasattr(value, "shape") and hasattr(value, "dtype")):
        raise TypeError(
            f"{name} is a {type(value).__name__}; it must be an array: wrap it in jnp.asarray"
        )


def check_floating(name: str, value: Any) -> None:
    """Refuse what is no array of real floating numbers.

    Raises:
        TypeError: it is not.
    """
    check_array(name, value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            f"{name} has dtype {value.dtype}; it must be floating: cast it with astype(jnp.float32)"
        )


def check_key(name: str, key: Any, hint: str = "") -> None:
    """Refuse what is no single key of `jax.random`, typed or not.

    Raises:
        TypeError: it is none.
    """
    array = isinstance(key, jax.Array | np.ndarray)
    untyped = array and key.dtype == np.uint32 and key.ndim == 1
    typed = array and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0
    if not untyped and not typed:
        raise TypeError(
            f"{name} is {f'{key.dtype}{list(key.shape)}' if array else f'{key!r:.50}'}; it must "
            f"be a key of jax.random: pass jax.random.key(0){hint}"
        )


def check_params(name: str, params: Any, kind: type[NamedTuple]) -> None:
    """Refuse parameters that are not of this kind, or no arrays, or None where none may be.

    Raises:
        TypeError: they are not.
    """
    check_kind(f"{name}: params", params, kind)
    for field, value in zip(kind._fields, params, strict=True):
        if value is not None or kind.__annotations__[field] is jax.Array:
            check_array(f"{name}: {field}", value)


def check_kind(name: str, value: Any, kind: type) -> None:
    """Refuse a container that is not of this kind, as a plain tuple is not.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, kind):
        raise TypeError(
            f"{name} is a {type(value).__name__}; it must be the NamedTuple "
            f"{kind.__module__}.{kind.__name__}: wrap its parts in {kind.__name__}(...)"
        )


def check_one_dtype(name: str, arrays: dict[str, Any]) -> None:
    """Refuse what is no floating array, or not of the dtype of the others.

    Raises:
        TypeError: it is not.
    """
    for what, value in arrays.items():
        check_floating(f"{name}: {what}", value)
    if len({jnp.result_type(value) for value in arrays.values()}) > 1:
        dtypes = ", ".join(f"{what} {value.dtype}" for what, value in arrays.items())
        raise TypeError(
            f"{name}: the dtypes are {dtypes}; they must be one: cast with astype what differs"
        )
