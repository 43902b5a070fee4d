"""Text drawn from `jaxnn.models.transformer`, one token at a time.

    tokens = generate(params, prompt, config, key, length=100, temperature=0.8, top_k=40)

What each layer computed of the tokens so far, the keys and values of its attention, is kept in a
cache, so that a new token costs one step of the network and not as many as there are tokens. All
shapes are those of the finished text, which makes one compiled program of all steps.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.checks import (
    check_integers,
    check_key,
    check_kind,
    check_model,
    check_one_dtype,
    check_shapes,
)
from jaxnn.models.sampling import draw_settings, sample, token_dtype
from jaxnn.models.transformer import (
    check_sequences,
    embed_fwd,
    feed_forward_fwd,
    norm_of,
    output_weights,
)
from jaxnn.models.transformer_params import Block, Config, Params, init_params
from jaxnn.op import door
from jaxnn.ops.attention import attention
from jaxnn.ops.linear import Linear, linear
from jaxnn.ops.multi_head import MultiHead
from jaxnn.ops.normalisation import Scale, rms_norm
from jaxnn.ops.rotary import rotary
from jaxnn.settings import check_integer


class Cache(NamedTuple):
    """Keys and values of S tokens in each layer, turned by their positions: (L, N, S, G, Dh)."""

    k: Array
    v: Array


def _check_room(params: Params, n: int, length: int, config: Config) -> None:
    """Refuse what `init_cache` says it raises."""
    check_model(params, config, Config, init_params)
    check_integer("init_cache: n", n, 0, ", how many sequences there are")
    check_integer("init_cache: length", length, hint=", how many tokens there is room for")


@door(_check_room)
def init_cache(params: Params, n: int, length: int, config: Config) -> Cache:
    """Make room for `length` tokens of N sequences, none of them read yet.

    Raises:
        TypeError: the configuration or the parameters are another model's, or a size no integer.
        ValueError: the parameters are of another configuration; n is below 0 or length below 1.
    """
    kv_heads = config.kv_heads or config.heads
    shape = (config.layers, n, length, kv_heads, config.per_head)
    zeros = jnp.zeros(shape, params.tokens.table.dtype)
    return Cache(zeros, zeros)


def _check_cached(
    params: Params, cache: Cache, tokens: Array, start: Array | int, config: Config
) -> None:
    """Refuse what `cached_forward` says it raises."""
    check_sequences(params, tokens, config)
    check_kind("cache", cache, Cache)
    sizes = check_shapes(
        "cached_forward", "take it from init_cache", k=(cache.k, "LNSGD"), v=(cache.v, "LNSGD")
    )
    layers, n, kv_heads = config.layers, len(tokens), config.kv_heads or config.heads
    if (layers, n, kv_heads, config.per_head) != (sizes.L, sizes.N, sizes.G, sizes.D):
        raise ValueError(
            f"cached_forward: the cache has shape {cache.k.shape}; it must be ({layers}, {n}, "
            f"room, {kv_heads}, {config.per_head}) for tokens {tokens.shape}: take it from "
            "init_cache"
        )
    check_one_dtype("cached_forward", parameters=params.tokens.table, k=cache.k, v=cache.v)
    first = _first(start)
    if first + tokens.shape[1] > min(sizes.S, config.positions):
        where = "" if isinstance(start, jax.core.Tracer) else f" at start {first}"
        raise ValueError(
            f"cached_forward: tokens have shape {tokens.shape}{where}; they must end within the "
            f"cache's room of {sizes.S} and the model's {config.positions} positions: read fewer, "
            "or make more room with init_cache"
        )


def _first(start: Any) -> int:
    """Where the tokens start, 0 at least where it is traced; refuse what is no such integer."""
    name, hint = "cached_forward: start", ", how many tokens were read before"
    if hasattr(start, "shape") and hasattr(start, "dtype"):
        check_integers(name, start, "cast it with astype(int)")
        if start.shape:
            raise ValueError(
                f"{name} has shape {start.shape}; it must be one integer for all sequences: pass "
                "a scalar"
            )
        start = 0 if isinstance(start, jax.core.Tracer) else int(start)
    return check_integer(name, start, 0, hint)


@door(_check_cached)
def cached_forward(
    params: Params, cache: Cache, tokens: Array, start: Array | int, config: Config
) -> tuple[Array, Cache]:
    """Return the logits of `forward` at positions `start` on, given the cache of those before.

    Args:
        params: of the model.
        cache: with the positions before `start` in it; those after are not looked at.
        tokens: (N, T) integers in [0, V) at positions start .. start + T - 1, for which the cache
            and the model must have room: what is traced cannot be checked.
        start: how many tokens were read before, an integer or an array of one.
        config: of the model.

    Returns:
        logits (N, T, V), the cache with these tokens added.

    Raises:
        TypeError, ValueError: as `jaxnn.models.transformer.forward`; or the cache is none of
            `init_cache`'s for these, start is no integer of at least 0, or the tokens end beyond
            the cache's room or the model's positions.
    """
    (norm, settings), positions = norm_of(config), start + jnp.arange(tokens.shape[1])
    x, _ = embed_fwd(params, tokens, positions, config)

    def step(x: Array, layer: tuple[Block, Cache]) -> tuple[Array, Cache]:
        block, cache = layer
        a, _ = norm.fwd(block.attention_norm, x, **settings)
        a, cache = _attend(block.attention, a, cache, positions, config)
        x = x + a
        f, _ = norm.fwd(block.feed_forward_norm, x, **settings)
        (f, _), _ = feed_forward_fwd(block.feed_forward, f, config)
        return x + f, cache

    x, cache = lax.scan(step, x, (params.blocks, cache))
    x, _ = norm.fwd(params.norm, x, **settings)
    return x @ output_weights(params), cache


def _attend(
    params: MultiHead, x: Array, cache: Cache, positions: Array, config: Config
) -> tuple[Array, Cache]:
    """Run `multi_head_fwd` of new tokens (N, T, D) over all in the cache; add the new to it."""

    def heads(w: Array, b: Array | None) -> Array:
        y, _ = linear.fwd(Linear(w, b), x)
        return y.reshape(*x.shape[:2], w.shape[1] // config.per_head, config.per_head)

    q, k = heads(params.wq, params.bq), heads(params.wk, params.bk)
    if config.qk_norm:
        norm = partial(rms_norm.fwd, eps=config.eps, offset=config.norm_offset)
        q, k = norm(Scale(params.q_norm, None), q)[0], norm(Scale(params.k_norm, None), k)[0]
    if config.position == "rotary":
        turn = partial(rotary.fwd, base=config.rotary_base, scaling=config.rotary_scaling)
        q, k = turn(q, positions)[0], turn(k, positions)[0]
    new = Cache(k, heads(params.wv, params.bv))
    cache = jax.tree.map(
        lambda old, new: lax.dynamic_update_slice_in_dim(old, new, positions[0], axis=1), cache, new
    )
    seen = positions[:, None] - jnp.arange(cache.k.shape[1])  # how many tokens ago, from 0
    mask = (seen >= 0) & (seen < (config.window or cache.k.shape[1]))
    y, _ = attention.fwd(q, *cache, mask[None, None], block=config.block)
    z, _ = linear.fwd(Linear(params.wo, params.bo), y.reshape(*x.shape[:2], len(params.wo)))
    return z, cache


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
    """Draw tokens one by one, each from the softmax of its logits / temperature.

    Args:
        params: of the model.
        prompt: (N, P) integers, read first; P at least 1.
        config: of the model.
        key: for the draws.
        length: how many tokens to draw, at least 1.
        temperature: as `jaxnn.models.sampling.sample`, as are `top_k` and `top_p`.
        top_k: see there.
        top_p: see there.

    Returns:
        (N, P + length) integers, of 32 bits or as many as the prompt: the prompt and what follows,
        -1 for each token after one that is outside [0, V), which under jit cannot be refused.

    Raises:
        TypeError, ValueError: as `jaxnn.models.transformer.forward` and
            `jaxnn.models.sampling.draw_settings`; or the key is none of `jax.random`; or length is,
            with the prompt, beyond the positions.
    """
    settings = draw_settings(length, temperature, top_k, top_p)
    tokens: Array = _generated(params, prompt, config, key, **settings)
    return tokens


def _check_generate(
    params: Params, prompt: Array, config: Config, key: Array, length: int, **settings: Any
) -> None:
    """Refuse what `generate` says it raises."""
    check_sequences(params, prompt, config)
    check_key("generate: key", key)
    draw_settings(length, **settings, vocabulary=config.vocabulary)
    if prompt.shape[1] + length > config.positions:
        raise ValueError(
            f"generate: the prompt has {prompt.shape[1]} tokens, length is {length}; together they "
            f"must be at most the {config.positions} positions: shorten one of them"
        )


@door(_check_generate)
@partial(jax.jit, static_argnames=("config", "length", "temperature", "top_k", "top_p"))
def _generated(
    params: Params, prompt: Array, config: Config, key: Array, *, length: int, **settings: Any
) -> Array:
    """`generate`, its settings Python's, as one program."""
    (n, read), kind = prompt.shape, token_dtype(prompt)
    cache = init_cache(params, n, read + length, config)
    logits, cache = cached_forward(params, cache, prompt, 0, config)

    def draw(logits: Array, key: Array) -> Array:
        return sample(logits[:, -1], key, **settings).astype(kind)

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
    return jnp.concatenate([prompt.astype(kind), token[:, None], tokens.T], axis=1)
