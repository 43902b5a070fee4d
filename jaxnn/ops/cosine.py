"""The cosine of the angle between vectors, over the last axis, and the loss that teaches it.

similarity  c = a.b / (A B),  A = max(|a|, eps), B alike       da = (b / B - c a / A) dc / A
embedding   l = 1 - c for pairs alike, max(0, c - margin) for the others
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.numerics import REDUCTIONS, reduce_bwd, reduce_fwd, widen
from jaxnn.op import Op
from jaxnn.ops.similarity_doors import check_cosine_embedding, check_cosine_similarity


def cosine_similarity_fwd(
    a: Array, b: Array, *, eps: float = 1e-8
) -> tuple[Array, tuple[Array, Array]]:
    """Return the cosine (...) of the angle between vectors a and b (..., D).

    A norm below `eps`, as of zeros, counts as eps, which has no slope (PyTorch's gradient is as if
    it had the norm's). Of a vector that is not finite the cosine is NaN, but not every entry of the
    gradient. Saves both inputs, there already. The backward takes the norms again.

    Raises:
        TypeError: a and b are not floating arrays of one dtype, or eps is no number.
        ValueError: their shapes differ or have no axis, or eps is not positive.
    """
    (a_hat, _, _), (b_hat, _, _) = _unit(a, eps), _unit(b, eps)
    return (a_hat * b_hat).sum(-1).astype(a.dtype), (a, b)


def cosine_similarity_bwd(
    residuals: tuple[Array, Array], dc: Array, *, eps: float = 1e-8
) -> tuple[Array, Array]:
    """Return da = (b_hat - c a_hat) dc / A and db alike; without c where the norm is below eps."""
    a, b = residuals
    (a_hat, a_norm, a_turns), (b_hat, b_norm, b_turns) = _unit(a, eps), _unit(b, eps)
    c = (a_hat * b_hat).sum(-1, keepdims=True)
    d = widen(dc)[..., None]
    da = (b_hat - jnp.where(a_turns, c * a_hat, 0)) * d / a_norm
    db = (a_hat - jnp.where(b_turns, c * b_hat, 0)) * d / b_norm
    return da.astype(a.dtype), db.astype(b.dtype)


def _unit(x: Array, eps: float) -> tuple[Array, Array, Array]:
    """x / max(|x|, eps), that norm, and whether it is |x|."""
    x = widen(x)
    squares = (x**2).sum(-1, keepdims=True)
    is_norm = squares > eps**2
    norm = jnp.where(is_norm, jnp.sqrt(jnp.where(is_norm, squares, 1)), eps)
    return x / norm, norm, is_norm


def cosine_embedding_fwd(
    a: Array, b: Array, labels: Array, *, margin: float = 0.0, reduction: str = "mean"
) -> tuple[Array, tuple[Array, Array, Array]]:
    """Return 1 - c of pairs alike (label 1), max(0, c - margin) of pairs that are not (label -1).

    c is the cosine of the angle between a and b, where 1e-12 is added to both squares, as PyTorch
    does. Exactly at the margin the slope is 0. Saves its inputs, there already; the backward takes
    the cosine again.

    Args:
        a: (..., D).
        b: as a.
        labels: (...) integers, 1 or -1.
        margin: of the cosine, within [-1, 1].
        reduction: "mean", "sum" or "none", which gives (...).

    Raises:
        TypeError: a and b are not floating arrays of one dtype, the labels no integers, or the
            margin no number.
        ValueError: the shapes do not fit, there is no pair for the mean, a label that can be seen
            is neither 1 nor -1 (under jit its loss is NaN), or a setting is outside its range.
    """
    c, _, _ = _cosine(a, b)
    losses = jnp.where(labels == 1, 1 - c, jax.nn.relu(c - margin)) * _one_or_nan(labels, c)
    return reduce_fwd(losses, reduction).astype(a.dtype), (a, b, labels)


def cosine_embedding_bwd(
    residuals: tuple[Array, Array, Array],
    dloss: Array,
    *,
    margin: float = 0.0,
    reduction: str = "mean",
) -> tuple[Array, Array, None]:
    """Return da = (b / (A B) - c a / A^2) dc with A^2 = |a|^2 + 1e-12, and db alike."""
    a, b, labels = residuals
    c, aa, bb = _cosine(a, b)
    dlosses = reduce_bwd(dloss, labels.size, reduction) * _one_or_nan(labels, c)
    dc = jnp.where(labels == 1, -1, (c > margin).astype(c.dtype)) * dlosses
    dc, c, aa, bb = (x[..., None] for x in (dc, c, aa, bb))
    da = (widen(b) / jnp.sqrt(aa * bb) - c * widen(a) / aa) * dc
    db = (widen(a) / jnp.sqrt(aa * bb) - c * widen(b) / bb) * dc
    return da.astype(a.dtype), db.astype(b.dtype), None


def _cosine(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """The cosine c and both squares."""
    a, b = widen(a), widen(b)
    aa, bb = (a**2).sum(-1) + 1e-12, (b**2).sum(-1) + 1e-12
    return (a * b).sum(-1) / jnp.sqrt(aa * bb), aa, bb


def _one_or_nan(labels: Array, like: Array) -> Array:
    return jnp.where(jnp.abs(labels) == 1, 1, jnp.nan).astype(like.dtype)


def _pairs_example(key: Array) -> tuple[Array, Array]:
    """Two vectors that point the same way, two that point opposite ways."""
    a, b = jax.random.normal(key, (2, 7, 3))
    return a, b.at[1].set(-2 * a[1]).at[2].set(a[2])


def _labelled_example(key: Array) -> tuple[Array, Array, Array]:
    return *jax.random.normal(key, (2, 7, 3)), jnp.array([1, -1, -1, 1, -1, -1, 1])


cosine_similarity = Op(
    cosine_similarity_fwd,
    cosine_similarity_bwd,
    check=check_cosine_similarity,
    example=_pairs_example,
    settings=({}, {"eps": 2.0}),
)
cosine_embedding = Op(
    cosine_embedding_fwd,
    cosine_embedding_bwd,
    check=check_cosine_embedding,
    example=_labelled_example,
    settings=tuple({"margin": 0.1, "reduction": name} for name in REDUCTIONS),
)
