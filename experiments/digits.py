"""Real handwritten digits, read by a network trained with its hand-written gradient.

    python -m experiments.digits                       train; at least 97% of held-out digits right
    python -m experiments.digits --model cnn           a residual network; at least 99%
    python -m experiments.digits --gradient autodiff   the same curve from jax.grad
    python -m experiments.digits --mnist FOLDER        MNIST's IDX files instead; at least 98.8%
    python -m experiments.digits --mnist FOLDER --model cnn        at least 99.5%, in a quarter hour
    python -m experiments.digits --resume out/digits   go on with a run that was stopped
    python -m experiments.digits --predict out/digits/params.safetensors

Verifies the gradient of the very network it is about to train, trains it, and writes to `--out` the
parameters of the epoch with the lowest held-out loss, what `--resume` needs, a log, curves,
confusion matrix and misread digits.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
import optax
import tyro
from sklearn.metrics import confusion_matrix

from experiments import cli, pictures, recall
from jaxnn import data, files, train
from jaxnn.augment import random_affine
from jaxnn.models import cnn, mlp

# Running statistics are taken from so many training examples: a large set would not fit at once.
STATISTICS = 2048
# Finite differences are slow on more; convolutions in float64, which on the CPU are plain loops, on
# more than so many pixels in all.
VERIFIED, PIXELS = 16, 1024


class Settings(NamedTuple):
    """The options whose defaults depend on the data and the model."""

    epochs: int = 40
    batch_size: int = 32
    hidden: tuple[int, ...] = (256, 128)
    channels: tuple[int, ...] = (32, 64)
    dropout: float = 0.0
    warm_up: float = 0.0
    augment: float = 0.0


# By --model, and whether the data is MNIST. There drawing images anew is worth more than dropout.
DEFAULTS = {
    ("mlp", False): Settings(),
    ("cnn", False): Settings(dropout=0.2),
    ("mlp", True): Settings(
        batch_size=128, hidden=(512, 512), dropout=0.1, warm_up=0.15, augment=1.0
    ),
    ("cnn", True): Settings(epochs=10, channels=(16, 32, 64), warm_up=0.15, augment=1.0),
}


def _by_default(name: str, metavar: str) -> Any:
    """How --help shows an option of `Settings`: its usual default, and where there is another."""
    usual = getattr(Settings(), name)
    others = {
        f"MNIST {model}" if mnist else model: getattr(settings, name)
        for (model, mnist), settings in DEFAULTS.items()
        if getattr(settings, name) != usual
    }
    words = [recall.words(usual), *(f"{at} {recall.words(value)}" for at, value in others.items())]
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {', '.join(words)})")


@recall.recalls(resume=("mnist",), predict=("mnist",))
def main(
    seed: int = 0,
    model: Literal["mlp", "cnn"] = "mlp",
    epochs: Annotated[int | None, _by_default("epochs", "INT")] = None,
    batch_size: Annotated[int | None, _by_default("batch_size", "INT")] = None,
    learning_rate: float = 2e-3,
    hidden: Annotated[tuple[int, ...] | None, _by_default("hidden", "[INT [INT ...]]")] = None,
    activation: Literal["relu", "sigmoid", "tanh"] = "relu",
    l2: float = 0.0,
    channels: Annotated[tuple[int, ...] | None, _by_default("channels", "INT [INT ...]")] = None,
    blocks: int = 1,
    norm: Literal["batch", "group"] = "batch",
    dropout: Annotated[float | None, _by_default("dropout", "FLOAT")] = None,
    warm_up: Annotated[float | None, _by_default("warm_up", "FLOAT")] = None,
    augment: Annotated[float | None, _by_default("augment", "FLOAT")] = None,
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
        learning_rate: Adam's, at its highest; it falls to 0 along a cosine.
        hidden: Of the perceptron: widths of hidden layers; give no number for logistic regression.
        activation: Of the perceptron: after every hidden layer.
        l2: Of the perceptron: strength of the penalty on the weights.
        channels: Of the convolutional network: width of each stage, each of half the size.
        blocks: Of the convolutional network: residual blocks per stage.
        norm: Of the convolutional network: normalisation over the batch, or 8 groups of channels.
        dropout: Share of the features before the last layer (of the perceptron: of every hidden
            layer) dropped in training.
        warm_up: Share of the steps in which the learning rate rises to its value.
        augment: How far training images are drawn anew at every step, 0 for not at all: 1 turns,
            shears and zooms them by up to 10 degrees, 0.1 and 10%, and moves them by 1/14 of their
            side.
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
    given = locals()
    settings = DEFAULTS[model, mnist is not None]
    settings = settings._replace(
        **{name: given[name] for name in settings._fields if given[name] is not None}
    )
    _check(settings, learning_rate)
    if predict:
        return _predict(predict, mnist, seed)
    options = given | settings._asdict()
    split = data.mnist(mnist) if mnist else data.digits(seed)
    pixels = split.train.inputs.shape[1]
    net: Any = {"mlp": mlp, "cnn": cnn}[model]
    train_data: Any = net.Batch(*split.train)
    side = math.isqrt(pixels)
    if side * side != pixels and (model == "cnn" or settings.augment):
        raise ValueError(
            f"the images of --mnist {mnist} have {pixels} pixels; they must be square for "
            "--model cnn and for --augment: use --model mlp --augment 0"
        )
    config: Any
    if model == "mlp":
        sizes = (pixels, *settings.hidden, 10)
        config = mlp.Config(sizes, activation=activation, l2=l2, dropout=settings.dropout)
    else:
        config = cnn.Config(
            (side, side, 1),
            channels=settings.channels,
            blocks=blocks,
            norm=norm,
            dropout=settings.dropout,
        )

    steps = cli.steps_in(settings.epochs, len(split.train.inputs), settings.batch_size)
    optimizer = optax.adam(_schedule(learning_rate, steps, settings.warm_up))
    run = train.make_run(
        net,
        config,
        optimizer,
        train_data,
        epochs=1,
        batch_size=settings.batch_size,
        gradient=gradient,
        augment=_drawn_anew(side, settings.augment) if settings.augment else None,
    )
    state = train.init_state(net, config, optimizer, jax.random.key(seed))
    with cli.run_folder(out) as folder:
        print(f"{len(split.train.inputs)} digits to learn, {len(split.held_out.inputs)} held out")
        print(config)
        few = VERIFIED if model == "mlp" else min(VERIFIED, max(2, PIXELS // pixels))
        first = jax.tree.map(lambda x: x[:few], train_data)
        first = first._replace(key=state.key)  # as in training, with dropout
        if verify and not cli.holds(net, state.params, first, config):
            return 1
        result = train.fit(
            _evaluated(run, net, config, split),
            state,
            epochs=settings.epochs,
            minimize="val_loss",
            folder=folder,
            model=net,
            config=config,
            notes=recall.notes(main, options, split, seed=seed),
            resume=resume is not None,
            also=cli.DRAWN,
        )
        if not result.best_epoch:
            return result.status
        history = result.history
        losses, accuracies = history.metrics["loss"], history.metrics["accuracy"]
        best = result.best_epoch
        pictures.curves(folder / "curves.png", history.loss, losses, accuracies, best)
        p = _probabilities(net, result.params, split.held_out.inputs, config)
        labels = np.asarray(split.held_out.targets)
        pictures.confusion(folder / "confusion.png", _confusion(labels, p))
        pictures.misread(folder / "misread.png", split.held_out.inputs, labels, p)
    print(
        f"held-out accuracy {(p.argmax(1) == labels).mean():.2%} by the parameters saved, those of "
        f"epoch {result.best_epoch}, the lowest held-out loss of "
        f"{files.counted(len(losses), 'epoch')}; "
        f"{accuracies[-1]:.2%} after the last\n"
        f"training loss {history.loss[-1]:.4f} nats at the end, "
        f"{cli.took(result, gradient, resume)}"
    )
    return result.status


def _evaluated(run: Any, net: Any, config: Any, split: data.Split[data.Batch]) -> Any:
    """The run with a network's running statistics settled and held-out metrics after each call."""

    @jax.jit
    def evaluate(params: Any, statistics: Any, held_out: data.Batch) -> tuple[Any, Any]:
        if net is cnn:
            params = cnn.update_running(params, statistics, config)

        def measured(part: data.Batch) -> dict[str, jax.Array]:
            return {
                "loss": net.loss(params, part, config),
                "accuracy": net.accuracy(params, part, config),
            }

        metrics = train.in_parts(measured, held_out)
        return params, jax.tree.map(lambda x: x[None], metrics)

    def evaluated(state: train.State) -> tuple[train.State, train.History]:
        state, history = run(state)
        # No step reads the statistics: in the state they are ready to be used when it is saved.
        params, metrics = evaluate(state.params, split.train.inputs[:STATISTICS], split.held_out)
        return state._replace(params=params), history._replace(metrics=metrics)

    return evaluated


