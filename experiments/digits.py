"""Real handwritten digits, read by a network trained with its hand-written gradient.

    python -m experiments.digits                       train; at least 97% of held-out digits right
    python -m experiments.digits --model cnn           a residual network; at least 99%
    python -m experiments.digits --gradient autodiff   the same curve from jax.grad
    python -m experiments.digits --mnist FOLDER        MNIST's IDX files instead
    python -m experiments.digits --resume out/digits   go on with a run that was stopped
    python -m experiments.digits --predict out/digits/params.safetensors

Verifies the gradient of the very network it is about to train, trains it, and writes to `--out` the
parameters of the epoch with the lowest held-out loss, what `--resume` needs, a log, curves,
confusion matrix and misread digits.
"""

import math
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
from sklearn.metrics import confusion_matrix

from experiments import cli, pictures, recall
from jaxnn import data, train
from jaxnn.models import cnn, mlp

# Running statistics are taken from so many training examples: a large set would not fit at once.
STATISTICS = 4096
# Finite differences are slow on more.
VERIFIED = 16
PICTURES = ("curves.png", "confusion.png", "misread.png")


@recall.recalls(resume=("mnist",), predict=("mnist",))
def main(
    seed: int = 0,
    model: Literal["mlp", "cnn"] = "mlp",
    epochs: int = 40,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    hidden: tuple[int, ...] = (256, 128),
    activation: Literal["relu", "sigmoid", "tanh"] = "relu",
    l2: float = 0.0,
    channels: tuple[int, ...] = (32, 64),
    blocks: int = 1,
    norm: Literal["batch", "group"] = "batch",
    dropout: float = 0.2,
    gradient: train.Gradient = "manual",
    mnist: Path | None = None,
    verify: bool = True,
    resume: Path | None = None,
    predict: Path | None = None,
    out: Path = Path("out/digits"),
) -> int:
    """Train a classifier of handwritten digits with its hand-written gradient, or use one.

    Args:
        seed: Of the held-out fifth, the initial parameters and the order of the batches.
        model: A multilayer perceptron or a residual convolutional network.
        epochs: Passes over the training data.
        batch_size: Examples per step.
        learning_rate: Adam's, decayed to 0 by a cosine.
        hidden: Of the perceptron: widths of hidden layers; give no number for logistic regression.
        activation: Of the perceptron: after every hidden layer.
        l2: Of the perceptron: strength of the penalty on the weights.
        channels: Of the convolutional network: width of each stage, each of half the size.
        blocks: Of the convolutional network: residual blocks per stage.
        norm: Of the convolutional network: normalisation over the batch, or 8 groups of channels.
        dropout: Of the convolutional network: share of the features dropped in training.
        gradient: By hand, or by jax.grad.
        mnist: A folder with MNIST's four IDX files (train-images-idx3-ubyte and so on, plain or
            .gz), to use instead of scikit-learn's digits.
        verify: Prove the gradient before training with it; a run that goes on was proven before.
        resume: The folder of a run that was stopped: go on with it, with the options that it has,
            to where it would have ended; if it has ended, draw its pictures again.
        predict: A saved parameter file: read the held-out digits with it instead of training. The
            options are the file's; give --mnist if that folder has moved.
        out: Folder for parameters, log and pictures. A run that it has moves to "previous" in it.
    """
    cli.check_positive(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate)
    if predict:
        return _predict(predict, mnist, seed)
    options = dict(locals())
    split = data.mnist(mnist) if mnist else data.digits(seed)
    pixels = split.train.inputs.shape[1]
    net: Any = {"mlp": mlp, "cnn": cnn}[model]
    train_data: Any = split.train
    config: Any
    if model == "mlp":
        config = mlp.Config(sizes=(pixels, *hidden, 10), activation=activation, l2=l2)
    else:
        side = math.isqrt(pixels)
        if side * side != pixels:
            raise ValueError(
                f"the images of --mnist {mnist} have {pixels} pixels; with --model cnn they must "
                "be square: use --model mlp"
            )
        config = cnn.Config(
            shape=(side, side, 1), channels=channels, blocks=blocks, norm=norm, dropout=dropout
        )
        train_data = cnn.Batch(*split.train)

    steps = epochs * max(len(split.train.inputs) // batch_size, 1)
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    run = train.make_run(
        net, config, optimizer, train_data, epochs=1, batch_size=batch_size, gradient=gradient
    )
    state = train.init_state(net, config, optimizer, jax.random.key(seed))
    with cli.run_folder(out) as folder:
        print(f"{len(split.train.inputs)} digits to learn, {len(split.held_out.inputs)} held out")
        print(config)
        first = jax.tree.map(lambda x: x[:VERIFIED], train_data)
        if model == "cnn":
            first = first._replace(key=state.key)  # as in training, with dropout
        if verify and not cli.holds(net, state.params, first, config):
            return 1
        result = train.fit(
            _evaluated(run, net, config, split),
            state,
            epochs=epochs,
            minimize="val_loss",
            folder=folder,
            model=net,
            config=config,
            notes=recall.notes(main, options, split, seed=seed),
            resume=resume is not None,
            also=PICTURES,
        )
        if not result.best_epoch:
            return result.status
        history = result.history
        losses, accuracies = history.metrics["loss"], history.metrics["accuracy"]
        pictures.curves(folder / "curves.png", history.loss, losses, accuracies)
        p = np.asarray(net.probabilities(result.params, split.held_out.inputs, config))
        labels = np.asarray(split.held_out.targets)
        pictures.confusion(folder / "confusion.png", _confusion(labels, p))
        pictures.misread(folder / "misread.png", split.held_out.inputs, labels, p)
    print(
        f"held-out accuracy {(p.argmax(1) == labels).mean():.2%} by the parameters saved, those of "
        f"epoch {result.best_epoch}, the lowest held-out loss of {len(losses)} epochs; "
        f"{accuracies[-1]:.2%} after the last\n"
        f"training loss {history.loss[-1]:.4f} nats at the end, "
        f"{result.seconds:.1f} s with gradient {gradient!r}, compilation included"
    )
    return result.status


def _evaluated(run: Any, net: Any, config: Any, split: data.Split[data.Batch]) -> Any:
    """The run with a network's running statistics settled and held-out metrics after each call."""

    @jax.jit
    def evaluate(params: Any, statistics: Any, held_out: data.Batch) -> tuple[Any, Any]:
        if net is cnn:
            params = cnn.update_running(params, statistics, config)
        metrics = {
            "loss": net.loss(params, held_out, config),
            "accuracy": net.accuracy(params, held_out, config),
        }
        return params, jax.tree.map(lambda x: x[None], metrics)

    def evaluated(state: train.State) -> tuple[train.State, train.History]:
        state, history = run(state)
        # No step reads the statistics: in the state they are ready to be used when it is saved.
        params, metrics = evaluate(state.params, split.train.inputs[:STATISTICS], split.held_out)
        return state._replace(params=params), history._replace(metrics=metrics)

    return evaluated


def _confusion(labels: Any, probabilities: Any) -> Any:
    return confusion_matrix(labels, probabilities.argmax(1), labels=np.arange(10))


def _predict(path: Path, mnist: Path | None, seed: int) -> int:
    """Read the digits that were held out from the run that saved the parameters."""
    params, net, config, _ = train.load_params(path)
    held_out = (data.mnist(mnist) if mnist else data.digits(seed)).held_out
    p = np.asarray(net.probabilities(params, held_out.inputs, config))
    read, labels = p.argmax(1), np.asarray(held_out.targets)
    print("written  read as  probability")
    for label, digit, row in list(zip(labels, read, p, strict=True))[:10]:
        print(f"{label:>7}  {digit:>7}  {row[digit]:>11.4f}{'' if digit == label else '  wrong'}")
    source = mnist or f"held out by seed {seed}, the file's"
    print(f"held-out accuracy {(read == labels).mean():.2%} of {len(labels)}, {source}")
    return 0


if __name__ == "__main__":
    cli.run(main)
