"""What the systems with faulty gradients share: the mistakes and their causes, the head, a slope.

A fault is a string that a hand-written backward pass compares with: where it is the one at hand,
the pass does what somebody in a hurry might have written. None is the right gradient.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Params = dict[str, Array]
Batch = tuple[Array, Array]
Fault = str | None


class System(NamedTuple):
    """A small network, its loss, and a gradient of it in which mistakes can be planted.

    Attributes:
        name: for people.
        make: `make(seed, size, dtype) -> (params, batch)`, where size is 0 or 1.
        loss: `loss(params, batch) -> scalar`.
        manual_grad: `manual_grad(params, batch, fault=None) -> gradient`, shaped like the params.
        faults: the kinds of fault that it knows, keys of `CAUSES`.
    """

    name: str
    make: Callable[[int, int, Any], tuple[Params, Batch]]
    loss: Callable[..., Array]
    manual_grad: Callable[..., Params]
    faults: tuple[str, ...]


# Every kind of fault, with the diagnoses that would be right: one mistake may have several names.
CAUSES: dict[str, frozenset[str]] = {
    kind: frozenset(causes.split(", "))
    for kind, causes in {
        # the mean over the batch
        "mean left out": "factor",
        "mean taken twice": "factor",
        "mean over classes too": "factor",
        # softmax and its labels
        "label never subtracted": "missing term, index",
        "one class never subtracted": "missing term, index",
        "labels of the next example": "shifted, index, wrong saved value",
        "log-probabilities for probabilities": "wrong saved value",
        # a linear layer
        "bias averaged": "factor, not summed",
        "bias of one example": "not summed",
        "inputs of the next example": "shifted, wrong saved value",
        "last column left out": "zeroed slice, index",
        "weight reshaped, not transposed": "transpose",
        "weight not transposed": "transpose",
        "gradient transposed": "transpose",
        "sign flipped": "sign",
        "gradient stopped": "zeroed slice, detached, missing term",
        "pre-activation saved": "wrong saved value",
        # an elementwise derivative
        "derivative left out": "derivative left out",
        "derivative at the output": "wrong saved value",
        "derivative from the pre-activation": "wrong saved value",
        "mask ignored": "derivative left out, mask",
        "mask inverted": "mask",
        "mask of the next unit": "shifted, mask",
        "mask of the next example": "shifted, mask, wrong saved value",
        "mask of the cotangent": "mask, wrong saved value",
        # weight decay
        "regulariser forgotten": "parameter term, missing term",
        "regulariser doubled": "parameter term, doubled term",
        "regulariser of a bias": "parameter term",
        # numbers
        "rounded to bfloat16": "rounding",
        "rounded to float16": "rounding",
        "product in bfloat16": "rounding",
        "0/0 for a class that never occurs": "not finite",
        # convolution
        "kernel not flipped": "flip",
        "gradient flipped": "flip",
        "channels not transposed": "transpose",
        "shifted by one pixel": "shifted",
        "padding off by one": "shifted",
        "pixels not averaged": "factor",
        "bias of one pixel": "not summed",
        # normalisation
        "mean's part forgotten": "missing term",
        "variance's part forgotten": "missing term",
        "n - 1 for n": "n against n-1",
        "gain left out": "factor, derivative left out",
        "deviation left out": "factor, derivative left out",
        "sums over the other axis": "not summed, wrong axis",
        "gain from what was not normalised": "wrong saved value",
        "gain and bias swapped": "swapped leaves",
        # recurrence
        "carry detached": "detached, missing term",
        "state after the step": "shifted, wrong saved value",
        "slope of the state before": "shifted, wrong saved value",
        "last step skipped": "missing term, index",
        "steps not summed": "not summed",
        "time not reversed": "flip, shifted",
        "bias averaged over time": "factor, not summed",
        "initial state forgotten": "zeroed slice, detached, missing term",
        # attention
        "scale left out": "factor",
        "scale taken twice": "factor",
        "causal mask ignored": "mask",
        "causal mask shifted": "mask, shifted",
        "softmax without its sum": "missing term",
        "scores for probabilities": "wrong saved value",
        "scores not transposed": "transpose",
        "queries and keys swapped": "swapped leaves",
        "skip connection forgotten": "missing term",
        "skip connection twice": "doubled term",
        "path through the values forgotten": "missing term",
        "one head left out": "zeroed slice, index",
        "heads merged without a transpose": "transpose",
    }.items()
}
HEAD = (
    "mean left out", "mean taken twice", "mean over classes too", "label never subtracted",
    "one class never subtracted", "labels of the next example",
    "log-probabilities for probabilities", "bias averaged", "bias of one example",
    "inputs of the next example", "last column left out", "weight reshaped, not transposed",
    "sign flipped", "gradient stopped", "rounded to bfloat16", "rounded to float16",
    "product in bfloat16", "0/0 for a class that never occurs",
)  # fmt: skip
SLOPES = {
    "relu": ("mask ignored", "mask inverted", "mask of the next unit", "mask of the next example",
             "mask of the cotangent"),
    "tanh": ("derivative left out", "derivative at the output",
             "derivative from the pre-activation"),
}  # fmt: skip


def draw(rng: np.random.Generator, dtype: Any, **shapes: tuple[int, ...]) -> Params:
    """Normal numbers: vectors of size 0.3, others of size 1 / sqrt(inputs of one output)."""

    def one(shape: tuple[int, ...]) -> Array:
        size = 0.3 if len(shape) == 1 else np.prod(shape[:-1]) ** -0.5
        return jnp.asarray(size * rng.normal(size=shape), dtype)

    return {name: one(shape) for name, shape in shapes.items()}


def draw_labels(rng: np.random.Generator, n: int, classes: int) -> Array:
    """[n] labels: class 0 and another occur, the last class never does."""
    labels = rng.integers(classes - 1, size=n)
    labels[:2] = 0, 1
    return jnp.asarray(labels, jnp.int32)


def head_loss(h: Array, params: Params, labels: Array) -> Array:
    """Mean cross-entropy of softmax(h w + b), h of shape [N, H], labels [N]."""
    log_p = jax.nn.log_softmax(h @ params["w"] + params["b"])
    return -jnp.take_along_axis(log_p, labels[:, None], axis=1).mean()


def head_bwd(
    h: Array, params: Params, labels: Array, fault: Fault, saved: Array | None = None
) -> tuple[Array, Params]:
    """dz = (p - y) / N;  dw = h' dz;  db = sum dz;  dh = dz w'.

    Args:
        h: [N, H], what the layers before return.
        params: w [H, K] and b [K] among others.
        labels: [N].
        fault: the mistake to make.
        saved: what takes the place of h in dw, if that is a mistake of the caller.

    Returns:
        dh, and the gradient of w and b.
    """
    w, dtype = params["w"], h.dtype
    z = h @ w + params["b"]
    n, classes = z.shape
    y = jax.nn.one_hot(labels, classes, dtype=dtype)
    if fault == "labels of the next example":
        y = jnp.roll(y, 1, axis=0)
    if fault == "one class never subtracted":
        y = y.at[:, 0].set(0)
    p = jax.nn.log_softmax(z) if fault == "log-probabilities for probabilities" else softmax(z)
    dz = p if fault == "label never subtracted" else p - y
    divisors = {
        "mean left out": 1, "mean taken twice": n * n, "mean over classes too": n * classes
    }  # fmt: skip
    dz = dz / divisors.get(fault or "", n)
    if fault in ("rounded to bfloat16", "rounded to float16"):
        dz = dz.astype(fault.removeprefix("rounded to ")).astype(dtype)

    x = h if saved is None else saved
    if fault == "inputs of the next example":
        x = jnp.roll(x, 1, axis=0)
    dw = x.T @ dz
    if fault == "product in bfloat16":
        dw = (x.T.astype(jnp.bfloat16) @ dz.astype(jnp.bfloat16)).astype(dtype)
    if fault == "last column left out":
        dw = dw.at[:, -1].set(0)

    db = dz.sum(0)
    if fault == "bias averaged":
        db = dz.mean(0)
    if fault == "bias of one example":
        db = dz[0]
    if fault == "0/0 for a class that never occurs":  # each class's count times its mean label
        count = y.sum(0)
        db = (p.sum(0) - count * (y.sum(0) / count)) / n

    dh = dz @ (w.reshape(w.shape[::-1]) if fault == "weight reshaped, not transposed" else w.T)
    if fault == "sign flipped":
        dh = -dh
    if fault == "gradient stopped":
        dh = jnp.zeros_like(dh)
    return dh, {"w": dw, "b": db}


def softmax(z: Array) -> Array:
    """exp(z) / sum exp(z) over the last axis."""
    e = jnp.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def activate(name: str, z: Array) -> Array:
    """max(z, 0), or tanh(z)."""
    return jax.nn.relu(z) if name == "relu" else jnp.tanh(z)


def slope(name: str, z: Array, h: Array, dh: Array, fault: Fault) -> Array:
    """f'(z) where h = f(z) and dh is its cotangent; batch first, units last."""
    if fault in ("derivative left out", "mask ignored"):
        return jnp.ones_like(z)
    if name == "relu":
        mask = dh > 0 if fault == "mask of the cotangent" else z > 0
        if fault == "mask inverted":
            mask = ~mask
        if fault == "mask of the next unit":
            mask = jnp.roll(mask, 1, axis=-1)
        if fault == "mask of the next example":
            mask = jnp.roll(mask, 1, axis=0)
        return mask.astype(z.dtype)
    if fault == "derivative at the output":
        h = jnp.tanh(h)
    if fault == "derivative from the pre-activation":
        h = z
    return 1 - h * h
