"""Draw an array as coloured grids: blue where it is positive, red where it is negative."""

import math
from collections.abc import Iterator, Sequence
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
    drawn = panels[:MOST_PANELS]
    x, parts, height = 1.0, list[str](), 0.0
    for panel in drawn:
        cut = panel.numbers[:MOST_CELLS, :MOST_CELLS]
        parts += _cells(cut, panel.position, scale, x)
        x += cut.shape[1] * WIDTH + GAP
        height = max(height, cut.shape[0] * HEIGHT)
    width, height = max(x - GAP + 1, 2), height + 2
    shapes = ", ".join(str(array.shape) for array in arrays)
    words = f"{label} {shapes}"
    if arrays and any(array.size for array in arrays):
        words += f", largest {scale:.3g}"
    whole = len(drawn) == len(panels) and all(
        max(panel.numbers.shape) <= MOST_CELLS for panel in drawn
    )
    words += "" if whole else ", its beginning"
    return (
        f'<svg role="img" aria-label="{escape(words)}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" style="max-width:100%;height:auto">'
        f'{"".join(parts)}</svg><div style="font-size:0.85em">{escape(words)}</div>'
    )


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


def _cells(
    numbers: np.ndarray[Any, Any], index: Sequence[int], scale: float, left: float
) -> Iterator[str]:
    for (i, j), number in np.ndenumerate(numbers):
        x, y = left + j * WIDTH, 1 + i * HEIGHT
        where = ", ".join(map(str, (*index, i, j)))
        yield (
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="3" '
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
            return f"{value:g}"
        small = abs(value) < 0.005 or abs(value) >= 1000
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e") if small else f"{value:.2f}"
    return str(int(number))
