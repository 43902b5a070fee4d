"""From somebody's call to a problem that can be evaluated in float64.

A call `f(params, *args, **kwargs)` holds floating parameters (what is differentiated), other
arrays, and everything else (configurations, strings, Python numbers), which stays as it is.
"""

import re
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


class Program(NamedTuple):
    """A compiled function, and the narrowest floating dtype that it computes in anywhere."""

    run: Callable[..., Any]
    narrowest: str

    @property
    def epsilon(self) -> float:
        """The spacing of that dtype's numbers at 1."""
        return _EPSILON[self.narrowest]


_ARITHMETIC = re.compile(
    r"(stablehlo|chlo)\.(add|subtract|multiply|divide|power|sqrt|rsqrt|cbrt|exp|log|tanh|tan|sine|"
    r"cosine|atan2|asin|acos|atan|sinh|cosh|erf|lgamma|digamma|dot|convolution|reduce)"
)
_EPSILON = {
    "bfloat16": 2.0**-7,
    "float16": 2.0**-10,
    "float32": 2.0**-23,
    "float64": 2.0**-52,
}
_programs: OrderedDict[Any, Program] = OrderedDict()


def compiled(function: Callable[..., Any], *arrays: Any) -> Program:
    """`function` compiled for these arrays, reusing an equal program compiled before.

    The function is traced at every call and the program looked up by what the trace says, not by
    the function's identity: a helper redefined since (in a notebook, say) is seen.
    """
    try:
        lowered = jax.jit(lambda *a: function(*a)).lower(*arrays)
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError) as error:
        raise TypeError(
            "a function under verification looks at the values of its arrays (NumPy calls, `if` or "
            f"`float` on an array); it must be traceable by jax.jit: use jax.numpy, jnp.where and "
            f"lax.cond. JAX says: {str(error).splitlines()[0]}"
        ) from error
    out = lowered.out_info
    text = lowered.as_text()
    if "callback" in text:  # the text does not say which Python function is called back
        return Program(lowered.compile(), _narrowest(text))
    key = (text, *(_signature(tree) for tree in (arrays, out)))
    if key not in _programs:
        _programs[key] = Program(lowered.compile(), _narrowest(text))
        if len(_programs) > 256:
            _programs.popitem(last=False)
    _programs.move_to_end(key)
    return _programs[key]


def _signature(tree: Any) -> Any:
    """What a lowered program does not say of its arguments and results: containers, key types."""
    leaves = jax.tree.leaves(tree)
    return jax.tree.structure(tree), tuple(str(leaf.dtype) for leaf in leaves)


def _narrowest(text: str) -> str:
    """The narrowest dtype of any arithmetic; constants and conversions do not round a result."""
    lines = [line for line in text.splitlines() if _ARITHMETIC.search(line)]
    found = set(re.findall(r"[<x](bf16|f16|f32)>", "".join(lines)))
    names = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
    return next((name for short, name in names.items() if short in found), "float64")


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
