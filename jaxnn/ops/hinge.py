"""The multiclass hinge loss of scores z (..., K) against integer labels (...).

    l = sum_j max(0, z_j - z_label + margin) / K      dz_j = dl / K where that is above 0,
                                                      dz_label = -sum_j dz_j

over the wrong classes j.
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
    """Which classes come within the margin of the label or above it (..., K), the labels (...)."""

    is_near: Array
    labels: Array


def multiclass_hinge_fwd(
    scores: Array, labels: Array, *, margin: float = 1.0, reduction: str = "mean"
) -> tuple[Array, HingeResiduals]:
    """Sum how far wrong classes come within `margin` of the label's score, over K.

    PyTorch's MultiMarginLoss (Weston and Watkins, 1999). A class exactly at the margin has slope 0.
    A label outside [0, K) is an error where it can be seen, and makes its row NaN where it cannot.
    Saves one boolean per score. Nothing is recomputed.

    Args:
        scores: z (..., K), at least one class and, for the mean, one row.
        labels: (...) integers in [0, K).
        margin: in units of the scores.
        reduction: "mean", "sum" or "none", which gives (...).

    Raises:
        TypeError: the scores are no floating array, the labels no integers, the margin no number.
        ValueError: the shapes do not fit, there is no class or nothing to take a mean of, a label
            is outside [0, K), or the margin is not finite.
    """
    z = widen(scores)
    labels, valid = valid_labels(labels, z.shape[-1], z.dtype)
    is_label = labels[..., None] == jnp.arange(z.shape[-1], dtype=labels.dtype)
    z = z * valid[..., None]
    label_score = jnp.where(is_label, z, 0).sum(-1, keepdims=True)
    excess = jnp.where(is_label, 0, jax.nn.relu(z - label_score + margin))
    loss = reduce_fwd(excess.mean(-1), reduction).astype(scores.dtype)
    return loss, HingeResiduals(excess > 0, labels)


def multiclass_hinge_bwd(
    residuals: HingeResiduals, dloss: Array, *, margin: float = 1.0, reduction: str = "mean"
) -> tuple[Array, None]:
    """Return dz_j = dl / K for every wrong class j that is near; dz_label = minus their sum."""
    is_near, labels = residuals
    classes = is_near.shape[-1]
    dlosses = reduce_bwd(dloss, labels.size, reduction) / classes
    labels, valid = valid_labels(labels, classes, dlosses.dtype)
    is_label = labels[..., None] == jnp.arange(classes, dtype=labels.dtype)
    near = is_near.sum(-1, keepdims=True, dtype=dlosses.dtype)
    dz = jnp.where(is_label, -near, is_near.astype(dlosses.dtype))
    return (dz * (dlosses * valid)[..., None]).astype(dloss.dtype), None


def _check(scores: Any, labels: Any, *, margin: Any, reduction: Any) -> None:
    check_number("multiclass_hinge: margin", margin)
    check_labelled("multiclass_hinge", scores, labels, noun="scores", reduction=reduction)


multiclass_hinge = Op(
    multiclass_hinge_fwd,
    multiclass_hinge_bwd,
    check=_check,
    example=lambda key: labelled_example(key)[:2],
    settings=tuple({"margin": 0.7, "reduction": reduction} for reduction in REDUCTIONS),
)
