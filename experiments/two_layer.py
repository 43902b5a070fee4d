"""A two-layer softmax network with a penalty on its weights: one fixed case, four gradients.

    python -m experiments.two_layer                          by hand, by jax.grad, numerically,
                                                             and by PyTorch
    python -m experiments.two_layer --resume out/two_layer   go on with a descent that was stopped

Two samples of three features, four sigmoid units, five classes, float64. Then the numerical
gradient of two functions of two numbers, beside their derivatives, and the loss as gradient
descent brings it down to where the penalty holds it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from experiments import cli, pictures, recall, torch_peer
from jaxnn import data, files, train
from jaxnn import verify as verifier
from jaxnn.models import mlp
from jaxnn.ops.linear import Linear

CONFIG = mlp.Config(sizes=(3, 4, 5), activation="sigmoid", l2=0.5, init="xavier")


def fixed_case() -> tuple[mlp.Params, data.Batch]:
    """The parameters and batch, in JAX's default dtype. Samples are rows, weights (in, out)."""
    inputs = jnp.arange(6.0).reshape(3, 2).T
    first = Linear(jnp.tile(jnp.array([[1.0], [2.0], [3.0]]), (1, 4)), jnp.ones(4))
    second = Linear(jnp.full((4, 5), 2.0), jnp.full(5, 2.0))
    return mlp.Params((first, second)), data.Batch(inputs, jnp.array([3, 4]))


def log_and_square(w: tuple[Array, Array]) -> Array:
    """f(w1, w2) = log(w1 + w2) + w1^2 w2."""
    w1, w2 = w
    return jnp.log(w1 + w2) + w1**2 * w2


def cosines_and_sigmoid(w: tuple[Array, Array]) -> Array:
    """g(w1, w2) = cos(w1) cos(w2) + sigmoid(w2)."""
    w1, w2 = w
    return jnp.cos(w1) * jnp.cos(w2) + jax.nn.sigmoid(w2)


@recall.recalls(resume=())
def main(
    seed: int = 0,
    random: bool = False,
    steps: int = 200,
    learning_rate: float = 0.1,
    gradient: train.Gradient = "manual",
    verify: bool = True,
    resume: Path | None = None,
    out: Path = Path("out/two_layer"),
) -> int:
    """Put four gradients of one small network side by side, then descend by one of them.

    Args:
        seed: Of the parameters, with --random.
        random: Draw the parameters instead of taking the fixed ones.
        steps: Of gradient descent after the comparison.
        learning_rate: Of gradient descent.
        gradient: To descend by: by hand, or by jax.grad.
        verify: Prove the gradient before training with it; a run that goes on was proven before.
        resume: The folder of a run that was stopped: go on with it, with the options that it has,
            to where it would have ended; if it has ended, draw its pictures again.
        out: Folder for parameters, log, table and pictures. A run that it has moves to
            "previous" in it.
    """
    cli.check_positive(steps=steps, learning_rate=learning_rate)
    options = dict(locals())
    with cli.run_folder(out) as folder, jax.enable_x64(True):
        params, batch = fixed_case()
        if random:
            params = mlp.init_params(jax.random.key(seed), CONFIG)
        columns = _gradients(params, batch)
        text = "\n".join([*_network_table(params, batch, columns), "", *_toy_table()]) + "\n"
        print(text)
        if verify and not cli.holds(mlp, params, batch, CONFIG):
            return 1
        optimizer = optax.sgd(learning_rate)
        run = train.make_run(
            mlp,
            CONFIG,
            optimizer,
            batch,
            epochs=cli.split(steps, at_once=100),
            batch_size=2,
            gradient=gradient,
        )
        start = train.init_state(mlp, CONFIG, optimizer, jax.random.key(seed))
        result = train.fit(
            run,
            start._replace(params=params),
            epochs=steps,
            folder=folder,
            model=mlp,
            config=CONFIG,
            notes=recall.notes(main, options, batch, seed=seed),
            resume=resume is not None,
            also=cli.DRAWN,
        )
        if not result.best_epoch:
            return result.status
        losses = result.history.loss
        print(
            f"{files.counted(len(losses), 'step')} by {gradient!r}: "
            f"loss {losses[0]:.4f} -> {losses[-1]:.4f}"
        )
        with files.replaced(folder / "table.txt") as file:
            file.write_text(text)
        print(f"wrote {folder / 'table.txt'}")
        pictures.gradients(folder / "gradients.png", *_entries(columns))
        pictures.loss(folder / "loss.png", losses)
    return result.status


