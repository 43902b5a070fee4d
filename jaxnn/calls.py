"""The calls of an op's two functions: where arguments go, and what may come back, in words."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.varying import cotangent_of

_ANYTHING = (
    inspect.Parameter("inputs", inspect.Parameter.VAR_POSITIONAL),
    inspect.Parameter("static", inspect.Parameter.VAR_KEYWORD),
)
BY_POSITION = inspect.Signature(_ANYTHING[:1])


def path_name(path: tuple[Any, ...]) -> str:
    """Return a leaf's path as Python would write it after the parameters' name: `layers[0].w`."""
    return jax.tree_util.keystr(path).removeprefix(".") or "params"


def signature(function: Callable[..., Any]) -> inspect.Signature:
    """What a function takes; anything, if it cannot be looked at."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return inspect.Signature(_ANYTHING)


def inputs(fwd: Callable[..., Any], bwd: Callable[..., Any]) -> Mapping[str, Any]:
    """The names of an op's inputs, with their defaults (`inspect.Parameter.empty` for none).

    They are what `fwd` takes by position, unless `bwd` takes it by name: then it is a setting.
    """
    of_bwd = [*signature(bwd).parameters.values()][2:]
    named = {p.name for p in of_bwd}
    any_name = any(p.kind is p.VAR_KEYWORD for p in of_bwd)
    return {
        p.name: p.default
        for p in signature(fwd).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        and p.name not in named
        and not (any_name and p.default is not p.empty)
    }


