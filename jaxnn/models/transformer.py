"""A decoder language model: every token attends to those before it, layer upon layer.

    x = embedding(tokens) + embedding(positions)          the second not with rotary positions
    x = x + attention(norm(x)),  x = x + feed_forward(norm(x))                   in each layer
    logits = norm(x) w                                    w = embedding table^T in a tied model

    feed_forward    f(x up) down,  (f(x gate) * (x up)) down,  or a mixture of experts, with f as
                    the configuration has it

    loss = mean over all N T places of -log p(target), in nats per token
           + balance (sum of the layers' load-balancing losses)                  with experts

Dropout is on what leaves the embeddings and each branch of a layer. The layers' parameters are
stacked, and both passes are one `lax.scan` over them: compiling takes as long for one layer as for
a hundred. `jaxnn.models.generate` draws text from a model; its settings and parameters are in
`jaxnn.models.transformer_params`.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from jaxnn.checks import (
    check_backward,
    check_batch,
    check_init,
    check_model,
    check_targets,
    check_tokens,
)
from jaxnn.data import KeyedBatch
from jaxnn.explicit import automatic, automatic_gradient
from jaxnn.models.transformer_params import AXES as AXES
from jaxnn.models.transformer_params import Block, FeedForward
from jaxnn.models.transformer_params import Config as Config
from jaxnn.models.transformer_params import Params as Params
from jaxnn.models.transformer_params import gpt2 as gpt2
from jaxnn.models.transformer_params import init_params as init_params
from jaxnn.models.transformer_params import llama as llama
from jaxnn.numerics import in_dtype_of, is_zero
from jaxnn.op import Op, door
from jaxnn.ops.activations import dropout, relu
from jaxnn.ops.collectives import all_copy, all_sum, on_first
from jaxnn.ops.collectives_doors import check_axes
from jaxnn.ops.experts import Experts, ExpertsResiduals, experts
from jaxnn.ops.gated import Halves, geglu, gelu, silu, swiglu
from jaxnn.ops.linear import (
    Embedding,
    EmbeddingResiduals,
    Linear,
    LinearResiduals,
    embedding,
    linear,
)
from jaxnn.ops.linear_cross_entropy import LinearCrossEntropyResiduals, linear_cross_entropy
from jaxnn.ops.multi_head import MultiHeadResiduals, multi_head
from jaxnn.ops.normalisation import Normalised, Scale, layer_norm, rms_norm
from jaxnn.ops.ring_attention import ring_positions
from jaxnn.ops.rotary import Scaling
from jaxnn.ops.sharded import STACKED, layer_axes, logical_axes, whole_bwd, whole_fwd
from jaxnn.ops.vocabulary import (
    VocabularyCrossEntropyResiduals,
    vocabulary_cross_entropy,
    vocabulary_embedding,
)

Batch = KeyedBatch
BATCH_AXES = P("batch", "sequence")
# The activation of a feed-forward layer, of one array or of gate and value, and its settings.
ACTIVATIONS: dict[str, tuple[Op[..., Array], dict[str, Any]]] = {
    "gelu": (gelu, {"approximate": True}),
    "gelu_exact": (gelu, {}),
    "silu": (silu, {}),
    "relu": (relu, {}),
    "swiglu": (swiglu, {}),
    "geglu": (geglu, {"approximate": True}),
    "geglu_exact": (geglu, {}),
}
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
    llama(
        vocabulary=5, positions=6, layers=2, width=6, heads=2, kv_heads=1, head_size=4, hidden=5,
        norm_offset=1.0, qk_norm=True, feed_forward="geglu", tied=True, scaled_embedding=True,
        attention_biases="qkv", feed_forward_biases=True, rotary_base=100.0,
        rotary_scaling=Scaling(2.0, 1.0, 4.0, 16),
    ),
)  # fmt: skip


def norm_of(config: Config) -> tuple[Op[..., Array], dict[str, float]]:
    """Return the norm of a configuration, and its settings."""
    if config.norm == "layer":
        return layer_norm, {"eps": config.eps}
    return rms_norm, {"eps": config.eps, "offset": config.norm_offset}


class FeedForwardResiduals(NamedTuple):
    """What each part of a feed-forward layer saved; of the gate None where there is none."""

    up: LinearResiduals
    gate: LinearResiduals | None
    activation: Array | Halves
    down: LinearResiduals


def feed_forward_fwd(
    params: FeedForward | Experts, x: Array, config: Config
) -> tuple[tuple[Array, Array], FeedForwardResiduals | ExpertsResiduals]:
    """Map x (N, T, D) to (y (N, T, D), load-balancing loss, 0 without experts), residuals."""
    if isinstance(params, Experts):
        return experts.fwd(params, x, **_experts(config))
    axis = config.axes.hidden
    x, _ = all_copy.fwd(x, axis=axis)
    f, settings = ACTIVATIONS[config.feed_forward]
    activation: Array | Halves
    h, up = linear.fwd(Linear(params.up, params.bup), x)
    if params.gate is None:
        gate = None
        h, activation = f.fwd(h, **settings)
    else:
        g, gate = linear.fwd(Linear(params.gate, params.bgate), x)
        h, activation = f.fwd(g, h, **settings)
    y, down = linear.fwd(Linear(params.down, on_first(params.bdown, axis=axis)), h)
    y, _ = all_sum.fwd(y, axis=axis)
    return (y, jnp.zeros((), y.dtype)), FeedForwardResiduals(up, gate, activation, down)


def feed_forward_bwd(
    saved: FeedForwardResiduals | ExpertsResiduals, dout: tuple[Array, Array], config: Config
) -> tuple[FeedForward | Experts, Array]:
    """Walk from y and the load-balancing loss back to the parameters and x."""
    if isinstance(saved, ExpertsResiduals):
        dexperts, dx = experts.bwd(saved, dout, **_experts(config))
        return dexperts, dx
    (f, settings), axis = ACTIVATIONS[config.feed_forward], config.axes.hidden
    (dy,) = all_sum.bwd((), dout[0], axis=axis)
    (ddown, dbdown), _ = linear.bwd(saved.down, dy)
    # What entered `down` is the widest of all, as dh is: it may go before dh comes.
    dy, ddown = lax.optimization_barrier((dy, ddown))
    _, dh = linear.bwd(saved.down, dy)
    if saved.gate is None:
        (dh,) = f.bwd(saved.activation, dh, **settings)
        (dup, dbup), dx = linear.bwd(saved.up, dh)
        (dx,) = all_copy.bwd((), dx, axis=axis)
        return FeedForward(dup, ddown, None, dbup, dbdown), dx
    dg, dh = f.bwd(saved.activation, dh, **settings)
    (dgate, dbgate), dx_gate = linear.bwd(saved.gate, dg)
    (dup, dbup), dx_up = linear.bwd(saved.up, dh)
    (dx,) = all_copy.bwd((), dx_gate + dx_up, axis=axis)
    return FeedForward(dup, ddown, dgate, dbup, dbdown, dbgate), dx


class BlockResiduals(NamedTuple):
    """What each part of a layer saved, and what dropout kept of each branch; None for all."""

    attention_norm: Normalised
    attention: MultiHeadResiduals
    attention_kept: Array | None
    feed_forward_norm: Normalised
    feed_forward: FeedForwardResiduals | ExpertsResiduals
    feed_forward_kept: Array | None


def block_fwd(
    block: Block, x: Array, keys: Array | None, config: Config
) -> tuple[tuple[Array, Array], BlockResiduals]:
    """Run one layer: (x (N, T, D), load-balancing loss), residuals; `keys` are two for dropout."""
    (norm, settings), rate = norm_of(config), config.dropout
    k_attention, k_feed_forward = (None, None) if keys is None else keys
    a, attention_norm = norm.fwd(block.attention_norm, x, **settings)
    positions = _positions(x.shape[1], config)
    a, attention = multi_head.fwd(block.attention, a, positions, None, **_attention(config))
    a, a_kept = (a, None) if k_attention is None else dropout.fwd(a, k_attention, rate=rate)
    x = x + a
    f, feed_norm = norm.fwd(block.feed_forward_norm, x, **settings)
    (f, balance), feed = feed_forward_fwd(block.feed_forward, f, config)
    f, f_kept = (f, None) if k_feed_forward is None else dropout.fwd(f, k_feed_forward, rate=rate)
    saved = BlockResiduals(attention_norm, attention, a_kept, feed_norm, feed, f_kept)
    return (x + f, balance), saved


def block_bwd(
    saved: BlockResiduals, dout: tuple[Array, Array], config: Config
) -> tuple[Block, Array]:
    """Walk the same layer from its end: gradients of the parameters and of x.

    What a branch sends back is added to what passes it by.
    """
    (norm, settings), rate = norm_of(config), config.dropout
    attention_norm, attention, a_kept, feed_norm, feed, f_kept = saved
    dx, dbalance = dout
    df = dx if f_kept is None else dropout.bwd(f_kept, dx, rate=rate)[0]
    dfeed, df = feed_forward_bwd(feed, (df, dbalance), config)
    dfeed_norm, df = norm.bwd(feed_norm, df, **settings)
    dx = dx + df
    da = dx if a_kept is None else dropout.bwd(a_kept, dx, rate=rate)[0]
    dattention, da, *_ = multi_head.bwd(attention, da, **_attention(config))
    dattention_norm, da = norm.bwd(attention_norm, da, **settings)
    return Block(dattention_norm, dattention, dfeed_norm, dfeed), dx + da


def _attention(config: Config) -> dict[str, Any]:
    """The settings of a layer's attention, of the heads of one device."""
    axis = config.axes.heads
    devices = lax.axis_size(axis)
    settings = {
        "heads": config.heads // devices,
        "kv_heads": (config.kv_heads or config.heads) // devices,
        "axis": axis,
        "sequence": config.axes.sequence,
        "causal": True,
        "window": config.window,
        "block": config.block,
        "rotary_base": config.rotary_base if config.position == "rotary" else None,
        "rotary_scaling": config.rotary_scaling,
    }
    if config.qk_norm:
        settings |= {"norm_eps": config.eps, "norm_offset": config.norm_offset}
    return settings


