"""A layout: a mesh's axes and their sizes, and which logical axes of a model lie along which.

A rule sends a logical axis ("batch", "embed", "heads", ...) to one axis of the mesh or several, by
name, as `jaxnn.mesh` has them.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from jaxnn.ops.collectives import Axes, Axis

Rules = Mapping[str, str | tuple[str, ...]]


class Layout(NamedTuple):
    """What of a layout the paper needs: the sizes of the mesh's axes, in order, and the rules."""

    mesh: Mapping[str, int]
    rules: Rules

    def axes(self, *logical: str) -> Axis:
        """Return the axes of the mesh along which any of the logical axes lies, in its order."""
        named: set[str] = set()
        for one in logical:
            along = self.rules.get(one, ())
            named |= {along} if isinstance(along, str) else set(along)
        return tuple(axis for axis in self.mesh if axis in named)

    def parts(self, *logical: str) -> int:
        """Return over how many devices the logical axes are spread, together."""
        return math.prod(self.mesh[axis] for axis in self.axes(*logical))

    @property
    def tokens(self) -> Axis:
        """The axes whose devices see other examples or tokens: gradients are summed over them."""
        return self.axes("batch", "sequence")

    @property
    def devices(self) -> int:
        """How many devices the mesh has."""
        return math.prod(self.mesh.values())

    def share(self, size: int, logical: str) -> int:
        """Return the part of a dimension that one device has.

        Raises:
            ValueError: the devices do not divide it.
        """
        parts = self.parts(logical)
        if size % parts:
            along = " x ".join(self.axes(logical))
            raise ValueError(
                f"{logical} is {size} over {parts} devices ({along}); they must divide it: change "
                "the size, the mesh or the rule"
            )
        return size // parts


def refuse_unknown(layout: Layout) -> None:
    """Refuse a rule for no logical axis, or to no axis of the mesh, and sizes below 1.

    Raises:
        ValueError: what is said above; the message lists the known names.
    """
    for axis, size in layout.mesh.items():
        if size < 1:
            raise ValueError(f"mesh: {axis} is {size}; it must be at least 1: give it devices")
    for logical, along in layout.rules.items():
        if logical not in Axes._fields:
            raise ValueError(
                f"rules: {logical!r} is no logical axis; they are {', '.join(Axes._fields)}: "
                "correct the name"
            )
        for axis in (along,) if isinstance(along, str) else along:
            if axis not in layout.mesh:
                raise ValueError(
                    f"rules: {logical} goes to {axis!r}, and the mesh has {', '.join(layout.mesh)}; "
                    "it must be one of these: correct the rule, or give the mesh that axis"
                )
