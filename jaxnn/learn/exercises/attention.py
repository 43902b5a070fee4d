"""Attention, one causal head: each position averages the values of those it sees.

q (T, D), k (T, D): queries and keys of T positions; v (T, E): their values;  y (T, E)
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.ops.attention import attention as library_attention

LESSON = "attention"
INPUTS = {"q": "(T, D)", "k": "(T, D)", "v": "(T, E)"}
OUTPUT = {"y": "(T, E)"}
HINTS = (
    "It is two matrix products with a softmax between. Go back through the second product, then "
    "the softmax of each row, then the first product.",
    "For y = p @ v: dp = dy @ v.T and dv = p.T @ dy. Softmax, whose output is p, takes from dp "
    "its average over the row, weighted by p, and multiplies by p.",
    "Where p is 0 because a key is hidden, the cotangent of the score is 0 by itself. The scale "
    "1 / sqrt(D) belongs to both dq and dk, and dk needs the transpose of dz.",
)
GRADES = ("easy", "fused", "memory")
BUGS = (
    (
        "p * (dp - (p * dp).sum(-1, keepdims=True))",
        "p * (dp - dp.mean(-1, keepdims=True))",
        "Softmax takes off the average over the row weighted by p, not the plain mean.",
    ),
    ("dz.T @ q", "dz @ q", "A key's cotangent adds up over the queries that see it: transpose."),
)


def forward(q: Array, k: Array, v: Array) -> Array:
    """Compute scores, hide later positions, normalise each row, average the values."""
    z = q @ k.T / q.shape[-1] ** 0.5
    s = jnp.where(jnp.tril(jnp.ones(z.shape, bool)), z, -jnp.inf)
    e = jnp.exp(s - lax.stop_gradient(s.max(-1, keepdims=True)))
    total = e.sum(-1, keepdims=True)
    p = e / total
    y = p @ v
    return y


def steps(
    q: Array,
    k: Array,
    v: Array,
    z: Array,
    s: Array,
    e: Array,
    total: Array,
    p: Array,
    y: Array,
    dy: Array,
) -> dict[str, Array]:
    """Go back through the lines of the forward."""
    dp = dy @ v.T
    dv = p.T @ dy
    dtotal = -(dp * p).sum(-1, keepdims=True) / total
    de = dp / total + dtotal
    ds = de * e
    dz = jnp.where(jnp.tril(jnp.ones(z.shape, bool)), ds, 0)
    dq = dz @ k / q.shape[-1] ** 0.5
    dk = dz.T @ q / q.shape[-1] ** 0.5
    return {"p": dp, "v": dv, "total": dtotal, "e": de, "s": ds, "z": dz, "q": dq, "k": dk}


def attention_fwd(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    """Compute the averages; the inputs and the weights p are saved."""
    z = q @ k.T / q.shape[-1] ** 0.5
    p = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones(z.shape, bool)), z, -jnp.inf))
    return p @ v, (q, k, v, p)


def attention_bwd(
    saved: tuple[Array, Array, Array, Array], dy: Array
) -> tuple[Array, Array, Array]:
    """Return dq, dk and dv."""
    q, k, v, p = saved
    dp = dy @ v.T
    dz = p * (dp - (p * dp).sum(-1, keepdims=True)) / q.shape[-1] ** 0.5
    return dz @ k, dz.T @ q, p.T @ dy


def example(key: Array) -> tuple[Array, Array, Array]:
    """Draw queries, keys and values of five positions."""
    a, b, c = jax.random.split(key, 3)
    q, k = jax.random.normal(a, (5, 3)), jax.random.normal(b, (5, 3))
    return q, k, jax.random.normal(c, (5, 4))


def library(q: Array, k: Array, v: Array) -> Array:
    """Return what the library's op gives."""
    one_head = (a[None, :, None] for a in (q, k, v))
    y: Array = library_attention(*one_head, causal=True)[0, :, 0]
    return y
