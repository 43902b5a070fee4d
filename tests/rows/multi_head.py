"""Rows of rotary positions and of the multi-head block."""

import numpy as np

from jaxnn.ops.multi_head import MultiHead, multi_head
from jaxnn.ops.rotary import Scaling, rotary
from rows import Row
from rows.attention import attend, torch_attend

LINEAR, LLAMA3 = Scaling(4.0), Scaling(2.0, 1.0, 4.0, 64)
GROUPED = {"heads": 4, "kv_heads": 2, "causal": True, "window": 3, "rotary_base": 100.0}
NORMED = {
    "heads": 4, "kv_heads": 2, "rotary_base": 100.0, "rotary_scaling": LLAMA3, "norm_eps": 0.01,
    "norm_offset": 1.0,
}  # fmt: skip


def turning(rng, shape):
    n, t = shape[0], shape[-1]
    return rng.normal(size=(n, t, 3, 6)), rng.integers(0, 50, (n, t))


def frequencies(half, base, scaling):
    """Case by case of how long a turn takes, as in Llama's own program."""
    found = []
    for i in range(half):
        frequency = base ** (-i / half)
        turn = 2 * np.pi / frequency
        if scaling is None:
            found.append(frequency)
        elif scaling.low is None or turn > scaling.positions / scaling.low:
            found.append(frequency / scaling.factor)
        elif turn < scaling.positions / scaling.high:
            found.append(frequency)
        else:
            share = (scaling.positions / turn - scaling.low) / (scaling.high - scaling.low)
            found.append((1 - share) * frequency / scaling.factor + share * frequency)
    return found


def turn(x, positions, base, scaling=None):
    """The halves as the real and imaginary parts of complex numbers, multiplied by e^(i theta)."""
    half = x.shape[-1] // 2
    theta = positions[..., None, None] * np.array(frequencies(half, base, scaling))
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * theta)
    return np.concatenate([z.real, z.imag], -1)


def torch_turn(torch, x, positions, base, scaling=None):
    """In 16 bits with sine and cosine rounded to them, as `transformers` has it."""
    first, second = x.chunk(2, -1)
    wide = torch.promote_types(x.dtype, torch.float32)
    theta = positions[..., None, None] * torch.tensor(
        frequencies(first.shape[-1], base, scaling), dtype=wide
    )
    cos, sin = theta.cos().to(x.dtype), theta.sin().to(x.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def multi_input(rng, shape):
    size, outputs, t = 1 + shape[0] % 3, 2 + shape[0] % 4, shape[-1] + 2
    weights = [rng.normal(size=s) for s in ((size, 16), (size, 8), (size, 8), (16, outputs))]
    biases = [rng.normal(size=w.shape[1]) for w in weights]
    mask = rng.random((shape[0], 1, 1, t)) < 0.8
    positions = np.sort(rng.integers(0, 50, t))
    return MultiHead(*weights, *biases), rng.normal(size=(shape[0], t, size)), positions, mask


def normed_input(rng, shape):
    """With a bias of each head and key, too.

    Scales of a quarter: in 16 bits larger scores leave of a softmax little but chance.
    """
    params, *rest = multi_input(rng, shape)
    q_norm, k_norm = rng.normal(size=(2, 4)) / 4
    params = params._replace(bq=None, q_norm=q_norm, k_norm=k_norm)
    return params, *rest, rng.normal(size=(4, 1, shape[-1] + 2))


def multi(
    params, x, positions, mask, bias=None, *, heads, kv_heads, rotary_base=None,
    rotary_scaling=None, norm_eps=None, norm_offset=None, **static,
):  # fmt: skip
    split = (heads, kv_heads, kv_heads)
    q, k, v = (
        (np.einsum("nti,io->nto", x, w) + (0 if b is None else b)).reshape(*x.shape[:2], h, -1)
        for w, b, h in zip(params[:3], params[4:7], split, strict=True)
    )
    if params.q_norm is not None:
        q, k = (
            z / np.sqrt(np.mean(z**2, -1, keepdims=True) + norm_eps) * (norm_offset + scale)
            for z, scale in ((q, params.q_norm), (k, params.k_norm))
        )
    if rotary_base:
        q, k = (turn(z, positions, rotary_base, rotary_scaling) for z in (q, k))
    y = attend(q, k, v, mask, bias, **static).reshape(*x.shape[:2], -1)
    return y @ params.wo + (0 if params.bo is None else params.bo)


def torch_multi(
    torch, params, x, positions, mask, bias=None, *, heads, kv_heads, rotary_base=None,
    rotary_scaling=None, norm_eps=None, norm_offset=None, **static,
):  # fmt: skip
    F, split = torch.nn.functional, (heads, kv_heads, kv_heads)  # noqa: N806
    q, k, v = (
        F.linear(x, w.T, b).unflatten(-1, (h, -1))
        for w, b, h in zip(params[:3], params[4:7], split, strict=True)
    )
    if params.q_norm is not None:
        q, k = (
            F.rms_norm(z, z.shape[-1:], norm_offset + scale, norm_eps)
            for z, scale in ((q, params.q_norm), (k, params.k_norm))
        )
    if rotary_base:
        q, k = (torch_turn(torch, z, positions, rotary_base, rotary_scaling) for z in (q, k))
    y = torch_attend(torch, q, k, v, mask, bias, **static).flatten(2)
    return F.linear(y, params.wo.T, params.bo)


def turned_by(scaling):
    return Row(rotary, {"base": 100.0, "scaling": scaling}, turn, turning, torch_turn)


ROWS = {
    "rotary": turned_by(None),
    "rotary scaled": turned_by(LINEAR),
    "rotary scaled in part": turned_by(LLAMA3),
    "multi_head": Row(multi_head, GROUPED, multi, multi_input, torch_multi),
    "multi_head of norms": Row(multi_head, NORMED, multi, normed_input, torch_multi),
}
