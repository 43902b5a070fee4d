"""The decoder language model in PyTorch, float64, to 1e-9; `test_transformers.py` has the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_leaves_close, run

torch = pytest.importorskip(
    "torch", reason="PyTorch is an optional peer: pip install -e '.[peers]'"
)
F = torch.nn.functional

from jaxnn.models import transformer  # noqa: E402


def rotated(x, base):
    """Queries or keys (N, heads, T, size) as complex numbers, turned."""
    half = x.shape[-1] // 2
    frequencies = base ** (-torch.arange(half, dtype=x.dtype) / half)
    angles = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * frequencies
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.exp(1j * angles)
    return torch.cat([turned.real, turned.imag], -1)


def norm(params, x, config):
    if config.norm == "rms":
        return F.rms_norm(x, x.shape[-1:], params.scale, config.eps)
    return F.layer_norm(x, x.shape[-1:], params.scale, params.shift, config.eps)


def linear(x, w, b):
    return F.linear(x, w.T, b)


def attend(params, x, config):
    def heads(w, b):
        return linear(x, w, b).unflatten(-1, (-1, config.per_head)).transpose(1, 2)

    q, k = heads(params.wq, params.bq), heads(params.wk, params.bk)
    if config.position == "rotary":
        q, k = rotated(q, config.rotary_base), rotated(k, config.rotary_base)
    ago = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
    seen = (ago >= 0) & (ago < (config.window or x.shape[1]))
    y = F.scaled_dot_product_attention(
        q, k, heads(params.wv, params.bv), attn_mask=seen, enable_gqa=True
    )
    return linear(y.transpose(1, 2).flatten(2), params.wo, params.bo)


def mixture(params, x, config):
    """Token by token the sum of its experts, and Switch's balance."""
    p = F.softmax(x @ params.router, -1)
    largest, chosen = p.topk(config.experts_per_token, -1)
    one_hot = F.one_hot(chosen, config.experts)
    weights = (one_hot * (largest / largest.sum(-1, keepdim=True))[..., None]).sum(-2)
    outputs = [
        (F.silu(x @ gate) * (x @ up)) @ down
        for gate, up, down in zip(params.gate, params.up, params.down, strict=True)
    ]
    y = (weights[..., None] * torch.stack(outputs, -2)).sum(-2)
    share = one_hot.sum(-2).to(x.dtype).mean((0, 1))
    return y, config.experts * (share * p.mean((0, 1))).sum()


def feed_forward(params, x, config):
    if config.experts:
        return mixture(params, x, config)
    h = linear(x, params.up, params.bup)
    if config.feed_forward == "swiglu":
        h = F.silu(linear(x, params.gate, params.bgate)) * h
    else:
        h = F.gelu(h, approximate="tanh")
    return linear(h, params.down, params.bdown), 0


def torch_loss(params, tokens, targets, config):
    x, balance = F.embedding(tokens, params.tokens.table), 0
    if config.position == "learned":
        x = x + params.positions.table[: tokens.shape[1]]
    for number in range(config.layers):
        block = jax.tree.map(lambda leaf, number=number: leaf[number], params.blocks)
        x = x + attend(block.attention, norm(block.attention_norm, x, config), config)
        y, loss = feed_forward(block.feed_forward, norm(block.feed_forward_norm, x, config), config)
        x, balance = x + y, balance + loss
    w = params.tokens.table.T if config.tied else params.output
    logits = norm(params.norm, x, config) @ w
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten()) + config.balance * balance


@pytest.mark.parametrize(
    "config",
    transformer.EXAMPLE_CONFIGS[:4],
    ids=["gpt2", "llama", "recompute, block and window", "experts"],
)
def test_loss_and_gradient(config):
    with jax.enable_x64(True):
        params = transformer.init_params(jax.random.key(0), config)
        params = jax.tree.map(
            lambda p: p + 0.3 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), params
        )
        batch = transformer.example_batch(jax.random.key(1), config)._replace(key=None)
        value, grads = run(lambda *a: transformer.manual_value_and_grad(*a, config), params, batch)
    theirs = jax.tree.map(lambda p: torch.tensor(np.asarray(p), requires_grad=True), params)
    tokens, targets = (torch.from_numpy(np.array(x)).long() for x in batch[:2])
    expected = torch_loss(theirs, tokens, targets, config)
    expected.backward()
    assert_leaves_close(value, expected.item(), 1e-9)
    assert_leaves_close(grads, jax.tree.map(lambda p: p.grad.numpy(), theirs), 1e-9, floor=1e-15)
