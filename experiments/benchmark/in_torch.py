"""The work of `experiments.benchmark.cases` in PyTorch, eager and compiled.

Tensors are laid out as PyTorch has them (images with channels first, and as a second arm in its
"channels last" form), before anything is timed.
Import it only where `experiments.torch_peer.installed`.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from experiments import torch_peer
from experiments.benchmark.arms import COMPILED, PYTORCH, Arm, Builds, LeftOutError, cores
from jaxnn.models import autoencoder as vae
from jaxnn.models import mlp as perceptron

PATIENCE = 60.0  # seconds that torch.compile may take for one case
LAST = "channels last"
Layout = Callable[[Any], Any]


def _same(x: Any) -> Any:
    return x


class Work(NamedTuple):
    """A forward pass and what to differentiate.

    Attributes:
        forward: of the leaves, which it holds; returns a tensor, or several.
        leaves: tensors that want a gradient.
        dout: the cotangents of what the forward returns; None of a loss.
        result: the first tensor returned, in JAX's layout.
        gradient: the first leaf's gradient, in JAX's layout.
    """

    forward: Callable[[], Any]
    leaves: Sequence[Any]
    dout: Any = None
    result: Layout = _same
    gradient: Layout = _same


def builds(works: "dict[str, Work] | Arm") -> Builds:
    """The arms of some work by its form ("" for the plain one), or of an arm as it is.

    Each on as many threads as JAX has, and on one: for small work that is often faster.
    """
    if isinstance(works, Arm):
        arms = {PYTORCH: works}
    else:
        named = {f"{PYTORCH}, {form}" if form else PYTORCH: work for form, work in works.items()}
        arms = {name: _eager(work) for name, work in named.items()}
    builds: Builds = {name: partial(_threaded, arm, cores()) for name, arm in arms.items()}
    builds |= {f"{name}, one thread": partial(_threaded, arm, 1) for name, arm in arms.items()}
    if not isinstance(works, Arm):
        builds[COMPILED] = partial(_compiled, next(iter(works.values())))
    return builds


def _threaded(arm: Arm, threads: int) -> Arm:
    def run() -> tuple[Any, Any]:
        torch.set_num_threads(threads)
        return arm.run()

    return arm._replace(run=run)


def _eager(work: Work) -> Arm:
    def run() -> tuple[Any, Any]:
        out = work.forward()
        grads = torch.autograd.grad(out, work.leaves, work.dout)
        first = out[0] if isinstance(out, tuple) else out
        return work.result(first.detach()), work.gradient(grads[0])

    return Arm(run)


def _compiled(work: Work) -> Arm:
    """By `torch.compile`, which is given `PATIENCE`."""
    torch.compiler.reset()
    arm = _threaded(_eager(work._replace(forward=torch.compile(work.forward))), cores())
    started = time.perf_counter()
    try:
        with _at_most(PATIENCE):
            arm.run()
    except Exception as error:  # whatever it is, eager PyTorch is there to compare with
        lines = str(error).strip().splitlines() or ["no message"]
        raise LeftOutError(f"torch.compile: {type(error).__name__}: {lines[0]}") from error
    return arm._replace(compile_seconds=time.perf_counter() - started)


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"not done in {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _fixed(x: Any) -> Any:
    """A copy that wants no gradient; integers as PyTorch's indices."""
    tensor = torch.from_numpy(np.array(x))
    return tensor if tensor.is_floating_point() else tensor.long()


def _leaf(x: Any) -> Any:
    return _fixed(x).requires_grad_()


# ---- models


def mlp(params: perceptron.Params, batch: Any, config: perceptron.Config) -> dict[str, Work]:
    """`torch_peer`'s network of linear layers."""
    net = torch_peer.network(params, config)
    inputs, targets = map(_fixed, batch)
    leaves = list(net.parameters())
    forward = partial(torch_peer.loss, net, inputs, targets, config)
    return {"": Work(forward, leaves, gradient=lambda dw: dw.T)}


