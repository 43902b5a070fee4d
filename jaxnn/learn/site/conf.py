"""What Sphinx is told of the site."""

import platform
from importlib.metadata import version
from typing import Any

import jax
from docutils import nodes
from latex2mathml.converter import convert

import jaxnn
from jaxnn.learn.site import reference

project = "jaxnn"
release = jaxnn.__version__
html_title = "jaxnn"
extensions = ["myst_nb", "sphinx_design", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["jaxnn.css"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
# What a search would quote is fetched page by page, which a browser forbids to pages on a disk.
html_show_search_summary = False
html_math_renderer = "mathml"
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 180
nb_render_markdown_format = "myst"
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_use_rtype = False
napoleon_use_ivar = True
suppress_warnings = ["myst.xref_missing"]

VERSIONS = (
    f"Every cell of this site ran, and every check in it held, with jaxnn {jaxnn.__version__}, "
    f"jax {jax.__version__}, jaxlib {version('jaxlib')} and Python {platform.python_version()}."
)


def _inline(writer: Any, node: nodes.Node) -> None:
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.Node) -> None:
    writer.body.append(f'<div class="equation">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def _stamp(_app: Any, _page: str, _template: str, context: dict[str, Any], _tree: Any) -> None:
    """Say on a page what it was verified with."""
    if "body" in context:
        context["body"] += f'<p class="stamp">{VERSIONS}</p>'


def setup(app: Any) -> dict[str, bool]:
    """Have equations written as MathML, docstrings read as the house writes them."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("autodoc-process-docstring", reference.process, priority=400)
    app.connect("autodoc-skip-member", reference.skip_fields)
    app.connect("html-page-context", _stamp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
