"""The Kullback-Leibler divergence of distributions q from targets t, as log-probabilities of q.

l = sum_j t_j (log t_j - log q_j)
dlog q = -t dl,   dt = (log t - log q + 1) dl,   dlog t = t (log t - log q + 1) dl
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.numerics import REDUCTIONS, reduce_bwd, reduce_fwd, widen
from jaxnn.op import Op
from jaxnn.ops.losses_doors import check_kl_divergence


def kl_divergence_fwd(
    log_probabilities: Array,
    targets: Array,
    *,
    per: str = "distribution",
    log_targets: bool = False,
    reduction: str = "mean",
) -> tuple[Array, tuple[Array, Array]]:
    """Return how far the distributions q are from the targets t, in nats.

    Both are (..., K), the first log q (see `log_softmax`), the targets t, or log t. A class of
    target 0 adds nothing, whatever its log q; its own derivative, truly infinite, is taken to be 0
    (PyTorch: NaN for both). A negative target gives NaN. Saves both inputs, there already: no extra
    bytes. The backward recomputes log t. Kullback and Leibler, 1951.

    Args:
        log_probabilities: log q (..., K), or of any shape per element.
        targets: t of the same shape, of any real dtype.
        per: "distribution", whose losses are the sums over the last axis, (...), the mean over
            them being PyTorch's "batchmean"; or "element", whose losses are the terms t_j (log t_j
            - log q_j), and the mean over all of them, as PyTorch's "mean".
        log_targets: whether the targets are log t, of the dtype of log q; -inf is a target of 0.
        reduction: "mean", "sum" or "none".

    Raises:
        TypeError: log q is no floating array, the targets no array of real numbers, or a setting
            is not of its type.
        ValueError: the shapes differ, there is no axis of classes, no element for the mean, or a
            setting is unknown.
    """
    log_q, t, log_t = _parts(log_probabilities, targets, log_targets)
    kept = t != 0
    terms = t * (jnp.where(kept, log_t, 0) - jnp.where(kept, log_q, 0))
    losses = terms.sum(-1) if per == "distribution" else terms
    loss = reduce_fwd(losses, reduction).astype(log_probabilities.dtype)
    return loss, (log_probabilities, targets)


def kl_divergence_bwd(
    residuals: tuple[Array, Array],
    dloss: Array,
    *,
    per: str = "distribution",
    log_targets: bool = False,
    reduction: str = "mean",
) -> tuple[Array, Array]:
    """Return dlog q = -t dl and dt = (log t - log q + 1) dl, 0 at t = 0; dlog t is t dt."""
    log_probabilities, targets = residuals
    log_q, t, log_t = _parts(log_probabilities, targets, log_targets)
    rows = math.prod(t.shape[:-1]) if per == "distribution" else t.size
    dlosses = reduce_bwd(dloss, rows, reduction)
    dlosses = dlosses[..., None] if per == "distribution" else dlosses
    dt = jnp.where(t != 0, log_t - log_q + 1, 0) * dlosses
    dt = t * dt if log_targets else dt
    return (-t * dlosses).astype(log_probabilities.dtype), dt.astype(targets.dtype)


def _parts(log_q: Array, targets: Array, log_targets: bool) -> tuple[Array, Array, Array]:
    """log q, t and log t, widened; log t is 0 where t is 0, chosen before the logarithm."""
    log_q = widen(log_q)
    given = targets.astype(log_q.dtype)
    t = jnp.exp(given) if log_targets else given
    return log_q, t, given if log_targets else jnp.log(jnp.where(t == 0, 1, t))


def _example(key: Array) -> tuple[Array, Array]:
    """Neither need add up to 1, and these do not: their derivatives do not suppose it."""
    k1, k2 = jax.random.split(key)
    return jax.random.normal(k1, (7, 3)), jax.random.uniform(k2, (7, 3), minval=0.1)


kl_divergence = Op(
    kl_divergence_fwd,
    kl_divergence_bwd,
    check=check_kl_divergence,
    example=_example,
    settings=(
        *({"reduction": reduction} for reduction in REDUCTIONS),
        {"per": "element", "reduction": "none"},
        {"log_targets": True},
        {"log_targets": True, "per": "element"},
    ),
)
