"""The triplet margin loss: an anchor nearer to one of its kind than to another, by a margin.

l = max(0, margin + d(a, p) - d(a, n)),   d(x, y) = (sum_i |v_i|^p)^(1/p),  v = x - y + eps

dv_i = sign(v_i) (|v_i| / d)^(p - 1) dd;   da = dv of (a, p) - dv of (a, n) where l > 0
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.numerics import reduce_bwd, reduce_fwd, widen
from jaxnn.op import Op
from jaxnn.ops.similarity_doors import check_triplet_margin

Triplet = tuple[Array, Array, Array]


def triplet_margin_fwd(
    anchor: Array,
    positive: Array,
    negative: Array,
    *,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
    reduction: str = "mean",
) -> tuple[Array, Triplet]:
    """Return how much less than `margin` further the negative is from the anchor than the positive.

        l = max(0, margin + d(a, p) - d(a, n)),   d(x, y) = (sum_i |x_i - y_i + eps|^p)^(1/p)

    With `swap` the negative's distance is the smaller of d(a, n) and d(p, n) (Balntas et al.,
    2016). Exactly at the margin the slope is 0. Saves its inputs, there already; the backward takes
    the distances again.

    Args:
        anchor: a (..., D).
        positive: p, as a, of the anchor's kind.
        negative: n, as a, of another.
        margin: in units of the distance, positive.
        p: the norm's, at least 1 and finite.
        eps: added to the differences, at least 0.
        swap: see above.
        reduction: "mean", "sum" or "none", which gives (...).

    Raises:
        TypeError: the inputs are not floating arrays of one dtype, or a setting not of its type.
        ValueError: the shapes differ, there is no triplet for the mean, or a setting is outside its
            range.
    """
    a, plus, minus = (widen(x) for x in (anchor, positive, negative))
    near, (far, _) = _distance(a - plus + eps, p), _far(a, plus, minus, p, eps, swap)
    loss = reduce_fwd(jax.nn.relu(margin + near - far), reduction)
    return loss.astype(anchor.dtype), (anchor, positive, negative)


def triplet_margin_bwd(
    residuals: Triplet,
    dloss: Array,
    *,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
    reduction: str = "mean",
) -> Triplet:
    """Return the gradients by dd / dv_i = sign(v_i) (|v_i| / d)^(p - 1) of v = x - y + eps."""
    a, plus, minus = (widen(x) for x in residuals)
    near, (far, share) = _distance(a - plus + eps, p), _far(a, plus, minus, p, eps, swap)
    dlosses = reduce_bwd(dloss, near.size, reduction)
    dl = jnp.where(margin + near - far > 0, dlosses, 0)
    of_ap = _slope(a - plus + eps, p, dl)
    of_an = _slope(a - minus + eps, p, share * dl)
    grads = of_ap - of_an, -of_ap, of_an
    if swap:
        of_pn = _slope(plus - minus + eps, p, (1 - share) * dl)
        grads = of_ap - of_an, -of_ap - of_pn, of_an + of_pn
    da, dplus, dminus = (g.astype(x.dtype) for g, x in zip(grads, residuals, strict=True))
    return da, dplus, dminus


def _distance(v: Array, p: float) -> Array:
    """The norm of v; its derivative at 0 is taken to be 0."""
    total = (jnp.abs(v) ** p).sum(-1)
    return jnp.where(total == 0, 0, jnp.where(total == 0, 1, total) ** (1 / p))


def _far(
    a: Array, plus: Array, minus: Array, p: float, eps: float, swap: bool
) -> tuple[Array, Array]:
    """The negative's distance, and the share of the anchor in its slope, half at a tie."""
    to_anchor = _distance(a - minus + eps, p)
    if not swap:
        return to_anchor, jnp.ones_like(to_anchor)
    to_positive = _distance(plus - minus + eps, p)
    share = jnp.where(to_anchor == to_positive, 0.5, jnp.where(to_anchor < to_positive, 1, 0))
    return jnp.minimum(to_anchor, to_positive), share.astype(a.dtype)


def _slope(v: Array, p: float, dd: Array) -> Array:
    d = _distance(v, p)[..., None]
    return jnp.sign(v) * (jnp.abs(v) / jnp.where(d == 0, 1, d)) ** (p - 1) * dd[..., None]


def _triplets_example(key: Array) -> Triplet:
    a, plus, minus = jax.random.normal(key, (3, 7, 3))
    return a, plus, minus


triplet_margin = Op(
    triplet_margin_fwd,
    triplet_margin_bwd,
    check=check_triplet_margin,
    example=_triplets_example,
    settings=(
        {},
        {"p": 1.0, "swap": True, "reduction": "sum"},
        {"p": 3.0, "swap": True, "margin": 0.5, "eps": 0.1, "reduction": "none"},
    ),
)
