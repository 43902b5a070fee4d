"""A transformer block: attention and a feed-forward layer, each behind a norm and beside a skip.

params: scale_1, scale_2 (C,);  wq, wk, wv, wo (C, C);  up (C, F), down (F, C)
x (N, T, C): N sequences of T tokens of C features;  y (N, T, C)

x_mid = x + causal_attention(rms_norm(x));   y = x_mid + gelu(rms_norm(x_mid) up) down
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.models import transformer
from jaxnn.models.transformer_params import Block, Config, FeedForward
from jaxnn.ops.multi_head import MultiHead
from jaxnn.ops.normalisation import Scale

LESSON = "gpt"
INPUTS = {"params": "a dictionary of the arrays above", "x": "(N, T, C)"}
OUTPUT = {"y": "(N, T, C)"}
HINTS = (
    "Write the backward as the mirror image of the forward: the last line first. Each of the two "
    "sums makes two paths of the cotangent: one goes past the branch, one through it.",
    "Through a branch: back through the last matrix, the middle (GELU, or the softmax), the first "
    "matrices, the norm. Then add what passed by. The normed rows go to q, k and v: their "
    "cotangent is a sum of three.",
    "The softmax: ds = p (dp - sum of p dp over the keys), with dp from dy and v; a hidden "
    "score has p = 0, so ds is 0 there. dq is ds k / sqrt(Dh), dk is ds^T q / sqrt(Dh), per head.",
)
GRADES = ("fused",)
HEADS = 2
EPS = 1e-5

Saved = tuple[dict[str, Array], tuple[Array, ...]]


def forward(params: dict[str, Array], x: Array) -> Array:
    """Return what one layer of a GPT makes of x."""
    n, t, c = x.shape
    x_hat = x * ((x**2).mean(-1, keepdims=True) + EPS) ** -0.5
    a = params["scale_1"] * x_hat
    q, k, v = ((a @ params[w]).reshape(n, t, HEADS, c // HEADS) for w in ("wq", "wk", "wv"))
    s = jnp.einsum("nthd,nshd->nhts", q, k) * (c // HEADS) ** -0.5
    s = jnp.where(jnp.tril(jnp.ones((t, t), bool)), s, -jnp.inf)
    p = jax.nn.softmax(s, axis=-1)
    o = jnp.einsum("nhts,nshd->nthd", p, v).reshape(n, t, c)
    x_mid = x + o @ params["wo"]
    x_hat = x_mid * ((x_mid**2).mean(-1, keepdims=True) + EPS) ** -0.5
    f = params["scale_2"] * x_hat
    h = f @ params["up"]
    g = jax.nn.gelu(h, approximate=True)
    return x_mid + g @ params["down"]


def transformer_block_fwd(params: dict[str, Array], x: Array) -> tuple[Array, Saved]:
    """Return y, and what the backward needs."""
    n, t, c = x.shape
    rstd_1 = ((x**2).mean(-1, keepdims=True) + EPS) ** -0.5
    x_hat_1 = x * rstd_1
    a = params["scale_1"] * x_hat_1
    q, k, v = ((a @ params[w]).reshape(n, t, HEADS, c // HEADS) for w in ("wq", "wk", "wv"))
    s = jnp.einsum("nthd,nshd->nhts", q, k) * (c // HEADS) ** -0.5
    s = jnp.where(jnp.tril(jnp.ones((t, t), bool)), s, -jnp.inf)
    p = jnp.exp(s - s.max(-1, keepdims=True))
    p = p / p.sum(-1, keepdims=True)
    o = jnp.einsum("nhts,nshd->nthd", p, v).reshape(n, t, c)
    x_mid = x + o @ params["wo"]
    rstd_2 = ((x_mid**2).mean(-1, keepdims=True) + EPS) ** -0.5
    x_hat_2 = x_mid * rstd_2
    h = (params["scale_2"] * x_hat_2) @ params["up"]
    bend = jnp.tanh((2 / jnp.pi) ** 0.5 * (h + 0.044715 * h**3))
    y = x_mid + (0.5 * h * (1 + bend)) @ params["down"]
    return y, (params, (x_hat_1, rstd_1, q, k, v, p, o, x_hat_2, rstd_2, h, bend))


def transformer_block_bwd(saved: Saved, dy: Array) -> tuple[dict[str, Array], Array]:
    """Return the cotangents of params and of x."""
    params, kept = saved
    x_hat_1, rstd_1, q, k, v, p, o, x_hat_2, rstd_2, h, bend = kept
    n, t, c = dy.shape
    # y = x_mid + g down,  g = gelu(h),  h = (scale_2 x_hat_2) up
    slope = (2 / jnp.pi) ** 0.5 * (1 + 3 * 0.044715 * h**2)
    dg = dy @ params["down"].T
    dh = dg * (0.5 * (1 + bend) + 0.5 * h * (1 - bend**2) * slope)
    df = dh @ params["up"].T
    dx_hat = params["scale_2"] * df
    dx = dy + rstd_2 * (dx_hat - x_hat_2 * (dx_hat * x_hat_2).mean(-1, keepdims=True))
    # x_mid = x + o wo,  o = p v,  p = softmax(q k^T / sqrt(Dh)),  q, k, v = a wq, a wk, a wv
    do = (dx @ params["wo"].T).reshape(v.shape)
    dv = jnp.einsum("nhts,nthd->nshd", p, do)
    dp = jnp.einsum("nthd,nshd->nhts", do, v)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) * q.shape[-1] ** -0.5
    dq = jnp.einsum("nhts,nshd->nthd", ds, k).reshape(n, t, c)
    dk = jnp.einsum("nhts,nthd->nshd", ds, q).reshape(n, t, c)
    dv = dv.reshape(n, t, c)
    da = dq @ params["wq"].T + dk @ params["wk"].T + dv @ params["wv"].T
    dx_hat = params["scale_1"] * da
    dx_in = dx + rstd_1 * (dx_hat - x_hat_1 * (dx_hat * x_hat_1).mean(-1, keepdims=True))
    a = params["scale_1"] * x_hat_1
    dparams = {
        "scale_1": (da * x_hat_1).sum((0, 1)),
        "wq": jnp.einsum("nti,nto->io", a, dq),
        "wk": jnp.einsum("nti,nto->io", a, dk),
        "wv": jnp.einsum("nti,nto->io", a, dv),
        "wo": jnp.einsum("nti,nto->io", o, dx),
        "scale_2": (df * x_hat_2).sum((0, 1)),
        "up": jnp.einsum("nti,nto->io", params["scale_2"] * x_hat_2, dh),
        "down": jnp.einsum("nti,nto->io", 0.5 * h * (1 + bend), dy),
    }
    return dparams, dx_in


def example(key: Array) -> tuple[dict[str, Array], Array]:
    """Return a small point: two sequences of five tokens, four features, two heads, six units."""
    c, f = 4, 6
    square = dict.fromkeys(("wq", "wk", "wv", "wo"), (c, c))
    shapes = {"scale_1": (c,), **square, "scale_2": (c,), "up": (c, f), "down": (f, c)}
    kx, *keys = jax.random.split(key, 1 + len(shapes))
    params = {
        name: jax.random.uniform(k, shape, minval=0.5, maxval=1.5)
        if len(shape) == 1
        else 0.7 * jax.random.normal(k, shape)
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    return params, jax.random.normal(kx, (2, 5, c))


def library(params: dict[str, Array], x: Array) -> Array:
    """Return the same, by the library's model."""
    block = Block(
        Scale(params["scale_1"], None),
        MultiHead(params["wq"], params["wk"], params["wv"], params["wo"]),
        Scale(params["scale_2"], None),
        FeedForward(params["up"], params["down"]),
    )
    config = Config(width=x.shape[-1], heads=HEADS, norm="rms", biases=False, eps=EPS)
    (y, _), _ = transformer.block_fwd(block, x, None, config)
    return y


BUGS = (
    (
        "dx_in = dx + rstd_1",
        "dx_in = dy + rstd_1",
        "What passes the attention by is the cotangent of x_mid, the whole sum of the second half, "
        "and not dy, which is the cotangent of the block's end.",
    ),
    (
        'da = dq @ params["wq"].T + dk @ params["wk"].T + dv @ params["wv"].T',
        'da = dq @ params["wq"].T + dk @ params["wk"].T',
        "The normed rows make queries, keys and values: three paths, and that of the values was "
        "left out.",
    ),
    (
        "dp - (p * dp).sum(-1, keepdims=True)",
        "dp - (p * dp).sum(-2, keepdims=True)",
        "The weights of one query sum to 1 over the keys, the last axis: the softmax's backward "
        "sums over that axis, not over the queries.",
    ),
)
