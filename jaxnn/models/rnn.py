"""A recurrent language model: from the tokens so far, the distribution of the next.

    x = embedding(tokens),  x = cell(dropout(x)) in each layer,  logits = dropout(x) w + b

    loss = mean over all N T places of -log p(target), in nats per token

Each layer's cell is a tanh RNN, an LSTM or a GRU, see `jaxnn.ops.recurrent`; its state starts at 0.
Dropout is on what goes up from layer to layer, never on what goes from step to step (Zaremba et
al., 2014, section 3.2). It needs a key in the batch; without one the model is evaluated.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.nn.initializers import glorot_uniform, normal
from jax.sharding import PartitionSpec as P

from jaxnn.checks import (
    check_backward,
    check_batch,
    check_init,
    check_key,
    check_model,
    check_targets,
    check_tokens,
)
from jaxnn.data import KeyedBatch
from jaxnn.explicit import automatic, automatic_gradient
from jaxnn.models.sampling import draw_settings, sample, token_dtype
from jaxnn.numerics import is_zero
from jaxnn.op import Op, door
from jaxnn.ops.activations import dropout
from jaxnn.ops.cross_entropy import CrossEntropyResiduals, softmax_cross_entropy
from jaxnn.ops.gru import gru
from jaxnn.ops.linear import (
    Embedding,
    EmbeddingResiduals,
    Linear,
    LinearResiduals,
    embedding,
    linear,
)
from jaxnn.ops.recurrent import lstm, rnn
from jaxnn.ops.recurrent_parts import (
    CellState,
    Recurrent,
    init_gru,
    init_lstm,
    init_rnn,
)
from jaxnn.ops.recurrent_steps import Output, RecurrentResiduals
from jaxnn.settings import check_choice, check_depth, check_integer, check_rate

Batch = KeyedBatch
CELLS: dict[str, Op[..., Output]] = {"rnn": rnn, "lstm": lstm, "gru": gru}
INITIALISERS = {"rnn": init_rnn, "lstm": init_lstm, "gru": init_gru}
States = tuple[CellState, ...]


@dataclass(frozen=True)
class Config:
    """What the network is. Hashable and static: a different one is a different program.

    Attributes:
        vocabulary: V, how many tokens there are.
        width: features of a token's embedding.
        hidden: units of every layer.
        layers: how many.
        cell: "rnn", "lstm" or "gru".
        dropout: probability to drop what enters a layer or the output, in [0, 1); JAX may
            trace it.
        truncate: let no gradient pass between the steps t - 1 and t where t is a multiple of this;
            None: everywhere one passes.

    Raises:
        ValueError: a setting is outside its range.
        TypeError: a setting is of another kind than above.
    """

    vocabulary: int = 128
    width: int = 64
    hidden: int = 256
    layers: int = 1
    cell: str = "lstm"
    dropout: float = 0.0
    truncate: int | None = None

    def __post_init__(self) -> None:
        """Check every setting once, here, so that nothing after has to."""
        for field in ("vocabulary", "width", "hidden", "layers", "truncate"):
            value = getattr(self, field)
            if not (field == "truncate" and value is None):
                object.__setattr__(self, field, check_integer(field, value))
        check_depth("layers", self.layers)
        check_choice("cell", self.cell, CELLS)
        object.__setattr__(self, "dropout", check_rate("dropout", self.dropout))


class Params(NamedTuple):
    """The table (V, width), the layers from the input up, and the output (hidden, V)."""

    embedding: Embedding
    layers: tuple[Recurrent, ...]
    output: Linear


# The logical axes of a parameter, by its field.
AXES = {
    "table": P(None, "embed"),
    **dict.fromkeys(("w_x", "w_h", "w_hr", "w"), P("embed", None)),
    **dict.fromkeys(("b", "b_hn"), P(None)),
}
# None truncates: finite differences see through that, so they would contradict both gradients.
EXAMPLE_CONFIGS = (
    Config(vocabulary=7, width=2, hidden=5, cell="rnn"),
    Config(vocabulary=5, width=4, hidden=2, layers=2, cell="lstm", dropout=0.3),
    Config(vocabulary=8, width=2, hidden=4, cell="gru"),
)


@door(partial(check_init, kind=Config))
def init_params(key: Array, config: Config) -> Params:
    """Draw embeddings from N(0, 1), cells as `jaxnn.ops.recurrent`, the output Glorot-uniform.

    Biases are 0, but for those of the cells.

    Raises:
        TypeError: the key is none of `jax.random`, or the configuration another model's.
    """
    k_embedding, k_output, *k_layers = jax.random.split(key, 2 + config.layers)
    inputs = (config.width, *(config.hidden,) * (config.layers - 1))
    return Params(
        Embedding(normal(1.0)(k_embedding, (config.vocabulary, config.width))),
        tuple(
            INITIALISERS[config.cell](k, size, config.hidden)
            for k, size in zip(k_layers, inputs, strict=True)
        ),
        Linear(
            glorot_uniform()(k_output, (config.hidden, config.vocabulary)),
            jnp.zeros(config.vocabulary),
        ),
    )


def zero_states(n: int, dtype: Any, config: Config) -> States:
    """Return the state of every layer before the first step: 0, for N sequences."""
    zeros = jnp.zeros((n, config.hidden), dtype)
    return (CellState(zeros, zeros if config.cell == "lstm" else None),) * config.layers


class LayerResiduals(NamedTuple):
    """What dropout kept of the layer's input, None for all, and what the cell saved."""

    kept: Array | None
    cell: RecurrentResiduals


