"""Rows of the losses of targets of the inputs' shape, and of the weighted mean."""

import jax
import numpy as np
import scipy.special

from jaxnn.ops import losses, weighted_mean
from jaxnn.ops.binary_cross_entropy import binary_cross_entropy, sigmoid_binary_cross_entropy
from jaxnn.ops.kl_divergence import kl_divergence
from rows import Row

REDUCE = {"mean": np.mean, "sum": np.sum, "none": np.asarray}


def pair(rng, shape):
    return rng.normal(size=shape), rng.normal(size=shape)


def likely(rng, shape):
    return rng.normal(size=shape), rng.uniform(size=shape)


def distributions(rng, shape):
    log_q, log_t = (scipy.special.log_softmax(z, -1) for z in pair(rng, shape))
    return log_q, np.exp(log_t)


def likely_weighted(rng, shape):
    """Weights of an element each, and of "yes" of its last axis."""
    return *likely(rng, shape), rng.uniform(0.5, 2, shape), rng.uniform(0.5, 2, shape[-1])


def log_distributions(rng, shape):
    log_q, log_t = (scipy.special.log_softmax(z, -1) for z in pair(rng, shape))
    return log_q, log_t


def tree(rng, shape):
    return ({"a": rng.normal(size=shape), "b": [rng.normal(size=shape[::-1])]},)


def half_squares(w, coefficient):
    return 0.5 * coefficient * sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(w))


def of_logits(z, t, weights=1, pos_weight=1, reduction="mean"):
    each = pos_weight * t * np.logaddexp(0, -z) + (1 - t) * np.logaddexp(0, z)
    return REDUCE[reduction](weights * each)


def torch_of_logits(torch, z, t, weights=None, pos_weight=None, reduction="mean"):
    """PyTorch has no gradient for the weights: a term of value 0 has it."""
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    if weights is None:
        return loss(z, t, reduction=reduction)
    total = loss(z, t, weights.detach(), pos_weight=pos_weight.detach(), reduction=reduction)
    z, t = z.detach(), t.detach()
    yes, no = torch.nn.functional.softplus(-z), torch.nn.functional.softplus(z)
    moving = (weights * (pos_weight * t * yes + (1 - t) * no)).mean()
    return total + moving - moving.detach()


def of_probabilities(p, t, weights=1, reduction="mean"):
    """The cross-entropy is the divergence plus the entropy of the targets."""
    each = sum(
        scipy.special.rel_entr(t, p) + scipy.special.entr(t) for t, p in ((t, p), (1 - t, 1 - p))
    )
    return REDUCE[reduction](weights * each)


def torch_of_probabilities(torch, p, t, weights=None, reduction="mean"):
    """PyTorch has no gradient for the weights."""
    loss = torch.nn.functional.binary_cross_entropy
    if weights is None:
        return loss(p, t, reduction=reduction)
    moving = (weights * loss(p.detach(), t.detach(), reduction="none")).mean()
    return loss(p, t, weights.detach(), reduction=reduction) + moving - moving.detach()


def divergence(log_q, t, per="distribution", log_targets=False, reduction="mean"):
    each = scipy.special.rel_entr(np.exp(t) if log_targets else t, np.exp(log_q))
    return REDUCE[reduction](each.sum(-1) if per == "distribution" else each)


def torch_divergence(torch, log_q, t, per="distribution", log_targets=False, reduction="mean"):
    each = torch.nn.functional.kl_div(log_q, t, reduction="none", log_target=log_targets)
    each = each.sum(-1) if per == "distribution" else each
    return each if reduction == "none" else getattr(each, reduction)()


def kl_row(static, draw):
    return Row(kl_divergence, static, divergence, draw, torch_divergence)


ROWS = {
    "weighted_mean": Row(
        weighted_mean.weighted_mean,
        {},
        lambda v, w: np.average(v, weights=w),
        likely,
        lambda torch, v, w: (v * w).sum() / w.sum(),
        averages=True,
    ),
    "mean_squared_error": Row(
        losses.mean_squared_error,
        {},
        lambda p, t: np.mean(np.square(p - t)),
        pair,
        lambda torch, p, t: torch.nn.functional.mse_loss(p, t),
    ),
    "huber": Row(
        losses.huber,
        {"delta": 0.7, "reduction": "none"},
        lambda p, t, delta, reduction: scipy.special.huber(delta, p - t),
        pair,
        lambda torch, p, t, **static: torch.nn.functional.huber_loss(p, t, **static),
    ),
    "mean_absolute_error": Row(
        losses.mean_absolute_error,
        {},
        lambda p, t: np.mean(np.abs(p - t)),
        pair,
        lambda torch, p, t: torch.nn.functional.l1_loss(p, t),
    ),
    "sigmoid_binary_cross_entropy": Row(
        sigmoid_binary_cross_entropy, {"reduction": "sum"}, of_logits, likely, torch_of_logits
    ),
    "sigmoid_binary_cross_entropy weighted": Row(
        sigmoid_binary_cross_entropy, {}, of_logits, likely_weighted, torch_of_logits
    ),
    "binary_cross_entropy": Row(
        binary_cross_entropy,
        {"reduction": "none"},
        of_probabilities,
        lambda rng, shape: (rng.uniform(0.05, 0.95, shape), rng.uniform(size=shape)),
        torch_of_probabilities,
        scalable=False,
    ),
    "binary_cross_entropy weighted": Row(
        binary_cross_entropy,
        {},
        of_probabilities,
        lambda rng, shape: (
            rng.uniform(0.05, 0.95, shape),
            rng.uniform(size=shape),
            rng.uniform(0.5, 2, (shape[0], *(1 for _ in shape[1:]))),
        ),
        torch_of_probabilities,
        scalable=False,
    ),
    "kl_divergence": kl_row({}, distributions),
    "kl_divergence per element": kl_row({"per": "element"}, distributions),
    "kl_divergence of log-targets": kl_row(
        {"log_targets": True, "reduction": "none"}, log_distributions
    ),
    "kl_divergence of log-targets per element": kl_row(
        {"log_targets": True, "per": "element", "reduction": "sum"}, log_distributions
    ),
    "l2_penalty": Row(losses.l2_penalty, {"coefficient": 0.3}, half_squares, tree),
}
