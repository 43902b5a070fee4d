"""Whole tiny runs, as one program and as loops of steps; and the ways to multiply matrices."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jax import Array

from experiments import numpy_net
from experiments.benchmark.arms import (
    AUTODIFF,
    BY_HAND,
    Arm,
    Builds,
    Case,
    compiled,
    normal,
)
from experiments.benchmark.peers import peers
from jaxnn import data, train
from jaxnn.models import mlp
from jaxnn.ops.matmul import LADDER

PYTHON_LOOP, NUMPY = "jitted step in a Python loop", "NumPy"


def moons_run(epochs: int = 300, points: int = 100) -> Case:
    """Full-batch descent on the two moons."""
    return Case(
        f"{epochs} full-batch steps on {points} points, sizes (2, 10, 2), as one program",
        lambda: _run(data.two_moons(points, seed=7), (2, 10, 2), 0.5, epochs, points),
    )


def digits_run(epochs: int = 5, batch_size: int = 32) -> Case:
    """Descent on scikit-learn's handwritten digits, in shuffled batches."""
    return Case(
        f"{epochs} epochs of digits in shuffled batches of {batch_size}, sizes (64, 32, 10), "
        "as one program",
        lambda: _run(data.digits().train, (64, 32, 10), 0.1, epochs, batch_size),
    )


def _run(
    examples: data.Batch, sizes: tuple[int, ...], learning_rate: float, epochs: int, batch_size: int
) -> Builds:
    """Every arm returns the mean loss of each epoch and the trained weights.

    The program draws the order of its batches; the loops are handed theirs, cut before.
    """
    config, optimizer = mlp.Config(sizes=sizes), optax.sgd(learning_rate)
    state = train.init_state(mlp, config, optimizer, jax.random.key(7))
    layers = [(np.asarray(w), np.asarray(b)) for w, b in state.params.layers]
    batches = _batches(examples, state.key, epochs, batch_size)

    def means(losses: Any) -> Any:
        return np.asarray(losses).reshape(epochs, -1).mean(1)

    def program(gradient: train.Gradient) -> Arm:
        run = train.make_run(
            mlp, config, optimizer, examples, epochs=epochs, batch_size=batch_size,
            gradient=gradient,
        )  # fmt: skip

        def trained(state: train.State) -> tuple[Array, mlp.Params]:
            after, history = run(state)
            return history.loss, after.params

        return compiled(trained, state)

    def python_loop() -> Arm:
        step = train.make_step(mlp, config, optimizer)

        def run() -> tuple[Any, Any]:
            after, losses = state, []
            for batch in batches:
                after, loss = step(after, batch)
                losses.append(loss)
            return means(jax.device_get(losses)), jax.block_until_ready(after.params)

        return Arm(run)

    def in_numpy() -> Arm:
        pairs = [(np.asarray(batch.inputs), np.asarray(batch.targets)) for batch in batches]

        def run() -> tuple[Any, Any]:
            after, losses = numpy_net.descend(layers, pairs, learning_rate=learning_rate)
            return means(losses), after

        return Arm(run)

    return {
        BY_HAND: lambda: program("manual"),
        AUTODIFF: lambda: program("autodiff"),
        PYTHON_LOOP: python_loop,
        NUMPY: in_numpy,
        **peers(
            "torch_models",
            lambda torch: torch.descent(state.params, batches, config, learning_rate, means),
        ),
    }


def _batches(examples: data.Batch, key: Array, epochs: int, batch_size: int) -> list[data.Batch]:
    """What the steps of a run see, one after the other, as `train.make_run` has it."""
    n = len(examples.targets)
    if batch_size == n:
        return [examples] * epochs
    found = []
    for _ in range(epochs):
        order, key = train.epoch_order(key, n, batch_size)
        found += [jax.tree.map(lambda x, rows=rows: x[rows], examples) for rows in order]
    return found


def ladder() -> Case:
    """The ways to multiply two matrices that `jaxnn.ops.matmul` has, forward only."""
    return Case("5x784 by 784x10, from three loops to one operator", _ladder, base="operator")


def _ladder() -> Builds:
    a, b = normal(0, 5, 784), normal(1, 784, 10)
    x, y = np.asarray(a), np.asarray(b)

    def rung(multiply: Callable[[Array, Array], Array]) -> Arm:
        return Arm(lambda: (jax.block_until_ready(multiply(a, b)), ()))

    rungs: Builds = {name: partial(rung, multiply) for name, multiply in LADDER.items()}
    return {
        **rungs,
        NUMPY: lambda: Arm(lambda: (x @ y, ())),
        **peers("torch_ops", lambda torch: torch.product(a, b)),
    }
