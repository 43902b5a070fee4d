"""From somebody's call to a problem that can be evaluated in float64.

A call `f(params, *args, **kwargs)` holds floating parameters (what is differentiated), other
arrays, and everything else (configurations, strings, Python numbers), which stays as it is.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


class Problem(NamedTuple):
    """A loss and a hand-written gradient as functions of two lists of arrays.

    Attributes:
        loss: `loss(floats, rest) -> scalar`.
        manual_grad: `manual_grad(floats, rest)` -> whatever the hand-written function returns.
        paths: the path of each floating parameter, in the order of `floats`.
        floats: the floating leaves of the parameters.
        rest: every other array of the call.
        not_floating: the paths of the other leaves of the parameters.
        expected: the structure a gradient must have, with None for a leaf that is not floating.
        settings: the numbers among the rest of the call, in configurations too, by what each is.
    """

    loss: Callable[[list[Any], list[Any]], Any]
    manual_grad: Callable[[list[Any], list[Any]], Any]
    paths: list[str]
    floats: list[Any]
    rest: list[Any]
    not_floating: list[str]
    expected: Any
    settings: list[tuple[float, str]]


def bind(
    loss: Callable[..., Any],
    manual_grad: Callable[..., Any],
    params: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Problem:
    """Separate the arrays of a call from the rest of it.

    Raises:
        TypeError: a parameter is complex or not a number.
        ValueError: no parameter is floating.
    """
    named, params_tree = jax.tree_util.tree_flatten_with_path(params)
    paths = [path_name(path) for path, _ in named]
    param_leaves = [_as_array(name, leaf) for name, (_, leaf) in zip(paths, named, strict=True)]
    floating = [is_floating(leaf) for leaf in param_leaves]
    if not any(floating):
        dtypes = ", ".join(
            f"{p}: {leaf.dtype}" for p, leaf in zip(paths, param_leaves, strict=True)
        )
        raise ValueError(
            f"params hold no floating leaf ({dtypes or 'no leaf at all'}); a gradient needs at "
            "least one: pass the parameters first, as floating arrays"
        )
    other_leaves, other_tree = jax.tree.flatten((args, kwargs))
    dynamic = [_is_array(leaf) for leaf in other_leaves]

    def call(function: Callable[..., Any]) -> Callable[[list[Any], list[Any]], Any]:
        def bound(floats: list[Any], rest: list[Any]) -> Any:
            from_floats, from_rest = iter(floats), iter(rest)
            leaves = [next(from_floats) if f else next(from_rest) for f in floating]
            others = [
                next(from_rest) if d else leaf
                for d, leaf in zip(dynamic, other_leaves, strict=True)
            ]
            call_args, call_kwargs = jax.tree.unflatten(other_tree, others)
            return function(jax.tree.unflatten(params_tree, leaves), *call_args, **call_kwargs)

        return bound

    def choose(leaves: Sequence[Any], flags: Sequence[bool], wanted: bool) -> list[Any]:
        return [leaf for leaf, flag in zip(leaves, flags, strict=True) if flag is wanted]

    def scalar_loss(*args: Any, **kwargs: Any) -> Any:
        with _told_apart("loss", args[0]):
            out = loss(*args, **kwargs)
        check_scalar(out)
        return out

    def gradient_of_arrays(*args: Any, **kwargs: Any) -> Any:
        with _told_apart("hand-written gradient", args[0]):
            out = manual_grad(*args, **kwargs)
        if out is None:
            raise TypeError(
                "manual_grad returns None; it must return the gradient, a pytree like the "
                "parameters: is its `return` missing?"
            )
        for path, leaf in jax.tree_util.tree_leaves_with_path(out):
            if not _is_number(leaf):
                raise TypeError(
                    f"manual_grad returns {leaf!r} at {path_name(path)}; every leaf of a gradient "
                    "must be an array, or None for a parameter that is not floating"
                )
        return out

    return Problem(
        loss=call(scalar_loss),
        manual_grad=call(gradient_of_arrays),
        paths=choose(paths, floating, True),
        floats=choose(param_leaves, floating, True),
        rest=choose(param_leaves, floating, False) + choose(other_leaves, dynamic, True),
        not_floating=choose(paths, floating, False),
        expected=jax.tree.unflatten(
            params_tree,
            [leaf if f else None for leaf, f in zip(param_leaves, floating, strict=True)],
        ),
        settings=_settings(args, kwargs),
    )


def _settings(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[float, str]]:
    """Python's numbers among the arguments, and among the fields of configurations there."""
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


@contextlib.contextmanager
def _told_apart(role: str, params: Any) -> Iterator[None]:
    """Add to what a function raises which of the two it was, and what its first argument is."""
    try:
        yield
    except Exception as error:
        leaves = jax.tree_util.tree_leaves_with_path(params)
        kinds = ", ".join(f"{path_name(path)}: {jax.typeof(leaf)}" for path, leaf in leaves)
        note = (
            f"raised by the {role}, whose first argument, the parameters, is {kinds:.200}; loss "
            "and gradient take the parameters first and then the same arguments"
        )
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        raise


def check_scalar(out: Any) -> None:
    """Refuse a loss that is not one real number.

    Raises:
        ValueError: the (abstract) output is not a floating scalar.
    """
    if not (_is_number(out) and jnp.shape(out) == () and _is_real(out)):
        got = jax.tree.map(
            lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}" if _is_number(x) else repr(x), out
        )
        raise ValueError(
            f"the loss returns {got}; it must return one floating scalar: reduce it with a mean or "
            "sum, and drop auxiliary outputs"
        )


def _is_number(leaf: Any) -> bool:
    """Whether something has a shape and a dtype of JAX's, as arrays and Python's numbers do."""
    return hasattr(leaf, "aval") or isinstance(
        leaf, int | float | complex | np.ndarray | np.generic | jax.ShapeDtypeStruct
    )


def _is_real(leaf: Any) -> bool:
    """Whether a number is real and floating, in Python's types too."""
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating))


def is_floating(leaf: Any) -> bool:
    """Whether an array holds real floating numbers of any width."""
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def to_float64(leaves: list[Any]) -> list[Any]:
    """The floating arrays in float64, the others as they are. Call under `jax.enable_x64`."""
    return [
        jax.device_put(np.asarray(leaf).astype(np.float64)) if is_floating(leaf) else leaf
        for leaf in leaves
    ]


def path_name(path: tuple[Any, ...]) -> str:
    """A leaf's path as Python would write it after the parameters' name: `layers[0].w`."""
    return jax.tree_util.keystr(path).removeprefix(".") or "params"


def _is_array(leaf: Any) -> bool:
    """Whether an argument is traced: arrays of numbers, and NumPy's floating scalars."""
    if isinstance(leaf, np.generic):
        return isinstance(leaf, np.floating)
    return isinstance(leaf, jax.Array) or (
        isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufcV"
    )


def _as_array(path: str, leaf: Any) -> Array | np.ndarray[Any, Any]:
    """A leaf of the parameters as an array that can be lifted.

    Raises:
        TypeError: it is complex, or not a number.
    """
    try:
        array = jnp.asarray(leaf)  # NumPy's float64 becomes what JAX would compute in
    except TypeError as error:
        raise TypeError(
            f"{path} is {leaf!r}; every leaf of the parameters must be an array or a number: pass "
            "other things as further arguments"
        ) from error
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(
            f"{path} has dtype {array.dtype}; complex parameters are not verified: "
            "pass their real and imaginary parts as two leaves"
        )
    return array
