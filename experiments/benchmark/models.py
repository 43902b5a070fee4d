"""Training steps: a model's loss and gradient."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from experiments.benchmark.arms import (
    AUTODIFF,
    BY_HAND,
    Builds,
    Case,
    compiled,
    integers,
    named,
    normal,
)
from experiments.benchmark.frameworks import frameworks
from experiments.benchmark.ops import cross_entropy
from experiments.benchmark.peers import peers
from experiments.benchmark.recurrent_ops import lstm_step, unrolled
from jaxnn import data
from jaxnn.models import autoencoder, cnn, mlp, rnn
from jaxnn.ops.linear import linear


def model_step(
    what: str,
    model: Any,
    config: Any,
    draw: Callable[[], Any],
    peer: Callable[[Any, Any, Any], Any],
    stronger: Mapping[str, Callable[..., Array]] | None = None,
    other_configs: Mapping[str, Any] | None = None,
    flops: float | None = None,
    dtype: Any = jnp.float32,
) -> Case:
    """A model's loss and gradient.

    Args:
        what: sizes and settings.
        model: a module with the model functions.
        config: its configuration.
        draw: a batch.
        peer: (`torch_models`, parameters, batch) -> what PyTorch does.
        stronger: other forms of `loss(params, batch, config)`, by what they are.
        other_configs: for the hand-written gradient, by what they are.
        flops: see `Case`.
        dtype: of the parameters.
    """
    hands = {"": config} | dict(other_configs or {})
    saved = jax.checkpoint(model.loss, policy=_is_product, static_argnums=2)
    losses = {"": model.loss, "only products saved": saved} | dict(stronger or {})

    def inputs() -> tuple[Any, Any]:
        params = jax.jit(model.init_params, static_argnums=1)(jax.random.key(0), config)
        return jax.tree.map(lambda leaf: leaf.astype(dtype), params), draw()

    def make() -> Builds:
        params, batch = inputs()
        builds: Builds = {}
        for name, setting in hands.items():
            by_hand = partial(model.manual_value_and_grad, config=setting)
            builds[named(BY_HAND, name)] = partial(compiled, by_hand, params, batch)
        for name, loss in losses.items():
            by_autodiff = jax.value_and_grad(partial(_of_two, loss, config))
            builds[named(AUTODIFF, name)] = partial(compiled, by_autodiff, params, batch)
        return builds | frameworks(model, params, batch, config)

    def others() -> Builds:
        return peers("torch_models", lambda torch: peer(torch, *inputs()))

    return Case(what, make, step=True, flops=flops, dtype=dtype, peers=others)


def _of_two(loss: Callable[..., Array], config: Any, params: Any, batch: Any) -> Array:
    return loss(params, batch, config)


def mlp_step(n: int, sizes: tuple[int, ...]) -> Case:
    """Fully connected layers, as for images of digits."""
    config = mlp.Config(sizes=sizes)
    return model_step(
        f"sizes {sizes}, batch {n}",
        mlp,
        config,
        lambda: data.Batch(normal(1, n, sizes[0]), integers(2, sizes[-1], n)),
        lambda torch, params, batch: torch.mlp(params, batch, config),
    )


def cnn_step(n: int, shape: tuple[int, int, int], channels: tuple[int, ...]) -> Case:
    """Residual blocks with batch norm; no dropout."""
    config = cnn.Config(shape=shape, channels=channels)
    case = model_step(
        f"images {shape}, channels {channels}, batch norm, batch {n}",
        cnn,
        config,
        lambda: cnn.Batch(normal(1, n, *shape), integers(2, 10, n), jax.random.key(3)),
        lambda torch, params, batch: torch.cnn(params, batch, config),
    )
    # PyTorch's batch norm of images with channels last sums one value after the other: with one
    # thread, at the large size, the stem's gradient is off by 2.3e-3 (jax.grad's by 6e-7).
    return case._replace(agree=1e-2)


def rnn_step(n: int, t: int, config: rnn.Config) -> Case:
    """A language model of LSTM layers."""
    return model_step(
        f"LSTM, {config.layers} of {config.hidden}, vocabulary {config.vocabulary}, T {t}, "
        f"batch {n}",
        rnn,
        config,
        lambda: tokens_of(config.vocabulary, n, t),
        lambda torch, params, batch: torch.rnn(params, batch),
        {"8 steps unrolled": _unrolled_rnn_loss},
    )


def autoencoder_step(n: int, sizes: tuple[int, ...]) -> Case:
    """A variational autoencoder and its KL term."""
    config = autoencoder.Config(sizes=sizes)
    return model_step(
        f"sizes {sizes} and back, batch {n}",
        autoencoder,
        config,
        lambda: autoencoder.Batch(
            jax.random.uniform(jax.random.key(1), (n, sizes[0])), jax.random.key(2)
        ),
        lambda torch, params, batch: torch.autoencoder(params, batch, config),
    )


def _is_product(primitive: Any, *_: Any, **__: Any) -> bool:
    """For `jax.checkpoint`: keep what a product or convolution gave, recompute all else."""
    return primitive in (lax.dot_general_p, lax.conv_general_dilated_p)


def _unrolled_rnn_loss(params: rnn.Params, batch: data.KeyedBatch, config: rnn.Config) -> Array:
    x = params.embedding.table[batch.inputs]
    states = rnn.zero_states(len(x), x.dtype, config)
    for layer, state in zip(params.layers, states, strict=True):
        x, _ = unrolled(lstm_step, layer, state, x)
    return cross_entropy(linear.fwd(params.output, x)[0], batch.targets)


def tokens_of(vocabulary: int, n: int, t: int) -> data.KeyedBatch:
    """N sequences of T tokens, and the token after each."""
    tokens = integers(1, vocabulary, n, t + 1)
    return data.KeyedBatch(tokens[:, :-1], tokens[:, 1:])
