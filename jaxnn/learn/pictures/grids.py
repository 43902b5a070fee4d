"""Draw an array as coloured grids: blue where it is positive, red where it is negative."""

import itertools
import math
from collections.abc import Iterator
from html import escape
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Colours from a scale that people with any colour vision tell apart; laid thinly over the page.
POSITIVE, NEGATIVE = "rgb(33,102,200)", "rgb(200,60,20)"
FAINTEST, STRONGEST = 0.06, 0.55
# A cell and the space between panels, in CSS pixels; and how many of each are drawn.
WIDTH, HEIGHT, GAP = 48, 26, 12
MOST_CELLS, MOST_PANELS = 8, 4
# How far a panel shrinks where there is little room, before it is scrolled: its numbers are read.
NARROWEST = 0.8
_numbers = itertools.count()


class Panel(NamedTuple):
    """A matrix that is drawn: its position in the array it is a part of, and its numbers."""

    position: tuple[int, ...]
    numbers: np.ndarray[Any, Any]


def grid(label: str, value: Any) -> str:
    """Return an array, or several, as an SVG picture with a line of words under it.

    An array of more than two axes is drawn as panels side by side. Of what is large the beginning
    is drawn, and the words say so.
    """
    arrays = [np.asarray(jnp.asarray(leaf, _plain_dtype(leaf))) for leaf in jax.tree.leaves(value)]
    scale = max((_largest(array) for array in arrays), default=0.0)
    panels = [panel for array in arrays for panel in _panels(array)]
    drawn = [
        Panel(panel.position, panel.numbers[:MOST_CELLS, :MOST_CELLS])
        for panel in panels[:MOST_PANELS]
    ]
    shapes = ", ".join(str(array.shape) for array in arrays)
    words = f"{label} {shapes}"
    if any(array.size for array in arrays):
        words += f", largest {scale:.3g}"
    if sum(panel.numbers.size for panel in drawn) < sum(array.size for array in arrays):
        words += ", its beginning"
    pictures = "".join(_picture(label, panel, scale) for panel in drawn)
    return (
        f'<div style="display:flex;flex-wrap:wrap;gap:{GAP}px">{pictures}</div>'
        f'<div style="font-size:0.85em">{escape(words)}</div>'
    )


def svg(width: float, height: float, title: str, description: str, content: str) -> str:
    """Return a drawing as wide as what holds it, whose title and description are read aloud."""
    name = f"drawing-{next(_numbers)}"
    return (
        f'<svg role="img" aria-labelledby="{name}-title {name}-desc" '
        f'viewBox="0 0 {width} {height}" style="display:block;width:100%;height:auto">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(description)}</desc>{content}</svg>'
    )


def _picture(label: str, panel: Panel, scale: float) -> str:
    """Return a matrix as SVG, in a box that gets a little narrower where it must."""
    rows, columns = panel.numbers.shape
    width, height = columns * WIDTH + 2, rows * HEIGHT + 2
    at = f"[{', '.join(map(str, panel.position))}]" if panel.position else ""
    drawing = svg(
        width, height, f"{label}{at}", _said(panel.numbers), "".join(_cells(panel, scale))
    )
    least = f"{NARROWEST * width:.0f}px"
    return f'<div style="flex:0 1 {width}px;min-width:{least}">{drawing}</div>'


def _said(numbers: np.ndarray[Any, Any]) -> str:
    """Return in words what a matrix shows."""
    rows, columns = numbers.shape
    said = f"{rows} rows, {columns} columns" if rows != 1 else f"{columns} numbers"
    if numbers.size <= MOST_CELLS:
        return f"{said}: {', '.join(_short(number) for number in numbers.ravel())}"
    finite = np.isfinite(numbers.astype(float))
    if not finite.all():
        said += f", {numbers.size - finite.sum()} of them not finite"
    if finite.any():
        least, largest = numbers[finite].min(), numbers[finite].max()
        said += f", from {_short(least)} to {_short(largest)}"
    return said


def _plain_dtype(leaf: Any) -> Any:
    """Return a dtype that NumPy computes in."""
    floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return jnp.result_type(float) if floating else jnp.result_type(leaf)


def _largest(array: np.ndarray[Any, Any]) -> float:
    finite = np.abs(array[np.isfinite(array)].astype(float))
    return float(finite.max()) if finite.size else 0.0


def _panels(array: np.ndarray[Any, Any]) -> Iterator[Panel]:
    """Cut an array into matrices; a vector is one row, a number one cell."""
    matrix = array.reshape((1,) * (2 - array.ndim) + array.shape) if array.ndim < 2 else array
    for index in np.ndindex(matrix.shape[:-2]):
        yield Panel(index, matrix[index])


def _cells(panel: Panel, scale: float) -> Iterator[str]:
    for (i, j), number in np.ndenumerate(panel.numbers):
        x, y = 1 + j * WIDTH, 1 + i * HEIGHT
        where = ", ".join(map(str, (*panel.position, i, j)))
        yield (
            f'<rect x="{x}" y="{y}" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="3" '
            f"{_fill(number, scale)}><title>[{where}] {number:.6g}</title></rect>"
            f'<text x="{x + WIDTH / 2 - 1:.0f}" y="{y + HEIGHT / 2 + 3.5:.1f}" font-size="13" '
            f'text-anchor="middle" fill="currentColor">{_short(number)}</text>'
        )


def _fill(number: Any, scale: float) -> str:
    """Return how a cell is filled: the deeper the larger; with a dashed edge if not finite."""
    value = float(number)
    if not math.isfinite(value):
        return 'fill="none" stroke="currentColor" stroke-dasharray="4 3"'
    depth = abs(value) / scale if scale else 0.0
    opacity = FAINTEST + (STRONGEST - FAINTEST) * depth if value else FAINTEST
    colour = ("currentColor", POSITIVE, NEGATIVE)[int(np.sign(value))]
    return f'fill="{colour}" fill-opacity="{opacity:.2f}"'


def _short(number: Any) -> str:
    """Return a number in five characters or so."""
    if np.issubdtype(np.asarray(number).dtype, np.floating):
        value = float(number)
        if value == 0 or not math.isfinite(value):
            return f"{value or 0:g}"  # no -0
        small = abs(value) < 0.005 or abs(value) >= 1000
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e") if small else f"{value:.2f}"
    return str(int(number))
