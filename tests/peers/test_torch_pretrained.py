"""GPT-2 and Llama in PyTorch from the tensors of their files, float64, to 1e-9."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_leaves_close, run
from safetensors.numpy import save_file
from test_pretrained import GPT2, LLAMA, drawn, gpt2_shapes, llama_shapes

torch = pytest.importorskip(
    "torch", reason="PyTorch is an optional peer: pip install -e '.[peers]'"
)
F = torch.nn.functional

from experiments import pretrained  # noqa: E402
from jaxnn.models import transformer  # noqa: E402


def heads(x, count):
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def gpt2_logits(w, tokens, config):
    def get(name):
        return w["transformer." + name]

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], get(f"{name}.weight"), get(f"{name}.bias"), config.eps)

    def conv1d(name, x):
        return x @ get(f"{name}.weight") + get(f"{name}.bias")

    x = get("wte.weight")[tokens] + get("wpe.weight")[: tokens.shape[1]]
    for n in range(config.layers):
        qkv = conv1d(f"h.{n}.attn.c_attn", norm(f"h.{n}.ln_1", x)).chunk(3, -1)
        y = F.scaled_dot_product_attention(*(heads(a, config.heads) for a in qkv), is_causal=True)
        x = x + conv1d(f"h.{n}.attn.c_proj", y.transpose(1, 2).flatten(2))
        h = F.gelu(conv1d(f"h.{n}.mlp.c_fc", norm(f"h.{n}.ln_2", x)), approximate="tanh")
        x = x + conv1d(f"h.{n}.mlp.c_proj", h)
    return norm("ln_f", x) @ w.get("lm_head.weight", get("wte.weight")).T


def turned(x, base):
    """x cos + rotate_half(x) sin, as Hugging Face's Llama."""
    size = x.shape[-1]
    frequencies = base ** (-torch.arange(0, size, 2, dtype=x.dtype) / size)
    angles = torch.outer(torch.arange(x.shape[2], dtype=x.dtype), frequencies)
    angles = torch.cat([angles, angles], -1)
    halves = torch.cat([-x[..., size // 2 :], x[..., : size // 2]], -1)
    return x * angles.cos() + halves * angles.sin()


def llama_logits(w, tokens, config):
    def norm(name, x):
        return F.rms_norm(x, x.shape[-1:], w[f"model.{name}.weight"], config.eps)

    x = w["model.embed_tokens.weight"][tokens]
    for n in range(config.layers):

        def project(name, x, n=n):
            return F.linear(x, w[f"model.layers.{n}.{name}_proj.weight"])

        a = norm(f"layers.{n}.input_layernorm", x)
        q = turned(heads(project("self_attn.q", a), config.heads), config.rotary_base)
        k = turned(heads(project("self_attn.k", a), config.kv_heads), config.rotary_base)
        v = heads(project("self_attn.v", a), config.kv_heads)
        groups = config.heads // config.kv_heads
        k, v = (b.repeat_interleave(groups, 1) for b in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + project("self_attn.o", y.transpose(1, 2).flatten(2))
        f = norm(f"layers.{n}.post_attention_layernorm", x)
        x = x + project("mlp.down", F.silu(project("mlp.gate", f)) * project("mlp.up", f))
    return F.linear(norm("norm", x), w.get("lm_head.weight", w["model.embed_tokens.weight"]))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    ("config", "shapes", "logits"),
    [(GPT2, gpt2_shapes, gpt2_logits), (LLAMA, llama_shapes, llama_logits)],
    ids=["gpt2", "llama"],
)
def test_logits(config, shapes, logits, tied, tmp_path):
    config = dataclasses.replace(config, tied=tied)
    output = {} if tied else {"lm_head.weight": (config.vocabulary, config.width)}
    tensors = drawn(shapes(config) | output)
    save_file(tensors, tmp_path / "a")
    tokens = np.random.default_rng(1).integers(0, config.vocabulary, (2, config.positions))
    with jax.enable_x64(True):
        params = jax.tree.map(
            lambda leaf: leaf.astype(jnp.float64), pretrained.load(tmp_path / "a", config)
        )
        ours = run(lambda *a: transformer.forward(*a, config), params, jnp.asarray(tokens))
    weights = {name: torch.from_numpy(tensor).double() for name, tensor in tensors.items()}
    assert_leaves_close(ours, logits(weights, torch.from_numpy(tokens), config).numpy(), 1e-9)
