"""Say how the arrays of a call lie on a mesh: refuse what cannot, cut up, and put together."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P


class Spread(NamedTuple):
    """How the arrays of a call lie on the devices of a mesh.

    Attributes:
        mesh: of Auto axes.
        rules: a `PartitionSpec` of the parameters, then of each further argument, as prefixes.
    """

    mesh: Mesh
    rules: tuple[Any, ...]

    def __str__(self) -> str:
        return ", ".join(f"{name}={size}" for name, size in self.mesh.shape.items())


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
    entries = entries_of(spec, rank)
    kept = [name for name in names if name in axes_in(spec)]
    x = x[tuple(slice(None) if name in kept else 0 for name in names)]
    order: list[int] = []
    for d, axes in enumerate(entries):
        order += [*map(kept.index, axes), len(kept) + d]
    sizes = [devices_along(axes, mesh) * n for axes, n in zip(entries, leaf.shape[1:], strict=True)]
    return x.transpose(order).reshape(sizes)


def cut(x: Any, spec: P, mesh: Mesh) -> Any:
    """Return the parts of a whole array: first the axes of the mesh that it is cut along.

    Args:
        x: the whole.
        spec: how it lies on the mesh.
        mesh: the mesh.
    """
    shape: list[int] = []
    entries, places = entries_of(spec, x.ndim), dict[str, int]()
    for axes, size in zip(entries, x.shape, strict=True):
        for axis in axes:
            places[axis] = len(shape)
            shape.append(mesh.shape[axis])
        shape.append(size // devices_along(axes, mesh))
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
    return tuple(name for axes in entries_of(spec, len(spec)) for name in axes)


def check_spec(name: str, shape: tuple[int, ...], spec: Any, mesh: Mesh) -> None:
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
            f"{quoted(mesh.axis_names)}: name one of them"
        )
    if len({*axes}) < len(axes):
        raise ValueError(f"the rule of {name} is {spec}; it must name each axis at most once")
    if len(spec) > len(shape):
        raise ValueError(
            f"the rule of {name} is {spec}, for {len(spec)} dimensions; it has {len(shape)}, of "
            f"shape {shape}: leave out the others"
        )
    for d, axes in enumerate(entries_of(spec, len(shape))):
        if shape[d] % (n := devices_along(axes, mesh)):
            raise ValueError(
                f"dimension {d} of {name} has {shape[d]} for {n} devices along {quoted(axes)}; "
                "each must have as many: choose a size that they divide, or another rule"
            )


def entries_of(spec: P, rank: int) -> list[tuple[str, ...]]:
    """The axes along which each dimension is cut."""
    found = [() if e is None else (e,) if isinstance(e, str) else tuple(e) for e in spec]
    return found + [()] * (rank - len(found))


def devices_along(axes: tuple[str, ...], mesh: Mesh) -> int:
    """Return how many devices there are along these axes."""
    return math.prod(mesh.shape[axis] for axis in axes)


def quoted(axes: tuple[str, ...]) -> str:
    """Return the names of axes in words."""
    return ", ".join(map(repr, axes))
