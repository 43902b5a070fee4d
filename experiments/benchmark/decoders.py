"""Training steps of decoders: GPT and Llama on processors, GPT-2 as accelerators train it."""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from experiments.benchmark.arms import (
    AUTODIFF,
    BY_HAND,
    Arm,
    Builds,
    Case,
    named,
)
from experiments.benchmark.models import model_step, tokens_of
from experiments.benchmark.ops import cross_entropy, cudnn_attention
from jaxnn import data, train
from jaxnn.models import transformer
from jaxnn.models.transformer import Config, feed_forward_fwd, norm_of
from jaxnn.models.transformer_params import GATED
from jaxnn.numerics import widen
from jaxnn.ops.linear import Linear, linear
from jaxnn.ops.multi_head import MultiHead
from jaxnn.ops.rotary import rotary

# By hand, by `jax.grad` and in PyTorch, a table's gradient in bfloat16 is off by 0.9 to 1.7% of the
# scale from what float32 makes of the same numbers, each in its own way: from one another by up to
# 2.1%. So it is for 2 layers of 8 as for 12 of 512 (CPU, jaxlib 0.10.2), two to five roundings of
# 2^-8. An attention that sees half the tokens changes it by 13% and more.
AGREE_BFLOAT16 = 5e-2


def transformer_step(n: int, t: int, config: Config) -> Case:
    """A decoder; by hand also with `recompute`."""
    return model_step(
        _sizes(config, n, t),
        transformer,
        config,
        lambda: tokens_of(config.vocabulary, n, t),
        lambda torch, params, batch: torch.transformer(params, batch, config),
        {
            "layers unrolled, JAX's attention": _plain_transformer_loss,
            "unrolled and checkpointed": partial(_plain_transformer_loss, checkpoint=True),
        },
        {"recompute": dataclasses.replace(config, recompute=True)},
        transformer_flops(config, n, t),
    )


def gpt2_step(n: int, t: int, config: Config, block: int) -> Case:
    """A decoder in bfloat16, as accelerators train them; for autodiff also with cuDNN's attention.

    "cuDNN attention" is `_plain_transformer_loss` with `jax.nn.dot_product_attention` by cuDNN.
    """
    cudnn = partial(_plain_transformer_loss, attention=cudnn_attention)
    case = model_step(
        f"{_sizes(config, n, t)}, bfloat16",
        transformer,
        config,
        lambda: tokens_of(config.vocabulary, n, t),
        lambda torch, params, batch: torch.transformer(params, batch, config),
        {
            "cuDNN attention": cudnn,
            "cuDNN attention, checkpointed": partial(cudnn, checkpoint=True),
        },
        {
            "recompute": dataclasses.replace(config, recompute=True, unroll=1),
            "layers in a loop": dataclasses.replace(config, unroll=1),
            f"block {block}": dataclasses.replace(config, block=block),
        },
        transformer_flops(config, n, t),
        jnp.bfloat16,
    )
    return case._replace(agree=AGREE_BFLOAT16, tokens=n * t)


def gpt2_whole_step(n: int, t: int, config: Config) -> Case:
    """The same with its optimizer: AdamW, masters in float32, the state written in its place."""
    adamw = train.with_masters(optax.adamw(3e-4))

    def cudnn(params: Any, batch: Any, config: Any) -> Array:
        return _plain_transformer_loss(params, batch, config, attention=cudnn_attention)

    def stepping(loss: Any, gradient: train.Gradient) -> Arm:
        model = SimpleNamespace(**vars(transformer) | ({"loss": loss} if loss else {}))
        params = jax.jit(transformer.init_params, static_argnums=1)(jax.random.key(0), config)
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
        zero = jnp.zeros((), jnp.int32)
        state = train.State(params, adamw.init(params), zero, jax.random.key(1))
        batch = tokens_of(config.vocabulary, n, t)
        step = train.make_step(model, config, adamw, gradient, donate=True)
        started = time.perf_counter()
        state, first = jax.block_until_ready(step(state, batch))
        seconds = time.perf_counter() - started

        def run() -> tuple[Any, Any]:
            nonlocal state
            state, _ = jax.block_until_ready(step(state, batch))
            return first, ()

        return Arm(run, compile_seconds=seconds)

    def make() -> Builds:
        return {
            BY_HAND: partial(stepping, None, "manual"),
            named(AUTODIFF, "cuDNN attention"): partial(stepping, cudnn, "autodiff"),
        }

    what = f"{_sizes(config, n, t)}, bfloat16, with AdamW and masters of float32"
    flops = transformer_flops(config, n, t)
    case = Case(what, make, flops=flops, dtype=jnp.bfloat16, tokens=n * t)
    return case._replace(agree=AGREE_BFLOAT16)