def cnn(params: Any, batch: Any, config: Any) -> dict[str, Work]:
    """The running statistics are buffers, and follow the batches as PyTorch's do."""

    def work(form: Any) -> Work:
        def own(x: Any) -> Any:
            tensor = _fixed(x)
            if tensor.ndim == 4:
                tensor = tensor.permute(3, 2, 0, 1).contiguous(memory_format=form)
            return tensor.requires_grad_()

        tree = jax.tree.map(own, params)
        x = _images(batch.inputs, form)
        labels = _fixed(batch.targets)
        running = {id(norm): [r.detach() for r in norm.running] for norm in _norms(tree)}

        def norm(x: Any, params: Any) -> Any:
            mean, variance = running[id(params)]
            scale, shift = params.affine
            return F.batch_norm(x, mean, variance, scale, shift, training=True)

        def conv(x: Any, params: Any, stride: int, padding: int = 1) -> Any:
            return F.conv2d(x, params.w, stride=stride, padding=padding)

        def forward() -> Any:
            a = F.relu(norm(conv(x, tree.stem, 1), tree.norm))
            for block, stride in zip(tree.blocks, config.strides, strict=True):
                z = F.relu(norm(conv(a, block.conv1, stride), block.norm1))
                z = norm(conv(z, block.conv2, 1), block.norm2)
                a = F.relu(z + (conv(a, block.shortcut, stride, 0) if block.shortcut else a))
            return F.cross_entropy(_linear(a.mean((2, 3)), *tree.head), labels)

        buffers = {id(r) for norm in _norms(tree) for r in norm.running}
        leaves = [leaf for leaf in jax.tree.leaves(tree) if id(leaf) not in buffers]
        return Work(forward, leaves, gradient=lambda dw: dw.permute(2, 3, 1, 0))

    return _both_forms(work)


def _norms(tree: Any) -> list[Any]:
    return [tree.norm, *(norm for block in tree.blocks for norm in (block.norm1, block.norm2))]


def rnn(params: Any, batch: Any) -> dict[str, Work]:
    """Layers of `torch.nn.LSTM` between an embedding and a linear layer."""
    table = _leaf(params.embedding.table)
    layers = [_module("LSTM", layer) for layer in params.layers]
    w, b = map(_leaf, params.output)
    tokens, targets = _fixed(batch.tokens), _fixed(batch.targets)

    def forward() -> Any:
        x = F.embedding(tokens, table)
        for layer in layers:
            x, _ = layer(x)
        return F.cross_entropy(_linear(x, w, b).flatten(0, 1), targets.flatten())

    leaves = [table, *(p for layer in layers for p in layer.parameters()), w, b]
    return {"": Work(forward, leaves)}


def transformer(params: Any, batch: Any, config: Any) -> dict[str, Work]:
    """Every layer with tensors of its own."""
    tree = jax.tree.map(_leaf, params._replace(blocks=None))
    blocks = [
        jax.tree.map(lambda leaf, number=number: _leaf(leaf[number]), params.blocks)
        for number in range(config.layers)
    ]
    tokens, targets = _fixed(batch.tokens), _fixed(batch.targets)
    turns = _turns(tokens.shape[1], config)

    def norm(params: Any, x: Any) -> Any:
        if config.norm == "rms":
            return F.rms_norm(x, x.shape[-1:], params.scale, config.eps)
        return F.layer_norm(x, x.shape[-1:], params.scale, params.shift, config.eps)

    def attend(p: Any, x: Any) -> Any:
        q, k, v = (
            _linear(x, w, b).unflatten(-1, (-1, config.head_size)).transpose(1, 2)
            for w, b in ((p.wq, p.bq), (p.wk, p.bk), (p.wv, p.bv))
        )
        if config.position == "rotary":
            q, k = _turned(q, *turns), _turned(k, *turns)
        shared = k.shape[1] < q.shape[1]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared)
        return _linear(y.transpose(1, 2).flatten(2), p.wo, p.bo)

    def feed_forward(p: Any, x: Any) -> Any:
        h = _linear(x, p.up, p.bup)
        if p.gate is None:
            h = F.gelu(h, approximate="tanh")
        else:
            h = F.silu(_linear(x, p.gate, p.bgate)) * h
        return _linear(h, p.down, p.bdown)

    def forward() -> Any:
        x = F.embedding(tokens, tree.tokens.table)
        if tree.positions is not None:
            x = x + tree.positions.table[: tokens.shape[1]]
        for block in blocks:
            x = x + attend(block.attention, norm(block.attention_norm, x))
            x = x + feed_forward(block.feed_forward, norm(block.feed_forward_norm, x))
        w = tree.tokens.table.T if tree.output is None else tree.output
        return F.cross_entropy((norm(tree.norm, x) @ w).flatten(0, 1), targets.flatten())

    return {"": Work(forward, [*jax.tree.leaves(tree), *jax.tree.leaves(blocks)])}


