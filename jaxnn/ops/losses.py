"""Losses: each a scalar from many numbers, so each backward starts from a scalar cotangent."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnn.op import Op
from jaxnn.ops.activations import log_softmax_fwd


def mean_squared_error_fwd(predictions: Array, targets: Array) -> tuple[Array, Array]:
    """Mean of (predictions - targets)^2 over every element, in squared units of the targets.

    Saves the difference: one value per element. Nothing is recomputed.

    Args:
        predictions: any shape with at least one element.
        targets: the same shape.

    Raises:
        TypeError: the targets are no array.
        ValueError: the shapes differ (they would broadcast to a wrong mean) or hold no element.
    """
    if not hasattr(targets, "shape"):
        raise TypeError(
            f"mean_squared_error: targets are a {type(targets).__name__}; they must be an array: "
            "wrap them in jnp.asarray"
        )
    if predictions.shape != targets.shape:
        raise ValueError(
            f"mean_squared_error: predictions have shape {predictions.shape}, targets "
            f"{targets.shape}; they must be equal: reshape one, for example targets[:, None]"
        )
    if predictions.size == 0:
        raise ValueError(
            f"mean_squared_error: predictions have shape {predictions.shape}, no element; "
            "a mean needs at least one: pass a non-empty batch"
        )
    difference = predictions - targets
    return (difference**2).mean(), difference


def mean_squared_error_bwd(difference: Array, dloss: Array) -> tuple[Array, Array]:
    """dpredictions = 2 (predictions - targets) dloss / size; dtargets is its negative."""
    dpredictions = difference * (2 / difference.size) * dloss
    return dpredictions, -dpredictions


class CrossEntropyResiduals(NamedTuple):
    """The class probabilities (..., K) and the labels (...)."""

    probabilities: Array
    labels: Array


def softmax_cross_entropy_fwd(logits: Array, labels: Array) -> tuple[Array, CrossEntropyResiduals]:
    """Mean negative log-likelihood of integer labels, in nats.

        loss = mean over the batch of log sum_j exp(z_j) - z_label

    Stable for logits of any finite size: see `log_softmax_fwd`. Saves the softmax: one value per
    logit. Nothing is recomputed. A label outside [0, K) is an error where its value can be seen,
    and makes the loss and its gradient NaN under jit, where it cannot.

    Args:
        logits: (..., K), at least one row and one class.
        labels: (...) integers in [0, K).

    Raises:
        TypeError: the labels are not integers.
        ValueError: the shapes do not fit, the batch is empty, or a label is outside [0, K).
    """
    check_labels(logits, labels)
    is_label = _one_hot(labels, logits.shape[-1])
    # A label out of range marks no class, which would count as a certain success: its row becomes
    # NaN instead, and so do the loss and, by multiplication, every gradient of it.
    valid = jnp.where(is_label.any(-1, keepdims=True), 1, jnp.nan).astype(logits.dtype)
    log_probabilities, _ = log_softmax_fwd(logits * valid)
    loss = -jnp.where(is_label, log_probabilities, 0 * valid).sum(-1).mean()
    # Compiled for the CPU, exp(NaN) can be any number (jaxlib 0.10.2): hence `valid` once more.
    return loss, CrossEntropyResiduals(jnp.exp(log_probabilities) * valid, labels)


def softmax_cross_entropy_bwd(residuals: CrossEntropyResiduals, dloss: Array) -> tuple[Array, None]:
    """dlogits = (softmax - one-hot of the labels) dloss / batch size; labels have none."""
    p, labels = residuals
    is_label = _one_hot(labels, p.shape[-1])
    return (p - is_label.astype(p.dtype)) * (dloss / labels.size), None


def l2_penalty_fwd(weights: Any, *, coefficient: float = 1.0) -> tuple[Array, Any]:
    """0.5 coefficient (sum of squares of all entries of all leaves).

    Saves the weights, which are there already: no extra bytes.

    Args:
        weights: a pytree of the arrays to penalise; choose the leaves by building it.
        coefficient: the strength, in units of loss per squared weight; its own gradient is not
            taken.

    Raises:
        ValueError: there is no leaf.
    """
    leaves = jax.tree.leaves(weights)
    if not leaves:
        raise ValueError("l2_penalty: no leaf to penalise; pass a pytree with at least one array")
    return 0.5 * coefficient * sum((w * w).sum() for w in leaves), weights


def l2_penalty_bwd(weights: Any, dloss: Array, *, coefficient: float = 1.0) -> tuple[Any]:
    """dw = coefficient w dloss, for every leaf."""
    return (jax.tree.map(lambda w: coefficient * w * dloss, weights),)


def _one_hot(labels: Array, classes: int) -> Array:
    """Booleans (..., classes): which class is the label."""
    if labels.dtype.itemsize < 4:  # too narrow to count to every number of classes
        labels = labels.astype(jnp.int32)
    return labels[..., None] == jnp.arange(classes, dtype=labels.dtype)


def check_labels(logits: Array, labels: Array) -> None:
    """Refuse labels that cannot index the last dimension of the logits.

    Raises:
        TypeError, ValueError: as `softmax_cross_entropy_fwd`.
    """
    if not (hasattr(labels, "dtype") and hasattr(logits, "dtype")):
        raise TypeError(
            f"softmax_cross_entropy: logits are a {type(logits).__name__}, labels a "
            f"{type(labels).__name__}; both must be arrays: wrap them in jnp.asarray"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"softmax_cross_entropy: labels have dtype {labels.dtype}; they must be integer class "
            "indices: cast them with labels.astype(int), or take argmax(-1) of one-hot rows"
        )
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"softmax_cross_entropy: labels have shape {labels.shape}, logits {logits.shape}; "
            f"there must be one label per row of logits, shape {logits.shape[:-1]}: check that "
            "inputs and labels have the same length"
        )
    if logits.size == 0:
        raise ValueError(
            f"softmax_cross_entropy: logits have shape {logits.shape}; at least one row and one "
            "class are needed: pass a non-empty batch"
        )
    if isinstance(labels, jax.core.Tracer):
        return
    values, classes = np.asarray(labels), logits.shape[-1]
    wrong = np.argwhere((values < 0) | (values >= classes))
    if len(wrong):
        at = tuple(int(i) for i in wrong[0])
        raise ValueError(
            f"softmax_cross_entropy: label {values[at]} at index {at} ({len(wrong)} in all) is "
            f"outside [0, {classes}); each label must name one of the {classes} classes: relabel "
            "from 0 or give the model more outputs"
        )


def _real_example(key: Array) -> tuple[Array, Array]:
    predictions, targets = jax.random.normal(key, (2, 7, 3))
    return predictions.at[0].set(targets[0]), targets


def _labelled_example(key: Array) -> tuple[Array, Array]:
    """One row with a tie for the maximum and one whose label is all but impossible."""
    logits = jax.random.normal(key, (7, 5))
    logits = logits.at[0].set(jnp.array([2.0, 2.0, -1.0, 0.0, 2.0]))
    logits = logits.at[1].set(jnp.array([40.0, 0.0, 0.0, 0.0, 0.0]))
    return logits, jnp.array([1, 3, 0, 2, 0, 4, 4])


def _weights_example(key: Array) -> tuple[tuple[Array, Array]]:
    k1, k2 = jax.random.split(key)
    return ((jax.random.normal(k1, (3, 5)), jax.random.normal(k2, (5, 1))),)


mean_squared_error = Op(mean_squared_error_fwd, mean_squared_error_bwd, example=_real_example)
softmax_cross_entropy = Op(
    softmax_cross_entropy_fwd, softmax_cross_entropy_bwd, example=_labelled_example
)
l2_penalty = Op(
    l2_penalty_fwd, l2_penalty_bwd, example=_weights_example, settings=({"coefficient": 0.3},)
)
