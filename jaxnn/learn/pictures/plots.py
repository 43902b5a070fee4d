"""Plots of lessons: memory over time, and errors of finite differences over the step."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.learn.pictures.grids import svg

# In CSS pixels where there is room; on a phone it shrinks to three quarters, and is still read.
WIDTH, HEIGHT, WIDEST = 440, 290, 540
LEFT, RIGHT, TOP, BOTTOM, LETTERS = 70, 14, 12, 46, 15
COLOURS = ("rgb(33,102,200)", "rgb(200,60,20)", "rgb(20,130,80)", "rgb(140,80,180)")
THOUSANDS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
DASHES = ("", "7 4", "2 3", "9 3 2 3")


class Curve(NamedTuple):
    """One curve: its name, and its points."""

    name: str
    points: tuple[tuple[float, float], ...]


class Plot(NamedTuple):
    """Curves over one axis; a page and a notebook show them."""

    title: str
    across: str
    up: str
    logarithmic: bool
    curves: tuple[Curve, ...]

    def __repr__(self) -> str:
        lines = [f"{self.title} ({self.up}, over {self.across})"]
        for name, points in self.curves:
            lines.append(f"{name}: " + ", ".join(f"{x:.3g}: {y:.3g}" for x, y in points))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        xs, ys = self._axis(0, LEFT, WIDTH - RIGHT), self._axis(1, HEIGHT - BOTTOM, TOP)
        parts = [_ticks(xs, ys), *(_curve(i, c, xs, ys) for i, c in enumerate(self.curves))]
        parts += [
            _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, self.across),
            f'<g transform="rotate(-90 14 {HEIGHT / 2})">{_text(14, HEIGHT / 2, self.up)}</g>',
        ]
        legend = "".join(_entry(i, curve.name) for i, curve in enumerate(self.curves))
        return (
            f'<figure style="margin:1em 0"><div style="max-width:{WIDEST}px">'
            f"{svg(WIDTH, HEIGHT, self.title, self._said(), ''.join(parts))}</div>"
            f'<div style="display:flex;flex-wrap:wrap;gap:0.3em 1.5em">{legend}</div>'
            f"<figcaption>{escape(self.title)}</figcaption></figure>"
            f"<details><summary>The same in numbers</summary><pre>{escape(repr(self))}</pre>"
            "</details>"
        )

    def _said(self) -> str:
        """Return in words where the curves go."""
        said = [f"{self.up}, over {self.across}"]
        for name, points in (curve for curve in self.curves if curve.points):
            ends = [min(points), max(points)]
            low, high = (how(points, key=lambda point: point[1]) for how in (min, max))
            (first, last), (lowest, highest) = (map(_point, two) for two in (ends, (low, high)))
            said.append(f"{name}: from {first} to {last}, least {lowest}, most {highest}")
        return "; ".join(said)

    def _axis(self, number: int, start: float, end: float) -> "Axis":
        values = [point[number] for curve in self.curves for point in curve.points]
        if self.logarithmic:
            positive = [v for v in values if v > 0 and math.isfinite(v)] or [1.0]
            low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
            every = max(1, math.ceil((high - low) / 6))
            ticks = tuple(10.0**n for n in range(low, high + 1, every))
            return Axis(float(low), float(max(high, low + 1)), start, end, ticks, True)
        step = 10.0 ** math.floor(math.log10(max(*values, 1e-300)))
        step *= next(n for n in (0.2, 0.5, 1, 2) if max(values) / (n * step) <= 6)
        step = max(step, 1.0)
        ticks = tuple(step * n for n in range(int(max(values) // step) + 1))
        return Axis(0.0, float(max(values)) * 1.04 or 1.0, start, end, ticks, False)


class Axis(NamedTuple):
    """An axis: its ends in values (powers of ten if logarithmic) and in pixels, and its ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    logarithmic: bool

    def at(self, value: float) -> float:
        """Return where a value is, in pixels."""
        if self.logarithmic:
            value = math.log10(value) if value > 0 else self.low
        share = (value - self.low) / (self.high - self.low)
        return self.start + (self.end - self.start) * share


def memory(
    kept: Mapping[str, Sequence[float]], again: Mapping[str, Sequence[float]] | None = None
) -> Plot:
    """Draw the bytes that are held over time, through a chain of layers and back.

    Args:
        kept: for each way of keeping, the bytes that each layer's forward leaves for its backward,
            in the order of the layers.
        again: for some of the ways, the bytes that were not kept and are computed a second time,
            held while each layer's backward runs, in the order of the layers.

    Raises:
        ValueError: the ways have different numbers of layers, or none; or `again` has a way that
            `kept` has not.
    """
    again = again or {}
    if unknown := set(again) - set(kept):
        raise ValueError(f"again has {sorted(unknown)}; kept must have them too: {sorted(kept)}")
    layers = {len(sizes) for sizes in (*kept.values(), *again.values())}
    if len(layers) != 1 or 0 in layers:
        raise ValueError(
            f"kept has {sorted(layers)} layers; give the bytes of each layer, as many in each way"
        )
    (count,) = layers
    curves = []
    for name, sizes in kept.items():
        up = [float(sum(sizes[:n])) for n in range(count + 1)]
        held = up + up[-2::-1]
        for back, size in enumerate(reversed(again.get(name, ()))):
            held[count + back] += size
        steps = [point for n, y in enumerate(held) for point in ((n, y), (n + 1, y))]
        curves.append(Curve(name, tuple(steps)))
    title = f"Bytes held while {count} layers go forward, then back; the most at the loss"
    return Plot(title, "layers done, forward then backward", "bytes held", False, tuple(curves))