def arranged(
    op: str, names: Mapping[str, Any], inputs: tuple[Any, ...], settings: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call as inputs by position, and settings by name.

    Raises:
        TypeError: an input is given twice, or one before those given by name is not.
    """
    by_name = [name for name in settings if name in names]
    if not by_name:
        return inputs, dict(settings)
    order, placed = list(names), list(inputs)
    for position, name in enumerate(order[: 1 + max(map(order.index, by_name))]):
        if position < len(inputs):
            if name in settings:
                raise TypeError(f"op {op} was given {name} by position and by name")
        elif name in settings or names[name] is not inspect.Parameter.empty:
            placed.append(settings.get(name, names[name]))
        else:
            raise TypeError(
                f"op {op} was given {by_name[-1]} but not {name}; its inputs are {', '.join(order)}"
            )
    return tuple(placed), {k: v for k, v in settings.items() if k not in by_name}


def bound(
    what: str, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> inspect.BoundArguments:
    """The arguments of a call under the names that the function has for them, all of them.

    Raises:
        TypeError: it does not take these.
    """
    form = signature(function)
    try:
        given = form.bind(*args, **kwargs)
    except TypeError as misfit:
        unknown = [n for n in kwargs if n not in form.parameters and n in str(misfit)]
        wrong = f"no setting {unknown[0]}" if unknown else f"other arguments ({misfit})"
        raise TypeError(f"{what} takes {wrong}: it is {what.split()[0]}{form}") from None
    given.apply_defaults()
    return given


def check_leaves(op: str, names: Sequence[str], inputs: tuple[Any, ...]) -> None:
    """Refuse inputs that hold what JAX cannot trace, as words and objects.

    Raises:
        TypeError: one does.
    """
    most = np.iinfo(jax.dtypes.canonicalize_dtype(np.int64)).max
    for place, given in enumerate(inputs):
        for leaf in jax.tree.leaves(given):
            if not _is_array(leaf) or (isinstance(leaf, int) and abs(leaf) > most):
                name = ", ".join(names[place : place + 1]) or f"number {place}"
                raise TypeError(
                    f"op {op}: its input {name} has {leaf!r:.50}; inputs must be arrays, or "
                    f"numbers of at most {most}: give what is none as a setting, by keyword"
                )


def call_fwd(
    op: str, fwd: Callable[..., Any], inputs: tuple[Any, ...], settings: Mapping[str, Any]
) -> tuple[Any, Any]:
    """What an op's forward returns, `(out, residuals)`.

    Raises:
        TypeError: it does not take these, hands a traced array to NumPy, returns no such tuple, or
            has something among the residuals that is no array.
    """
    returned = _called(op, "fwd", fwd, inputs, settings)
    _check_tuple(op, "fwd", returned, "(out, residuals)", 2)
    for leaf in jax.tree.leaves(returned[1]):
        if not _is_array(leaf):
            raise TypeError(
                f"fwd of op {op} returns {leaf!r:.100} among the residuals, which must be "
                "arrays: give what is none as a setting, by keyword"
            )
    out, residuals = returned
    return out, residuals


def call_bwd(
    op: str,
    bwd: Callable[..., Any],
    residuals: Any,
    dout: Any,
    settings: Mapping[str, Any],
    count: int,
) -> tuple[Any, ...]:
    """What an op's backward returns, a cotangent for each of its inputs.

    Raises:
        TypeError: it does not take these, hands a traced array to NumPy, or returns no such tuple.
    """
    cotangents: tuple[Any, ...] = _called(op, "bwd", bwd, (residuals, dout), settings)
    _check_tuple(op, "bwd", cotangents, "(dinput, ...), one per input", count)
    return cotangents


def check_cotangents(
    op: str, names: Sequence[str], cotangents: tuple[Any, ...], likes: tuple[Any, ...]
) -> tuple[Any, ...]:
    """The cotangents, those of integers None; each real one must be shaped and typed as its input.

    Args:
        op: its name.
        names: of its inputs.
        cotangents: one for each input.
        likes: the inputs, or their types.

    Raises:
        TypeError: one is not.
    """
    held = []
    for place, (cotangent, like) in enumerate(zip(cotangents, likes, strict=True)):
        try:
            held.append(jax.tree.map(_held, cotangent, like, is_leaf=lambda d: d is None))
        except (AssertionError, AttributeError, TypeError, ValueError):
            got, wanted = (jax.tree.map(_kind, tree) for tree in (cotangent, like))
            which = ", ".join(names[place : place + 1]) or f"number {place}"
            raise TypeError(
                f"bwd of op {op} returns {got} for its input {which}; a cotangent must have the "
                f"shape and dtype of its input, {wanted}: sum over what was broadcast, and cast "
                "with astype"
            ) from None
    return tuple(held)


def _held(d: Any, x: Any) -> Any:
    """A cotangent, None where there is none; AssertionError if it is not of its input's kind."""
    if d is None or x is None or jnp.result_type(d) == jax.dtypes.float0:
        return None
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return None
    d = jnp.asarray(d)  # of NumPy's in the width that JAX is in
    chex.assert_shape(d, x.shape)
    # A number of Python's has no dtype of its own: neither as the cotangent, nor as the input.
    if not (jax.typeof(d).weak_type or x.weak_type):
        chex.assert_type(d, x.dtype)
    return cotangent_of(x, d.astype(x.dtype))


def _called(
    op: str,
    role: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    settings: Mapping[str, Any],
) -> Any:
    """What a function of an op returns; or in words why it cannot be called so."""
    try:
        return function(*args, **settings)
    except jax.errors.TracerArrayConversionError as error:
        raise TypeError(
            f"{role} of op {op} hands a traced array to NumPy; an op is traced by JAX: write it "
            "in jax.numpy"
        ) from error
    except TypeError:  # its own, or Python's of the call
        bound(f"{role} of op {op}", function, args, settings)
        raise


def _check_tuple(op: str, role: str, value: Any, form: str, length: int) -> None:
    """Refuse what a function of an op returned if it is no tuple of this length."""
    if type(value) is not tuple or len(value) != length:
        got = type(value).__name__ + (f" of {len(value)}" if isinstance(value, tuple) else "")
        got = "bare array" if isinstance(value, jax.Array) else got
        raise TypeError(f"{role} of op {op} returns a {got}; it must return a tuple {form}")


def _is_array(leaf: Any) -> bool:
    """Whether JAX can trace this: an array or a number."""
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype.kind not in "OSUMm"
    return isinstance(leaf, jax.Array | bool | int | float | complex) or hasattr(leaf, "aval")


def _kind(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else repr(leaf)
