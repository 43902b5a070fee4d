"""Say which of a call's arguments carry a batch, and find their arrays."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class BatchLaws:
    """Which arguments carry a batch, and how the loss reduces it.

    Attributes:
        arguments: positions after the parameters (0 is the first), or keyword names. Every array
            in these arguments has the examples along its leading axis.
        reduction: "mean" or "sum" over the examples. A mean may have terms added once, such as a
            penalty. With a mask, it is a mean over what the mask shows, weighted by its values.
        mask: the array, 0 or False where an example (or a part of one) is hidden, as Python would
            write it: "[0].mask" or "[0][2]" in the first positional argument, "mask" for the
            keyword argument of that name, "batch['mask']" inside one. None if there is none.
    """

    arguments: tuple[int | str, ...] = (0,)
    reduction: Literal["mean", "sum"] = "mean"
    mask: str | None = None

    def __post_init__(self) -> None:
        """Refuse what is wrong whatever the call.

        Raises:
            TypeError: an attribute has another type.
            ValueError: no argument is named, or the reduction is unknown.
        """
        if not isinstance(self.arguments, tuple) or any(
            isinstance(a, bool) or not isinstance(a, int | str) for a in self.arguments
        ):
            raise TypeError(
                f"BatchLaws.arguments is {self.arguments!r}; it must be a tuple of positions and "
                "names, as in (0,) or (0, 'mask')"
            )
        if not self.arguments:
            raise ValueError("BatchLaws.arguments is (); name at least one that carries the batch")
        if self.reduction not in ("mean", "sum"):
            raise ValueError(
                f"BatchLaws.reduction is {self.reduction!r}; it must be 'mean' or 'sum'"
            )
        if self.mask is not None and not isinstance(self.mask, str):
            raise TypeError(
                f"BatchLaws.mask is a {type(self.mask).__name__}; it must be the name of an array "
                "of the batch, such as '[0].mask'"
            )


def visible_parts(
    laws: BatchLaws, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> np.ndarray[Any, Any]:
    """Return how much of each example can be seen: 1, or the sum of its mask.

    Raises:
        ValueError: an argument or the mask is not there, the arrays have not all the same leading
            size, or fewer than two examples can be seen.
    """
    for argument in laws.arguments:
        if argument not in (*range(len(args)), *kwargs):
            there = ", ".join(map(repr, (*range(len(args)), *kwargs))) or "none"
            raise ValueError(
                f"BatchLaws.arguments names {argument!r}, which the call has not; its arguments "
                f"after the parameters are {there}"
            )
    arrays: dict[str, Any] = {}

    def note(name: str, leaf: Any) -> Any:
        arrays[name] = leaf
        return leaf

    replace_batch(laws, args, kwargs, note)
    names = ", ".join(arrays) or "none"
    sizes = {name: leaf.shape[0] if leaf.ndim else None for name, leaf in arrays.items()}
    if len({*sizes.values()}) != 1 or None in sizes.values():
        raise ValueError(
            f"{arguments_in_words(laws.arguments)} must hold arrays whose leading axis is the "
            f"batch, all of one size, but hold {sizes}: name only those that carry the batch"
        )
    if laws.mask is not None and laws.mask not in arrays:
        raise ValueError(
            f"BatchLaws.mask is {laws.mask!r}, which is no array of the batch; they are {names}"
        )
    shown = np.ones(next(iter(arrays.values())).shape[0])
    if laws.mask is not None:
        shown = np.asarray(arrays[laws.mask], np.float64).reshape(len(shown), -1).sum(1)
    if np.count_nonzero(shown) < 2:
        raise ValueError(
            f"of the {len(shown)} examples in the batch {np.count_nonzero(shown)} can be seen; its "
            "laws need at least two: give a larger batch, or a mask that hides fewer"
        )
    return shown


def replace_batch(
    laws: BatchLaws,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    change: Callable[[str, Any], Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments with every array of the batch, as NumPy's, changed, given its name."""

    def inside(argument: int | str, value: Any) -> Any:
        if argument not in laws.arguments:
            return value
        start = f"[{argument}]" if isinstance(argument, int) else argument

        def leaf(path: tuple[Any, ...], leaf: Any) -> Any:
            if not isinstance(leaf, jax.Array | np.ndarray):
                return leaf
            if not jnp.issubdtype(leaf.dtype, jax.dtypes.extended):  # a PRNG key
                leaf = np.asarray(leaf)
            return change(start + jax.tree_util.keystr(path), leaf)

        return jax.tree_util.tree_map_with_path(leaf, value)

    return (
        tuple(inside(number, value) for number, value in enumerate(args)),
        {name: inside(name, value) for name, value in kwargs.items()},
    )


def arguments_in_words(arguments: tuple[int | str, ...]) -> str:
    """Return the arguments in words."""
    plural = "s" if len(arguments) > 1 else ""
    return f"argument{plural} {', '.join(map(repr, arguments))}"
