"""The lessons' texts: their order, and no equation that is not evaluated."""

import re
from pathlib import Path

import pytest

from jaxnn.learn.site import docstrings, reference

SITE = Path(reference.__file__).parent
LESSONS = sorted(SITE.glob("lessons/*.md"))
HEADINGS = ["A picture", "Backward, line by line", "The short form", "In the library"]
HEADINGS += ["Three mistakes", "Questions", "Exercise", "Sources"]


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_types_no_equation_and_has_its_headings_in_order(path):
    text = path.read_text(encoding="utf-8")
    words = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert "$$" not in text
    assert not [formula for formula in re.findall(r"\$([^$\n]+)\$", words) if "=" in formula]
    found = [h for h in re.findall(r"^## (.*)$", words, re.MULTILINE) if h in HEADINGS]
    assert found == HEADINGS


def test_a_docstring_is_escaped_and_its_formulas_stand_as_they_are():
    lines = ["Return `x_` of a * b.", "", "    y = a * b", "", "Args:", "    x: |x| of all."]
    assert docstrings.converted(lines) == [
        "Return ``x_`` of a \\* b.",
        "",
        "::",
        "",
        "    y = a * b",
        "",
        "Args:",
        "    x: \\|x\\| of all.",
    ]


def test_an_op_is_documented_by_its_two_functions():
    page = reference.page("jaxnn.ops.linear")
    for name in ("linear(params, x", "linear_fwd", "linear_bwd"):
        assert f"jaxnn.ops.linear.{name}" in page


def test_the_readme_links_to_every_lesson_and_how_to_page():
    readme = (SITE.parents[2] / "README.md").read_text(encoding="utf-8")
    pages = [*SITE.glob("lessons/*.md"), *SITE.glob("howto/*.md")]
    assert len(pages) > 24
    for page in pages:
        assert f"](jaxnn/learn/site/{page.relative_to(SITE).as_posix()})" in readme, page