def _experts(config: Config) -> dict[str, Any]:
    """The settings of a mixture of experts."""
    axes = config.axes
    k, batch = config.experts_per_token, axes.batch + axes.sequence
    return {"k": k, "axis": axes.experts, "units": axes.hidden, "batch": batch}


def _positions(t: int, config: Config) -> Array:
    """Where in the sequence the t tokens are that one device has."""
    axis = config.axes.sequence
    return ring_positions(t, axis=axis, causal=True) if axis else jnp.arange(t)


_LEFT_OUT: Any = None


def leave_out(saved: BlockResiduals) -> BlockResiduals:
    """Leave out what `put_back` has: the layer's parameters, and what one pass gives again.

    A scan would stack a second copy of the parameters; to stack the others costs more passes over
    memory than the one: what enters a branch is y of its norm, what enters `down` the activation.
    """
    feed, (*_, of_attention, q_norm, k_norm) = saved.feed_forward, saved.attention
    if q_norm is not None and k_norm is not None:
        q_norm, k_norm = (norm._replace(params=_LEFT_OUT) for norm in (q_norm, k_norm))
    attention = MultiHeadResiduals(_LEFT_OUT, _LEFT_OUT, _LEFT_OUT, of_attention, q_norm, k_norm)
    return BlockResiduals(
        saved.attention_norm._replace(params=_LEFT_OUT),
        attention,
        saved.attention_kept,
        saved.feed_forward_norm._replace(params=_LEFT_OUT),
        feed._replace(params=_LEFT_OUT, x=_LEFT_OUT)
        if isinstance(feed, ExpertsResiduals)
        else feed._replace(up=_LEFT_OUT, gate=_LEFT_OUT, down=_LEFT_OUT),
        saved.feed_forward_kept,
    )


