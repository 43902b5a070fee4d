"""Parameters of which each device keeps a part, put together where they are used.

    whole = (part_0, ..., part_n-1)         dpart_i = part i of the sum over devices of dwhole

So the memory of parameters, gradients and optimizer is shared out (Rajbhandari et al., 2020,
"ZeRO", stage 3; fully sharded data parallelism). Which dimension of a parameter is cut is known
from the names of its axes: the one that is called "embed".
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
from jax.sharding import PartitionSpec as P

from jaxnn.calls import path_name
from jaxnn.ops.collectives import Axis, all_gather

Tree = TypeVar("Tree")
CUT = "embed"
STACKED = ("layers", "experts")  # the first axes of what is stacked, in this order


def logical_axes(params: Any, table: Mapping[str, P]) -> Any:
    """Return the names of each parameter's axes: by the innermost field or key in the table.

    A parameter with more axes than it has names there is stacked: along layers and, if there is one
    more, along experts.

    Raises:
        ValueError: the table has no name for a parameter, or more names than that has axes.
    """

    def named(path: Any, leaf: Any) -> P:
        fields = [getattr(key, "name", getattr(key, "key", "")) for key in reversed(path)]
        known = [table[field] for field in fields if field in table]
        more = leaf.ndim - len(known[0]) if known else -1
        if not 0 <= more <= len(STACKED):
            raise ValueError(
                f"parameter {path_name(path)} has shape {leaf.shape}, and the model's AXES name "
                f"{known[0] if known else 'none of its fields'}; there must be a name for each "
                "axis: add them to AXES"
            )
        return P(*STACKED[:more], *known[0])

    return jax.tree_util.tree_map_with_path(named, params)


def layer_axes(stacked: Any, table: Mapping[str, P]) -> Any:
    """Return the names of the axes of one layer's parameters, from those of all, stacked."""
    return jax.tree.map(lambda names: P(*names[1:]), logical_axes(stacked, table))


def whole_fwd(parts: Tree, names: Any, *, axis: Axis) -> Tree:
    """Put the parameters together that devices along these axes of the mesh have parts of."""

    def whole(part: Any, names: P) -> Any:
        if CUT not in names:
            return part
        return all_gather.fwd(part, axis=axis, dimension=names.index(CUT))[0]

    return jax.tree.map(whole, parts, names) if axis else parts


def whole_bwd(dwhole: Tree, names: Any, *, axis: Axis) -> Tree:
    """Return of each parameter's gradient, summed over the devices, the part of this one."""

    def part(d: Any, names: P) -> Any:
        if CUT not in names:
            return d
        return all_gather.bwd((), d, axis=axis, dimension=names.index(CUT))[0]

    return jax.tree.map(part, dwhole, names) if axis else dwhole
