"""The lessons' texts: their order, and no equation that is not evaluated."""

import re
from pathlib import Path

import jax
import mutate_lessons
import pytest

from jaxnn.learn.site import build, docstrings, reference

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


def test_pages_whose_cells_run_are_spread_over_the_processes():
    pages = [*(f"lessons/{n:02}" for n in range(12)), *(f"reference/{n}" for n in range(36))]
    build.spread(pages)
    parts = [pages[i : i + 12] for i in range(0, 48, 12)]
    assert [sum(page.startswith("lessons/") for page in part) for part in parts] == [3, 3, 3, 3]


WEAK = """
```{code-cell} ipython3
import jax
import jax.numpy as jnp
from jaxnn.learn import Lines, derive, same, show_source
from jaxnn.ops.activations import softplus

jax.config.update("jax_enable_x64", True)


def forward(x, w):
    s = x - w
    y = s * s
    return y


lines = Lines(forward, jnp.asarray([0.3, 1.2]), jnp.asarray([0.7, 0.4]))
x, w, s, y = lines
dy = lines.dout
```

## Backward, line by line

```{code-cell} ipython3
ds = dy * s + s * dy
nobody_looks_at = ds - dy
lines.check(s=ds)
```

```{code-cell} ipython3
dw = -ds
lines.check(x=ds, w=dw)
derive("dw", ("-2 * s * dy", "why"))
```

## In the library

```{code-cell} ipython3
show_source(softplus.plain.bwd)
```

```{code-cell} ipython3
options = {"beta": 2.0, "threshold": 2.0}
_, pull = jax.vjp(lambda x: softplus.plain.fwd(x, **options)[0], x)
same(softplus.plain.bwd(x, dy, **options), pull(dy))
```
"""


@pytest.fixture
def any_precision():
    """Lessons switch float64 on, for good."""
    before = jax.config.jax_enable_x64
    yield
    jax.config.update("jax_enable_x64", before)


def test_a_sign_changed_in_a_lesson_or_in_the_op_it_shows_fails_it(tmp_path, any_precision):
    (tmp_path / "weak.md").write_text(WEAK)
    outcome = mutate_lessons.tried(tmp_path / "weak.md")
    assert [mutant.change for mutant in outcome.survived] == ["ds - dy -> ds + dy"]
    assert outcome.survived[0].where == "line 26"
    killed = {mutant.change for mutant in outcome.killed}
    assert {"dy * s + s * dy -> dy * s - s * dy", "-ds -> +ds", "-2 -> +2"} <= killed
    assert any("lax.logistic" in change for change in killed)


def test_the_mutants_of_a_lesson_die(any_precision):
    (path,) = (path for path in LESSONS if path.stem == "12_layer_norm")
    outcome = mutate_lessons.tried(path, sample=30)
    assert len(outcome.killed) == 2
    assert not outcome.survived