def _gradients(params: mlp.Params, batch: data.Batch) -> dict[str, Any]:
    """The gradient by each way to get it."""
    columns: dict[str, Any] = {
        "by hand": mlp.manual_grad(params, batch, CONFIG),
        "jax.grad": jax.grad(mlp.loss)(params, batch, CONFIG),
        "numerical": verifier.numerical_gradient(lambda p: mlp.loss(p, batch, CONFIG), params),
    }
    if torch_peer.installed:
        columns["PyTorch"] = torch_peer.value_and_grad(params, batch, CONFIG)[1]
    return columns


def _entries(columns: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Each entry's leaf, and by each way all entries in one row."""
    leaves = {
        f"{name}{number + 1}": [np.ravel(getattr(c.layers[number], name)) for c in columns.values()]
        for number in range(2)
        for name in ("w", "b")
    }
    names = [name for name, ways in leaves.items() for _ in ways[0]]
    rows = (np.concatenate(ways) for ways in zip(*leaves.values(), strict=True))
    return names, dict(zip(columns, rows, strict=True))


def _network_table(params: mlp.Params, batch: data.Batch, columns: dict[str, Any]) -> list[str]:
    """Each entry of the gradient, one column per way to get it. Equal columns are equal entries."""
    value, by_hand = mlp.loss(params, batch, CONFIG), columns["by hand"]
    lines = [f"loss {float(value):.13f}", f"{'entry':<10}" + _row(columns)]
    for number in range(2):
        for name in ("w", "b"):
            leaves = [getattr(c.layers[number], name) for c in columns.values()]
            for index in np.ndindex(leaves[0].shape):
                entry = f"{name}{number + 1}[{','.join(map(str, index))}]"
                lines.append(
                    f"{entry:<10}" + _row([f"{float(leaf[index]):.10f}" for leaf in leaves])
                )
    if not torch_peer.installed:
        lines.append(f"PyTorch has no column: {torch_peer.MISSING}")
    for way, column in list(columns.items())[1:]:
        gaps = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), by_hand, column)
        lines.append(f"largest difference of {way} from by hand: {max(jax.tree.leaves(gaps)):.1e}")
    return lines


def _toy_table() -> list[str]:
    """Both toy functions at (1, 2): derivatives on paper, by autodiff, and numerically."""
    at = (jnp.array(1.0), jnp.array(2.0))
    w1, w2 = 1.0, 2.0
    s = 1 / (1 + np.exp(-w2))
    cases: list[tuple[str, Callable[[Any], Array], tuple[float, float]]] = [
        (
            "log(w1 + w2) + w1^2 w2",
            log_and_square,
            (1 / (w1 + w2) + 2 * w1 * w2, 1 / (w1 + w2) + w1**2),
        ),
        (
            "cos w1 cos w2 + sigmoid(w2)",
            cosines_and_sigmoid,
            (-np.sin(w1) * np.cos(w2), -np.cos(w1) * np.sin(w2) + s * (1 - s)),
        ),
    ]
    lines = [f"{'at (1, 2)':<42}" + _row(["on paper", "jax.grad", "numerical"])]
    for name, f, on_paper in cases:
        autodiff, numerical = jax.grad(f)(at), verifier.numerical_gradient(f, at)
        for i in range(2):
            numbers = (on_paper[i], autodiff[i], numerical[i])
            lines.append(f"d/dw{i + 1} {name:<35}" + _row([f"{float(v):.10f}" for v in numbers]))
    return lines


def _row(cells: Any) -> str:
    return "".join(f"{cell:>15}" for cell in cells)


if __name__ == "__main__":
    cli.run(main)
