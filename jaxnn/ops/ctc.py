"""Connectionist temporal classification (Graves et al., 2006): labels without their times.

A path spells the labels l_1 .. l_U if they are left when its repeats are merged and its blanks then
dropped. Of l' = (blank, l_1, blank, l_2, .., l_U, blank) it is at one position s at each step: it
stays, moves on to s + 1, or passes over a blank between two different labels, skip_s, to s + 2.
With y_t(k) the probability of class k at step t, the probability of all paths that are at s then is

    alpha_t(s) = y_t(l'_s) (alpha_{t-1}(s) + alpha_{t-1}(s-1) + [skip_{s-2}] alpha_{t-1}(s-2))
    P = alpha_T(2 U) + alpha_T(2 U - 1)                                        loss = -log P

(positions from 0; equations 5 to 8 there). Backward, gamma_t(s) is the probability that a path
that spells l is at s at step t. It starts as the share of alpha_T(s) in P; and of those at r at
step t as many came from s as alpha_{t-1}(s) has share in the sum above, share_t(s, r):

    gamma_{t-1}(s) = sum over r of s, s+1 and, if skip_s, s+2  of  gamma_t(r) share_t(s, r)
    dlog y_t(k) = -dl (sum of gamma_t(s) over l'_s = k)

The gradient asks for each class as often as it is expected. (The paper's gamma, equation 14, is
alpha beta / P with sums beta from the end; shares keep the digits that would cancel in it on a long
way.) alpha is computed as its logarithm less the largest of its step, in float32 or wider.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.numerics import divide, reduce_bwd, reduce_fwd, widen
from jaxnn.op import Op
from jaxnn.ops.losses_doors import check_ctc
from jaxnn.varying import vary_with


class Positions(NamedTuple):
    """Of each sequence the classes l' (N, P), of P = 2 S + 1 positions, and how paths move on them.

    `skips` (N, P) marks from where they may pass over the next, `ends` (N, P) where they may end.
    `lengths` (N,) are the steps that count; `counts` (N,) is 1, or NaN where a label or a length is
    none; `share` (N,) is 1 / max(U, 1), what the mean multiplies a loss by first.
    """

    classes: Array
    skips: Array
    ends: Array
    lengths: Array
    counts: Array
    share: Array


class CTCResiduals(NamedTuple):
    """log y (N, T, K), the positions, log alpha (T, N, P) less its largest, and log P (N,)."""

    log_probabilities: Array
    positions: Positions
    log_alphas: Array
    log_likelihood: Array


def ctc_fwd(
    log_probabilities: Array,
    labels: Array,
    input_lengths: Array,
    label_lengths: Array,
    *,
    blank: int = 0,
    zero_infinity: bool = False,
    reduction: str = "mean",
) -> tuple[Array, CTCResiduals]:
    """Return -log P, of all paths that spell the labels, in nats.

    The mean divides each loss by its number of labels (1 if it has none) first, as PyTorch's does.
    Where no path is short enough the loss is infinite and its gradient NaN, or both are 0 with
    `zero_infinity`. The gradient is that for the log-probabilities as they are; PyTorch's own has
    that of the softmax before them in it, and is the same for the logits.

    Saves the log-probabilities, there already, and T (2 S + 1) logarithms of alpha per sequence.
    Of the forward nothing is recomputed but the shares.

    Args:
        log_probabilities: log y (N, T, K), see `log_softmax`.
        labels: l (N, S) integers in [0, K) but the blank; what is past a sequence's length is not
            looked at.
        input_lengths: (N,) integers in [0, T]: steps that count.
        label_lengths: U (N,) integers in [0, S].
        blank: the class that spells nothing, in [0, K).
        zero_infinity: whether a sequence that cannot be spelt adds nothing.
        reduction: "mean", "sum" or "none", which gives (N,).

    Raises:
        TypeError: the log-probabilities are no floating array, the others not of integers, or a
            setting not of its type.
        ValueError: the shapes do not fit, there is no sequence for the mean, a label or a length is
            outside its range (under jit the loss is NaN), or a setting is.
    """
    log_y = widen(log_probabilities)
    positions = _positions(log_y, labels, input_lengths, label_lengths, blank)
    _, skips, ends, lengths, counts, share = positions
    first = jnp.arange(skips.shape[1]) == 0
    start = jnp.broadcast_to(jnp.where(first, 0, -jnp.inf).astype(log_y.dtype), skips.shape)

    def step(carry: tuple[Array, Array], now: tuple[Array, Array]) -> Any:
        (log_alpha, scale), (t, log_y_t) = carry, now
        moved = log_y_t + _log_sum(_sources(log_alpha, skips))
        moved = jnp.where((t < lengths)[:, None], moved, log_alpha)
        largest = lax.stop_gradient(moved.max(-1))
        largest = jnp.where(largest == -jnp.inf, 0, largest)
        log_alpha = moved - largest[:, None]
        return (log_alpha, scale + largest), log_alpha

    found = jnp.take_along_axis(log_y, positions.classes[:, None, :], -1, mode="clip")
    steps = jnp.arange(log_y.shape[1], dtype=jnp.int32), jnp.moveaxis(found, 1, 0)
    before = vary_with((start, jnp.zeros_like(share)), log_y, positions)
    (log_alpha, scale), log_alphas = lax.scan(step, before, steps)
    log_p = scale + _log_sum(jnp.where(ends, log_alpha, -jnp.inf).T)
    losses = -log_p * counts
    losses = jnp.where(losses == jnp.inf, 0, losses) if zero_infinity else losses
    loss = reduce_fwd(losses * share if reduction == "mean" else losses, reduction)
    residuals = CTCResiduals(log_probabilities, positions, log_alphas, log_p)
    return loss.astype(log_probabilities.dtype), residuals


def ctc_bwd(
    residuals: CTCResiduals,
    dloss: Array,
    *,
    blank: int = 0,
    zero_infinity: bool = False,
    reduction: str = "mean",
) -> tuple[Array, None, None, None]:
    """Return dlog y_t(k) = -dl (sum of gamma_t(s) over l'_s = k), from the last step back."""
    log_probabilities, positions, log_alphas, log_p = residuals
    classes, skips, ends, lengths, counts, share = positions
    gamma = _shares(jnp.where(ends, log_alphas[-1], -jnp.inf).T).T

    def step(gamma: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        t, log_alpha_before = now
        stayed, one, two = gamma * _shares(_sources(log_alpha_before, skips))
        before = stayed + _shifted(one, -1, 0) + _shifted(two, -2, 0)
        is_step = (t < lengths)[:, None]
        return jnp.where(is_step, before, gamma), jnp.where(is_step, gamma, 0)

    steps = jnp.arange(len(log_alphas), dtype=jnp.int32)
    earlier = jnp.concatenate([log_alphas[:1], log_alphas[:-1]])  # before the first is not used
    _, gammas = lax.scan(step, gamma, (steps, earlier), reverse=True)
    dl = reduce_bwd(dloss, len(counts), reduction) * (share if reduction == "mean" else 1) * counts
    n = jnp.arange(len(counts), dtype=jnp.int32)[:, None]
    expected = jnp.zeros_like(widen(log_probabilities))
    expected = expected.at[n, steps[:, None, None], classes].add(gammas)
    unspelt = jnp.array(0 if zero_infinity else jnp.nan, log_p.dtype)
    expected = jnp.where((log_p == -jnp.inf)[:, None, None], unspelt, expected)
    return (-expected * dl[:, None, None]).astype(log_probabilities.dtype), None, None, None


def _positions(
    log_y: Array, labels: Array, input_lengths: Array, label_lengths: Array, blank: int
) -> Positions:
    """Put a blank before, between and after the labels of each sequence."""
    (n, most), (_, steps, classes) = labels.shape, log_y.shape
    labels, lengths, u = (x.astype(jnp.int32) for x in (labels, input_lengths, label_lengths))
    s = jnp.arange(2 * most + 1, dtype=jnp.int32)
    unused = s[:most] >= u[:, None]
    is_class = (labels >= 0) & (labels < classes) & (labels != blank)
    valid = (is_class | unused).all(-1) & (u >= 0) & (u <= most)
    valid = valid & (lengths >= 0) & (lengths <= steps)
    spelt = (
        jnp.full((n, 2 * most + 1), blank, jnp.int32)
        .at[:, 1::2]
        .set(jnp.where(unused, blank, labels))
    )
    skips = (spelt != blank) & (spelt != jnp.roll(spelt, -2, -1)) & (s < 2 * most - 1)
    ends = (s == 2 * u[:, None]) | (s == 2 * u[:, None] - 1)
    counts = jnp.where(valid, 1, jnp.nan).astype(log_y.dtype)
    return Positions(
        spelt, skips, ends, lengths, counts, 1 / jnp.maximum(u, 1).astype(counts.dtype)
    )


def _sources(log_alpha: Array, skips: Array) -> Array:
    """log alpha of where a path at each position may come from: s, s-1 and s-2; (3, N, P)."""
    skipping = jnp.where(skips, log_alpha, -jnp.inf)
    one, two = _shifted(log_alpha, 1, -jnp.inf), _shifted(skipping, 2, -jnp.inf)
    return jnp.stack([log_alpha, one, two])


def _shifted(x: Array, by: int, new: float) -> Array:
    """x (N, P) moved `by` positions on (back, if negative), with what is new at its end."""
    return lax.pad(x, jnp.array(new, x.dtype), [(0, 0, 0), (by, -by, 0)])


def _log_sum(terms: Array) -> Array:
    """log sum exp over the first axis; of nothing but -inf it is -inf, with derivative 0."""
    largest = lax.stop_gradient(terms.max(0))
    none = largest == -jnp.inf
    total = jnp.exp(terms - jnp.where(none, 0, largest)).sum(0)
    return jnp.where(none, -jnp.inf, largest + jnp.log(jnp.where(none, 1, total)))


def _shares(terms: Array) -> Array:
    """The share of each exponential in their sum over the first axis; 0 of nothing but -inf."""
    largest = terms.max(0)
    exp = jnp.exp(terms - jnp.where(largest == -jnp.inf, 0, largest))
    return divide(exp, exp.sum(0))


def _example(key: Array) -> tuple[Array, Array, Array, Array]:
    """Repeated labels, none at all; all steps and fewer. Neither blank, 0 or 4, is a label."""
    log_p = jax.nn.log_softmax(jax.random.normal(key, (3, 7, 5)))
    labels = jnp.array([[2, 2, 1], [3, 1, 0], [0, 0, 0]])
    return log_p, labels, jnp.array([7, 5, 6]), jnp.array([3, 2, 0])


ctc = Op(
    ctc_fwd,
    ctc_bwd,
    check=check_ctc,
    example=_example,
    settings=(
        {},
        {"blank": 4, "reduction": "sum"},
        {"zero_infinity": True, "reduction": "none"},
    ),
)
