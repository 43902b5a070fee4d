"""A multilayer perceptron of any depth: linear layers with an activation between them.

    a_0 = inputs,  z_l = a_{l-1} w_l + b_l,  a_l = dropout(activation(z_l)),  outputs = z_L

    loss = data loss(outputs, targets) + 0.5 l2 (sum of squared weights; biases go free)

With no hidden layer and softmax cross-entropy it is logistic regression.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import variance_scaling
from jax.sharding import PartitionSpec as P

from jaxnn.checks import (
    check_backward,
    check_batch,
    check_batch_key,
    check_init,
    check_inputs,
    check_model,
    check_not_empty,
)
from jaxnn.data import Batch as KeylessBatch
from jaxnn.data import KeyedBatch
from jaxnn.explicit import automatic, automatic_gradient
from jaxnn.numerics import is_zero
from jaxnn.op import Op, door
from jaxnn.ops.activations import dropout, relu, sigmoid, tanh
from jaxnn.ops.cross_entropy import CrossEntropyResiduals, softmax_cross_entropy
from jaxnn.ops.linear import Linear, LinearResiduals, linear
from jaxnn.ops.losses import l2_penalty, mean_squared_error
from jaxnn.ops.softmax import softmax
from jaxnn.settings import check_choice, check_coefficient, check_rate, check_sizes

Batch = KeyedBatch  # its key tells training: without one nothing is dropped
Batches = KeyedBatch | KeylessBatch

ACTIVATIONS: dict[str, Op[..., Array]] = {"relu": relu, "sigmoid": sigmoid, "tanh": tanh}
LOSSES: dict[str, Op[..., Array]] = {
    "softmax_cross_entropy": softmax_cross_entropy,
    "mean_squared_error": mean_squared_error,
}
# Weights drawn from N(0, gain / inputs): 2 keeps the scale through ReLU (He et al., 2015, eq. 10),
# 1 through linear layers and, near zero, through tanh (the form of Xavier's rule that counts
# inputs only; Glorot and Bengio, 2010, eq. 10).
INITIALISERS = {
    "he": variance_scaling(2.0, "fan_in", "normal"),
    "xavier": variance_scaling(1.0, "fan_in", "normal"),
}


@dataclass(frozen=True)
class Config:
    """What the network is. Hashable and static: a different one is a different program.

    Attributes:
        sizes: widths from inputs to outputs, at least these two.
        activation: "relu", "sigmoid" or "tanh", after every layer but the last.
        loss: "softmax_cross_entropy" (integer labels, nats) or "mean_squared_error".
        l2: strength of the penalty on the weights, at least 0.
        init: "he" or "xavier"; biases start at 0.
        dropout: probability to drop what leaves a hidden layer in training, in [0, 1).

    JAX may trace l2 and dropout: many runs, each with its own, are then one program.

    Raises:
        ValueError: a setting is outside its range; the message lists the known names.
        TypeError: a setting is of another kind than above.
    """

    sizes: tuple[int, ...] = (64, 32, 10)
    activation: str = "relu"
    loss: str = "softmax_cross_entropy"
    l2: float = 0.0
    init: str = "he"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Check every setting once, here, so that nothing after has to."""
        object.__setattr__(self, "sizes", check_sizes("sizes", self.sizes))
        if len(self.sizes) < 2:
            raise ValueError(
                f"sizes are {self.sizes}; at least two are needed, inputs and outputs: "
                "for example (64, 10)"
            )
        for field, known in (
            ("activation", ACTIVATIONS),
            ("loss", LOSSES),
            ("init", INITIALISERS),
        ):
            check_choice(field, getattr(self, field), known)
        object.__setattr__(self, "l2", check_coefficient("l2", self.l2))
        object.__setattr__(self, "dropout", check_rate("dropout", self.dropout))


class Params(NamedTuple):
    """The layers, first to last."""

    layers: tuple[Linear, ...]


# The logical axes of a parameter, by its field.
AXES = {"w": P("embed", None), "b": P(None)}
EXAMPLE_CONFIGS = (
    Config(sizes=(1, 6, 1), activation="sigmoid", loss="mean_squared_error", init="xavier"),
    Config(sizes=(3, 4, 5), activation="sigmoid", l2=0.5, init="xavier"),
    Config(sizes=(4, 6, 1), activation="relu", loss="mean_squared_error"),
    Config(sizes=(5, 8, 6, 3, 4), activation="relu"),
    Config(sizes=(1, 2)),
    Config(sizes=(3, 7, 2), activation="tanh", loss="mean_squared_error", l2=0.1, init="xavier"),
    Config(sizes=(4, 5, 6, 3), activation="tanh", dropout=0.3),
)


