"""Whole tiny runs, as one program and as loops of steps; and the ways to multiply matrices."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
    LeftOutError,
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
    return _run(
        f"{epochs} full-batch steps on {points} points, sizes (2, 10, 2), as one program",
        lambda: data.two_moons(points, seed=7),
        mlp,
        mlp.Config(sizes=(2, 10, 2)),
        Descent(0.5, epochs, points),
        loops=True,
    )


def digits_run(epochs: int = 5, batch_size: int = 32) -> Case:
    """Descent on scikit-learn's handwritten digits, in shuffled batches."""
    return _run(
        f"{epochs} epochs of digits in shuffled batches of {batch_size}, sizes (64, 32, 10), "
        "as one program",
        lambda: data.digits().train,
        mlp,
        mlp.Config(sizes=(64, 32, 10)),
        Descent(0.1, epochs, batch_size),
        loops=True,
    )


def mnist_run(folder: Path | None, model: Any, config: Any, batch_size: int = 128) -> Case:
    """An epoch of MNIST's 60,000 images, where a folder has them."""

    def images() -> data.Batch:
        if folder is None:
            raise LeftOutError("--mnist names no folder with MNIST's files")
        return data.mnist(folder).train

    # What two right programs round otherwise, hundreds of steps carry on.
    return _run(
        f"an epoch of MNIST in shuffled batches of {batch_size}, {model.__name__} as one program",
        images,
        model,
        config,
        Descent(0.01, 1, batch_size),
    )._replace(agree=2e-2, most_rounds=3)


class Descent(NamedTuple):
    """How a run goes down: with this learning rate, so many epochs, in batches of this size."""

    learning_rate: float
    epochs: int
    batch_size: int


def _run(
    what: str,
    examples: Callable[[], data.Batch],
    model: Any,
    config: Any,
    descent: Descent,
    *,
    loops: bool = False,
) -> Case:
    """Every arm returns the mean loss of each epoch and the trained weights.

    The program draws the order of its batches; the loops are handed theirs, cut before. `loops`:
    a loop of steps and NumPy take turns too.
    """
    learning_rate, epochs, batch_size = descent
    optimizer = optax.sgd(learning_rate)

    def start() -> train.State:
        return train.init_state(model, config, optimizer, jax.random.key(7))

    def means(losses: Any) -> Any:
        return np.asarray(losses).reshape(epochs, -1).mean(1)

    def make() -> Builds:
        batch, state = examples(), start()

        def program(gradient: train.Gradient) -> Arm:
            run = train.make_run(
                model, config, optimizer, batch, epochs=epochs, batch_size=batch_size,
                gradient=gradient,
            )  # fmt: skip

            def trained(state: train.State) -> tuple[Array, Any]:
                after, history = run(state)
                return history.loss, after.params

            return compiled(trained, state)

        def python_loop() -> Arm:
            step = train.make_step(model, config, optimizer)
            batches = _batches(batch, state.key, epochs, batch_size)

            def run() -> tuple[Any, Any]:
                after, losses = state, []
                for part in batches:
                    after, loss = step(after, part)
                    losses.append(loss)
                return means(jax.device_get(losses)), jax.block_until_ready(after.params)

            return Arm(run)

        def in_numpy() -> Arm:
            layers = [(np.asarray(w), np.asarray(b)) for w, b in state.params.layers]
            batches = _batches(batch, state.key, epochs, batch_size)
            pairs = [(np.asarray(part.inputs), np.asarray(part.targets)) for part in batches]

            def run() -> tuple[Any, Any]:
                after, losses = numpy_net.descend(layers, pairs, learning_rate=learning_rate)
                return means(losses), after

            return Arm(run)

        builds = {BY_HAND: lambda: program("manual"), AUTODIFF: lambda: program("autodiff")}
        return builds | ({PYTHON_LOOP: python_loop, NUMPY: in_numpy} if loops else {})

    def others() -> Builds:
        batch, state = examples(), start()
        batches = _batches(batch, state.key, epochs, batch_size)
        name = model.__name__.rpartition(".")[2]
        return peers(
            "torch_models",
            lambda torch: torch.descent(name, state.params, batches, config, learning_rate, means),
        )

    return Case(what, make, peers=others)


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
    return Case(
        "5x784 by 784x10, from three loops to one operator",
        _ladder,
        base="operator",
        peers=lambda: peers("torch_ops", lambda torch: torch.product(*_factors())),
    )


def _factors() -> tuple[Array, Array]:
    return normal(0, 5, 784), normal(1, 784, 10)


def _ladder() -> Builds:
    a, b = _factors()
    x, y = np.asarray(a), np.asarray(b)

    def rung(multiply: Callable[[Array, Array], Array]) -> Arm:
        return Arm(lambda: (jax.block_until_ready(multiply(a, b)), ()))

    rungs: Builds = {name: partial(rung, multiply) for name, multiply in LADDER.items()}
    return {**rungs, NUMPY: lambda: Arm(lambda: (x @ y, ()))}
