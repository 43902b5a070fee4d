"""Name the arguments of a call, leaf by leaf; put those in front that are differentiated."""

import dataclasses
import inspect
import operator
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.calls import path_name
from jaxnn.verify.returned import is_number


def argument_names(function: Any, count: int) -> tuple[str, ...]:
    """Return what a function calls its first positional arguments; `argument 2` if it cannot say.

    Those that it takes together, as `*xs`, are `xs[0]`, `xs[1]`.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # no callable, or a built-in one
        parameters = []
    names: list[str] = []
    for p in parameters:
        if p.kind is p.VAR_POSITIONAL:
            names += [f"{p.name}[{i}]" for i in range(count - len(names))]
        elif p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
            names.append(p.name)
    names += [f"argument {i + 1}" for i in range(len(names), count)]
    return tuple(names[:count])


def displayed(path: tuple[Any, ...], names: tuple[str, ...] | None, first: str) -> str:
    """Say what a leaf of the parameters is called."""
    if names is not None:
        return f"{names[path[0].idx]}{jax.tree_util.keystr(path[1:])}"
    if path:
        return path_name(path)
    return first if first.isidentifier() else "params"


def further_names(loss: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """Return what each leaf of the arguments after the first is called, in order."""
    names = argument_names(loss, 1 + len(args))[1:]
    by_position = jax.tree_util.tree_leaves_with_path(args)
    by_name = jax.tree_util.tree_leaves_with_path(kwargs)
    return [
        *(displayed(path, names, "") for path, _ in by_position),
        *(f"{path[0].key}{jax.tree_util.keystr(path[1:])}" for path, _ in by_name),
    ]


def own_copy(leaf: Any) -> Any:
    """Return an array of the caller's as a copy that may be written into and donated."""
    concrete = isinstance(leaf, np.ndarray) or (
        isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
    )
    return leaf.copy() if concrete else leaf


def kind_of(leaf: Any) -> str:
    """Say what a leaf is, in a few words."""
    if not is_number(leaf):
        return type(leaf).__name__
    return str(jax.typeof(leaf)) if isinstance(leaf, jax.Array) else str(jnp.result_type(leaf))


def is_array(leaf: Any) -> bool:
    """Tell whether an argument is traced: arrays of numbers, and NumPy's floating scalars."""
    if isinstance(leaf, np.generic):
        return isinstance(leaf, np.floating)
    return isinstance(leaf, jax.Array) or (
        isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufcV"
    )


def as_array(name: str, leaf: Any, module: bool) -> Any:
    """Return a leaf of the parameters as an array to be lifted; as it is if it is no number.

    Raises:
        TypeError: it is complex.
    """
    setting = isinstance(leaf, bool | int) or (module and isinstance(leaf, float))
    if setting or not (is_number(leaf) or isinstance(leaf, jax.Array)):
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    array = jnp.asarray(leaf)  # NumPy's float64 becomes what JAX would compute in
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(
            f"{name} has dtype {array.dtype}; complex parameters are not verified: "
            "pass their real and imaginary parts as two leaves"
        )
    return array


def settings_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[float, str]]:
    """List Python's numbers among the arguments, and in the fields of configurations there."""
    named = {f"argument {i}": arg for i, arg in enumerate(args, 2)} | kwargs
    found: list[tuple[float, str]] = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(named):
        what = jax.tree_util.keystr(path[:1], simple=True) + jax.tree_util.keystr(path[1:])
        numbers = {what: leaf}
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            names = [field.name for field in dataclasses.fields(leaf)]
            numbers = {f"the setting {name}": getattr(leaf, name) for name in names}
        elif isinstance(leaf, SimpleNamespace):
            numbers = {f"the setting {name}": value for name, value in vars(leaf).items()}
        for what, value in numbers.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and 1e-300 < abs(value) < 1e300:
                found.append((abs(float(value)), what))
    return found


class Call(NamedTuple):
    """A call with its parameters first.

    Attributes:
        loss: `loss(params, *args, **kwargs)`.
        manual_grad: of the same arguments.
        params: what is differentiated: an argument, or a tuple of several.
        args: the other arguments given by position.
        names: what each of several is called; None for one.
    """

    loss: Callable[..., Any]
    manual_grad: Callable[..., Any]
    params: Any
    args: tuple[Any, ...]
    names: tuple[str, ...] | None


def parameters_first(
    loss: Callable[..., Any],
    manual_grad: Callable[..., Any],
    arguments: tuple[Any, ...],
    argnums: Any,
) -> Call:
    """Return a call of two functions as one with the arguments at `argnums` in front, together.

    Raises:
        TypeError: `argnums` is neither an integer nor a sequence of them.
        ValueError: there is no such argument, or one is named twice.
    """
    several = isinstance(argnums, tuple | list)
    try:
        numbers = [operator.index(n) for n in (argnums if several else (argnums,))]
    except TypeError:
        numbers = []
    if not numbers or any(isinstance(n, bool) for n in (argnums if several else (argnums,))):
        raise TypeError(
            f"argnums is {argnums!r}; it must be a position, or a tuple of positions, among the "
            "arguments: argnums=0, argnums=(0, 1)"
        )
    if any(not 0 <= n < len(arguments) for n in numbers) or len({*numbers}) < len(numbers):
        raise ValueError(
            f"argnums is {argnums!r}; it must name positions among 0 to {len(arguments) - 1}, each "
            "once: give what is to be differentiated by position"
        )
    if not several and numbers == [0]:
        return Call(loss, manual_grad, arguments[0], arguments[1:], None)
    others = [i for i in range(len(arguments)) if i not in numbers]

    def rearranged(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(params: Any, /, *args: Any, **kwargs: Any) -> Any:
            own = params if several else (params,)
            placed = dict(zip((*numbers, *others), (*own, *args), strict=True))
            return function(*(placed[i] for i in range(len(placed))), **kwargs)

        call.__qualname__ = getattr(function, "__qualname__", repr(function))
        if signature := _rearranged_signature(function, numbers, others):
            call.__signature__ = signature  # type: ignore[attr-defined]
        return call

    chosen = tuple(arguments[n] for n in numbers)
    names = argument_names(loss, len(arguments))
    return Call(
        rearranged(loss),
        rearranged(manual_grad),
        chosen if several else chosen[0],
        tuple(arguments[i] for i in others),
        tuple(names[n] for n in numbers) if several else None,
    )


def _rearranged_signature(
    function: Callable[..., Any], numbers: list[int], others: list[int]
) -> inspect.Signature | None:
    """The signature with the parameters in front; None where it has no place for each argument."""
    try:
        own = list(inspect.signature(function).parameters.values())
    except ValueError:  # a built-in callable
        return None
    count = len(numbers) + len(others)
    if any(p.kind not in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in own[:count]):
        return None
    first = inspect.Parameter(own[numbers[0]].name, inspect.Parameter.POSITIONAL_ONLY)
    rest = [own[i].replace(default=inspect.Parameter.empty) for i in others]
    return inspect.Signature([first, *rest, *own[count:]])
