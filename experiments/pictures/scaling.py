"""The picture of how a step grows: time above, memory below, an axis in each column."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from experiments.pictures import canvas
from experiments.pictures.canvas import COLORS, GREY

MARKERS = ("o", "s", "D", "^", "v")


class Curve(NamedTuple):
    """Values (one for each size), their exponent, and the places of those where they bend."""

    values: Sequence[float]
    slope: float
    bends: tuple[int, ...]


class Column(NamedTuple):
    """One axis.

    Attributes:
        name: what grows.
        symbol: of it, in the exponents.
        sizes: how large it is.
        time: seconds, by form; empty where nothing was timed.
        memory: bytes, by form.
        operations: on paper; drawn beside the times, through the first form's last.
        counted: bytes of the first form on paper.
        why: what is said below the time, and below the memory.
    """

    name: str
    symbol: str
    sizes: Sequence[int]
    time: Mapping[str, Curve]
    memory: Mapping[str, Curve]
    operations: Curve
    counted: Curve
    why: tuple[str, ...]


def scaling(path: Path, title: str, columns: Sequence[Column]) -> Path:
    """Time and memory over sizes, both logarithmic, the exponents at the lines, rings at bends.

    Args:
        path: of the picture.
        title: what is measured.
        columns: the axes; nothing is drawn above the memory where none was timed.
    """
    rows = 2 if columns[0].time else 1
    figure, grid = canvas.axes(len(columns), rows, size=(4.1, 4.6 if rows == 2 else 6.0))
    forms = list(dict.fromkeys(form for column in columns for form in column.memory))
    styles = dict(zip(forms, zip(COLORS, MARKERS, strict=False), strict=False))
    for i, column in enumerate(columns):
        panels = [(column.memory, column.counted, column.why[-1], 1e-6)]
        if rows == 2:
            panels.insert(0, (column.time, _through(column), column.why[0], 1e3))
        for row, (curves, paper, why, unit) in enumerate(panels):
            ax = grid[row * len(columns) + i]
            _panel(ax, column, curves, paper, unit, styles)
            ax.set_xlabel(f"{column.name} {column.symbol}\n" + textwrap.fill(why, 46), fontsize=9)
            if row == 0:
                ax.set_title(column.name, weight="bold")
    for row, name in enumerate(("time of a step (ms)", "memory (MB)")[2 - rows :]):
        grid[row * len(columns)].set_ylabel(name)
    handles = [
        Line2D([], [], color=color, marker=marker, label=form)
        for form, (color, marker) in styles.items()
    ]
    handles += [
        Line2D([], [], color=GREY, ls="--", label="on paper: operations, and bytes by hand"),
        Line2D([], [], color="black", marker="o", mfc="none", ms=12, ls="", label="bends here"),
    ]
    narrow = len(columns) < 2  # one name to a line, and the title above what it adds in brackets
    ncols = 1 if narrow else len(handles)
    figure.legend(handles=handles, loc="outside lower center", ncols=ncols, frameon=False)
    title = title.replace(": ", ":\n").replace(" (", "\n(") if narrow else title
    figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=15)
    return canvas.save(figure, path)


def _through(column: Column) -> Curve:
    """The operations, as seconds: at the largest size the first form's."""
    first, values = next(iter(column.time.values())), np.asarray(column.operations.values)
    return column.operations._replace(values=list(values * first.values[-1] / values[-1]))


def _panel(
    ax: Any,
    column: Column,
    curves: Mapping[str, Curve],
    paper: Curve,
    unit: float,
    styles: Mapping[str, tuple[str, str]],
) -> None:
    sizes = np.asarray(column.sizes)
    drawn = {form: unit * np.asarray(curve.values) for form, curve in curves.items()}
    ax.plot(sizes, unit * np.asarray(paper.values), color=GREY, ls="--", lw=1.5)
    for form, y in drawn.items():
        color, marker = styles[form]
        ax.plot(sizes, y, color=color, marker=marker, ms=5, lw=2)
    ax.set_xscale("log")
    canvas.logarithmic(ax, *drawn.values(), unit * np.asarray(paper.values), ratio=1.0)
    ax.xaxis.set_major_locator(FixedLocator(list(column.sizes)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())
    slopes = [paper.slope, *(curve.slope for curve in curves.values())]
    canvas.name_lines(ax, [f"${column.symbol}^{{{each:.2f}}}$" for each in slopes], fontsize=12)
    for curve, y in zip(curves.values(), drawn.values(), strict=True):
        for at in curve.bends:
            ax.plot(sizes[at], y[at], "o", color="black", ms=12, mfc="none", mew=1.5, zorder=5)
