"""Why a cotangent has another shape than its input."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxnn.learn.case import Case, Cause
from jaxnn.learn.points import Leaf, close


def of_shape(case: Case) -> Iterator[Cause]:
    """A cotangent of another shape than its input's."""
    name, given, right = case.name, case.given, case.right
    has, must = given[0].shape, right[0].shape
    start = f"{name} has shape {has}; it must have that of its input, {must}"
    for n in range(1, len(has) + 1):
        for axes in itertools.combinations(range(len(has)), n):
            summed = [m.sum(axes) for m in given]
            if summed[0].size == right[0].size and all(
                close(s.reshape(must), a) for s, a in zip(summed, right, strict=True)
            ):
                over = f"axis {axes[0]}" if n == 1 else f"axes {axes}"
                if all(has[a] == 1 for a in axes):
                    yield Cause(
                        "shape",
                        f"{start}; the values are right",
                        "Was an axis of length 1 kept (keepdims) that the input has not?",
                    )
                else:
                    yield Cause(
                        "broadcast",
                        f"{start}: summed over {over} it would be right",
                        "What was broadcast on the way forward is summed on the way back.",
                    )
                return
    if given[0].ndim and has == must[::-1] and close(given[0].T, right[0]):
        yield Cause(
            "transpose", f"{start}: it is the transpose", "Write the shapes beside each name."
        )
    elif given[0].size == right[0].size and close(given[0].reshape(must), right[0]):
        yield Cause("shape", f"{start}; the values are right", "Give it the shape of its input.")
    elif _spread(given[0], must) is not None and close(_spread(given[0], must), right[0]):
        yield Cause(
            "shape", f"{start}; broadcast, it would be right", "Give it the shape of its input."
        )
    else:
        kind = "transpose" if has == must[::-1] and has != must else "shape"
        yield Cause(
            kind,
            start + (": are two axes exchanged?" if kind == "transpose" else ""),
            "Write the shapes beside each name, and see where the axes change.",
        )


def _spread(array: Leaf, shape: tuple[int, ...]) -> Any:
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        return None
