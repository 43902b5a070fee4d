"""Every exercise: its forward is the library's op, its solutions are right, its bugs are wrong."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn.learn import Lines, check, exercise, grade, start
from jaxnn.learn.case import Case
from jaxnn.learn.factors import number_in_words
from jaxnn.learn.points import lifted
from jaxnn.learn.student import read

NAMES = exercise.names()


def point(found):
    """The exercise's example in float64, and a random cotangent of its output."""
    inputs = lifted(found.module.example(jax.random.key(1)))
    out = found.module.forward(*inputs)
    return inputs, jax.random.normal(jax.random.key(2), jnp.shape(out), jnp.float64)


@pytest.mark.parametrize("name", NAMES)
def test_an_exercise_and_its_solutions_are_right(name):
    found = exercise.find(name)
    with jax.enable_x64(True):
        inputs, dout = point(found)
        np.testing.assert_allclose(
            found.module.forward(*inputs), found.module.library(*inputs), rtol=1e-10, atol=1e-12
        )
        out, saved = found.function("fwd")(*inputs)
        np.testing.assert_allclose(out, found.module.forward(*inputs), rtol=1e-10, atol=1e-12)
        cotangents = found.function("bwd")(saved, dout)
        assert len(cotangents) == len(inputs) == len(found.inputs)
        floating = [i for i, x in enumerate(inputs) if _floating(x)]
        assert all(cotangents[i] is None for i in range(len(inputs)) if i not in floating)

        def weighted(given):
            full = list(inputs)
            for i, x in zip(floating, given, strict=True):
                full[i] = x
            return (found.module.forward(*full) * dout).sum()

        wanted = jax.grad(weighted)([inputs[i] for i in floating])
        for i, by_autodiff in zip(floating, wanted, strict=True):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11),
                cotangents[i],
                by_autodiff,
            )


def _floating(x):
    return all(jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in jax.tree.leaves(x))


@pytest.mark.parametrize("name", [n for n in NAMES if "easy" in exercise.find(n).grades])
def test_its_steps_are_autodiff_s_line_by_line(name):
    found = exercise.find(name)
    with jax.enable_x64(True):
        inputs, dout = point(found)
        lines = Lines(found.module.forward, *inputs, dout=dout)
        steps = found.module.steps(*lines, lines.dout)
        for key, value in steps.items():
            wanted = lines.cotangent(key)
            np.testing.assert_allclose(value, wanted, rtol=1e-9, atol=1e-11, err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_what_start_writes_is_read_and_is_not_done_yet(name, tmp_path):
    found = exercise.find(name)
    assert len(found.module.HINTS) >= 2
    assert all(old in inspect.getsource(found.function("bwd")) for old, _, _ in found.module.BUGS)
    for which in found.grades:
        file = tmp_path / start.file_name(found, which)
        file.write_text(start.text(found, which, file.name))
        result = grade.graded(read(str(file)))
        assert result.status == ("wrong" if which == "bug" else "not yet"), which


def test_a_right_and_a_wrong_backward_are_told_apart(tmp_path):
    found = exercise.find("layer_norm")
    file = tmp_path / "layer_norm.py"
    source = start.solution(found, "fused", file.name)
    file.write_text(source)
    assert grade.graded(read(str(file)))
    for old, new, _ in found.module.BUGS:
        assert old in source
        file.write_text(source.replace(old, new))
        said = str(grade.graded(read(str(file))))
        assert "wrong" in said
        assert "likely cause" in said


def test_float32_is_asked_where_it_can_hold_the_truth():
    """Softplus of 1000 overflows in the exercise's own formula: nothing is known there."""
    assert check(lambda x, dy: (dy * jax.nn.sigmoid(x),), exercise="softplus")
    overflows = check(lambda x, dy: (dy / (1 + jnp.exp(-x)),), exercise="softplus")
    assert overflows
    lost = check(lambda x, dy: (dy * jnp.exp(x) / (1 + jnp.exp(x)),), exercise="softplus")
    assert [row.kind for row in lost.rows] == ["precision"]
    assert "overflows" in str(lost)


def numpy_bwd(saved, dy):
    x, w = saved
    return np.matmul(dy, w.T), np.matmul(x.T, dy), np.sum(dy, axis=0)


def numpy_damage(saved, dy):
    x, w = saved
    dx = np.matmul(dy, w.T)
    np.multiply(dy, 2, out=dy)
    return dx, np.matmul(x.T, dy) / 2, np.sum(dy, axis=0) / 2


def test_a_backward_in_numpy_is_accepted_and_its_damage_said():
    assert check(numpy_bwd, exercise="linear")
    assert "changes its argument dy in place" in check(numpy_damage, exercise="linear").fault


def test_line_by_line_what_only_follows_is_told_from_what_is_wrong_by_itself(tmp_path):
    found = exercise.find("layer_norm")
    file = tmp_path / "layer_norm_easy.py"
    source = start.solution(found, "easy", file.name)
    two = source.replace("dvar = -0.5 * drstd", "dvar = 0.5 * drstd").replace(
        "dx = dcentred + dmu / x.shape[-1]", "dx = dcentred + dmu"
    )
    file.write_text(two)
    rows = {row.name: row for row in grade.graded(read(str(file))).rows}
    assert {name for name, row in rows.items() if row.status == "wrong"} == {"dvar", "dx"}
    assert {name for name, row in rows.items() if row.status == "after"} == {"dcentred"}
    assert rows["dvar"].kind == "sign"
    assert "3 times" in rows["dx"].cause


def linear_returns(change):
    """A right backward of `linear`, and what is made of its three cotangents."""
    return check(lambda saved, dy: change(*numpy_bwd(saved, dy)), exercise="linear")


def test_right_cotangents_as_lists_are_accepted():
    assert linear_returns(lambda *all_three: [np.asarray(d).tolist() for d in all_three])
    assert check(lambda p, dp: np.asarray(softmax_bwd(p, dp)[0]).tolist(), exercise="softmax")


async def later(*all_three):
    return all_three


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda dx, dw, db: (dx, dw, "sum"), "db is a str; it must be an array of real"),
        (lambda dx, dw, db: (dx, dw * 1j, db), "dw is an array of complex128; it must be"),
        (lambda dx, dw, db: (dx, [[1.0], [1.0, 2.0]], db), "dw is a list that makes no array"),
        (
            lambda dx, dw, db: {"x": dx, "w": dw, "b": db},
            "returns a dict; .* in a tuple: dx, dw, db",
        ),
        (lambda *d: (value for value in d), "returns a generator; it must return 3 cotangents"),
        (later, "returns a coroutine; it must return 3 cotangents"),
        (lambda *d: {1, 2, 3}, "returns a set; it must return 3 cotangents"),
        (lambda dx, dw, db: (dx,), "returns 1 cotangent; it must return 3 cotangents"),
    ],
)
def test_what_is_no_cotangent_is_named(change, said):
    assert re.search(said, linear_returns(change).fault)


