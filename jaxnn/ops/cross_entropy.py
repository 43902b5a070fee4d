"""Losses of scores (..., K) against integer labels (...), one loss per row.

    softmax cross-entropy    l = L - z_label,  L = log sum_j exp(z_j)      dz = (p - q) dl
    multiclass hinge         l = sum_j max(0, z_j - z_label + margin) / K  over the wrong classes j

with p the softmax of the logits z and q the one-hot row of the label; reductions as in
`jaxnn.ops.reductions`. A label outside [0, K) is an error where its value can be seen; under jit,
where it cannot, its row's loss and gradient are NaN. Sums are in float32 or wider.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.checks import check_array, check_floating, check_range
from jaxnn.numerics import widen
from jaxnn.op import Op
from jaxnn.ops.reductions import REDUCTIONS, reduce_bwd, reduce_fwd
from jaxnn.settings import check_choice, check_number


class CrossEntropyResiduals(NamedTuple):
    """exp(z - m) (..., K) with a row's largest logit m, their sum and L (..., 1), labels (...)."""

    exp: Array
    total: Array
    log_normaliser: Array
    labels: Array


def softmax_cross_entropy_fwd(
    logits: Array,
    labels: Array,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> tuple[Array, CrossEntropyResiduals]:
    """Negative log-likelihood of integer labels, in nats.

        l = -(1 - s) log p_label - s mean_j log p_j + c L^2,   log p_j = z_j - L

    s, `label_smoothing`, takes that share from the label and spreads it over all classes
    (Szegedy et al., 2016, section 7). c, `z_loss`, holds the log-normaliser L near 0 (Chowdhery et
    al., 2022, section 5). Stable for logits of any finite size: the largest is subtracted first.

    Saves exp(z_j - m) with the row's largest logit m, one value per logit, in its dtype, and two
    per row: their sum, of which the backward has the softmax, and L. Nothing is recomputed.

    Args:
        logits: z (..., K), at least one row and one class.
        labels: (...) integers in [0, K).
        label_smoothing: s in [0, 1].
        z_loss: c, at least 0.
        reduction: "mean", "sum" or "none", which gives (...).

    Raises:
        TypeError: the logits are no floating array, the labels no integers, or a setting no number.
        ValueError: the shapes do not fit, the batch is empty, a label is outside [0, K), or a
            setting outside its range.
    """
    label_smoothing, z_loss = check_cross_entropy(
        "softmax_cross_entropy", label_smoothing, z_loss, reduction
    )
    check_labels(logits, labels)
    z = widen(logits)
    labels, valid = validated(labels, z.shape[-1], z.dtype)
    largest = lax.stop_gradient(z.max(-1, keepdims=True))
    exp = jnp.exp(z - largest)
    total = exp.sum(-1, keepdims=True)
    log_sum = jnp.log(total)
    label_z = jnp.take_along_axis(z, labels[..., None], -1, mode="clip")[..., 0]
    mean_z = z.mean(-1) if label_smoothing else None
    losses = losses_of_rows(
        label_z, mean_z, largest[..., 0], log_sum[..., 0], label_smoothing, z_loss
    )
    loss = reduce_fwd(losses * valid, reduction).astype(logits.dtype)
    return loss, CrossEntropyResiduals(exp.astype(logits.dtype), total, largest + log_sum, labels)


def softmax_cross_entropy_bwd(
    residuals: CrossEntropyResiduals,
    dloss: Array,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> tuple[Array, None]:
    """dz = (p - q + 2 c L p) dl with q = (1 - s) one-hot of the label + s / K; labels have none."""
    exp, total, log_normaliser, labels = residuals
    p = widen(exp) / total
    is_label, valid = _one_hot(labels, p.shape[-1], p.dtype)
    dlosses = reduce_bwd(dloss, labels.size, reduction)[..., None] * valid
    dz = slopes(p, is_label, log_normaliser, p.shape[-1], label_smoothing, z_loss)
    return (dz * dlosses).astype(exp.dtype), None


def losses_of_rows(
    label_z: Array,
    mean_z: Array | None,
    largest: Array,
    log_sum: Array,
    label_smoothing: float,
    z_loss: float,
) -> Array:
    """l of `softmax_cross_entropy_fwd` for each row.

    Args:
        label_z: the label's logit (...).
        mean_z: the mean logit (...); without smoothing None, for where a class is ruled out by an
            infinite one, 0 times that is NaN.
        largest: logit of all classes (...), subtracted first so that no digit is lost to it.
        log_sum: log sum_j exp(z_j - largest) (...): L is the sum of the two.
        label_smoothing: s.
        z_loss: c.
    """
    losses = log_sum - (label_z - largest)
    if mean_z is not None:
        spread = log_sum - (mean_z - largest)
        losses = (1 - label_smoothing) * losses + label_smoothing * spread
    return losses + z_loss * (largest + log_sum) ** 2 if z_loss else losses


def slopes(
    p: Array,
    is_label: Array,
    log_normaliser: Array,
    classes: int,
    label_smoothing: float,
    z_loss: float,
) -> Array:
    """dz for dl = 1: p - q + 2 c L p of all of the `classes`, or of some."""
    q = (1 - label_smoothing) * is_label.astype(p.dtype) + label_smoothing / classes
    dz = p - q
    # Without z_loss the log-normaliser is not even kept.
    return dz + 2 * z_loss * log_normaliser * p if z_loss else dz


class HingeResiduals(NamedTuple):
    """Which classes come within the margin of the label or above it (..., K), the labels (...)."""

    is_near: Array
    labels: Array


def multiclass_hinge_fwd(
    scores: Array, labels: Array, *, margin: float = 1.0, reduction: str = "mean"
) -> tuple[Array, HingeResiduals]:
    """How far wrong classes come within `margin` of the label's score (Weston and Watkins, 1999).

        l = sum over wrong classes j of max(0, z_j - z_label + margin) / K

    PyTorch's MultiMarginLoss. A class exactly at the margin has slope 0. Saves one boolean per
    score. Nothing is recomputed.

    Args:
        scores: z (..., K), at least one row and one class.
        labels: (...) integers in [0, K).
        margin: in units of the scores.
        reduction: "mean", "sum" or "none", which gives (...).

    Raises:
        TypeError, ValueError: as `softmax_cross_entropy_fwd`; the margin is not finite.
    """
    check_choice("multiclass_hinge: reduction", reduction, REDUCTIONS)
    margin = check_number("multiclass_hinge: margin", margin)
    check_labels(scores, labels, "multiclass_hinge", "scores")
    z = widen(scores)
    is_label, valid = _one_hot(labels, z.shape[-1], z.dtype)
    z = z * valid
    label_score = jnp.where(is_label, z, 0).sum(-1, keepdims=True)
    excess = jnp.where(is_label, 0, jax.nn.relu(z - label_score + margin))
    loss = reduce_fwd(excess.mean(-1), reduction).astype(scores.dtype)
    return loss, HingeResiduals(excess > 0, labels)


def multiclass_hinge_bwd(
    residuals: HingeResiduals, dloss: Array, *, margin: float = 1.0, reduction: str = "mean"
) -> tuple[Array, None]:
    """dz_j = dl / K for every wrong class j that is near; dz_label = minus their sum."""
    is_near, labels = residuals
    classes = is_near.shape[-1]
    dlosses = reduce_bwd(dloss, labels.size, reduction)[..., None] / classes
    is_label, valid = _one_hot(labels, classes, dlosses.dtype)
    near = is_near.sum(-1, keepdims=True, dtype=dlosses.dtype)
    dz = jnp.where(is_label, -near, is_near.astype(dlosses.dtype)) * dlosses * valid
    return dz.astype(dloss.dtype), None


def _one_hot(labels: Array, classes: int, dtype: Any) -> tuple[Array, Array]:
    """Booleans (..., classes), which class is the label; 1 or NaN (..., 1), whether one is."""
    labels, valid = validated(labels, classes, dtype)
    is_label = labels[..., None] == jnp.arange(classes, dtype=labels.dtype)
    return is_label, valid[..., None]


def validated(labels: Array, classes: int, dtype: Any) -> tuple[Array, Array]:
    """The labels, wide enough to be compared with any class; 1 or NaN, whether each is one.

    A label out of range marks no class, which would count as a certain success: multiplying its
    row by NaN makes its loss NaN instead and, by the same factor, every gradient of it.
    """
    labels = jnp.asarray(labels)
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)
    valid = jnp.where((labels >= 0) & (labels < classes), 1, jnp.nan)
    return labels, valid.astype(dtype)


def check_labels(
    logits: Any, labels: Array, op: str = "softmax_cross_entropy", noun: str = "logits"
) -> None:
    """Refuse labels that cannot index the last dimension of the logits (or of their shape).

    Raises:
        TypeError, ValueError: as `softmax_cross_entropy_fwd`.
    """
    check_floating(f"{op}: {noun}", logits)
    check_array(f"{op}: labels", labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"{op}: labels have dtype {labels.dtype}; they must be integer class "
            "indices: cast them with labels.astype(int), or take argmax(-1) of one-hot rows"
        )
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"{op}: labels have shape {labels.shape}, {noun} {logits.shape}; "
            f"there must be one label per row of {noun}, shape {logits.shape[:-1]}: check that "
            "inputs and labels have the same length"
        )
    if logits.size == 0:
        raise ValueError(
            f"{op}: {noun} have shape {logits.shape}; at least one row and one "
            "class are needed: pass a non-empty batch"
        )
    classes = logits.shape[-1]
    check_range(
        f"{op}: label",
        labels,
        classes,
        f"each label must name one of the {classes} classes: relabel from 0 or give the model more "
        "outputs",
    )


