"""Rows of the losses of class labels."""

import jax
import numpy as np
import optax
import scipy.special

from jaxnn.ops.cross_entropy import softmax_cross_entropy
from jaxnn.ops.ctc import ctc
from jaxnn.ops.hinge import multiclass_hinge
from jaxnn.ops.linear import Linear
from jaxnn.ops.linear_cross_entropy import linear_cross_entropy
from jaxnn.ops.nll import nll_loss
from rows import Row
from rows.losses import REDUCE


def labelled(rng, shape):
    return rng.normal(size=shape), rng.integers(0, shape[-1], shape[:-1])


def weighted(rng, shape):
    return *labelled(rng, shape), rng.uniform(0.5, 2, shape[-1])


def targeted(rng, shape):
    return rng.normal(size=shape), rng.uniform(size=shape)


def targeted_weighted(rng, shape):
    return *targeted(rng, shape), rng.uniform(0.5, 2, shape[-1])


def headed(draw):
    """A linear layer of few classes before logits that are drawn by `draw` with the rest."""

    def drawn(rng, shape):
        classes = 1 + shape[0] % 4
        params = Linear(rng.normal(size=(shape[-1], classes)), rng.normal(size=classes))
        return params, rng.normal(size=shape), *draw(rng, (*shape[:-1], classes))[1:]

    return drawn


def nll(
    z, t, w=None, label_smoothing=0.0, z_loss=0.0, ignore_index=None, reduction="mean", log_p=None
):
    k = z.shape[-1]
    w = np.ones(k) if w is None else w
    log_normaliser = scipy.special.logsumexp(z, -1)
    log_p = z - log_normaliser[..., None] if log_p is None else log_p
    if t.dtype.kind == "f":
        q, counts = t, np.ones(t.shape[:-1])
    else:
        kept = t != ignore_index
        label = np.where(kept, t, 0)
        q, counts = np.eye(k)[label] * kept[..., None], w[label] * kept
    q = (1 - label_smoothing) * q + label_smoothing / k
    each = -np.sum(w * q * log_p, -1) + z_loss * log_normaliser**2
    each = np.where(t == ignore_index, 0, each) if t.shape == each.shape else each
    if reduction == "mean":
        return each.sum() / (counts.sum() or 1)
    return REDUCE[reduction](each)


def of_log_p(log_p, t, w=None, **static):
    return nll(log_p, t, w, log_p=log_p, **static)


def hinge(z, t, w=None, margin=1.0, p=1, reduction="mean"):
    def of_row(row, label):
        wrong = np.delete(row, label)
        near = (np.maximum(wrong - row[label] + margin, 0) ** p).sum() / len(row)
        return near if w is None else w[label] * near

    rows = [of_row(row, t[i]) for i, row in ((i, z[i]) for i in np.ndindex(t.shape))]
    return REDUCE[reduction](np.reshape(rows, t.shape))


def torch_hinge(torch, z, t, w=None, reduction="mean", **static):
    rows, labels, loss = (
        z.reshape(-1, z.shape[-1]),
        t.ravel(),
        torch.nn.functional.multi_margin_loss,
    )
    if w is None:
        return loss(rows, labels, reduction=reduction, **static).reshape(t.shape)
    moving = (w[labels] * loss(rows.detach(), labels, reduction="none", **static)).mean()
    fixed = loss(rows, labels, weight=w.detach(), reduction=reduction, **static)
    return fixed + moving - moving.detach()


def torch_nll(torch, z, t, w=None, z_loss=0.0, ignore_index=None, reduction="mean", **static):
    rows, labels = z.reshape(-1, z.shape[-1]), t.reshape(-1, *t.shape[z.ndim - 1 :])
    static |= {"ignore_index": -100 if ignore_index is None else ignore_index}
    how, soft = "none" if z_loss else reduction, t.is_floating_point()
    fixed = w if soft or w is None else w.detach()
    each = torch.nn.functional.cross_entropy(rows, labels, fixed, reduction=how, **static)
    if fixed is not w:
        each = each + of_weights(rows.log_softmax(-1), labels, w, reduction=how, **static)
    if z_loss:
        each = each + z_loss * torch.logsumexp(rows, -1) ** 2
    return each.reshape(z.shape[:-1]) if reduction == "none" else each


def of_weights(log_p, labels, w, ignore_index, reduction="mean", label_smoothing=0.0):
    """Zero, with the gradient for the weights that PyTorch's own loss does not have."""
    log_p, kept = log_p.detach(), (labels != ignore_index).to(w.dtype)
    label = labels * (labels != ignore_index)
    found = w[label] * log_p.gather(-1, label[:, None])[:, 0]
    spread = label_smoothing * (w * log_p).mean(-1)
    each = -kept * ((1 - label_smoothing) * found + spread)
    loss = each.sum() / (w[label] * kept).sum() if reduction == "mean" else each
    return loss - loss.detach()


