"""Attention of a block of queries, the keys taken a few at a time: an online softmax.

q (T, D): queries; k (S, D): keys; v (S, E): values;  y (T, E)
y_i = sum_j p_ij v_j,  p_i = softmax(s_i),  s_ij = q_i . k_j / sqrt(D)
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.ops.attention import attention

LESSON = "blockwise_attention"
INPUTS = {"q": "(T, D)", "k": "(S, D)", "v": "(S, E)"}
OUTPUT = {"y": "(T, E)"}
HINTS = (
    "Of each query one number is enough to have its weights again: log_sum, the logarithm of the "
    "sum of exp(s). For p = exp(s - log_sum), whichever keys are looked at.",
    "Forward: keep the largest score so far, the sum and the weighted sum of the values, both less "
    "that largest; a new block that has a larger one shrinks both by exp(old - new).",
    "Backward: a score gets p * (dp - sum_l p_l dp_l) with dp = dy v^T. That sum over all keys is "
    "dy . y, which needs no keys: compute it once, before the blocks. A block has its own rows of "
    "dk and dv; dq is a sum over the blocks.",
)
GRADES = ("easy", "fused", "memory")


def forward(q: Array, k: Array, v: Array) -> Array:
    """Return the average of the values, weighted by how well each query fits the keys."""
    s = q @ k.T * q.shape[1] ** -0.5
    log_sum = jax.nn.logsumexp(s, axis=1, keepdims=True)
    p = jnp.exp(s - log_sum)
    y = p @ v
    return y


def steps(
    q: Array, k: Array, v: Array, s: Array, log_sum: Array, p: Array, y: Array, dy: Array
) -> dict[str, Array]:
    """Return the cotangent of every line and input, last line first."""
    dv = p.T @ dy
    dp = dy @ v.T
    dlog_sum = -(dp * p).sum(1, keepdims=True)
    ds = dp * p + dlog_sum * p
    dk = ds.T @ q * q.shape[1] ** -0.5
    dq = ds @ k * q.shape[1] ** -0.5
    return {"s": ds, "log_sum": dlog_sum, "p": dp, "q": dq, "k": dk, "v": dv}


def online_softmax_attention_fwd(
    q: Array, k: Array, v: Array, *, block: int = 2
) -> tuple[Array, tuple[Array, Array, Array, Array, Array]]:
    """Return y, and what the backward needs: the inputs, y, and one number per query."""
    largest = jnp.full((q.shape[0], 1), -jnp.inf, q.dtype)
    total = jnp.zeros_like(largest)
    y = jnp.zeros((q.shape[0], v.shape[1]), v.dtype)
    for first in range(0, k.shape[0], block):
        s = q @ k[first : first + block].T * q.shape[1] ** -0.5
        larger = jnp.maximum(largest, s.max(1, keepdims=True))
        shrink, e = jnp.exp(largest - larger), jnp.exp(s - larger)
        total = shrink * total + e.sum(1, keepdims=True)
        y = shrink * y + e @ v[first : first + block]
        largest = larger
    y = y / total
    return y, (q, k, v, y, largest + jnp.log(total))


def online_softmax_attention_bwd(
    saved: tuple[Array, Array, Array, Array, Array], dy: Array, *, block: int = 2
) -> tuple[Array, Array, Array]:
    """Return dq, dk, dv; the scores are computed again, block by block."""
    q, k, v, y, log_sum = saved
    dot = (dy * y).sum(1, keepdims=True)
    dq, dk, dv = jnp.zeros_like(q), jnp.zeros_like(k), jnp.zeros_like(v)
    for first in range(0, k.shape[0], block):
        k_block, v_block = k[first : first + block], v[first : first + block]
        p = jnp.exp(q @ k_block.T * q.shape[1] ** -0.5 - log_sum)
        ds = p * (dy @ v_block.T - dot) * q.shape[1] ** -0.5
        dq = dq + ds @ k_block
        dk = dk.at[first : first + block].set(ds.T @ q)
        dv = dv.at[first : first + block].set(p.T @ dy)
    return dq, dk, dv


def example(key: Array) -> tuple[Array, Array, Array]:
    """Return a small point: no two dimensions alike, keys that a block of two does not divide."""
    kq, kk, kv = jax.random.split(key, 3)
    q, k = jax.random.normal(kq, (3, 4)), jax.random.normal(kk, (5, 4))
    return q, k, jax.random.normal(kv, (5, 2))


def library(q: Array, k: Array, v: Array) -> Array:
    """Return the same, by the library's op: one example, one head."""
    return attention(q[None, :, None], k[None, :, None], v[None, :, None])[0, :, 0]


BUGS = (
    (
        "dot = (dy * y).sum(1, keepdims=True)",
        "dot = (dy * y).mean(1, keepdims=True)",
        "dy . y is a sum over the features of y: it stands for the sum over all keys of p dp.",
    ),
    (
        "dq = dq + ds @ k_block",
        "dq = ds @ k_block",
        "A query looks at the keys of every block: dq is a sum over the blocks, and the rule kept "
        "only the last block's part.",
    ),
    (
        "p = jnp.exp(q @ k_block.T * q.shape[1] ** -0.5 - log_sum)",
        "p = jax.nn.softmax(q @ k_block.T * q.shape[1] ** -0.5, axis=1)",
        "The weights of a block were made to sum to 1 within the block; they sum to 1 over all "
        "keys. Only log_sum knows of the keys elsewhere.",
    ),
)
