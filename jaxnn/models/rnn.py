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

from jaxnn.checks import check_key
from jaxnn.models.generate import check_settings, sample
from jaxnn.models.inputs import check_dropout, check_params, check_tokens, unpack
from jaxnn.op import Op
from jaxnn.ops.cross_entropy import softmax_cross_entropy
from jaxnn.ops.dropout import drop_bwd, drop_fwd
from jaxnn.ops.linear import Embedding, Linear, embedding, linear
from jaxnn.ops.recurrent import Output, gru, lstm, rnn
from jaxnn.ops.recurrent_parts import CellState, Recurrent, init_gru, init_lstm, init_rnn
from jaxnn.settings import check_choice, check_integer
from jaxnn.text import Batch

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
        dropout: probability to drop what enters a layer or the output, in [0, 1).
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
        check_choice("cell", self.cell, CELLS)
        object.__setattr__(self, "dropout", check_dropout(self.dropout))


class Params(NamedTuple):
    """The table (V, width), the layers from the input up, and the output (hidden, V)."""

    embedding: Embedding
    layers: tuple[Recurrent, ...]
    output: Linear


# None truncates: finite differences see through that, so they would contradict both gradients.
EXAMPLE_CONFIGS = (
    Config(vocabulary=7, width=2, hidden=5, cell="rnn"),
    Config(vocabulary=5, width=4, hidden=2, layers=2, cell="lstm", dropout=0.3),
    Config(vocabulary=8, width=2, hidden=4, cell="gru"),
)


def init_params(key: Array, config: Config) -> Params:
    """Embeddings from N(0, 1), cells as `jaxnn.ops.recurrent`, output Glorot-uniform, biases 0.

    Raises:
        TypeError: the key is none of `jax.random`.
    """
    check_key("init_params: key", key)
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


def initial_states(params: Params, n: int, config: Config) -> States:
    """The state of every layer before the first step: 0, for N sequences."""
    zeros = jnp.zeros((n, config.hidden), params.embedding.table.dtype)
    return (CellState(zeros, zeros if config.cell == "lstm" else None),) * config.layers


def layer_fwd(
    layer: Recurrent, state: CellState, x: Array, key: Array | None, config: Config
) -> tuple[Output, Any]:
    """Dropout, then the cell over all steps: (h (N, T, H), final state), residuals."""
    x, kept = drop_fwd(x, key, config.dropout)
    out, saved = CELLS[config.cell].fwd(layer, state, x, None, truncate=config.truncate)
    return out, (kept, saved)


def layer_bwd(residuals: Any, dout: Output, config: Config) -> tuple[Recurrent, CellState, Array]:
    """The cell, then the dropout: gradients of parameters, first state and input."""
    kept, saved = residuals
    dlayer, dstate, dx, _ = CELLS[config.cell].bwd(saved, dout, truncate=config.truncate)
    return dlayer, dstate, drop_bwd(kept, dx, config.dropout)


def network_fwd(
    params: Params, states: States, tokens: Array, key: Array | None, config: Config
) -> tuple[tuple[Array, States], Any]:
    """Embedding, layers, output: (logits (N, T, V), final states), what each of them saved."""
    keys = [None] * (config.layers + 1) if key is None else jax.random.split(key, config.layers + 1)
    x, embedding_residuals = embedding.fwd(params.embedding, tokens)
    finals, saved = [], []
    for layer, state, k in zip(params.layers, states, keys[:-1], strict=True):
        (x, final), layer_residuals = layer_fwd(layer, state, x, k, config)
        finals.append(final)
        saved.append(layer_residuals)
    x, kept = drop_fwd(x, keys[-1], config.dropout)
    logits, output_residuals = linear.fwd(params.output, x)
    return (logits, tuple(finals)), (embedding_residuals, saved, kept, output_residuals)


def network_bwd(
    residuals: Any, dout: tuple[Array, States], config: Config
) -> tuple[Params, States]:
    """Output, layers last to first, embedding: gradients of parameters and first states."""
    embedding_residuals, saved, kept, output_residuals = residuals
    dlogits, dfinals = dout
    doutput, dx = linear.bwd(output_residuals, dlogits)
    dx = drop_bwd(kept, dx, config.dropout)
    dlayers, dstates = [], []
    for layer_residuals, dfinal in zip(reversed(saved), reversed(dfinals), strict=True):
        dlayer, dstate, dx = layer_bwd(layer_residuals, (dx, dfinal), config)
        dlayers.append(dlayer)
        dstates.append(dstate)
    dembedding, _ = embedding.bwd(embedding_residuals, dx)
    return Params(dembedding, tuple(reversed(dlayers)), doutput), tuple(reversed(dstates))


