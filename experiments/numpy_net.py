"""The multilayer perceptron once more in plain NumPy: a reference that shares no code with jaxnn.

Layers are pairs (w, b) of arrays; the formulas are those of `jaxnn.models.mlp`, written from the
derivation and computed in whatever dtype comes in.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]
Layers = list[tuple[Floats, Floats]]


def forward(layers: Layers, x: Floats, activation: str = "relu") -> list[Floats]:
    """The inputs, each hidden layer's activations, and the outputs."""
    values = [x]
    for w, b in layers[:-1]:
        z = values[-1] @ w + b
        if activation == "relu":
            values.append(np.maximum(z, 0))
        elif activation == "tanh":
            values.append(np.tanh(z))
        else:
            values.append(1 / (1 + np.exp(-z)))
    w, b = layers[-1]
    return [*values, values[-1] @ w + b]


def data_loss(
    z: Floats, targets: Floats, loss: str = "softmax_cross_entropy"
) -> tuple[float, Floats]:
    """The loss of the outputs z (N, K), and its gradient by them."""
    n = len(z)
    if loss == "mean_squared_error":
        residual = z - targets
        return float((residual * residual).mean()), 2 * residual / residual.size
    exp = np.exp(z - z.max(1, keepdims=True))
    p = exp / exp.sum(1, keepdims=True)
    rows = np.arange(n)
    value = float(-np.log(p[rows, targets]).mean())
    p[rows, targets] -= 1
    return value, p / n


def value_and_grad(
    layers: Layers,
    x: Floats,
    targets: Floats,
    activation: str = "relu",
    loss: str = "softmax_cross_entropy",
    l2: float = 0.0,
) -> tuple[float, Layers]:
    """The loss and its gradient, one pair (dw, db) per layer."""
    *values, z = forward(layers, x, activation)
    value, dz = data_loss(z, targets, loss)
    grads: Layers = []
    for (w, _), a in zip(reversed(layers), reversed(values), strict=True):
        grads.append((a.T @ dz, dz.sum(0)))
        if a is not x:
            da = dz @ w.T
            if activation == "relu":
                dz = da * (a > 0)
            elif activation == "tanh":
                dz = da * (1 - a * a)
            else:
                dz = da * a * (1 - a)
    grads.reverse()
    if l2:
        value += 0.5 * l2 * sum(float((w * w).sum()) for w, _ in layers)
        grads = [(dw + l2 * w, db) for (dw, db), (w, _) in zip(grads, layers, strict=True)]
    return value, grads


def descend(
    layers: Layers, batches: Iterable[tuple[Floats, Floats]], *, learning_rate: float
) -> tuple[Layers, list[float]]:
    """Gradient descent with a ReLU classifier, a step per batch; the loss before each step."""
    losses = []
    for x, labels in batches:
        value, grads = value_and_grad(layers, x, labels)
        losses.append(value)
        layers = [
            (w - learning_rate * dw, b - learning_rate * db)
            for (w, b), (dw, db) in zip(layers, grads, strict=True)
        ]
    return layers, losses
