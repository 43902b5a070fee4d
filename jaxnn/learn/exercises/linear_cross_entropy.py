"""Linear cross-entropy: the last layer of a language model and its loss, a few classes at a time.

x (N, D): N rows of D features; w (D, V): V classes; labels (N,): integers in [0, V)
loss (): the mean over the rows of log sum_j exp(z_j) - z_label, with the logits z = x w
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.ops import linear_cross_entropy as ops
from jaxnn.ops.linear import Linear

LESSON = "linear_cross_entropy"
INPUTS = {"x": "(N, D)", "w": "(D, V)", "labels": "(N,) integers"}
OUTPUT = {"loss": "()"}
HINTS = (
    "Each row's loss is log_sum - z_label: what comes back to the logits is a softmax p, from "
    "log_sum, less 1 at the label, from z_label. Do not forget the 1/N of the mean.",
    "log_sum is one number per row, and p = exp(z - log_sum): with z computed again, nothing "
    "else need be saved. The logits of a few classes need only those columns of w.",
    "For the columns w_c of a chunk: z = x w_c, p = exp(z - log_sum), dz = (p - onehot) dloss / N, "
    "where the one-hot row has its 1 only if the label lies in this chunk. These columns of dw "
    "are x^T dz, and dz w_c^T is added to dx: a sum over all chunks.",
)
GRADES = ("easy", "fused", "memory")


def forward(x: Array, w: Array, labels: Array) -> Array:
    """Return the mean cross-entropy of the logits x w, in nats."""
    z = x @ w
    log_sum = jax.nn.logsumexp(z, axis=1, keepdims=True)
    z_label = jnp.take_along_axis(z, labels[:, None], axis=1)
    losses = log_sum - z_label
    loss = losses.mean()
    return loss


def steps(
    x: Array,
    w: Array,
    labels: Array,
    z: Array,
    log_sum: Array,
    z_label: Array,
    losses: Array,
    loss: Array,
    dloss: Array,
) -> dict[str, Array]:
    """Return the cotangent of every line and input, last line first."""
    dlosses = jnp.full_like(losses, 1 / x.shape[0]) * dloss
    dz_label = -dlosses
    dlog_sum = dlosses
    is_label = labels[:, None] == jnp.arange(w.shape[1])
    dz = jnp.exp(z - log_sum) * dlog_sum + is_label * dz_label
    return {
        "z": dz,
        "log_sum": dlog_sum,
        "z_label": dz_label,
        "losses": dlosses,
        "x": dz @ w.T,
        "w": x.T @ dz,
    }


def linear_cross_entropy_fwd(
    x: Array, w: Array, labels: Array, *, chunk: int = 2
) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    """Return the loss, and what the backward needs: no logit is kept."""
    largest = jnp.full((x.shape[0], 1), -jnp.inf, x.dtype)
    total = jnp.zeros_like(largest)
    z_label = jnp.zeros_like(largest)
    for first in range(0, w.shape[1], chunk):
        z = x @ w[:, first : first + chunk]
        larger = jnp.maximum(largest, z.max(1, keepdims=True))
        total = total * jnp.exp(largest - larger) + jnp.exp(z - larger).sum(1, keepdims=True)
        is_label = labels[:, None] == first + jnp.arange(z.shape[1])
        z_label = z_label + jnp.where(is_label, z, 0).sum(1, keepdims=True)
        largest = larger
    log_sum = largest + jnp.log(total)
    return (log_sum - z_label).mean(), (x, w, labels, log_sum)


def linear_cross_entropy_bwd(
    saved: tuple[Array, Array, Array, Array], dloss: Array, *, chunk: int = 2
) -> tuple[Array, Array, None]:
    """Return dx, dw, and None for the labels; the logits are computed again."""
    x, w, labels, log_sum = saved
    dx, dw = jnp.zeros_like(x), jnp.zeros_like(w)
    for first in range(0, w.shape[1], chunk):
        part = w[:, first : first + chunk]
        p = jnp.exp(x @ part - log_sum)
        is_label = labels[:, None] == first + jnp.arange(part.shape[1])
        dz = (p - is_label) * dloss / x.shape[0]
        dx = dx + dz @ part.T
        dw = dw.at[:, first : first + chunk].set(x.T @ dz)
    return dx, dw, None


def example(key: Array) -> tuple[Array, Array, Array]:
    """Return a small point; five classes, which a chunk of two does not divide."""
    kx, kw, kl = jax.random.split(key, 3)
    labels = jax.random.permutation(kl, jnp.array([0, 1, 2, 3, 4, 1, 3]))
    return jax.random.normal(kx, (7, 3)), jax.random.normal(kw, (3, 5)), labels


def library(x: Array, w: Array, labels: Array) -> Array:
    """Return the same, by the library's op."""
    return ops.linear_cross_entropy(Linear(w), x, labels)


BUGS = (
    (
        "* dloss / x.shape[0]",
        "* dloss / w.shape[1]",
        "The mean is over the N rows, and the rule divided by the number of classes.",
    ),
    (
        "== first + jnp.arange(part.shape[1])",
        "== jnp.arange(part.shape[1])",
        "The classes of a chunk begin at `first`: without it every chunk looked for the labels "
        "among the first few classes.",
    ),
    (
        "* dloss / x.shape[0]",
        "* dloss",
        "The loss is a mean over the N rows: each row's cotangent is dloss / N.",
    ),
    (
        "dx = dx + dz @ part.T",
        "dx = dz @ part.T",
        "Every class's logit depends on all of x: dx is a sum over the chunks, and the rule kept "
        "only the last chunk's part.",
    ),
)
