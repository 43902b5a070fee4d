"""Softmax cross-entropy of the logits of a last linear layer, z = x w + b, the two together.

    l = L - z_label,  L = log sum_j exp(z_j)    dz = (p - q) dl,  dx = dz w^T,  dw = x^T dz,
                                                db = sum of dz over the batch

with p the softmax of z and q the one-hot row of the label. In 16 bits the logits are summed and
stay in float32: what the exponential is taken of is not rounded.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.checks import check_kind, check_one_dtype, check_shapes
from jaxnn.numerics import widen
from jaxnn.op import Op
from jaxnn.ops.cross_entropy import (
    CrossEntropyResiduals,
    check_labels,
    check_settings,
    softmax_cross_entropy_bwd,
    softmax_cross_entropy_fwd,
)
from jaxnn.ops.linear import Linear
from jaxnn.settings import check_integer


class LinearCrossEntropyResiduals(NamedTuple):
    """The layer's w (D, V) and b (V,) or None, features (..., D), what is kept of the logits."""

    params: Linear
    x: Array
    kept: CrossEntropyResiduals


def linear_cross_entropy_fwd(
    params: Linear,
    x: Array,
    labels: Array,
    *,
    chunk: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> tuple[Array, LinearCrossEntropyResiduals]:
    """Return `softmax_cross_entropy` of the logits x w + b, in nats.

    Saves what `softmax_cross_entropy` does, one value per logit, in float32 or wider; the fast form
    never holds all of them where they are many, as those of a large vocabulary are.

    Args:
        params: w (D, V), V classes, and b (V,) or None; of a tied model w is the transposed table
            of its embedding.
        x: (..., D), of the dtype of w.
        labels: (...) integers in [0, V).
        chunk: classes whose logits the fast form holds at once; None for two million logits.
        label_smoothing: as `softmax_cross_entropy`.
        z_loss: as `softmax_cross_entropy`.
        reduction: as `softmax_cross_entropy`.

    Raises:
        TypeError, ValueError: as `softmax_cross_entropy`; params are no `Linear`, or w, b and x do
            not fit or differ in dtype.
    """
    w, b = params
    z = jnp.matmul(x, w, preferred_element_type=widen(x).dtype)
    z = z if b is None else z + b.astype(z.dtype)
    settings = {"label_smoothing": label_smoothing, "z_loss": z_loss}
    loss, kept = softmax_cross_entropy_fwd(z, labels, reduction=reduction, **settings)
    return loss.astype(x.dtype), LinearCrossEntropyResiduals(params, x, kept)


def linear_cross_entropy_bwd(
    residuals: LinearCrossEntropyResiduals,
    dloss: Array,
    *,
    chunk: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> tuple[Linear, Array, None]:
    """Return dw = x^T dz and db = sum dz over all rows, and dx = dz w^T."""
    (w, b), x, kept = residuals
    settings = {"label_smoothing": label_smoothing, "z_loss": z_loss}
    dz, _ = softmax_cross_entropy_bwd(kept, dloss, reduction=reduction, **settings)
    db = None if b is None else dz.reshape(-1, w.shape[1]).sum(0).astype(b.dtype)
    wide, dz = dz.dtype, dz.astype(x.dtype)
    dw = jnp.einsum("...d,...v->dv", x, dz, preferred_element_type=wide)
    dx = jnp.matmul(dz, w.T, preferred_element_type=wide)
    return Linear(dw.astype(w.dtype), db), dx.astype(x.dtype), None


def _check(params: Any, x: Any, labels: Any, *, chunk: Any, reduction: Any, **rest: Any) -> None:
    op = "linear_cross_entropy"
    check_settings(op, **rest)
    check_integer(f"{op}: chunk", 1 if chunk is None else chunk, hint=", or None")
    check_kind(f"{op}: params", params, Linear)
    w, b = params
    fix = "transpose w or check the feature count"
    check_shapes(op, fix, w=(w, "DV"), b=(b, "V?"), x=(x, "...D"))
    check_one_dtype(op, w=w, b=b, x=x)
    check_labels(jax.eval_shape(jnp.matmul, x, w), labels, op, reduction=reduction)


def _example(key: Array) -> tuple[Linear, Array, Array]:
    """Seven rows, one of them zeros (the logits are the biases), which neither 2 nor 3 divides."""
    kw, kb, kx, kl = jax.random.split(key, 4)
    params = Linear(jax.random.normal(kw, (3, 5)), jax.random.normal(kb, (5,)))
    x = jax.random.normal(kx, (7, 3)).at[0].set(0.0)
    return params, x, jax.random.randint(kl, (7,), 0, 5)


linear_cross_entropy = Op(
    linear_cross_entropy_fwd,
    linear_cross_entropy_bwd,
    check=_check,
    fast="jaxnn.ops.fast.linear_cross_entropy",
    example=_example,
    settings=(
        {},
        {"chunk": 2, "label_smoothing": 0.1, "reduction": "sum"},
        {"chunk": 3, "label_smoothing": 0.1, "z_loss": 0.01, "reduction": "none"},
    ),
)
