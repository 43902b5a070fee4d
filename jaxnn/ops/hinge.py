"""The multiclass hinge loss of scores z (..., K) against integer labels (...).

    l = w_label sum_j e_j^p / K,  e_j = max(0, z_j - z_label + margin)

    dz_j = w_label p e_j^(p - 1) dl / K,  dz_label = -sum_j dz_j,  dw_label = sum_j e_j^p dl / K

over the wrong classes j, with w the weights of the classes, 1 where none are given.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.numerics import REDUCTIONS, reduce_bwd, reduce_fwd, valid_labels, widen
from jaxnn.op import Op
from jaxnn.ops.cross_entropy import labelled_example
from jaxnn.ops.losses_doors import check_labelled
from jaxnn.settings import check_number


class HingeResiduals(NamedTuple):
    """The scores z (..., K), the labels (...) and the weights w (K,) or None."""

    scores: Array
    labels: Array
    class_weights: Array | None


def multiclass_hinge_fwd(
    scores: Array,
    labels: Array,
    class_weights: Array | None = None,
    *,
    margin: float = 1.0,
    p: int = 1,
    reduction: str = "mean",
) -> tuple[Array, HingeResiduals]:
    """Sum how far wrong classes come within `margin` of the label's score, to the power p, over K.

    PyTorch's MultiMarginLoss (Weston and Watkins, 1999). A class exactly at the margin has slope 0.
    A score of NaN makes its row NaN (PyTorch passes over it). A label outside [0, K) is an error
    where it can be seen, and makes its row NaN where it cannot. The mean is over rows, whatever
    their weights. Saves its inputs, there already. The backward takes the differences again.

    Args:
        scores: z (..., K), at least one class and, for the mean, one row.
        labels: (...) integers in [0, K).
        class_weights: w (K,), of the scores' dtype, or None.
        margin: in units of the scores.
        p: 1 or 2.
        reduction: "mean", "sum" or "none", which gives (...).

    Raises:
        TypeError: the scores are no floating array, the labels no integers, the weights of another
            dtype, or the margin no number.
        ValueError: the shapes do not fit, there is no class or nothing to take a mean of, a label
            is outside [0, K), the margin is not finite, or p neither 1 nor 2.
    """
    excess, _, label, counts = _excess(scores, labels, margin)
    losses = (excess**p).mean(-1) * counts
    if class_weights is not None:
        losses = jnp.take(widen(class_weights), label, mode="clip") * losses
    loss = reduce_fwd(losses, reduction).astype(scores.dtype)
    return loss, HingeResiduals(scores, labels, class_weights)


def multiclass_hinge_bwd(
    residuals: HingeResiduals,
    dloss: Array,
    *,
    margin: float = 1.0,
    p: int = 1,
    reduction: str = "mean",
) -> tuple[Array, None, Array | None]:
    """Return dz_j = w_label p e_j^(p - 1) dl / K for every wrong class, dz_label, and dw."""
    scores, labels, class_weights = residuals
    excess, is_label, label, counts = _excess(scores, labels, margin)
    dlosses, dw = reduce_bwd(dloss, labels.size, reduction) * counts, None
    dl = dlosses
    if class_weights is not None:
        dl = jnp.take(widen(class_weights), label, mode="clip") * dlosses
        dw = ((excess**p).mean(-1) * dlosses).ravel()
        dw = jnp.zeros_like(widen(class_weights)).at[label.ravel()].add(dw, mode="clip")
        dw = dw.astype(class_weights.dtype)
    slope = (excess > 0).astype(excess.dtype) if p == 1 else excess
    dz = slope * (p * dl / scores.shape[-1])[..., None]
    dz = jnp.where(is_label, -dz.sum(-1, keepdims=True), dz)
    return dz.astype(scores.dtype), None, dw


def _excess(scores: Array, labels: Array, margin: float) -> tuple[Array, Array, Array, Array]:
    """e (..., K), 0 for the label; which class is the label; and what `valid_labels` returns."""
    z = widen(scores)
    label, counts = valid_labels(labels, z.shape[-1], z.dtype)
    is_label = label[..., None] == jnp.arange(z.shape[-1], dtype=label.dtype)
    label_z = jnp.take_along_axis(z, label[..., None], -1, mode="clip")
    return jnp.where(is_label, 0, jax.nn.relu(z - label_z + margin)), is_label, label, counts


def _check(
    scores: Any, labels: Any, class_weights: Any, *, margin: Any, p: Any, reduction: Any
) -> None:
    op = "multiclass_hinge"
    check_number(f"{op}: margin", margin)
    check_number(f"{op}: p", p, "1 or 2", lambda p: p in (1, 2))
    check_labelled(op, scores, labels, class_weights, noun="scores", reduction=reduction)


multiclass_hinge = Op(
    multiclass_hinge_fwd,
    multiclass_hinge_bwd,
    check=_check,
    example=labelled_example,
    settings=(
        *({"margin": 0.7, "reduction": reduction} for reduction in REDUCTIONS),
        {"margin": 0.7, "p": 2},
    ),
)
