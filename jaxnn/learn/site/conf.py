"""Sphinx's settings for the site; `python -m jaxnn.learn.site` builds it."""

import logging
import platform
from importlib import metadata
from typing import Any

import jaxnn
from jaxnn.learn.site import build, docstrings, mathml

project, author, copyright = "jaxnn", "the authors of jaxnn", "the authors of jaxnn"  # noqa: A001
release = jaxnn.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_design"]
exclude_patterns = ["_templates"]
# Pages that a wheel lacks are in no list.
suppress_warnings = ["toc.empty_glob"]
templates_path, html_static_path = ["_templates"], ["_static"]

logging.getLogger("traitlets").setLevel(logging.WARNING)  # not a line for each page

# Every cell runs at every build; one that fails, fails the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = False  # a warning, which is an error, with its traceback
nb_execution_timeout = 180
nb_execution_in_temp = True
nb_execution_show_tb = True
nb_output_stderr = "warn"  # a warning of a library, which is an error
nb_merge_streams = True
nb_render_markdown_format = "myst"
nb_number_source_lines = False
myst_enable_extensions = ["dollarmath", "deflist", "attrs_inline"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_rtype, napoleon_use_ivar = False, True
add_module_names = False
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = "jaxnn"
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_search_summary = False  # it would ask for files, which a page on a disk cannot
html_copy_source, html_show_sourcelink = True, True
html_show_sphinx = False
html_last_updated_fmt = None
pygments_style, pygments_dark_style = "a11y-high-contrast-light", "a11y-high-contrast-dark"

VERIFIED_ON = ", ".join(
    [
        f"jaxnn {release}",
        *(f"{name} {metadata.version(name)}" for name in ("jax", "jaxlib")),
        f"Python {platform.python_version()}",
    ]
)


def stamp(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Hand the templates the versions that a page was verified on, and its notebook's name."""
    context["verified_on"] = VERIFIED_ON
    executed = doctree is not None and page in getattr(app.env, "nb_metadata", {})
    ran = executed and "exec_data" in app.env.nb_metadata[page]
    context["notebook"] = f"notebooks/{page}.ipynb" if ran else None


def setup(app: Any) -> None:
    """Add the renderer of mathematics, the docstrings' hook, the order of reading, the stamp."""
    app.add_html_math_renderer("mathml", (mathml.inline, None), (mathml.block, None))
    app.connect("autodoc-process-docstring", docstrings.process, priority=400)
    app.connect("env-before-read-docs", lambda app, env, pages: build.spread(pages))
    app.connect("html-page-context", stamp)
