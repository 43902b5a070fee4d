"""Pictures of images: which were misread, how they were rebuilt, where they lie."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle

from experiments.pictures import canvas
from experiments.pictures.canvas import GREY, ORANGE

# Dark enough to read; the digits' own shapes tell them apart as well.
_TEN = ("#332288", "#0077BB", "#007A6C", "#117733", "#777711", "#AA7700", "#CC3311", "#882255",
        "#AA4499", "#000000")  # fmt: skip


def _shape(pixels: int) -> tuple[int, int]:
    """Of a flat image: square, or where that is impossible a single row."""
    side = round(np.sqrt(pixels))
    return (side, side) if side * side == pixels else (1, pixels)


def _tiled(images: Any) -> Any:
    """Rows of flat images (R, C, pixels) as one, with white lines between."""
    images = np.asarray(images)
    grid = images.reshape(*images.shape[:2], *_shape(images.shape[-1]))
    grid = np.pad(grid, ((0, 0), (0, 0), (1, 0), (1, 0)))
    return np.concatenate(np.concatenate(grid, 1), 1)


def confusion(path: Path, counts: Any) -> Path:
    """Who is taken for whom; the diagonal is muted so that the mistakes show."""
    counts = np.asarray(counts)
    figure, (ax,) = canvas.axes(size=(6.2, 5.8))
    mistakes = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    ax.imshow(mistakes, cmap="Oranges", vmin=0, vmax=max(mistakes.max(), 1) * 1.4)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            ax.text(column, row, str(count), ha="center", va="center",
                    color=GREY if row == column else "black",
                    weight="normal" if row == column else "bold")  # fmt: skip
    ticks = np.arange(len(counts))
    ax.set(xticks=ticks, yticks=ticks, xlabel="read as", ylabel="written",
           title=f"{mistakes.sum()} of {counts.sum()} digits misread (in colour)")  # fmt: skip
    ax.spines[:].set_visible(False)
    return canvas.save(figure, path)


def misread(path: Path, images: Any, labels: Any, probabilities: Any, most: int = 24) -> Path:
    """The misread digits, most confidently wrong first."""
    probabilities = np.asarray(probabilities)
    read, labels = probabilities.argmax(1), np.asarray(labels)
    wrong = np.flatnonzero(read != labels)
    title = f"{min(most, len(wrong))} of {len(wrong)} misread digits, the surest first"
    wrong = wrong[np.argsort(-probabilities[wrong, read[wrong]])][:most]
    columns = max(min(6, len(wrong)), 3)
    rows = max(-(-len(wrong) // columns), 1)
    figure, grid = canvas.axes(columns, rows, size=(1.6, 1.9))
    shape = _shape(np.shape(images)[1])
    for ax in grid:
        ax.axis("off")
    for ax, i in zip(grid, wrong, strict=False):
        ax.imshow(
            np.reshape(images[i], shape), cmap="Greys", aspect=None if shape[0] > 1 else "auto"
        )
        p = probabilities[i, read[i]]
        sure = ">99%" if p > 0.99 else f"{p:.0%}"
        ax.set_title(f"{labels[i]} read as {read[i]}\n{sure} sure", fontsize=9)
    figure.suptitle(title if len(wrong) else f"None of {len(labels)} digits misread", fontsize=11)
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    return canvas.save(figure, path)


@canvas.slide
def rebuilt(path: Path, originals: Any, decoded: Any, title: str) -> Path:
    """Images and below each what was made of it, in bands of eight.

    Args:
        path: of the picture.
        originals: (N, pixels) in [0, 1].
        decoded: (N, pixels), in the same order.
        title: what the slide says.
    """
    originals, decoded = np.asarray(originals), canvas.finite(decoded)
    across = min(8, len(originals))
    bands = len(originals) // across
    figure, grid = canvas.axes(1, bands, whole=canvas.SLIDE)
    for band, ax in enumerate(grid):
        these = slice(band * across, (band + 1) * across)
        tiles = _tiled(np.stack([originals[these], decoded[these]]))
        ax.imshow(tiles, cmap="Greys", vmin=0, vmax=1, aspect="equal")
        ax.set_yticks(len(tiles) * np.array([0.25, 0.75]), ("held out", "rebuilt"))
        ax.set_xticks([])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    canvas.message(figure, title)
    return canvas.save(figure, path)


def images(path: Path, rows: Any, title: str, names: Sequence[str] = ()) -> Path:
    """Images of flat pixels, rows (R, C, pixels), as a grid, its rows named or not."""
    rows = np.asarray(rows)
    figure, (ax,) = canvas.axes(size=(0.6 * rows.shape[1] + len(names), 0.6 * rows.shape[0] + 0.4))
    tiles = _tiled(canvas.finite(rows))
    ax.imshow(tiles, cmap="Greys", vmin=0, vmax=1)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    places = (np.arange(len(names)) + 0.5) * len(tiles) / max(len(names), 1)
    ax.set_yticks(places, names)
    ax.set_xticks([])
    ax.set_title(title, fontsize=10)
    return canvas.save(figure, path)


def latent_plane(path: Path, means: Any, labels: Any, decoded: Any, reach: float) -> Path:
    """Where each input lies in the first two latent dimensions, beside what is decoded there.

    Args:
        path: of the picture.
        means: (N, 2).
        labels: (N,) digits.
        decoded: (R, R, pixels) images, first row at the top of the plane.
        reach: the decoded images span [-reach, reach] both ways.
    """
    means, labels = canvas.finite(means), np.asarray(labels)
    figure, (left, right) = canvas.axes(2, size=(6.0, 5.8))
    for digit in np.unique(labels):
        these = means[labels == digit].T
        left.scatter(*these, marker=f"${digit}$", color=_TEN[int(digit) % 10], s=36, linewidths=0)
    decoded_there = Rectangle((-reach, -reach), 2 * reach, 2 * reach, fill=False, linestyle=":")
    decoded_there.set(edgecolor=ORANGE, linewidth=1.5)
    left.add_patch(decoded_there)
    left.text(-reach, reach, "drawn beside", color=ORANGE, va="bottom", size=9, zorder=3,
              bbox={"color": "white", "alpha": 0.8, "pad": 1})  # fmt: skip
    left.set(
        xlabel="$z_1$", ylabel="$z_2$", title="Where the encoder puts each digit", aspect="equal"
    )
    right.imshow(
        _tiled(canvas.finite(decoded)),
        cmap="Greys",
        vmin=0,
        vmax=1,
        extent=(-reach, reach, -reach, reach),
    )
    right.set(xlabel="$z_1$", ylabel="$z_2$", title="What the decoder makes of the plane")
    return canvas.save(figure, path)
