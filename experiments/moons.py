"""Two moons told apart by a small network, full batch, as one compiled program.

    python -m experiments.moons                      300 epochs; final loss below 0.05, falling all
                                                     the way
    python -m experiments.moons --resume out/moons   go on with a run that was stopped

Also checks the gradient of a [500, 100, 50, 40, 10] network, every leaf, beside SciPy's
`check_grad`, and times the training program beside the same loop in NumPy.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import check_grad

from experiments import cli, numpy_net, pictures, recall
from jaxnn import data, files, train
from jaxnn import verify as verifier
from jaxnn.models import mlp
from jaxnn.ops.activations import relu

TIMINGS = 25


@recall.recalls(resume=())
def main(
    seed: int = 7,
    epochs: int = 300,
    points: int = 100,
    noise: float = 0.1,
    hidden: tuple[int, ...] = (10,),
    learning_rate: float = 0.5,
    gradient: train.Gradient = "manual",
    verify: bool = True,
    resume: Path | None = None,
    out: Path = Path("out/moons"),
) -> int:
    """Train a two-moons classifier by full-batch gradient descent.

    Args:
        seed: Of the points and the initial parameters.
        epochs: Steps, each on all points.
        points: How many points to draw.
        noise: Standard deviation of the points around their half circle.
        hidden: Widths of the hidden layers.
        learning_rate: Of plain gradient descent.
        gradient: By hand, or by jax.grad.
        verify: Prove the gradient before training with it; a run that goes on was proven before.
        resume: The folder of a run that was stopped: go on with it, with the options that it has,
            to where it would have ended; if it has ended, draw its pictures again.
        out: Folder for parameters, log and pictures. A run that it has moves to "previous" in it.
    """
    cli.check_positive(epochs=epochs, learning_rate=learning_rate)
    options = dict(locals())
    batch = data.two_moons(points, noise, seed)
    config = mlp.Config(sizes=(2, *hidden, 2))
    optimizer = optax.sgd(learning_rate)
    run = train.make_run(
        mlp,
        config,
        optimizer,
        batch,
        epochs=cli.split(epochs, at_once=100),
        batch_size=points,
        gradient=gradient,
    )
    state = train.init_state(mlp, config, optimizer, jax.random.key(seed))
    with cli.run_folder(out) as folder:
        passed = not verify or _check_gradient(seed)
        result = train.fit(
            run,
            state,
            epochs=epochs,
            folder=folder,
            model=mlp,
            config=config,
            notes=recall.notes(main, options, batch, seed=seed),
            resume=resume is not None,
            also=cli.DRAWN,
        )
        if not result.best_epoch:
            return result.status
        losses = result.history.loss
        steps = "falling all the way" if (np.diff(losses) < 0).all() else "not falling all the way"
        print(
            f"\nfinal loss {losses[-1]:.4f} nats after "
            f"{files.counted(len(losses), 'epoch')}, {steps}; accuracy "
            f"{float(mlp.accuracy(result.params, batch, config)):.1%} after {result.best_epoch}"
        )
        if verify and result.status == 0:
            _time(state, config, batch, epochs, learning_rate, gradient)
        _draw(folder, result, batch, config)
    return result.status if passed else 1


def _draw(folder: Path, result: train.Fit, batch: data.Batch, config: mlp.Config) -> None:
    """The moons as the network tells them apart, and the function it has between its layers."""
    x1, x2 = np.meshgrid(np.linspace(-1.8, 2.8, 200), np.linspace(-1.3, 1.8, 200))
    grid = jnp.asarray(np.stack([x1.ravel(), x2.ravel()], axis=1), batch.inputs.dtype)
    p = np.asarray(mlp.probabilities(result.params, grid, config))[:, 1].reshape(x1.shape)
    losses = result.history.loss
    pictures.moons(folder / "moons.png", losses, batch.inputs, batch.targets, (x1, x2), p)
    x = jnp.arange(-200, 201) / 200  # with 0 itself
    y, residuals = relu.fwd(x)
    (slope,) = relu.bwd(residuals, jnp.ones_like(y))
    pictures.function_and_slope(folder / "relu.png", x, y, slope, "ReLU")


def _check_gradient(seed: int) -> bool:
    """Every leaf of a deep network by the verifier, twice, and by SciPy."""
    config = mlp.Config(sizes=(500, 100, 50, 40, 10))
    k_params, k_inputs = jax.random.split(jax.random.key(seed))
    params = mlp.init_params(k_params, config)
    batch = data.Batch(jax.random.uniform(k_inputs, (1, 500)), jnp.array([3]))
    total = float(mlp.probabilities(params, batch.inputs, config).sum())
    print(f"{list(config.sizes)}: probabilities sum to {total:.7f}")

    reports = [
        verifier.gradient(mlp.loss, mlp.manual_grad, params, batch, config) for _ in range(2)
    ]
    print(reports[0])
    started = time.perf_counter()
    errors = _scipy_errors(params, batch)
    scipy_seconds = time.perf_counter() - started
    print("SciPy's check_grad, 2-norms: " + ", ".join(f"{e:.1e}" for e in errors))
    first, second = (report.seconds for report in reports)
    print(
        f"verified in {first:.2f} s the first time, compilation included, {second:.2f} s the "
        f"second; SciPy took {scipy_seconds:.2f} s, {scipy_seconds / first:.1f} and "
        f"{scipy_seconds / second:.0f} times as long"
    )
    return all(reports)


def _scipy_errors(params: mlp.Params, batch: data.Batch) -> list[float]:
    """`scipy.optimize.check_grad` of every leaf, on the network in NumPy, in float64."""
    layers = [(np.asarray(w, np.float64), np.asarray(b, np.float64)) for w, b in params.layers]
    x, labels = np.asarray(batch.inputs, np.float64), np.asarray(batch.targets)

    def moved(layer: int, leaf: int, flat: Any) -> numpy_net.Layers:
        pair = list(layers[layer])
        pair[leaf] = flat.reshape(pair[leaf].shape)
        return [*layers[:layer], (pair[0], pair[1]), *layers[layer + 1 :]]

    def error(layer: int, leaf: int) -> float:
        def f(flat: Any) -> float:
            return numpy_net.data_loss(numpy_net.forward(moved(layer, leaf, flat), x)[-1], labels)[
                0
            ]

        def g(flat: Any) -> Any:
            grads = numpy_net.value_and_grad(moved(layer, leaf, flat), x, labels)[1]
            return grads[layer][leaf].ravel()

        return float(check_grad(f, g, layers[layer][leaf].ravel()))

    return [error(layer, leaf) for layer in range(len(layers)) for leaf in range(2)]


def _time(
    state: train.State,
    config: mlp.Config,
    batch: data.Batch,
    epochs: int,
    learning_rate: float,
    gradient: train.Gradient,
) -> None:
    """The run as one program against the same loop in NumPy, in turn, in the same dtype."""
    layers = [(np.asarray(w), np.asarray(b)) for w, b in state.params.layers]
    x, labels = np.asarray(batch.inputs), np.asarray(batch.targets)
    run = train.make_run(
        mlp,
        config,
        optax.sgd(learning_rate),
        batch,
        epochs=epochs,
        batch_size=len(x),
        gradient=gradient,
    )

    def one_program() -> None:
        jax.block_until_ready(run(state))

    def loop() -> None:
        numpy_net.descend(layers, [(x, labels)] * epochs, learning_rate=learning_rate)

    ours, theirs = [], []
    for _ in range(TIMINGS):
        ours.append(_warm_seconds(one_program))
        theirs.append(_warm_seconds(loop))
    ratios = [t / o for o, t in zip(ours, theirs, strict=True)]
    print(
        f"one program {1e3 * statistics.median(ours):.1f} ms, compiled before; the same loop in "
        f"NumPy {1e3 * statistics.median(theirs):.1f} ms: {statistics.median(ratios):.1f} times "
        f"({min(ratios):.1f} to {max(ratios):.1f} in {TIMINGS} turns; JAX {jax.__version__}, "
        f"NumPy {np.__version__})"
    )


def _warm_seconds(work: Callable[[], None]) -> float:
    """Seconds of a second call: the first wakes threads and fills caches."""
    work()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    cli.run(main)
