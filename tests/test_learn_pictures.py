"""Pictures of lessons: what is drawn are the numbers, in words too, whatever they are."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn.learn import Lines
from jaxnn.learn.pictures import flow, ladder, memory
from jaxnn.learn.pictures.grids import NEGATIVE, POSITIVE, grid


def _spoken(html):
    """What a screen reader says of each drawing: the texts that it is labelled by."""
    texts = dict(re.findall(r'<(?:title|desc) id="([^"]+)">([^<]*)<', html))
    assert len(texts) == len(re.findall(r"<(?:title|desc) id=", html))  # none twice
    labels = re.findall(r'<svg role="img" aria-labelledby="([^"]+)"', html)
    assert len(labels) + html.count('aria-hidden="true"') == html.count("<svg")
    return [": ".join(texts[name] for name in label.split()) for label in labels]


def _drawn(html):
    return [float(n) for n in re.findall(r"<title>\[[^]]*\] ([^<]+)</title>", html)]


def _forward(x, w):
    s = x @ w
    y = jnp.tanh(s) * s
    return y  # noqa: RET504


def test_a_flow_draws_every_value_and_beside_it_autodiffs_cotangent():
    x = jax.random.normal(jax.random.key(1), (2, 3))
    lines = Lines(_forward, x, x.T @ x[:, ::-1][:, :2])
    wanted = [a for n in lines.names for a in (lines[n], lines.cotangent(n))]
    html = flow(lines)._repr_html_()
    np.testing.assert_allclose(
        _drawn(html), np.concatenate([np.ravel(a) for a in wanted]), rtol=1e-5
    )
    assert len(_spoken(html)) == 2 * len(lines.names)
    assert "<details>" in html
    assert "tabindex" in html
    assert "s = x @ w" in repr(flow(lines, ["s"]))


def test_the_colour_of_a_cell_is_its_sign_and_a_name_is_escaped():
    html = grid("a<b", jnp.array([2.0, -2.0]))
    assert html.index(POSITIVE) < html.index(NEGATIVE)
    assert "a<b" not in html
    assert "a&lt;b" in html


def test_what_is_not_finite_is_drawn_with_a_dashed_edge():
    html = grid("x", jnp.array([jnp.nan, jnp.inf, 1.0]))
    assert html.count("stroke-dasharray") == 2
    assert "largest 1" in html


def test_of_what_is_large_the_beginning_is_drawn_and_said():
    html = grid("x", jnp.ones((9, 20)))
    assert len(_drawn(html)) == 64
    assert "its beginning" in html


def test_a_drawing_is_said_in_words_of_its_content():
    said = _spoken(grid("W", jnp.asarray([[[0.5, -2.0, jnp.nan]] * 3, [[1.0] * 3] * 3])))
    assert said[0] == "W[0]: 3 rows, 3 columns, 3 of them not finite, from -2.00 to 0.50"
    assert said[1] == "W[1]: 3 rows, 3 columns, from 1.00 to 1.00"
    assert _spoken(grid("n", jnp.arange(3))) == ["n: 3 numbers: 0, 1, 2"]
    (said,) = _spoken(memory({"by hand": [3, 4]})._repr_html_())
    assert "by hand: from 0 at 0 to 0 at 5, least 0 at 0, most 7 at 2" in said
    _spoken(memory({"nothing": [0, 0]})._repr_html_())


def test_memory_rises_and_falls_by_what_each_layer_keeps():
    (curve,) = memory({"by hand": [3, 4]}).curves
    assert [y for _, y in curve.points[::2]] == [0, 3, 7, 3, 0]
    with pytest.raises(ValueError, match="as many in each way"):
        memory({"a": [1], "b": [1, 2]})


def test_what_is_computed_again_is_held_while_its_layer_goes_back():
    (curve,) = memory({"inputs": [1, 2]}, again={"inputs": [10, 20]}).curves
    assert [y for _, y in curve.points[::2]] == [0, 1, 3 + 20, 1 + 10, 0]
    with pytest.raises(ValueError, match="as many in each way"):
        memory({"a": [1, 2]}, again={"a": [1]})
    with pytest.raises(ValueError, match="kept must have them"):
        memory({"a": [1]}, again={"b": [1]})


def test_the_ladder_falls_with_the_square_of_the_step():
    with jax.enable_x64(True):
        x = jnp.array([0.3, -0.7])
        points = dict(ladder(lambda x: jnp.exp(x).sum(), x).curves[0].points)
        assert 90 < points[0.1] / points[0.01] < 110
        with pytest.raises(ValueError, match="float64"):
            ladder(jnp.sum, x.astype(jnp.float32))
        with pytest.raises(ValueError, match="does not change along the direction"):
            ladder(lambda x: 0 * x.sum() + 2, x)
        with pytest.raises(ValueError, match=r"returns shape \(2,\)"):
            ladder(jnp.exp, x)
