"""The last linear layer and the softmax cross-entropy together, a few rows at a time.

    z = x w,  l = softmax_cross_entropy(z, label);   dz = (p - q) dl,  dw = x^T dz,  dx = dz w^T

With a large vocabulary the logits z are by far the largest array of a language model. Here no more
than `chunk` rows of them exist at once, in neither direction: the backward computes them again.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.op import Op
from jaxnn.ops.cross_entropy import (
    check_cross_entropy,
    check_labels,
    softmax_cross_entropy_bwd,
    softmax_cross_entropy_fwd,
)
from jaxnn.ops.reductions import reduce_bwd, reduce_fwd


class LinearCrossEntropyResiduals(NamedTuple):
    """The inputs: weights (D, V), features (..., D), labels (...)."""

    w: Array
    x: Array
    labels: Array


def linear_cross_entropy_fwd(
    w: Array,
    x: Array,
    labels: Array,
    *,
    chunk: int = 128,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> tuple[Array, LinearCrossEntropyResiduals]:
    """`softmax_cross_entropy` of the logits x w, in nats, without ever holding all of them.

    Saves the inputs, there already: no extra bytes. The backward recomputes the logits: one matrix
    product more than the two ops apart. At any time there are about `chunk` (V) values of them, in
    the backward a few times that. dw is summed over the chunks in the dtype of w.

    Args:
        w: (D, V), V classes; of a tied model the transposed table of its embedding.
        x: (..., D), of the dtype of w, at least one row.
        labels: (...) integers in [0, V).
        chunk: rows of logits to hold at once; any number, whether or not it divides all rows.
        label_smoothing: as `softmax_cross_entropy`.
        z_loss: as `softmax_cross_entropy`.
        reduction: "mean", "sum" or "none", which gives (...).

    Raises:
        TypeError: the labels are not integers.
        ValueError: the shapes do not fit, there is no row, a label is outside [0, V) (NaN under
            jit), or a setting outside its range.
    """
    name = "linear_cross_entropy"
    check_cross_entropy(name, label_smoothing, z_loss, reduction)
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ValueError(
            f"{name}: chunk is {chunk!r}; it must be a whole number of rows, at least 1"
        )
    if w.ndim != 2 or x.ndim == 0 or x.shape[-1] != w.shape[0]:
        raise ValueError(
            f"{name}: w has shape {w.shape}, x {x.shape}; they must be (features, classes) and "
            "(..., features): transpose w or check the feature count"
        )
    check_labels(jax.ShapeDtypeStruct((*x.shape[:-1], w.shape[1]), x.dtype), labels, name)

    def losses_of(_: None, rows: tuple[Array, Array]) -> tuple[None, Array]:
        x, labels = rows
        return None, softmax_cross_entropy_fwd(
            x @ w, labels, label_smoothing=label_smoothing, z_loss=z_loss, reduction="none"
        )[0]

    rows = _chunks(x.reshape(-1, w.shape[0]), chunk), _chunks(labels.ravel(), chunk)
    _, losses = lax.scan(losses_of, None, rows)
    losses = losses.ravel()[: labels.size].reshape(labels.shape)
    return reduce_fwd(losses, reduction), LinearCrossEntropyResiduals(w, x, labels)


def linear_cross_entropy_bwd(
    residuals: LinearCrossEntropyResiduals,
    dloss: Array,
    *,
    chunk: int = 128,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> tuple[Array, Array, None]:
    """For each chunk: its logits and dz again, its share of dw, its rows of dx."""
    w, x, labels = residuals
    each: dict[str, Any] = {
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "reduction": "none",
    }

    def add_chunk(dw: Array, rows: tuple[Array, ...]) -> tuple[Array, Array]:
        x, labels, dlosses = rows
        _, residuals = softmax_cross_entropy_fwd(x @ w, labels, **each)
        dz, _ = softmax_cross_entropy_bwd(residuals, dlosses, **each)
        return dw + x.T @ dz, dz @ w.T

    dlosses = jnp.broadcast_to(reduce_bwd(dloss, labels.size, reduction), labels.shape)
    flat = x.reshape(-1, w.shape[0]), labels.ravel(), dlosses.ravel()
    rows = tuple(_chunks(array, chunk) for array in flat)
    dw, dx = lax.scan(add_chunk, jnp.zeros_like(w), rows)
    return dw, dx.reshape(-1, w.shape[0])[: labels.size].reshape(x.shape), None


def _chunks(rows: Array, chunk: int) -> Array:
    """Rows (N, ...) as (chunks, rows of each, ...), as even as can be, filled up with zeros.

    A row of zeros counts for nothing: its loss is dropped, its cotangent 0, and 0 a valid label.
    """
    chunks = -(-len(rows) // chunk)
    size = -(-len(rows) // chunks)
    filled = jnp.pad(rows, [(0, chunks * size - len(rows))] + [(0, 0)] * (rows.ndim - 1))
    return filled.reshape(chunks, size, *rows.shape[1:])


def _example(key: Array) -> tuple[Array, Array, Array]:
    """Seven rows, one of them zeros (all classes tie), which neither 2 nor 3 divides."""
    kw, kx, kl = jax.random.split(key, 3)
    x = jax.random.normal(kx, (7, 3)).at[0].set(0.0)
    return jax.random.normal(kw, (3, 5)), x, jax.random.randint(kl, (7,), 0, 5)


linear_cross_entropy = Op(
    linear_cross_entropy_fwd,
    linear_cross_entropy_bwd,
    example=_example,
    settings=(
        {},
        {"chunk": 2, "label_smoothing": 0.1, "reduction": "sum"},
        {"chunk": 3, "label_smoothing": 0.1, "z_loss": 0.01, "reduction": "none"},
    ),
)
