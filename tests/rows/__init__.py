"""A row for every op: what it must equal, and how to draw inputs of any shape."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxnn.op import Op


class Row(NamedTuple):
    """An op under some settings.

    Attributes:
        op: the op.
        static: its settings.
        reference: `reference(*inputs, **static)`, its forward from an independent source (jax.nn,
            optax, NumPy, SciPy), of NumPy arrays in float64.
        draw: `draw(rng, shape)` -> its inputs as NumPy arrays; `shape` has two or three sizes,
            from 1 to 8, to be used as the op likes.
        peer: `peer(torch, *inputs, **static)`, the same in PyTorch, of tensors in containers such
            as the inputs'; None where PyTorch has no such operation.
        scalable: whether its real inputs may be multiplied by anything, as probabilities may not.
        averages: whether it takes a mean, or another statistic, over the batch, and so refuses an
            empty one; all with a `reduction` of "mean" do. Empty is what `draw(rng, (0, 4))` draws
            or, where a row draws an example at least, that with the first axis of the last input
            cut to 0.
    """

    op: Op[..., Any]
    static: dict[str, Any]
    reference: Callable[..., Any]
    draw: Callable[[np.random.Generator, tuple[int, ...]], tuple[Any, ...]]
    peer: Callable[..., Any] | None = None
    scalable: bool = True
    averages: bool = False