def put_back(saved: BlockResiduals, block: Block, config: Config) -> BlockResiduals:
    """Return the residuals as they were before `leave_out`."""
    offset = config.norm_offset if config.norm == "rms" else 0.0
    attention_norm = saved.attention_norm._replace(params=block.attention_norm)
    a, (*_, of_attention, q_norm, k_norm) = attention_norm.y(offset), saved.attention
    if q_norm is not None and k_norm is not None:
        q_norm = q_norm._replace(params=Scale(block.attention.q_norm, None))
        k_norm = k_norm._replace(params=Scale(block.attention.k_norm, None))
    positions = _positions(a.shape[1], config)
    attention = MultiHeadResiduals(block.attention, a, positions, of_attention, q_norm, k_norm)
    feed_norm = saved.feed_forward_norm._replace(params=block.feed_forward_norm)
    feed, x = saved.feed_forward, feed_norm.y(offset)
    params: Any = block.feed_forward
    if isinstance(feed, ExpertsResiduals):
        feed = feed._replace(params=params, x=x)
    else:
        gate, (_, _, activation, _) = None, feed
        f, settings = ACTIVATIONS[config.feed_forward]
        if isinstance(activation, Halves):
            gate = LinearResiduals(Linear(params.gate, params.bgate), x)
            h, _ = f.fwd(*activation, **settings)
        else:  # of what it gave, ReLU gives the same
            h, _ = f.fwd(activation, **settings)
        up = LinearResiduals(Linear(params.up, params.bup), x)
        down = LinearResiduals(Linear(params.down, params.bdown), h)
        feed = FeedForwardResiduals(up, gate, activation, down)
    return BlockResiduals(
        attention_norm,
        attention,
        saved.attention_kept,
        feed_norm,
        feed,
        saved.feed_forward_kept,
    )


