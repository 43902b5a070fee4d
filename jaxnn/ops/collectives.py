"""Collectives: what the devices of a mesh hand to each other, inside `jax.shard_map`.

Every device has an x of its own, x_i on device i of n along the axes. y_j is what device j has
afterwards, dy_j the cotangent that its own use of y_j sent back.

    all_copy        y_j = x, and x is the same on all devices     dx = sum_j dy_j
    all_sum         y = sum_i x_i, the same on all devices        dx_i = dy
    all_mean        y = 1/n sum_i x_i, the same on all devices    dx_i = dy / n
    all_gather      y_j = (x_0, ..., x_n-1)      dx_i = sum_j of part i of dy_j
    reduce_scatter  y_j = part j of sum_i x_i    dx_i = (dy_0, ..., dy_n-1)
    ring_shift      y_j = x_(j - steps)          dx_i = dy_(i + steps)
    all_to_all      y_j = (part j of x_0, ..., part j of x_n-1)
                    dx_i = (part i of dy_0, ..., part i of dy_n-1)

They come in pairs: the backward of `all_copy` is the forward of `all_sum` and the other way round
(f and g of Shoeybi et al., 2019, "Megatron-LM", section 3), that of `all_gather` the forward of
`reduce_scatter`, and `ring_shift` and `all_to_all` are undone by themselves, the other way round.

A value that is the same on all devices is one value: its cotangent is one too, and not one for each
device. That is why dx_i of `all_sum` is dy, and no sum of it over the devices, and it is how
`jax.shard_map` counts with its `check_vma=True`. None of them saves anything. An empty tuple of
axes is one device: every op is then the identity.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxnn.op import Op
from jaxnn.ops.collectives_doors import (
    AXES,
    COPIED,
    EXCHANGES,
    OWN,
    PARTS,
    SUMMED,
    TURNS,
    check_collective,
    check_exchange,
    check_gather,
    check_scatter,
    check_shift,
    example,
)
from jaxnn.varying import vary_over

Axis = tuple[str, ...]  # of the mesh, by name


class Axes(NamedTuple):
    """Over which axes of the mesh a model's logical axes are spread; () for none.

    Attributes:
        batch: the examples.
        sequence: the tokens of each example.
        embed: the features between layers, of the parameters alone: each device keeps a part of a
            parameter, and the whole is put together where it is used.
        heads: attention's heads.
        hidden: the units of a feed-forward layer.
        vocab: the tokens of the vocabulary, in the tables.
        experts: the experts of a mixture.
    """

    batch: Axis = ()
    sequence: Axis = ()
    embed: Axis = ()
    heads: Axis = ()
    hidden: Axis = ()
    vocab: Axis = ()
    experts: Axis = ()


ONE_DEVICE = Axes()


def all_copy_fwd(x: Array, *, axis: Axis) -> tuple[Array, tuple[()]]:
    """Hand the x that all devices share to each of them: y = x.

    Args:
        x: (...), the same on all devices.
        axis: the names of axes of the mesh.

    Raises:
        TypeError: x is no array, or the axis no tuple of names.
        ValueError: there is no axis of that name here: it is called outside `jax.shard_map`.
    """
    return vary_over(x, axis), ()


def all_copy_bwd(_: tuple[()], dy: Array, *, axis: Axis) -> tuple[Array]:
    """Return dx, the sum of what each device sent back."""
    return (lax.psum(dy, axis),)


def all_sum_fwd(x: Array, *, axis: Axis) -> tuple[Array, tuple[()]]:
    """Add up what the devices have; all have the sum. Arguments as `all_copy_fwd`."""
    return lax.psum(x, axis), ()


def all_sum_bwd(_: tuple[()], dy: Array, *, axis: Axis) -> tuple[Array]:
    """Return dx, which is dy on every device: each x_i went into the one sum once."""
    return (dy,)


def all_mean_fwd(x: Array, *, axis: Axis) -> tuple[Array, tuple[()]]:
    """Average what the devices have; all have the mean. Arguments as `all_copy_fwd`."""
    return lax.psum(x, axis) / lax.axis_size(axis), ()


def all_mean_bwd(_: tuple[()], dy: Array, *, axis: Axis) -> tuple[Array]:
    """Return dx = dy / n."""
    return (dy / lax.axis_size(axis),)


def all_gather_fwd(x: Array, *, axis: Axis, dimension: int) -> tuple[Array, tuple[()]]:
    """Put the devices' parts side by side along a dimension; all have the whole.

    Args:
        x: (..., C / n, ...), a part on each device.
        axis: as in `all_copy_fwd`.
        dimension: along which they are put side by side, in order of the devices.

    Returns:
        (..., C, ...), residuals.

    Raises:
        TypeError, ValueError: as `all_copy_fwd`; the dimension is none of x.
    """
    return (lax.all_gather(x, axis, axis=dimension, tiled=True) if axis else x), ()


def all_gather_bwd(_: tuple[()], dy: Array, *, axis: Axis, dimension: int) -> tuple[Array]:
    """Return dx: of the sum of all devices' dy, each device has the part that it gave."""
    return (_sum_part(dy, axis, dimension),)


