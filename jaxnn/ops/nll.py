"""The negative log-likelihood of labels, from log-probabilities (..., K).

    l = -w_label log p_label      dlog p_label = -w_label dl,  dw_label = -log p_label dl

with w the weights of the classes, 1 where none are given.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.numerics import REDUCTIONS, label_weights, reduce_bwd, reduce_fwd, valid_labels, widen
from jaxnn.op import Op
from jaxnn.ops.losses_doors import check_labelled


class NLLResiduals(NamedTuple):
    """The inputs, log p (..., K), labels (...) and w (K,) or None, and the loss."""

    log_probabilities: Array
    labels: Array
    class_weights: Array | None
    loss: Array


def nll_loss_fwd(
    log_probabilities: Array,
    labels: Array,
    class_weights: Array | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Array, NLLResiduals]:
    """Return the negative log-likelihood of the labels, -w_label log p_label, in nats.

    Weights, ignored rows and the mean are as in `softmax_cross_entropy`, whose loss this is of
    `log_softmax`, without smoothing. Saves its inputs, there already. Nothing is recomputed.

    Args:
        log_probabilities: log p (..., K), at least one class and, for the mean, one row.
        labels: (...) integers in [0, K).
        class_weights: w (K,), of the log-probabilities' dtype, or None.
        ignore_index: as `softmax_cross_entropy`.
        reduction: as `softmax_cross_entropy`.

    Raises:
        TypeError, ValueError: as `softmax_cross_entropy`.
    """
    log_p = widen(log_probabilities)
    label, counts = valid_labels(labels, log_p.shape[-1], log_p.dtype, ignore_index)
    w_label, total = label_weights(label, counts, class_weights, ignore_index)
    found = jnp.take_along_axis(log_p, label[..., None], -1, mode="clip")[..., 0]
    losses = jnp.where(counts == 0, 0, -w_label * found * counts)
    loss = reduce_fwd(losses, reduction, total)
    residuals = NLLResiduals(log_probabilities, labels, class_weights, loss)
    return loss.astype(log_probabilities.dtype), residuals


def nll_loss_bwd(
    residuals: NLLResiduals,
    dloss: Array,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Array, None, Array | None]:
    """Return dlog p_label = -w_label dl, 0 for the other classes, and dw_label = -log p_label dl.

    Of a weighted mean the total moves as well: dw_label is less loss dloss / total for its row.
    """
    log_probabilities, labels, class_weights, loss = residuals
    log_p, classes = widen(log_probabilities), log_probabilities.shape[-1]
    label, counts = valid_labels(labels, classes, log_p.dtype, ignore_index)
    w_label, total = label_weights(label, counts, class_weights, ignore_index)
    dl = reduce_bwd(dloss, total, reduction)
    is_label = (label[..., None] == jnp.arange(classes, dtype=label.dtype)).astype(log_p.dtype)
    dlog_p = (is_label * (-w_label * dl * counts)[..., None]).astype(log_probabilities.dtype)
    if class_weights is None:
        return dlog_p, None, None
    found = jnp.take_along_axis(log_p, label[..., None], -1, mode="clip")[..., 0]
    moved = loss if reduction == "mean" else 0
    dw = jnp.where(counts == 0, 0, (-found * counts - moved) * dl).ravel()
    dweights = jnp.zeros_like(widen(class_weights)).at[label.ravel()].add(dw, mode="clip")
    return dlog_p, None, dweights.astype(class_weights.dtype)


def _example(key: Array) -> tuple[Array, Array, Array]:
    """Log-probabilities that need not sum to 1; labels that repeat, one class without any."""
    log_p = -jnp.abs(jax.random.normal(key, (7, 5)))
    return log_p, jnp.array([1, 3, 0, 3, 0, 4, 4]), jnp.array([0.5, 2.0, 1.3, 0.7, 3.0])


nll_loss = Op(
    nll_loss_fwd,
    nll_loss_bwd,
    check=partial(check_labelled, "nll_loss", noun="log_probabilities"),
    example=_example,
    settings=(*({"reduction": name} for name in REDUCTIONS), {"ignore_index": 0}),
)
