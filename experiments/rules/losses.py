"""Losses with a rule: integer labels, masks, saturated probabilities, auxiliary outputs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from experiments.rules.rule import Generator, Mistake, Rule, normal, normals


def cross_entropy(mistake: Mistake) -> Any:
    """Mean of -log p at the labels;  dlogits = (p - y) dout / N, and None for the labels."""

    @jax.custom_vjp
    def f(logits: Array, labels: Array) -> Array:
        log_p = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(log_p, labels[:, None], 1).mean()

    def f_fwd(logits: Array, labels: Array) -> Any:
        return f(logits, labels), (logits, labels)

    def f_bwd(residuals: Any, dout: Array) -> Any:
        logits, labels = residuals
        if mistake == "labels of the next example":
            labels = jnp.roll(labels, 1)
        p = jax.nn.softmax(logits)
        if mistake == "log-probabilities for probabilities":
            p = jax.nn.log_softmax(logits)
        y = jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
        d = p if mistake == "label never subtracted" else p - y
        return d * dout / (1 if mistake == "mean left out" else len(logits)), None

    f.defvjp(f_fwd, f_bwd)
    return f


def _plain_cross_entropy(logits: Array, labels: Array) -> Array:
    picked = logits[jnp.arange(len(labels)), labels]
    return (jnp.log(jnp.exp(logits).sum(1)) - picked).mean()


def _logits_and_labels(rng: Generator, dtype: Any) -> tuple[Array, ...]:
    labels = rng.permutation([0, 1, 2, 1, 0, 3])
    return normal(rng, dtype, 6, 5), jnp.asarray(labels, jnp.int32)


def focal(mistake: Mistake) -> Any:
    """-q^gamma log p, p = sigmoid(x), q = 1 - p: where p is 1, autodiff is NaN and the slope 0."""

    @jax.custom_vjp
    def f(x: Array) -> Array:
        p = jax.nn.sigmoid(x)
        return -((1 - p) ** 0.5) * jnp.log(p)

    def f_fwd(x: Array) -> Any:
        return f(x), x

    def f_bwd(x: Array, dy: Array) -> Any:
        p, q = jax.nn.sigmoid(x), jax.nn.sigmoid(-x)
        gamma = 1.0 if mistake == "gamma forgotten" else 0.5
        log_p = jax.nn.log_sigmoid(x)
        slope = -q if mistake == "focus held fixed" else gamma * p * log_p - q
        if mistake == "sign of the focus":
            slope = -gamma * p * log_p - q
        return (dy * q**0.5 * slope,)

    f.defvjp(f_fwd, f_bwd)
    return f


def _plain_focal(x: Array) -> Array:
    return jnp.exp(-0.5 * jax.nn.softplus(x)) * jax.nn.softplus(-x)


def _one_saturated(rng: Generator, dtype: Any) -> tuple[Array, ...]:
    return (normal(rng, dtype, 7).at[3].set(60),)


def masked_logsumexp(mistake: Mistake) -> Any:
    """log sum exp of the scores that a mask lets through;  dx = p dy, 0 where it does not."""

    @jax.custom_vjp
    def f(x: Array, mask: Array) -> Array:
        return jax.nn.logsumexp(jnp.where(mask, x, -jnp.inf), axis=-1)

    def f_fwd(x: Array, mask: Array) -> Any:
        y = f(x, mask)
        return y, (x, mask, y)

    def f_bwd(residuals: Any, dy: Array) -> Any:
        x, mask, y = residuals
        if mistake == "mask ignored":
            return dy[:, None] * jnp.exp(x - y[:, None]), None
        masked = jnp.where(mask, x, -jnp.inf)
        if mistake == "mean of the scores let through":
            return dy[:, None] * mask / mask.sum(-1, keepdims=True), None
        p = jnp.exp(masked - y[:, None])
        return (-p if mistake == "sign flipped" else p) * dy[:, None], None

    f.defvjp(f_fwd, f_bwd)
    return f


def _scores_and_mask(rng: Generator, dtype: Any) -> tuple[Array, ...]:
    mask = np.tri(4, 7, 2, dtype=bool)
    return normal(rng, dtype, 4, 7), jnp.asarray(mask)


def mixture(mistake: Mistake) -> Any:
    """Mean of -log sum_k w_k N(x | mu_k, 1), and the responsibilities beside it, held fixed."""

    @jax.custom_vjp
    def f(logits: Array, mu: Array, x: Array) -> Any:
        log_w = jax.nn.log_softmax(logits)
        each = log_w - 0.5 * ((x[:, None] - mu) ** 2).sum(-1)
        total = jax.nn.logsumexp(each, axis=1)
        return -total.mean(), lax.stop_gradient(jnp.exp(each - total[:, None]))

    def f_fwd(logits: Array, mu: Array, x: Array) -> Any:
        out = f(logits, mu, x)
        return out, (logits, mu, x, out[1])

    def f_bwd(residuals: Any, cotangents: Any) -> Any:
        logits, mu, x, r = residuals
        d = cotangents[0] / len(x)
        dlogits = jax.nn.softmax(logits) - r.mean(0)
        if mistake == "normaliser forgotten":
            dlogits = -r.mean(0)
        apart = r[..., None] * (mu - x[:, None])
        dmu = d * apart.sum(0)
        if mistake == "mean taken twice":
            dmu = d * apart.mean(0)
        dx = d * apart.sum(1)
        return cotangents[0] * dlogits, dmu, dx if mistake == "sign of dx" else -dx

    f.defvjp(f_fwd, f_bwd)
    return f


def _plain_mixture(logits: Array, mu: Array, x: Array) -> Any:
    w = jax.nn.softmax(logits) * jnp.exp(-0.5 * ((x[:, None] - mu) ** 2).sum(-1))
    return -jnp.log(w.sum(1)).mean(), lax.stop_gradient(w / w.sum(1, keepdims=True))


def contrastive(mistake: Mistake) -> Any:
    """Cross-entropy of s = a b', each row and each column of it against its own number."""

    @jax.custom_vjp
    def f(a: Array, b: Array) -> Array:
        s = a @ b.T
        rows, columns = jax.nn.log_softmax(s, axis=1), jax.nn.log_softmax(s, axis=0)
        return -(jnp.diag(rows) + jnp.diag(columns)).mean()

    def f_fwd(a: Array, b: Array) -> Any:
        return f(a, b), (a, b)

    def f_bwd(residuals: Any, dout: Array) -> Any:
        a, b = residuals
        s = a @ b.T
        ds = jax.nn.softmax(s, axis=1) - jnp.eye(len(s), dtype=s.dtype)
        if mistake != "columns forgotten":
            ds += jax.nn.softmax(s, axis=0) - jnp.eye(len(s), dtype=s.dtype)
        ds *= dout / len(s)
        if mistake == "scores not transposed":
            return ds @ b, ds @ a
        if mistake == "inputs swapped":
            return ds.T @ a, ds @ b
        return ds @ b, ds.T @ a

    f.defvjp(f_fwd, f_bwd)
    return f


