"""Settings of a perceptron searched for on handwritten digits: many runs in one compiled program.

    python -m experiments.tune                       96 trials; the best is trained again, verified
    python -m experiments.tune --mnist FOLDER --batch-size 128 --epochs 20 --trials 48
    python -m experiments.tune --measure             trials per second, against a loop of runs

Searches optimizer, schedule, learning rate, momentum, width, depth, l2 and dropout by optuna on a
part of the training images, judged by the rest of them; trains the best again on all of them, and
only then looks at the images held out. Writes to `--out` a table and a picture of all trials when
the search has ended, also by Ctrl-C, and later the parameters of the best with its settings. Until
it has ended the table is `interrupted.csv`, written again whenever a trial ends.
"""

import csv
import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from experiments import cli, pictures, throughput
from jaxnn import data, files, train
from jaxnn.models import mlp

# By name: the optimizer of a learning rate, a momentum and a decay of the weights, and its usual
# learning rate beside that of Adam, so that one range serves all.
OPTIMIZERS: dict[str, tuple[Callable[..., optax.GradientTransformation], float]] = {
    "sgd": (lambda rate, momentum, decay: optax.sgd(rate, momentum, nesterov=True), 30.0),
    "adam": (lambda rate, momentum, decay: optax.adam(rate, momentum), 1.0),
    "adamw": (lambda rate, momentum, decay: optax.adamw(rate, momentum, weight_decay=decay), 1.0),
    "nadam": (lambda rate, momentum, decay: optax.nadam(rate, momentum), 1.0),
    "lion": (lambda rate, momentum, decay: optax.lion(rate, momentum, weight_decay=decay), 0.1),
}
SCHEDULES: dict[str, Callable[[Any, int], Any]] = {
    "constant": lambda rate, steps: rate,
    "cosine": lambda rate, steps: optax.cosine_decay_schedule(rate, steps),
    "one-cycle": lambda rate, steps: optax.cosine_onecycle_schedule(steps, rate),
}
DECAYS = ("adamw", "lion")  # of these l2 shrinks the weights by itself, ten times as much
SPACE = {
    "optimizer": CategoricalDistribution(tuple(OPTIMIZERS)),
    "schedule": CategoricalDistribution(tuple(SCHEDULES)),
    "width": IntDistribution(64, 256, step=64),
    "depth": IntDistribution(1, 3),
    "learning_rate": FloatDistribution(3e-4, 3e-2, log=True),
    "momentum": FloatDistribution(0.8, 0.97),
    "l2": FloatDistribution(1e-6, 1e-2, log=True),
    "dropout": FloatDistribution(0.0, 0.6),
}
CHOSEN_BY = 0.2  # the share of the training images that trials are judged by
SEARCHING = "interrupted.csv"
VERIFIED = 16  # finite differences are slow on more


def main(
    seed: int = 0,
    trials: int = 96,
    lanes: int = 4,
    epochs: int = 20,
    chunk: int = 4,
    batch_size: int = 32,
    mnist: Path | None = None,
    measure: bool = False,
    verify: bool = True,
    out: Path = Path("out/tune"),
) -> int:
    """Search for the settings of a perceptron, and train the best.

    Args:
        seed: Of the parts that the images are split into, of the search and of every run.
        trials: How many settings to try.
        lanes: How many are trained at a time, in one program.
        epochs: Passes over the training images, of a trial that is not given up, and of the best.
        chunk: Epochs between two looks at whether a trial is worth going on with.
        batch_size: Examples per step.
        mnist: A folder with MNIST's four IDX files, to use instead of scikit-learn's digits.
        measure: Print how many trials per second the lanes and two loops make, and end.
        verify: Whether to verify the gradient of the best network; --no-verify for not.
        out: Folder for the table, the picture and the parameters. A run that it has moves to
            "previous" in it when the search has ended.
    """
    cli.check_positive(
        trials=trials, lanes=lanes, epochs=epochs, chunk=chunk, batch_size=batch_size
    )
    split = data.mnist(mnist) if mnist else data.digits(seed)
    tried, judged = parted(split.train, seed)
    build = partial(built, images=len(tried.inputs), epochs=epochs, batch_size=batch_size,
                    pixels=tried.inputs.shape[1])  # fmt: skip
    score = partial(scored, judged=judged)
    if measure:
        throughput.measure(
            mlp,
            build,
            tried,
            {"optimizer": "adam", "schedule": "cosine", "width": 64, "depth": 1},
            {
                name: (d.low, d.high)
                for name, d in SPACE.items()
                if isinstance(d, FloatDistribution)
            },
            score,
            lanes=lanes,
            epochs=epochs,
            batch_size=batch_size,
        )
        return 0
    with cli.run_folder(out) as folder:
        print(
            f"{len(tried.inputs)} images to learn, {len(judged.inputs)} to choose by, "
            f"{len(split.held_out.inputs)} held out"
        )
        # An older run's table stays beside its parameters until the search has ended.
        searched, ended = folder / SEARCHING, list[train.Trial]()

        def note(trial: train.Trial) -> None:
            ended.append(trial)
            write_csv(searched, ended)

        tuned = train.tune(
            mlp,
            build,
            tried,
            SPACE,
            trials=trials,
            lanes=lanes,
            epochs=epochs,
            chunk=chunk,
            batch_size=batch_size,
            evaluate=score,
            minimize="val_loss",
            seed=seed,
            callbacks=[note],
        )
        best = tuned.best
        print(f"\n{table(tuned.trials)}\n\n{summary(tuned, epochs)}")
        cli.set_aside(folder)
        written = searched.replace(folder / "trials.csv")
        print(f"wrote {written}")
        pictures.trials(
            folder / "trials.png",
            [(t.columns["val_loss"], t.settings, t.ended) for t in tuned.trials],
            tuned.trials.index(best),
        )
        if tuned.ended == "interrupted":
            return tuned.status

        config, optimizer = build(best.settings, images=len(split.train.inputs))
        state = train.init_state(mlp, config, optimizer, jax.random.key(seed))
        x, labels = split.train
        first = mlp.Batch(x[:VERIFIED], labels[:VERIFIED], state.key)
        if verify and not cli.holds(mlp, state.params, first, config):
            return 1
        run = train.make_run(mlp, config, optimizer, split.train, epochs=1, batch_size=batch_size)
        result = train.fit(
            run,
            state,
            epochs=epochs,
            minimize="loss",
            folder=folder,
            model=mlp,
            config=config,
            notes={"script": "experiments.tune", "seed": seed, "settings": best.settings},
        )
        if not result.best_epoch:
            return result.status
        accuracy = mlp.accuracy(result.params, split.held_out, config)
    print(
        f"held-out accuracy {accuracy:.2%} of {len(split.held_out.inputs)} images that no choice "
        f"has seen; trained on all {len(split.train.inputs)} others for "
        f"{files.counted(epochs, 'epoch')}, "
        f"{result.seconds:.1f} s"
    )
    return result.status


