"""Name the leaves of a gradient that was returned by the parameters they belong to.

By their paths; or, where a tree holds containers of a library (modules, states), by what those
paths have in common: `bias` for `.bias`, `['bias']` and `['bias'].value`.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Path = tuple[Any, ...]
# What a library wraps an array in: `['bias'].value` is the bias.
WRAPPERS = {"value", "raw_value"}


class Expected(NamedTuple):
    """What a gradient of some parameters is expected to be.

    Attributes:
        names: the path and the name of each floating leaf.
        others: the paths of the other leaves, which are not judged.
        settings: the paths of those among the others that are floating numbers of Python's.
        shapes: the shape of each floating leaf, by name.
        structure: of the parameters, with None for a leaf that is not floating.
        foreign: whether they hold containers of a library.
        arguments: what the functions are given by position.
        has_aux: whether the loss returns something beside its value.
    """

    names: tuple[tuple[Path, str], ...]
    others: tuple[Path, ...]
    settings: tuple[Path, ...]
    shapes: dict[str, tuple[int, ...]]
    structure: Any
    foreign: bool
    arguments: tuple[Any, ...]
    has_aux: bool


@jax.tree_util.register_pytree_with_keys_class
class Returned:
    """A gradient as a function returned it: a pytree whose paths are the parameters' names.

    Attributes:
        leaves: by name, in the order of the parameters; then those that no parameter has.
        structure: of what was returned, with None for what is not judged; as the parameters' where
            only containers of libraries differ.
        form: what was returned, in words, where it was more than the gradient.
        unasked: whether it holds floating arrays for leaves that were taken for settings.
    """

    def __init__(
        self, leaves: dict[str, Any], structure: Any, form: str = "", unasked: bool = False
    ):
        """Keep what was found."""
        self.leaves, self.structure, self.form, self.unasked = leaves, structure, form, unasked

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], Any]:
        """Return the leaves with their names, for JAX."""
        named = [(jax.tree_util.GetAttrKey(name), x) for name, x in self.leaves.items()]
        return named, (tuple(self.leaves), self.structure, self.form, self.unasked)

    @classmethod
    def tree_unflatten(cls, also: Any, leaves: Sequence[Any]) -> "Returned":
        """Build it of leaves, for JAX."""
        names, *rest = also
        return cls(dict(zip(names, leaves, strict=True)), *rest)


def expected_of(
    params: Any,
    names: Sequence[str],
    floating: Sequence[bool],
    arguments: tuple[Any, ...],
    has_aux: bool,
) -> Expected:
    """Describe what a gradient of `params` must be: its leaves' names, and which are floating."""
    found, tree = jax.tree_util.tree_flatten_with_path(params)
    rows = list(zip(found, names, floating, strict=True))
    floating_only = [leaf if judged else None for (_, leaf), _, judged in rows]
    return Expected(
        tuple((path, name) for (path, _), name, judged in rows if judged),
        tuple(path for (path, _), _, judged in rows if not judged),
        tuple(path for (path, leaf), _, judged in rows if not judged and isinstance(leaf, float)),
        {name: jnp.shape(leaf) for (_, leaf), name, judged in rows if judged},
        jax.tree.structure(jax.tree.unflatten(tree, floating_only)),
        has_foreign(tree),
        arguments,
        has_aux,
    )


def structural_faults(
    out: Returned, expected: Expected, dtypes: dict[str, Any]
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Say what is wrong with a gradient before any number: as a whole, and by leaf."""
    got, shapes = out.leaves, expected.shapes
    faults: dict[str, tuple[str, ...]] = {}
    for name, shape in shapes.items():
        if name not in got:
            advice = f" (if it is not to be trained: skip={{{name!r}: 'the reason'}})"
            faults[name] = (
                f"missing from the hand-written gradient{advice if expected.foreign else ''}",
            )
            continue
        faults[name] = tuple(
            f"the hand-written gradient has {what} {theirs}, the parameter {ours}"
            + (": it may be transposed" if theirs == shape[::-1] else "")
            for what, theirs, ours in (
                ("shape", jnp.shape(got[name]), shape),
                ("dtype", got[name].dtype, dtypes[name]),
            )
            if theirs != ours
        )
    problems = [
        f"the hand-written gradient has a leaf {name} that the parameters lack"
        for name in got
        if name not in shapes
    ]
    misshapen = [n for n, shape in shapes.items() if n in got and jnp.shape(got[n]) != shape]
    if len(misshapen) > 1 and sorted(jnp.shape(got[n]) for n in misshapen) == sorted(
        shapes[n] for n in misshapen
    ):
        problems.append(f"are the leaves {', '.join(misshapen)} swapped? their shapes would fit")
    if not problems and all(n in got for n in shapes) and out.structure != expected.structure:
        problems.append(
            f"the hand-written gradient is a {out.structure}, the parameters a {expected.structure}"
        )
    return tuple(problems), faults


def is_number(leaf: Any) -> bool:
    """Tell whether something has a shape and dtype of JAX's, as arrays and numbers do."""
    return hasattr(leaf, "aval") or (
        isinstance(leaf, int | float | complex | np.ndarray | np.generic | jax.ShapeDtypeStruct)
        and getattr(leaf, "dtype", np.dtype(float)).kind in "biufcV"
    )


def is_real_number(leaf: Any) -> bool:
    """Tell whether something is one real floating number, of Python's or in an array."""
    return (
        is_number(leaf)
        and jnp.shape(leaf) == ()
        and bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating))
    )