def layer_fwd(
    layer: Recurrent, state: CellState, x: Array, key: Array | None, config: Config
) -> tuple[Output, LayerResiduals]:
    """Drop, then run the cell over all steps: (h (N, T, H), final state), residuals."""
    x, kept = (x, None) if key is None else dropout.fwd(x, key, rate=config.dropout)
    out, saved = CELLS[config.cell].fwd(layer, state, x, None, truncate=config.truncate)
    return out, LayerResiduals(kept, saved)


def layer_bwd(
    saved: LayerResiduals, dout: Output, config: Config
) -> tuple[Recurrent, CellState, Array]:
    """Walk back through the cell, then the dropout: gradients of layer, first state and input."""
    dlayer, dstate, dx, _ = CELLS[config.cell].bwd(saved.cell, dout, truncate=config.truncate)
    if saved.kept is not None:
        dx, _ = dropout.bwd(saved.kept, dx, rate=config.dropout)
    return dlayer, dstate, dx


class NetworkResiduals(NamedTuple):
    """What each part saved, and what dropout kept of the output's input; None for all."""

    embedding: EmbeddingResiduals
    layers: tuple[LayerResiduals, ...]
    kept: Array | None
    output: LinearResiduals


def network_fwd(
    params: Params, states: States, tokens: Array, key: Array | None, config: Config
) -> tuple[tuple[Array, States], NetworkResiduals]:
    """Run embedding, layers and output: (logits (N, T, V), final states), residuals."""
    *keys, k_output = [None] * (config.layers + 1)
    if key is not None and not is_zero(config.dropout):
        *keys, k_output = jax.random.split(key, config.layers + 1)
    x, of_embedding = embedding.fwd(params.embedding, tokens)
    finals, saved = [], []
    for layer, state, k in zip(params.layers, states, keys, strict=True):
        (x, final), of_layer = layer_fwd(layer, state, x, k, config)
        finals.append(final)
        saved.append(of_layer)
    x, kept = (x, None) if k_output is None else dropout.fwd(x, k_output, rate=config.dropout)
    logits, of_output = linear.fwd(params.output, x)
    return (logits, tuple(finals)), NetworkResiduals(of_embedding, tuple(saved), kept, of_output)


def network_bwd(
    saved: NetworkResiduals, dout: tuple[Array, States], config: Config
) -> tuple[Params, States]:
    """Walk back from the output to the embedding: gradients of parameters and first states."""
    dlogits, dfinals = dout
    doutput, dx = linear.bwd(saved.output, dlogits)
    if saved.kept is not None:
        dx, _ = dropout.bwd(saved.kept, dx, rate=config.dropout)
    dlayers, dstates = [], []
    for of_layer, dfinal in zip(reversed(saved.layers), reversed(dfinals), strict=True):
        dlayer, dstate, dx = layer_bwd(of_layer, (dx, dfinal), config)
        dlayers.append(dlayer)
        dstates.append(dstate)
    dembedding, _ = embedding.bwd(saved.embedding, dx)
    return Params(dembedding, tuple(reversed(dlayers)), doutput), tuple(reversed(dstates))


def _check(params: Params, tokens: Array, config: Config) -> None:
    """Refuse what `forward` says it raises."""
    check_model(params, config, Config, init_params)
    check_tokens("tokens", tokens, config.vocabulary)


