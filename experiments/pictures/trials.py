"""The picture of a search for settings: how trials fell, and where the good ones are."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from experiments.pictures import canvas
from experiments.pictures.canvas import BLUE, GREEN, GREY, ORANGE


def trials(path: Path, runs: Sequence[tuple[Any, Mapping[str, Any], str]], best: int) -> Path:
    """How the loss of each trial fell, and where its learning rate and optimizer put it.

    Args:
        path: of the picture.
        runs: of each trial the loss after each epoch, its settings, and how it ended.
        best: which of them is the best.
    """
    figure, (left, right) = canvas.axes(2, size=(6.0, 4.2))
    colors = {"pruned": GREY, "finished": BLUE}
    for number, (losses, _, ended) in enumerate(runs):
        if ended in colors and number != best:
            epochs = np.arange(1, len(losses) + 1)
            style = {"lw": 0.8, "alpha": 0.5} if ended == "pruned" else {"lw": 1.2}
            left.plot(epochs, losses, color=colors[ended], **style)
            left.plot(epochs[-1], losses[-1], ".", color=colors[ended], ms=4)
    left.plot(np.arange(1, len(runs[best][0]) + 1), runs[best][0], color=ORANGE, lw=2.5)
    counts = {word: sum(ended == word for *_, ended in runs) for word in (*colors, "diverged")}
    for label, color in (
        (f"given up early ({counts['pruned']})", GREY),
        (f"trained to the end ({counts['finished']})", BLUE),
        ("the best", ORANGE),
    ):
        left.plot([], [], color=color, label=label)
    left.set(yscale="log", xlabel="epoch", ylabel="loss on the images to choose by (nats)",
             title="Poor trials end early")  # fmt: skip
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend(frameon=False)
    names = list(dict.fromkeys(settings["optimizer"] for _, settings, _ in runs))
    for name, color in zip(sorted(names), (BLUE, GREEN, GREY, "#b83280", "#2c7a7b"), strict=False):
        for word, size, alpha in (("pruned", 8, 0.4), ("finished", 36, 0.9)):
            points = [
                (settings["learning_rate"], min(losses))
                for losses, settings, ended in runs
                if settings["optimizer"] == name and ended == word
            ]
            right.scatter(*np.reshape(points, (-1, 2)).T, s=size, color=color, alpha=alpha, lw=0)
        right.scatter([], [], s=36, color=color, lw=0, label=name)
    losses, settings, _ = runs[best]
    at = (settings["learning_rate"], min(losses))
    right.scatter(*at, s=220, marker="*", color=ORANGE, edgecolors="white", zorder=3,
                  label=f"the best: {settings['optimizer']}")  # fmt: skip
    right.set(xscale="log", yscale="log", xlabel="learning rate (as for Adam)",
              ylabel="least loss of the trial (nats)",
              title="Where the good ones are (small: given up early)")  # fmt: skip
    right.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return canvas.save(figure, path)
