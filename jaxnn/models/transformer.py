"""A decoder language model: every token attends to those before it, layer upon layer.

    x = embedding(tokens) + embedding(positions)          the second not with rotary positions
    x = x + attention(norm(x)),  x = x + feed_forward(norm(x))                   in each layer
    logits = norm(x) w                                    w = embedding table^T in a tied model

    loss = mean over all N T places of -log p(target), in nats per token
           + balance (sum of the layers' load-balancing losses)                  with experts

`gpt2` and `llama` are the two usual choices among the settings (Radford et al., 2019, "Language
models are unsupervised multitask learners"; Touvron et al., 2023, "LLaMA"). The layers' parameters
are stacked, and both passes are one `lax.scan` over them: compiling takes as long for one layer as
for a hundred. `jaxnn.models.generate` draws text from a model.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.nn.initializers import normal

from jaxnn.checks import check_array, check_key
from jaxnn.models import inputs
from jaxnn.models.transformer_block import (
    NORMS,
    Block,
    FeedForward,
    block_bwd,
    block_fwd,
    self_attention,
)
from jaxnn.models.transformer_config import Config, gpt2, llama
from jaxnn.ops.cross_entropy import linear_cross_entropy
from jaxnn.ops.dropout import drop_bwd, drop_fwd
from jaxnn.ops.experts import Experts
from jaxnn.ops.linear import Embedding, embedding
from jaxnn.ops.multi_head import MultiHead
from jaxnn.ops.normalisation import Scale
from jaxnn.text import Batch


class Params(NamedTuple):
    """The tables (V, D) and (positions, D), the stacked layers, the last norm, the output (D, V).

    `positions` is None with rotary positions, `output` in a tied model.
    """

    tokens: Embedding
    positions: Embedding | None
    blocks: Block
    norm: Scale
    output: Array | None


EXAMPLE_CONFIGS = (
    gpt2(vocabulary=7, positions=6, layers=2, width=4, heads=2, dropout=0.3),
    llama(vocabulary=6, positions=5, layers=2, width=8, heads=4, kv_heads=2, hidden=5, chunk=4),
    Config(
        vocabulary=5, positions=5, layers=2, width=6, heads=3, kv_heads=1, hidden=4,
        feed_forward="swiglu", position="rotary", rotary_base=100.0, dropout=0.3, recompute=True,
        block=2, window=2,
    ),
    llama(
        vocabulary=6, positions=5, layers=2, width=4, heads=1, hidden=5, norm="layer",
        position="learned", experts=4, balance=0.1, eps=1e-3,
    ),
)  # fmt: skip


def init_params(key: Array, config: Config) -> Params:
    """Weights from N(0, 2 / (5 D)), smaller where they lead back to the residual stream; biases 0.

    These, `wo` and `down`, have 1 / sqrt(2 layers) of the others' deviation: so many such terms
    are added up (GPT-2). The others' is that of Nguyen and Salazar (2019, "Transformers without
    tears", section 2.2): GPT-2's own 0.02 where D is 1,000, and enough to learn from where it is
    far smaller.

    Raises:
        TypeError: the key is none of `jax.random`.
    """
    check_key("init_params: key", key)
    d, h, n = config.width, config.hidden or 4 * config.width, config.layers
    inner = (config.kv_heads or config.heads) * config.head_size
    keys = iter(jax.random.split(key, 11))

    std = math.sqrt(2 / (5 * d))

    def draw(*shape: int, std: float = std) -> Array:
        return normal(std)(next(keys), shape)

    def bias(*shape: int) -> Array | None:
        return jnp.zeros(shape) if config.biases else None

    def scale(*shape: int) -> Scale:
        return Scale(jnp.ones(shape), bias(*shape) if config.norm == "layer" else None)

    back = partial(draw, std=std / math.sqrt(2 * n))
    attention = MultiHead(
        draw(n, d, d), draw(n, d, inner), draw(n, d, inner), back(n, d, d),
        bias(n, d), bias(n, inner), bias(n, inner), bias(n, d),
    )  # fmt: skip
    feed_forward: FeedForward | Experts
    if config.experts:
        e = config.experts
        feed_forward = Experts(draw(n, d, e), draw(n, e, d, h), draw(n, e, d, h), back(n, e, h, d))
    elif config.feed_forward == "swiglu":
        feed_forward = FeedForward(
            draw(n, d, h), back(n, h, d), draw(n, d, h), bias(n, h), bias(n, d), bias(n, h)
        )
    else:
        feed_forward = FeedForward(draw(n, d, h), back(n, h, d), None, bias(n, h), bias(n, d))
    return Params(
        Embedding(draw(config.vocabulary, d)),
        Embedding(draw(config.positions, d)) if config.position == "learned" else None,
        Block(scale(n, d), attention, scale(n, d), feed_forward),
        scale(d),
        None if config.tied else draw(d, config.vocabulary),
    )


def blocks_fwd(
    blocks: Block, x: Array, key: Array | None, config: Config
) -> tuple[tuple[Array, Array], Any]:
    """All layers, first to last: (x, sum of the load-balancing losses), residuals.

    Of each layer is saved what its backward needs or, with `recompute`, its input. The parameters
    among that are left out: a scan would stack a second copy of all of them.
    """
    keys = None if key is None else jax.random.split(key, (config.layers, 2))
    positions = jnp.arange(x.shape[1])
    attend = self_attention(positions, config)

    def step(x: Array, layer: tuple[Block, Array | None]) -> tuple[Array, tuple[Array, Any]]:
        block, keys = layer
        (y, balance), residuals = block_fwd(block, x, keys, attend, config)
        return y, (balance, x if config.recompute else _strip(residuals, (block, positions)))

    x, (balances, saved) = lax.scan(step, x, (blocks, keys))
    return (x, balances.sum()), (blocks, keys, positions, saved)


def blocks_bwd(residuals: Any, dout: tuple[Array, Array], config: Config) -> tuple[Block, Array]:
    """All layers, last to first: gradients of the stacked parameters and of x."""
    blocks, keys, positions, saved = residuals
    dx, dbalance = dout
    attend = self_attention(positions, config)

    def step(dx: Array, layer: tuple[Block, Array | None, Any]) -> tuple[Array, Block]:
        block, keys, saved = layer
        if config.recompute:
            _, residuals = block_fwd(block, saved, keys, attend, config)
        else:
            residuals = _put_back(saved, (block, positions))
        dblock, dx = block_bwd(residuals, (dx, dbalance), config)
        return dx, dblock

    dx, dblocks = lax.scan(step, dx, (blocks, keys, saved), reverse=True)
    return dblocks, dx


def embed_fwd(params: Params, tokens: Array, positions: Array) -> tuple[Array, Any]:
    """What enters the first layer, of tokens (N, T) at positions (T,): (N, T, D), residuals."""
    x, at_tokens = embedding.fwd(params.tokens, tokens)
    if params.positions is None:
        return x, (at_tokens, None)
    p, at_positions = embedding.fwd(params.positions, positions)
    return x + p, (at_tokens, at_positions)


def embed_bwd(residuals: Any, dx: Array) -> tuple[Embedding, Embedding | None]:
    """Gradients of both tables; a position's row was added to each of the N examples."""
    at_tokens, at_positions = residuals
    dtokens, _ = embedding.bwd(at_tokens, dx)
    if at_positions is None:
        return dtokens, None
    dpositions, _ = embedding.bwd(at_positions, dx.sum(0))
    return dtokens, dpositions


