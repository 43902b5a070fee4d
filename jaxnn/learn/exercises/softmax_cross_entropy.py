"""Softmax cross-entropy: the mean negative logarithm of the probability that the label is given.

z (N, K): logits of N examples for K classes; labels (N,): integers;  loss: one number, in nats
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn import ops

LESSON = "softmax_cross_entropy"
INPUTS = {"z": "(N, K)", "labels": "(N,) integers"}
OUTPUT = {"loss": "()"}
HINTS = (
    "The loss is a mean over N examples, so every example's cotangent has a factor 1/N.",
    "Logarithm of softmax: every logit of a row has a part in the row's sum. So each logit gets a "
    "gradient, not only the one of the label.",
    "Write p for the softmax of z and q for the labels as rows of zeros with a single one. The "
    "gradient of one row's loss is a difference of the two.",
)
GRADES = ("easy", "fused", "memory")
BUGS = (
    (
        "/ len(labels)",
        "",
        "The loss is a mean over the examples: its gradient has a factor 1/N.",
    ),
    ("(p - q)", "(q - p)", "Descent would go up: p - q raises what is too probable, and falls."),
)


def forward(z: Array, labels: Array) -> Array:
    """Compute the mean of -log p of the labels, the largest logit subtracted first."""
    top = jax.lax.stop_gradient(z.max(-1, keepdims=True))
    shifted = z - top
    e = jnp.exp(shifted)
    total = e.sum(-1, keepdims=True)
    log_p = shifted - jnp.log(total)
    found = jnp.take_along_axis(log_p, labels[:, None], -1)
    loss = -found.mean()
    return loss


def steps(
    z: Array,
    labels: Array,
    top: Array,
    shifted: Array,
    e: Array,
    total: Array,
    log_p: Array,
    found: Array,
    loss: Array,
    dloss: Array,
) -> dict[str, Array]:
    """Go back through the lines of the forward."""
    dfound = jnp.full_like(found, -dloss / len(labels))
    dlog_p = jax.nn.one_hot(labels, z.shape[-1], dtype=z.dtype) * dfound
    dtotal = -dlog_p.sum(-1, keepdims=True) / total
    de = jnp.broadcast_to(dtotal, e.shape)
    dshifted = dlog_p + de * e
    dz = dshifted
    return {
        "found": dfound,
        "log_p": dlog_p,
        "total": dtotal,
        "e": de,
        "shifted": dshifted,
        "z": dz,
    }


def softmax_cross_entropy_fwd(z: Array, labels: Array) -> tuple[Array, tuple[Array, Array]]:
    """Compute the loss; its inputs are saved."""
    log_p = jax.nn.log_softmax(z)
    return -jnp.take_along_axis(log_p, labels[:, None], -1).mean(), (z, labels)


def softmax_cross_entropy_bwd(saved: tuple[Array, Array], dloss: Array) -> tuple[Array, None]:
    """Return dz; labels have none."""
    z, labels = saved
    p = jax.nn.softmax(z)
    q = jax.nn.one_hot(labels, z.shape[-1], dtype=z.dtype)
    return dloss * (p - q) / len(labels), None


def example(key: Array) -> tuple[Array, Array]:
    """Draw logits, and labels of which two are alike."""
    return 1.5 * jax.random.normal(key, (4, 3)), jnp.asarray([2, 0, 1, 2])


def library(z: Array, labels: Array) -> Array:
    """Return what the library's op gives."""
    loss: Array = ops.cross_entropy.softmax_cross_entropy(z, labels)
    return loss
