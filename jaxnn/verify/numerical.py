"""Compute plain centred differences, coordinate by coordinate: they need values only."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from jaxnn.calls import path_name
from jaxnn.verify.arguments import kind_of
from jaxnn.verify.door import entrance
from jaxnn.verify.problem import check_scalar, is_floating, raised_by
from jaxnn.verify.programs import compiled
from jaxnn.verify.returned import is_number
from jaxnn.verify.trace import NotTraceable


@entrance
def numerical_gradient(f: Callable[[Any], Any], params: Any, *, step: float = 6e-6) -> Any:
    """Return the gradient by centred differences, coordinate by coordinate, in float64.

        df/dx_i = (f(x + h e_i) - f(x - h e_i)) / 2h

    Two evaluations per coordinate, in one compiled loop; in a loop of Python's where `f` cannot be
    traced, as if it is written in NumPy. The default step is the cube root of float64's epsilon,
    where truncation (h^2) and rounding (eps / h) balance for values near 1.

    Args:
        f: a function of `params` that returns a scalar. Where it cannot be traced it is given
            arrays of NumPy's for those that are NumPy's in `params`, its own to write into.
        params: any pytree of floating arrays or Python floats.
        step: h, in the units of the coordinates, above 0.

    Returns:
        A pytree like `params`, of float64 NumPy arrays.

    Raises:
        TypeError: a leaf is not floating, or the call is inside `jax.jit`.
        ValueError: `step` is not above 0, there is no leaf, or `f` does not return a scalar.
    """
    if not step > 0:
        raise ValueError(f"step is {step}; it must be above 0, for example 6e-6")
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not (is_number(leaf) and is_floating(jnp.asarray(leaf))):
            is_what = f"has dtype {jnp.asarray(leaf).dtype}" if is_number(leaf) else ""
            raise TypeError(
                f"{path_name(path)} {is_what or f'is a {kind_of(leaf)}'}; every leaf must be "
                "floating: close f over the others"
            )

    def scalar(params: Any) -> Any:
        with raised_by("function", params):
            out = f(params)
        check_scalar(out)
        return out

    with jax.enable_x64(True):
        flat, unravel = ravel_pytree(jax.tree.map(lambda x: np.asarray(x, np.float64), params))
        if flat.size == 0:
            raise ValueError("params hold no number to differentiate by; pass at least one")

        def slopes(x: Any, h: Any) -> Any:
            def slope(i: Any) -> Any:
                e = jnp.zeros_like(x).at[i].set(h)
                return (scalar(unravel(x + e)) - scalar(unravel(x - e))) / (2 * h)

            return unravel(lax.map(slope, jnp.arange(x.size)))

        h = jnp.asarray(step, jnp.float64)
        try:
            program = compiled(slopes, flat, h)
        except Exception as error:  # whatever a function makes of what is traced
            return _one_by_one(scalar, params, step, error)
        return jax.tree.map(np.asarray, program.run(flat, h))


def _one_by_one(f: Callable[[Any], Any], params: Any, step: float, error: Exception) -> Any:
    """The same by a loop of Python's, for a function that tracing raised an error for.

    Raises:
        Exception: the function cannot be called either.
    """
    given, tree = jax.tree.flatten(params)
    leaves = [np.array(leaf, np.float64) for leaf in given]

    def value(leaves: list[Any]) -> float:
        own = [
            leaf.copy() if isinstance(x, np.ndarray | np.generic) else jnp.asarray(leaf)
            for x, leaf in zip(given, leaves, strict=True)
        ]
        return float(f(jax.tree.unflatten(tree, own)))

    try:
        value(leaves)
    except Exception as own:  # its own fault, whether it is traced or not
        raise own if isinstance(error, NotTraceable) else error from None
    slopes = [np.zeros_like(leaf) for leaf in leaves]
    for slope, leaf in zip(slopes, leaves, strict=True):
        for at in np.ndindex(leaf.shape):
            here = leaf[at]
            ends = []
            for h in (step, -step):
                leaf[at] = here + h
                ends.append(value(leaves))
            leaf[at] = here
            slope[at] = (ends[0] - ends[1]) / (2 * step)
    return jax.tree.unflatten(tree, slopes)
