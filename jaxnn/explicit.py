"""A mesh whose axes are explicit: each array's type says along which of them it is split.

There JAX wants of every operation that its result's type follows from those of its inputs, and
refuses, among others, to reshape what is split, or to take rows of it. Inside the functions here
such axes are automatic: the compiler splits what is between as it sees fit. What comes out has a
type again: a gradient that of the parameters, all else that of the inputs whose sizes it shares.

Where no axis is explicit, a function is called as it is.
"""

import functools
import math
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import is_dataclass, replace
from typing import Any, TypeVar, cast

import jax
from jax.sharding import (
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    auto_axes,
    get_abstract_mesh,
    use_abstract_mesh,
)
from jax.sharding import PartitionSpec as P

Function = TypeVar("Function", bound=Callable[..., Any])


def automatic(function: Function) -> Function:
    """Return the function of trees of arrays and of other things, with a mesh's axes automatic."""
    return _entered(function, gradient=False)


def automatic_gradient(function: Function) -> Function:
    """As `automatic`: its results end in cotangents of the first argument, split as that is."""
    return _entered(function, gradient=True)


def _entered(function: Function, gradient: bool) -> Function:
    @functools.wraps(function)
    def entered(*args: Any, **kwargs: Any) -> Any:
        leaves, tree = jax.tree.flatten((args, kwargs), is_leaf=_is_iterator)
        mesh = _explicit_mesh(leaves)
        if mesh is None:
            return function(*args, **kwargs)
        places = [*_arrays(leaves)]

        def of_arrays(*arrays: Any) -> Any:
            given = [*leaves]
            for (place, field, _), array in zip(places, arrays, strict=True):
                changed = {field: array}
                given[place] = array if field is None else replace(given[place], **changed)
            args, kwargs = jax.tree.unflatten(tree, given)
            return function(*args, **kwargs)

        arrays = [array for *_, array in places]
        first = sum(
            isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(args[:1], is_leaf=_is_iterator)
        )
        specs = _specs(of_arrays, arrays, mesh.abstract_mesh, first, gradient)
        shardings = jax.tree.map(functools.partial(NamedSharding, mesh), specs)
        axes = mesh.abstract_mesh.explicit_axes
        return auto_axes(of_arrays, axes=axes, out_sharding=shardings)(*arrays)

    return cast(Function, entered)


def _arrays(leaves: Sequence[Any]) -> Iterator[tuple[int, Any, Any]]:
    """The arrays among the leaves; and those that are a setting that JAX traces, by its name."""
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, jax.Array):
            yield i, None, leaf
        elif is_dataclass(leaf):
            settings = vars(leaf).items()
            yield from ((i, name, x) for name, x in settings if isinstance(x, jax.Array))


def _is_iterator(value: Any) -> bool:
    """Whether it is no part of a tree, which whoever is called refuses in words of its own."""
    return isinstance(value, Iterator)


def _explicit_mesh(leaves: Sequence[Any]) -> Mesh | AbstractMesh | None:
    """The mesh over an explicit axis of which any of the leaves is split; None if none is."""
    context = get_abstract_mesh()
    if not (context.empty or context.explicit_axes):
        return None
    for leaf in leaves:
        if isinstance(leaf, jax.Array) and any(_spec(leaf)):
            of: Any = jax.typeof(leaf) if isinstance(leaf, jax.core.Tracer) else leaf
            return cast(Mesh | AbstractMesh, of.sharding.mesh)
    return None


def _spec(array: Any) -> list[Any]:
    """Over which axes, explicit ones, each dimension of an array is split: None for none."""
    return [*jax.typeof(array).sharding.spec]


def _specs(
    function: Callable[..., Any],
    arrays: Sequence[Any],
    mesh: AbstractMesh,
    first: int,
    gradient: bool,
) -> Any:
    """How each of the results is to be split: as an input that it is, or as its sizes tell.

    A dimension that doubles when those do that are split over an axis is split over it, too.
    The last cotangents are split as the first inputs, `first` of them, if they have their shapes.
    """
    types = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]
    given = [*map(_spec, arrays)]
    inside = mesh.update_axis_types(dict.fromkeys(mesh.explicit_axes, AxisType.Auto))
    with use_abstract_mesh(inside):
        program, results = jax.make_jaxpr(function, return_shape=True)(*types)
        shapes = [aval.shape for aval in program.out_avals]
        inputs = dict(zip(map(id, program.jaxpr.invars), given, strict=True))
        known = [inputs.get(id(out)) for out in program.jaxpr.outvars]
        if gradient and first and shapes[-first:] == [x.shape for x in arrays[:first]]:
            known[-first:] = given[:first]
        found: list[list[Any]] = [[None] * len(shape) for shape in shapes]
        if any(spec is None and shape for spec, shape in zip(known, shapes, strict=True)):
            for entry in dict.fromkeys(entry for spec in given for entry in spec if entry):
                for grown in _grown(function, types, given, entry, first):
                    for spec, shape, larger in zip(found, shapes, grown, strict=True):
                        _note(spec, entry, shape, larger.shape, mesh)
    specs = [b if a is None else a for a, b in zip(known, found, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(results), [P(*spec) for spec in specs])


def _grown(
    function: Callable[..., Any],
    types: Sequence[jax.ShapeDtypeStruct],
    specs: Sequence[Sequence[Any]],
    entry: Any,
    first: int,
) -> Iterator[Sequence[Any]]:
    """The results' types where the dimensions that are split over these axes are twice as large.

    If they do not go together, where those of one size are, in the inputs after the first or in
    all; or else where all that have this size are. What comes last, as the batch, has the say.
    """
    everywhere = {(i, d): n for i, t in enumerate(types) for d, n in enumerate(t.shape)}
    split = {(i, d): n for (i, d), n in everywhere.items() if specs[i][d] == entry}
    later = {(i, d): n for (i, d), n in split.items() if i >= first}
    whole = _outputs(function, types, split)
    if whole is not None:
        yield whole
        return
    for size in dict.fromkeys(reversed(split.values())):
        for among in (later, split, everywhere):
            doubled = {at for at, n in among.items() if n == size}
            part = _outputs(function, types, doubled) if doubled else None
            if part is not None:
                yield part
                break


def _outputs(
    function: Callable[..., Any], types: Sequence[jax.ShapeDtypeStruct], doubled: Container[Any]
) -> Sequence[Any] | None:
    """The results' types where these dimensions of the inputs are doubled; None if they cannot."""
    larger = [
        jax.ShapeDtypeStruct(
            [n * (1 + ((i, d) in doubled)) for d, n in enumerate(t.shape)], t.dtype
        )
        for i, t in enumerate(types)
    ]
    try:
        return jax.tree.leaves(jax.eval_shape(function, *larger))
    except Exception:  # whatever a function says of sizes that do not go together: it ran before
        return None


def _note(
    spec: list[Any], entry: Any, shape: Sequence[int], larger: Sequence[int], mesh: AbstractMesh
) -> None:
    """Note these axes at the first dimension that is doubled, unless one of them is taken."""
    axes = _axes(entry)
    parts = math.prod(mesh.shape[axis] for axis in axes)
    if axes & frozenset().union(*map(_axes, spec)):
        return
    for d, (n, m) in enumerate(zip(shape, larger, strict=True)):
        if m == 2 * n > 0 and n % parts == 0 and spec[d] is None:
            spec[d] = entry
            return


def _axes(entry: Any) -> frozenset[Any]:
    return frozenset(entry if isinstance(entry, tuple) else (entry,)) - {None}