def forward(params: Params, tokens: Array, config: Config) -> Array:
    """Logits (N, T, V) of the token after each of tokens (N, T), in evaluation.

    Raises:
        TypeError: the tokens are not an array of integers.
        ValueError: their shape is not (N, T) with N and T at least 1, or (outside jit) one is
            outside [0, V); the parameters are of another configuration.
    """
    _check(params, tokens, config)
    states = initial_states(params, len(tokens), config)
    (logits, _), _ = network_fwd(params, states, tokens, None, config)
    return logits


def loss(params: Params, batch: Any, config: Config) -> Array:
    """Cross-entropy in nats per token, the mean over the batch; a scalar.

    The batch is a Batch, or a pair of tokens and targets to evaluate on.
    Plain JAX throughout: `jax.grad(loss)` is the oracle for `manual_grad`.

    Raises:
        TypeError, ValueError: as `forward`; or the targets are not integers in [0, V) (under jit
            NaN) of the tokens' shape.
    """
    tokens, targets, key = unpack(batch, Batch)
    _check(params, tokens, config)
    states = initial_states(params, len(tokens), config)
    (logits, _), _ = network_fwd(params, states, tokens, key, config)
    value, _ = softmax_cross_entropy.fwd(logits, targets)
    return value


def manual_value_and_grad(params: Params, batch: Any, config: Config) -> tuple[Array, Params]:
    """The loss and its gradient by hand, from one forward pass; raises as `loss`.

    Nothing reads the final states, so their cotangents are 0; the first ones are no parameters, so
    theirs are dropped.
    """
    tokens, targets, key = unpack(batch, Batch)
    _check(params, tokens, config)
    states = initial_states(params, len(tokens), config)
    (logits, finals), network_residuals = network_fwd(params, states, tokens, key, config)
    value, loss_residuals = softmax_cross_entropy.fwd(logits, targets)

    dlogits, _ = softmax_cross_entropy.bwd(loss_residuals, jnp.ones_like(value))
    dfinals = jax.tree.map(jnp.zeros_like, finals)
    dparams, _ = network_bwd(network_residuals, (dlogits, dfinals), config)
    return value, dparams


def manual_grad(params: Params, batch: Any, config: Config) -> Params:
    """The gradient of `loss` by hand: equals `jax.grad(loss)(params, batch, config)`."""
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
    """Tokens drawn one by one, each from the softmax of logits / temperature after those before.

    Args:
        params: of the model.
        prompt: (N, P) integers, read first; P at least 1.
        config: of the model.
        key: for the draws.
        length: how many tokens to draw, at least 1.
        temperature: as `jaxnn.models.generate.generate`.
        top_k: likewise.
        top_p: likewise.

    Returns:
        (N, P + length) integers: the prompt and what follows.

    Raises:
        TypeError, ValueError: as `forward` and `jaxnn.models.generate.check_settings`.
    """
    settings = check_settings(config.vocabulary, length, temperature, top_k, top_p)
    _check(params, prompt, config)
    check_key("generate: key", key)
    embedding.fwd(params.embedding, prompt)  # a token outside the vocabulary is seen out here only
    tokens: Array = _generated(params, prompt, key, config=config, **settings)
    return tokens


@partial(jax.jit, static_argnames=("config", "length", "temperature", "top_k", "top_p"))
def _generated(
    params: Params, prompt: Array, key: Array, *, config: Config, length: int, **settings: Any
) -> Array:
    """`generate`, checked."""
    states = initial_states(params, len(prompt), config)
    (logits, states), _ = network_fwd(params, states, prompt, None, config)

    def step(before: tuple[Array, States], key: Array) -> tuple[tuple[Array, States], Array]:
        logits, states = before
        token = sample(logits, key, **settings).astype(prompt.dtype)
        (logits, states), _ = network_fwd(params, states, token[:, None], None, config)
        return (logits[:, -1], states), token

    _, tokens = lax.scan(step, (logits[:, -1], states), jax.random.split(key, length))
    return jnp.concatenate([prompt, tokens.T], 1)


def example_batch(key: Array, config: Config) -> Batch:
    """Three sequences of six tokens, each of the first 21 twice or more; with dropout, a key."""
    k_tokens, k_drop = jax.random.split(key)
    tokens = jax.random.permutation(k_tokens, jnp.arange(21) % config.vocabulary).reshape(3, 7)
    return Batch(tokens[:, :-1], tokens[:, 1:], k_drop if config.dropout else None)


def _check(params: Params, tokens: Array, config: Config) -> None:
    """Refuse parameters of another configuration, and tokens that are no sequences."""
    check_params(params, init_params, config)
    check_tokens(tokens)
