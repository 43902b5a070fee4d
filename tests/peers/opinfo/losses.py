"""Losses, of labels and targets, of pairs and triplets."""

import functools

import torch

from jaxnn.ops import losses
from jaxnn.ops.binary_cross_entropy import binary_cross_entropy, sigmoid_binary_cross_entropy
from jaxnn.ops.cosine import cosine_embedding, cosine_similarity
from jaxnn.ops.cross_entropy import softmax_cross_entropy
from jaxnn.ops.ctc import ctc
from jaxnn.ops.hinge import multiclass_hinge
from jaxnn.ops.kl_divergence import kl_divergence
from jaxnn.ops.linear import Linear
from jaxnn.ops.linear_cross_entropy import linear_cross_entropy
from jaxnn.ops.nll import nll_loss
from jaxnn.ops.triplet import triplet_margin

from . import Call, CannotSay, only


def reduced(size_average, reduce, reduction):
    """The reduction, without the two arguments that it took the place of."""
    only(size_average=(size_average, None), reduce=(reduce, None))
    return {"reduction": reduction}


def paired(op, x, target, size_average=None, reduce=None, reduction="mean", weight=None):
    only(weight=(weight, None))
    return Call(op, (x, target), reduced(size_average, reduce, reduction))


def huber_loss(x, target, reduction="mean", delta=1.0, weight=None):
    only(weight=(weight, None))
    return Call(losses.huber, (x, target), {"reduction": reduction, "delta": delta})


def smooth_l1_loss(x, target, size_average=None, reduce=None, reduction="mean", beta=1.0):
    settings = reduced(size_average, reduce, reduction)
    if beta == 0:
        return Call(losses.mean_absolute_error, (x, target), settings)
    settings["delta"] = float(beta)
    return Call(losses.huber, (x, target), settings, lambda y: y / beta)


def ignored(target, classes, weight, ignore_index, reduction):
    """`ignore_index` where a label is it; a mean over nothing is refused."""
    is_ignored = target == ignore_index
    total = torch.ones(classes) if weight is None else weight
    kept = target[~is_ignored]
    if reduction == "mean" and (kept.numel() == 0 or total[kept].sum() == 0):
        raise CannotSay("nothing")
    return {"ignore_index": ignore_index} if is_ignored.any() else {}


def labelled(
    op,
    x,
    target,
    weight=None,
    size_average=None,
    ignore_index=-100,
    reduce=None,
    reduction="mean",
    **settings,
):
    """Classes come first in PyTorch, after the examples where there are such."""
    settings |= reduced(size_average, reduce, reduction)
    axis = 1 if x.ndim > 1 else 0
    if target.is_floating_point():
        target = target.movedim(axis, -1)
    else:
        settings |= ignored(target, x.shape[axis], weight, ignore_index, reduction)
    return Call(op, (x.movedim(axis, -1), target, weight), settings)


def linear_ce(
    x,
    linear_weight,
    target,
    *,
    linear_bias=None,
    weight=None,
    reduction="mean",
    ignore_index=None,
    label_smoothing=0.0,
    options=None,
):
    if linear_weight.ndim > 2:
        raise CannotSay("form", "weights of their own for every position")
    settings = {"reduction": reduction, "label_smoothing": label_smoothing}
    if not target.is_floating_point():
        index = -100 if ignore_index is None else ignore_index
        settings |= ignored(target, len(linear_weight), weight, index, reduction)
    inputs = Linear(linear_weight.T, linear_bias), x, target, weight
    return Call(linear_cross_entropy, inputs, settings)


def multi_margin(
    x,
    target,
    p=1,
    margin=1.0,
    weight=None,
    size_average=None,
    reduce=None,
    reduction="mean",
):
    settings = reduced(size_average, reduce, reduction) | {"margin": float(margin), "p": p}
    target = target.squeeze(-1) if target.ndim == x.ndim else target
    return Call(multiclass_hinge, (x, target, weight), settings)


def binary(
    op,
    x,
    target,
    weight=None,
    size_average=None,
    reduce=None,
    reduction="mean",
    pos_weight=None,
):
    inputs = (x, target, weight) if pos_weight is None else (x, target, weight, pos_weight)
    return Call(op, inputs, reduced(size_average, reduce, reduction))


def kl_div(x, target, size_average=None, reduce=None, reduction="mean", log_target=False):
    settings = reduced(size_average, reduce, reduction) | {"log_targets": log_target}
    if not log_target and (target == 0).any():
        raise CannotSay("zero_target")
    settings["per"] = "element"
    if reduction == "batchmean":
        settings |= {"reduction": "sum"}
        return Call(kl_divergence, (x, target), settings, lambda y: y / len(x))
    return Call(kl_divergence, (x, target), settings)


def cosine(x1, x2, dim=1, eps=1e-8):
    if not x1.ndim:
        raise CannotSay("axes")
    x1, x2 = torch.broadcast_tensors(x1, x2)
    return Call(cosine_similarity, (x1.movedim(dim, -1), x2.movedim(dim, -1)), {"eps": eps})


def cosine_embedding_loss(
    x1, x2, target, margin=0.0, size_average=None, reduce=None, reduction="mean"
):
    settings = reduced(size_average, reduce, reduction) | {"margin": float(margin)}
    return Call(cosine_embedding, (x1, x2, target.long()), settings)


def triplet(
    anchor,
    positive,
    negative,
    margin=1.0,
    p=2,
    eps=1e-6,
    swap=False,
    size_average=None,
    reduce=None,
    reduction="mean",
):
    settings = reduced(size_average, reduce, reduction)
    settings |= {"margin": float(margin), "p": float(p), "eps": eps, "swap": swap}
    return Call(triplet_margin, (anchor, positive, negative), settings)


class AsOfSoftmax(torch.autograd.Function):
    """The log-probabilities, and PyTorch's gradient for them: it has their softmax's in it."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, dx):
        (x,) = ctx.saved_tensors
        return dx - x.exp() * dx.sum(-1, keepdim=True)


def ctc_loss(
    x, targets, input_lengths, target_lengths, blank=0, reduction="mean", zero_infinity=False
):
    if targets.ndim != 2:
        raise CannotSay("form", "labels of all sequences in a row")
    lengths = (torch.as_tensor(each) for each in (input_lengths, target_lengths))
    settings = {"blank": blank, "reduction": reduction, "zero_infinity": zero_infinity}
    return Call(ctc, (AsOfSoftmax.apply(x.transpose(0, 1)), targets, *lengths), settings)


F = "nn.functional."
TABLE = {
    F + "mse_loss": functools.partial(paired, losses.mean_squared_error),
    F + "l1_loss": functools.partial(paired, losses.mean_absolute_error),
    F + "huber_loss": huber_loss,
    F + "smooth_l1_loss": smooth_l1_loss,
    F + "cross_entropy": functools.partial(labelled, softmax_cross_entropy),
    F + "nll_loss": functools.partial(labelled, nll_loss),
    F + "linear_cross_entropy": linear_ce,
    F + "multi_margin_loss": multi_margin,
    F + "binary_cross_entropy": functools.partial(binary, binary_cross_entropy),
    F + "binary_cross_entropy_with_logits": functools.partial(binary, sigmoid_binary_cross_entropy),
    F + "kl_div": kl_div,
    F + "cosine_similarity": cosine,
    F + "cosine_embedding_loss": cosine_embedding_loss,
    F + "triplet_margin_loss": triplet,
    F + "ctc_loss": ctc_loss,
}