def torch_of_log_p(torch, log_p, t, w=None, ignore_index=-100, reduction="mean"):
    rows, labels, fixed = log_p.reshape(-1, log_p.shape[-1]), t.ravel(), w
    static = {"ignore_index": ignore_index, "reduction": reduction}
    fixed = None if w is None else w.detach()
    loss = torch.nn.functional.nll_loss(rows, labels, fixed, **static)
    loss = loss if w is None else loss + of_weights(rows, labels, w, **static)
    return loss.reshape(t.shape) if reduction == "none" else loss


def torch_head(torch, p, x, *rest, chunk, **static):
    return torch_nll(torch, x @ p.w + p.b, *rest, **static)


SMOOTHED = {"label_smoothing": 0.2, "z_loss": 0.03, "reduction": "none"}
IGNORING = {"label_smoothing": 0.2, "ignore_index": 1}


def softmax_row(static, draw):
    return Row(softmax_cross_entropy, static, nll, draw, torch_nll)


def linear_row(static, draw):
    return Row(
        linear_cross_entropy,
        static,
        lambda p, x, *rest, chunk, **static: nll(x.dot(p.w) + p.b, *rest, **static),
        headed(draw),
        torch_head,
    )


def spelt(rng, shape, blank=0, hurried=False):
    """Sequences of labels with steps enough for each, or, hurried, perhaps not."""
    n, most, classes = shape[0], 1 + shape[1] % 3, 5 + shape[-1] % 3
    steps = 2 * most + 2
    others = np.delete(np.arange(classes), blank)
    labels, lengths = rng.choice(others, (n, most)), rng.integers(0, most + 1, n)
    needed = 0 if hurried else 2 * lengths + 1
    log_p = scipy.special.log_softmax(rng.normal(size=(n, steps, classes)), -1)
    return log_p, labels, rng.integers(needed, steps + 1, n), lengths


def of_ctc(log_p, labels, steps, lengths, blank=0, zero_infinity=False, reduction="mean"):
    beyond = (np.arange(x.shape[1]) >= n[:, None] for x, n in ((log_p, steps), (labels, lengths)))
    paddings = [x.astype(float) for x in beyond]
    with jax.numpy_dtype_promotion("standard"):
        each = optax.ctc_loss(log_p, paddings[0], labels, paddings[1], blank_id=blank)
    each = np.asarray(each)  # of what cannot be spelt some 1e5
    if zero_infinity:
        each = np.where(each > 9e4, 0, each)
    return REDUCE[reduction](each / np.maximum(lengths, 1) if reduction == "mean" else each)


def torch_ctc(torch, log_p, labels, steps, lengths, **static):
    """PyTorch's gradient is that for the logits of a softmax: less p, which it has in excess."""
    loss = torch.nn.functional.ctc_loss
    sequences = log_p.transpose(0, 1), labels, steps, lengths
    total, inside = loss(*sequences, **static), torch.arange(log_p.shape[1]) < steps[:, None]
    each = loss(
        *(x.detach() for x in sequences), reduction="none", **{"blank": static.get("blank", 0)}
    )
    in_excess = (log_p.exp().sum(-1) * inside * each.isfinite()[:, None]).sum(-1)
    if static.get("reduction", "mean") == "mean":
        in_excess = (in_excess / lengths.clamp(min=1)).mean()
    return total - in_excess + in_excess.detach()


def ctc_row(static, draw):
    return Row(ctc, static, of_ctc, draw, torch_ctc, scalable=False)


ROWS = {
    "softmax_cross_entropy": softmax_row({}, labelled),
    "softmax_cross_entropy smoothed": softmax_row(SMOOTHED, labelled),
    "softmax_cross_entropy ignoring": softmax_row({"ignore_index": 0}, labelled),
    "softmax_cross_entropy weighted": softmax_row({}, weighted),
    "softmax_cross_entropy weighted, ignoring": softmax_row(IGNORING, weighted),
    "softmax_cross_entropy of targets": softmax_row({}, targeted),
    "softmax_cross_entropy of targets, weighted": softmax_row(SMOOTHED, targeted_weighted),
    "linear_cross_entropy": linear_row({"chunk": 3, **SMOOTHED}, labelled),
    "linear_cross_entropy weighted, ignoring": linear_row({"chunk": 2, **IGNORING}, weighted),
    "linear_cross_entropy of targets": linear_row({"chunk": 1}, targeted_weighted),
    "nll_loss": Row(nll_loss, {"ignore_index": 0}, of_log_p, weighted, torch_of_log_p),
    "nll_loss unweighted": Row(nll_loss, {"reduction": "none"}, of_log_p, labelled, torch_of_log_p),
    "multiclass_hinge": Row(
        multiclass_hinge, {"margin": 0.7, "reduction": "none"}, hinge, labelled, torch_hinge
    ),
    "multiclass_hinge squared, weighted": Row(
        multiclass_hinge, {"p": 2}, hinge, weighted, torch_hinge
    ),
    "ctc": ctc_row({}, spelt),
    "ctc unspeakable": ctc_row(
        {"zero_infinity": True, "blank": 4, "reduction": "none"},
        lambda rng, shape: spelt(rng, shape, blank=4, hurried=True),
    ),
}
