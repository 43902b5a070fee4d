"""A recurrent cell and causal attention, with hand-written gradients that may be mistaken."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from experiments.faulty_layers import (
    HEAD,
    SLOPES,
    Batch,
    Fault,
    Params,
    System,
    draw,
    draw_labels,
    head_bwd,
    head_loss,
    slope,
    softmax,
)

HEADS = 2


def make_rnn(seed: int, size: int, dtype: Any) -> tuple[Params, Batch]:
    """Sequences [N, T, D]; a state of H numbers."""
    n, steps, d, hidden, k = ((5, 4, 3, 6, 4), (9, 7, 5, 12, 6))[size]
    rng = np.random.default_rng(seed)
    params = draw(
        rng, dtype, wx=(d, hidden), wh=(hidden, hidden), bh=(hidden,), h0=(hidden,),
        w=(hidden, k), b=(k,),
    )  # fmt: skip
    return params, (jnp.asarray(rng.normal(size=(n, steps, d)), dtype), draw_labels(rng, n, k))


def _states(params: Params, x: Array) -> tuple[Array, Array, Array]:
    """The states before and after each step and the pre-activations, [T, N, H] each."""

    def step(h: Array, x: Array) -> tuple[Array, tuple[Array, Array, Array]]:
        z = x @ params["wx"] + h @ params["wh"] + params["bh"]
        after = jnp.tanh(z)
        return after, (h, after, z)

    start = jnp.broadcast_to(params["h0"], (len(x), *params["h0"].shape))
    _, states = lax.scan(step, start, x.swapaxes(0, 1))
    before, after, z = states
    return before, after, z


def rnn_loss(params: Params, batch: Batch) -> Array:
    """CE of the last state, h_t = tanh(x_t wx + h_{t-1} wh + bh)."""
    x, labels = batch
    return head_loss(_states(params, x)[1][-1], params, labels)


def rnn_grad(params: Params, batch: Batch, fault: Fault = None) -> Params:
    """Backwards in time: dz_t = dh_t (1 - h_t^2);  dh_{t-1} = dz_t wh'."""
    x, labels = batch
    before, after, z = _states(params, x)
    dh, grads = head_bwd(after[-1], params, labels, fault)
    wh = params["wh"] if fault == "weight not transposed" else params["wh"].T

    def step(dh: Array, saved: tuple[Array, Array]) -> tuple[Array, Array]:
        z, h = saved
        dz = dh * slope("tanh", z, h, dh, fault)
        return jnp.zeros_like(dh) if fault == "carry detached" else dz @ wh, dz

    used = before if fault == "slope of the state before" else after
    dh, dz = lax.scan(step, dh, (z, used), reverse=True)
    xs = x.swapaxes(0, 1)
    if fault == "time not reversed":
        xs = xs[::-1]
    h = after if fault == "state after the step" else before
    if fault == "last step skipped":
        xs, h, dz = xs[:-1], h[:-1], dz[:-1]
    dwh = h[-1].T @ dz[-1] if fault == "steps not summed" else jnp.einsum("tni,tnj->ij", h, dz)
    dbh = dz.mean(0).sum(0) if fault == "bias averaged over time" else dz.sum((0, 1))
    dh0 = dh.sum(0)
    return grads | {
        "wx": jnp.einsum("tni,tnj->ij", xs, dz),
        "wh": dwh.T if fault == "gradient transposed" else dwh,
        "bh": dbh,
        "h0": jnp.zeros_like(dh0) if fault == "initial state forgotten" else dh0,
    }


def make_attention(seed: int, size: int, dtype: Any) -> tuple[Params, Batch]:
    """Sequences [N, T, D]; a model of E numbers, as two heads."""
    n, steps, d, e, k = ((3, 5, 4, 6, 4), (5, 7, 6, 12, 8))[size]
    rng = np.random.default_rng(seed)
    params = draw(
        rng, dtype, we=(d, e), wq=(e, e), wk=(e, e), wv=(e, e), wo=(e, e), w=(e, k), b=(k,)
    )
    # Sharper scores than at the start of training: where all are near 0, much looks alike.
    params |= {"wq": 2 * params["wq"], "wk": 2 * params["wk"]}
    return params, (jnp.asarray(rng.normal(size=(n, steps, d)), dtype), draw_labels(rng, n, k))


