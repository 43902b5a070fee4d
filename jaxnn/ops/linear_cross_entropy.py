"""The last linear layer and the softmax cross-entropy together, a few rows at a time.

    z = x w,  l = softmax_cross_entropy(z, label);   dz = (p - q) dl,  dw = x^T dz,  dx = dz w^T

With a large vocabulary the logits z are by far the largest array of a language model. Here no more
than `chunk` rows of them exist at once. Where all losses become one number, dl is the same number
for every row: dw and dx but for that factor are taken in the forward, while the logits are there.
Where each keeps its own loss, the backward computes the logits again.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.checks import check_integer, check_one_dtype
from jaxnn.op import Op
from jaxnn.ops.cross_entropy import (
    check_cross_entropy,
    check_labels,
    softmax_cross_entropy_bwd,
    softmax_cross_entropy_fwd,
)
from jaxnn.ops.reductions import reduce_bwd, reduce_fwd, widen

# How many to hold at once, if nothing else is asked for: enough to keep any matrix product busy.
LOGITS = 6_500_000


class LinearCrossEntropyResiduals(NamedTuple):
    """Weights (D, V), features (N, D), labels (N,); with one loss for all, dw and dx for dl = 1."""

    w: Array
    x: Array
    labels: Array
    unit: tuple[Array, Array] | None


def linear_cross_entropy_fwd(
    w: Array,
    x: Array,
    labels: Array,
    *,
    chunk: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> tuple[Array, LinearCrossEntropyResiduals]:
    """`softmax_cross_entropy` of the logits x w, in nats, without ever holding all of them.

    At any time there are a few times `chunk` V values of logits and their cotangents. dw is summed
    over the chunks in float32 or wider.

    With "mean" and "sum" saves dw and dx, as many values as w and x: nothing is recomputed, and a
    compiler that finds them unused leaves them out. With "none" saves the inputs, there already:
    no extra bytes, and the backward recomputes the logits, one matrix product more.

    Args:
        w: (D, V), V classes; of a tied model the transposed table of its embedding.
        x: (..., D), of the dtype of w, at least one row.
        labels: (...) integers in [0, V).
        chunk: rows of logits to hold at once; any number, whether or not it divides all rows. None
            for as many as have six and a half million logits.
        label_smoothing: as `softmax_cross_entropy`.
        z_loss: as `softmax_cross_entropy`.
        reduction: "mean", "sum" or "none", which gives (...).

    Raises:
        TypeError: w and x are no floating arrays of one dtype, the labels no integers, or a setting
            no number.
        ValueError: the shapes do not fit, there is no row, a label is outside [0, V) (NaN under
            jit), or a setting outside its range.
    """
    name = "linear_cross_entropy"
    check_cross_entropy(name, label_smoothing, z_loss, reduction)
    if chunk is not None:
        check_integer(f"{name}: chunk", chunk, hint=", or None")
    check_one_dtype(name, {"w": w, "x": x})
    if w.ndim != 2 or x.ndim == 0 or x.shape[-1] != w.shape[0]:
        raise ValueError(
            f"{name}: w has shape {w.shape}, x {x.shape}; they must be (features, classes) and "
            "(..., features): transpose w or check the feature count"
        )
    check_labels(jax.ShapeDtypeStruct((*x.shape[:-1], w.shape[1]), x.dtype), labels, name)
    w, x = jnp.asarray(w), jnp.asarray(x)

    each = _each(label_smoothing, z_loss)
    rows, labels = x.reshape(-1, w.shape[0]), labels.ravel()
    real = jnp.ones(labels.shape, x.dtype)

    def of_chunk(dw: Array | None, chunk: Any) -> tuple[Array | None, Any]:
        x, labels, real = chunk
        losses, residuals = softmax_cross_entropy_fwd(x @ w, labels, **each)
        if dw is None:
            return None, (losses, None)
        dw, dx = _of_logits(dw, w, x, softmax_cross_entropy_bwd(residuals, real, **each)[0])
        return dw, (losses, dx)

    zeros = None if reduction == "none" else widen(jnp.zeros_like(w))
    chunks = _chunks((rows, labels, real), chunk, w.shape[1])
    dw, (losses, dx) = lax.scan(of_chunk, zeros, chunks)
    losses = losses.ravel()[: labels.size].reshape(x.shape[:-1])
    loss = reduce_fwd(widen(losses), reduction).astype(x.dtype)
    unit = None if dw is None else (dw, _joined(dx, x))
    return loss, LinearCrossEntropyResiduals(w, x, labels, unit)


def linear_cross_entropy_bwd(
    residuals: LinearCrossEntropyResiduals,
    dloss: Array,
    *,
    chunk: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> tuple[Array, Array, None]:
    """The unit dw and dx times dl; or, for each chunk, its logits and dz again."""
    w, x, labels, unit = residuals
    dlosses = reduce_bwd(dloss, labels.size, reduction)
    if unit is not None:
        dw, dx = (widen(d) * dlosses for d in unit)
        return dw.astype(w.dtype), dx.astype(x.dtype), None
    each = _each(label_smoothing, z_loss)

    def of_chunk(dw: Array, chunk: tuple[Array, ...]) -> tuple[Array, Array]:
        x, labels, dlosses = chunk
        _, residuals = softmax_cross_entropy_fwd(x @ w, labels, **each)
        return _of_logits(dw, w, x, softmax_cross_entropy_bwd(residuals, dlosses, **each)[0])

    rows = x.reshape(-1, w.shape[0]), labels, dlosses.ravel()
    dw, dx = lax.scan(of_chunk, widen(jnp.zeros_like(w)), _chunks(rows, chunk, w.shape[1]))
    return dw.astype(w.dtype), _joined(dx, x), None


def _each(label_smoothing: float, z_loss: float) -> dict[str, Any]:
    """The settings of a chunk's cross-entropy: every row's own."""
    return {"label_smoothing": label_smoothing, "z_loss": z_loss, "reduction": "none"}


def _of_logits(dw: Array, w: Array, x: Array, dz: Array) -> tuple[Array, Array]:
    """dw + x^T dz and dx = dz w^T of a chunk."""
    return dw + jnp.matmul(x.T, dz, preferred_element_type=dw.dtype), dz @ w.T


def _chunks(arrays: tuple[Array, ...], chunk: int | None, classes: int) -> tuple[Array, ...]:
    """Rows (N, ...) as (chunks, rows of each, ...), as even as can be, filled up with zeros.

    A row of zeros counts for nothing: its loss is dropped, its cotangent 0, and 0 a valid label.
    """
    n = len(arrays[0])
    chunks = -(-n // (chunk or max(1, LOGITS // classes)))
    size = -(-n // chunks)

    def cut(rows: Array) -> Array:
        filled = jnp.pad(rows, [(0, chunks * size - n)] + [(0, 0)] * (rows.ndim - 1))
        return filled.reshape(chunks, size, *rows.shape[1:])

    return tuple(map(cut, arrays))


def _joined(chunks: Array, x: Array) -> Array:
    """What `_chunks` cut, without the zeros, in the shape of x."""
    return chunks.reshape(-1, x.shape[-1])[: math.prod(x.shape[:-1])].reshape(x.shape)


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
