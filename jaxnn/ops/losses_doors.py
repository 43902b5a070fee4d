"""What losses refuse: their doors."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.checks import (
    check_array,
    check_broadcasting,
    check_floating,
    check_integers,
    check_kind,
    check_not_empty,
    check_one_dtype,
    check_pair,
    check_range,
    check_shapes,
    is_seen,
)
from jaxnn.numerics import REDUCTIONS
from jaxnn.ops.linear import Linear
from jaxnn.settings import (
    MOST,
    check_choice,
    check_coefficient,
    check_factor,
    check_flag,
    check_integer,
)


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
    if ignore_index is not None and is_seen(labels):
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
    check_factor(f"{op}: label_smoothing", label_smoothing, rule, lambda s: 0 <= s <= 1)
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


def check_ctc(
    log_probabilities: Any,
    labels: Any,
    input_lengths: Any,
    label_lengths: Any,
    *,
    blank: Any,
    zero_infinity: Any,
    reduction: Any,
) -> None:
    """Refuse what `ctc_fwd` says it raises.

    Raises:
        TypeError, ValueError: as `ctc_fwd`.
    """
    check_choice("ctc: reduction", reduction, REDUCTIONS)
    check_flag("ctc: zero_infinity", zero_infinity)
    sizes = check_shapes(
        "ctc",
        "put the batch first and pad the labels to one length",
        log_probabilities=(log_probabilities, "NTK"),
        labels=(labels, "NS"),
        input_lengths=(input_lengths, "N"),
        label_lengths=(label_lengths, "N"),
    )
    check_floating("ctc: log_probabilities", log_probabilities)
    check_integer("ctc: blank", blank, 0)
    if blank >= sizes.K or sizes.T == 0:
        raise ValueError(
            f"ctc: log_probabilities have shape {log_probabilities.shape}, blank is {blank}; it "
            "must be a class, and there must be at least one step and one class: change it"
        )
    if reduction == "mean":
        check_not_empty("ctc: log_probabilities", log_probabilities, "a mean over sequences")
    whole = {"labels": labels, "input_lengths": input_lengths, "label_lengths": label_lengths}
    for name, values in whole.items():
        check_integers(f"ctc: {name}", values, "cast them with astype(int)")
    rule = "it must be at most the {} there are: cut it, or pass more"
    check_range("ctc: input length", input_lengths, sizes.T + 1, rule.format("steps"))
    check_range("ctc: label length", label_lengths, sizes.S + 1, rule.format("labels"))
    if is_seen(labels) and is_seen(label_lengths):
        used = np.arange(sizes.S) < np.asarray(label_lengths)[:, None]
        rule = f"each label must name a class but the blank, {blank}: relabel, or change blank"
        check_range("ctc: label", np.where(used, labels, 0), sizes.K, rule)
        if (used & (np.asarray(labels) == blank)).any():
            raise ValueError(f"ctc: labels have the blank, {blank}, among them; {rule}")


def check_binary(
    op: str,
    noun: str,
    x: Any,
    targets: Any,
    weights: Any,
    pos_weight: Any = None,
    *,
    reduction: Any,
) -> None:
    """Refuse targets and weights of elements that do not fit x, which `noun` names.

    Raises:
        TypeError, ValueError: as `sigmoid_binary_cross_entropy_fwd`.
    """
    check_choice(f"{op}: reduction", reduction, REDUCTIONS)
    check_pair(op, reduction, **{noun: x}, targets=targets)
    check_one_dtype(op, **{noun: x, "weights": weights, "pos_weight": pos_weight})
    for name, value in (("weights", weights), ("pos_weight", pos_weight)):
        if value is not None:
            fix = "reshape them, for example weights[:, None]"
            check_broadcasting(f"{op}: {name}", value, x.shape, fix)


def check_kl_divergence(
    log_q: Any, targets: Any, *, per: Any, log_targets: Any, reduction: Any
) -> None:
    """Refuse what `kl_divergence_fwd` says it raises.

    Raises:
        TypeError, ValueError: as `kl_divergence_fwd`.
    """
    op = "kl_divergence"
    check_choice(f"{op}: reduction", reduction, REDUCTIONS)
    check_choice(f"{op}: per", per, ("distribution", "element"))
    check_flag(f"{op}: log_targets", log_targets)
    check_pair(op, reduction, log_probabilities=log_q, targets=targets)
    if log_targets:
        check_one_dtype(op, log_probabilities=log_q, targets=targets)
    if per == "distribution":
        check_shapes(
            op, "add a dimension of K classes, or pass per='element'", targets=(targets, "...K")
        )


def check_l2_penalty(weights: Any, *, coefficient: float) -> None:
    """Refuse what `l2_penalty_fwd` says it raises.

    Raises:
        TypeError, ValueError: as `l2_penalty_fwd`.
    """
    check_factor("l2_penalty: coefficient", coefficient, "finite", math.isfinite)
    leaves = jax.tree_util.tree_leaves_with_path(weights)
    if not leaves:
        raise ValueError("l2_penalty: weights have no leaf; they must be arrays: pass at least one")
    named = {f"weights{jax.tree_util.keystr(path)}": leaf for path, leaf in leaves}
    check_one_dtype("l2_penalty", **named)
