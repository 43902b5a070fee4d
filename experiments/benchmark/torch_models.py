"""`experiments.benchmark.models` and the descents of `runs` in PyTorch; import as `in_torch`."""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import torch
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiments import torch_peer
from experiments.benchmark.arms import Arm
from experiments.benchmark.in_torch import (
    DEVICE,
    Layout,
    Work,
    both_forms,
    channels_first,
    fixed,
    learned,
    linear,
    module,
)
from jaxnn.models import autoencoder as vae
from jaxnn.models import mlp as perceptron


class Network(NamedTuple):
    """A network with its own tensors.

    Attributes:
        loss: of inputs and targets.
        leaves: what it learns.
        first: the first of our parameters, in our layout.
    """

    loss: Callable[[Any, Any], Any]
    leaves: list[Any]
    first: Callable[[], Any]


def mlp(params: perceptron.Params, batch: Any, config: perceptron.Config) -> dict[str, Work]:
    """`torch_peer`'s network of linear layers."""
    loss, leaves, _ = mlp_of(params, config)
    examples = tuple(map(fixed, batch))
    return {"": Work(partial(loss, *examples), leaves, gradient=lambda dw: dw.T)}


def mlp_of(params: perceptron.Params, config: perceptron.Config) -> Network:
    """The network and what it learns."""
    net = torch_peer.network(params, config).to(DEVICE)

    def loss(inputs: Any, targets: Any) -> Any:
        return torch_peer.loss(net, inputs, targets, config)

    return Network(loss, list(net.parameters()), lambda: net[0].weight.detach().T)


def cnn(params: Any, batch: Any, config: Any) -> dict[str, Work]:
    """In both layouts of images in memory."""

    def work(form: Any) -> Work:
        loss, leaves, _ = cnn_of(params, config, form)
        x, labels = channels_first(batch.inputs, form), fixed(batch.targets)
        return Work(partial(loss, x, labels), leaves, gradient=lambda dw: dw.permute(2, 3, 1, 0))

    return both_forms(work)


def cnn_of(params: Any, config: Any, form: Any = torch.channels_last) -> Network:
    """The running statistics are buffers, and follow the batches as PyTorch's do."""

    def own(x: Any) -> Any:
        tensor = fixed(x)
        if tensor.ndim == 4:
            tensor = tensor.permute(3, 2, 0, 1).contiguous(memory_format=form)
        return tensor.requires_grad_()

    tree = jax.tree.map(own, params)
    running = {id(norm): [r.detach() for r in norm.running] for norm in _norms(tree)}

    def norm(x: Any, params: Any) -> Any:
        mean, variance = running[id(params)]
        scale, shift = params.affine
        return F.batch_norm(x, mean, variance, scale, shift, training=True)

    def conv(x: Any, params: Any, stride: int, padding: int = 1) -> Any:
        return F.conv2d(x, params.w, stride=stride, padding=padding)

    def loss(x: Any, labels: Any) -> Any:
        a = F.relu(norm(conv(x, tree.stem, 1), tree.norm))
        for block, stride in zip(tree.blocks, config.strides, strict=True):
            z = F.relu(norm(conv(a, block.conv1, stride), block.norm1))
            z = norm(conv(z, block.conv2, 1), block.norm2)
            a = F.relu(z + (conv(a, block.shortcut, stride, 0) if block.shortcut else a))
        return F.cross_entropy(linear(a.mean((2, 3)), *tree.head), labels)

    buffers = {id(r) for norm in _norms(tree) for r in norm.running}
    leaves = [leaf for leaf in jax.tree.leaves(tree) if id(leaf) not in buffers]
    return Network(loss, leaves, lambda: tree.stem.w.detach().permute(2, 3, 1, 0))


def _norms(tree: Any) -> list[Any]:
    return [tree.norm, *(norm for block in tree.blocks for norm in (block.norm1, block.norm2))]


def rnn(params: Any, batch: Any) -> dict[str, Work]:
    """Layers of `torch.nn.LSTM` between an embedding and a linear layer."""
    table = learned(params.embedding.table)
    layers = [module("LSTM", layer) for layer in params.layers]
    w, b = map(learned, params.output)
    tokens, targets = fixed(batch.inputs), fixed(batch.targets)

    def forward() -> Any:
        x = F.embedding(tokens, table)
        for layer in layers:
            x, _ = layer(x)
        return F.cross_entropy(linear(x, w, b).flatten(0, 1), targets.flatten())

    leaves = [table, *(p for layer in layers for p in layer.parameters()), w, b]
    return {"": Work(forward, leaves)}


