"""`experiments.benchmark.models` written with Equinox; import only where it is installed.

As its documentation has it: modules of its own layers for one example, `jax.vmap` over the batch,
blocks in a list, and a module taken apart by `eqx.partition`. Of a configuration only what the
benchmark's cases set is looked at. The transformer is in `equinox_transformer`.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from experiments.benchmark.frameworks import Step
from jaxnn.models import autoencoder as vae

# Of a model, its state and a batch: the loss and the new state.
Loss = Callable[[Any, Any, Any], tuple[Array, Any]]


def made(
    model: Any, batch: Any, loss: Loss, first: Callable[[Any], Array], state: Any = None
) -> Step:
    """Return the step of a model with our numbers in it; `state` is batch norm's."""
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def step(arrays: Any, batch: Any) -> Any:
        params, state = arrays
        model = eqx.combine(params, static)
        return eqx.filter_value_and_grad(loss, has_aux=True)(model, state, batch)

    return Step(step, (params, state), batch, first)


def cross_entropy(model: Any, state: Any, batch: Any) -> tuple[Array, Any]:
    """Return the mean cross-entropy of a batch, in float32, and the state as it was."""
    logits = jax.vmap(model)(batch.inputs).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets).mean(), state


def without_numbers(kind: Any, *settings: Any) -> Any:
    """A module whose arrays have shapes alone: to draw them would take longer than a step."""
    return eqx.filter_eval_shape(kind, *settings, jax.random.key(0))


def replaced(module: Any, **parts: Any) -> Any:
    """The module with these arrays or modules in the place of its own; None for none."""
    given = {name: part for name, part in parts.items() if part is not None}
    return eqx.tree_at(lambda m: [getattr(m, name) for name in given], module, [*given.values()])


def put_linear(layer: Any, w: Array, b: Array | None) -> Any:
    """Equinox keeps weights transposed."""
    return replaced(layer, weight=w.swapaxes(-1, -2), bias=b)


class _Mlp(eqx.Module):
    layers: list[eqx.nn.Linear]
    activation: Callable[[Array], Array] = eqx.field(static=True)

    def __init__(self, sizes: tuple[int, ...], activation: str, key: Array) -> None:
        keys = jax.random.split(key, len(sizes) - 1)
        pairs = zip(sizes[:-1], sizes[1:], keys, strict=True)
        self.layers = [eqx.nn.Linear(i, o, key=k) for i, o, k in pairs]
        self.activation = getattr(jax.nn, activation)

    def __call__(self, x: Array) -> Array:
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(layer(x))
        return last(x)


def _mlp(params: Any, config: Any) -> Any:
    model = without_numbers(_Mlp, config.sizes, config.activation)
    pairs = zip(model.layers, params.layers, strict=True)
    return replaced(model, layers=[put_linear(layer, w, b) for layer, (w, b) in pairs])


def mlp(params: Any, batch: Any, config: Any) -> Step:
    """Linear layers and an activation."""
    return made(_mlp(params, config), batch, cross_entropy, lambda g: g.layers[0].weight.T)


class _Unit(eqx.Module):
    """A convolution and its batch norm."""

    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm

    def __init__(self, inputs: int, outputs: int, stride: int, key: Array) -> None:
        side = {"kernel_size": 3, "stride": stride, "padding": 1, "use_bias": False}
        self.conv = eqx.nn.Conv2d(inputs, outputs, **side, key=key)
        self.norm = eqx.nn.BatchNorm(outputs, axis_name="batch", mode="batch")

    def __call__(self, x: Array, state: Any) -> tuple[Array, Any]:
        return self.norm(self.conv(x), state)


class _Residual(eqx.Module):
    first: _Unit
    second: _Unit
    shortcut: eqx.nn.Conv2d | None

    def __init__(self, inputs: int, outputs: int, stride: int, key: Array) -> None:
        k_first, k_second, k_shortcut = jax.random.split(key, 3)
        self.first = _Unit(inputs, outputs, stride, k_first)
        self.second = _Unit(outputs, outputs, 1, k_second)
        self.shortcut = None
        if inputs != outputs or stride != 1:
            side = {"kernel_size": 1, "stride": stride, "use_bias": False}
            self.shortcut = eqx.nn.Conv2d(inputs, outputs, **side, key=k_shortcut)

    def __call__(self, x: Array, state: Any) -> tuple[Array, Any]:
        past = x if self.shortcut is None else self.shortcut(x)
        y, state = self.first(x, state)
        y, state = self.second(jax.nn.relu(y), state)
        return jax.nn.relu(y + past), state


class _Cnn(eqx.Module):
    stem: _Unit
    blocks: list[_Residual]
    head: eqx.nn.Linear

    def __init__(self, config: Any, key: Array) -> None:
        outputs = [width for width in config.channels for _ in range(config.blocks)]
        inputs = [config.channels[0], *outputs[:-1]]
        k_stem, k_head, *keys = jax.random.split(key, 2 + len(outputs))
        self.stem = _Unit(config.shape[2], inputs[0], 1, k_stem)
        sizes = zip(inputs, outputs, config.strides, keys, strict=True)
        self.blocks = [_Residual(i, o, stride, k) for i, o, stride, k in sizes]
        self.head = eqx.nn.Linear(outputs[-1], config.classes, key=k_head)

    def __call__(self, x: Array, state: Any) -> tuple[Array, Any]:
        x, state = self.stem(x, state)
        x = jax.nn.relu(x)
        for block in self.blocks:
            x, state = block(x, state)
        return self.head(x.mean((1, 2))), state


