"""Softmax cross-entropy of logits z (..., K) against integer labels (...).

    l = L - z_label,  L = log sum_j exp(z_j)      dz = (p - q) dl

with p the softmax of z and q the one-hot row of the label, in float32 or wider. A label outside
[0, K) is an error where it can be seen; under jit it makes its row's loss and gradient NaN.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.checks import check_floating, check_integers, check_range
from jaxnn.numerics import REDUCTIONS, reduce_bwd, reduce_fwd, valid_labels, widen
from jaxnn.op import Op
from jaxnn.settings import check_choice, check_coefficient, check_number


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
    """Return the negative log-likelihood of integer labels, in nats.

        l = -(1 - s) log p_label - s mean_j log p_j + c L^2,   log p_j = z_j - L

    s, `label_smoothing`, takes that share from the label and spreads it over all classes
    (Szegedy et al., 2016, section 7). c, `z_loss`, holds the log-normaliser L near 0 (Chowdhery et
    al., 2022, section 5). Stable for logits of any finite size: the largest is subtracted first.
    Saves one value per logit, in its dtype, and two per row. Nothing is recomputed.

    Args:
        logits: z (..., K), at least one class and, for the mean, one row.
        labels: (...) integers in [0, K).
        label_smoothing: s in [0, 1].
        z_loss: c, at least 0.
        reduction: "mean", "sum" or "none", which gives (...).

    Raises:
        TypeError: the logits are no floating array, the labels no integers, or a setting no number.
        ValueError: the shapes do not fit, there is no class or nothing to take a mean of, a label
            is outside [0, K), or a setting outside its range.
    """
    z = widen(logits)
    labels, valid = valid_labels(labels, z.shape[-1], z.dtype)
    largest = lax.stop_gradient(z.max(-1, keepdims=True))
    exp = jnp.exp(z - largest)
    total = exp.sum(-1, keepdims=True)
    log_sum = jnp.log(total)
    label_z = jnp.take_along_axis(z, labels[..., None], -1, mode="clip")
    losses = log_sum - (label_z - largest)
    if label_smoothing:  # not even 0 times the mean: a class may be ruled out by -inf
        spread = log_sum - (z.mean(-1, keepdims=True) - largest)
        losses = (1 - label_smoothing) * losses + label_smoothing * spread
    if z_loss:
        losses = losses + z_loss * (largest + log_sum) ** 2
    loss = reduce_fwd(losses[..., 0] * valid, reduction).astype(logits.dtype)
    return loss, CrossEntropyResiduals(exp.astype(logits.dtype), total, largest + log_sum, labels)


def softmax_cross_entropy_bwd(
    residuals: CrossEntropyResiduals,
    dloss: Array,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> tuple[Array, None]:
    """Return dz = (p - q + 2 c L p) dl with q = (1 - s) one-hot of the label + s / K."""
    exp, total, log_normaliser, labels = residuals
    classes = exp.shape[-1]
    p = widen(exp) / total
    labels, valid = valid_labels(labels, classes, p.dtype)
    is_label = labels[..., None] == jnp.arange(classes, dtype=labels.dtype)
    q = (1 - label_smoothing) * is_label.astype(p.dtype) + label_smoothing / classes
    dz = p - q
    if z_loss:
        dz = dz + 2 * z_loss * log_normaliser * p
    dlosses = reduce_bwd(dloss, labels.size, reduction) * valid
    return (dz * dlosses[..., None]).astype(exp.dtype), None


def check_labels(
    logits: Any,
    labels: Array,
    op: str = "softmax_cross_entropy",
    noun: str = "logits",
    reduction: str = "mean",
) -> None:
    """Refuse labels that cannot index the last axis of the logits."""
    check_floating(f"{op}: {noun}", logits)
    fix = "cast them with labels.astype(int), or take argmax(-1) of one-hot rows"
    check_integers(f"{op}: labels", labels, fix)
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"{op}: labels have shape {labels.shape}, {noun} {logits.shape}; there must be one "
            f"label per row, shape {logits.shape[:-1]}: check that both have the same length"
        )
    check_choice(f"{op}: reduction", reduction, REDUCTIONS)
    if logits.shape[-1:] in ((), (0,)) or (reduction == "mean" and logits.size == 0):
        raise ValueError(
            f"{op}: {noun} have shape {logits.shape}; there must be a class and, for the mean, a "
            "row: pass a non-empty batch"
        )
    rule = "each label must name a class: relabel from 0 or give the model more outputs"
    check_range(f"{op}: label", labels, logits.shape[-1], rule)


def _check(logits: Any, labels: Any, *, reduction: Any, **settings: Any) -> None:
    check_settings("softmax_cross_entropy", **settings)
    check_labels(logits, labels, reduction=reduction)


def check_settings(op: str, label_smoothing: Any, z_loss: Any) -> None:
    """Refuse a smoothing or a coefficient outside its range."""
    rule = "in [0, 1], the share of the label to spread over all classes: 0.1 is usual"
    check_number(f"{op}: label_smoothing", label_smoothing, rule, lambda s: 0 <= s <= 1)
    check_coefficient(f"{op}: z_loss", z_loss)


def labelled_example(key: Array) -> tuple[Array, Array]:
    """One row with a tie for the maximum and one whose label is all but impossible."""
    awkward = jnp.array([[2.0, 2.0, -1.0, 0.0, 2.0], [40.0, 0.0, 0.0, 0.0, 0.0]])
    logits = jax.random.normal(key, (7, 5)).at[:2].set(awkward)
    return logits, jnp.array([1, 3, 0, 2, 0, 4, 4])


softmax_cross_entropy = Op(
    softmax_cross_entropy_fwd,
    softmax_cross_entropy_bwd,
    check=_check,
    example=labelled_example,
    settings=(
        {},
        {"label_smoothing": 0.1, "reduction": "sum"},
        {"label_smoothing": 0.1, "z_loss": 0.01, "reduction": "none"},
    ),
)
