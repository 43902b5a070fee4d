"""Cross-entropy of yes-or-no targets t, from logits z or from probabilities p of "yes".

    l = -w (c t log s(z) + (1 - t) log s(-z)),  s(z) = 1 / (1 + exp(-z))
    dz = w ((1 - t) s(z) - c t s(-z)) dl,       dt = w (c softplus(-z) - softplus(z)) dl

with softplus(-z) = -log s(z), c the weight of "yes" and w that of the element, 1 where not given.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.checks import check_within
from jaxnn.numerics import REDUCTIONS, reduce_bwd, reduce_fwd, sum_like, widen
from jaxnn.op import Op
from jaxnn.ops.losses_doors import check_binary


class BinaryResiduals(NamedTuple):
    """The inputs: logits or probabilities, targets, and the weights that are given."""

    x: Array
    targets: Array
    weights: Array | None
    pos_weight: Array | None = None


def sigmoid_binary_cross_entropy_fwd(
    logits: Array,
    targets: Array,
    weights: Array | None = None,
    pos_weight: Array | None = None,
    *,
    reduction: str = "mean",
) -> tuple[Array, BinaryResiduals]:
    """Return the negative log-likelihood of yes-or-no targets, in nats, from logits.

    The targets, in [0, 1], are the probabilities of "yes". Stable for logits of any finite size; an
    infinite one that is wrong costs infinity where the target is certain (PyTorch: NaN). The mean
    is over elements, whatever their weights. Saves its inputs, there already: no extra bytes. The
    backward recomputes the sigmoid.

    Args:
        logits: z, of any shape.
        targets: t of the same shape, of any real dtype.
        weights: w, of the logits' dtype, and of a shape that broadcasts to theirs; None for 1.
        pos_weight: c, likewise: above 1 it makes a "no" where "yes" is right cost more.
        reduction: "mean", "sum" or "none".

    Raises:
        TypeError: the logits are no floating array, the weights not of their dtype, or the targets
            no array of real numbers.
        ValueError: the shapes differ, the weights' do not broadcast, there is no element for the
            mean, or the reduction is unknown.
    """
    z = widen(logits)
    t = targets.astype(z.dtype)
    yes, no = _softplus(z)
    if pos_weight is not None:
        yes = widen(pos_weight) * yes
    losses = t * yes + (1 - t) * no
    if weights is not None:
        losses = widen(weights) * losses
    loss = reduce_fwd(losses, reduction).astype(logits.dtype)
    return loss, BinaryResiduals(logits, targets, weights, pos_weight)


def sigmoid_binary_cross_entropy_bwd(
    residuals: BinaryResiduals, dloss: Array, *, reduction: str = "mean"
) -> tuple[Array, Array, Array | None, Array | None]:
    """Return dz = w ((1 - t) s(z) - c t s(-z)) dl, the digits of s(z) - 1 kept, dt, dw and dc."""
    logits, targets, weights, pos_weight = residuals
    z = widen(logits)
    t, (yes, no) = targets.astype(z.dtype), _softplus(z)
    c = 1.0 if pos_weight is None else widen(pos_weight)
    dlosses = jnp.broadcast_to(reduce_bwd(dloss, z.size, reduction), z.shape)
    dl = dlosses if weights is None else widen(weights) * dlosses
    dz = ((1 - t) * lax.logistic(z) - c * t * lax.logistic(-z)) * dl
    dt = (-z if pos_weight is None else c * yes - no) * dl
    dw = sum_like(weights, (c * t * yes + (1 - t) * no) * dlosses)
    dc = sum_like(pos_weight, t * yes * dl)
    return dz.astype(logits.dtype), dt.astype(targets.dtype), dw, dc


def _softplus(z: Array) -> tuple[Array, Array]:
    """softplus(-z) = -log s(z) and softplus(z) = -log s(-z)."""
    # |z| is their sum: jnp.abs has a slope of 1 at 0, where that of the rest is 0.
    below, above = jnp.maximum(-z, 0), jnp.maximum(z, 0)
    rest = jnp.log1p(jnp.exp(-(below + above)))
    return below + rest, above + rest


LEAST = -100.0


def binary_cross_entropy_fwd(
    probabilities: Array,
    targets: Array,
    weights: Array | None = None,
    *,
    reduction: str = "mean",
) -> tuple[Array, BinaryResiduals]:
    """Return the negative log-likelihood of yes-or-no targets, in nats, from probabilities.

        l = -w (t max(log p, -100) + (1 - t) max(log(1 - p), -100))

    Where there are logits, `sigmoid_binary_cross_entropy` keeps more digits. The logarithms stop at
    -100, as PyTorch's do, so that a certain mistake costs 100. There the loss is flat, and so is
    the gradient here; PyTorch's is (p - t) / 1e-12, and infinite for the target. Saves its inputs,
    there already.

    Args:
        probabilities: p of "yes", of any shape, in [0, 1]; outside, under jit, the loss is NaN.
        targets: as `sigmoid_binary_cross_entropy`.
        weights: as `sigmoid_binary_cross_entropy`.
        reduction: as `sigmoid_binary_cross_entropy`.

    Raises:
        TypeError, ValueError: as `sigmoid_binary_cross_entropy`; or a probability that can be seen
            is outside [0, 1].
    """
    p = widen(probabilities)
    t = targets.astype(p.dtype)
    losses = -t * _log(p)[0] - (1 - t) * _log(1 - p)[0]
    if weights is not None:
        losses = widen(weights) * losses
    loss = reduce_fwd(losses, reduction).astype(probabilities.dtype)
    return loss, BinaryResiduals(probabilities, targets, weights)


def binary_cross_entropy_bwd(
    residuals: BinaryResiduals, dloss: Array, *, reduction: str = "mean"
) -> tuple[Array, Array, Array | None]:
    """Return dp = w ((1 - t) / (1 - p) - t / p) dl, dt = w (log(1 - p) - log p) dl, and dw."""
    probabilities, targets, weights, _ = residuals
    p = widen(probabilities)
    t = targets.astype(p.dtype)
    (log_yes, dlog_yes), (log_no, dlog_no) = _log(p), _log(1 - p)
    dlosses = jnp.broadcast_to(reduce_bwd(dloss, p.size, reduction), p.shape)
    dl = dlosses if weights is None else widen(weights) * dlosses
    dp = ((1 - t) * dlog_no - t * dlog_yes) * dl
    dt = (log_no - log_yes) * dl
    dw = sum_like(weights, (-t * log_yes - (1 - t) * log_no) * dlosses)
    return dp.astype(probabilities.dtype), dt.astype(targets.dtype), dw


def _log(p: Array) -> tuple[Array, Array]:
    """log p, but at least -100, and its derivative."""
    flat = (p >= 0) & (p <= math.exp(LEAST))
    p = jnp.where(flat, 1, p)  # chosen before the logarithm, for the derivative
    return jnp.where(flat, LEAST, jnp.log(p)), jnp.where(flat, 0, 1 / p)


def _check_probabilities(probabilities: Any, targets: Any, weights: Any, **settings: Any) -> None:
    op, noun = "binary_cross_entropy", "probabilities"
    check_binary(op, noun, probabilities, targets, weights, **settings)
    rule = "the probability of yes: pass logits to sigmoid_binary_cross_entropy"
    check_within(f"{op}: {noun}", probabilities, 0, 1, rule)


def _logits_example(key: Array) -> tuple[Array, Array, Array, Array]:
    """Certain and uncertain targets; a logit of 0 and both saturated ends; uneven weights."""
    logits = jax.random.normal(key, (7, 3)).at[0].set(jnp.array([0.0, 30.0, -30.0]))
    targets = jax.random.uniform(key, (7, 3)).at[:2].set(jnp.array([1.0, 0.0, 1.0]))
    weights, pos_weight = jnp.linspace(0.5, 2.0, 7)[:, None], jnp.array([0.5, 3.0, 1.5])
    return logits, targets, weights, pos_weight


def _probabilities_example(key: Array) -> tuple[Array, Array, Array]:
    """Probabilities from nearly 0 to nearly 1, weights of elements."""
    _, targets, weights, _ = _logits_example(key)
    probabilities = jax.random.uniform(key, (7, 3), minval=0.05, maxval=0.95)
    return probabilities.at[0, :2].set(jnp.array([1e-3, 0.999])), targets, weights


_ALL = tuple({"reduction": reduction} for reduction in REDUCTIONS)

sigmoid_binary_cross_entropy = Op(
    sigmoid_binary_cross_entropy_fwd,
    sigmoid_binary_cross_entropy_bwd,
    _logits_example,
    _ALL,
    check=partial(check_binary, "sigmoid_binary_cross_entropy", "logits"),
)
binary_cross_entropy = Op(
    binary_cross_entropy_fwd,
    binary_cross_entropy_bwd,
    _probabilities_example,
    _ALL,
    check=_check_probabilities,
)
