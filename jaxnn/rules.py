"""Rules: from the logical axes of a model to the axes of a mesh of devices."""

from collections.abc import Mapping
from typing import Any

from jax.sharding import AbstractMesh, Mesh

from jaxnn.ops.collectives import Axes, Axis

Rules = Mapping[str, str | tuple[str, ...] | None]
# What the axes of a mesh are for, by their usual names.
USUAL: dict[str, tuple[str, ...]] = {
    "data": ("batch",),
    "fsdp": ("batch", "embed"),
    "model": ("heads", "hidden", "experts"),
    "sequence": ("sequence",),
}


def axes_by_rules(mesh: Mesh | AbstractMesh, rules: Any, known: list[str]) -> Axes:
    """Return the axes of the mesh that each logical axis is spread over.

    Args:
        mesh: the mesh.
        rules: from logical axes to names of axes of the mesh; None for the usual ones.
        known: the logical axes that the model has.

    Raises:
        TypeError, ValueError: as `jaxnn.mesh.lay_out` says of its rules.
    """
    if rules is None:
        usual = [(name, axis) for axis in mesh.axis_names for name in USUAL.get(axis, ())]
        left_out = ["hidden"] if "experts" in known else []  # an expert is whole on its device
        usual = [(n, a) for n, a in usual if n in known and n not in left_out]
        found = {name: tuple(a for n, a in usual if n == name) for name, _ in usual}
    else:
        if not isinstance(rules, Mapping):
            raise TypeError(
                f"rules is a {type(rules).__name__}; it must be a dict from logical axes to those "
                "of the mesh: pass {'batch': 'data'}, say"
            )
        found = {name: _names(name, axis) for name, axis in rules.items()}
    for name, axis in found.items():
        if name not in known:
            raise ValueError(
                f"rules have {name!r}, which the model has not; its axes are {', '.join(known)}: "
                "leave that rule out"
            )
        for one in axis:
            if one not in mesh.axis_names:
                raise ValueError(
                    f"rules[{name!r}] is {one!r}; it must be an axis of the mesh, which has "
                    f"{', '.join(mesh.axis_names)}: name one of these"
                )
    axes = Axes(**found)
    _check_uses(mesh, axes, known)
    return axes


def _check_uses(mesh: Mesh | AbstractMesh, axes: Axes, known: list[str]) -> None:
    """Refuse an axis of the mesh that is for nothing, or for two things that exclude each other."""
    for one in mesh.axis_names:
        if mesh.shape[one] > 1 and not any(one in axis for axis in axes):
            raise ValueError(
                f"the mesh has an axis {one!r}, which no rule leads to; its {mesh.shape[one]} "
                f"devices would all do the same: add a rule from one of {', '.join(known)}, or "
                "make a mesh without it"
            )
    tokens = axes.batch + axes.sequence
    twice = [one for one in tokens if tokens.count(one) > 1]
    if twice:
        raise ValueError(
            f"rules lead 'batch' or 'sequence' to {twice[0]!r} twice; each axis of the mesh can "
            "spread one of them, once: lead the other to another axis"
        )
    for name in ("heads", "hidden", "vocab", "experts"):
        for one in set(getattr(axes, name)) & set(tokens):
            raise ValueError(
                f"rules[{name!r}] is {one!r}, along which devices have other examples or tokens; "
                f"those that share {name} must have the same: lead it to another axis of the mesh"
            )
    beyond = [one for one in axes.embed if one not in axes.batch + axes.sequence]
    if beyond:
        raise ValueError(
            f"rules['embed'] is {beyond[0]!r}, over which neither examples nor tokens are spread; "
            "devices along it would all do the same: lead 'batch' there too"
        )


def _names(name: str, axis: Any) -> Axis:
    """The axes of the mesh that a rule leads to."""
    axis = () if axis is None else (axis,) if isinstance(axis, str) else axis
    if not isinstance(axis, tuple) or not all(isinstance(one, str) for one in axis):
        raise TypeError(
            f"rules[{name!r}] is {axis!r:.50}; it must be the name of an axis of the mesh, several "
            "in a tuple, or None"
        )
    return axis
