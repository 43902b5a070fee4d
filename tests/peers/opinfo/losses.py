"""Losses."""

import torch

from jaxnn.ops import losses
from jaxnn.ops.cross_entropy import softmax_cross_entropy
from jaxnn.ops.hinge import multiclass_hinge

from . import Call, CannotSay, only


def reduced(size_average, reduce, reduction):
    only(size_average=(size_average, None), reduce=(reduce, None))
    return {"reduction": reduction}


def mse_loss(x, target, size_average=None, reduce=None, reduction="mean", weight=None):
    only(weight=(weight, None))
    return Call(losses.mean_squared_error, (x, target), reduced(size_average, reduce, reduction))


def huber_loss(x, target, reduction="mean", delta=1.0, weight=None):
    only(weight=(weight, None))
    return Call(losses.huber, (x, target), {"reduction": reduction, "delta": delta})


def cross_entropy(
    x,
    target,
    weight=None,
    size_average=None,
    ignore_index=-100,
    reduce=None,
    reduction="mean",
    label_smoothing=0.0,
):
    settings = reduced(size_average, reduce, reduction)
    only(weight=(weight, None))
    if target.is_floating_point():
        raise CannotSay("setting", "probabilities")
    logits = x.movedim(1 if x.ndim > 1 else 0, -1)
    settings["label_smoothing"] = label_smoothing
    return Call(softmax_cross_entropy, (logits, target), settings)


def multi_margin(
    x, target, p=1, margin=1.0, weight=None, size_average=None, reduce=None, reduction="mean"
):
    settings = reduced(size_average, reduce, reduction)
    only(p=(p, 1), weight=(weight, None))
    if target.ndim == x.ndim:
        target = target.squeeze(-1)
    return Call(multiclass_hinge, (x, target), settings | {"margin": float(margin)})


def bce_with_logits(
    x, target, weight=None, size_average=None, reduce=None, reduction="mean", pos_weight=None
):
    settings = reduced(size_average, reduce, reduction)
    only(weight=(weight, None), pos_weight=(pos_weight, None))
    return Call(losses.sigmoid_binary_cross_entropy, (x, target), settings)


def kl_div(x, target, size_average=None, reduce=None, reduction="mean", log_target=False):
    reduced(size_average, reduce, reduction)
    only(reduction=(reduction, "batchmean"), log_target=(log_target, False))
    log_q, t = (v.reshape(v.shape[0], -1) for v in torch.broadcast_tensors(x, target))
    return Call(losses.kl_divergence, (log_q, t))


F = "nn.functional."
TABLE = {
    F + "mse_loss": mse_loss,
    F + "huber_loss": huber_loss,
    F + "cross_entropy": cross_entropy,
    F + "multi_margin_loss": multi_margin,
    F + "binary_cross_entropy_with_logits": bce_with_logits,
    F + "kl_div": kl_div,
}
