"""Inside `jax.shard_map`: over which axes of the mesh an array varies, from device to device.

There an array's type names the mesh axes along which devices hold different values. A loop must
hand on what it began with, a cotangent must vary as its input does: an input that is the same on
all devices has for its cotangent the sum of what each of them has.

Elsewhere nothing varies, and these functions return what they are given.
"""

from collections.abc import Collection, Hashable
from typing import Any

import jax
from jax import lax


def axes_of(*trees: Any) -> frozenset[Hashable]:
    """Return the axes of the mesh over which any array of the trees varies."""
    types = (jax.typeof(leaf) for leaf in jax.tree.leaves(trees))
    found = (t.manual_axis_type.varying for t in types if hasattr(t, "manual_axis_type"))
    return frozenset().union(*found)


def vary_with(tree: Any, *others: Any) -> Any:
    """Return the tree, its arrays of a type that varies over all axes that the others vary over.

    What a loop begins with: zeros, or a first state that all devices share, while what is added to
    it at each turn is different on each.
    """
    return vary_over(tree, axes_of(*others))


def vary_over(tree: Any, axes: Collection[Hashable]) -> Any:
    """Return the tree, its arrays of a type that varies over these axes of the mesh too."""
    here = jax.sharding.get_abstract_mesh().manual_axes  # not those of a `vmap`, which has no types

    def varied(leaf: Any) -> Any:
        missing = tuple(a for a in axes if a in here and a not in axes_of(leaf))
        return lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(varied, tree)


def cotangent_of(like: Any, cotangent: Any) -> Any:
    """Return an input's cotangent, summed over the axes along which the input does not vary.

    The input was handed to every device, so that what comes back from them is added up.
    """
    here = like.manual_axis_type.varying if hasattr(like, "manual_axis_type") else frozenset()
    surplus = tuple(axes_of(cotangent) - here)
    return vary_over(lax.psum(cotangent, surplus) if surplus else cotangent, here)