def _turns(t: int, config: Any) -> tuple[Any, Any]:
    """Cosines and sines (T, head size) of rotary positions."""
    half = torch.arange(0, config.head_size, 2) / config.head_size
    angles = torch.outer(torch.arange(float(t)), config.rotary_base**-half).repeat(1, 2)
    return angles.cos(), angles.sin()


def _turned(x: Any, cos: Any, sin: Any) -> Any:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def autoencoder(params: Any, batch: Any, config: Any) -> dict[str, Work]:
    """The noise is JAX's, drawn before: what it costs is not in the time."""
    encoder = torch_peer.network(params.encoder, config.encoder)
    decoder = torch_peer.network(params.decoder, config.decoder)
    x = _fixed(batch.inputs)
    shape = jax.numpy.zeros((len(x), config.sizes[-1]))
    noise = _fixed(vae._noise(batch.key, vae.Latent(shape, shape)))

    def forward() -> Any:
        mean, log_variance = encoder(x).chunk(2, -1)
        logits = decoder(mean + torch.exp(log_variance / 2) * noise)
        kl = (torch.expm1(log_variance) - log_variance + mean**2).sum() / 2
        lost = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        return (lost + config.beta * kl) / len(x)

    leaves = [*encoder.parameters(), *decoder.parameters()]
    return {"": Work(forward, leaves, gradient=lambda dw: dw.T)}


# ---- ops


def lm_head(w: Any, x: Any, labels: Any, dout: Any) -> dict[str, Work]:
    """A product, and the cross-entropy of all logits."""
    weights, features, targets = _leaf(w), _leaf(x), _fixed(labels)
    forward = lambda: F.cross_entropy(features @ weights, targets)  # noqa: E731
    return {"": Work(forward, [weights, features], _fixed(dout))}


def attention(inputs: Sequence[Any], dout: Any) -> dict[str, Work]:
    """Heads before positions, as PyTorch has them."""

    def turned(x: Any) -> Any:
        return x.transpose(1, 2)

    q, k, v = (turned(_fixed(x)).contiguous().requires_grad_() for x in inputs)
    forward = partial(F.scaled_dot_product_attention, q, k, v, is_causal=True)
    dy = turned(_fixed(dout)).contiguous()
    return {"": Work(forward, [q, k, v], dy, turned, turned)}


def recurrent(kind: str, params: Any, state: Any, x: Any, dout: Any) -> dict[str, Work]:
    """`torch.nn.LSTM` or `GRU`, a state before and a state after."""
    net, inputs = _module(kind, params), _leaf(x)
    before = [_fixed(s)[None].requires_grad_() for s in jax.tree.leaves(state)]
    dy, dfinal = dout
    cotangents = [_fixed(dy), *(_fixed(d)[None] for d in jax.tree.leaves(dfinal))]

    def forward() -> Any:
        y, after = net(inputs, tuple(before) if kind == "LSTM" else before[0])
        return (y, *after) if kind == "LSTM" else (y, after)

    leaves = [*net.parameters(), *before, inputs]
    return {"": Work(forward, leaves, cotangents, gradient=lambda dw: dw.T)}


def _module(kind: str, params: Any) -> Any:
    """A layer with the same numbers. PyTorch adds a second bias: only a GRU has a use for it."""
    hidden, inputs = len(params.w_h), len(params.w_x)
    net = getattr(torch.nn, kind)(inputs, hidden, batch_first=True)
    with torch.no_grad():
        net.weight_ih_l0.copy_(_fixed(params.w_x).T)
        net.weight_hh_l0.copy_(_fixed(params.w_h).T)
        net.bias_ih_l0.copy_(_fixed(params.b))
        net.bias_hh_l0.zero_()
        if params.b_hn is not None:
            net.bias_hh_l0[-hidden:] = _fixed(params.b_hn)
    return net