@door(partial(check_init, kind=Config))
def init_params(key: Array, config: Config) -> Params:
    """Draw weights (I, O) by `config.init`; biases (O,) are 0; in JAX's default float dtype.

    Raises:
        TypeError: the key is none of `jax.random`, or the configuration another model's.
    """
    draw = INITIALISERS[config.init]
    keys = jax.random.split(key, len(config.sizes) - 1)
    shapes = zip(config.sizes[:-1], config.sizes[1:], strict=True)
    return Params(
        tuple(
            Linear(draw(k, shape), jnp.zeros(shape[1]))
            for k, shape in zip(keys, shapes, strict=True)
        )
    )


class HiddenResiduals(NamedTuple):
    """What a hidden layer and its activation saved, and what dropout kept, None for all."""

    linear: LinearResiduals
    activation: Array
    kept: Array | None


class LayersResiduals(NamedTuple):
    """What the hidden layers saved, first to last, and the last layer."""

    hidden: tuple[HiddenResiduals, ...]
    last: LinearResiduals


def layers_fwd(
    params: Params, inputs: Array, config: Config, key: Array | None = None
) -> tuple[Array, LayersResiduals]:
    """Run all layers, first to last: outputs (N, O), residuals; a key drops activations."""
    activation = ACTIVATIONS[config.activation]
    *hidden, last = params.layers
    keys: Array | list[None] = [None] * len(hidden)
    if key is not None and not is_zero(config.dropout):
        keys = jax.random.split(key, len(hidden))
    a, saved = inputs, []
    for layer, k in zip(hidden, keys, strict=True):
        z, of_layer = linear.fwd(layer, a)
        a, of_activation = activation.fwd(z)
        a, kept = (a, None) if k is None else dropout.fwd(a, k, rate=config.dropout)
        saved.append(HiddenResiduals(of_layer, of_activation, kept))
    outputs, of_last = linear.fwd(last, a)
    return outputs, LayersResiduals(tuple(saved), of_last)


def layers_bwd(saved: LayersResiduals, doutputs: Array, config: Config) -> tuple[Params, Array]:
    """Walk the layers last to first: gradients of the parameters and of the inputs (N, I)."""
    activation = ACTIVATIONS[config.activation]
    dlast, da = linear.bwd(saved.last, doutputs)
    dlayers = [dlast]
    for of_layer, of_activation, kept in reversed(saved.hidden):
        if kept is not None:
            da, _ = dropout.bwd(kept, da, rate=config.dropout)
        (dz,) = activation.bwd(of_activation, da)
        dlayer, da = linear.bwd(of_layer, dz)
        dlayers.append(dlayer)
    return Params(tuple(reversed(dlayers))), da


def _check(params: Params, inputs: Array, config: Config) -> None:
    """Refuse parameters of another configuration, and inputs that the first layer cannot take."""
    dtype = check_model(params, config, Config, init_params)
    check_inputs(inputs, dtype, config.sizes[:1])


def _check_batch(params: Params, batch: Batches, config: Config) -> None:
    """Refuse what `forward` refuses, and targets that the loss cannot take."""
    check_batch(batch, Batch)
    inputs, targets, key = Batch(*batch)
    _check(params, inputs, config)
    check_not_empty("inputs", inputs, "the loss is a mean over them")
    check_batch_key(key)
    outputs = jax.ShapeDtypeStruct((len(inputs), config.sizes[-1]), inputs.dtype)
    LOSSES[config.loss].admit((outputs, targets), {})


def _check_classifier(params: Params, inputs: Array, config: Config) -> None:
    """Refuse what `forward` refuses, and to read outputs that are no logits as classes."""
    _check(params, inputs, config)
    if config.loss != "softmax_cross_entropy":
        raise ValueError(
            f"loss is {config.loss!r}; classes and their probabilities need a model trained with "
            "'softmax_cross_entropy': use forward for its predictions"
        )


def _check_classified(params: Params, batch: Batches, config: Config) -> None:
    """Refuse what `loss` refuses, and a model of another loss than softmax cross-entropy."""
    check_batch(batch, Batch)
    _check_classifier(params, batch[0], config)
    _check_batch(params, batch, config)


class LossResiduals(NamedTuple):
    """What the layers, the data loss and the penalty saved."""

    layers: LayersResiduals
    data: CrossEntropyResiduals | Array
    penalty: tuple[Array, ...]