def network_fwd(
    params: Params, tokens: Array, key: Array | None, config: Config
) -> tuple[tuple[Array, Array], Any]:
    """All but the output layer: (x (N, T, D), sum of the load-balancing losses), residuals."""
    k_embedding, k_blocks = (None, None) if key is None else jax.random.split(key)
    x, embedded = embed_fwd(params, tokens, jnp.arange(tokens.shape[1]))
    x, kept = drop_fwd(x, k_embedding, config.dropout)
    (x, balance), blocks = blocks_fwd(params.blocks, x, k_blocks, config)
    x, norm = NORMS[config.norm].fwd(params.norm, x, eps=config.eps)
    return (x, balance), (embedded, kept, blocks, norm)


def network_bwd(residuals: Any, dout: tuple[Array, Array], config: Config) -> Params:
    """From the norm back to the embeddings: gradients of all parameters but the output's."""
    embedded, kept, blocks, norm = residuals
    dx, dbalance = dout
    dnorm, dx = NORMS[config.norm].bwd(norm, dx, eps=config.eps)
    dblocks, dx = blocks_bwd(blocks, (dx, dbalance), config)
    dx = drop_bwd(kept, dx, config.dropout)
    dtokens, dpositions = embed_bwd(embedded, dx)
    return Params(dtokens, dpositions, dblocks, dnorm, None)


def output_weights(params: Params) -> Array:
    """w (D, V) of the logits: the output's own or, tied, the transposed table."""
    return params.tokens.table.T if params.output is None else params.output


