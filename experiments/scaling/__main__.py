"""How time and memory grow with depth, width, sequence, vocabulary and batch; where they bend, why.

    python -m experiments.scaling                   GPT, Llama, LSTM and CNN; twenty minutes
    python -m experiments.scaling --quick           GPT at three sizes of each; minutes
    python -m experiments.scaling --memory-only     compile only, which needs no quiet machine
    python -m experiments.scaling --model gpt --axis sequence vocabulary

Along an axis one size doubles, the others stay. Of each size a training step is compiled, by hand,
by `jax.grad`, and by hand with what saves memory along that axis; the programs take turns, and what
each needs beside its inputs and results is what the compiler says. An exponent is the slope of a
line of least squares where both axes are logarithmic; a curve bends where that between two sizes
differs from the next by more than 0.25. On paper, beside it: the operations, and the bytes that
must be held (see `experiments.scaling.paper`).
"""

import json as json_format
import random
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments import cli, pictures
from experiments.benchmark import show as timings
from experiments.scaling import axes, measured, show
from experiments.scaling.axes import MODELS, Axis
from jaxnn import files

QUICK_SIZES, QUICK_ROUNDS = 3, 3
NAMES = tuple(show.SYMBOLS)
ONLY = tyro.conf.arg(
    metavar="NAME [NAME ...]",
    help=f"Only these models, of: {', '.join(MODELS)}.",
    help_behavior_hint="(default: all; gpt with --quick)",
)
ALONG = tyro.conf.arg(
    metavar="NAME [NAME ...]",
    help=f"Only these axes, of: {', '.join(NAMES)}.",
    help_behavior_hint="(default: all)",
)


def main(
    model: Annotated[tuple[str, ...] | None, ONLY] = None,
    axis: Annotated[tuple[str, ...] | None, ALONG] = None,
    rounds: int = 7,
    quick: bool = False,
    memory_only: bool = False,
    seed: int = 0,
    json: Path | None = None,
    out: Path = Path("out/scaling"),
) -> int:
    """Measure how a training step grows along each axis, and draw it with the exponents.

    Args:
        model: Names of models; None for all.
        axis: Names of axes; None for all.
        rounds: Turns of every step.
        quick: The first three sizes of each axis and three rounds; unless named, GPT alone.
        memory_only: Compile only; no time is measured.
        seed: Of the order in which the steps take turns.
        json: File for all figures.
        out: Folder for the table and a picture for each model.
    """
    cli.check_positive(rounds=rounds)
    chosen = _chosen(model, axis, quick)
    if json:
        timings.check_file("--json", json)
    folder = cli.folder(out)
    order = random.Random(seed)
    turns = 0 if memory_only else QUICK_ROUNDS if quick else rounds
    about = timings.about()
    print(", ".join(f"{name} {value}" for name, value in about.items()), "\n")
    all_found: list[measured.Measured] = []
    for name, along in chosen.items():
        of_model = []
        for one, sizes in along.items():
            of_model.append(measured.measure(MODELS[name], one, sizes, turns, order))
            print(show.report(of_model[-1:]))
            _write([*all_found, *of_model], about, folder / "scaling.md", json)
        title = f"{MODELS[name].title}: how a training step grows ({show.versions()})"
        pictures.scaling(folder / f"{name}.png", title, show.columns(of_model))
        all_found += of_model
    print(f"wrote {folder / 'scaling.md'}{f' and {json}' if json else ''}")
    return 0


def _write(
    found: list[measured.Measured], about: dict[str, Any], table: Path, json: Path | None
) -> None:
    """The table and the figures so far, in the place of those of fewer axes."""
    with files.replaced(table) as file:
        file.write_text(show.report(found))
    if json:
        figures = {"about": about, "axes": show.figures(found)}
        with files.replaced(json) as file:
            file.write_text(json_format.dumps(figures, indent=1) + "\n")


def _chosen(
    models: tuple[str, ...] | None, along: tuple[str, ...] | None, quick: bool
) -> dict[str, dict[str, Axis]]:
    """The axes to measure of each model, cut short where it is to be quick.

    Raises:
        ValueError: there is no such model or axis, or no model has one.
    """
    for option, given, known in (("--model", models, tuple(MODELS)), ("--axis", along, NAMES)):
        if given == ():
            raise ValueError(f"{option} has no name; give one or more of {', '.join(known)}")
        if unknown := [name for name in given or () if name not in known]:
            raise ValueError(f"{option} {' '.join(unknown)}: there are only {', '.join(known)}")
    names = models or (("gpt",) if quick else tuple(MODELS))
    chosen: dict[str, dict[str, axes.Axis]] = {}
    for name in names:
        of = {
            one: each._replace(sizes=each.sizes[:QUICK_SIZES]) if quick else each
            for one, each in MODELS[name].axes.items()
            if along is None or one in along
        }
        if of:
            chosen[name] = of
    if not chosen:
        raise ValueError(
            f"--axis {' '.join(along or ())}: {', '.join(names)} has no such axis; name another, "
            "or another --model"
        )
    return chosen


if __name__ == "__main__":
    cli.run(main)
