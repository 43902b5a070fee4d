"""Extract a gradient from what a function returns around it, in any of four forms.

gradient   (gradient,)   (value, gradient)   ((value, extra), gradient)   (gradient, extra)
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxnn.verify.returned import (
    Expected,
    Returned,
    alike,
    by_name,
    fits,
    is_number,
    is_real_number,
)


def extract_gradient(out: Any, expected: Expected) -> Returned:
    """Extract the gradient from what a function returned.

    Raises:
        TypeError: nothing is returned, or a leaf of the gradient is no array.
        ValueError: it cannot be told which part of it is the gradient.
    """
    if out is None:
        raise TypeError(
            "manual_grad returns None; it must return the gradient, a pytree like the "
            "parameters: is its `return` missing?"
        )
    if not _is_found(out, expected) and _is_found(arrays := _of_arrays(out), expected):
        out = arrays
    if type(out) not in (tuple, list) or alike(out, expected):
        return by_name(out, expected)
    if not expected.has_aux:
        _refuse_several(out, expected)
    readings = list(_readings(out, expected.has_aux))
    right = [reading for reading in readings if fits(reading[1], expected)]
    if len(right) > 1:
        forms = " and as ".join(form for form, _ in right)
        raise ValueError(
            f"what manual_grad returns can be read as {forms}; return the gradient alone, or say "
            "has_aux=True for the latter"
        )
    if not right:
        for _, gradient in readings:
            _refuse_several(gradient, expected)
        # What has the value beside it is the gradient, whatever is wrong with it.
        valued = not _is_pair(expected.structure)
        right = [r for r in readings if (valued and "value" in r[0]) or alike(r[1], expected)]
    form, gradient = right[0] if right else ("", out)
    return by_name(gradient, expected, form)


def _is_found(out: Any, expected: Expected) -> bool:
    """Whether what a function returns is a gradient, or holds one, by its leaves and shapes."""
    pairs = _readings(out, expected.has_aux) if type(out) in (tuple, list) else ()
    return fits(out, expected) or any(fits(gradient, expected) for _, gradient in pairs)


def _of_arrays(out: Any) -> Any:
    """The same, with an array for every list of numbers, as `tolist` and loops make them."""

    def is_list(node: Any) -> bool:
        return type(node) is list and bool(node) and all(is_list(x) or is_number(x) for x in node)

    def array(node: Any) -> Any:
        try:
            return jnp.asarray(node) if is_list(node) else node
        except (TypeError, ValueError):  # its rows are not of one length
            return node

    return jax.tree.map(array, out, is_leaf=is_list)


def _readings(out: Any, has_aux: bool) -> Iterator[tuple[str, Any]]:
    """What a tuple may be: a form in words, and where its gradient would be."""
    if len(out) == 1:
        yield "(gradient,)", out[0]
    if len(out) == 2:
        first, second = out
        if is_real_number(first) and not has_aux:
            yield "(value, gradient)", second
        if type(first) in (tuple, list) and len(first) == 2 and is_real_number(first[0]):
            yield "((value, extra), gradient)", second
        else:
            yield "(gradient, extra)", first


def _refuse_several(out: Any, expected: Expected) -> None:
    """Refuse a tuple that holds, for each of the first arguments, what is shaped like it.

    Raises:
        ValueError: it does.
    """

    def floating(tree: Any) -> list[tuple[str, tuple[int, ...]]]:
        return [
            (jax.tree_util.keystr(path), jnp.shape(leaf))
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
            if is_number(leaf) and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        ]

    if type(out) not in (tuple, list) or not 2 <= len(out) <= len(expected.arguments):
        return
    pairs = zip(out, expected.arguments, strict=False)
    if all(floating(gradient) == floating(argument) != [] for gradient, argument in pairs):
        raise ValueError(
            f"manual_grad returns {len(out)} gradients, shaped like the first {len(out)} "
            f"arguments; say argnums={tuple(range(len(out)))}, or return the first alone"
            + (" (and has_aux=True if the second is an extra)" if len(out) == 2 else "")
        )


def _is_pair(structure: Any) -> bool:
    """Whether parameters are two in a tuple or list themselves."""
    node = structure.node_data()
    return node is not None and node[0] in (tuple, list) and len(structure.children()) == 2