def _check(settings: Settings, learning_rate: float) -> None:
    """Refuse numbers that are out of range, but those of a network, which its Config checks."""
    epochs, batch_size, *_ = settings
    cli.check_positive(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate)
    for option, value, end in (("warm-up", settings.warm_up, 1), ("augment", settings.augment, 10)):
        if not 0 <= value < end:
            raise ValueError(f"--{option} is {value}; it must be at least 0 and below {end}")


def _schedule(peak: float, steps: int, warm_up: float) -> optax.Schedule:
    """A cosine down to 0, after one up from a 25th of the peak in a share of the steps."""
    if int(warm_up * steps) == 0:
        return optax.cosine_decay_schedule(peak, steps)
    return optax.cosine_onecycle_schedule(steps, peak, warm_up)


def _drawn_anew(side: int, strength: float) -> train.Augment:
    """Turn, zoom, shear and move every image a little."""

    def augment(key: jax.Array, batch: Any) -> Any:
        images = random_affine(
            key,
            batch.inputs.reshape(-1, side, side, 1),
            degrees=10 * strength,
            scale=0.1 * strength,
            shear=0.1 * strength,
            shift=strength * side / 14,
        )
        return batch._replace(inputs=images.reshape(batch.inputs.shape))

    return augment


def _probabilities(net: Any, params: Any, inputs: jax.Array, config: Any) -> Any:
    return np.asarray(train.in_parts(lambda part: net.probabilities(params, part, config), inputs))


def _confusion(labels: Any, probabilities: Any) -> Any:
    return confusion_matrix(labels, probabilities.argmax(1), labels=np.arange(10))


def _predict(path: Path, mnist: Path | None, seed: int) -> int:
    """Read the digits that were held out from the run that saved the parameters."""
    params, net, config, _ = train.load_params(path)
    held_out = (data.mnist(mnist) if mnist else data.digits(seed)).held_out
    p = _probabilities(net, params, held_out.inputs, config)
    read, labels = p.argmax(1), np.asarray(held_out.targets)
    print("written  read as  probability")
    for label, digit, row in list(zip(labels, read, p, strict=True))[:10]:
        print(f"{label:>7}  {digit:>7}  {row[digit]:>11.4f}{'' if digit == label else '  wrong'}")
    source = mnist or f"held out by seed {seed}, the file's"
    print(f"held-out accuracy {(read == labels).mean():.2%} of {len(labels)}, {source}")
    return 0


if __name__ == "__main__":
    cli.run(main)