def _conv(layer: Any, params: Any) -> Any:
    return replaced(layer, weight=params.w.transpose(3, 2, 0, 1))


def _unit(unit: Any, conv: Any, norm: Any) -> Any:
    scale, shift = norm.affine
    return replaced(
        unit, conv=_conv(unit.conv, conv), norm=replaced(unit.norm, weight=scale, bias=shift)
    )


def _residual(block: Any, params: Any) -> Any:
    shortcut = block.shortcut and _conv(block.shortcut, params.shortcut)
    first = _unit(block.first, params.conv1, params.norm1)
    second = _unit(block.second, params.conv2, params.norm2)
    return replaced(block, first=first, second=second, shortcut=shortcut)


def cnn(params: Any, batch: Any, config: Any) -> Step:
    """Images have channels first; the running statistics are part of what a step returns."""
    model, state = eqx.filter_jit(eqx.nn.make_with_state(_Cnn))(config, jax.random.key(0))
    pairs = zip(model.blocks, params.blocks, strict=True)
    model = replaced(
        model,
        stem=_unit(model.stem, params.stem, params.norm),
        blocks=[_residual(block, of_block) for block, of_block in pairs],
        head=put_linear(model.head, *params.head),
    )

    def loss(model: Any, state: Any, batch: Any) -> tuple[Array, Any]:
        apply = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        logits, state = apply(batch.inputs, state)
        lost = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        return lost.mean(), state

    batch = batch._replace(inputs=batch.inputs.transpose(0, 3, 1, 2))
    return made(model, batch, loss, lambda g: g.stem.conv.weight.transpose(2, 3, 1, 0), state)


class _Lstm(eqx.Module):
    embedding: eqx.nn.Embedding
    cells: list[eqx.nn.LSTMCell]
    output: eqx.nn.Linear

    def __init__(self, config: Any, key: Array) -> None:
        k_embedding, k_output, *keys = jax.random.split(key, 2 + config.layers)
        self.embedding = eqx.nn.Embedding(config.vocabulary, config.width, key=k_embedding)
        inputs = (config.width, *(config.hidden,) * (config.layers - 1))
        sizes = zip(inputs, keys, strict=True)
        self.cells = [eqx.nn.LSTMCell(i, config.hidden, key=k) for i, k in sizes]
        self.output = eqx.nn.Linear(config.hidden, config.vocabulary, key=k_output)

    def __call__(self, tokens: Array) -> Array:
        x = jax.vmap(self.embedding)(tokens)
        for cell in self.cells:

            def step(state: Any, x: Array, cell: Any = cell) -> Any:
                state = cell(x, state)
                return state, state[0]

            zeros = jnp.zeros(cell.hidden_size)
            _, x = lax.scan(step, (zeros, zeros), x)
        return jax.vmap(self.output)(x)


def rnn(params: Any, batch: Any, config: Any) -> Step:
    """LSTM cells, each in a scan over the steps."""
    model = without_numbers(_Lstm, config)
    model = replaced(
        model,
        embedding=replaced(model.embedding, weight=params.embedding.table),
        cells=[
            replaced(cell, weight_ih=w_x.T, weight_hh=w_h.T, bias=b)
            for cell, (w_x, w_h, b, *_) in zip(model.cells, params.layers, strict=True)
        ],
        output=put_linear(model.output, *params.output),
    )
    return made(model, batch, cross_entropy, lambda g: g.embedding.weight)


class _Autoencoder(eqx.Module):
    encoder: _Mlp
    decoder: _Mlp

    def __call__(self, x: Array, noise: Array) -> tuple[Array, Array, Array]:
        mean, log_variance = jnp.split(self.encoder(x), 2)
        return self.decoder(mean + jnp.exp(log_variance / 2) * noise), mean, log_variance


def autoencoder(params: Any, batch: Any, config: Any) -> Step:
    """The noise is drawn as ours is."""
    model = _Autoencoder(_mlp(params.encoder, config.encoder), _mlp(params.decoder, config.decoder))

    def loss(model: Any, state: Any, batch: Any) -> tuple[Array, Any]:
        shape = jnp.zeros((len(batch.inputs), config.sizes[-1]), batch.inputs.dtype)
        noise = vae.drawn_noise(batch.key, vae.Latent(shape, shape))
        logits, mean, log_variance = jax.vmap(model)(batch.inputs, noise)
        lost = optax.sigmoid_binary_cross_entropy(logits, batch.inputs).sum(-1).mean()
        kl = (jnp.exp(log_variance) + mean**2 - 1 - log_variance).sum(-1).mean() / 2
        return lost + config.beta * kl, state

    return made(model, batch, loss, lambda g: g.encoder.layers[0].weight.T)
