"""Rows of the losses of targets of the inputs' shape, and of the weighted mean."""

import jax
import numpy as np
import scipy.special

from jaxnn.ops import losses, weighted_mean
from rows import Row

REDUCE = {"mean": np.mean, "sum": np.sum, "none": np.asarray}


def pair(rng, shape):
    return rng.normal(size=shape), rng.normal(size=shape)


def likely(rng, shape):
    return rng.normal(size=shape), rng.uniform(size=shape)


def distributions(rng, shape):
    log_q, log_t = (scipy.special.log_softmax(z, -1) for z in pair(rng, shape))
    return log_q, np.exp(log_t)


def tree(rng, shape):
    return ({"a": rng.normal(size=shape), "b": [rng.normal(size=shape[::-1])]},)


def half_squares(w, coefficient):
    return 0.5 * coefficient * sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(w))


ROWS = {
    "weighted_mean": Row(
        weighted_mean.weighted_mean,
        {},
        lambda v, w: np.average(v, weights=w),
        likely,
        lambda torch, v, w: (v * w).sum() / w.sum(),
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
}
