"""Rows of attention, rotary embedding and the multi-head block."""

import jax
import numpy as np
import scipy.special

from jaxnn.ops.attention import attention
from jaxnn.ops.multi_head import MultiHead, multi_head
from jaxnn.ops.rotary import rotary
from rows import Row

BLOCKS = {"causal": True, "window": 3, "scale": 0.7, "block": 4}
CAPPED = {"softcap": 1.5, "block": 3}
DROPPED = {"causal": True, "rate": 0.4, "block": 2}
GROUPED = {"heads": 4, "kv_heads": 2, "causal": True, "window": 3, "rotary_base": 100.0}


def drawn(mask_shape):
    """Two keys more than queries; a mask of that shape, of which the first row hides everything."""

    def draw(rng, shape):
        n, t, g = shape[0], shape[-1] + 2, 1 + shape[0] % 2
        q, k = rng.normal(size=(n, t, 2 * g, 3)), rng.normal(size=(n, t + 2, g, 3))
        v = rng.normal(size=(n, t + 2, g, 2))
        sizes = {"N": n, "H": 2 * g, "T": t, "S": t + 2, "1": 1}
        mask = rng.random([sizes[c] for c in mask_shape]) < 0.7
        mask[(0,) * (mask.ndim - 1)] = False
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


def turning(rng, shape):
    n, t = shape[0], shape[-1]
    return rng.normal(size=(n, t, 3, 4)), rng.integers(0, 50, (n, t))


def turn(x, positions, base):
    """The halves as the real and imaginary parts of complex numbers, multiplied by e^(i theta)."""
    half = x.shape[-1] // 2
    theta = positions[..., None, None] / base ** (np.arange(half) / half)
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * theta)
    return np.concatenate([z.real, z.imag], -1)


def torch_turn(torch, x, positions, base):
    half = x.shape[-1] // 2
    theta = positions[..., None, None] / base ** (torch.arange(half, dtype=x.dtype) / half)
    z = torch.complex(*x.chunk(2, -1)) * torch.polar(torch.ones_like(theta), theta)
    return torch.cat([z.real, z.imag], -1)


def multi_input(rng, shape):
    size, outputs, t = 1 + shape[0] % 3, 2 + shape[0] % 4, shape[-1] + 2
    weights = [rng.normal(size=s) for s in ((size, 16), (size, 8), (size, 8), (16, outputs))]
    biases = [rng.normal(size=w.shape[1]) for w in weights]
    mask = rng.random((shape[0], 1, 1, t)) < 0.8
    positions = np.sort(rng.integers(0, 50, t))
    return MultiHead(*weights, *biases), rng.normal(size=(shape[0], t, size)), positions, mask


def multi(params, x, positions, mask, heads, kv_heads, rotary_base=None, **static):
    split = (heads, kv_heads, kv_heads)
    q, k, v = (
        (np.einsum("nti,io->nto", x, w) + (0 if b is None else b)).reshape(*x.shape[:2], h, -1)
        for w, b, h in zip(params[:3], params[4:7], split, strict=True)
    )
    if rotary_base:
        q, k = turn(q, positions, rotary_base), turn(k, positions, rotary_base)
    y = attend(q, k, v, mask, **static).reshape(*x.shape[:2], -1)
    return y @ params.wo + (0 if params.bo is None else params.bo)


def torch_multi(torch, params, x, positions, mask, heads, kv_heads, rotary_base=None, **static):
    linear, split = torch.nn.functional.linear, (heads, kv_heads, kv_heads)
    q, k, v = (
        linear(x, w.T, b).unflatten(-1, (h, -1))
        for w, b, h in zip(params[:3], params[4:7], split, strict=True)
    )
    if rotary_base:
        q, k = (torch_turn(torch, z, positions, rotary_base) for z in (q, k))
    y = torch_attend(torch, q, k, v, mask, **static).flatten(2)
    return linear(y, params.wo.T, params.bo)


ROWS = {
    "attention": Row(attention, {}, attend, drawn("HTS"), torch_attend),
    f"attention {BLOCKS}": Row(attention, BLOCKS, attend, biased("N1TS", "NH1S"), torch_attend),
    f"attention {CAPPED}": Row(attention, CAPPED, attend, biased("N1TS", "1TS"), torch_capped),
    f"attention {DROPPED}": Row(attention, DROPPED, attend, keyed),
    "rotary": Row(rotary, {"base": 100.0}, turn, turning, torch_turn),
    "multi_head": Row(multi_head, GROUPED, multi, multi_input, torch_multi),
}