def forward(params: Params, tokens: Array, config: Config) -> Array:
    """Logits (N, T, V) of the token after each of tokens (N, T), in evaluation.

    Raises:
        TypeError: the tokens are not an array of integers.
        ValueError: their shape is not (N, T) with N at least 1 and T from 1 to the positions, or
            (outside jit) one is outside [0, V); the parameters are of another configuration.
    """
    check_tokens(params, tokens, config)
    (x, _), _ = network_fwd(params, tokens, None, config)
    return x @ output_weights(params)


def loss(params: Params, batch: Any, config: Config) -> Array:
    """Cross-entropy in nats per token plus the balance of the experts; a scalar.

    The batch is a Batch, or a pair of tokens and targets. With dropout, one that has a key is
    for training, one without is evaluated.
    Plain JAX throughout: `jax.grad(loss)` is the oracle for `manual_grad`.

    Raises:
        TypeError, ValueError: as `forward`; or the targets are not integers in [0, V) (under jit
            NaN) of the tokens' shape.
    """
    tokens, targets, key = inputs.unpack(batch, Batch)
    check_tokens(params, tokens, config)
    check_array("targets", targets)
    (x, balance), _ = network_fwd(params, tokens, key, config)
    w = output_weights(params)
    cross_entropy, _ = linear_cross_entropy.fwd(w, x, targets, chunk=config.chunk)
    return cross_entropy + config.balance * balance


def manual_value_and_grad(params: Params, batch: Any, config: Config) -> tuple[Array, Params]:
    """The loss and its gradient by hand, from one forward pass; raises as `loss`.

    A tied table has two uses, as the embedding and as the output, and gets the sum of both.
    """
    tokens, targets, key = inputs.unpack(batch, Batch)
    check_tokens(params, tokens, config)
    check_array("targets", targets)
    (x, balance), network_residuals = network_fwd(params, tokens, key, config)
    w = output_weights(params)
    cross_entropy, loss_residuals = linear_cross_entropy.fwd(w, x, targets, chunk=config.chunk)
    total = cross_entropy + config.balance * balance

    dtotal = jnp.ones_like(total)
    dw, dx, _ = linear_cross_entropy.bwd(loss_residuals, dtotal, chunk=config.chunk)
    grads = network_bwd(network_residuals, (dx, config.balance * dtotal), config)
    if config.tied:
        return total, grads._replace(tokens=Embedding(grads.tokens.table + dw.T))
    return total, grads._replace(output=dw)


def manual_grad(params: Params, batch: Any, config: Config) -> Params:
    """The gradient of `loss` by hand: equals `jax.grad(loss)(params, batch, config)`."""
    _, grads = manual_value_and_grad(params, batch, config)
    return grads


def example_batch(key: Array, config: Config) -> Batch:
    """Three sequences of at most 16 tokens for verification; with dropout, a key."""
    k_tokens, k_drop = jax.random.split(key)
    shape = (3, min(config.positions, 16) + 1)
    tokens = jax.random.randint(k_tokens, shape, 0, config.vocabulary)
    return Batch(tokens[:, :-1], tokens[:, 1:], k_drop if config.dropout else None)


@partial(jax.tree_util.register_dataclass, data_fields=["arrays"], meta_fields=["tree", "places"])
@dataclass(frozen=True)
class _Stripped:
    """Residuals as the arrays that a scan must stack, and where these and the known ones go."""

    arrays: list[Array]
    tree: Any
    places: tuple[int, ...]


def _strip(residuals: Any, known: Any) -> _Stripped:
    """Without the arrays that the backward has anyway, and those that are there twice."""
    place = {id(leaf): number for number, leaf in enumerate(jax.tree.leaves(known))}
    leaves, tree = jax.tree.flatten(residuals)
    arrays: list[Array] = []
    for leaf in leaves:
        if id(leaf) not in place:
            place[id(leaf)] = len(jax.tree.leaves(known)) + len(arrays)
            arrays.append(leaf)
    return _Stripped(arrays, tree, tuple(place[id(leaf)] for leaf in leaves))


def _put_back(stripped: _Stripped, known: Any) -> Any:
    """The residuals as they were."""
    arrays = (*jax.tree.leaves(known), *stripped.arrays)
    return jax.tree.unflatten(stripped.tree, [arrays[place] for place in stripped.places])


def check_tokens(params: Params, tokens: Array, config: Config) -> None:
    """Refuse what `forward` says it raises; what a token is, `embedding` checks."""
    inputs.check_params(params, init_params, config)
    inputs.check_tokens(tokens)
    if tokens.shape[1] > config.positions:
        raise ValueError(
            f"tokens have shape {tokens.shape}, sequences of {tokens.shape[1]}; there are "
            f"{config.positions} positions: cut the sequences, or give the model more positions"
        )
