"""From somebody's call to a problem that can be evaluated in float64.

A call `f(params, *args, **kwargs)` holds floating parameters (what is differentiated), other
arrays, and everything else (configurations, strings, Python numbers), which stays as it is.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
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
    """

    loss: Callable[[list[Any], list[Any]], Any]
    manual_grad: Callable[[list[Any], list[Any]], Any]
    paths: list[str]
    floats: list[Any]
    rest: list[Any]
    not_floating: list[str]
    expected: Any


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
    dynamic = [isinstance(leaf, jax.Array | np.ndarray | np.generic) for leaf in other_leaves]

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

    return Problem(
        loss=call(loss),
        manual_grad=call(manual_grad),
        paths=choose(paths, floating, True),
        floats=choose(param_leaves, floating, True),
        rest=choose(param_leaves, floating, False) + choose(other_leaves, dynamic, True),
        not_floating=choose(paths, floating, False),
        expected=jax.tree.unflatten(
            params_tree,
            [leaf if f else None for leaf, f in zip(param_leaves, floating, strict=True)],
        ),
    )


def is_floating(leaf: Any) -> bool:
    """Whether an array holds real floating numbers of any width."""
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def to_float64(leaves: list[Any]) -> list[Any]:
    """The floating arrays in float64, the others as they are. Call under `jax.enable_x64`."""
    return [
        jnp.asarray(np.asarray(leaf).astype(np.float64)) if is_floating(leaf) else leaf
        for leaf in leaves
    ]


def path_name(path: tuple[Any, ...]) -> str:
    """A leaf's path as Python would write it after the parameters' name: `layers[0].w`."""
    return jax.tree_util.keystr(path).removeprefix(".") or "params"


_programs: OrderedDict[Any, Any] = OrderedDict()


def compiled(function: Callable[..., Any], *arrays: Any) -> Callable[..., Any]:
    """`function` compiled for these arrays, reusing an equal program compiled before.

    The function is traced at every call and the program looked up by what the trace says, not by
    the function's identity: a helper redefined since (in a notebook, say) is seen.
    """
    lowered = jax.jit(lambda *a: function(*a)).lower(*arrays)
    out = lowered.out_info
    key = (lowered.as_text(), jax.tree.structure(out), jax.tree.structure(arrays))
    if key not in _programs:
        _programs[key] = lowered.compile()
        if len(_programs) > 256:
            _programs.popitem(last=False)
    _programs.move_to_end(key)
    program: Callable[..., Any] = _programs[key]
    return program


def _as_array(path: str, leaf: Any) -> Array | np.ndarray[Any, Any]:
    """A leaf of the parameters as an array that can be lifted."""
    array = leaf if isinstance(leaf, jax.Array | np.ndarray) else jnp.asarray(leaf)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(
            f"{path} has dtype {array.dtype}; complex parameters are not verified: "
            "pass their real and imaginary parts as two leaves"
        )
    return array