def reduce_scatter_fwd(x: Array, *, axis: Axis, dimension: int) -> tuple[Array, tuple[()]]:
    """Add up what the devices have, and leave each its part of the sum along a dimension.

    Args:
        x: (..., C, ...), a term on each device.
        axis: as in `all_copy_fwd`.
        dimension: along which the sum is shared out, in order of the devices.

    Returns:
        (..., C / n, ...), residuals.

    Raises:
        TypeError, ValueError: as `all_gather_fwd`; the number of devices does not divide the
            dimension.
    """
    return _sum_part(x, axis, dimension), ()


def reduce_scatter_bwd(_: tuple[()], dy: Array, *, axis: Axis, dimension: int) -> tuple[Array]:
    """Return dx, the devices' dy side by side: every term went into all parts of the sum."""
    return (lax.all_gather(dy, axis, axis=dimension, tiled=True) if axis else dy,)


def ring_shift_fwd(x: Array, *, axis: Axis, steps: int = 1) -> tuple[Array, tuple[()]]:
    """Send x around the ring of devices: y is the x of the device so many steps before.

    Args:
        x: (...), another on each device.
        axis: as in `all_copy_fwd`.
        steps: how many devices on; negative ones go the other way.

    Raises:
        TypeError, ValueError: as `all_copy_fwd`; the steps are no integer.
    """
    return _shifted(x, axis, steps), ()


def ring_shift_bwd(_: tuple[()], dy: Array, *, axis: Axis, steps: int = 1) -> tuple[Array]:
    """Return dx: the cotangent goes back the way that x came."""
    return (_shifted(dy, axis, -steps),)


def all_to_all_fwd(x: Array, *, axis: Axis, split: int, join: int) -> tuple[Array, tuple[()]]:
    """Give every device its part of x, and put side by side what comes from the others.

    Args:
        x: (..., C, ...), C along `split`; another on each device.
        axis: as in `all_copy_fwd`.
        split: the dimension along which x is cut in n parts.
        join: the dimension along which the parts that arrive are put side by side.

    Raises:
        TypeError, ValueError: as `reduce_scatter_fwd`.
    """
    return (lax.all_to_all(x, axis, split, join, tiled=True) if axis else x), ()


def all_to_all_bwd(_: tuple[()], dy: Array, *, axis: Axis, split: int, join: int) -> tuple[Array]:
    """Return dx: cut where they were joined, every part goes back to whom it came from."""
    return (lax.all_to_all(dy, axis, join, split, tiled=True) if axis else dy,)


def on_first(x: Array | None, *, axis: Axis) -> Array | None:
    """Return x on the first device along the axes and 0 on the others; None for None.

    A bias of what is summed over devices is to be in the sum once. Its gradient is that of the one
    device where it is, the cotangent of the sum: nothing is to be done on the way back.
    """
    return x if x is None or not axis else jnp.where(lax.axis_index(axis) == 0, x, 0)


def _sum_part(x: Array, axis: Axis, dimension: int) -> Array:
    """This device's part, along a dimension, of the sum over all."""
    part: Array = lax.psum_scatter(x, axis, scatter_dimension=dimension, tiled=True) if axis else x
    return part


def _shifted(x: Array, axis: Axis, steps: int) -> Array:
    """What the device `steps` before this one has."""
    n = lax.axis_size(axis)
    return lax.ppermute(x, axis, [(i, (i + steps) % n) for i in range(n)]) if axis else x


all_copy = Op(all_copy_fwd, all_copy_bwd, example, AXES, check=check_collective, varies=COPIED)
all_sum = Op(all_sum_fwd, all_sum_bwd, example, AXES, check=check_collective, varies=SUMMED)
all_mean = Op(all_mean_fwd, all_mean_bwd, example, AXES, check=check_collective, varies=SUMMED)
all_gather = Op(all_gather_fwd, all_gather_bwd, example, PARTS, check=check_gather, varies=OWN)
reduce_scatter = Op(
    reduce_scatter_fwd, reduce_scatter_bwd, example, PARTS, check=check_scatter, varies=OWN
)
ring_shift = Op(ring_shift_fwd, ring_shift_bwd, example, TURNS, check=check_shift, varies=OWN)
all_to_all = Op(
    all_to_all_fwd, all_to_all_bwd, example, EXCHANGES, check=check_exchange, varies=OWN
)