def _check_batch(params: Params, batch: Batch, config: Config) -> None:
    """Refuse what `loss` says it raises."""
    check_batch(batch, Batch)
    _check(params, batch[0], config)
    check_targets(*batch, vocabulary=config.vocabulary)


class LossResiduals(NamedTuple):
    """What the network and the loss of its logits saved."""

    network: NetworkResiduals
    cross_entropy: CrossEntropyResiduals


@door(_check)
def forward(params: Params, tokens: Array, config: Config) -> Array:
    """Return logits (N, T, V) of the token after each of tokens (N, T), in evaluation.

    Raises:
        TypeError: the tokens are not an array of integers; the configuration is none of this
            model's, or the parameters not of its kind, or not all of one floating dtype.
        ValueError: the tokens' shape is not (N, T) with T at least 1, or (outside jit) one is
            outside [0, V); the parameters are of another configuration.
    """
    states = zero_states(len(tokens), params.embedding.table.dtype, config)
    (logits, _), _ = network_fwd(params, states, tokens, None, config)
    return logits


@door(_check_batch)
def loss_fwd(params: Params, batch: Batch, config: Config) -> tuple[Array, LossResiduals]:
    """Return the mean cross-entropy, and residuals; raises as `loss`."""
    tokens, targets, key = Batch(*batch)
    states = zero_states(len(tokens), params.embedding.table.dtype, config)
    (logits, _), network = network_fwd(params, states, tokens, key, config)
    value, of_logits = softmax_cross_entropy.fwd(logits, targets)
    return value, LossResiduals(network, of_logits)


@door(partial(check_backward, residuals=LossResiduals, kind=Config))
def loss_bwd(saved: LossResiduals, dloss: Array, config: Config) -> Params:
    """Walk back through the cross-entropy, then the network.

    Nothing reads the final states, so their cotangents are 0; the first ones are no parameters, so
    theirs are dropped.
    """
    dlogits, *_ = softmax_cross_entropy.bwd(saved.cross_entropy, dloss)
    dfinals = zero_states(len(dlogits), dlogits.dtype, config)
    dparams, _ = network_bwd(saved.network, (dlogits, dfinals), config)
    return dparams


@automatic
def loss(params: Params, batch: Batch, config: Config) -> Array:
    """Return the cross-entropy in nats per token, the mean over the batch; a scalar.

    The batch is a Batch, or a tuple of tokens, targets and perhaps a key: without one the model is
    evaluated.
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
    """Draw tokens one by one, each from the softmax of logits / temperature after those before.

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
        TypeError, ValueError: as `forward` and `jaxnn.models.sampling.draw_settings`; or the key is
            none of `jax.random`.
    """
    settings = draw_settings(length, temperature, top_k, top_p)
    tokens: Array = _generated(params, prompt, config, key, **settings)
    return tokens


def _check_generate(
    params: Params, prompt: Array, config: Config, key: Array, length: int, **settings: Any
) -> None:
    """Refuse what `generate` says it raises."""
    _check(params, prompt, config)
    check_key("generate: key", key)
    draw_settings(length, **settings, vocabulary=config.vocabulary)


@door(_check_generate)
@partial(jax.jit, static_argnames=("config", "length", "temperature", "top_k", "top_p"))
def _generated(
    params: Params, prompt: Array, config: Config, key: Array, *, length: int, **settings: Any
) -> Array:
    """`generate`, its settings Python's, as one program."""
    states = zero_states(len(prompt), params.embedding.table.dtype, config)
    (logits, states), _ = network_fwd(params, states, prompt, None, config)
    kind = token_dtype(prompt)

    def step(before: tuple[Array, States], key: Array) -> tuple[tuple[Array, States], Array]:
        logits, states = before
        token = sample(logits, key, **settings).astype(kind)
        (logits, states), _ = network_fwd(params, states, token[:, None], None, config)
        return (logits[:, -1], states), token

    _, tokens = lax.scan(step, (logits[:, -1], states), jax.random.split(key, length))
    return jnp.concatenate([prompt.astype(kind), tokens.T], 1)


@door(partial(check_init, kind=Config, function="example_batch"))
def example_batch(key: Array, config: Config) -> Batch:
    """Draw three sequences of six tokens, the classes in turn shuffled; with dropout, a key."""
    k_tokens, k_drop = jax.random.split(key)
    tokens = jax.random.permutation(k_tokens, jnp.arange(21) % config.vocabulary).reshape(3, 7)
    return Batch(tokens[:, :-1], tokens[:, 1:], None if is_zero(config.dropout) else k_drop)
