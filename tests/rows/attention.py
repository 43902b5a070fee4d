"""Rows of attention."""

import numpy as np

from jaxnn.ops.attention import attention
from rows import Row

BLOCKS = {"causal": True, "window": 3, "scale": 0.7, "block": 4}


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


def visible(t, s, causal, window):
    """The same rule as a matrix, a diagonal at a time."""
    seen = np.ones((t, s), bool)
    if causal:
        seen = np.tri(t, s, s - t, dtype=bool)
    if window:
        seen &= ~np.tri(t, s, s - t - window, dtype=bool)
    return seen


def attend(q, k, v, mask, causal=False, window=None, scale=None, block=None):
    """One query and head at a time, over the keys it may see."""
    (n, t, h, d), (_, s, g, e) = q.shape, v.shape
    seen = np.broadcast_to(visible(t, s, causal, window), (n, h, t, s))
    seen = seen if mask is None else seen & mask
    y = np.zeros((n, t, h, e))
    for a, i, b in np.ndindex(n, t, h):
        keys = np.flatnonzero(seen[a, b, i])
        if len(keys):
            scores = k[a, keys, b // (h // g)] @ q[a, i, b] * (scale or 1 / np.sqrt(d))
            weights = np.exp(scores - scores.max())
            y[a, i, b] = weights / weights.sum() @ v[a, keys, b // (h // g)]
    return y


def torch_attend(torch, q, k, v, mask, causal=False, window=None, scale=None, block=None):
    seen = torch.tensor(visible(q.shape[1], k.shape[1], causal, window))
    return torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)),
        attn_mask=seen if mask is None else seen & mask,
        scale=scale,
        enable_gqa=True,
    ).transpose(1, 2)


ROWS = {
    "attention": Row(attention, {}, attend, drawn("HTS"), torch_attend),
    f"attention {BLOCKS}": Row(attention, BLOCKS, attend, drawn("N1TS"), torch_attend),
}