def _plain_contrastive(a: Array, b: Array) -> Array:
    e = jnp.exp(jnp.einsum("id,jd->ij", a, b))
    own = jnp.log(jnp.exp((a * b).sum(1)))
    return (jnp.log(e.sum(1)) + jnp.log(e.sum(0)) - 2 * own).mean()


RULES = (
    Rule(
        "cross-entropy of integer labels",
        cross_entropy,
        _plain_cross_entropy,
        _logits_and_labels,
        {
            "labels of the next example": "shifted, index, wrong saved value",
            "log-probabilities for probabilities": "wrong saved value",
            "label never subtracted": "missing term, index",
            "mean left out": "factor",
        },
    ),
    Rule(
        "focal loss where p is 1",
        focal,
        _plain_focal,
        _one_saturated,
        {
            "gamma forgotten": "factor, missing term, derivative left out",
            "focus held fixed": "missing term, detached",
            "sign of the focus": "sign",
        },
    ),
    Rule(
        "log-sum-exp under a mask",
        masked_logsumexp,
        lambda x, mask: jnp.log(jnp.where(mask, jnp.exp(x), 0).sum(-1)),
        _scores_and_mask,
        {
            "mask ignored": "mask",
            "mean of the scores let through": "wrong saved value, wrong derivative",
            "sign flipped": "sign",
        },
    ),
    Rule(
        "mixture loss with responsibilities beside it",
        mixture,
        _plain_mixture,
        normals((4,), (4, 3), (5, 3)),
        {
            "normaliser forgotten": "missing term",
            "mean taken twice": "factor",
            "sign of dx": "sign",
        },
    ),
    Rule(
        "contrastive loss",
        contrastive,
        _plain_contrastive,
        normals((5, 3), (5, 3)),
        {
            "columns forgotten": "missing term",
            "scores not transposed": "transpose",
            "inputs swapped": "swapped leaves",
        },
    ),
)
