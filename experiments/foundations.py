"""From the matrix product to a trained model: what a network is made of.

python -m experiments.foundations      five matrix products, broadcasting, initialisation,
                                       and ReLU with a hand-written rule inside jax.grad
"""

import statistics
import time
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from experiments import cli, pictures
from jaxnn import train
from jaxnn.models import mlp
from jaxnn.ops.activations import relu
from jaxnn.ops.linear import linear
from jaxnn.ops.losses import mean_squared_error
from jaxnn.ops.matmul import LADDER

DEPTH, WIDTH, EXAMPLES = 50, 100, 200


def main(
    seed: int = 0,
    steps: int = 200,
    gradient: train.Gradient = "manual",
    out: Path = Path("out/foundations"),
) -> int:
    """Show the parts of a network, each with its numbers.

    Args:
        seed: Of every random array.
        steps: Optimizer steps of the last part.
        gradient: Of the last part's comparison run: by hand, or by jax.grad.
        out: Folder for pictures.
    """
    cli.check_positive(steps=steps)
    folder = cli.folder(out)
    k_ladder, k_depth, k_train = jax.random.split(jax.random.key(seed), 3)

    print("The matrix product, 5x784 by 784x10, median of several calls")
    seconds = time_ladder(k_ladder)
    slowest = max(seconds.values())
    for name, value in seconds.items():
        print(f"  {name:<12}{1e6 * value:>12,.1f} µs{slowest / value:>10,.0f}x")
    pictures.ladder(folder / "ladder.png", seconds)

    print("\nBroadcasting: shapes are aligned at the right; sizes must be equal, or one of them 1")
    for line in show_broadcasting():
        print(f"  {line}")

    print(f"\nStandard deviation of activations after {DEPTH} layers of width {WIDTH}")
    curves = activation_scales(k_depth)
    for name, values in curves.items():
        print(f"  {name:<28}{values[-1]:>12.3g}")
    pictures.scales(folder / "initialisation.png", curves)

    print("\nReLU as an op: jax.grad runs its hand-written rule")
    losses = train_with_op(k_train, steps, gradient)
    for name, values in losses.items():
        print(f"  {name:<44} loss {values[0]:.4f} -> {values[-1]:.6f}")
    pictures.training(folder / "relu_op.png", losses)
    return 0


def time_ladder(key: Array) -> dict[str, float]:
    """Seconds per call of each way to multiply, compiled before; all results are compared first."""
    ka, kb = jax.random.split(key)
    a, b = jax.random.normal(ka, (5, 784)), jax.random.normal(kb, (784, 10))
    expected = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    seconds = {}
    for name, multiply in LADDER.items():
        np.testing.assert_allclose(np.asarray(multiply(a, b)), expected, rtol=1e-3, atol=1e-3)
        calls = 5 if name == "loops" else 200
        times = []
        for _ in range(calls):
            started = time.perf_counter()
            jax.block_until_ready(multiply(a, b))
            times.append(time.perf_counter() - started)
        seconds[name] = statistics.median(times)
    return seconds


def show_broadcasting() -> list[str]:
    """What a scalar, a row and a column do to a matrix, and what cannot be done to it."""
    m = jnp.arange(1.0, 10.0).reshape(3, 3)
    c = jnp.array([10.0, 20.0, 30.0])
    wide = jnp.arange(1.0, 7.0).reshape(2, 3)
    cases: list[tuple[str, Any, Any]] = [
        ("matrix + scalar", m, jnp.array(100.0)),
        ("matrix + row: the row is added to every row", m, c),
        ("matrix + column: the column is added to every column", m, c[:, None]),
        ("row + column: every pair", c, c[:, None]),
        ("2x3 + row of 3: fits", wide, c),
        ("2x3 + row of 2: 3 against 2 at the right", wide, jnp.array([10.0, 20.0])),
    ]
    lines = []
    for name, x, y in cases:
        shapes = f"{x.shape} + {y.shape}"
        try:
            total = x + y
        except (TypeError, ValueError):  # which one depends on the release of JAX
            lines.append(f"{name:<54}{shapes:<18} -> refused; y[:, None] would be a column")
            continue
        lines.append(f"{name:<54}{shapes:<18} -> {total.shape} {total.tolist()}")
    return lines


def activation_scales(key: Array) -> dict[str, np.ndarray[Any, Any]]:
    """The standard deviation after each of many layers, for five ways to draw the weights."""

    def stay(x: Array) -> Array:
        return x

    cases: dict[str, tuple[float, Callable[[Array], Array]]] = {
        "linear, N(0, 1)": (1.0, stay),
        "linear, times 0.01": (0.01, stay),
        "linear, times sqrt(1/100)": (sqrt(1 / WIDTH), stay),
        "ReLU, times sqrt(1/100)": (sqrt(1 / WIDTH), jax.nn.relu),
        "ReLU, times sqrt(2/100)": (sqrt(2 / WIDTH), jax.nn.relu),
    }
    k_inputs, k_weights = jax.random.split(key)
    # In float64: the two extremes leave float32's range before the fiftieth layer.
    with jax.enable_x64(True):
        inputs = jax.random.normal(k_inputs, (EXAMPLES, WIDTH))
        keys = jax.random.split(k_weights, DEPTH)

        def scales(factor: float, activation: Callable[[Array], Array]) -> Array:
            def layer(x: Array, k: Array) -> tuple[Array, Array]:
                x = activation(x @ (jax.random.normal(k, (WIDTH, WIDTH)) * factor))
                return x, x.std()

            return lax.scan(layer, inputs, keys)[1]

        return {name: np.asarray(scales(*case)) for name, case in cases.items()}


def train_with_op(
    key: Array, steps: int, gradient: train.Gradient = "manual"
) -> dict[str, np.ndarray[Any, Any]]:
    """A linear-ReLU-linear model trained twice from the same start.

    Once with `jax.grad` through the ops themselves, so that their hand-written rules run inside
    it; once by `jaxnn.train` with the model's own gradient. The two curves are one.
    """
    config = mlp.Config(sizes=(100, 50, 1), loss="mean_squared_error")
    k_x, k_y, k_state = jax.random.split(key, 3)
    x, y = jax.random.normal(k_x, (200, 100)), jax.random.normal(k_y, (200, 1))
    optimizer = optax.sgd(0.02)
    state = train.init_state(mlp, config, optimizer, k_state)

    def loss(params: mlp.Params) -> Array:
        first, second = params.layers
        return mean_squared_error(linear(second, relu(linear(first, x))), y)

    @jax.jit
    def through_ops(params: mlp.Params) -> Array:
        def step(carry: Any, _: None) -> tuple[Any, Array]:
            params, opt_state = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), value

        return lax.scan(step, (params, optimizer.init(params)), length=steps)[1]

    run = train.make_run(
        mlp, config, optimizer, (x, y), epochs=steps, batch_size=len(x), gradient=gradient
    )
    return {
        "jax.grad of a loss that calls the op": np.asarray(through_ops(state.params)),
        f"mlp's own gradient, {gradient}": np.asarray(run(state)[1].loss),
    }


if __name__ == "__main__":
    cli.run(main)
