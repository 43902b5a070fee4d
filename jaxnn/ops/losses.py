"""Losses against targets of the same shape, and the penalty on weights.

With l the loss of one element (of one distribution for the KL divergence) and dl its cotangent:

    mean squared error    l = d^2,  d = prediction - target     dd = 2 d dl
    Huber                 l = d^2 / 2, linear beyond delta      dd = clip(d, -delta, delta) dl
    binary cross-entropy  l = -t log s(z) - (1 - t) log s(-z)   dz = (s(z) - t) dl
    KL divergence         l = sum_j t_j (log t_j - log q_j)     dlog q = -t dl

How they become one loss, and where dl comes from, is the `reduction`, "mean", "sum" or "none": see
`jaxnn.numerics`. All is computed in float32 or wider, and handed out in the inputs' dtype.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.checks import check_one_dtype, check_pair, check_shapes
from jaxnn.numerics import REDUCTIONS, reduce_bwd, reduce_fwd, widen
from jaxnn.op import Op
from jaxnn.settings import check_choice, check_number


def mean_squared_error_fwd(
    predictions: Array, targets: Array, *, reduction: str = "mean"
) -> tuple[Array, Array]:
    """Return (predictions - targets)^2 of each element, in squared units of the targets.

    The predictions are of any shape, the targets of the same and of their dtype, or integers or
    booleans. Saves the difference: one value per element. Nothing is recomputed.

    Raises:
        TypeError: the predictions are no floating array, or the targets no array of such a dtype.
        ValueError: the shapes differ (they would broadcast to a wrong mean), there is no element
            for the mean, or the reduction is unknown.
    """
    difference = predictions - targets.astype(predictions.dtype)
    loss = reduce_fwd(widen(difference) ** 2, reduction)
    return loss.astype(difference.dtype), difference


def mean_squared_error_bwd(
    difference: Array, dloss: Array, *, reduction: str = "mean"
) -> tuple[Array, Array]:
    """Return dpredictions = 2 (predictions - targets) dl; dtargets is its negative."""
    dlosses = reduce_bwd(dloss, difference.size, reduction)
    dpredictions = (2 * widen(difference) * dlosses).astype(difference.dtype)
    return dpredictions, -dpredictions


def huber_fwd(
    predictions: Array, targets: Array, *, delta: float = 1.0, reduction: str = "mean"
) -> tuple[Array, Array]:
    """Return the squared error near 0, the absolute error beyond `delta`: outliers pull less.

        l = d^2 / 2  where |d| <= delta,  else  delta (|d| - delta / 2);   d = prediction - target

    Takes, saves and raises what `mean_squared_error_fwd` does. `delta`, finite and positive, is
    where the two halves meet, in units of the targets. Huber, 1964.
    """
    difference = predictions - targets.astype(predictions.dtype)
    d = widen(difference)
    size = jnp.abs(d)
    losses = jnp.where(size <= delta, d**2 / 2, delta * (size - delta / 2))
    return reduce_fwd(losses, reduction).astype(difference.dtype), difference


def huber_bwd(
    difference: Array, dloss: Array, *, delta: float = 1.0, reduction: str = "mean"
) -> tuple[Array, Array]:
    """Return dpredictions = d dl, with d clipped to [-delta, delta]; dtargets is its negative."""
    dlosses = reduce_bwd(dloss, difference.size, reduction)
    dpredictions = (jnp.clip(widen(difference), -delta, delta) * dlosses).astype(difference.dtype)
    return dpredictions, -dpredictions


def sigmoid_binary_cross_entropy_fwd(
    logits: Array, targets: Array, *, reduction: str = "mean"
) -> tuple[Array, tuple[Array, Array]]:
    """Return the negative log-likelihood of yes-or-no targets, in nats, from logits.

        l = -t log s(z) - (1 - t) log s(-z),   s(z) = 1 / (1 + exp(-z)),  -log s(z) = softplus(-z)

    The targets, in [0, 1], are the probabilities of "yes". Stable for logits of any finite size.
    Saves both inputs, there already: no extra bytes. The backward recomputes the sigmoid. Raises as
    `mean_squared_error_fwd`.
    """
    z = widen(logits)
    t = targets.astype(z.dtype)
    # |z| is their sum: jnp.abs has a slope of 1 at 0, where that of the rest is 0.
    below, above = jnp.maximum(-z, 0), jnp.maximum(z, 0)
    rest = jnp.log1p(jnp.exp(-(below + above)))
    losses = t * below + (1 - t) * above + rest
    return reduce_fwd(losses, reduction).astype(logits.dtype), (logits, targets)


def sigmoid_binary_cross_entropy_bwd(
    residuals: tuple[Array, Array], dloss: Array, *, reduction: str = "mean"
) -> tuple[Array, Array]:
    """Return dz = ((1 - t) s(z) - t s(-z)) dl, the digits of s(z) - 1 kept, and dt = -z dl."""
    logits, targets = residuals
    z = widen(logits)
    t = targets.astype(z.dtype)
    dlosses = reduce_bwd(dloss, z.size, reduction)
    dz = ((1 - t) * lax.logistic(z) - t * lax.logistic(-z)) * dlosses
    return dz.astype(logits.dtype), (-z * dlosses).astype(targets.dtype)


def kl_divergence_fwd(
    log_probabilities: Array, targets: Array, *, reduction: str = "mean"
) -> tuple[Array, tuple[Array, Array]]:
    """Return how far the distributions q are from the targets t, in nats.

        l = sum_j t_j (log t_j - log q_j)

    Both are (..., K), the first log q (see `log_softmax`). One loss per distribution, so "none"
    gives (...) and the mean is over distributions: PyTorch's "batchmean". A class of target 0 adds
    nothing, whatever its log q; its own derivative, truly infinite, is taken to be 0. Saves both
    inputs, there already: no extra bytes. The backward recomputes log t. Raises as
    `mean_squared_error_fwd`. Kullback and Leibler, 1951.
    """
    log_q = widen(log_probabilities)
    t = targets.astype(log_q.dtype)
    # Chosen before the logarithm, for the derivative.
    log_ratio = jnp.log(jnp.where(t > 0, t, 1)) - jnp.where(t > 0, log_q, 0)
    loss = reduce_fwd((t * log_ratio).sum(-1), reduction)
    return loss.astype(log_probabilities.dtype), (log_probabilities, targets)


def kl_divergence_bwd(
    residuals: tuple[Array, Array], dloss: Array, *, reduction: str = "mean"
) -> tuple[Array, Array]:
    """Return dlog q = -t dl and dt = (log t - log q + 1) dl where t > 0, else 0."""
    log_probabilities, targets = residuals
    log_q = widen(log_probabilities)
    t = targets.astype(log_q.dtype)
    dlosses = reduce_bwd(dloss, math.prod(t.shape[:-1]), reduction)[..., None]
    dt = jnp.where(t > 0, jnp.log(jnp.where(t > 0, t, 1)) - log_q + 1, 0) * dlosses
    return (-t * dlosses).astype(log_probabilities.dtype), dt.astype(targets.dtype)


def l2_penalty_fwd(weights: Any, *, coefficient: float = 1.0) -> tuple[Array, Any]:
    """Return 0.5 coefficient (sum of squares of all entries of all leaves).

    The weights are a pytree of the arrays to penalise: choose the leaves by building it. Saves
    them, there already: no extra bytes. A coefficient of 0 costs nothing.

    Raises:
        TypeError: the leaves are not floating arrays of one dtype, or the coefficient no number.
        ValueError: there is no leaf, or the coefficient is not finite.
    """
    leaves = jax.tree.leaves(weights)
    dtype = leaves[0].dtype
    if coefficient == 0:
        return jnp.zeros((), dtype), weights
    total: Any = 0.5 * coefficient * sum((widen(w) ** 2).sum() for w in leaves)
    return total.astype(dtype), weights


def l2_penalty_bwd(weights: Any, dloss: Array, *, coefficient: float = 1.0) -> tuple[Any]:
    """Return dw = coefficient w dloss, for every leaf."""
    if coefficient == 0:
        return (jax.tree.map(jnp.zeros_like, weights),)
    scale = coefficient * widen(dloss)
    return (jax.tree.map(lambda w: (scale * widen(w)).astype(w.dtype), weights),)


def _check(
    op: str, noun: str, x: Array, targets: Array, *, reduction: str, delta: float = 1.0
) -> None:
    """Refuse what does not pair up, element by element; `noun` names x."""
    check_choice(f"{op}: reduction", reduction, REDUCTIONS)
    rule = "finite and positive: 1 is usual"
    check_number(f"{op}: delta", delta, rule, lambda d: 0 < d < math.inf)
    check_pair(op, reduction, **{noun: x}, targets=targets)
    if noun == "predictions" and jnp.issubdtype(targets.dtype, jnp.floating):
        check_one_dtype(op, predictions=x, targets=targets)


def _check_kl_divergence(log_probabilities: Array, targets: Array, *, reduction: str) -> None:
    _check("kl_divergence", "log_probabilities", log_probabilities, targets, reduction=reduction)
    check_shapes("kl_divergence", "add a dimension of K classes", targets=(targets, "...K"))


def _check_l2_penalty(weights: Any, *, coefficient: float) -> None:
    check_number("l2_penalty: coefficient", coefficient)
    leaves = jax.tree_util.tree_leaves_with_path(weights)
    if not leaves:
        raise ValueError("l2_penalty: weights have no leaf; they must be arrays: pass at least one")
    named = {f"weights{jax.tree_util.keystr(path)}": leaf for path, leaf in leaves}
    check_one_dtype("l2_penalty", **named)


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


_ALL = tuple({"reduction": reduction} for reduction in REDUCTIONS)
_STRENGTH = ({"coefficient": 0.3},)

mean_squared_error = Op(
    mean_squared_error_fwd,
    mean_squared_error_bwd,
    _real_example,
    _ALL,
    check=partial(_check, "mean_squared_error", "predictions"),
)
huber = Op(
    huber_fwd,
    huber_bwd,
    _real_example,
    tuple({"delta": 0.7, **reduction} for reduction in _ALL),
    check=partial(_check, "huber", "predictions"),
)
sigmoid_binary_cross_entropy = Op(
    sigmoid_binary_cross_entropy_fwd,
    sigmoid_binary_cross_entropy_bwd,
    _yes_or_no_example,
    _ALL,
    check=partial(_check, "sigmoid_binary_cross_entropy", "logits"),
)
kl_divergence = Op(
    kl_divergence_fwd, kl_divergence_bwd, _distributions_example, _ALL, check=_check_kl_divergence
)
l2_penalty = Op(
    l2_penalty_fwd, l2_penalty_bwd, _weights_example, _STRENGTH, check=_check_l2_penalty
)
