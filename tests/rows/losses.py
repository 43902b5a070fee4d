"""Rows of the losses and of the weighted mean."""

import jax
import numpy as np
import scipy.special

from jaxnn.ops import losses, weighted_mean
from jaxnn.ops.cross_entropy import linear_cross_entropy, softmax_cross_entropy
from jaxnn.ops.hinge import multiclass_hinge
from rows import Row

REDUCE = {"mean": np.mean, "sum": np.sum, "none": np.asarray}


def pair(rng, shape):
    return rng.normal(size=shape), rng.normal(size=shape)


def likely(rng, shape):
    return rng.normal(size=shape), rng.uniform(size=shape)


def distributions(rng, shape):
    log_q, log_t = (scipy.special.log_softmax(z, -1) for z in pair(rng, shape))
    return log_q, np.exp(log_t)


def labelled(rng, shape):
    return rng.normal(size=shape), rng.integers(0, shape[-1], shape[:-1])


def headed(rng, shape):
    classes = 1 + shape[0] % 4
    w = rng.normal(size=(shape[-1], classes))
    return w, rng.normal(size=shape), rng.integers(0, classes, shape[:-1])


def tree(rng, shape):
    return ({"a": rng.normal(size=shape), "b": [rng.normal(size=shape[::-1])]},)


def nll(z, t, label_smoothing=0.0, z_loss=0.0, reduction="mean"):
    k = z.shape[-1]
    q = (1 - label_smoothing) * np.eye(k)[t] + label_smoothing / k
    log_normaliser = scipy.special.logsumexp(z, -1)
    log_p = z - log_normaliser[..., None]
    return REDUCE[reduction](-np.sum(q * log_p, -1) + z_loss * log_normaliser**2)


def hinge(z, t, margin, reduction):
    def of_row(row, label):
        wrong = np.delete(row, label)
        return np.maximum(wrong - row[label] + margin, 0).sum() / len(row)

    rows = [of_row(row, t[i]) for i, row in ((i, z[i]) for i in np.ndindex(t.shape))]
    return REDUCE[reduction](np.reshape(rows, t.shape))


def half_squares(w, coefficient):
    return 0.5 * coefficient * sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(w))


def torch_nll(torch, z, t, label_smoothing=0.0, z_loss=0.0, reduction="mean"):
    rows = z.reshape(-1, z.shape[-1])
    each = torch.nn.functional.cross_entropy(
        rows, t.ravel(), label_smoothing=label_smoothing, reduction="none"
    )
    each = (each + z_loss * torch.logsumexp(rows, -1) ** 2).reshape(t.shape)
    return each if reduction == "none" else getattr(each, reduction)()


SMOOTHED = {"label_smoothing": 0.2, "z_loss": 0.03, "reduction": "none"}

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
    "sigmoid_binary_cross_entropy": Row(
        losses.sigmoid_binary_cross_entropy,
        {"reduction": "sum"},
        lambda z, t, reduction: np.sum(np.logaddexp(0, z) - t * z),
        likely,
        lambda torch, z, t, **static: torch.nn.functional.binary_cross_entropy_with_logits(
            z, t, **static
        ),
    ),
    "kl_divergence": Row(
        losses.kl_divergence,
        {},
        lambda log_q, t: np.mean(scipy.special.rel_entr(t, np.exp(log_q)).sum(-1)),
        distributions,
        lambda torch, log_q, t: torch.nn.functional.kl_div(
            *(x.reshape(-1, x.shape[-1]) for x in (log_q, t)), reduction="batchmean"
        ),
    ),
    "l2_penalty": Row(losses.l2_penalty, {"coefficient": 0.3}, half_squares, tree),
    "softmax_cross_entropy": Row(softmax_cross_entropy, {}, nll, labelled, torch_nll),
    "softmax_cross_entropy smoothed": Row(
        softmax_cross_entropy, SMOOTHED, nll, labelled, torch_nll
    ),
    "multiclass_hinge": Row(
        multiclass_hinge,
        {"margin": 0.7, "reduction": "none"},
        hinge,
        labelled,
        lambda torch, z, t, margin, reduction: torch.nn.functional.multi_margin_loss(
            z.reshape(-1, z.shape[-1]), t.ravel(), margin=margin, reduction=reduction
        ).reshape(t.shape),
    ),
    "linear_cross_entropy": Row(
        linear_cross_entropy,
        {"chunk": 3, **SMOOTHED},
        lambda w, x, t, chunk, **static: nll(x.dot(w), t, **static),
        headed,
        lambda torch, w, x, t, chunk, **static: torch_nll(torch, x @ w, t, **static),
    ),
}
