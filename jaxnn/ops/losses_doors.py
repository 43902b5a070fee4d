"""What losses of class labels refuse: their doors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.checks import (
    check_array,
    check_floating,
    check_integers,
    check_kind,
    check_one_dtype,
    check_range,
    check_shapes,
)
from jaxnn.numerics import REDUCTIONS
from jaxnn.ops.linear import Linear
from jaxnn.settings import MOST, check_choice, check_coefficient, check_integer, check_number


def check_labelled(
    op: str,
    logits: Any,
    labels: Any,
    class_weights: Any = None,
    *,
    reduction: Any,
    ignore_index: Any = None,
    noun: str = "logits",
    targets: bool = False,
) -> None:
    """Refuse labels that cannot index the last axis of the logits, which `noun` names.

    With `targets` they may also be floating, a target for every class.

    Raises:
        TypeError, ValueError: as `softmax_cross_entropy_fwd`.
    """
    check_choice(f"{op}: reduction", reduction, REDUCTIONS)
    if ignore_index is not None:
        check_integer(f"{op}: ignore_index", ignore_index, -MOST, ", or None")
    check_floating(f"{op}: {noun}", logits)
    if logits.shape[-1:] in ((), (0,)) or (reduction == "mean" and logits.size == 0):
        raise ValueError(
            f"{op}: {noun} have shape {logits.shape}; there must be a class and, for the mean, a "
            "row: pass a non-empty batch"
        )
    check_array(f"{op}: labels", labels)
    if targets and jnp.issubdtype(labels.dtype, jnp.floating):
        _check_targets(op, noun, logits, labels, ignore_index)
    else:
        _check_classes(op, noun, logits, labels, ignore_index)
    if class_weights is not None:
        arrays = {noun: (logits, "...K"), "class_weights": (class_weights, "K?")}
        check_shapes(op, "pass one weight for each class", **arrays)
        check_one_dtype(op, **{noun: logits, "class_weights": class_weights})


def _check_targets(op: str, noun: str, logits: Any, labels: Any, ignore_index: Any) -> None:
    if labels.shape != logits.shape:
        raise TypeError(
            f"{op}: labels have dtype {labels.dtype} and shape {labels.shape}; they must be "
            f"integers, one per row, shape {logits.shape[:-1]}, or a target for every class, shape "
            f"{logits.shape}: cast them with labels.astype(int), or add what is missing"
        )
    check_one_dtype(op, **{noun: logits, "labels": labels})
    if ignore_index is not None:
        raise ValueError(
            f"{op}: ignore_index is {ignore_index} and labels are targets for every class; it must "
            "be None, for it is a label: to leave out a row make its targets 0"
        )


def _check_classes(op: str, noun: str, logits: Any, labels: Any, ignore_index: Any) -> None:
    fix = "cast them with labels.astype(int), or take argmax(-1) of one-hot rows"
    check_integers(f"{op}: labels", labels, fix)
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"{op}: labels have shape {labels.shape}, {noun} {logits.shape}; there must be one "
            f"label per row, shape {logits.shape[:-1]}: check that both have the same length"
        )
    if ignore_index is not None and not isinstance(labels, jax.core.Tracer):
        labels = np.where(np.asarray(labels) == ignore_index, 0, labels)
    rule = "each label must name a class: relabel from 0 or give the model more outputs"
    rule += "" if ignore_index is None else f", or mark what to leave out with {ignore_index}"
    check_range(f"{op}: label", labels, logits.shape[-1], rule)


def check_softmax_cross_entropy(
    logits: Any,
    labels: Any,
    class_weights: Any,
    *,
    label_smoothing: Any,
    z_loss: Any,
    op: str = "softmax_cross_entropy",
    **settings: Any,
) -> None:
    """Refuse what `softmax_cross_entropy_fwd` says it raises.

    Raises:
        TypeError, ValueError: as `softmax_cross_entropy_fwd`.
    """
    rule = "in [0, 1], the share of the label to spread over all classes: 0.1 is usual"
    check_number(f"{op}: label_smoothing", label_smoothing, rule, lambda s: 0 <= s <= 1)
    check_coefficient(f"{op}: z_loss", z_loss)
    check_labelled(op, logits, labels, class_weights, targets=True, **settings)


def check_linear_cross_entropy(
    params: Any, x: Any, labels: Any, class_weights: Any, *, chunk: Any, **settings: Any
) -> None:
    """Refuse what `linear_cross_entropy_fwd` says it raises.

    Raises:
        TypeError, ValueError: as `linear_cross_entropy_fwd`.
    """
    op = "linear_cross_entropy"
    check_integer(f"{op}: chunk", 1 if chunk is None else chunk, hint=", or None")
    check_kind(f"{op}: params", params, Linear)
    w, b = params
    fix = "transpose w or check the feature count"
    check_shapes(op, fix, w=(w, "DV"), b=(b, "V?"), x=(x, "...D"))
    check_one_dtype(op, w=w, b=b, x=x)
    logits = jax.eval_shape(jnp.matmul, x, w)
    check_softmax_cross_entropy(logits, labels, class_weights, op=op, **settings)
