"""Softmax cross-entropy of logits z (..., K) against labels.

    l = -sum_j w_j q_j log p_j,   log p_j = z_j - L,   L = log sum_j exp(z_j)

    dz = ((sum_j w_j q_j) p - w q) dl,    dq_j = -w_j log p_j dl,    dw_j = -q_j log p_j dl

with p the softmax of z, q the one-hot row of the label or a target for every class, and w the
weights of the classes, 1 where none are given, in float32 or wider. A label outside [0, K) is an
error where it can be seen; under jit it makes its row's loss and gradient NaN.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.numerics import is_zero, label_weights, reduce_bwd, reduce_fwd, valid_labels, widen
from jaxnn.op import Op
from jaxnn.ops.losses_doors import check_softmax_cross_entropy


class CrossEntropyResiduals(NamedTuple):
    """The inputs; of each row its largest logit m and log sum_j exp(z_j - m) (..., 1); the loss."""

    logits: Array
    labels: Array
    class_weights: Array | None
    largest: Array
    log_sum: Array
    loss: Array


def softmax_cross_entropy_fwd(
    logits: Array,
    labels: Array,
    class_weights: Array | None = None,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Array, CrossEntropyResiduals]:
    """Return the negative log-likelihood of the labels, in nats.

        l = -sum_j w_j ((1 - s) q_j + s / K) log p_j + c L^2

    s, `label_smoothing`, takes that share from the label and spreads it over all classes
    (Szegedy et al., 2016, section 7). c, `z_loss`, holds the log-normaliser L near 0 (Chowdhery et
    al., 2022, section 5). Stable for logits of any finite size: the largest is subtracted first.

    The mean divides by the number of rows; of integer labels by the total weight w_label of those
    that are not ignored, and is 0, with gradient 0, where that is 0 (PyTorch: NaN). A class that a
    logit of -inf rules out and whose target is 0 adds nothing, and has no gradient (PyTorch: NaN,
    and an infinite one).

    Saves its inputs, there already, and two values per row: no extra bytes for logits that the
    layer before also keeps. The backward takes the exponentials again.

    Args:
        logits: z (..., K), at least one class and, for the mean, one row.
        labels: (...) integers in [0, K), or q (..., K) of the logits' dtype, as mixed or
            distilled targets are; a row of them need not sum to 1.
        class_weights: w (K,), of the logits' dtype, or None.
        label_smoothing: s in [0, 1].
        z_loss: c, at least 0.
        ignore_index: the label of rows that add nothing, whatever their logits, and do not count
            in the mean; it may lie outside [0, K). None for none.
        reduction: "mean", "sum" or "none", which gives (...).

    Raises:
        TypeError: the logits are no floating array, the labels neither integers nor targets of the
            logits' dtype and shape, the weights of another dtype, or a setting no number.
        ValueError: the shapes do not fit, there is no class or nothing to take a mean of, a label
            is outside [0, K), there are targets and an `ignore_index`, or a setting outside its
            range.
    """
    z, classes, total = widen(logits), logits.shape[-1], None
    w = 1.0 if class_weights is None else widen(class_weights)
    if soft := is_soft(labels):
        q = (1 - label_smoothing) * widen(labels) + label_smoothing / classes
    else:
        label, counts = valid_labels(labels, classes, z.dtype, ignore_index)
        w_label, total = label_weights(label, counts, class_weights, ignore_index)
        z = z if ignore_index is None else jnp.where(counts[..., None] == 0, 0, z)
    largest = lax.stop_gradient(z.max(-1, keepdims=True))
    log_sum = jnp.log(jnp.exp(z - largest).sum(-1, keepdims=True))
    log_p = z - largest - log_sum
    if soft:
        losses = -(w * q * jnp.where((q == 0) & (z == -jnp.inf), 0, log_p)).sum(-1)
    else:  # an element of each row, and not a sum over all of it: that is one more pass
        found = jnp.take_along_axis(log_p, label[..., None], -1, mode="clip")
        losses = -w_label * found[..., 0]
        # Not even 0 times the mean: a class may be ruled out by -inf.
        if not is_zero(label_smoothing):
            spread = -(w * log_p).mean(-1)
            losses = (1 - label_smoothing) * losses + label_smoothing * spread
    if not is_zero(z_loss):
        losses = losses + z_loss * (largest + log_sum)[..., 0] ** 2
    loss = reduce_fwd(losses if soft else losses * counts, reduction, total)
    residuals = CrossEntropyResiduals(logits, labels, class_weights, largest, log_sum, loss)
    return loss.astype(logits.dtype), residuals


def softmax_cross_entropy_bwd(
    residuals: CrossEntropyResiduals,
    dloss: Array,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Array, Array | None, Array | None]:
    """Return dz = (W p - w q + 2 c L p) dl with W = sum_j w_j q_j, dq of targets, and dw.

    Of a weighted mean the total moves as well: dw_label is less loss dloss / total for its row.
    """
    logits, labels, class_weights, largest, log_sum, loss = residuals
    z, classes, dlabels, dweights = widen(logits), logits.shape[-1], None, None
    w = 1.0 if class_weights is None else widen(class_weights)
    if soft := is_soft(labels):
        q = (1 - label_smoothing) * widen(labels) + label_smoothing / classes
        dlosses = reduce_bwd(dloss, labels.size // classes, reduction)
    else:
        label, counts = valid_labels(labels, classes, z.dtype, ignore_index)
        w_label, total = label_weights(label, counts, class_weights, ignore_index)
        is_label = (label[..., None] == jnp.arange(classes, dtype=label.dtype)).astype(z.dtype)
        q = (1 - label_smoothing) * is_label + label_smoothing / classes
        z = z if ignore_index is None else jnp.where(counts[..., None] == 0, 0, z)
        dlosses = reduce_bwd(dloss, total, reduction) * counts
    dl = dlosses[..., None]
    log_p = z - largest - log_sum
    p = jnp.exp(log_p)
    weight = (w * q).sum(-1, keepdims=True) if soft or class_weights is not None else 1
    if not is_zero(z_loss):
        weight = weight + 2 * z_loss * (largest + log_sum)
    if soft:
        dz = (weight * p - w * q) * dl
    else:  # what is the label's alone is taken from an element of each row
        dz = (weight * p - w * (label_smoothing / classes)) * dl
        of_label = (1 - label_smoothing) * w_label * dlosses
        less = _less
        for _ in label.shape:  # not as one long axis: two that a mesh divides would be gathered
            less = jax.vmap(less)
        dz = less(dz, label, of_label)
    log_p = jnp.where((q == 0) & (z == -jnp.inf), 0, log_p)
    if soft:
        dlabels = (-(1 - label_smoothing) * w * log_p * dl).astype(labels.dtype)
    if class_weights is not None:
        dw = (-q * log_p * dl).reshape(-1, classes).sum(0)
        if reduction == "mean" and not soft:
            rows = jnp.where(counts[..., None] == 0, 0, is_label).reshape(-1, classes).sum(0)
            dw = dw - loss * reduce_bwd(dloss, total, reduction) * rows
        dweights = dw.astype(class_weights.dtype)
    return dz.astype(logits.dtype), dlabels, dweights


def _less(row: Array, label: Array, value: Array) -> Array:
    """Return the row less a value at its label; nowhere, if that is no class."""
    return row.at[label].add(-value, mode="drop")


def is_soft(labels: Array) -> bool:
    """Whether labels are targets for every class, and not integers."""
    return jnp.issubdtype(labels.dtype, jnp.floating)


def labelled_example(key: Array) -> tuple[Array, Array, Array]:
    """One row with a tie for the maximum, one whose label is all but impossible; uneven weights."""
    awkward = jnp.array([[2.0, 2.0, -1.0, 0.0, 2.0], [40.0, 0.0, 0.0, 0.0, 0.0]])
    logits = jax.random.normal(key, (7, 5)).at[:2].set(awkward)
    return logits, jnp.array([1, 3, 0, 2, 0, 4, 4]), jnp.array([0.5, 2.0, 1.3, 0.7, 3.0])


softmax_cross_entropy = Op(
    softmax_cross_entropy_fwd,
    softmax_cross_entropy_bwd,
    check=check_softmax_cross_entropy,
    example=labelled_example,
    settings=(
        {},
        {"label_smoothing": 0.1, "ignore_index": 4},
        {"label_smoothing": 0.1, "reduction": "sum"},
        {"label_smoothing": 0.1, "z_loss": 0.01, "ignore_index": 0, "reduction": "none"},
    ),
)
