"""The multilayer perceptron in PyTorch, as a peer to compare with where PyTorch is installed."""

import importlib.util
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from jaxnn.models import mlp
from jaxnn.ops.linear import Linear

# An optional peer: every caller asks `installed` first.
installed = importlib.util.find_spec("torch") is not None
MISSING = 'it is not installed; pip install -e ".[peers]"'
if installed:
    import torch


def device() -> str | None:
    """Where PyTorch computes beside JAX: on the CPU or on a GPU as JAX does, None if it cannot."""
    backend = jax.default_backend()
    if backend == "gpu":
        return "cuda" if torch.cuda.is_available() else None
    return "cpu" if backend == "cpu" else None


def network(params: mlp.Params, config: mlp.Config) -> Any:
    """A `torch.nn.Sequential` with the same numbers; PyTorch keeps weights transposed."""
    between = {"relu": torch.nn.ReLU, "sigmoid": torch.nn.Sigmoid, "tanh": torch.nn.Tanh}
    modules: list[Any] = []
    for layer in params.layers:
        w, b = np.array(layer.w.T), np.array(layer.b)
        linear = torch.nn.Linear(w.shape[1], w.shape[0], dtype=torch.from_numpy(w).dtype)
        linear.weight.data, linear.bias.data = torch.from_numpy(w), torch.from_numpy(b)
        modules += [linear, between[config.activation]()]
    return torch.nn.Sequential(*modules[:-1])


def loss(net: Any, inputs: Any, targets: Any, config: mlp.Config) -> Any:
    """The same loss, from PyTorch's own functions."""
    outputs = net(inputs)
    if config.loss == "softmax_cross_entropy":
        data_loss = torch.nn.functional.cross_entropy(outputs, targets.long())
    else:
        data_loss = torch.nn.functional.mse_loss(outputs, targets)
    return data_loss + 0.5 * config.l2 * sum((m.weight**2).sum() for m in _linear(net))


def value_and_grad(
    params: mlp.Params, batch: Iterable[Any], config: mlp.Config
) -> tuple[float, mlp.Params]:
    """The loss and PyTorch's gradient of it, as parameters in our layout."""
    net = network(params, config)
    inputs, targets = (torch.from_numpy(np.array(x)) for x in batch)
    value = loss(net, inputs, targets, config)
    value.backward()
    grads = tuple(Linear(m.weight.grad.numpy().T, m.bias.grad.numpy()) for m in _linear(net))
    return value.item(), mlp.Params(grads)


def train(
    params: mlp.Params, batch: Iterable[Any], config: mlp.Config, learning_rate: float, epochs: int
) -> float:
    """The loss after `epochs` full-batch steps of PyTorch's Adam, decayed to 0 by a cosine."""
    net = network(params, config)
    inputs, targets = (torch.from_numpy(np.array(x)) for x in batch)
    optimizer = torch.optim.Adam(net.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    for _ in range(epochs):
        optimizer.zero_grad()
        loss(net, inputs, targets, config).backward()
        optimizer.step()
        schedule.step()
    return float(loss(net, inputs, targets, config).item())


def _linear(net: Any) -> list[Any]:
    return [m for m in net if isinstance(m, torch.nn.Linear)]
