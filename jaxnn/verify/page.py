"""The reports as one self-contained web page: what a text says, and pictures of what is wrong."""

import math
from collections.abc import Iterable, Sequence
from html import escape

from jaxnn.verify.findings import Disagreement, LeafReport
from jaxnn.verify.report import HEADINGS, Report, extent, row, shared_cause, sides_of, unseen

# Plots in SVG units: the drawing, and the margins for ticks and labels.
_WIDTH, _HEIGHT = 380, 230
_LEFT, _TOP = 64, 14
# A heat map's colours, a plot's ticks, span at most so many.
_DECADES, _TICKS = 5, 7
_ICONS = {"pass": "✓", "fail": "✗", "inconclusive": "?", "skipped": "»"}


def to_html(reports: Sequence[Report]) -> str:
    """The reports as one page without external resources; what does not pass is open."""
    statuses = [report.status for report in reports]
    counts = ", ".join(
        f"{statuses.count(status)} {word}"
        for status, word in (
            ("pass", "passed"),
            ("fail", "failed"),
            ("inconclusive", "inconclusive"),
        )
        if status in statuses
    )
    body = "\n".join(map(_report, reports))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>jaxnn.verify: '
        f'{counts}</title>\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style></head>\n"
        '<body class="jaxnn-verify"><main><h1>Gradients, by hand and by machine</h1>\n'
        f"<p>{counts or 'nothing verified'}</p>\n{body}\n</main></body></html>\n"
    )


def to_fragment(report: Report) -> str:
    """A report as a part of somebody's page, a notebook's: its styles reach no further."""
    return f'<div class="jaxnn-verify"><style>{_STYLE}</style>\n{_report(report)}</div>\n'


def _report(report: Report) -> str:
    cause = shared_cause(report)
    bad = [leaf for leaf in report.leaves if leaf.status in ("fail", "inconclusive")]
    said = [leaf for leaf in report.leaves if leaf.messages and leaf not in bad]
    facts = [
        *(("problem", problem) for problem in report.problems),
        *(((cause.heading, cause.text),) if cause else ()),
        *((("chain", report.chain),) if report.chain else ()),
        *((leaf.path, message) for leaf in said for message in leaf.messages),
        *(("rule", rule) for rule in report.rules),
        *((("cannot see", "\n".join(unseen(report))),) if report.coverage else ()),
        *(("elsewhere", line) for line in report.elsewhere),
        *((("loss in float64", f"{report.loss:.10g}"),) if report.loss is not None else ()),
        ("seed", str(report.seed)),
    ]
    again = f"<dt>again</dt><dd><code>{escape(report.command)}</code></dd>"
    legend = (
        '<p class="legend">diff/scale: the largest difference as a fraction of the leaf\'s scale; '
        "sees: the smallest such error that would have been caught; error: in the leaf's own "
        "dtype, in brackets autodiff's</p>"
    )
    return (
        f'<details class="report"{"" if report else " open"}>'
        f"<summary>{_badge(report.status)} {escape(report.summary()[12:])}</summary>\n"
        f"{_facts(facts, again if report.command else '')}\n"
        + (_table(HEADINGS, map(row, report.leaves)) + legend if report.leaves else "")
        + "".join(_leaf(leaf) for leaf in bad)
        + "</details>"
    )


def _leaf(leaf: LeafReport) -> str:
    """One leaf that does not pass: words, then pictures."""
    w = leaf.worst
    facts = [("note", message) for message in leaf.messages]
    facts += [(leaf.diagnosis.heading, leaf.diagnosis.text)] if leaf.diagnosis else []
    facts += [("where", extent(leaf) if w else leaf.where)] if w or leaf.where else []
    figures = [_heat_map(leaf)] if leaf.heat else []
    if w:
        at = f"at {list(w.index)}" if w.index else "value"
        facts += [(f"{label} {at}", value) for label, value in sides_of(w)]
        facts.append(("verdict", w.verdict))
        figures += [_convergence(w), _ladder(w)]
    return (
        f"<section><h2>{_badge(leaf.status)} <code>{escape(leaf.path)}</code></h2>{_facts(facts)}"
        f'<div class="figures">{"".join(figures)}</div></section>\n'
    )


def _badge(status: str) -> str:
    return f'<span class="badge {status}">{_ICONS[status]} {status}</span>'


def _facts(facts: Iterable[tuple[str, str]], more: str = "") -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts)
    return f"<dl>{rows}{more}</dl>"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>" for cells in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _figure(caption: str, content: str) -> str:
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


def _heat_map(leaf: LeafReport) -> str:
    """The differences as fractions of the leaf's scale; depth of colour is their logarithm."""
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
    return _figure(caption, _svg(f"heat map, {rows} by {columns}: {caption}", y + 36, parts))


