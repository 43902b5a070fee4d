"""The transformer written with Equinox, as `in_equinox` has the others.

Blocks are in a list, or made by `eqx.filter_vmap` and run by `jax.lax.scan`.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array, lax

from experiments.benchmark.frameworks import Step
from experiments.benchmark.in_equinox import (
    cross_entropy,
    made,
    put_linear,
    replaced,
    without_numbers,
)


class _Grouped(eqx.Module):
    """Rotary attention whose queries share keys and values, which Equinox has no layer for."""

    query: eqx.nn.Linear
    key: eqx.nn.Linear
    value: eqx.nn.Linear
    out: eqx.nn.Linear
    rotary: eqx.nn.RotaryPositionalEmbedding

    def __init__(self, config: Any, dtype: Any, key: Array) -> None:
        size, width = config.per_head, config.width
        inner = size * (config.kv_heads or config.heads)
        keys = jax.random.split(key, 4)
        shapes = ((width, width), (width, inner), (width, inner), (width, width))
        self.query, self.key, self.value, self.out = (
            eqx.nn.Linear(i, o, use_bias=config.biases, dtype=dtype, key=k)
            for (i, o), k in zip(shapes, keys, strict=True)
        )
        self.rotary = eqx.nn.RotaryPositionalEmbedding(size, config.rotary_base, dtype=dtype)

    def __call__(self, x: Array) -> Array:
        size = self.rotary.embedding_size
        q, k, v = (
            jax.vmap(layer)(x).reshape(len(x), -1, size)
            for layer in (self.query, self.key, self.value)
        )
        q, k = (jax.vmap(self.rotary, in_axes=1, out_axes=1)(a) for a in (q, k))
        y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        return jax.vmap(self.out)(y.reshape(len(x), -1))


def _norm(config: Any, dtype: Any) -> Any:
    if config.norm == "rms":
        return eqx.nn.RMSNorm(config.width, config.eps, use_bias=False, dtype=dtype)
    return eqx.nn.LayerNorm(config.width, config.eps, use_bias=config.biases, dtype=dtype)


class _Block(eqx.Module):
    attention_norm: Any
    attention: Any
    feed_forward_norm: Any
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    gate: eqx.nn.Linear | None

    def __init__(self, config: Any, dtype: Any, key: Array) -> None:
        k_attention, k_up, k_down, k_gate = jax.random.split(key, 4)
        width, hidden = config.width, config.hidden or 4 * config.width
        self.attention_norm, self.feed_forward_norm = (_norm(config, dtype) for _ in range(2))
        if config.position == "rotary":
            self.attention = _Grouped(config, dtype, k_attention)
        else:
            biases = [f"use_{part}_bias" for part in ("query", "key", "value", "output")]
            settings = {"dtype": dtype, **dict.fromkeys(biases, config.biases)}
            self.attention = eqx.nn.MultiheadAttention(
                config.heads, width, **settings, key=k_attention
            )
        both = {"use_bias": config.biases, "dtype": dtype}
        self.up = eqx.nn.Linear(width, hidden, **both, key=k_up)
        self.down = eqx.nn.Linear(hidden, width, **both, key=k_down)
        gated = config.feed_forward == "swiglu"
        self.gate = eqx.nn.Linear(width, hidden, **both, key=k_gate) if gated else None

    def __call__(self, x: Array) -> Array:
        a = jax.vmap(self.attention_norm)(x)
        if isinstance(self.attention, _Grouped):
            x = x + self.attention(a)
        else:
            mask = jnp.tril(jnp.ones((len(x), len(x)), bool))
            x = x + self.attention(a, a, a, mask)
        return x + jax.vmap(self._feed_forward)(jax.vmap(self.feed_forward_norm)(x))

    def _feed_forward(self, x: Array) -> Array:
        up = self.up(x)
        return self.down(jax.nn.gelu(up) if self.gate is None else jax.nn.silu(self.gate(x)) * up)


class _Transformer(eqx.Module):
    tokens: eqx.nn.Embedding
    positions: eqx.nn.Embedding | None
    blocks: Any
    norm: Any
    output: eqx.nn.Linear | None
    scanned: bool = eqx.field(static=True)

    def __init__(self, config: Any, dtype: Any, scanned: bool, key: Array) -> None:
        k_tokens, k_positions, k_blocks, k_output = jax.random.split(key, 4)
        width, vocabulary = config.width, config.vocabulary
        self.tokens = eqx.nn.Embedding(vocabulary, width, dtype=dtype, key=k_tokens)
        self.positions = None
        if config.position == "learned":
            self.positions = eqx.nn.Embedding(config.positions, width, dtype=dtype, key=k_positions)
        keys = jax.random.split(k_blocks, config.layers)
        make = lambda k: _Block(config, dtype, k)  # noqa: E731
        self.blocks = eqx.filter_vmap(make)(keys) if scanned else [make(k) for k in keys]
        self.norm = _norm(config, dtype)
        self.output = None
        if not config.tied:
            linear = {"use_bias": False, "dtype": dtype, "key": k_output}
            self.output = eqx.nn.Linear(width, vocabulary, **linear)
        self.scanned = scanned

    def __call__(self, tokens: Array) -> Array:
        x = jax.vmap(self.tokens)(tokens)
        if self.positions is not None:
            x = x + jax.vmap(self.positions)(jnp.arange(len(tokens)))
        if self.scanned:
            arrays, static = eqx.partition(self.blocks, eqx.is_array)
            through = lambda x, arrays: (eqx.combine(arrays, static)(x), None)  # noqa: E731
            x, _ = lax.scan(through, x, arrays)
        else:
            for block in self.blocks:
                x = block(x)
        x = jax.vmap(self.norm)(x)
        return x @ self.tokens.weight.T if self.output is None else jax.vmap(self.output)(x)


def _block(block: Any, params: Any) -> Any:
    p, f = params.attention, params.feed_forward
    weights = (p.wq, p.bq), (p.wk, p.bk), (p.wv, p.bv), (p.wo, p.bo)
    names = ["query", "key", "value", "out"]
    if not isinstance(block.attention, _Grouped):
        names = ["query_proj", "key_proj", "value_proj", "output_proj"]
    layers = {
        name: put_linear(getattr(block.attention, name), *pair)
        for name, pair in zip(names, weights, strict=True)
    }
    norms = {
        name: replaced(getattr(block, name), weight=scale, bias=shift)
        for name, (scale, shift) in (
            ("attention_norm", params.attention_norm),
            ("feed_forward_norm", params.feed_forward_norm),
        )
    }
    return replaced(
        block,
        attention=replaced(block.attention, **layers),
        up=put_linear(block.up, f.up, f.bup),
        down=put_linear(block.down, f.down, f.bdown),
        gate=block.gate and put_linear(block.gate, f.gate, f.bgate),
        **norms,
    )


def transformer(params: Any, batch: Any, config: Any, *, scanned: bool = False) -> Step:
    """Blocks in a list, or `scanned`; in the dtype of the parameters, the loss in float32."""
    model = without_numbers(_Transformer, config, params.tokens.table.dtype, scanned)
    if scanned:
        blocks = _block(model.blocks, params.blocks)
    else:
        parts = [
            jax.tree.map(lambda leaf, number=number: leaf[number], params.blocks)
            for number in range(config.layers)
        ]
        blocks = [_block(*pair) for pair in zip(model.blocks, parts, strict=True)]
    output = None if params.output is None else put_linear(model.output, params.output, None)
    positions = params.positions and replaced(model.positions, weight=params.positions.table)
    model = replaced(
        model,
        tokens=replaced(model.tokens, weight=params.tokens.table),
        positions=positions,
        blocks=blocks,
        norm=replaced(model.norm, weight=params.norm.scale, bias=params.norm.shift),
        output=output,
    )
    return made(model, batch, cross_entropy, lambda g: g.tokens.weight)