def _split(x: Array) -> Array:
    """[N, T, E] as heads [N, HEADS, T, E / HEADS]."""
    n, steps, e = x.shape
    return x.reshape(n, steps, HEADS, e // HEADS).swapaxes(1, 2)


def _merge(x: Array) -> Array:
    """Heads [N, HEADS, T, E / HEADS] as [N, T, E]."""
    n, _, steps, d = x.shape
    return x.swapaxes(1, 2).reshape(n, steps, HEADS * d)


def _probabilities(scores: Array, ahead: int | None = 0) -> Array:
    """Softmax over the keys up to so many steps ahead of the query; None for all of them."""
    if ahead is not None:
        mask = jnp.tril(jnp.ones(scores.shape[-2:], bool), ahead)
        scores = jnp.where(mask, scores, -jnp.inf)
    return softmax(scores)


def attention_loss(params: Params, batch: Batch) -> Array:
    """CE of the mean over time of e + attention(e), e = x we."""
    x, labels = batch
    e = x @ params["we"]
    q, k, v = (_split(e @ params[name]) for name in ("wq", "wk", "wv"))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    y = e + _merge(_probabilities(scores) @ v) @ params["wo"]
    return head_loss(y.mean(1), params, labels)


def attention_grad(params: Params, batch: Batch, fault: Fault = None) -> Params:
    """ds = p (dp - sum dp p);  dq = ds k / sqrt(d);  dk = ds' q / sqrt(d);  dv = p' do."""
    x, labels = batch
    e = x @ params["we"]
    q, k, v = (_split(e @ params[name]) for name in ("wq", "wk", "wv"))
    scale = 1 / math.sqrt(q.shape[-1])
    scores = q @ k.mT * scale
    p = _probabilities(scores)
    o = _merge(p @ v)
    steps = x.shape[1]
    dm, grads = head_bwd((e + o @ params["wo"]).mean(1), params, labels, fault)
    dy = jnp.broadcast_to(dm[:, None] / steps, e.shape)

    dwo = _outer(o, dy)
    do = dy @ params["wo"].T
    do = do.reshape(v.shape) if fault == "heads merged without a transpose" else _split(do)
    if fault == "one head left out":
        do = do.at[:, 0].set(0)
    if fault == "causal mask ignored":  # recomputed from the scores, as a fused kernel does
        p = _probabilities(scores, None)
    if fault == "causal mask shifted":
        p = _probabilities(scores, 1)
    dv = (scores if fault == "scores for probabilities" else p).mT @ do
    dp = do @ v.mT
    ds = (
        p * dp if fault == "softmax without its sum" else p * (dp - (dp * p).sum(-1, keepdims=True))
    )
    ds *= {"scale left out": 1, "scale taken twice": scale * scale}.get(fault or "", scale)
    dq, dk = _merge(ds @ k), _merge((ds if fault == "scores not transposed" else ds.mT) @ q)
    dv = _merge(dv)

    wq = params["wq"] if fault == "weight not transposed" else params["wq"].T
    de = dq @ wq + dk @ params["wk"].T
    if fault != "path through the values forgotten":
        de += dv @ params["wv"].T
    if fault != "skip connection forgotten":
        de += 2 * dy if fault == "skip connection twice" else dy
    dwq, dwk = _outer(e, dq), _outer(e, dk)
    if fault == "queries and keys swapped":
        dwq, dwk = dwk, dwq
    return grads | {
        "we": _outer(x, de),
        "wq": dwq,
        "wk": dwk,
        "wv": _outer(e, dv),
        "wo": dwo.T if fault == "gradient transposed" else dwo,
    }


def _outer(x: Array, dy: Array) -> Array:
    """dw of y = x w for sequences [N, T, ...]."""
    return jnp.einsum("nti,ntj->ij", x, dy)


_RNN = (
    *HEAD, *SLOPES["tanh"], "weight not transposed", "gradient transposed", "carry detached",
    "state after the step", "slope of the state before", "last step skipped", "steps not summed",
    "time not reversed", "bias averaged over time", "initial state forgotten",
)  # fmt: skip
_ATTENTION = (
    *HEAD, "weight not transposed", "gradient transposed", "scale left out", "scale taken twice",
    "causal mask ignored", "causal mask shifted", "softmax without its sum",
    "scores for probabilities", "scores not transposed", "queries and keys swapped",
    "skip connection forgotten", "skip connection twice", "path through the values forgotten",
    "one head left out", "heads merged without a transpose",
)  # fmt: skip
SYSTEMS = (
    System("recurrent cell", make_rnn, rnn_loss, rnn_grad, _RNN),
    System("attention", make_attention, attention_loss, attention_grad, _ATTENTION),
)
