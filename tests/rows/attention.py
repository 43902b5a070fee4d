"""Rows of attention."""

import jax
import numpy as np
import scipy.special

from jaxnn.ops.attention import attention
from rows import Row

BLOCKS = {"causal": True, "window": 3, "scale": 0.7, "block": 4}
CAPPED = {"softcap": 1.5, "block": 3}
DROPPED = {"causal": True, "rate": 0.4, "block": 2}


def drawn(mask_shape):
    """Two keys more than queries; a mask of that shape, of which the first row hides everything."""

    def draw(rng, shape):
        n, t, g = shape[0], shape[-1] + 2, 1 + shape[0] % 2
        q, k = rng.normal(size=(n, t, 2 * g, 3)), rng.normal(size=(n, t + 2, g, 3))
        v = rng.normal(size=(n, t + 2, g, 2))
        sizes = {"N": n, "H": 2 * g, "T": t, "S": t + 2, "1": 1}
        mask = rng.random([sizes[c] for c in mask_shape]) < 0.7
        mask[(slice(1),) * (mask.ndim - 1)] = False
        return q, k, v, mask

    return draw


def biased(mask_shape, bias_shape):
    """The same, with a bias of that shape in which some entries hide."""

    def draw(rng, shape):
        inputs = drawn(mask_shape)(rng, shape)
        n, t, h, _ = inputs[0].shape
        sizes = {"N": n, "H": h, "T": t, "S": t + 2, "1": 1}
        bias = rng.normal(size=[sizes[c] for c in bias_shape])
        bias[rng.random(bias.shape) < 0.1] = -np.inf
        return *inputs, bias

    return draw


def keyed(rng, shape):
    inputs = biased("HTS", "N1TS")(rng, shape)
    return *inputs, jax.random.key(int(rng.integers(1000)))


def kept(key, rate, n, h, t, s):
    """The draws of dropout one pair of a query and a key at a time, (N, H, T, S)."""
    words = jax.random.bits(key, (2,), "uint32")
    key = jax.random.wrap_key_data(words, impl="threefry2x32")

    def of_pair(pair):
        own = jax.random.fold_in(jax.random.fold_in(key, pair // s), pair % s)
        return jax.random.bits(own, (n, h), "uint32")

    drawn = np.asarray(jax.vmap(of_pair)(np.arange(t * s))).reshape(t, s, n, h)
    return drawn.transpose(2, 3, 0, 1) / 2**32 >= rate


def visible(t, s, causal, window):
    """The same rule as a matrix, a diagonal at a time."""
    seen = np.ones((t, s), bool)
    if causal:
        seen = np.tri(t, s, s - t, dtype=bool)
    if window:
        seen &= ~np.tri(t, s, s - t - window, dtype=bool)
    return seen


def attend(
    q,
    k,
    v,
    mask,
    bias=None,
    key=None,
    causal=False,
    window=None,
    scale=None,
    block=None,
    softcap=None,
    rate=0.0,
):
    """One query and head at a time, over the keys it may see."""
    (n, t, h, d), (_, s, g, e) = q.shape, v.shape
    seen = np.broadcast_to(visible(t, s, causal, window), (n, h, t, s))
    seen = seen if mask is None else seen & mask
    bias = np.broadcast_to(0 if bias is None else bias, (n, h, t, s))
    seen = seen & (bias > -np.inf)
    share = np.ones((n, h, t, s)) if key is None else kept(key, rate, n, h, t, s) / (1 - rate)
    y = np.zeros((n, t, h, e))
    for a, i, b in np.ndindex(n, t, h):
        keys = np.flatnonzero(seen[a, b, i])
        if len(keys):
            scores = k[a, keys, b // (h // g)] @ q[a, i, b] * (scale or 1 / np.sqrt(d))
            scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
            weights = scipy.special.softmax(scores + bias[a, b, i, keys])
            y[a, i, b] = weights * share[a, b, i, keys] @ v[a, keys, b // (h // g)]
    return y


def torch_attend(
    torch, q, k, v, mask, bias=None, causal=False, window=None, scale=None, block=None
):
    seen = torch.tensor(visible(q.shape[1], k.shape[1], causal, window))
    seen = seen if mask is None else seen & mask
    return torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)),
        attn_mask=seen if bias is None else torch.where(seen, bias, -torch.inf),
        scale=scale,
        enable_gqa=True,
    ).transpose(1, 2)


def torch_capped(torch, q, k, v, mask, bias, softcap, block):
    """PyTorch's own attention has no cap: by the parts that its flexible one is defined by."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = softcap * torch.tanh(q @ k.mT / q.shape[-1] ** 0.5 / softcap) + bias
    weights = torch.softmax(scores.masked_fill(~mask, -torch.inf), -1)
    return (weights.nan_to_num() @ v).transpose(1, 2)


ROWS = {
    "attention": Row(attention, {}, attend, drawn("HTS"), torch_attend),
    f"attention {BLOCKS}": Row(attention, BLOCKS, attend, biased("N1TS", "NH1S"), torch_attend),
    f"attention {CAPPED}": Row(attention, CAPPED, attend, biased("N1TS", "1TS"), torch_capped),
    f"attention {DROPPED}": Row(attention, DROPPED, attend, keyed),
}
