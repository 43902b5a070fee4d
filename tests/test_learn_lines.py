"""A forward taken line by line, derivations, and code shown: what lessons are made of."""

import ast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn.learn import Lines, WrongStep, derive, same, saved, show_source
from jaxnn.learn.latex import Symbols
from jaxnn.ops.normalisation import Scale, layer_norm


@pytest.fixture(autouse=True, scope="module")
def wide():
    with jax.enable_x64(True):
        yield


def forward(x, w):
    """Two uses of a, and a name that the output does not need."""
    a = x @ w
    low, high = jnp.split(a, 2, axis=-1)
    squared = a**2
    unused = low + 1  # noqa: F841
    y = squared * high.sum(-1, keepdims=True) + a
    return y  # noqa: RET504


@pytest.fixture(scope="module")
def lines(wide):
    rng = np.random.default_rng(0)
    return Lines(forward, rng.normal(size=(3, 5)), rng.normal(size=(5, 4)))


def test_names_values_and_lines_are_those_of_the_forward(lines):
    assert lines.names == ("x", "w", "a", "low", "high", "squared", "unused", "y")
    assert lines.result == "y"
    np.testing.assert_allclose(lines.a, np.asarray(lines.x) @ np.asarray(lines.w))
    assert lines.text_of("squared") == "squared = a**2"
    assert lines.lines[4].uses == ("a", "high", "squared")
    assert [v.shape for v in lines][:3] == [(3, 5), (5, 4), (3, 4)]


def test_cotangents_sum_all_paths(lines):
    # By hand, in NumPy: y_ij = a_ij^2 h_i + a_ij, h_i the sum of the last two of a_i.
    a, dy = np.asarray(lines.a), np.asarray(lines.dout)
    h = a[:, 2:].sum(-1, keepdims=True)
    dhigh = np.repeat((dy * a**2).sum(-1, keepdims=True), 2, axis=-1)
    da = dy * (2 * a * h + 1)
    da[:, 2:] += dhigh
    np.testing.assert_allclose(lines.cotangent("high"), dhigh, rtol=1e-12)
    np.testing.assert_allclose(lines.cotangent("squared"), dy * h, rtol=1e-12)
    np.testing.assert_allclose(lines.cotangent("w"), np.asarray(lines.x).T @ da, rtol=1e-12)
    np.testing.assert_allclose(lines.cotangent("y"), dy)


def test_all_cotangents_at_once_are_those_of_each():
    def with_integers(x, places, w):
        hidden = jnp.where(places > 1, x, -jnp.inf)
        p = jax.nn.softmax(hidden)
        both = {"a": p, "b": w * 2}
        y = both["a"] * both["b"] + x
        return y  # noqa: RET504

    rng = np.random.default_rng(1)
    given = rng.normal(size=(3, 4)), np.array([2, 0, 3, 2]), rng.normal(size=4)
    together, alone = Lines(with_integers, *given), Lines(with_integers, *given)
    found = together.cotangents()
    assert found.keys() == {"x", "hidden", "w", "p", "both", "y"}
    for name, cotangent in found.items():
        same(cotangent, alone.cotangent(name), name)


def test_check_passes_what_is_right_and_shows_it(lines):
    said = repr(lines.check(x=lines.cotangent("a") @ lines.w.T, squared=lines.cotangent("squared")))
    assert said.splitlines()[0].startswith("dx        (3, 5) float64: equal")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda d: -d, "it must be"),
        (lambda d: d * (1 + 1e-10), "it must be"),
        (lambda d: d[:1], "it is (1, 4) float64; it must be (3, 4) float64"),
        (lambda d: d.astype(jnp.float32), "it is (3, 4) float32"),
        (lambda d: d.at[1, 2].set(jnp.nan), "nan at [1, 2]"),
        (lambda d: (d, d), "2 arrays, where there must be 1"),
    ],
)
def test_check_refuses_what_is_wrong(lines, wrong, said):
    with pytest.raises(WrongStep) as caught:
        lines.check(a=wrong(lines.cotangent("a")))
    assert said in str(caught.value)


def test_a_cotangent_of_zero_shows_nothing(lines):
    with pytest.raises(WrongStep, match="zero throughout"):
        lines.check(unused=jnp.zeros((3, 2)))
    lines.check(unused=jnp.zeros((3, 2)), zero="no line uses it")


def twice(x):
    y = x + 1
    y = y * 2
    return y  # noqa: RET504


def branches(x):
    if x is None:
        return x
    return x


def no_name(x):
    y = x + 1
    return y + 1


@pytest.mark.parametrize(
    ("function", "said"),
    [(twice, "gives y twice"), (branches, "must be an assignment"), (no_name, "return NAME")],
)
def test_a_forward_of_another_form_is_refused(function, said):
    with pytest.raises(ValueError, match=said):
        Lines(function, jnp.ones(3))


def test_same_holds_trees():
    assert "equal" in repr(same({"a": jnp.ones(3)}, {"a": jnp.ones(3)}))
    with pytest.raises(WrongStep):
        same({"a": jnp.ones(3)}, {"a": jnp.ones(3) * (1 + 1e-9)})


