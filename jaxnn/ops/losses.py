"""Losses against targets of the same shape, and the penalty on weights.

With l the loss of one element and dl its cotangent:

    mean squared error    l = d^2,  d = prediction - target     dd = 2 d dl
    Huber                 l = d^2 / 2, linear beyond delta      dd = clip(d, -delta, delta) dl
    absolute error        l = |d|                               dd = sign(d) dl

How they become one loss, and where dl comes from, is the `reduction`, "mean", "sum" or "none": see
`jaxnn.numerics`. All is computed in float32 or wider, and handed out in the inputs' dtype.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.checks import check_one_dtype, check_pair
from jaxnn.numerics import REDUCTIONS, is_zero, reduce_bwd, reduce_fwd, widen
from jaxnn.op import Op
from jaxnn.ops.losses_doors import check_l2_penalty
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
    d = _difference(predictions, targets)
    loss = reduce_fwd(d**2, reduction)
    return loss.astype(predictions.dtype), d.astype(predictions.dtype)


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
    where the two halves meet, in units of the targets. Divided by `delta` it is the smooth L1 loss.
    Huber, 1964.
    """
    d = _difference(predictions, targets)
    size = jnp.abs(d)
    losses = jnp.where(size <= delta, d**2 / 2, delta * (size - delta / 2))
    loss = reduce_fwd(losses, reduction)
    return loss.astype(predictions.dtype), d.astype(predictions.dtype)


def huber_bwd(
    difference: Array, dloss: Array, *, delta: float = 1.0, reduction: str = "mean"
) -> tuple[Array, Array]:
    """Return dpredictions = d dl, with d clipped to [-delta, delta]; dtargets is its negative."""
    dlosses = reduce_bwd(dloss, difference.size, reduction)
    dpredictions = (jnp.clip(widen(difference), -delta, delta) * dlosses).astype(difference.dtype)
    return dpredictions, -dpredictions


def mean_absolute_error_fwd(
    predictions: Array, targets: Array, *, reduction: str = "mean"
) -> tuple[Array, Array]:
    """Return |prediction - target| of each element, in units of the targets (L1).

    Takes, saves and raises what `mean_squared_error_fwd` does. The slope where they are equal is 0,
    and that of a NaN is NaN (PyTorch: 0).
    """
    d = _difference(predictions, targets)
    loss = reduce_fwd(jnp.maximum(d, 0) + jnp.maximum(-d, 0), reduction)
    return loss.astype(predictions.dtype), d.astype(predictions.dtype)


def mean_absolute_error_bwd(
    difference: Array, dloss: Array, *, reduction: str = "mean"
) -> tuple[Array, Array]:
    """Return dpredictions = sign(d) dl; dtargets is its negative."""
    dlosses = reduce_bwd(dloss, difference.size, reduction)
    dpredictions = (jnp.sign(widen(difference)) * dlosses).astype(difference.dtype)
    return dpredictions, -dpredictions


def _difference(predictions: Array, targets: Array) -> Array:
    """Return predictions - targets in float32 or wider."""
    wide = widen(predictions)
    return wide - targets.astype(wide.dtype)


def l2_penalty_fwd(weights: Any, *, coefficient: float = 1.0) -> tuple[Array, Any]:
    """Return 0.5 coefficient (sum of squares of all entries of all leaves).

    The weights are a pytree of the arrays to penalise: choose the leaves by building it. Saves
    them, there already: no extra bytes. The number 0 as coefficient costs nothing; JAX
    may trace the coefficient: then it is not checked.

    Raises:
        TypeError: the leaves are not floating arrays of one dtype, or the coefficient no number.
        ValueError: there is no leaf, or the coefficient is not finite.
    """
    leaves = jax.tree.leaves(weights)
    dtype = leaves[0].dtype
    if is_zero(coefficient):
        return jnp.zeros((), dtype), weights
    total: Any = 0.5 * coefficient * sum((widen(w) ** 2).sum() for w in leaves)
    return total.astype(dtype), weights


def l2_penalty_bwd(weights: Any, dloss: Array, *, coefficient: float = 1.0) -> tuple[Any]:
    """Return dw = coefficient w dloss, for every leaf."""
    if is_zero(coefficient):
        return (jax.tree.map(jnp.zeros_like, weights),)
    scale = coefficient * widen(dloss)
    return (jax.tree.map(lambda w: (scale * widen(w)).astype(w.dtype), weights),)


def _check(op: str, predictions: Any, targets: Any, *, reduction: Any, delta: Any = 1.0) -> None:
    """Refuse what does not pair up, element by element."""
    check_choice(f"{op}: reduction", reduction, REDUCTIONS)
    rule = "finite and positive: 1 is usual"
    check_number(f"{op}: delta", delta, rule, lambda d: 0 < d < math.inf)
    check_pair(op, reduction, predictions=predictions, targets=targets)
    if jnp.issubdtype(targets.dtype, jnp.floating):
        check_one_dtype(op, predictions=predictions, targets=targets)


def _real_example(key: Array) -> tuple[Array, Array]:
    predictions, targets = jax.random.normal(key, (2, 7, 3))
    return predictions.at[0].set(targets[0]), targets


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
    check=partial(_check, "mean_squared_error"),
)
huber = Op(
    huber_fwd,
    huber_bwd,
    _real_example,
    tuple({"delta": 0.7, **reduction} for reduction in _ALL),
    check=partial(_check, "huber"),
)
mean_absolute_error = Op(
    mean_absolute_error_fwd,
    mean_absolute_error_bwd,
    lambda key: tuple(jax.random.normal(key, (2, 7, 3))),
    _ALL,
    check=partial(_check, "mean_absolute_error"),
)
l2_penalty = Op(l2_penalty_fwd, l2_penalty_bwd, _weights_example, _STRENGTH, check=check_l2_penalty)
