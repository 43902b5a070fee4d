"""Softmax cross-entropy of the logits of a last linear layer, z = x w + b, the two together.

    l = L - z_label,  L = log sum_j exp(z_j)    dz = (p - q) dl,  dx = dz w^T,  dw = x^T dz,
                                                db = sum of dz over the batch

with p the softmax of z and q the one-hot row of the label. In 16 bits the logits are summed and
stay in float32: what the exponential is taken of is not rounded.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.numerics import valid_labels, widen
from jaxnn.op import Op
from jaxnn.ops.cross_entropy import (
    CrossEntropyResiduals,
    softmax_cross_entropy_bwd,
    softmax_cross_entropy_fwd,
)
from jaxnn.ops.linear import Linear
from jaxnn.ops.losses_doors import check_linear_cross_entropy


class LinearCrossEntropyResiduals(NamedTuple):
    """The layer's w (D, V) and b (V,) or None, features (..., D), what is kept of the logits."""

    params: Linear
    x: Array
    kept: CrossEntropyResiduals


def linear_cross_entropy_fwd(
    params: Linear,
    x: Array,
    labels: Array,
    class_weights: Array | None = None,
    *,
    chunk: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Array, LinearCrossEntropyResiduals]:
    """Return `softmax_cross_entropy` of the logits x w + b, in nats.

    Saves the logits, in float32 or wider, and two values per row; the fast form never holds all
    logits where they are many, as those of a large vocabulary are, unless there is a target for
    each of them as well.

    Args:
        params: w (D, V), V classes, and b (V,) or None; of a tied model w is the transposed table
            of its embedding.
        x: (..., D), of the dtype of w.
        labels: (...) integers in [0, V), or targets (..., V) of the dtype of w.
        class_weights: (V,), of the dtype of w, or None.
        chunk: classes whose logits the fast form holds at once; None for all where there are no
            more than two million logits, else for half a million.
        label_smoothing: as `softmax_cross_entropy`.
        z_loss: as `softmax_cross_entropy`.
        ignore_index: as `softmax_cross_entropy`.
        reduction: as `softmax_cross_entropy`.

    Raises:
        TypeError, ValueError: as `softmax_cross_entropy`; params are no `Linear`, or w, b and x do
            not fit or differ in dtype.
    """
    w, b = params
    if ignore_index is not None:
        _, counts = valid_labels(labels, w.shape[1], x.dtype, ignore_index)
        x = jnp.where(counts[..., None] == 0, 0, x)
    z = jnp.matmul(x, w, preferred_element_type=widen(x).dtype)
    z = z if b is None else z + b.astype(z.dtype)
    loss, kept = softmax_cross_entropy_fwd(
        z,
        labels,
        class_weights,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        ignore_index=ignore_index,
        reduction=reduction,
    )
    return loss.astype(x.dtype), LinearCrossEntropyResiduals(params, x, kept)


def linear_cross_entropy_bwd(
    residuals: LinearCrossEntropyResiduals,
    dloss: Array,
    *,
    chunk: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Linear, Array, Array | None, Array | None]:
    """Return dw = x^T dz and db = sum dz over all rows, dx = dz w^T, then as the softmax's."""
    (w, b), x, kept = residuals
    dz, dlabels, dweights = softmax_cross_entropy_bwd(
        kept,
        dloss,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        ignore_index=ignore_index,
        reduction=reduction,
    )
    db = None if b is None else dz.reshape(-1, w.shape[1]).sum(0).astype(b.dtype)
    wide, dz = dz.dtype, dz.astype(x.dtype)
    dw = jnp.einsum("...d,...v->dv", x, dz, preferred_element_type=wide)
    dx = jnp.matmul(dz, w.T, preferred_element_type=wide)
    return Linear(dw.astype(w.dtype), db), dx.astype(x.dtype), dlabels, dweights


def _example(key: Array) -> tuple[Linear, Array, Array, Array]:
    """Seven rows, one of them zeros (the logits are the biases), which neither 2 nor 3 divides."""
    kw, kb, kx, kl, kc = jax.random.split(key, 5)
    params = Linear(jax.random.normal(kw, (3, 5)), jax.random.normal(kb, (5,)))
    x = jax.random.normal(kx, (7, 3)).at[0].set(0.0)
    labels = jax.random.randint(kl, (7,), 0, 5)
    return params, x, labels, jax.random.uniform(kc, (5,), minval=0.5, maxval=3.0)


linear_cross_entropy = Op(
    linear_cross_entropy_fwd,
    linear_cross_entropy_bwd,
    check=check_linear_cross_entropy,
    fast="jaxnn.ops.fast.linear_cross_entropy",
    example=_example,
    settings=(
        {},
        {"chunk": 2, "ignore_index": 3},
        {"chunk": 2, "label_smoothing": 0.1, "reduction": "sum"},
        {"chunk": 3, "label_smoothing": 0.1, "z_loss": 0.01, "reduction": "none"},
    ),
)