def transformer(params: Any, batch: Any, config: Any) -> dict[str, Work]:
    """Every layer with tensors of its own; in 16 bits no other attention than the flash kernel."""
    tree = jax.tree.map(learned, params._replace(blocks=None))
    blocks = [
        jax.tree.map(lambda leaf, number=number: learned(leaf[number]), params.blocks)
        for number in range(config.layers)
    ]
    tokens, targets = fixed(batch.inputs), fixed(batch.targets)
    dtype = tree.tokens.table.dtype
    turns = [turn.to(dtype) for turn in _turns(tokens.shape[1], config)]
    flash = partial(sdpa_kernel, SDPBackend.FLASH_ATTENTION)
    within = flash if dtype.itemsize == 2 else contextlib.nullcontext

    def norm(params: Any, x: Any) -> Any:
        if config.norm == "rms":
            return F.rms_norm(x, x.shape[-1:], params.scale, config.eps)
        return F.layer_norm(x, x.shape[-1:], params.scale, params.shift, config.eps)

    def attend(p: Any, x: Any) -> Any:
        q, k, v = (
            linear(x, w, b).unflatten(-1, (-1, config.per_head)).transpose(1, 2)
            for w, b in ((p.wq, p.bq), (p.wk, p.bk), (p.wv, p.bv))
        )
        if config.position == "rotary":
            q, k = _turned(q, *turns), _turned(k, *turns)
        shared = k.shape[1] < q.shape[1]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared)
        return linear(y.transpose(1, 2).flatten(2), p.wo, p.bo)

    def feed_forward(p: Any, x: Any) -> Any:
        h = linear(x, p.up, p.bup)
        if p.gate is None:
            h = F.gelu(h, approximate="tanh")
        else:
            h = F.silu(linear(x, p.gate, p.bgate)) * h
        return linear(h, p.down, p.bdown)

    def forward() -> Any:
        x = F.embedding(tokens, tree.tokens.table)
        if tree.positions is not None:
            x = x + tree.positions.table[: tokens.shape[1]]
        for block in blocks:
            x = x + attend(block.attention, norm(block.attention_norm, x))
            x = x + feed_forward(block.feed_forward, norm(block.feed_forward_norm, x))
        w = tree.tokens.table.T if tree.output is None else tree.output
        return F.cross_entropy((norm(tree.norm, x) @ w).flatten(0, 1), targets.flatten())

    leaves = [*jax.tree.leaves(tree), *jax.tree.leaves(blocks)]
    return {"": Work(forward, leaves, within=within)}


def _turns(t: int, config: Any) -> tuple[Any, Any]:
    """Cosines and sines (T, head size) of rotary positions."""
    half = torch.arange(0, config.per_head, 2, device=DEVICE) / config.per_head
    angles = torch.outer(torch.arange(float(t), device=DEVICE), config.rotary_base**-half).repeat(
        1, 2
    )
    return angles.cos(), angles.sin()


def _turned(x: Any, cos: Any, sin: Any) -> Any:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def autoencoder(params: Any, batch: Any, config: Any) -> dict[str, Work]:
    """The noise is JAX's, drawn before: what it costs is not in the time."""
    encoder = torch_peer.network(params.encoder, config.encoder).to(DEVICE)
    decoder = torch_peer.network(params.decoder, config.decoder).to(DEVICE)
    x = fixed(batch.inputs)
    shape = jax.numpy.zeros((len(x), config.sizes[-1]))
    noise = fixed(vae.drawn_noise(batch.key, vae.Latent(shape, shape)))

    def forward() -> Any:
        mean, log_variance = encoder(x).chunk(2, -1)
        logits = decoder(mean + torch.exp(log_variance / 2) * noise)
        kl = (torch.expm1(log_variance) - log_variance + mean**2).sum() / 2
        lost = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        return (lost + config.beta * kl) / len(x)

    leaves = [*encoder.parameters(), *decoder.parameters()]
    return {"": Work(forward, leaves, gradient=lambda dw: dw.T)}


def descent(
    model: str,
    params: Any,
    batches: Sequence[Any],
    config: Any,
    learning_rate: float,
    means: Layout,
) -> Arm:
    """Gradient descent from the same parameters, a step per batch; the losses' means."""

    def features(x: Any) -> Any:
        if model == "mlp":
            return fixed(x)
        return channels_first(x.reshape(-1, *config.shape), torch.channels_last)

    network = {"mlp": mlp_of, "cnn": cnn_of}[model]
    pairs = [(features(batch.inputs), fixed(batch.targets)) for batch in batches]

    def run() -> tuple[Any, Any]:
        loss_of, leaves, first = network(params, config)
        optimizer = torch.optim.SGD(leaves, lr=learning_rate)
        losses = []
        for inputs, targets in pairs:
            optimizer.zero_grad()
            loss = loss_of(inputs, targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return means(torch.stack(losses).cpu()), first()

    return Arm(run)
