"""`experiments.benchmark.models` written with Flax NNX; import only where it is installed.

As its documentation has it: modules of its own layers, blocks in an `nnx.List`, and its
functional training loop, of `nnx.split` and `nnx.merge`. Of a configuration only what the
benchmark's cases set is looked at. The transformer is in `flax_transformer`.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from experiments.benchmark.frameworks import Step
from jaxnn.models import autoencoder as vae


def made(
    model: nnx.Module, batch: Any, loss: Callable[[Any, Any], Array], first: Callable[[Any], Any]
) -> Step:
    """Return the step of a model with our numbers in it."""
    graph, params, others = nnx.split(model, nnx.Param, ...)

    def step(arrays: Any, batch: Any) -> Any:
        model = nnx.merge(graph, *arrays)
        value, gradient = nnx.value_and_grad(loss)(model, batch)
        return (value, nnx.state(model, nnx.Not(nnx.Param))), gradient

    return Step(step, (params, others), batch, lambda gradient: first(gradient)[...])


def cross_entropy(model: Any, batch: Any) -> Array:
    """Return the mean cross-entropy of a batch, in float32."""
    logits = model(batch.inputs).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets).mean()


def without_numbers(kind: Any, *settings: Any) -> Any:
    """A module whose variables have shapes alone: to draw them would take longer than a step."""
    return nnx.eval_shape(lambda: kind(*settings, nnx.Rngs(0)))


def put(layer: Any, **arrays: Any) -> None:
    """Our numbers in the place of those that a layer drew, in its own shape."""
    for name, array in arrays.items():
        if array is not None:
            variable = getattr(layer, name)
            setattr(layer, name, type(variable)(array.reshape(variable.shape)))


class _Mlp(nnx.Module):
    def __init__(self, sizes: tuple[int, ...], activation: str, rngs: nnx.Rngs) -> None:
        self.activation = getattr(nnx, activation)
        self.layers = nnx.List([nnx.Linear(i, o, rngs=rngs) for i, o in pairwise(sizes)])

    def __call__(self, x: Array) -> Array:
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(layer(x))
        return last(x)

    def put(self, params: Any) -> None:
        for layer, (w, b) in zip(self.layers, params.layers, strict=True):
            put(layer, kernel=w, bias=b)


def mlp(params: Any, batch: Any, config: Any) -> Step:
    """Linear layers and an activation."""
    model = without_numbers(_Mlp, config.sizes, config.activation)
    model.put(params)
    return made(model, batch, cross_entropy, lambda g: g["layers"][0]["kernel"])


class _Unit(nnx.Module):
    """A convolution and its batch norm."""

    def __init__(self, inputs: int, outputs: int, stride: int, rngs: nnx.Rngs) -> None:
        side = {"kernel_size": (3, 3), "strides": stride, "padding": 1}
        self.conv = nnx.Conv(inputs, outputs, use_bias=False, rngs=rngs, **side)
        self.norm = nnx.BatchNorm(outputs, epsilon=1e-5, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.norm(self.conv(x))

    def put(self, conv: Any, norm: Any) -> None:
        put(self.conv, kernel=conv.w)
        put(self.norm, scale=norm.affine.scale, bias=norm.affine.shift)
        put(self.norm, mean=norm.running.mean, var=norm.running.variance)


class _Residual(nnx.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, rngs: nnx.Rngs) -> None:
        self.first = _Unit(inputs, outputs, stride, rngs)
        self.second = _Unit(outputs, outputs, 1, rngs)
        self.shortcut = nnx.data(None)
        if inputs != outputs or stride != 1:
            side = {"kernel_size": (1, 1), "strides": stride, "padding": 0}
            self.shortcut = nnx.Conv(inputs, outputs, use_bias=False, rngs=rngs, **side)

    def __call__(self, x: Array) -> Array:
        past = x if self.shortcut is None else self.shortcut(x)
        return nnx.relu(self.second(nnx.relu(self.first(x))) + past)


class _Cnn(nnx.Module):
    def __init__(self, config: Any, rngs: nnx.Rngs) -> None:
        outputs = [width for width in config.channels for _ in range(config.blocks)]
        inputs = [config.channels[0], *outputs[:-1]]
        self.stem = _Unit(config.shape[2], inputs[0], 1, rngs)
        sizes = zip(inputs, outputs, config.strides, strict=True)
        self.blocks = nnx.List([_Residual(i, o, stride, rngs) for i, o, stride in sizes])
        self.head = nnx.Linear(outputs[-1], config.classes, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = nnx.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


def cnn(params: Any, batch: Any, config: Any) -> Step:
    """The running statistics are part of what a step returns."""
    model = without_numbers(_Cnn, config)
    model.stem.put(params.stem, params.norm)
    for block, of_block in zip(model.blocks, params.blocks, strict=True):
        block.first.put(of_block.conv1, of_block.norm1)
        block.second.put(of_block.conv2, of_block.norm2)
        if block.shortcut is not None:
            put(block.shortcut, kernel=of_block.shortcut.w)
    put(model.head, kernel=params.head.w, bias=params.head.b)
    return made(model, batch, cross_entropy, lambda g: g["stem"]["conv"]["kernel"])


class _Lstm(nnx.Module):
    def __init__(self, config: Any, rngs: nnx.Rngs) -> None:
        self.embedding = nnx.Embed(config.vocabulary, config.width, rngs=rngs)
        inputs = (config.width, *(config.hidden,) * (config.layers - 1))
        cells = [nnx.OptimizedLSTMCell(i, config.hidden, rngs=rngs) for i in inputs]
        self.layers = nnx.List([nnx.RNN(cell, rngs=False) for cell in cells])
        self.output = nnx.Linear(config.hidden, config.vocabulary, rngs=rngs)

    def __call__(self, tokens: Array) -> Array:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, rngs=nnx.Rngs(0))
        return self.output(x)


def rnn(params: Any, batch: Any, config: Any) -> Step:
    """Of its two kinds of LSTM cell the one with a product for all gates."""
    model = without_numbers(_Lstm, config)
    put(model.embedding, embedding=params.embedding.table)
    for layer, (w_x, w_h, b, *_) in zip(model.layers, params.layers, strict=True):
        put(layer.cell.dense_i, kernel=w_x)
        put(layer.cell.dense_h, kernel=w_h, bias=b)
    put(model.output, kernel=params.output.w, bias=params.output.b)
    return made(model, batch, cross_entropy, lambda g: g["embedding"]["embedding"])


class _Autoencoder(nnx.Module):
    def __init__(self, config: Any, rngs: nnx.Rngs) -> None:
        self.encoder = _Mlp(config.encoder.sizes, config.activation, rngs)
        self.decoder = _Mlp(config.decoder.sizes, config.activation, rngs)

    def __call__(self, x: Array, key: Array) -> tuple[Array, Array, Array]:
        mean, log_variance = jnp.split(self.encoder(x), 2, axis=-1)
        noise: Any = vae.drawn_noise(key, vae.Latent(mean, log_variance))
        return self.decoder(mean + jnp.exp(log_variance / 2) * noise), mean, log_variance


def autoencoder(params: Any, batch: Any, config: Any) -> Step:
    """The noise is drawn as ours is."""
    model = without_numbers(_Autoencoder, config)
    model.encoder.put(params.encoder)
    model.decoder.put(params.decoder)

    def loss(model: Any, batch: Any) -> Array:
        logits, mean, log_variance = model(batch.inputs, batch.key)
        lost = optax.sigmoid_binary_cross_entropy(logits, batch.inputs).sum(-1).mean()
        kl = (jnp.exp(log_variance) + mean**2 - 1 - log_variance).sum(-1).mean() / 2
        return lost + config.beta * kl

    return made(model, batch, loss, lambda g: g["encoder"]["layers"][0]["kernel"])