class LayersResiduals(NamedTuple):
    """The stacked parameters, each layer's keys, and what each saved, stacked.

    `saved` is what `leave_out` leaves or, to recompute, the input of each layer.
    """

    blocks: Block
    keys: Array | None
    saved: BlockResiduals | Array


def layers_fwd(
    blocks: Block, x: Array, key: Array | None, config: Config
) -> tuple[tuple[Array, Array], LayersResiduals]:
    """Run all layers, first to last: (x, sum of the load-balancing losses), residuals."""
    keys = None if key is None else jax.random.split(key, (config.layers, 2))
    names = layer_axes(blocks, AXES)

    def step(
        x: Array, layer: tuple[Block, Array | None]
    ) -> tuple[Array, tuple[Array, BlockResiduals | Array]]:
        part, keys = layer
        block = whole_fwd(part, names, axis=config.axes.embed)
        (y, balance), saved = block_fwd(block, x, keys, config)
        return y, (balance, x if config.recompute else leave_out(saved))

    x, (balances, saved) = lax.scan(step, x, (blocks, keys), unroll=config.unroll)
    return (x, balances.sum()), LayersResiduals(blocks, keys, saved)


def layers_bwd(
    residuals: LayersResiduals, dout: tuple[Array, Array], config: Config
) -> tuple[Block, Array]:
    """Walk all layers, last to first: gradients of the stacked parameters and of x."""
    dx, dbalance = dout
    names = layer_axes(residuals.blocks, AXES)

    def step(dx: Array, layer: LayersResiduals) -> tuple[Array, Block]:
        part, keys, saved = layer
        block = whole_fwd(part, names, axis=config.axes.embed)
        if isinstance(saved, BlockResiduals):
            whole = put_back(saved, block, config)
        else:
            if config.unroll > 1:
                # Without a loop the compiler would find what the forward computed, or compute it
                # all before it is needed.
                saved, dx = lax.optimization_barrier((saved, dx))
            _, whole = block_fwd(block, saved, keys, config)
        dblock, dx = block_bwd(whole, (dx, dbalance), config)
        return dx, whole_bwd(dblock, names, axis=config.axes.embed)

    dx, dblocks = lax.scan(step, dx, residuals, reverse=True, unroll=config.unroll)
    return dblocks, dx


class EmbedResiduals(NamedTuple):
    """What the two tables saved; of the positions None where they have none."""

    tokens: EmbeddingResiduals
    positions: EmbeddingResiduals | None


def embed_fwd(
    params: Params, tokens: Array, positions: Array, config: Config
) -> tuple[Array, EmbedResiduals]:
    """Embed tokens (N, T) at positions (T,): what enters the first layer (N, T, D), residuals."""
    if config.axes.vocab:
        x, at_tokens = vocabulary_embedding.fwd(params.tokens, tokens, axis=config.axes.vocab)
    else:
        x, at_tokens = embedding.fwd(params.tokens, tokens)
    if config.scaled_embedding:
        x = x * math.sqrt(config.width)
    if params.positions is None:
        return x, EmbedResiduals(at_tokens, None)
    p, at_positions = embedding.fwd(params.positions, positions)
    return x + p, EmbedResiduals(at_tokens, at_positions)