def test_three_dots_are_not_written_yet():
    rows = linear_returns(lambda dx, dw, db: (dx, dw, ...)).rows
    assert [row.status for row in rows] == ["right", "right", "not yet"]


def test_line_by_line_names_may_have_their_d_and_others_are_named(tmp_path):
    file = tmp_path / "mse_easy.py"
    source = start.solution(exercise.find("mse"), "easy", file.name)
    file.write_text(source.replace('"square":', '"dsquare":').replace('"d":', '"dd":'))
    assert grade.graded(read(str(file)))
    file.write_text(source.replace('"square":', '"squared":'))
    assert "returns 'squared'; its names are square, d," in grade.graded(read(str(file))).fault


def loss(x, d):
    return (jax.nn.softmax(x) * d).sum()


def row_by_row(p, d):
    return p * (d - (d * p).sum())


ROWS = jax.jit(jax.vmap(row_by_row))
ASKS = {
    "asks jax.grad": jax.grad(loss),
    "asks jax.jacrev": jax.jit(jax.jacrev(loss)),
    "": jax.vmap(lambda x, d: row_by_row(jax.nn.softmax(x), d)),
}


def own_fwd(x):
    return jax.nn.softmax(x), x


@pytest.mark.parametrize("said", ASKS)
def test_a_gradient_function_made_before_is_told_from_what_jax_repeats_or_compiles(said):
    asks = ASKS[said]
    result = check(own_fwd, lambda x, dp: (asks(x, dp),), exercise="softmax")
    assert said in result.fault
    assert bool(result) == (not said)
    assert check(lambda p, dp: (ROWS(p, dp),), exercise="softmax")


def softmax_bwd(p, dp):
    return (p * (dp - (dp * p).sum(-1, keepdims=True)),)


def test_functions_are_graded_as_they_stand_in_a_notebook():
    assert check(softmax_bwd)
    mine = softmax_bwd
    assert check(lambda p, dp: mine(p, dp), exercise="softmax")
    wrong = check(lambda p, dp: (p * dp,), exercise="softmax")
    assert not wrong
    assert "likely cause" in str(wrong)
    assert "dx" in wrong._repr_html_()


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ((), TypeError, "give it your backward"),
        ((3,), TypeError, "give it your backward"),
        ((point,), ValueError, "do not tell the exercise"),
        ((exercise.find("linear").function("fwd"),), ValueError, "give it linear_bwd too"),
    ],
)
def test_what_is_no_work_is_refused_in_a_notebook(given, error, said):
    with pytest.raises(error, match=said):
        check(*given)
    with pytest.raises(ValueError, match="layer_nom"):
        check(softmax_bwd, exercise="layer_nom")


def test_a_factor_of_2_may_be_a_size_or_a_square():
    both = number_in_words(2.0, Case("dx", [], [], [], {"N": 2, "C": 3}, []))
    assert "N = 2" in both.text
    assert "square" in both.look
    assert "square" not in number_in_words(3.0, Case("dx", [], [], [], {"N": 2, "C": 3}, [])).look
    cubed = Case("dx", [], [], [], {"N": 4, "C": 3}, [], (3.0,))
    assert "the 3 that the forward has" in number_in_words(1 / 3, cubed).look
    assert "1/3 of" in number_in_words(1 / 3, cubed._replace(sizes={})).text
    assert "times 1.0000003," in number_in_words(1 + 3e-7, cubed).text
    assert "twice" in number_in_words(2.0, Case("dx", [], [], [], {"C": 3}, [])).text
