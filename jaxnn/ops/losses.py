"""Losses against targets of the same shape, and the penalty on weights.

With l the loss of one element (of one distribution for the KL divergence) and dl its cotangent:

    mean squared error    l = d^2,  d = prediction - target     dd = 2 d dl
    Huber                 l = d^2 / 2, linear beyond delta      dd = clip(d, -delta, delta) dl
    binary cross-entropy  l = -t log s(z) - (1 - t) log s(-z)   dz = (s(z) - t) dl
    KL divergence         l = sum_j t_j (log t_j - log q_j)     dlog q = -t dl

How they become one loss, and where dl comes from, is the `reduction`: see `jaxnn.ops.reductions`.
Losses are computed and added in float32 or wider, and handed out in the inputs' dtype.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.checks import check_floating
from jaxnn.numerics import widen
from jaxnn.op import Op
from jaxnn.ops.reductions import REDUCTIONS, check_pair, reduce_bwd, reduce_fwd
from jaxnn.settings import check_choice, check_number


def mean_squared_error_fwd(
    predictions: Array, targets: Array, *, reduction: str = "mean"
) -> tuple[Array, Array]:
    """(predictions - targets)^2 per element, in squared units of the targets.

    Saves the difference: one value per element. Nothing is recomputed.

    Args:
        predictions: any shape with at least one element.
        targets: the same shape.
        reduction: "mean", "sum" or "none".

    Raises:
        TypeError: the predictions are no floating array or the targets no array.
        ValueError: the shapes differ (they would broadcast to a wrong mean) or hold no element;
            the reduction is unknown.
    """
    check_choice("mean_squared_error: reduction", reduction, REDUCTIONS)
    check_pair("mean_squared_error", predictions=predictions, targets=targets)
    difference = jnp.subtract(predictions, targets)
    loss = reduce_fwd(widen(difference) ** 2, reduction)
    return loss.astype(difference.dtype), difference


def mean_squared_error_bwd(
    difference: Array, dloss: Array, *, reduction: str = "mean"
) -> tuple[Array, Array]:
    """dpredictions = 2 (predictions - targets) dl; dtargets is its negative."""
    dlosses = reduce_bwd(dloss, difference.size, reduction)
    dpredictions = (2 * widen(difference) * dlosses).astype(difference.dtype)
    return dpredictions, -dpredictions


def huber_fwd(
    predictions: Array, targets: Array, *, delta: float = 1.0, reduction: str = "mean"
) -> tuple[Array, Array]:
    """Squared error near 0, absolute error beyond `delta` (Huber, 1964), so outliers pull less.

        l = d^2 / 2  where |d| <= delta,  else  delta (|d| - delta / 2);   d = prediction - target

    Saves the difference d: one value per element. Nothing is recomputed.

    Args:
        predictions: any shape with at least one element.
        targets: the same shape.
        delta: where the two halves meet, in units of the targets.
        reduction: "mean", "sum" or "none".

    Raises:
        TypeError, ValueError: as `mean_squared_error_fwd`.
        TypeError: delta is no number.
        ValueError: it is not finite and positive.
    """
    check_choice("huber: reduction", reduction, REDUCTIONS)
    delta = check_number(
        "huber: delta", delta, "finite and positive: 1 is usual", lambda d: 0 < d < math.inf
    )
    check_pair("huber", predictions=predictions, targets=targets)
    difference = jnp.subtract(predictions, targets)
    d = widen(difference)
    size = jnp.abs(d)
    losses = jnp.where(size <= delta, d**2 / 2, delta * (size - delta / 2))
    return reduce_fwd(losses, reduction).astype(difference.dtype), difference


def huber_bwd(
    difference: Array, dloss: Array, *, delta: float = 1.0, reduction: str = "mean"
) -> tuple[Array, Array]:
    """dpredictions = d dl, with d clipped to [-delta, delta]; dtargets is its negative."""
    dlosses = reduce_bwd(dloss, difference.size, reduction)
    dpredictions = (jnp.clip(widen(difference), -delta, delta) * dlosses).astype(difference.dtype)
    return dpredictions, -dpredictions


def sigmoid_binary_cross_entropy_fwd(
    logits: Array, targets: Array, *, reduction: str = "mean"
) -> tuple[Array, tuple[Array, Array]]:
    """Negative log-likelihood of yes-or-no targets, in nats, from logits.

        l = -t log s(z) - (1 - t) log s(-z),   s(z) = 1 / (1 + exp(-z)),  -log s(z) = softplus(-z)

    Stable for logits of any finite size. Saves logits and targets, there already: no extra bytes.
    The backward recomputes the sigmoid.

    Args:
        logits: any shape with at least one element.
        targets: the same shape, in [0, 1]: the probabilities of "yes".
        reduction: "mean", "sum" or "none".

    Raises:
        TypeError, ValueError: as `mean_squared_error_fwd`.
    """
    check_choice("sigmoid_binary_cross_entropy: reduction", reduction, REDUCTIONS)
    check_pair("sigmoid_binary_cross_entropy", logits=logits, targets=targets)
    logits, targets = jnp.asarray(logits), jnp.asarray(targets)
    z = widen(logits)
    t = targets.astype(z.dtype)
    # -log s(z) and -log s(-z) have all but these two in common. |z| as their sum: jnp.abs has a
    # slope of 1 at 0, where that of their rest is 0.
    below, above = jnp.maximum(-z, 0), jnp.maximum(z, 0)
    rest = jnp.log1p(jnp.exp(-(below + above)))
    losses = t * below + (1 - t) * above + rest
    return reduce_fwd(losses, reduction).astype(logits.dtype), (logits, targets)


def sigmoid_binary_cross_entropy_bwd(
    residuals: tuple[Array, Array], dloss: Array, *, reduction: str = "mean"
) -> tuple[Array, Array]:
    """dz = (s(z) - t) dl,  dt = -z dl.

    The first as (1 - t) s(z) - t s(-z), which keeps the digits that s(z) - 1 loses.
    """
    logits, targets = residuals
    z = widen(logits)
    t = targets.astype(z.dtype)
    dlosses = reduce_bwd(dloss, z.size, reduction)
    dz = ((1 - t) * lax.logistic(z) - t * lax.logistic(-z)) * dlosses
    return dz.astype(logits.dtype), (-z * dlosses).astype(targets.dtype)


def kl_divergence_fwd(
    log_probabilities: Array, targets: Array, *, reduction: str = "mean"
) -> tuple[Array, tuple[Array, Array]]:
    """How far the distributions q are from the targets t (Kullback and Leibler, 1951), in nats.

        l = sum_j t_j (log t_j - log q_j)

    One loss per distribution, so the mean is over distributions: PyTorch's "batchmean". A class of
    target 0 adds nothing, whatever its log q; its own derivative, truly infinite, is taken to be 0.
    Saves both inputs, there already: no extra bytes. The backward recomputes log t.

    Args:
        log_probabilities: log q (..., K), at least one row and one class: see `log_softmax`.
        targets: t (..., K), probabilities.
        reduction: "mean", "sum" or "none", which gives (...).

    Raises:
        TypeError, ValueError: as `mean_squared_error_fwd`, or there is no dimension of classes.
    """
    check_choice("kl_divergence: reduction", reduction, REDUCTIONS)
    check_pair("kl_divergence", log_probabilities=log_probabilities, targets=targets)
    if targets.ndim == 0:
        raise ValueError(
            "kl_divergence: targets have shape (); they must be (..., classes): add a dimension"
        )
    log_probabilities, targets = jnp.asarray(log_probabilities), jnp.asarray(targets)
    log_q = widen(log_probabilities)
    t = targets.astype(log_q.dtype)
    loss = reduce_fwd(jnp.sum(t * _log_ratio(log_q, t), -1), reduction)
    return loss.astype(log_probabilities.dtype), (log_probabilities, targets)


def kl_divergence_bwd(
    residuals: tuple[Array, Array], dloss: Array, *, reduction: str = "mean"
) -> tuple[Array, Array]:
    """dlog q = -t dl,  dt = (log t - log q + 1) dl where t > 0, else 0."""
    log_probabilities, targets = residuals
    log_q = widen(log_probabilities)
    t = targets.astype(log_q.dtype)
    dlosses = reduce_bwd(dloss, math.prod(t.shape[:-1]), reduction)[..., None]
    dt = jnp.where(t > 0, _log_ratio(log_q, t) + 1, 0) * dlosses
    return (-t * dlosses).astype(log_probabilities.dtype), dt.astype(targets.dtype)


def _log_ratio(log_q: Array, t: Array) -> Array:
    """log t - log q where t > 0, else 0 (chosen before the logarithm, for the derivative)."""
    return jnp.log(jnp.where(t > 0, t, 1)) - jnp.where(t > 0, log_q, 0)


def l2_penalty_fwd(weights: Any, *, coefficient: float = 1.0) -> tuple[Array, Any]:
    """0.5 coefficient (sum of squares of all entries of all leaves).

    Saves the weights, which are there already: no extra bytes. A coefficient of 0 costs nothing.

    Args:
        weights: a pytree of the arrays to penalise; choose the leaves by building it.
        coefficient: the strength, in units of loss per squared weight; its own gradient is not
            taken.

    Raises:
        TypeError: a leaf is no floating array, or the coefficient no number.
        ValueError: there is no leaf, or the coefficient is not finite.
    """
    coefficient = check_number("l2_penalty: coefficient", coefficient)
    for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
        check_floating(f"l2_penalty: weights{jax.tree_util.keystr(path)}", leaf)
    weights = jax.tree.map(jnp.asarray, weights)
    leaves = jax.tree.leaves(weights)
    if not leaves:
        raise ValueError("l2_penalty: no leaf to penalise; pass a pytree with at least one array")
    dtype = jnp.result_type(*leaves)
    if coefficient == 0:
        return jnp.zeros((), dtype), weights
    total: Any = 0.5 * coefficient * sum((widen(w) ** 2).sum() for w in leaves)
    return total.astype(dtype), weights


def l2_penalty_bwd(weights: Any, dloss: Array, *, coefficient: float = 1.0) -> tuple[Any]:
    """dw = coefficient w dloss, for every leaf."""
    if coefficient == 0:
        return (jax.tree.map(jnp.zeros_like, weights),)
    scale = coefficient * widen(dloss)
    return (jax.tree.map(lambda w: (scale * widen(w)).astype(w.dtype), weights),)


def _real_example(key: Array) -> tuple[Array, Array]:
    predictions, targets = jax.random.normal(key, (2, 7, 3))
    return predictions.at[0].set(targets[0]), targets


def _yes_or_no_example(key: Array) -> tuple[Array, Array]:
    """Certain and uncertain targets; a logit of 0 and both saturated ends."""
    logits = jax.random.normal(key, (7, 3)).at[0].set(jnp.array([0.0, 30.0, -30.0]))
    return logits, jax.random.uniform(key, (7, 3)).at[:2].set(jnp.array([1.0, 0.0, 1.0]))


def _distributions_example(key: Array) -> tuple[Array, Array]:
    """Neither need add up to 1, and these do not: their derivatives do not suppose it."""
    k1, k2 = jax.random.split(key)
    return jax.random.normal(k1, (7, 3)), jax.random.uniform(k2, (7, 3), minval=0.1)


def _weights_example(key: Array) -> tuple[tuple[Array, Array]]:
    k1, k2 = jax.random.split(key)
    return ((jax.random.normal(k1, (3, 5)), jax.random.normal(k2, (5, 1))),)


_REDUCTIONS = tuple({"reduction": reduction} for reduction in REDUCTIONS)

mean_squared_error = Op(
    mean_squared_error_fwd, mean_squared_error_bwd, example=_real_example, settings=_REDUCTIONS
)
huber = Op(
    huber_fwd,
    huber_bwd,
    example=_real_example,
    settings=tuple({"delta": 0.7, **static} for static in _REDUCTIONS),
)
sigmoid_binary_cross_entropy = Op(
    sigmoid_binary_cross_entropy_fwd,
    sigmoid_binary_cross_entropy_bwd,
    example=_yes_or_no_example,
    settings=_REDUCTIONS,
)
kl_divergence = Op(
    kl_divergence_fwd, kl_divergence_bwd, example=_distributions_example, settings=_REDUCTIONS
)
l2_penalty = Op(
    l2_penalty_fwd, l2_penalty_bwd, example=_weights_example, settings=({"coefficient": 0.3},)
)