def test_a_derivation_is_shown_as_it_is_computed():
    x, w = jnp.arange(6.0).reshape(2, 3) + 0.5, jnp.arange(3.0) - 0.7
    dy = jnp.asarray([0.3, -1.1])
    dw = x.T @ dy
    shown = derive("dw", ('jnp.einsum("ni,n->i", x, dy)', "each row of x"), "(dy @ x).T")
    assert "each row of x:" in shown._repr_markdown_()
    assert r"\sum_{n} {x}_{ni}\, {dy}_{n}" in shown._repr_markdown_()
    assert w.shape == dw.shape


def test_a_derivation_with_a_sign_changed_is_refused():
    x = jnp.asarray([0.3, -1.1])
    assert x.shape == (2,)
    derive("x", "2 * x - x")
    with pytest.raises(WrongStep, match="in the derivation of x"):
        derive("x", "2 * x - x", "2 * x + x")
    with pytest.raises(ValueError, match="no step"):
        derive("x")


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("a - (b + c)", r"a - \left(b + c\right)"),
        ("-(a + b) * c", r"-\left(a + b\right) \, c"),
        ("(a * b) ** 2 / c", r"\frac{\left(a \, b\right)^{2}}{c}"),
        ("jnp.exp(-x) * (x > 0)", r"e^{-x} \, [x > 0]"),
        ("dx_hat.mean(-1, keepdims=True)", r"\operatorname{mean}_{c}\left(d\hat{x}\right)"),
        ("x.sum(0)", r"\sum_{n} x"),
        ("W_xh.T", r"W_{xh}^{\top}"),
        ("x[:, None] - mu", r"x - \mu"),
        ("z[t - 1]", "{z}_{t - 1}"),
        ("jnp.where(x > 0, a, b)", r"a & \text{if } x > 0 \\ b &"),
        ("x.sum(0) * a + b.sum(-1)", r"\left(\sum_{n} x\right) \, a + \sum_{c} b"),
        ("(a * b).sum(0) - c", r"\left(\sum_{n} a \, b\right) - c"),
        ("jnp.sqrt(a + 1e-5)", r"\sqrt{a + 10^{-5}}"),
        ("x0 + dy2", "x_{0} + dy_{2}"),
    ],
)
def test_expressions_are_typeset(code, wanted):
    known = dict.fromkeys(["x", "x_hat", "a", "b", "c", "y2"], 0) | {"jnp": jnp}
    symbols = Symbols(known, {}, {-1: "c", 0: "n"}, False)
    assert wanted in symbols.latex(ast.parse(code, mode="eval").body)


def test_a_symbol_that_is_a_fraction_is_put_in_brackets_for_a_power():
    symbols = Symbols({}, {"rstd": r"\frac{1}{\sigma}"}, {}, False)
    assert symbols.latex(ast.parse("rstd**3 * x", mode="eval").body).startswith(r"\left(\frac")


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("x @ (a * b)", r"x\, \left(a \odot b\right)"),
        ("a * (x @ b)", r"a \odot \left(x\, b\right)"),
        ("x @ a @ b", r"x\, a\, b"),
        ("n * (x @ a)", r"n \, x\, a"),
        ("(1 / n * a) @ b", r"\frac{1}{n} \, a\, b"),
        ("x @ (2 * a)", r"x\, 2 \, a"),
    ],
)
def test_products_of_both_kinds_are_told_apart(code, wanted):
    known = dict.fromkeys(["x", "a", "b"], jnp.ones((2, 2))) | {"n": 3}
    assert wanted == Symbols(known, {}, {}, True).latex(ast.parse(code, mode="eval").body)


def test_the_power_of_a_power_has_brackets():
    symbols = Symbols({"r": 0}, {"r": r"\sigma^{-1}"}, {}, False)
    latex = symbols.latex(ast.parse("r**3 * dr", mode="eval").body)
    assert latex == r"\left(\sigma^{-1}\right)^{3} \, d\sigma^{-1}"


@pytest.mark.parametrize("wrong", [[1.0, jnp.inf], [jnp.nan, 2.0], [-jnp.inf, 2.0]])
def test_what_is_not_finite_is_equal_to_itself_alone(wrong):
    """And gives no scale, of which every difference would be a small part."""
    wrong, right = jnp.asarray(wrong), jnp.asarray([1.0, 2.0])
    for pair in ((wrong, right), (right, wrong)):
        with pytest.raises(WrongStep):
            same(*pair)
    same(jnp.asarray([1.0, jnp.inf]), jnp.asarray([1.0, jnp.inf]))


def test_what_cannot_be_typeset_is_refused():
    with pytest.raises(ValueError, match="cannot be typeset"):
        Symbols({}, {}, {}, False).latex(ast.parse("[a for a in b]", mode="eval").body)


def test_the_library_s_code_is_shown_as_it_is():
    shown = show_source(layer_norm.plain.bwd)
    assert shown.file == "jaxnn/ops/normalisation.py"
    assert "through_variance = x_hat * (dx_hat * x_hat).mean(last, keepdims=True)" in shown.text


def test_what_is_saved_is_counted():
    x = jnp.ones((4, 6))
    kept = saved(layer_norm, Scale(jnp.ones(6), jnp.ones(6)), x)
    assert kept.by_hand == (4 * 6 + 4) * 8  # x_hat, and 1/sigma for each row
    assert kept.autodiff > kept.by_hand
