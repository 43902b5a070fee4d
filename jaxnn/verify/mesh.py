"""Run a hand-written gradient on the devices of a mesh, and put together what they return.

The gradient is a function for one device: it is given the parts that the device has, may sum and
exchange with the others, and returns its part. The loss is one of the whole arrays.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnn.verify.findings import first_line
from jaxnn.verify.forms import extract_gradient
from jaxnn.verify.problem import Problem, raised_by
from jaxnn.verify.returned import Returned


class Spread(NamedTuple):
    """How the arrays of a call lie on the devices of a mesh.

    Attributes:
        mesh: of Auto axes.
        rules: `PartitionSpec`s of the parameters, then of each further argument, as prefixes.
    """

    mesh: Mesh
    rules: tuple[Any, ...]

    def __str__(self) -> str:
        return ", ".join(f"{name}={size}" for name, size in self.mesh.shape.items())


class OnMesh(NamedTuple):
    """A gradient on a mesh.

    Attributes:
        spread: the mesh, and the rules given.
        specs: of each floating parameter, by name.
        placed: of every array of the problem, in order.
        local: `local(floats, rest)`: the gradient on one device, of its parts.
        of: `of(function, check_vma)`: a function of such parts, and of what is the same on all
            devices, as one of whole arrays; what every device returned comes back along a first
            axis, in order of the devices.
        copies: what every device returned, of numbers: NumPy's arrays, again along a first axis.
        refused: why JAX's types do not let it run with `check_vma=True`; empty where they do.
    """

    spread: Spread
    specs: dict[str, P]
    placed: list[P]
    local: Callable[[list[Any], list[Any]], Returned]
    of: Callable[[Callable[..., Any], bool], Callable[..., Any]]
    copies: Callable[[list[Any], list[Any]], Returned]
    refused: str

    def differing(self, floats: list[Any], rest: list[Any], exact: float) -> tuple[str, ...]:
        """Say of which leaves devices have different values that ought to be the same.

        Args:
            floats: the parameters.
            rest: the other arrays.
            exact: what may differ, as a part of the scale.
        """
        found: dict[tuple[str, ...], list[str]] = {}
        for path, leaf in self.copies(floats, rest).leaves.items():
            if path not in self.specs:
                continue
            if axes := disagreeing(leaf, self.specs[path], self.spread.mesh, exact):
                found.setdefault(axes, []).append(path)
        return tuple(
            f"along {_quoted(axes)} devices have different gradients of {', '.join(paths)}, of "
            "which by the rules all have the whole: a sum over them left out?"
            for axes, paths in found.items()
        )


def spread_over(mesh: Any, rules: Any, count: int) -> Spread:
    """Return how so many arguments lie on a mesh.

    Raises:
        TypeError: it is no mesh, or there is not a rule for each.
    """
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"mesh is {mesh!r:.80}; it must be a jax.sharding.Mesh, as jax.make_mesh((4,), "
            "('data',)) returns: pass one, with rules= for where the arrays lie"
        )
    rules = tuple(rules) if isinstance(rules, list) else rules
    if type(rules) is not tuple or len(rules) != count:
        raise TypeError(
            f"rules is {rules!r:.80}; it must be a tuple of {count}, a PartitionSpec (or a pytree "
            "of them) for the parameters and for each further argument by position: P() for what "
            "all devices have"
        )
    # Inside shard_map an axis is neither Auto nor Explicit; around it, nothing has a sharding.
    auto = (AxisType.Auto,) * mesh.devices.ndim
    return Spread(Mesh(mesh.devices, mesh.axis_names, axis_types=auto), rules)


def refuse_on_mesh(**options: Any) -> None:
    """Refuse options that are asked of functions of whole arrays.

    Raises:
        ValueError: one is given.
    """
    for name, value in options.items():
        if value:
            raise ValueError(
                f"{name} is {value!r:.80} with a mesh; it is asked of a gradient of whole arrays: "
                "verify that of one device with it, and the one on a mesh without"
            )


def whole(tree: Any) -> Any:
    """Return a pytree whose arrays are on one device, wherever they were.

    In several processes each of them calls this, and has the whole.
    """

    def here(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or len(leaf.sharding.device_set) == 1:
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                here(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf)
            )
        return jnp.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(here, tree)


def on_mesh(problem: Problem, manual_grad: Callable[..., Any], spread: Spread) -> Problem:
    """Return a problem whose gradient is a function for one device, run on all of a mesh.

    Args:
        problem: of the loss, and of whole arrays.
        manual_grad: the gradient as it was given.
        spread: where the arrays lie.

    Raises:
        TypeError: a rule is no `PartitionSpec`, or fits no argument.
        ValueError: it names another axis than those of the mesh, or sizes do not divide.
        Exception: what the gradient itself raises, on its parts.
    """
    mesh = spread.mesh
    arrays = [*problem.floats, *problem.rest]
    names = [*problem.paths, *problem.others]
    specs = _specs_of(problem, spread)
    for name, x, spec in zip(names, arrays, specs, strict=True):
        _check_spec(name, x.shape, spec, mesh)
    ours = len(problem.floats)
    placed = specs[:ours], specs[ours:]
    shapes = {
        path: tuple(
            n // _devices(axes, mesh)
            for n, axes in zip(x.shape, _entries(spec, x.ndim), strict=True)
        )
        for path, x, spec in zip(problem.paths, problem.floats, specs[:ours], strict=True)
    }

    def on_parts(*args: Any, **kwargs: Any) -> Returned:
        with raised_by("hand-written gradient", args[0]):
            out = manual_grad(*args, **kwargs)
        return extract_gradient(out, problem.expected._replace(shapes=shapes, arguments=args))

    local = problem.call(on_parts)

    def of(function: Callable[..., Any], check_vma: bool) -> Callable[..., Any]:
        def stacked(*args: Any) -> Any:
            return jax.tree.map(lambda x: jnp.asarray(x)[None], function(*args))

        def spread_out(floats: list[Any], rest: list[Any], *further: Any) -> Any:
            on_devices = jax.shard_map(
                stacked,
                mesh=mesh,
                in_specs=(*placed, *[P() for _ in further]),
                out_specs=P(mesh.axis_names),
                check_vma=check_vma,
            )
            return on_devices(floats, rest, *further)

        return spread_out

    refused = ""
    try:
        jax.eval_shape(of(local, True), problem.floats, problem.rest)
    except Exception as error:  # of the types, or the gradient's own: then it is raised again
        jax.eval_shape(of(local, False), problem.floats, problem.rest)
        refused = first_line(error)
    traced = of(local, not refused)
    everywhere = NamedSharding(mesh, P())
    compiled = jax.jit(traced, out_shardings=everywhere)
    by_path = dict(zip(problem.paths, specs[:ours], strict=True))

    def copies(floats: list[Any], rest: list[Any]) -> Returned:
        out = compiled(*jax.device_put((floats, rest), everywhere))
        found: Returned = jax.tree.map(np.asarray, out)
        return found

    def gradient(floats: list[Any], rest: list[Any]) -> Returned:
        abstract = any(isinstance(x, jax.core.Tracer) for x in (*floats, *rest))
        out = (traced if abstract else copies)(floats, rest)
        leaves = {
            path: put_together(leaf, by_path.get(path, P()), mesh)
            for path, leaf in out.leaves.items()
        }
        return Returned(leaves, out.structure, out.form, out.unasked)

    found = OnMesh(spread, by_path, specs, local, of, copies, refused)
    devices = [(float(n), f"the number of devices along {a!r}") for a, n in mesh.shape.items()]
    return problem._replace(
        manual_grad=gradient,
        as_it_is=True,
        on_mesh=found,
        settings=[*devices, *problem.settings],
    )


def put_together(leaf: Any, spec: P, mesh: Mesh) -> Any:
    """Return the whole array of what every device has of it; of copies, the first.

    Args:
        leaf: (devices, ...).
        spec: how it lies on the mesh.
        mesh: the mesh.
    """
    x, rank = on_axes(leaf, mesh), leaf.ndim - 1
    if len(spec) > rank:  # another shape than the parameter's: to be said, not to be put together
        return leaf[0]
    names = list(mesh.axis_names)
    entries = _entries(spec, rank)
    kept = [name for name in names if name in axes_in(spec)]
    x = x[tuple(slice(None) if name in kept else 0 for name in names)]
    order: list[int] = []
    for d, axes in enumerate(entries):
        order += [*map(kept.index, axes), len(kept) + d]
    sizes = [_devices(axes, mesh) * n for axes, n in zip(entries, leaf.shape[1:], strict=True)]
    return x.transpose(order).reshape(sizes)


def cut(x: Any, spec: P, mesh: Mesh) -> Any:
    """Return the parts of a whole array: first the axes of the mesh that it is cut along.

    Args:
        x: the whole.
        spec: how it lies on the mesh.
        mesh: the mesh.
    """
    shape: list[int] = []
    entries, places = _entries(spec, x.ndim), dict[str, int]()
    for axes, size in zip(entries, x.shape, strict=True):
        for axis in axes:
            places[axis] = len(shape)
            shape.append(mesh.shape[axis])
        shape.append(size // _devices(axes, mesh))
    first = [places[axis] for axis in mesh.axis_names if axis in places]
    order = [*first, *(i for i in range(len(shape)) if i not in first)]
    return x.reshape(shape).transpose(order)


def disagreeing(leaf: Any, spec: P, mesh: Mesh, exact: float) -> tuple[str, ...]:
    """Return the axes along which devices ought to have the same of a leaf, and have not.

    Args:
        leaf: (devices, ...), in NumPy.
        spec: how it lies on the mesh.
        mesh: the mesh.
        exact: what may differ, as a part of the scale.
    """
    x = on_axes(np.asarray(leaf, np.float64), mesh)
    scale = np.abs(x[np.isfinite(x)]).max(initial=0.0)
    return tuple(
        name
        for i, name in enumerate(mesh.axis_names)
        if name not in axes_in(spec)
        and not np.allclose(x, x.take([0], i), 0, exact * scale, equal_nan=True)
    )


def on_axes(leaf: Any, mesh: Mesh) -> Any:
    """Return (devices, ...) as an array with an axis for each of the mesh, then its own."""
    return leaf.reshape((*mesh.devices.shape, *leaf.shape[1:]))


def axes_in(spec: P) -> tuple[str, ...]:
    """Return the axes of the mesh along which an array is cut."""
    return tuple(name for axes in _entries(spec, len(spec)) for name in axes)


def _specs_of(problem: Problem, spread: Spread) -> list[P]:
    """The rule of each array of a problem."""
    count = len(problem.floats)
    marks = [object() for _ in (*problem.floats, *problem.rest)]
    args = problem.call(lambda *args, **_: args)(marks[:count], marks[count:])

    def whole_if_none(rule: Any) -> Any:
        return P() if rule is None else rule

    rules = jax.tree.map(whole_if_none, spread.rules, is_leaf=lambda x: x is None)
    try:
        rules = jax.tree.broadcast(rules, args)
    except ValueError as error:
        raise TypeError(
            f"rules do not fit the arguments ({first_line(error)}); each must be a PartitionSpec, "
            "or a pytree of them with the containers of its argument"
        ) from None
    pairs = zip(jax.tree.leaves(args), jax.tree.leaves(rules), strict=True)
    found = {id(mark): rule for mark, rule in pairs}
    return [found.get(id(mark), P()) for mark in marks]


def _check_spec(name: str, shape: tuple[int, ...], spec: Any, mesh: Mesh) -> None:
    """Refuse a rule that an array cannot lie by.

    Raises:
        TypeError: it is no `PartitionSpec`.
        ValueError: it cannot.
    """
    if not isinstance(spec, P) or not all(
        entry is None or isinstance(entry, str | tuple) for entry in spec
    ):
        raise TypeError(
            f"the rule of {name} is {spec!r}; it must be a jax.sharding.PartitionSpec of names of "
            "axes, P() for what all devices have whole"
        )
    axes = axes_in(spec)
    unknown = [axis for axis in axes if axis not in mesh.shape]
    if unknown:
        raise ValueError(
            f"the rule of {name} is {spec}, and the mesh has no axis {unknown[0]!r}; its axes are "
            f"{_quoted(mesh.axis_names)}: name one of them"
        )
    if len({*axes}) < len(axes):
        raise ValueError(f"the rule of {name} is {spec}; it must name each axis at most once")
    if len(spec) > len(shape):
        raise ValueError(
            f"the rule of {name} is {spec}, for {len(spec)} dimensions; it has {len(shape)}, of "
            f"shape {shape}: leave out the others"
        )
    for d, axes in enumerate(_entries(spec, len(shape))):
        if shape[d] % (n := _devices(axes, mesh)):
            raise ValueError(
                f"dimension {d} of {name} has {shape[d]} for {n} devices along {_quoted(axes)}; "
                "each must have as many: choose a size that they divide, or another rule"
            )


def _entries(spec: P, rank: int) -> list[tuple[str, ...]]:
    """The axes along which each dimension is cut."""
    found = [() if e is None else (e,) if isinstance(e, str) else tuple(e) for e in spec]
    return found + [()] * (rank - len(found))


def _devices(axes: tuple[str, ...], mesh: Mesh) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)


def _quoted(axes: tuple[str, ...]) -> str:
    return ", ".join(map(repr, axes))
