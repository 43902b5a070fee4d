"""`experiments.benchmark.ops` and the product of `runs` in PyTorch; import as `in_torch`."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from torch.nn import functional as F  # noqa: N812

from experiments.benchmark.arms import Arm
from experiments.benchmark.in_torch import (
    Work,
    both_forms,
    channels_first,
    channels_last,
    fixed,
    learned,
    module,
)


def lm_head(params: Any, x: Any, labels: Any, dout: Any) -> dict[str, Work]:
    """A product, and the cross-entropy of all logits."""
    weights, features, targets = learned(params.w), learned(x), fixed(labels)
    forward = lambda: F.cross_entropy(features @ weights, targets)  # noqa: E731
    return {"": Work(forward, [weights, features], fixed(dout))}


def attention(inputs: Sequence[Any], dout: Any) -> dict[str, Work]:
    """Heads before positions, as PyTorch has them."""

    def turned(x: Any) -> Any:
        return x.transpose(1, 2)

    q, k, v = (turned(fixed(x)).contiguous().requires_grad_() for x in inputs)
    forward = partial(F.scaled_dot_product_attention, q, k, v, is_causal=True)
    dy = turned(fixed(dout)).contiguous()
    return {"": Work(forward, [q, k, v], dy, turned, turned)}


def recurrent(kind: str, params: Any, state: Any, x: Any, dout: Any) -> dict[str, Work]:
    """`torch.nn.LSTM` or `GRU`, a state before and a state after."""
    net, inputs = module(kind, params), learned(x)
    before = [fixed(s)[None].requires_grad_() for s in jax.tree.leaves(state)]
    dy, dfinal = dout
    cotangents = [fixed(dy), *(fixed(d)[None] for d in jax.tree.leaves(dfinal))]

    def forward() -> Any:
        y, after = net(inputs, tuple(before) if kind == "LSTM" else before[0])
        return (y, *after) if kind == "LSTM" else (y, after)

    leaves = [*net.parameters(), *before, inputs]
    return {"": Work(forward, leaves, cotangents, gradient=lambda dw: dw.T)}


def conv(params: Any, x: Any, dout: Any, stride: int) -> dict[str, Work]:
    """A convolution padded by 1."""

    def work(form: Any) -> Work:
        kernel = fixed(params.w).permute(3, 2, 0, 1).contiguous(memory_format=form)
        leaves = [kernel.requires_grad_(), channels_first(x, form).requires_grad_()]
        forward = partial(F.conv2d, leaves[1], leaves[0], stride=stride, padding=1)
        back = lambda dw: dw.permute(2, 3, 1, 0)  # noqa: E731
        return Work(forward, leaves, channels_first(dout, form), channels_last, back)

    return both_forms(work)


def pool(kind: str, x: Any, dout: Any) -> dict[str, Work]:
    """Windows of 2x2."""
    pooled: Any = {"max": F.max_pool2d, "average": F.avg_pool2d}[kind]

    def work(form: Any) -> Work:
        images = channels_first(x, form).requires_grad_()
        dy = channels_first(dout, form)
        return Work(partial(pooled, images, 2), [images], dy, channels_last, channels_last)

    return both_forms(work)


def norm(kind: str, params: Any, x: Any, dout: Any) -> dict[str, Work]:
    """Layer or RMS norm of rows."""
    weights, rows = [learned(p) for p in params if p is not None], learned(x)
    normalise: Any = {"layer": F.layer_norm, "rms": F.rms_norm}[kind]
    forward = partial(normalise, rows, rows.shape[-1:], *weights, eps=1e-5)
    return {"": Work(forward, [*weights, rows], fixed(dout))}


def batch_norm(params: Any, running: Any, x: Any, dout: Any) -> dict[str, Work]:
    """In training; the running statistics are buffers."""

    def work(form: Any) -> Work:
        images, scale, shift = channels_first(x, form).requires_grad_(), *map(learned, params)
        mean, variance = map(fixed, running)
        forward = partial(F.batch_norm, images, mean, variance, scale, shift, training=True)
        return Work(forward, [scale, shift, images], channels_first(dout, form), channels_last)

    return both_forms(work)


def embedding(params: Any, tokens: Any, dout: Any) -> dict[str, Work]:
    """Rows of a table."""
    table = learned(params.table)
    return {"": Work(partial(F.embedding, fixed(tokens), table), [table], fixed(dout))}


def product(a: Any, b: Any) -> Arm:
    """One product of matrices, forward only."""
    left, right = fixed(a), fixed(b)
    return Arm(lambda: (left @ right, ()))
