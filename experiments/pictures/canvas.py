"""What all pictures share: colours told apart by everybody, slides, axes, names at the lines."""

import textwrap
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from jaxnn import files

# Okabe and Ito's and a dark red, which people with any colour vision tell apart; grey is for notes.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
COLORS = (BLUE, ORANGE, GREEN, "#882255", "#000000")
# A slide is 16:9, read from the back of a room.
SLIDE = (12.8, 7.2)
_LARGE: Any = {
    "font.size": 20,
    "axes.titlesize": 20,
    "figure.titlesize": 28,
    "lines.linewidth": 3,
    "lines.markersize": 10,
    "axes.linewidth": 1.2,
}
# A curve of no more points than this shows each.
FEW = 12

Given = ParamSpec("Given")


def slide(draw: Callable[Given, Path]) -> Callable[Given, Path]:
    """Make a function that draws a picture draw it in the type of a slide."""

    @wraps(draw)
    def large(*args: Given.args, **kwargs: Given.kwargs) -> Path:
        with matplotlib.rc_context(_LARGE):
            return draw(*args, **kwargs)

    return large


def axes(
    columns: int = 1,
    rows: int = 1,
    size: tuple[float, float] = (5.2, 3.8),
    whole: tuple[float, float] | None = None,
    widths: Sequence[float] | None = None,
) -> tuple[Any, Any]:
    """A figure with so many axes, each of one size, or in a whole of one."""
    size = whole or (size[0] * columns, size[1] * rows)
    figure: Any = Figure(figsize=size, layout="constrained")
    if whole:
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    grid = figure.subplots(rows, columns, squeeze=False, width_ratios=widths)
    for ax in grid.flat:
        ax.spines[["top", "right"]].set_visible(False)
        if whole:
            ax.locator_params(nbins=5)
    return figure, grid.ravel()


def message(figure: Figure, text: str) -> None:
    """The one thing that a slide says, over it."""
    title = textwrap.fill(text, 54)
    figure.suptitle(title, x=0.01, ha="left", weight="bold", linespacing=1.1)


def save(figure: Figure, path: Path) -> Path:
    """Write a picture, whole or not at all, and say where."""
    figure.draw_without_rendering()  # ticks change with the layout: a second one fits them
    with files.replaced(path) as new:
        figure.savefig(new, dpi=130)
    print(f"wrote {path}")
    return path


def finite(values: Any) -> Any:
    """Values as floats, NaN where one is no number that can be drawn."""
    values = np.asarray(values, float)
    return np.where(np.isfinite(values), values, np.nan)


def last(values: Any) -> float:
    """The last value, NaN if it is no number, or there is none."""
    values = finite(values)
    return float(values[-1]) if len(values) else float("nan")


def logarithmic(ax: Axes, *curves: Any, ratio: float = 3.0) -> None:
    """A logarithmic axis for curves that have one and span so large a ratio."""
    values = np.concatenate([finite(curve) for curve in curves])
    values = values[~np.isnan(values)]
    if not len(values) or values.min() <= 0 or values.max() <= ratio * values.min():
        return
    ax.set_yscale("log")
    if values.max() < 1e4 * values.min():  # figures as one says them, not powers of ten
        close = values.max() < 300 * values.min()
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if close else (1,)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())


def line(ax: Axes, y: Any, x: Any = None, color: str = BLUE, **style: Any) -> None:
    """A curve over epochs, or over x; where it has few points, or lone ones, they are marked."""
    y = finite(y)
    x = np.arange(1, len(y) + 1) if x is None else np.asarray(x)
    known = ~np.isnan(y)
    beside = np.r_[False, known[:-1]] | np.r_[known[1:], False]
    marks = known if known.sum() <= FEW else known & ~beside
    ax.plot(x, y, color=color, marker="o", markevery=np.flatnonzero(marks).tolist(), **style)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    if len(x) == 1:
        ax.set_xlim(0, 2 * x[0])


def name_lines(ax: Axes, names: Sequence[str], **style: Any) -> None:
    """Each line's name at its right end, moved apart where two would overlap.

    To be called when the axis has its scale and limits.
    """
    figure: Any = ax.figure
    size = matplotlib.rcParams["font.size"]
    spec = ax.get_subplotspec()
    rows = spec.get_gridspec().nrows if spec else 1
    gap = 1.25 * size / 72 / (0.7 * figure.get_size_inches()[1] / rows)
    ax.autoscale_view()  # else it is done when the figure is drawn, and nothing has a place before
    ends = []
    for one, name in zip(ax.get_lines(), names, strict=True):
        xs: Any = one.get_xdata()
        y = finite(one.get_ydata())
        known = np.flatnonzero(~np.isnan(y))
        end = (xs[known[-1]], y[known[-1]]) if len(known) else (1.0, np.nan)
        place = (ax.transScale + ax.transLimits).transform(np.array(end))[1]
        text = name if len(known) else f"{name} (no number)"
        ends.append((0.5 if np.isnan(place) else place, text, one.get_color()))
    ends.sort(key=lambda end: end[0])
    # The nearest heights that are a gap apart: those that overlap stand around their mean.
    blocks: list[list[float]] = []
    for i, (height, _, _) in enumerate(ends):
        blocks.append([height - i * gap])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    heights = [float(np.mean(block)) for block in blocks for _ in block]
    for i, (height, (_, name, color)) in enumerate(zip(heights, ends, strict=True)):
        height += i * gap
        ax.text(1.015, height, name, color=color, transform=ax.transAxes, va="center", **style)