@door(_check)
def forward(params: Params, inputs: Array, config: Config) -> Array:
    """Return outputs (N, O): logits or, with mean squared error, predictions.

    Raises:
        TypeError: the inputs are not floating, or not of the dtype of the parameters.
        ValueError: their shape is not (N, I), or (outside jit) a value is not finite.
    """
    outputs, _ = layers_fwd(params, inputs, config)
    return outputs


@door(_check_batch)
def loss_fwd(params: Params, batch: Batches, config: Config) -> tuple[Array, LossResiduals]:
    """Return the data loss over the batch plus the penalty, and residuals; raises as `loss`."""
    inputs, targets, key = Batch(*batch)
    outputs, layers = layers_fwd(params, inputs, config, key)
    data_loss, data = LOSSES[config.loss].fwd(outputs, targets)
    weights = tuple(layer.w for layer in params.layers)
    penalty, of_penalty = l2_penalty.fwd(weights, coefficient=config.l2)
    return data_loss + penalty, LossResiduals(layers, data, of_penalty)


@door(partial(check_backward, residuals=LossResiduals, kind=Config))
def loss_bwd(saved: LossResiduals, dloss: Array, config: Config) -> Params:
    """Walk back through the data loss, then the layers; the penalty adds to the weights alone."""
    (dweights,) = l2_penalty.bwd(saved.penalty, dloss, coefficient=config.l2)
    doutputs, *_ = LOSSES[config.loss].bwd(saved.data, dloss)
    dparams, _ = layers_bwd(saved.layers, doutputs, config)
    pairs = zip(dparams.layers, dweights, strict=True)
    return Params(tuple(Linear(dlayer.w + dweight, dlayer.b) for dlayer, dweight in pairs))


@automatic
def loss(params: Params, batch: Batches, config: Config) -> Array:
    """Return the data loss over the batch (nats, or squared target units) plus the penalty.

    The batch is a Batch, or a tuple of inputs, targets and perhaps a key. With dropout, one that
    has a key is for training, one without is evaluated.
    Plain JAX throughout: `jax.grad(loss)` is the oracle for `manual_grad`.

    Raises:
        TypeError, ValueError: as `forward`; or the targets do not fit the outputs (see
            `jaxnn.ops.losses` and `jaxnn.ops.cross_entropy`), among them labels outside [0, O),
            which under jit give NaN; or the key is none of `jax.random`.
    """
    value, _ = loss_fwd(params, batch, config)
    return value


@automatic_gradient
def manual_value_and_grad(params: Params, batch: Batches, config: Config) -> tuple[Array, Params]:
    """Return the loss and its gradient by hand, from one forward pass; raises as `loss`."""
    value, saved = loss_fwd(params, batch, config)
    return value, loss_bwd(saved, jnp.ones_like(value), config)


def manual_grad(params: Params, batch: Batches, config: Config) -> Params:
    """Return the gradient of `loss` by hand: equals `jax.grad(loss)(params, batch, config)`."""
    _, grads = manual_value_and_grad(params, batch, config)
    return grads


@door(_check_classifier)
def probabilities(params: Params, inputs: Array, config: Config) -> Array:
    """Return class probabilities (N, O): the softmax of the outputs; raises as `forward`.

    Raises:
        ValueError: the loss is not softmax cross-entropy, so the outputs are no logits.
    """
    p, _ = softmax.fwd(forward(params, inputs, config))
    return p


@door(_check_classified)
def accuracy(params: Params, batch: Batches, config: Config) -> Array:
    """Return the share of examples, in [0, 1], whose largest output is the label's, in evaluation.

    Raises:
        TypeError, ValueError: as `loss`, and if the loss is not softmax cross-entropy.
    """
    inputs, labels, _ = Batch(*batch)
    return (forward(params, inputs, config).argmax(-1) == labels).mean()


@door(partial(check_init, kind=Config, function="example_batch"))
def example_batch(key: Array, config: Config) -> Batch:
    """Draw seven examples for verification, one of them all zeros; with dropout, a key.

    Of every class if there is room.
    """
    n, k_inputs, k_targets = 7, *jax.random.split(key)
    k_drop = None if is_zero(config.dropout) else jax.random.fold_in(key, n)
    inputs = jax.random.normal(k_inputs, (n, config.sizes[0])).at[0].set(0.0)
    if config.loss == "softmax_cross_entropy":
        labels = jax.random.permutation(k_targets, jnp.arange(n) % config.sizes[-1])
        return Batch(inputs, labels, k_drop)
    return Batch(inputs, jax.random.normal(k_targets, (n, config.sizes[-1])), k_drop)
