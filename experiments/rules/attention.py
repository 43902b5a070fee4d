"""Attention and its parts with a rule: rotary positions, softmax, blocks of keys, a mask."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from experiments.rules.rule import Generator, Mistake, Rule, normal, normals, wide

BLOCK = 3


def rotary(mistake: Mistake) -> Any:
    """The halves of x [B, T, D] rotated by position times frequency; dx is dy rotated back."""

    def turned(x: Array, positions: Array, direction: int) -> Array:
        half = x.shape[-1] // 2
        frequencies = 100.0 ** (-jnp.arange(half) / half)
        angle = positions[:, None] * frequencies
        cos, sin = jnp.cos(angle).astype(x.dtype), (direction * jnp.sin(angle)).astype(x.dtype)
        a, b = x[..., :half], x[..., half:]
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    @jax.custom_vjp
    def f(x: Array, positions: Array) -> Array:
        return turned(x, positions, 1)

    def f_fwd(x: Array, positions: Array) -> Any:
        return f(x, positions), positions

    def f_bwd(positions: Array, dy: Array) -> Any:
        if mistake == "halves exchanged":
            dy = jnp.roll(dy, dy.shape[-1] // 2, -1)
        if mistake == "positions from 1":
            positions = positions + 1
        return turned(dy, positions, 1 if mistake == "rotated on" else -1), None

    f.defvjp(f_fwd, f_bwd)
    return f


def _plain_rotary(x: Array, positions: Array) -> Array:
    half = x.shape[-1] // 2
    turn = jnp.exp(1j * positions[:, None] * 100.0 ** (-jnp.arange(half) / half))
    z = (x[..., :half] + 1j * x[..., half:]) * turn
    return jnp.concatenate([z.real, z.imag], -1)


def _tokens(rng: Generator, dtype: Any) -> tuple[Array, ...]:
    return normal(rng, dtype, 3, 5, 4), jnp.arange(5)


def softmax(mistake: Mistake) -> Any:
    """p = softmax of each row;  dx = p (dp - sum(p dp))."""

    @jax.custom_vjp
    def f(x: Array) -> Array:
        e = jnp.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def f_fwd(x: Array) -> Any:
        p = f(x)
        return p, p

    def f_bwd(p: Array, dp: Array) -> Any:
        if mistake == "only the diagonal":
            return (dp * p * (1 - p),)
        if mistake == "sum forgotten":
            return (dp * p,)
        axis = 0 if mistake == "sum over the other axis" else -1
        return (p * (dp - (p * dp).sum(axis, keepdims=True)),)

    f.defvjp(f_fwd, f_bwd)
    return f


def blocked(mistake: Mistake) -> Any:
    """softmax(q k' / sqrt(D)) v, with keys in blocks of BLOCK in either direction.

    Forwards the maximum, the sum and the weighted values are carried over the blocks. Backwards
    p is had again from each row's log-sum-exp:  ds = p (do v' - delta), delta = sum(o do).
    """

    def blocks(k: Array, v: Array) -> tuple[Array, Array]:
        return k.reshape(-1, BLOCK, k.shape[1]), v.reshape(-1, BLOCK, v.shape[1])

    def forward(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
        scale = q.shape[1] ** -0.5

        def step(carry: Any, block: Any) -> Any:
            top, total, out = carry
            s = wide(scale * q @ block[0].T)
            new = jnp.maximum(top, s.max(1))
            p, keep = jnp.exp(s - new[:, None]), jnp.exp(top - new)
            out = keep[:, None] * out + p @ wide(block[1])
            return (new, keep * total + p.sum(1), out), None

        start = wide(q[:, 0])
        zero = jnp.zeros_like(start)
        first = jnp.full_like(start, -jnp.inf), zero, jnp.zeros((len(q), v.shape[1]), start.dtype)
        (top, total, out), _ = lax.scan(step, first, blocks(k, v))
        return (out / total[:, None]).astype(q.dtype), top + jnp.log(total)

    @jax.custom_vjp
    def f(q: Array, k: Array, v: Array) -> Array:
        return forward(q, k, v)[0]

    def f_fwd(q: Array, k: Array, v: Array) -> Any:
        out, lse = forward(q, k, v)
        return out, (q, k, v, out, lse)

    def f_bwd(residuals: Any, dout: Array) -> Any:
        q, k, v, out, lse = residuals
        scale = q.shape[1] ** -0.5
        delta = (wide(out) * wide(dout)).sum(1, keepdims=True)

        def step(dq: Array, block: Any) -> Any:
            kb, vb = block
            p = jnp.exp(wide(scale * q @ kb.T) - lse[:, None])
            dp = wide(dout @ vb.T)
            ds = p * dp if mistake == "delta forgotten" else p * (dp - delta)
            if mistake != "scale left out":
                ds *= scale
            mine = ds @ wide(kb)
            dq = mine if mistake == "carry lost between blocks" else dq + mine
            return dq, (ds.T @ wide(q), p.T @ wide(dout))

        dq, (dk, dv) = lax.scan(step, jnp.zeros_like(wide(q)), blocks(k, v))
        return (
            dq.astype(q.dtype),
            dk.reshape(k.shape).astype(k.dtype),
            dv.reshape(v.shape).astype(v.dtype),
        )

    f.defvjp(f_fwd, f_bwd)
    return f


def _plain_attention(q: Array, k: Array, v: Array) -> Array:
    return jax.nn.softmax(q @ k.T / jnp.sqrt(q.shape[1])) @ v


def causal(mistake: Mistake) -> Any:
    """Attention of each position to itself and those before it."""

    def probabilities(q: Array, k: Array, shift: int = 0) -> Array:
        seen = jnp.tri(len(q), len(k), shift, dtype=bool)
        return jax.nn.softmax(jnp.where(seen, q @ k.T, -jnp.inf))

    @jax.custom_vjp
    def f(q: Array, k: Array, v: Array) -> Array:
        return probabilities(q, k) @ v

    def f_fwd(q: Array, k: Array, v: Array) -> Any:
        return f(q, k, v), (q, k, v)

    def f_bwd(residuals: Any, dout: Array) -> Any:
        q, k, v = residuals
        shift = {"mask shifted": 1, "mask ignored": len(k)}.get(mistake or "", 0)
        p = probabilities(q, k, shift)
        dp = dout @ v.T
        ds = p * (dp - (p * dp).sum(1, keepdims=True))
        return ds @ k, (ds if mistake == "scores not transposed" else ds.T) @ q, p.T @ dout

    f.defvjp(f_fwd, f_bwd)
    return f


def _plain_causal(q: Array, k: Array, v: Array) -> Array:
    e = jnp.tri(len(q)) * jnp.exp(jnp.einsum("id,jd->ij", q, k))
    return jnp.einsum("ij,jd->id", e, v) / e.sum(1, keepdims=True)


RULES = (
    Rule(
        "rotary embedding",
        rotary,
        _plain_rotary,
        _tokens,
        {
            "halves exchanged": "shifted, permuted, index, flip",
            "positions from 1": "shifted, wrong saved value",
            "rotated on": "sign, transpose",
        },
        exact=1e-6,
    ),
    Rule(
        "softmax",
        softmax,
        jax.nn.softmax,
        normals((5, 7)),
        {
            "only the diagonal": "missing term",
            "sum forgotten": "missing term, detached",
            "sum over the other axis": "wrong axis, not summed",
        },
    ),
    Rule(
        "attention in blocks of keys",
        blocked,
        _plain_attention,
        normals((5, 4), (6, 4), (6, 2)),
        {
            "delta forgotten": "missing term, detached",
            "scale left out": "factor",
            "carry lost between blocks": "missing term, detached, not summed",
        },
    ),
    Rule(
        "causal attention",
        causal,
        _plain_causal,
        normals((5, 3), (5, 3), (5, 2)),
        {
            "mask shifted": "mask, shifted",
            "mask ignored": "mask",
            "scores not transposed": "transpose",
        },
    ),
)