def ladder(f: Callable[[Any], Any], x: Any, *, seed: int = 0) -> Plot:
    """Draw the error of finite differences along a random direction, over the length of the step.

    Args:
        f: a function of one array, with a number as its value.
        x: where; in float64.
        seed: of the direction, whose length is 1.

    Raises:
        ValueError: x is not in float64, f gives no number, or does not change with x.
    """
    x, name = jnp.asarray(x), getattr(f, "__name__", "f")
    if x.dtype != jnp.float64:
        raise ValueError(f"x is of {x.dtype}; it must be of float64: set jax_enable_x64")
    shape = jnp.shape(f(x))
    if shape != ():
        raise ValueError(f"{name} returns shape {shape}; it must return a number: sum its entries")
    direction = jax.random.normal(jax.random.key(seed), x.shape, x.dtype)
    direction /= jnp.sqrt((direction**2).sum())
    exact = float(jax.jvp(f, (x,), (direction,))[1])
    steps = [10.0 ** (-n / 2) for n in range(25)]

    def error(dtype: Any, back: float) -> tuple[tuple[float, float], ...]:
        """Of the difference between one step ahead and `back` steps behind."""

        def at(h: float) -> float:
            return float(f((x + h * direction).astype(dtype)))

        errors = [abs((at(h) - at(-back * h)) / ((1 + back) * h) - exact) for h in steps]
        return tuple((h, e) for h, e in zip(steps, errors, strict=True) if e > 0)

    curves = (
        Curve("centred, float64", error(jnp.float64, 1.0)),
        Curve("one-sided, float64", error(jnp.float64, 0.0)),
        Curve("centred, float32", error(jnp.float32, 1.0)),
    )
    if not curves[0].points:
        raise ValueError(
            f"{name} does not change along the direction: at every step the difference is its "
            f"slope, {exact:g}; give a function that is not constant in x, at a point where it "
            "changes"
        )
    best = min(curves[0].points, key=lambda point: point[1])
    title = (
        f"The error of finite differences: least in float64 at a step of {best[0]:.0e}; to the "
        "right the limit is not reached, to the left the digits run out"
    )
    return Plot(title, "step", "error of the slope", True, curves)


def _point(point: tuple[float, float]) -> str:
    return f"{point[1]:.3g} at {point[0]:.3g}"


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{LETTERS}" text-anchor="{anchor}" '
        f'fill="currentColor">{escape(text)}</text>'
    )


def _said(value: float, logarithmic: bool) -> str:
    if logarithmic:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    unit, word = next(((n, word) for n, word in THOUSANDS if value >= n), (1.0, ""))
    return f"{value / unit:g}{word}"


def _ticks(xs: Axis, ys: Axis) -> str:
    """Draw the lines of a grid, with their numbers."""
    line = 'stroke="currentColor" stroke-opacity="0.18"'
    parts = []
    for value in xs.ticks:
        x = xs.at(value)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{ys.end}" y2="{ys.start}" {line}/>')
        parts.append(_text(x, ys.start + 17, _said(value, xs.logarithmic)))
    for value in ys.ticks:
        y = ys.at(value)
        parts.append(f'<line x1="{xs.start}" x2="{xs.end}" y1="{y:.1f}" y2="{y:.1f}" {line}/>')
        parts.append(_text(xs.start - 6, y + 5, _said(value, ys.logarithmic), "end"))
    return "".join(parts)


def _look(number: int) -> str:
    dash = DASHES[number % len(DASHES)]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'fill="none" stroke="{COLOURS[number % len(COLOURS)]}" stroke-width="2.5"{dashed}'


def _curve(number: int, curve: Curve, xs: Axis, ys: Axis) -> str:
    points = " ".join(f"{xs.at(x):.1f},{ys.at(y):.1f}" for x, y in curve.points if np.isfinite(y))
    name = f"<title>{escape(curve.name)}</title>"
    return f'<polyline points="{points}" {_look(number)}>{name}</polyline>'


def _entry(number: int, name: str) -> str:
    """Return a curve's line in the legend."""
    return (
        f'<span><svg width="34" height="10" aria-hidden="true"><line x1="0" x2="34" y1="5" y2="5" '
        f"{_look(number)}/></svg> {escape(name)}</span>"
    )
