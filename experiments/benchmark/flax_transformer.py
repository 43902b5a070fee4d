"""The transformer written with Flax NNX, as `in_flax` has the others.

Blocks are in an `nnx.List`, or made by `nnx.vmap` and run by `nnx.scan`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from experiments.benchmark.frameworks import Step
from experiments.benchmark.in_flax import cross_entropy, made, put, without_numbers


def _turned(x: Array, base: float) -> Array:
    """Queries or keys (N, T, H, Dh) turned by their positions."""
    _, t, _, size = x.shape
    angles = jnp.outer(jnp.arange(t), base ** (-jnp.arange(0, size, 2) / size))[:, None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def _rotary_attention(q: Array, k: Array, v: Array, *, base: float, **settings: Any) -> Array:
    return nnx.dot_product_attention(_turned(q, base), _turned(k, base), v, **settings)


class _Block(nnx.Module):
    def __init__(self, config: Any, dtypes: Any, rngs: nnx.Rngs) -> None:
        norm = nnx.RMSNorm if config.norm == "rms" else nnx.LayerNorm
        norm = partial(norm, config.width, epsilon=config.eps, rngs=rngs, **dtypes)
        linear = partial(nnx.Linear, use_bias=config.biases, rngs=rngs, **dtypes)
        attend = nnx.dot_product_attention
        if config.position == "rotary":
            attend = partial(_rotary_attention, base=config.rotary_base)
        self.attention_norm, self.feed_forward_norm = norm(), norm()
        self.attention = nnx.MultiHeadAttention(
            config.heads,
            config.width,
            num_kv_heads=config.kv_heads,
            use_bias=config.biases,
            decode=False,
            attention_fn=attend,
            rngs=rngs,
            **dtypes,
        )
        hidden = config.hidden or 4 * config.width
        self.up, self.down = linear(config.width, hidden), linear(hidden, config.width)
        gated = config.feed_forward == "swiglu"
        self.gate = linear(config.width, hidden) if gated else nnx.data(None)

    def __call__(self, x: Array) -> Array:
        x = x + self.attention(self.attention_norm(x), is_causal=True)
        a = self.feed_forward_norm(x)
        up = self.up(a)
        h = nnx.gelu(up) if self.gate is None else nnx.silu(self.gate(a)) * up
        return x + self.down(h)

    def put(self, params: Any) -> None:
        p, f = params.attention, params.feed_forward
        put(self.attention.query, kernel=p.wq, bias=p.bq)
        put(self.attention.key, kernel=p.wk, bias=p.bk)
        put(self.attention.value, kernel=p.wv, bias=p.bv)
        put(self.attention.out, kernel=p.wo, bias=p.bo)
        put(self.attention_norm, scale=params.attention_norm.scale)
        put(self.feed_forward_norm, scale=params.feed_forward_norm.scale)
        if params.attention_norm.shift is not None:
            put(self.attention_norm, bias=params.attention_norm.shift)
            put(self.feed_forward_norm, bias=params.feed_forward_norm.shift)
        put(self.up, kernel=f.up, bias=f.bup)
        put(self.down, kernel=f.down, bias=f.bdown)
        if f.gate is not None:
            put(self.gate, kernel=f.gate, bias=f.bgate)


class _Transformer(nnx.Module):
    def __init__(self, config: Any, dtypes: Any, scanned: bool, rngs: nnx.Rngs) -> None:
        embed = partial(nnx.Embed, features=config.width, rngs=rngs, **dtypes)
        self.tokens = embed(config.vocabulary)
        learned = config.position == "learned"
        self.positions = embed(config.positions) if learned else nnx.data(None)
        self.scanned = scanned
        if scanned:
            make = nnx.vmap(lambda rngs: _Block(config, dtypes, rngs), in_axes=0, out_axes=0)
            self.blocks = nnx.split_rngs(splits=config.layers)(make)(rngs)
        else:
            self.blocks = nnx.List([_Block(config, dtypes, rngs) for _ in range(config.layers)])
        norm = nnx.RMSNorm if config.norm == "rms" else nnx.LayerNorm
        self.norm = norm(config.width, epsilon=config.eps, rngs=rngs, **dtypes)
        self.output = nnx.data(None)
        if not config.tied:
            sizes = config.width, config.vocabulary
            self.output = nnx.Linear(*sizes, use_bias=False, rngs=rngs, **dtypes)

    def __call__(self, tokens: Array) -> Array:
        x = self.tokens(tokens)
        if self.positions is not None:
            x = x + self.positions(jnp.arange(tokens.shape[1]))
        if self.scanned:
            x = nnx.scan(_through, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.blocks)
        else:
            for block in self.blocks:
                x = block(x)
        x = self.norm(x)
        return self.tokens.attend(x) if self.output is None else self.output(x)


def _through(x: Array, block: Any) -> Array:
    return block(x)


def transformer(params: Any, batch: Any, config: Any, *, scanned: bool = False) -> Step:
    """Blocks in a list, or `scanned`; in the dtype of the parameters, the loss in float32."""
    dtype = params.tokens.table.dtype
    dtypes = {"dtype": dtype, "param_dtype": dtype}
    model = without_numbers(_Transformer, config, dtypes, scanned)
    put(model.tokens, embedding=params.tokens.table)
    if params.positions is not None:
        put(model.positions, embedding=params.positions.table)
    if scanned:
        model.blocks.put(params.blocks)
    else:
        for number, block in enumerate(model.blocks):
            block.put(jax.tree.map(lambda leaf, number=number: leaf[number], params.blocks))
    put(model.norm, scale=params.norm.scale)
    if params.norm.shift is not None:
        put(model.norm, bias=params.norm.shift)
    if params.output is not None:
        put(model.output, kernel=params.output)
    return made(model, batch, cross_entropy, lambda g: g["tokens"]["embedding"])