def embed_bwd(
    saved: EmbedResiduals, dx: Array, config: Config
) -> tuple[Embedding, Embedding | None]:
    """Return both tables' gradients; a position's row was added to each of the N examples."""
    scaled = dx * math.sqrt(config.width) if config.scaled_embedding else dx
    if config.axes.vocab:
        dtokens, _ = vocabulary_embedding.bwd(saved.tokens, scaled, axis=config.axes.vocab)
    else:
        dtokens, _ = embedding.bwd(saved.tokens, scaled)
    if saved.positions is None:
        return dtokens, None
    dpositions, _ = embedding.bwd(saved.positions, dx.sum(0))
    return dtokens, dpositions


class NetworkResiduals(NamedTuple):
    """What each part saved, and what dropout kept of the embeddings; None for all."""

    embedded: EmbedResiduals
    kept: Array | None
    layers: LayersResiduals
    norm: Normalised


def network_fwd(
    params: Params, tokens: Array, key: Array | None, config: Config
) -> tuple[tuple[Array, Array], NetworkResiduals]:
    """Run all but the output: (x (N, T, D), sum of the load-balancing losses), residuals."""
    x, embedded = embed_fwd(params, tokens, _positions(tokens.shape[1], config), config)
    kept, k_layers = None, None
    if key is not None and not is_zero(config.dropout):
        k_embedding, k_layers = jax.random.split(key)
        x, kept = dropout.fwd(x, k_embedding, rate=config.dropout)
    (x, balance), layers = layers_fwd(params.blocks, x, k_layers, config)
    norm, settings = norm_of(config)
    x, normalised = norm.fwd(params.norm, x, **settings)
    return (x, balance), NetworkResiduals(embedded, kept, layers, normalised)


def network_bwd(saved: NetworkResiduals, dout: tuple[Array, Array], config: Config) -> Params:
    """Walk from the norm back to the tables: gradients of all parameters but the output's."""
    dx, dbalance = dout
    norm, settings = norm_of(config)
    dnorm, dx = norm.bwd(saved.norm, dx, **settings)
    dblocks, dx = layers_bwd(saved.layers, (dx, dbalance), config)
    if saved.kept is not None:
        dx, _ = dropout.bwd(saved.kept, dx, rate=config.dropout)
    dtokens, dpositions = embed_bwd(saved.embedded, dx, config)
    return Params(dtokens, dpositions, dblocks, dnorm, None)


def output_weights(params: Params) -> Array:
    """Return w (D, V) of the logits: the output's own or, tied, the transposed table."""
    return params.tokens.table.T if params.output is None else params.output


def _whole(params: Params, config: Config) -> Any:
    """The shapes of the parameters of which, inside `jax.shard_map`, a device has parts.

    Those that are not stacked by layers are already put together along "embed".
    """

    def whole(leaf: Array, names: P) -> jax.ShapeDtypeStruct:
        cut = config.axes if names[:1] == STACKED[:1] else config.axes._replace(embed=())
        along = (getattr(cut, name or "", ()) for name in names)
        sizes = zip(leaf.shape, along, strict=True)
        shape = [size * lax.axis_size(axis) for size, axis in sizes]
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    return jax.tree.map(whole, params, logical_axes(params, AXES))


def check_sequences(params: Params, tokens: Array, config: Config) -> None:
    """Refuse parameters of another configuration, and tokens that the model cannot read.

    Raises:
        TypeError, ValueError: as `forward`.
    """
    if isinstance(config, Config) and any(config.axes):
        check_axes(config.axes)
        params = _whole(params, config) if isinstance(params, Params) else params
    check_model(params, config, Config, init_params)
    check_tokens("tokens", tokens, config.vocabulary)
    if tokens.shape[1] > config.positions:
        raise ValueError(
            f"tokens have shape {tokens.shape}, sequences of {tokens.shape[1]}; there are "
            f"{config.positions} positions: cut the sequences, or give the model more positions"
        )


def _check_batch(params: Params, batch: Batch, config: Config) -> None:
    """Refuse what `loss` says it raises."""
    check_batch(batch, Batch)
    check_sequences(params, batch[0], config)
    check_targets(*batch, vocabulary=config.vocabulary)


class LossResiduals(NamedTuple):
    """What the network and the loss of its output saved."""

    network: NetworkResiduals
    cross_entropy: LinearCrossEntropyResiduals | VocabularyCrossEntropyResiduals


