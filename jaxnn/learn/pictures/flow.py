"""How a cotangent flows through a forward: every value, and beside it its cotangent."""

from collections.abc import Iterable
from html import escape
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnn.learn.lines import Lines
from jaxnn.learn.pictures.grids import grid

# Rows of what is read downwards; values and cotangents stand side by side where there is room, and
# what has none scrolls inside the figure.
FIGURE = "margin:1em 0;overflow-x:auto"
LINE = "margin:0.9em 0 0.3em;padding-top:0.5em;border-top:1px solid rgba(128,128,128,0.4)"
PAIR = "display:flex;flex-wrap:wrap;gap:0.6em 2em"
SIDE = "flex:1 1 15em"


class Flow(NamedTuple):
    """The picture of a forward and its backward; a page and a notebook show it."""

    rows: tuple[tuple[str, str, Any, Any], ...]

    def __repr__(self) -> str:
        return "\n\n".join(_in_text(*row) for row in self.rows)

    def _repr_html_(self) -> str:
        rows = "".join(_in_html(*row) for row in self.rows)
        return (
            f'<figure tabindex="0" style="{FIGURE}" aria-label="Values from top to bottom, '
            'cotangents from bottom to top">'
            f'<figcaption style="{PAIR}"><strong style="{SIDE}">values, forward &#8595;</strong>'
            f'<strong style="{SIDE}">cotangents, backward &#8593;</strong></figcaption>'
            f"{rows}</figure>"
            f"<details><summary>The same in numbers</summary><pre>{escape(repr(self))}</pre>"
            "</details>"
        )


def flow(lines: Lines, names: Iterable[str] | None = None) -> Flow:
    """Draw how values flow down through a forward, and cotangents up: real values, autodiff's.

    Args:
        lines: the forward, at a small example.
        names: of what is drawn; None for all of it.

    Raises:
        KeyError: the forward gives no such name.
    """
    shown = lines.names if names is None else tuple(names)
    cotangents = lines.cotangents()
    return Flow(
        tuple(
            (
                name,
                "" if name in lines.inputs else lines.text_of(name),
                lines[name],
                cotangents.get(name),
            )
            for name in shown
        )
    )


def _in_html(name: str, text: str, value: Any, cotangent: Any) -> str:
    head = f"<code>{escape(text)}</code>" if text else f"input <code>{escape(name)}</code>"
    if cotangent is None:
        other = '<div style="font-size:0.85em">integers have no cotangent</div>'
    else:
        other = grid(f"d{name}", cotangent)
    return (
        f'<div style="{LINE}">{head}</div><div style="{PAIR}">'
        f'<div style="{SIDE}">{grid(name, value)}</div><div style="{SIDE}">{other}</div></div>'
    )


def _in_text(name: str, text: str, value: Any, cotangent: Any) -> str:
    parts = [text or f"input {name}", f"{name} = {_numbers(value)}"]
    parts += [] if cotangent is None else [f"d{name} = {_numbers(cotangent)}"]
    return "\n".join(parts)


def _numbers(value: Any) -> str:
    with np.printoptions(precision=3, suppress=True, threshold=200):
        return "\n".join(str(np.asarray(leaf)) for leaf in jax.tree.leaves(value))
