"""Render reports as one self-contained web page: what a text says, and pictures of the wrong."""

from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from jaxnn.verify.figures import convergence, distances, figure, heat_map
from jaxnn.verify.findings import Disagreement, LeafReport, Status
from jaxnn.verify.lines import HEADINGS, extent, row, sides_of

_ICONS = {"pass": "✓", "fail": "✗", "inconclusive": "?", "skipped": "»"}
_WORDS = {"pass": "passed", "fail": "failed", "inconclusive": "inconclusive"}


class Section(NamedTuple):
    """What a page has of one report: its summary, facts by name, leaves, how to run it again."""

    status: Status
    summary: str
    facts: list[tuple[str, str]]
    leaves: tuple[LeafReport, ...]
    command: str


def page(sections: Sequence[Section]) -> str:
    """Render a page without external resources; what does not pass is open."""
    statuses = Counter[str](section.status for section in sections)
    counts = ", ".join(f"{statuses[s]} {word}" for s, word in _WORDS.items() if s in statuses)
    body = "\n".join(map(_details, sections))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>jaxnn.verify: '
        f'{counts}</title>\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style></head>\n"
        '<body class="jaxnn-verify"><main><h1>Gradients, by hand and by machine</h1>\n'
        f"<p>{counts or 'nothing verified'}</p>\n{body}\n</main></body></html>\n"
    )


def fragment(section: Section) -> str:
    """Render a part of somebody's page, a notebook's: its styles reach no further."""
    return f'<div class="jaxnn-verify"><style>{_STYLE}</style>\n{_details(section)}</div>\n'


def _details(section: Section) -> str:
    again = f"<dt>again</dt><dd><code>{escape(section.command)}</code></dd>"
    legend = (
        '<p class="legend">diff/scale: the largest difference as a fraction of the leaf\'s scale; '
        "sees: the smallest such error that would have been caught; error: in the leaf's own "
        "dtype, in brackets autodiff's</p>"
    )
    bad = [leaf for leaf in section.leaves if leaf.status in ("fail", "inconclusive")]
    return (
        f'<details class="report"{"" if section.status == "pass" else " open"}>'
        f"<summary>{_badge(section.status)} {escape(section.summary)}</summary>\n"
        f"{_facts(section.facts, again if section.command else '')}\n"
        + (_table(HEADINGS, map(row, section.leaves)) + legend if section.leaves else "")
        + "".join(map(_leaf, bad))
        + "</details>"
    )


def _leaf(leaf: LeafReport) -> str:
    """One leaf that does not pass: words, then pictures."""
    w = leaf.worst
    facts = [("note", message) for message in leaf.messages]
    facts += [(leaf.diagnosis.heading, leaf.diagnosis.text)] if leaf.diagnosis else []
    facts += [("where", extent(leaf) if w else leaf.where)] if w or leaf.where else []
    figures = [heat_map(leaf)] if leaf.heat else []
    if w:
        at = f"at {list(w.index)}" if w.index else "value"
        facts += [(f"{label} {at}", value) for label, value in sides_of(w)]
        facts.append(("verdict", w.verdict))
        figures += [convergence(w), _ladder(w)]
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


def _ladder(w: Disagreement) -> str:
    headings = ("step h", "centred difference", "to hand-written", "to autodiff")
    rows = [
        (f"{h:.0e}", f"{centred:.10g}", f"{to_manual:.1e}", f"{to_autodiff:.1e}")
        for (h, centred), (_, to_manual, to_autodiff) in zip(w.ladder, distances(w), strict=True)
    ]
    return figure("The steps of the finite differences", _table(headings, rows))


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
