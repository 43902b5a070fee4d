"""Draw what is wrong with a leaf, as SVG: where, and what the finite differences tend to."""

import math
from collections.abc import Iterable, Sequence
from html import escape

from jaxnn.verify.findings import Disagreement, LeafReport

# Plots in SVG units: the drawing, and the margins for ticks and labels.
_WIDTH, _HEIGHT = 380, 230
_LEFT, _TOP = 64, 14
# A heat map's colours, a plot's ticks, span at most so many.
_DECADES, _TICKS = 5, 7


def figure(caption: str, content: str) -> str:
    """Render what is drawn or listed under a caption."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{content}</figure>"


def _text(x: float, y: float, text: str, anchor: str = "middle", turn: int = 0) -> str:
    turned = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turned}>{escape(text)}</text>'


def _svg(label: str, height: float, parts: Iterable[str]) -> str:
    width = _LEFT + _WIDTH + 20
    return (
        f'<svg viewBox="0 0 {width} {height:.0f}" width="{width}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def heat_map(leaf: LeafReport) -> str:
    """Draw the differences as fractions of the leaf's scale; their logarithm as depth of colour."""
    rows, columns = len(leaf.heat), len(leaf.heat[0])
    side = min(_WIDTH / columns, _HEIGHT / rows, 40)
    allowed = leaf.tolerance / (leaf.scale or 1.0)
    wrong = [v for cells in leaf.heat for v in cells if allowed < v < math.inf] or [1.0]
    low, high = _decades(wrong)
    low = max(low, high - _DECADES)

    def cell(x: float, y: float, v: float, size: float) -> str:
        depth = (math.log10(v) - low) / (high - low) if 0 < v < math.inf else 0.0
        shade = f"fill-opacity:{0.2 + 0.8 * min(max(depth, 0.0), 1.0):.2f}"
        look = 'class="same"' if v <= allowed else f'class="hot" style="{shade}"'
        look = look if math.isfinite(v) else 'class="odd"'
        return (
            f'<rect {look} x="{x:.1f}" y="{y:.1f}" width="{size:.1f}" height="{size:.1f}">'
            f"<title>{v:.1e}</title></rect>"
        )

    parts = [
        cell(_LEFT + j * side, _TOP + i * side, v, side - min(1.0, side / 10))
        for i, cells in enumerate(leaf.heat)
        for j, v in enumerate(cells)
    ]
    bottom, right = _TOP + rows * side, _LEFT + columns * side
    shape = leaf.shape or (1,)
    across, down = shape[-1], math.prod(shape[:-1])
    axes = "axis 0" if len(shape) == 2 else f"axes 0 to {len(shape) - 2}, flattened"
    parts += [
        _text(_LEFT, bottom + 15, "0", "start"),
        _text(right, bottom + 15, str(across - 1), "end") if across > 1 else "",
        _text((_LEFT + right) / 2, bottom + 30, f"axis {len(shape) - 1}"),
    ]
    if len(shape) > 1:
        parts += [
            _text(_LEFT - 6, _TOP + 11, "0", "end"),
            _text(_LEFT - 6, bottom - 2, str(down - 1), "end") if down > 1 else "",
            _text(_LEFT - 34, (_TOP + bottom) / 2, axes, turn=-90) if rows * side > 80 else "",
        ]
    y = bottom + 46
    legend = [(allowed, "agrees"), *((10.0**n, f"1e{n}") for n in range(low, high + 1))]
    if not all(math.isfinite(v) for cells in leaf.heat for v in cells):
        legend.append((math.nan, "not finite"))
    for i, (v, label) in enumerate(legend):
        parts.append(cell(_LEFT + 48 * i, y, v, 16))
        parts.append(_text(_LEFT + 48 * i, y + 30, label, "start"))
    caption = "|hand-written - autodiff| / scale of the leaf" + (
        "; each cell the largest of its entries" if rows < down or columns < across else ""
    )
    return figure(caption, _svg(f"heat map, {rows} by {columns}: {caption}", y + 36, parts))


def _decades(numbers: Sequence[float]) -> tuple[int, int]:
    """The powers of ten around positive numbers, two at least, all of them floats."""
    low = math.floor(math.log10(min(numbers)) + 1e-9)
    high = math.ceil(math.log10(max(numbers)) - 1e-9)
    low = min(max(low, -300), 299)
    return low, min(max(high, low + 1), 300)


def distances(w: Disagreement) -> list[tuple[float, float, float]]:
    """List each step, and the distance of its centred difference to either gradient."""
    return [(h, abs(centred - w.manual), abs(centred - w.autodiff)) for h, centred in w.ladder]


def convergence(w: Disagreement) -> str:
    """Draw distances against the step, both logarithmic: the side that is right falls as h^2."""
    drawn = [(h, *(d if math.isfinite(d) else math.nan for d in both)) for h, *both in distances(w)]
    found = [d for _, *both in drawn for d in both if d > 0]
    if not found:
        return ""
    (x_low, x_high), (y_low, y_high) = _decades([h for h, *_ in drawn]), _decades(found)

    def at(h: float, d: float) -> tuple[float, float]:
        """Where a point is drawn; no distance at all is drawn at the bottom."""
        depth = (y_high - math.log10(max(d, 10.0**y_low))) / (y_high - y_low)
        return (
            _LEFT + 10 + (_WIDTH - 20) * (math.log10(h) - x_low) / (x_high - x_low),
            _TOP + _HEIGHT * depth,
        )

    bottom = _TOP + _HEIGHT
    parts = [f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{_LEFT + _WIDTH}"/>']
    for n in range(x_low, x_high + 1):
        parts.append(_text(at(10.0**n, 1.0)[0], bottom + 15, f"1e{n}"))
    for n in range(y_low, y_high + 1, math.ceil((y_high - y_low) / _TICKS)):
        y = at(1.0, 10.0**n)[1]
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}h{_WIDTH}"/>')
        parts.append(_text(_LEFT - 6, y + 4, f"1e{n}", "end"))
    parts.append(_text(_LEFT + _WIDTH / 2, bottom + 34, "step h"))
    parts.append(_text(14, _TOP + _HEIGHT / 2, "distance", turn=-90))
    for side, name in enumerate(("hand-written", "autodiff")):
        points = [at(h, both[side]) for h, *both in drawn if not math.isnan(both[side])]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        parts.append(f'<path class="{name} line" d="M{path}"/>')
        marks = [*points, (_LEFT + 190.0 * side, bottom + 54)]
        parts += [_mark(name, x, y) for x, y in marks]
        parts.append(_text(_LEFT + 190 * side + 10, bottom + 58, f"to {name}", "start"))
    caption = "Do centred differences tend to either gradient as the step shrinks?"
    return figure(caption, _svg(f"{caption} The table has the numbers.", bottom + 66, parts))


def _mark(name: str, x: float, y: float) -> str:
    """A circle for the hand-written side, a square for autodiff's: not by colour alone."""
    if name == "hand-written":
        return f'<circle class="{name}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
    return f'<rect class="{name}" x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6"/>'
