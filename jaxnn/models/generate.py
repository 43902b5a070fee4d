"""Text drawn from `jaxnn.models.transformer`, one token at a time.

    tokens = generate(params, prompt, config, key, length=100, temperature=0.8, top_k=40)

What each layer computed of the tokens so far, the keys and values of its attention, is kept in a
cache, so that a new token costs one step of the network and not as many as there are tokens. All
shapes are those of the finished text, which makes one compiled program of all steps.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxnn.checks import check_key
from jaxnn.models.transformer import Params, check_tokens, embed_fwd, output_weights
from jaxnn.models.transformer_block import NORMS, Block, block_fwd
from jaxnn.models.transformer_config import Config
from jaxnn.ops.attention import attention
from jaxnn.ops.linear import embedding
from jaxnn.ops.multi_head import MultiHead, rotary
from jaxnn.settings import check_integer, check_number


class Cache(NamedTuple):
    """Keys and values of S tokens in each layer, turned by their positions: (L, N, S, G, Dh)."""

    k: Array
    v: Array


def init_cache(params: Params, n: int, length: int, config: Config) -> Cache:
    """Room for `length` tokens of N sequences, none of them read yet."""
    kv_heads = config.kv_heads or config.heads
    shape = (config.layers, n, length, kv_heads, config.head_size)
    zeros = jnp.zeros(shape, params.tokens.table.dtype)
    return Cache(zeros, zeros)


def cached_forward(
    params: Params, cache: Cache, tokens: Array, start: Array | int, config: Config
) -> tuple[Array, Cache]:
    """The logits that `forward` has at positions `start` on, given the cache of those before.

    Args:
        params: of the model.
        cache: with the positions before `start` in it; those after are not looked at.
        tokens: (N, T) integers in [0, V) at positions start .. start + T - 1, for which the cache
            and the model must have room: what is traced cannot be checked.
        start: how many tokens were read before.
        config: of the model.

    Returns:
        logits (N, T, V), the cache with these tokens added.
    """
    positions = start + jnp.arange(tokens.shape[1])
    x, _ = embed_fwd(params, tokens, positions)

    def step(x: Array, layer: tuple[Block, Cache]) -> tuple[Array, Cache]:
        block, cache = layer

        def attend(attention: MultiHead, x: Array) -> tuple[Array, Cache]:
            return _attend(attention, x, cache, positions, config)

        (x, _), (_, cache, *_) = block_fwd(block, x, None, attend, config)
        return x, cache

    x, cache = lax.scan(step, x, (params.blocks, cache))
    x, _ = NORMS[config.norm].fwd(params.norm, x, eps=config.eps)
    return x @ output_weights(params), cache


def generate(
    params: Params,
    prompt: Array,
    config: Config,
    key: Array,
    *,
    length: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Array:
    """Tokens drawn one by one, each from the softmax of its logits / temperature.

    Args:
        params: of the model.
        prompt: (N, P) integers, read first; P at least 1.
        config: of the model.
        key: for the draws.
        length: how many tokens to draw, at least 1.
        temperature: 1 draws from the model; towards 0 the likeliest tokens gain, at 0 (or so near
            it that the dtype cannot tell) only the likeliest is taken.
        top_k: draw from the so many likeliest tokens only (and those as likely as the last of
            them); None for all.
        top_p: draw from the likeliest tokens only, as few as together have at least this
            probability after `top_k` (and those as likely as the last of them); None for all.
            Holtzman et al., 2020, "The curious case of neural text degeneration" (nucleus).

    Returns:
        (N, P + length): the prompt and what follows.

    Raises:
        TypeError, ValueError: as `forward` and `check_settings`; length is, with the prompt,
            beyond the positions.
    """
    check_tokens(params, prompt, config)
    check_key("generate: key", key)
    settings = check_settings(config.vocabulary, length, temperature, top_k, top_p)
    if prompt.shape[1] + length > config.positions:
        raise ValueError(
            f"generate: the prompt has {prompt.shape[1]} tokens, length is {length}; together they "
            f"must be at most the {config.positions} positions: shorten one of them"
        )
    embedding.fwd(params.tokens, prompt)  # a token outside the vocabulary is seen out here only
    tokens: Array = _generated(params, prompt, key, config=config, **settings)
    return tokens


@partial(jax.jit, static_argnames=("config", "length", "temperature", "top_k", "top_p"))
def _generated(
    params: Params, prompt: Array, key: Array, *, config: Config, length: int, **settings: Any
) -> Array:
    """`generate`, checked."""
    n, read = prompt.shape
    cache = init_cache(params, n, read + length, config)
    logits, cache = cached_forward(params, cache, prompt, 0, config)

    def draw(logits: Array, key: Array) -> Array:
        return sample(logits[:, -1], key, **settings).astype(prompt.dtype)

    def step(before: tuple[Array, Cache], at: tuple[Array, Array]) -> tuple[Any, Array]:
        token, cache = before
        position, key = at
        logits, cache = cached_forward(params, cache, token[:, None], position, config)
        token = draw(logits, key)
        return (token, cache), token

    keys = jax.random.split(key, length)
    token = draw(logits, keys[0])
    positions = read + jnp.arange(length - 1)
    _, tokens = lax.scan(step, (token, cache), (positions, keys[1:]))
    return jnp.concatenate([prompt, token[:, None], tokens.T], axis=1)


def sample(
    logits: Array,
    key: Array,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Array:
    """A token (N,) for each row of logits (N, V); settings as `generate`, which checks them.

    In float32 at least: noise and sums of as few digits as bfloat16 has would favour some tokens.
    """
    logits = logits.astype(np.promote_types(logits.dtype, np.float32))
    if temperature < np.finfo(logits.dtype).tiny:
        return logits.argmax(-1)
    # The likeliest token's is 0 then, and no quotient is too large.
    logits = (logits - logits.max(-1, keepdims=True)) / temperature
    if top_k is not None:
        least = lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p is not None:
        descending = -jnp.sort(-logits, axis=-1)
        p = jax.nn.softmax(descending, axis=-1)
        # A token belongs to the nucleus if those before it do not reach top_p; the first always.
        inside = (jnp.cumsum(p, axis=-1) - p < top_p).at[:, 0].set(True)
        least = jnp.where(inside, descending, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.random.categorical(key, logits)


def _attend(
    params: MultiHead, x: Array, cache: Cache, positions: Array, config: Config
) -> tuple[Array, Cache]:
    """`multi_head_fwd` of new tokens (N, T, D) and all in the cache; the cache with the new."""

    def project(w: Array, b: Array | None) -> Array:
        y = x @ w if b is None else x @ w + b
        return y.reshape(*x.shape[:2], -1, config.head_size)

    q, k = project(params.wq, params.bq), project(params.wk, params.bk)
    if config.position == "rotary":
        q, k = (rotary.fwd(part, positions, base=config.rotary_base)[0] for part in (q, k))
    new = Cache(k, project(params.wv, params.bv))
    cache = jax.tree.map(
        lambda old, new: lax.dynamic_update_slice_in_dim(old, new, positions[0], axis=1), cache, new
    )
    seen = positions[:, None] - jnp.arange(cache.k.shape[1])  # how many tokens ago, from 0
    mask = (seen >= 0) & (seen < (config.window or cache.k.shape[1]))
    y, _ = attention.fwd(q, *cache, mask[None, None], block=config.block)
    z = y.reshape(x.shape) @ params.wo
    return z if params.bo is None else z + params.bo, cache


def check_settings(
    vocabulary: int,
    length: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> dict[str, Any]:
    """What `generate` takes by these names, as plain Python has it.

    Raises:
        TypeError: a setting is no number, or traced by JAX.
        ValueError: length is below 1; the temperature is negative or not finite; top_k is outside
            [1, vocabulary], top_p outside (0, 1].
    """
    if top_k is not None:
        top_k = check_integer("generate: top_k", top_k)
        if top_k > vocabulary:
            raise ValueError(
                f"generate: top_k is {top_k} of {vocabulary} tokens; it must be at most as many: "
                "pass None for all"
            )
    if top_p is not None:
        rule = "a probability in (0, 1]: pass None for all tokens"
        top_p = check_number("generate: top_p", top_p, rule, lambda p: 0 < p <= 1)
    return {
        "length": check_integer("generate: length", length),
        "temperature": check_number(
            "generate: temperature",
            temperature,
            "finite and at least 0",
            lambda t: 0 <= t < math.inf,
        ),
        "top_k": top_k,
        "top_p": top_p,
    }
