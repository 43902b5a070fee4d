"""Mathematics as MathML, which browsers show by themselves: no script, no font, no network."""

from typing import Any

from latex2mathml.converter import convert


def inline(self: Any, node: Any) -> None:
    """Write an inline formula."""
    self.body.append(convert(node.astext(), display="inline"))
    _done()


def block(self: Any, node: Any) -> None:
    """Write a displayed formula, which scrolls by itself where the page is narrow."""
    mathematics = convert(node.astext(), display="block")
    # Reached by the Tab key, so that the arrows can scroll it.
    self.body.append(f'<div class="equation" tabindex="0" role="math">{mathematics}</div>\n')
    _done()


def _done() -> None:
    from docutils.nodes import SkipNode

    raise SkipNode
