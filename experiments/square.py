"""Regression of y = x^2 with 100 hidden sigmoid units, beside the same network in PyTorch.

    python -m experiments.square                       fit and residuals
    python -m experiments.square --resume out/square   go on with a run that was stopped

PyTorch has its column where it is installed.
"""

from pathlib import Path

import chex
import jax
import numpy as np
import optax

from experiments import cli, pictures, recall, torch_peer
from jaxnn import data, files, train
from jaxnn.models import mlp


@recall.recalls(resume=())
def main(
    seed: int = 0,
    epochs: int = 3000,
    points: int = 200,
    hidden: int = 100,
    learning_rate: float = 1e-2,
    gradient: train.Gradient = "manual",
    verify: bool = True,
    resume: Path | None = None,
    out: Path = Path("out/square"),
) -> int:
    """Fit a parabola by full-batch Adam.

    Args:
        seed: Of the points and the initial parameters.
        epochs: Steps, each on all points.
        points: How many standard-normal x to draw.
        hidden: Sigmoid units in the hidden layer.
        learning_rate: Adam's, decayed to 0 by a cosine.
        gradient: By hand, or by jax.grad.
        verify: Prove the gradient before training with it; a run that goes on was proven before.
        resume: The folder of a run that was stopped: go on with it, with the options that it has,
            to where it would have ended; if it has ended, draw its pictures again.
        out: Folder for parameters, log and pictures. A run that it has moves to "previous" in it.
    """
    cli.check_positive(epochs=epochs, hidden=hidden, learning_rate=learning_rate)
    options = dict(locals())
    batch = data.square(points, seed)
    config = mlp.Config(
        sizes=(1, hidden, 1), activation="sigmoid", loss="mean_squared_error", init="xavier"
    )
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, epochs))
    run = train.make_run(
        mlp,
        config,
        optimizer,
        batch,
        epochs=cli.split(epochs, at_once=1000),
        batch_size=points,
        gradient=gradient,
    )
    state = train.init_state(mlp, config, optimizer, jax.random.key(seed))
    with cli.run_folder(out) as folder:
        if verify:
            if not cli.holds(mlp, state.params, batch, config):
                return 1
            if torch_peer.installed:
                _compare(state.params, batch, config)
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
        fitted = mlp.forward(result.params, batch.inputs, config)
        losses = result.history.loss
        pictures.regression(folder / "square.png", batch.inputs, batch.targets, fitted, losses)
    final = float(mlp.loss(result.params, batch, config))
    print(f"jaxnn:   loss {final:.3e} after {files.counted(result.best_epoch, 'epoch')}")
    if torch_peer.installed and result.status == 0:
        peer = torch_peer.train(state.params, batch, config, learning_rate, epochs)
        print(f"PyTorch: loss {peer:.3e}, same initial parameters, same optimizer")
    elif not torch_peer.installed:
        print(f"PyTorch is not compared: {torch_peer.MISSING}")
    return result.status


def _compare(params: mlp.Params, batch: data.Batch, config: mlp.Config) -> None:
    """The two libraries' loss and gradients at the same parameters, in float64."""
    with jax.enable_x64(True):
        lifted, lifted_batch = jax.tree.map(lambda x: np.asarray(x, np.float64), (params, batch))
        ours, manual = mlp.manual_value_and_grad(lifted, lifted_batch, config)
        theirs, peer = torch_peer.value_and_grad(lifted, lifted_batch, config)
        chex.assert_trees_all_close(manual, peer, rtol=1e-9, atol=1e-12)
    print(
        f"loss at the start: {float(ours):.12f}, PyTorch {theirs:.12f}; gradients equal to 1e-9\n"
    )


if __name__ == "__main__":
    cli.run(main)
