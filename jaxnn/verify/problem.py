"""Make a problem that can be evaluated in float64 of somebody's call.

A call `f(params, *args, **kwargs)` holds floating parameters (what is differentiated), other
arrays, and everything else (configurations, strings, Python numbers), which stays as it is.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.calls import path_name
from jaxnn.verify.arguments import (
    argument_names,
    as_array,
    displayed,
    further_names,
    is_array,
    kind_of,
    own_copy,
    settings_of,
)
from jaxnn.verify.forms import extract_gradient
from jaxnn.verify.returned import Expected, expected_of, has_foreign, is_number, is_real_number


class Problem(NamedTuple):
    """A loss and a hand-written gradient as functions of two lists of arrays.

    Called on numbers, a function gets copies of its own, in NumPy where the lists hold NumPy's.

    Attributes:
        loss: `loss(floats, rest) -> scalar`.
        manual_grad: `manual_grad(floats, rest)` -> the hand-written gradient as `Returned`, a
            pytree whose paths are `paths`.
        call: `call(function)` is any function of the same arguments as one of the two lists.
        paths: the name of each floating parameter, in the order of `floats`.
        floats: the floating leaves of the parameters.
        rest: every other array of the call, and `others` the names of these; the first `own` of
            them are the parameters' own.
        in_numpy: which of `floats` and `rest`, one after the other, were given in NumPy.
        expected: what a gradient must look like.
        settings: the numbers among the rest of the call, in configurations too, by what each is.
        tolerances: the relative tolerance declared for a leaf, by its name.
        as_it_is: whether the hand-written gradient is called on numbers, as it cannot be traced or
            is run on a mesh.
        on_mesh: how it is run there; None where it is not.
    """

    loss: Callable[[list[Any], list[Any]], Any]
    manual_grad: Callable[[list[Any], list[Any]], Any]
    call: Callable[[Callable[..., Any]], Callable[[list[Any], list[Any]], Any]]
    paths: list[str]
    floats: list[Any]
    rest: list[Any]
    others: list[str]
    own: int
    in_numpy: list[bool]
    expected: Expected
    settings: list[tuple[float, str]]
    tolerances: Mapping[str, float] = MappingProxyType({})
    as_it_is: bool = False
    on_mesh: Any = None


def bind(
    loss: Callable[..., Any],
    manual_grad: Callable[..., Any],
    params: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    names: tuple[str, ...] | None = None,
    has_aux: bool = False,
    settings: bool = True,
) -> Problem:
    """Separate the arrays of a call from the rest of it.

    Args:
        loss: `loss(params, *args, **kwargs)`.
        manual_grad: its gradient, of the same arguments.
        params: what is differentiated. Leaves that are no arrays are handed over as they are; so
            are Python's numbers inside a library's containers.
        args: the further arguments.
        kwargs: those given by name.
        names: where `params` is a tuple of arguments, what each is called. Without, one array is
            called as the loss calls its first argument, and other leaves by their paths.
        has_aux: whether the loss returns (value, extra).
        settings: whether Python's floats inside a library's containers are settings.

    Raises:
        TypeError: a parameter is complex.
        ValueError: no parameter is floating.
    """
    named, params_tree = jax.tree_util.tree_flatten_with_path(params)
    module = settings and has_foreign(params_tree)
    first = argument_names(loss, 1)[0]
    paths = [displayed(path, names, first) for path, _ in named]
    leaves = [as_array(name, leaf, module) for name, (_, leaf) in zip(paths, named, strict=True)]
    arrays = [is_array(leaf) for leaf in leaves]
    floating = [a and is_floating(leaf) for a, leaf in zip(arrays, leaves, strict=True)]
    if not any(floating):
        kinds = ", ".join(f"{p}: {kind_of(leaf)}" for p, leaf in zip(paths, leaves, strict=True))
        raise ValueError(
            f"params hold no floating leaf ({kinds or 'no leaf at all'}); a gradient needs at "
            "least one: pass the parameters first, as floating arrays"
        )
    other_leaves, other_tree = jax.tree.flatten((args, kwargs))
    other_names = further_names(loss, args, kwargs)
    dynamic = [is_array(leaf) for leaf in other_leaves]

    def call(function: Callable[..., Any]) -> Callable[[list[Any], list[Any]], Any]:
        def bound(floats: list[Any], rest: list[Any]) -> Any:
            from_floats, from_rest = iter(map(own_copy, floats)), iter(map(own_copy, rest))
            own = [
                next(from_floats) if f else next(from_rest) if a else leaf
                for f, a, leaf in zip(floating, arrays, leaves, strict=True)
            ]
            others = [
                next(from_rest) if d else leaf
                for d, leaf in zip(dynamic, other_leaves, strict=True)
            ]
            call_args, call_kwargs = jax.tree.unflatten(other_tree, others)
            return function(jax.tree.unflatten(params_tree, own), *call_args, **call_kwargs)

        return bound

    def scalar_loss(*args: Any, **kwargs: Any) -> Any:
        with raised_by("loss", args[0]):
            out = loss(*args, **kwargs)
        if has_aux:
            out = _without_extra(out)
        check_scalar(out)
        return out

    expected = expected_of(params, paths, floating, (params, *args), has_aux)

    def gradient_of_arrays(*args: Any, **kwargs: Any) -> Any:
        with raised_by("hand-written gradient", args[0]):
            out = manual_grad(*args, **kwargs)
        return extract_gradient(out, expected)

    kept = [
        (f, leaf, given)
        for f, a, leaf, (_, given) in zip(floating, arrays, leaves, named, strict=True)
        if a
    ]
    others = [p for f, a, p in zip(floating, arrays, paths, strict=True) if a and not f]
    others += [name for name, d in zip(other_names, dynamic, strict=True) if d]
    floats = [(leaf, given) for f, leaf, given in kept if f]
    rest = [(leaf, given) for f, leaf, given in kept if not f]
    own = len(rest)
    rest += [(leaf, leaf) for leaf, d in zip(other_leaves, dynamic, strict=True) if d]
    return Problem(
        loss=call(scalar_loss),
        manual_grad=call(gradient_of_arrays),
        call=call,
        paths=list(expected.shapes),
        floats=[leaf for leaf, _ in floats],
        rest=[leaf for leaf, _ in rest],
        others=others,
        own=own,
        in_numpy=[isinstance(given, np.ndarray | np.generic) for _, given in (*floats, *rest)],
        expected=expected,
        settings=settings_of(args, kwargs),
    )


@contextlib.contextmanager
def raised_by(role: str, params: Any) -> Iterator[None]:
    """Add to what a function raises which of the two it was, and what its first argument is.

    Raises:
        RuntimeError: the function ends the process.
    """
    try:
        yield
    except SystemExit as end:
        raise RuntimeError(
            f"the {role} called sys.exit({end.code!r}); a function under verification must return"
        ) from end
    except Exception as error:
        leaves = jax.tree_util.tree_leaves_with_path(params)
        kinds = ", ".join(f"{path_name(path)}: {kind_of(leaf)}" for path, leaf in leaves)
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
    if not is_real_number(out):
        got = jax.tree.map(
            lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}" if is_number(x) else repr(x), out
        )
        extra = type(out) is tuple and len(out) == 2 and is_real_number(out[0])
        raise ValueError(
            f"the loss returns {got}; it must return one floating scalar: "
            + (
                "say has_aux=True where the second is an auxiliary output"
                if extra
                else "reduce it with a mean or sum, and drop auxiliary outputs"
            )
        )


def _without_extra(out: Any) -> Any:
    """The value of a loss with auxiliary outputs.

    Raises:
        TypeError: it returns no pair.
    """
    if type(out) not in (tuple, list) or len(out) != 2:
        raise TypeError(
            f"the loss returns a {type(out).__name__}; with has_aux=True it must return a tuple "
            "(value, extra): return both, or leave has_aux out"
        )
    return out[0]


def is_floating(leaf: Any) -> bool:
    """Tell whether an array holds real floating numbers of any width."""
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def to_float64(leaves: list[Any]) -> list[Any]:
    """Return the floating arrays in float64, the others as they are. Call under `enable_x64`."""
    return [
        jax.device_put(np.asarray(leaf).astype(np.float64)) if is_floating(leaf) else leaf
        for leaf in leaves
    ]