def _decades(numbers: Sequence[float]) -> tuple[int, int]:
    """The powers of ten around positive numbers, two at least, all of them floats."""
    low = math.floor(math.log10(min(numbers)) + 1e-9)
    high = math.ceil(math.log10(max(numbers)) - 1e-9)
    low = min(max(low, -300), 299)
    return low, min(max(high, low + 1), 300)


def _distances(w: Disagreement) -> list[tuple[float, float, float]]:
    """Step, and the distance of its centred difference to either gradient."""
    return [(h, abs(centred - w.manual), abs(centred - w.autodiff)) for h, centred in w.ladder]


def _convergence(w: Disagreement) -> str:
    """Distances against the step, both logarithmic: the side that is right falls as h^2."""
    drawn = [
        (h, *(d if math.isfinite(d) else math.nan for d in both)) for h, *both in _distances(w)
    ]
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
    return _figure(caption, _svg(f"{caption} The table has the numbers.", bottom + 66, parts))


def _mark(name: str, x: float, y: float) -> str:
    """A circle for the hand-written side, a square for autodiff's: not by colour alone."""
    if name == "hand-written":
        return f'<circle class="{name}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
    return f'<rect class="{name}" x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6"/>'


def _ladder(w: Disagreement) -> str:
    headings = ("step h", "centred difference", "to hand-written", "to autodiff")
    rows = [
        (f"{h:.0e}", f"{centred:.10g}", f"{to_manual:.1e}", f"{to_autodiff:.1e}")
        for (h, centred), (_, to_manual, to_autodiff) in zip(w.ladder, _distances(w), strict=True)
    ]
    return _figure("The steps of the finite differences", _table(headings, rows))


_STYLE = """
.jaxnn-verify { color-scheme: light dark; --page: #fff; --ink: #1c1f23; --dim: #5b636d;
  --line: #d9dde2; --box: #f6f7f9; --hot: #b91c1c; --odd: #6d28d9; --manual: #c2410c;
  --autodiff: #1d4ed8; --pass: #166534; --fail: #b91c1c; --inconclusive: #854d0e;
  background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
@media (prefers-color-scheme: dark) { & { --page: #14171b; --ink: #e6e8eb; --dim: #a0a8b2;
  --line: #353b43; --box: #1d2127; --hot: #ff6b5e; --odd: #b49bff; --manual: #fb923c;
  --autodiff: #6ea8ff; --pass: #6fcf8a; --fail: #ff8077; --inconclusive: #eab94d } }
body& { margin: 0 } div& { padding: 0 .6rem }
& main { max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
& h1 { font-size: 1.5rem; margin: 0 } & h2 { font-size: 1.05rem; margin: 1.5rem 0 .3rem }
& summary { cursor: pointer; padding: .4rem .2rem; overflow-wrap: anywhere }
& .report { border-top: 1px solid var(--line) } & .report[open] { padding-bottom: 1.5rem }
& .legend { color: var(--dim); font-size: .87em; margin: .2rem 0 }
& .badge { font-weight: 700; white-space: nowrap; color: var(--dim) }
& .badge.pass { color: var(--pass) } & .badge.fail { color: var(--fail) }
& .badge.inconclusive { color: var(--inconclusive) }
& dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1.2rem; margin: .5rem 0 }
& dt { color: var(--dim) } & dd { margin: 0; overflow-wrap: anywhere; white-space: pre-wrap }
& dt, & th { font-weight: 500 }
& code, & dd, & table { font-variant-numeric: tabular-nums } & code { font-size: .93em }
& code, & tr { color: inherit; background: none !important }
& .scroll { overflow-x: auto }
& table { border-collapse: collapse; margin: .4rem 0; font-size: .93em }
& th, & td { text-align: left; padding: .15rem 1rem .15rem 0; white-space: nowrap;
  border: solid var(--line); border-width: 0 0 1px } & th { color: var(--dim) }
& section { background: var(--box); border-radius: .5rem; padding: .1rem 1rem 1rem;
  margin: 1rem 0 }
& .figures { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem }
& figure { margin: .6rem 0; min-width: 0 }
& figcaption { font-weight: 600; margin-bottom: .4rem } & svg { max-width: 100%; height: auto }
& text { fill: var(--dim); font: 12px system-ui, sans-serif } & .hot { fill: var(--hot) }
& .same { fill: var(--page); stroke: var(--line) } & .odd { fill: var(--odd) }
& .axis, & .grid { fill: none; stroke: var(--dim) } & .grid { stroke: var(--line) }
& .hand-written { fill: var(--manual); stroke: var(--manual) }
& .autodiff { fill: var(--autodiff); stroke: var(--autodiff) }
& .line { fill: none; stroke-width: 2 } & .autodiff.line { stroke-dasharray: 6 4 }
@media (max-width: 40rem) { & dl { grid-template-columns: 1fr } & dd { margin-bottom: .4rem } }
}
"""