def _jax_attention(q: Array, k: Array, v: Array) -> Array:
    y: Array = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    return y


def _plain_transformer_loss(
    params: transformer.Params,
    batch: data.KeyedBatch,
    config: Config,
    checkpoint: bool = False,
    attention: Callable[[Array, Array, Array], Array] = _jax_attention,
) -> Array:
    """No scan over the layers, an attention of JAX's, and all logits at once, in float32."""
    positions = jnp.arange(batch.inputs.shape[1])

    norm, settings = norm_of(config)

    def attend(params: MultiHead, x: Array) -> Array:
        wq, wk, wv, wo, bq, bk, bv, bo, *_ = params
        q, k, v = (
            linear.fwd(Linear(w, b), x)[0].reshape(*x.shape[:2], -1, config.per_head)
            for w, b in ((wq, bq), (wk, bk), (wv, bv))
        )
        if config.position == "rotary":
            q, k = (rotary.fwd(a, positions, base=config.rotary_base)[0] for a in (q, k))
        y = attention(q, k, v)
        return linear.fwd(Linear(wo, bo), y.reshape(x.shape))[0]

    def layer(block: Any, x: Array) -> Array:
        a, _ = norm.fwd(block.attention_norm, x, **settings)
        x = x + attend(block.attention, a)
        f, _ = norm.fwd(block.feed_forward_norm, x, **settings)
        (f, _), _ = feed_forward_fwd(block.feed_forward, f, config)
        return x + f

    layer = jax.checkpoint(layer) if checkpoint else layer
    x, _ = transformer.embed_fwd(params, batch.inputs, positions, config)
    for number in range(config.layers):
        x = layer(jax.tree.map(lambda leaf, number=number: leaf[number], params.blocks), x)
    x, _ = norm.fwd(params.norm, x, **settings)
    logits = widen(x @ transformer.output_weights(params))
    return cross_entropy(logits, batch.targets).astype(x.dtype)


def _sizes(config: Config, n: int, t: int) -> str:
    return (
        f"{config.layers} layers of {config.width}, {config.heads} heads, vocabulary "
        f"{config.vocabulary}, T {t}, batch {n}"
    )


def transformer_flops(config: Config, n: int, t: int) -> float:
    """Operations of the products in a training step of N sequences of T tokens, no experts.

        6 N T (P + 2 layers T Q)

    P weights are in products: per layer 2 D Q + 2 D K in the attention, with Q features of all
    heads and K of those of keys, and 2 or (gated) 3 D hidden in the feed-forward, and D V in the
    output. Each does a multiply-add per token in the forward and two in the backward; so do the T
    keys in the scores and the average of every layer, Q each. Hidden scores count too, as is usual,
    and nothing recomputed does.
    """
    d, hidden = config.width, config.hidden or 4 * config.width
    queries = config.heads * config.per_head
    inner = (config.kv_heads or config.heads) * config.per_head
    feed_forward = (3 if config.feed_forward in GATED else 2) * d * hidden
    layer = 2 * d * queries + 2 * d * inner + feed_forward
    weights = config.layers * layer + d * config.vocabulary
    return float(6 * n * t * (weights + 2 * config.layers * t * queries))
