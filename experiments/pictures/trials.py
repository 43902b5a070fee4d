"""The picture of a search for settings: how trials fell, and where the good ones are."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from experiments.pictures import canvas
from experiments.pictures.canvas import BLUE, GREEN, GREY, ORANGE

_OPTIMIZERS = (BLUE, GREEN, "#882255", "#000000", "#AA7700")


@canvas.slide
def trials(path: Path, runs: Sequence[tuple[Any, Mapping[str, Any], str]], best: int) -> Path:
    """How the loss of each trial fell, and where its learning rate and optimizer put it.

    Args:
        path: of the picture.
        runs: of each trial the loss after each epoch, its settings, and how it ended.
        best: which of them is the best.
    """
    figure, (left, right) = canvas.axes(2, whole=canvas.SLIDE)
    sound = [run for run in runs if run[2] in ("pruned", "finished")]
    for i, (losses, _, ended) in enumerate(runs):
        if ended in ("pruned", "finished") and i != best:
            color, width = (GREY, 1) if ended == "pruned" else (BLUE, 1.5)
            epochs = np.arange(1, len(losses) + 1)
            left.plot(epochs, losses, color=color, lw=width, alpha=0.6)
            left.plot(epochs[-1], losses[-1], ".", color=color, ms=6)
    chosen, settings, _ = runs[best]
    left.plot(np.arange(1, len(chosen) + 1), chosen, color=ORANGE)
    counts = {word: sum(ended == word for *_, ended in runs) for word in ("pruned", "finished")}
    for label, color in (
        (f"given up early: {counts['pruned']}", GREY),
        (f"to the end: {counts['finished']}", BLUE),
        ("the best", ORANGE),
    ):
        left.plot([], [], color=color, label=label)
    canvas.logarithmic(left, *(losses for losses, *_ in sound))
    left.set(xlabel="epoch", title="loss on the images to choose by (nats)")
    left.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    names = sorted({settings["optimizer"] for _, settings, _ in runs})
    for name, color in zip(names, _OPTIMIZERS, strict=False):
        for word, size, alpha in (("pruned", 25, 0.4), ("finished", 110, 0.9)):
            points = [
                (settings["learning_rate"], min(losses))
                for losses, settings, ended in runs
                if settings["optimizer"] == name and ended == word
            ]
            right.scatter(*np.reshape(points, (-1, 2)).T, s=size, color=color, alpha=alpha, lw=0)
        right.scatter([], [], s=110, color=color, lw=0, label=name)
    at = (settings["learning_rate"], min(chosen))
    right.scatter(*at, s=600, marker="*", color=ORANGE, edgecolors="white", zorder=3)
    canvas.logarithmic(right, *(losses for losses, *_ in sound))
    right.set(xscale="log", xlabel="learning rate (as for Adam)", title="the least of each trial")
    for ax, columns in ((left, 1), (right, len(names))):
        ax.legend(frameon=False, fontsize=15, loc="upper center", bbox_to_anchor=(0.5, -0.16),
                  ncols=columns, handletextpad=0.2, columnspacing=1)  # fmt: skip
    canvas.message(
        figure,
        f"The best of {len(runs)} trials: {settings['optimizer']}, learning rate "
        f"{settings['learning_rate']:.2g}",
    )
    return canvas.save(figure, path)
