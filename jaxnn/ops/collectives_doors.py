"""What collectives refuse, axes that are not of the mesh around them, parts that do not divide.

And what they are verified on.
"""

from typing import Any

import jax
from jax import Array, lax

from jaxnn.checks import check_array
from jaxnn.settings import check_integer


def check_axis(name: str, axis: Any) -> int:
    """Return how many devices there are along axes of the mesh around this call.

    Raises:
        TypeError: the axis is no tuple of names.
        ValueError: there is no axis of that name here.
    """
    if not isinstance(axis, tuple) or not all(isinstance(one, str) for one in axis):
        raise TypeError(
            f"{name} is {axis!r:.50}; it must be a tuple of names of axes of the mesh: pass "
            "('data',), say"
        )
    n = 1
    for one in axis:
        try:
            n *= lax.axis_size(one)
        except NameError:
            raise ValueError(
                f"{name} is {axis!r}, and there is no axis {one!r} here; it must be of the mesh "
                "that jax.shard_map was given: call it inside, or pass () for one device"
            ) from None
    return n


def check_axes(axes: Any) -> None:
    """Refuse a model's axes that are not of the mesh around this call.

    Raises:
        TypeError, ValueError: as `check_axis`.
    """
    for name, axis in axes._asdict().items():
        check_axis(f"config.axes.{name}", axis)


def check_collective(x: Any, *, axis: Any) -> None:
    """Refuse what `all_copy_fwd` says it raises."""
    check_array("collective: x", x)
    check_axis("axis", axis)


def check_shift(x: Any, *, axis: Any, steps: Any) -> None:
    """Refuse what `ring_shift_fwd` says it raises."""
    check_collective(x, axis=axis)
    check_integer("ring_shift: steps", steps, least=-(2**31))


def check_gather(x: Any, *, axis: Any, dimension: Any) -> None:
    """Refuse what `all_gather_fwd` says it raises."""
    check_collective(x, axis=axis)
    _check_dimension(x, "dimension", dimension)


def check_scatter(x: Any, *, axis: Any, dimension: Any) -> None:
    """Refuse what `reduce_scatter_fwd` says it raises."""
    check_gather(x, axis=axis, dimension=dimension)
    check_parts("x", x.shape[dimension], check_axis("axis", axis), axis)


def check_exchange(x: Any, *, axis: Any, split: Any, join: Any) -> None:
    """Refuse what `all_to_all_fwd` says it raises."""
    check_collective(x, axis=axis)
    for name, dimension in {"split": split, "join": join}.items():
        _check_dimension(x, name, dimension)
    check_parts("x", x.shape[split], check_axis("axis", axis), axis)


def check_parts(what: str, size: int, n: int, axis: Any) -> None:
    """Refuse a dimension that so many devices do not divide.

    Raises:
        ValueError: they do not.
    """
    if size % n:
        raise ValueError(
            f"{what} has {size} for {n} devices along {axis!r}; each must have as many: choose a "
            "size that they divide, or fewer devices"
        )


def _check_dimension(x: Any, name: str, dimension: Any) -> None:
    check_integer(name, dimension, least=0)
    if dimension >= x.ndim:
        raise ValueError(
            f"{name} is {dimension} of x of shape {x.shape}; it must be a dimension of x, from 0 "
            f"to {x.ndim - 1}"
        )


# Which differ from device to device: of the inputs, and the result.
COPIED = {"axis": ((False,), True)}
SUMMED = {"axis": ((True,), False)}
OWN = {"axis": ((True,), True)}
_AXIS = {"axis": ("devices",)}
AXES = (_AXIS, {"axis": ("rows", "columns")})
PARTS = tuple(_AXIS | {"dimension": dimension} for dimension in (0, 2))
TURNS = tuple(_AXIS | {"steps": steps} for steps in (1, -1))
EXCHANGES = tuple(_AXIS | {"split": split, "join": join} for split, join in ((0, 1), (2, 0)))


def example(key: Array) -> tuple[Array]:
    """Draw the x of one device; three devices divide its first and last dimension."""
    return (jax.random.normal(key, (6, 5, 12)),)