def parted(images: data.Batch, seed: int) -> tuple[data.Batch, data.Batch]:
    """Split training images into those to learn and those to choose settings by."""
    order = np.random.default_rng(seed).permutation(len(images.inputs))
    first = int(len(order) * CHOSEN_BY)
    learned, chosen_by = order[first:], order[:first]
    return (
        data.Batch(images.inputs[learned], images.targets[learned]),
        data.Batch(images.inputs[chosen_by], images.targets[chosen_by]),
    )


def built(
    settings: dict[str, Any], *, images: int, epochs: int, batch_size: int, pixels: int
) -> tuple[mlp.Config, optax.GradientTransformation]:
    """Make a network and its optimizer of settings, for so many epochs of so many images."""
    make, usual = OPTIMIZERS[settings["optimizer"]]
    decays = settings["optimizer"] in DECAYS
    config = mlp.Config(
        sizes=(pixels, *(settings["width"],) * settings["depth"], 10),
        l2=0.0 if decays else settings["l2"],
        dropout=settings["dropout"],
    )
    steps = epochs * max(images // batch_size, 1)
    rate = SCHEDULES[settings["schedule"]](usual * settings["learning_rate"], steps)
    return config, make(rate, settings["momentum"], 10 * settings["l2"])


def scored(params: mlp.Params, config: mlp.Config, *, judged: data.Batch) -> dict[str, jax.Array]:
    """Return loss and accuracy on the images that trials are judged by, without the penalty."""
    config = dataclasses.replace(config, l2=0.0)
    return {
        "loss": mlp.loss(params, judged, config),
        "accuracy": mlp.accuracy(params, judged, config),
    }


def table(trials: tuple[train.Trial, ...], most: int = 10) -> str:
    """Return the best trials as lines, the best first; those that ended early after all others."""
    ranked = sorted(trials, key=lambda t: (-t.epochs, not np.isfinite(t.value), t.value))[:most]
    rows = [("trial", *SPACE, "epochs", "loss", "accuracy", "")]
    rows += [
        (
            str(t.number),
            *map(_short, (t.settings[name] for name in SPACE)),
            str(t.epochs),
            f"{t.value:.4f}",
            f"{t.columns['val_accuracy'][-1]:.2%}",
            t.ended,
        )
        for t in ranked
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def summary(tuned: train.Tuned, epochs: int) -> str:
    """Return what the search came to, in a line."""
    ended = [t.ended for t in tuned.trials]
    full = sum(t.epochs for t in tuned.trials) / epochs
    programs = {tuple(v for v in t.settings.values() if not isinstance(v, float))
                for t in tuned.trials}  # fmt: skip
    return (
        f"{files.counted(len(ended), 'trial')} of "
        f"{files.counted(len(programs), 'network and optimizer', 'networks and optimizers')} in "
        f"{tuned.seconds:.0f} s, "
        f"{ended.count('finished')} of them to the end, {ended.count('diverged')} diverged: the "
        f"work of {files.counted(round(full), 'whole run')}; the best is trial {tuned.best.number}"
    )


def write_csv(path: Path, trials: list[train.Trial]) -> None:
    """Write a line for each trial: its settings, what it came to, how it ended."""
    with files.replaced(path) as beside, beside.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trial", *SPACE, "epochs", "val_loss", "val_accuracy", "ended"])
        for t in sorted(trials, key=lambda t: t.number):
            accuracy = t.columns["val_accuracy"][-1]
            settings = [t.settings[name] for name in SPACE]
            writer.writerow([t.number, *settings, t.epochs, t.value, accuracy, t.ended])


if __name__ == "__main__":
    cli.run(main)
