"""The weighted mean: of some losses only, or one that counts some more than others.

m = sum_i w_i v_i / sum_i w_i        dv_i = w_i dm / sum w,  dw_i = (v_i - m) dm / sum w
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.checks import check_pair
from jaxnn.numerics import divide, widen
from jaxnn.op import Op


class WeightedMeanResiduals(NamedTuple):
    """The values and their weights, the mean (), and the total weight ()."""

    values: Array
    weights: Array
    mean: Array
    total: Array


def weighted_mean_fwd(values: Array, weights: Array) -> tuple[Array, WeightedMeanResiduals]:
    """Return sum_i w_i v_i / sum_i w_i over all elements: a mask is weights of True and False.

        weighted_mean(softmax_cross_entropy(logits, labels, reduction="none"), mask)

    A total weight of 0 (a mask that keeps nothing) gives 0 with gradient 0. A value that is not
    finite makes the mean NaN whatever its weight, since 0 times infinity is no number: give the
    elements that a mask drops any valid label.

    Saves the inputs, which are there already, and two scalars, in float32 or wider as all totals
    are: no extra bytes. Nothing is recomputed.

    Args:
        values: any shape with at least one element, for example losses with reduction "none".
        weights: the same shape; of the values' dtype, or booleans or integers, which have no
            gradient.

    Raises:
        TypeError: the values are no floating array or the weights no array of real numbers.
        ValueError: the shapes differ or hold no element.
    """
    v = widen(values)
    w = weights.astype(v.dtype)
    total = w.sum()
    mean = divide((w * v).sum(), total)
    return mean.astype(values.dtype), WeightedMeanResiduals(values, weights, mean, total)


def weighted_mean_bwd(residuals: WeightedMeanResiduals, dmean: Array) -> tuple[Array, Array | None]:
    """Return dv = w dmean / sum w and dw = (v - mean) dmean / sum w; both 0 where sum w is."""
    values, weights, mean, total = residuals
    scale = divide(widen(dmean), total)
    dvalues = (weights.astype(mean.dtype) * scale).astype(values.dtype)
    if not jnp.issubdtype(weights.dtype, jnp.floating):
        return dvalues, None
    return dvalues, ((widen(values) - mean) * scale).astype(weights.dtype)


def _check_weighted_mean(values: Array, weights: Array) -> None:
    check_pair("weighted_mean", "mean", values=values, weights=weights)


def _weighted_example(key: Array) -> tuple[Array, Array]:
    """Weights far from 1, some 0, one negative."""
    k1, k2 = jax.random.split(key)
    weights = jax.random.uniform(k2, (7, 3), maxval=4.0)
    return jax.random.normal(k1, (7, 3)), weights.at[1].set(jnp.array([0.0, 0.0, -0.5]))


weighted_mean = Op(
    weighted_mean_fwd, weighted_mean_bwd, _weighted_example, check=_check_weighted_mean
)