def check_cross_entropy(
    op: str, label_smoothing: float, z_loss: float, reduction: str
) -> tuple[float, float]:
    """The first two settings of a cross-entropy as Python's numbers, all three in their range.

    Raises:
        TypeError: one of the two is no number.
        ValueError: a setting is outside its range.
    """
    check_choice(f"{op}: reduction", reduction, REDUCTIONS)
    return check_number(
        f"{op}: label_smoothing",
        label_smoothing,
        "in [0, 1], the share of the label to spread over all classes: 0.1 is usual",
        lambda s: 0 <= s <= 1,
    ), check_number(
        f"{op}: z_loss",
        z_loss,
        "finite and at least 0: 1e-4 is usual",
        lambda c: 0 <= c < math.inf,
    )


def _labelled_example(key: Array) -> tuple[Array, Array]:
    """One row with a tie for the maximum and one whose label is all but impossible."""
    logits = jax.random.normal(key, (7, 5))
    logits = logits.at[0].set(jnp.array([2.0, 2.0, -1.0, 0.0, 2.0]))
    logits = logits.at[1].set(jnp.array([40.0, 0.0, 0.0, 0.0, 0.0]))
    return logits, jnp.array([1, 3, 0, 2, 0, 4, 4])


softmax_cross_entropy = Op(
    softmax_cross_entropy_fwd,
    softmax_cross_entropy_bwd,
    example=_labelled_example,
    settings=(
        {},
        {"label_smoothing": 0.1, "reduction": "sum"},
        {"label_smoothing": 0.1, "z_loss": 0.01, "reduction": "none"},
    ),
)
multiclass_hinge = Op(
    multiclass_hinge_fwd,
    multiclass_hinge_bwd,
    example=_labelled_example,
    settings=tuple({"margin": 0.7, "reduction": reduction} for reduction in REDUCTIONS),
)