def has_foreign(tree: Any) -> bool:
    """Tell whether a structure holds containers that are neither Python's nor named tuples."""
    node = tree.node_data()
    kind = type(None) if node is None else node[0]
    python = kind in (dict, list, tuple, type(None), OrderedDict, defaultdict)
    named = issubclass(kind, tuple) and hasattr(kind, "_fields")
    return not (python or named) or any(map(has_foreign, tree.children()))


def _plain(path: Path) -> str:
    """A path as libraries agree on it: the names and numbers alone, without what they wrap."""
    words = [jax.tree_util.keystr((key,), simple=True) for key in path]
    return "/".join(words[:-1] if len(words) > 1 and words[-1] in WRAPPERS else words)


def _leaves(tree: Any, expected: Expected) -> dict[str, Any]:
    """The leaves of what is taken for a gradient: the parameters' by name, the others by path.

    Paths are as JAX writes them; beside containers of a library as libraries agree on them, where
    that tells apart as many and fits more.
    """
    found, structure = jax.tree_util.tree_flatten_with_path(tree)
    best: dict[str, Any] = {}
    most = -1
    foreign = expected.foreign or has_foreign(structure)
    for key in (jax.tree_util.keystr, _plain) if foreign else (jax.tree_util.keystr,):
        names = {key(path): name for path, name in expected.names}
        others = {key(path) for path in expected.others}
        leaves = {key(path): leaf for path, leaf in found}
        known = {name: leaves[path] for path, name in names.items() if path in leaves}
        if len(known) > most and len(leaves) == len(found) and len(names) == len(expected.names):
            most = len(known)
            unknown = {
                jax.tree_util.keystr(path): leaf
                for path, leaf in found
                if key(path) not in names and key(path) not in others
            }
            best = known | {_own(p, names.values()): leaf for p, leaf in unknown.items()}
    return best


def _own(path: str, names: Iterable[str]) -> str:
    """A name for a leaf that no parameter has, other than theirs."""
    short = path.removeprefix(".") or "without a name"
    return path if short in names else short


def by_name(tree: Any, expected: Expected, form: str = "") -> Returned:
    """Return a gradient by the names of the parameters.

    Raises:
        TypeError: a leaf of it is no array.
    """
    leaves = _leaves(tree, expected)
    for name, leaf in leaves.items():
        if not is_number(leaf):
            raise TypeError(
                f"manual_grad returns {leaf!r} at {name}; every leaf of a gradient must be an "
                "array, or None for a parameter that is not floating"
            )
    whole = jax.tree.structure(tree)
    if expected.foreign or has_foreign(whole):
        return Returned(leaves, expected.structure, form, _unasked(tree, expected))
    judged = {jax.tree_util.keystr(path) for path, _ in expected.names}
    floating_only = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if jax.tree_util.keystr(path) in judged else None, tree
    )
    return Returned(leaves, jax.tree.structure(floating_only), form)


def _unasked(tree: Any, expected: Expected) -> bool:
    """Whether a gradient holds floating arrays for numbers that were taken for settings."""
    settings = {*map(_plain, expected.settings)}
    return any(
        _plain(path) in settings
        and isinstance(leaf, jax.Array | np.ndarray | np.generic)
        and jnp.issubdtype(leaf.dtype, jnp.floating)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    )


def alike(tree: Any, expected: Expected) -> bool:
    """Tell whether something has a leaf for every parameter, and no other."""
    return {*_leaves(tree, expected)} == {*expected.shapes}


def fits(tree: Any, expected: Expected) -> bool:
    """Tell whether it has their shapes too."""
    leaves = _leaves(tree, expected)
    return alike(tree, expected) and all(
        is_number(x) and jnp.shape(x) == expected.shapes[name] for name, x in leaves.items()
    )