def conv(params: Any, x: Any, dout: Any, stride: int) -> dict[str, Work]:
    """A convolution padded by 1."""

    def work(form: Any) -> Work:
        kernel = _fixed(params.w).permute(3, 2, 0, 1).contiguous(memory_format=form)
        leaves = [kernel.requires_grad_(), _images(x, form).requires_grad_()]
        forward = partial(F.conv2d, leaves[1], leaves[0], stride=stride, padding=1)
        back = lambda dw: dw.permute(2, 3, 1, 0)  # noqa: E731
        return Work(forward, leaves, _images(dout, form), _channels_last, back)

    return _both_forms(work)


def pool(kind: str, x: Any, dout: Any) -> dict[str, Work]:
    """Windows of 2x2."""
    pooled: Any = {"max": F.max_pool2d, "average": F.avg_pool2d}[kind]

    def work(form: Any) -> Work:
        images = _images(x, form).requires_grad_()
        dy = _images(dout, form)
        return Work(partial(pooled, images, 2), [images], dy, _channels_last, _channels_last)

    return _both_forms(work)


def norm(kind: str, params: Any, x: Any, dout: Any) -> dict[str, Work]:
    """Layer or RMS norm of rows."""
    weights, rows = [_leaf(p) for p in params if p is not None], _leaf(x)
    normalise: Any = {"layer": F.layer_norm, "rms": F.rms_norm}[kind]
    forward = partial(normalise, rows, rows.shape[-1:], *weights, eps=1e-5)
    return {"": Work(forward, [*weights, rows], _fixed(dout))}


def batch_norm(params: Any, running: Any, x: Any, dout: Any) -> dict[str, Work]:
    """In training; the running statistics are buffers."""

    def work(form: Any) -> Work:
        images, scale, shift = _images(x, form).requires_grad_(), *map(_leaf, params)
        mean, variance = map(_fixed, running)
        forward = partial(F.batch_norm, images, mean, variance, scale, shift, training=True)
        return Work(forward, [scale, shift, images], _images(dout, form), _channels_last)

    return _both_forms(work)


def embedding(params: Any, tokens: Any, dout: Any) -> dict[str, Work]:
    """Rows of a table."""
    table = _leaf(params.table)
    return {"": Work(partial(F.embedding, _fixed(tokens), table), [table], _fixed(dout))}


def _linear(x: Any, w: Any, b: Any) -> Any:
    return F.linear(x, w.T, b)


def _images(x: Any, form: Any) -> Any:
    """(N, H, W, C) as (N, C, H, W), in memory as `form` says."""
    return _fixed(x).permute(0, 3, 1, 2).contiguous(memory_format=form)


def _channels_last(x: Any) -> Any:
    return x.permute(0, 2, 3, 1)


def _both_forms(work: Callable[[Any], Work]) -> dict[str, Work]:
    return {"": work(torch.contiguous_format), LAST: work(torch.channels_last)}


# ---- whole tiny runs, and the ladder


def descent(
    params: perceptron.Params,
    batches: Sequence[Any],
    config: perceptron.Config,
    learning_rate: float,
    means: Layout,
) -> Arm:
    """Gradient descent from the same parameters, a step per batch; the losses' means."""
    pairs = [tuple(map(_fixed, batch)) for batch in batches]

    def run() -> tuple[Any, Any]:
        net = torch_peer.network(params, config)
        optimizer = torch.optim.SGD(net.parameters(), lr=learning_rate)
        losses = []
        for inputs, targets in pairs:
            optimizer.zero_grad()
            loss = torch_peer.loss(net, inputs, targets, config)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return means(torch.stack(losses)), net[0].weight.detach().T

    return Arm(run)


def product(a: Any, b: Any) -> Arm:
    """One product of matrices, forward only."""
    left, right = _fixed(a), _fixed(b)
    return Arm(lambda: (left @ right, ()))