@door(check_sequences)
def forward(params: Params, tokens: Array, config: Config) -> Array:
    """Return logits (N, T, V) of the token after each of tokens (N, T), in evaluation.

    Raises:
        TypeError: the tokens are not an array of integers; the configuration is none of this
            model's, or the parameters not of its kind, or not all of one floating dtype.
        ValueError: the tokens' shape is not (N, T) with T from 1 to the positions, or (outside jit)
            one is outside [0, V); the parameters are of another configuration.
    """
    (x, _), _ = network_fwd(params, tokens, None, config)
    return x @ output_weights(params)


@door(_check_batch)
def loss_fwd(params: Params, batch: Batch, config: Config) -> tuple[Array, LossResiduals]:
    """Return cross-entropy plus the experts' balance, and residuals; raises as `loss`."""
    tokens, targets, key = Batch(*batch)
    (x, balance), network = network_fwd(params, tokens, key, config)
    output, axes = Linear(output_weights(params)), config.axes
    saved: LinearCrossEntropyResiduals | VocabularyCrossEntropyResiduals
    if axes.vocab:
        cross_entropy, saved = vocabulary_cross_entropy.fwd(output, x, targets, axis=axes.vocab)
    else:
        cross_entropy, saved = linear_cross_entropy.fwd(output, x, targets, chunk=config.chunk)
    balance, _ = all_copy.fwd(balance, axis=axes.batch + axes.sequence)
    value = cross_entropy + in_dtype_of(config.balance, balance) * balance
    return value, LossResiduals(network, saved)


@door(partial(check_backward, residuals=LossResiduals, kind=Config))
def loss_bwd(saved: LossResiduals, dloss: Array, config: Config) -> Params:
    """Walk back through the output, then the network.

    A tied table has two uses, as the embedding and as the output, and gets the sum of both.
    """
    axes, of_output = config.axes, saved.cross_entropy
    if isinstance(of_output, VocabularyCrossEntropyResiduals):
        (dw, _), dx, _ = vocabulary_cross_entropy.bwd(of_output, dloss, axis=axes.vocab)
    else:
        (dw, _), dx, *_ = linear_cross_entropy.bwd(of_output, dloss, chunk=config.chunk)
    dbalance = in_dtype_of(config.balance, dx) * dloss
    if config.experts:
        (dbalance,) = all_copy.bwd((), dbalance, axis=axes.batch + axes.sequence)
    grads = network_bwd(saved.network, (dx, dbalance), config)
    if config.tied:
        return grads._replace(tokens=Embedding(grads.tokens.table + dw.T))
    return grads._replace(output=dw)


@automatic
def loss(params: Params, batch: Batch, config: Config) -> Array:
    """Return the cross-entropy in nats per token plus the balance of the experts; a scalar.

    The batch is a Batch, or a tuple of tokens, targets and perhaps a key. With dropout, one that
    has a key is for training, one without is evaluated.
    Plain JAX throughout: `jax.grad(loss)` is the oracle for `manual_grad`.

    Raises:
        TypeError, ValueError: as `forward`; or there is no token; or the targets are not integers
            in [0, V) (under jit NaN) of the tokens' shape; or the key is none of `jax.random`.
    """
    value, _ = loss_fwd(params, batch, config)
    return value


@automatic_gradient
def manual_value_and_grad(params: Params, batch: Batch, config: Config) -> tuple[Array, Params]:
    """Return the loss and its gradient by hand, from one forward pass; raises as `loss`."""
    value, saved = loss_fwd(params, batch, config)
    return value, loss_bwd(saved, jnp.ones_like(value), config)


def manual_grad(params: Params, batch: Batch, config: Config) -> Params:
    """Return the gradient of `loss` by hand: equals `jax.grad(loss)(params, batch, config)`."""
    _, grads = manual_value_and_grad(params, batch, config)
    return grads


@door(partial(check_init, kind=Config, function="example_batch"))
def example_batch(key: Array, config: Config) -> Batch:
    """Draw three sequences of at most 16 tokens for verification; with dropout, a key."""
    k_tokens, k_drop = jax.random.split(key)
    shape = (3, min(config.positions, 16) + 1)
    tokens = jax.random.randint(k_tokens, shape, 0, config.vocabulary)
    return Batch(tokens[:, :-1], tokens[:, 1:], None if is_zero(config.dropout) else k_drop)
