"""The verifier: what it passes, what it catches, and what it says."""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_leaves_close

from jaxnn import verify
from jaxnn.models import mlp
from jaxnn.op import Op
from jaxnn.verify import trace, verdict
from jaxnn.verify.report import to_html, to_json


class Pair(NamedTuple):
    a: jax.Array
    b: jax.Array


PARAMS = {"w": jnp.array([[1.0, -2.0, 0.5], [0.3, 4.0, -1.0]]), "b": jnp.array([0.1, 0.2, -0.3])}
X = jnp.array([[1.0, 2.0], [-1.0, 0.5], [3.0, 1.0], [0.2, 0.1]])


def loss(p, x):
    return jnp.tanh(x @ p["w"] + p["b"]).sum(1).mean()


def manual(p, x):
    d = (1 - jnp.tanh(x @ p["w"] + p["b"]) ** 2) / len(x)
    return {"w": x.T @ d, "b": d.sum(0)}


def failing(report):
    return [leaf.path for leaf in report.leaves if leaf.status == "fail"]


def test_a_right_gradient_passes_with_finite_differences_agreeing():
    report = verify.gradient(loss, manual, PARAMS, X)
    assert report
    assert report.status == "pass"
    assert [leaf.path for leaf in report.leaves] == ["['b']", "['w']"]
    assert [leaf.directions for leaf in report.leaves] == [3, 6]
    assert not report.problems
    np.testing.assert_allclose(report.loss, loss(PARAMS, X), rtol=1e-6)
    assert verify.assert_gradient(loss, manual, PARAMS, X)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_narrow_parameters_are_lifted_so_their_rounding_raises_no_alarm(dtype):
    params, x = jax.tree.map(lambda v: v.astype(dtype), (PARAMS, X))
    report = verify.gradient(loss, manual, params, x)
    assert report, str(report)
    assert {leaf.dtype for leaf in report.leaves} == {dtype}


def change(path, f):
    def wrong(p, x):
        grads = manual(p, x)
        return grads | {path: f(grads[path])}

    return wrong


@pytest.mark.parametrize(
    ("path", "fault", "index", "wrong"),
    [
        ("w", lambda d: 2 * d, None, 6),
        ("w", lambda d: -d, None, 6),
        ("b", lambda d: d * 0, None, 3),
        ("b", lambda d: d / 4, None, 3),
        ("w", lambda d: d.at[1, 2].add(1e-8), (1, 2), 1),
        ("w", lambda d: d.at[0, 1].multiply(1.5), (0, 1), 1),
    ],
)
def test_a_fault_is_found_where_it_is(path, fault, index, wrong):
    report = verify.gradient(loss, change(path, fault), PARAMS, X)
    assert failing(report) == [f"['{path}']"]
    (leaf,) = [leaf for leaf in report.leaves if leaf.status == "fail"]
    assert leaf.wrong == wrong
    assert index in (None, leaf.worst.index)
    with jax.enable_x64(True):
        lifted, x = jax.tree.map(lambda v: jnp.asarray(np.asarray(v, np.float64)), (PARAMS, X))
        truth = jax.grad(loss)(lifted, x)[path][leaf.worst.index]
        planted = fault(manual(lifted, x)[path])[leaf.worst.index]
    np.testing.assert_allclose([leaf.worst.autodiff, leaf.worst.manual], [truth, planted])
    np.testing.assert_allclose(leaf.worst.slope, truth, rtol=1e-7)
    with pytest.raises(verify.GradientMismatch) as error:
        verify.assert_gradient(loss, change(path, fault), PARAMS, X)
    assert str(list(leaf.worst.index)) in str(error.value)
    assert error.value.report.status == "fail"


def test_finite_differences_name_the_side_that_is_wrong():
    def stopped(x):  # autodiff gives 2 x^2 for the derivative of x^3
        return jax.lax.stop_gradient(x / 3) * x**2 + jax.lax.stop_gradient(2 * x / 3) * x**2

    params = jnp.array([1.0, 2.0])
    wrong = verify.gradient(lambda p: (p**3).sum(), lambda p: 2 * p**2, params)
    both = verify.gradient(lambda p: stopped(p).sum(), lambda p: 5 * p**2, params)
    alike = verify.gradient(lambda p: stopped(p).sum(), lambda p: 2 * p**2, params)
    assert "side with autodiff: the hand-written gradient is wrong" in str(wrong)
    assert "confirm neither" in str(both)
    assert [r.status for r in (wrong, both, alike)] == ["fail", "fail", "pass"]
    assert "the loss holds a stop_gradient" in " ".join(alike.coverage)


def test_where_autodiff_has_a_convention_finite_differences_clear_the_right_value():
    """relu(x) - relu(-x) is x, but at 0 autodiff adds two slopes of 0."""

    def f(p):
        return (jax.nn.relu(p) - jax.nn.relu(-p)).sum()

    report = verify.gradient(f, jnp.ones_like, jnp.array([0.0, 1.0]))
    assert report.status == "pass"
    assert "side with the hand-written gradient: autodiff is wrong" in str(report)
    assert report.leaves[0].diagnosis is None
    other = verify.gradient(f, lambda p: jnp.where(p == 0, 1.1, 1.0), jnp.array([0.0, 1.0]))
    assert other.status == "fail"


def test_a_subgradient_at_a_kink_passes_and_a_value_outside_fails():
    params = jnp.array([0.0, 1.0, -2.0])

    def slope_at_zero(s):
        return lambda p: jnp.where(p == 0, s, (p > 0).astype(p.dtype))

    def f(p):
        return jax.nn.relu(p).sum()

    assert verify.gradient(f, slope_at_zero(0.0), params).status == "pass"
    half = verify.gradient(f, slope_at_zero(0.5), params)
    assert half.status == "pass"
    assert "1 entries lie at kinks" in str(half)
    outside = verify.gradient(f, slope_at_zero(1.5), params)
    assert outside.status == "fail"
    assert outside.leaves[0].worst.index == (0,)
    assert "no subgradient has this value" in str(outside)
    # A kink must not excuse the other entries.
    other = verify.gradient(f, lambda p: slope_at_zero(0.5)(p).at[1].set(1.1), params)
    assert other.status == "fail"


def test_zero_gradients_are_compared_to_rounding_not_to_nothing():
    """The true gradient is 0, and autodiff's is 1e-17: its own rounding must be allowed."""

    def f(p):
        return jax.nn.softmax(p).sum()

    params = jnp.array([0.3, 1.7, -0.9, 0.1])
    assert verify.gradient(f, jnp.zeros_like, params).status == "pass"
    assert verify.gradient(f, lambda p: jnp.full_like(p, 1e-9), params).status == "fail"


def test_structure_shape_and_dtype_come_first():
    cases = {
        "missing": (lambda p, x: {"w": manual(p, x)["w"]}, ["['b']"], "missing"),
        "missing and wrong": (
            lambda p, x: {"w": manual(p, x)["w"] * 2},
            ["['b']", "['w']"],
            "the hand-written gradient is wrong",
        ),
        "extra": (lambda p, x: manual(p, x) | {"c": jnp.zeros(2)}, [], "leaf ['c']"),
        "shape": (change("w", jnp.transpose), ["['w']"], "shape (3, 2), the parameter (2, 3)"),
        "dtype": (
            change("b", lambda d: d.astype(jnp.bfloat16)),
            ["['b']"],
            "dtype bfloat16, the parameter float32",
        ),
    }
    for name, (wrong, paths, message) in cases.items():
        report = verify.gradient(loss, wrong, PARAMS, X)
        assert report.status == "fail", name
        assert failing(report) == paths, name
        assert message in str(report), name


def test_usual_slips_of_structure_are_named():
    turned = verify.gradient(
        loss, lambda p, x: manual(p, x) | {"w": manual(p, x)["w"].T}, PARAMS, X
    )
    assert "transposed" in str(turned)
    assert "transposed" not in str(
        verify.gradient(loss, lambda p, x: manual(p, x) | {"w": jnp.ones(7)}, PARAMS, X)
    )
    narrow = verify.gradient(jnp.sum, lambda w: jnp.ones(3, jnp.bfloat16), jnp.ones(3))
    assert "dtype bfloat16" in str(narrow)
    assert "transposed" not in str(narrow)


def test_what_a_function_raises_says_which_it_was():
    def swapped(x, p):
        return {"w": x @ p["w"]}

    for role, functions in (
        ("loss", (swapped, manual)),
        ("hand-written gradient", (loss, swapped)),
    ):
        with pytest.raises(TypeError) as raised:
            verify.gradient(*functions, PARAMS, X)
        note = next(note for note in raised.value.__notes__ if note.startswith("raised by"))
        assert note.startswith(f"raised by the {role}, whose first argument, the parameters, is ['")
        assert "float" in note

    @jax.tree_util.register_pytree_node_class
    class OfArrays:
        def __init__(self, w):
            self.shape = w.shape

        def tree_flatten(self):
            return (jnp.zeros(self.shape),), None

        @classmethod
        def tree_unflatten(cls, _, leaves):
            return cls(*leaves)

    def raising(p):
        raise ValueError("theirs")

    with pytest.raises(ValueError, match="theirs"):
        verify.gradient(raising, lambda p: p, OfArrays(jnp.ones(3)))


def test_another_container_is_a_problem():
    params = Pair(jnp.ones(2), jnp.ones(3))
    report = verify.gradient(
        lambda p: (p.a**2).sum() + (p.b**2).sum(), lambda p: {"a": 2 * p.a, "b": 2 * p.b}, params
    )
    assert report.status == "fail"
    report = verify.gradient(
        lambda p: (p[0] ** 2).sum() + (p[1] ** 2).sum(),
        lambda p: [2 * p[0], 2 * p[1]],
        (jnp.ones(2), jnp.ones(3)),
    )
    assert "the hand-written gradient is a" in report.problems[0]


def test_values_that_are_not_finite_fail():
    nan = verify.gradient(loss, change("b", lambda d: d.at[1].set(jnp.nan)), PARAMS, X)
    assert failing(nan) == ["['b']"]
    assert "nan at (1,)" in str(nan)
    # NaN does not equal NaN: both sides are, here.
    both = verify.gradient(lambda p: jnp.sqrt(p).sum(), lambda p: 0.5 / jnp.sqrt(p), -jnp.ones(2))
    assert both.status == "fail"
    # exp(100) overflows float32, not float64: right formula, unusable in the dtype given.
    overflow = verify.gradient(
        lambda p: jnp.log1p(jnp.exp(-p)).sum(),
        lambda p: -jnp.exp(-p) / (1 + jnp.exp(-p)),
        jnp.array([1.0, -100.0]),
    )
    assert overflow.status == "fail"
    assert "not finite in float32: nan at (1,)" in str(overflow)


def test_a_loss_that_is_not_finite_fails_even_where_the_gradients_agree():
    config = mlp.Config(sizes=(3, 2))
    params = mlp.init_params(jax.random.key(0), config)
    batch = (jnp.ones((2, 3)), jnp.array([0, 5]))  # there is no class 5
    report = verify.gradient(mlp.loss, mlp.manual_grad, params, batch, config)
    assert report.status == "fail"
    assert "the loss is nan" in report.problems[0]


def test_finite_differences_that_cannot_see_say_so():
    report = verify.gradient(lambda p: 1e-14 * p.sum(), lambda p: 1e-14 + 0 * p, jnp.ones(2))
    assert report.status == "pass"
    kinked = verify.gradient(lambda p: jnp.abs(p).sum(), lambda p: 1 + 0 * p, jnp.zeros(2))
    saturated = verify.gradient(
        lambda p: jnp.log1p(jnp.exp(-p)).sum(), lambda p: -jax.nn.sigmoid(-p), 36 * jnp.ones(2)
    )
    for quiet in (kinked, saturated):
        assert quiet.status == "pass"
        assert "could not tell" in str(quiet)


def test_a_cast_that_defeats_the_lift_is_named():
    def f(p):
        return jnp.tanh(p.astype(jnp.float32)).sum().astype(p.dtype)

    def g(p):
        return (1 / jnp.cosh(p.astype(jnp.float32)) ** 2).astype(p.dtype)

    params = jnp.array([0.3, -1.2, 2.5])
    report = verify.gradient(f, g, params)
    assert report.status == "pass"
    assert "something inside computes in float32" in report.coverage[0]
    assert 1e-7 < report.leaves[0].sees < 1e-4
    assert verify.gradient(f, lambda p: 1.0001 * g(p), params).status == "fail"
    wrong = verify.gradient(f, lambda p: 1.1 * g(p), params)
    assert wrong.status == "fail"
    assert "side with autodiff" in str(wrong)


def test_a_narrow_constant_is_not_narrow_arithmetic():
    """Data closed over in float32 stays float32, but all arithmetic with it is in float64."""
    data = jax.random.normal(jax.random.key(0), (6, 3))
    stop = jax.lax.stop_gradient

    def f(p):
        return jnp.tanh(data @ p).mean() + 1e-4 * (stop(p) * p).sum()

    def g(p):
        return data.T @ (1 - jnp.tanh(data @ p) ** 2) / len(data) + 1e-4 * p

    report = verify.gradient(f, g, 0.3 * jnp.ones(3))
    assert report.status == "pass"
    assert report.leaves[0].sees < 1e-9
    assert "stop_gradient" in str(report)


def test_what_rounding_may_explain_is_left_in_doubt_not_failed():
    logits, labels = jnp.array([[30.0, 0.0, 0.0], [0.0, 30.0, 1.0]]), jnp.array([0, 1])

    def of_labels(z):
        return -jax.nn.log_softmax(z)[jnp.arange(2), labels].mean()

    def more_exactly(z):  # p - 1 as less the sum of the others: autodiff has lost its last digits
        q = jax.nn.one_hot(labels, 3)
        others = (1 - q) * jax.nn.softmax(z)
        return (others - q * others.sum(1, keepdims=True)) / 2

    report = verify.gradient(of_labels, more_exactly, logits)
    assert report.status == "inconclusive"
    assert "may be rounding" in str(report)
    # A difference that finite differences can judge is not excused, wherever rounding is large.
    t = np.linspace(1.7e9, 1.7001e9, 50)
    params = {"A": jnp.array([1.5, -0.3]), "w": jnp.array([0.7, 1.9])}

    def f(p, t):
        return (p["A"][:, None] * jnp.sin(p["w"][:, None] * t)).mean()

    def g(p, t):
        angle = p["w"][:, None] * t
        dw = (p["A"][:, None] * jnp.cos(angle) * t).sum(1) / angle.size
        return {"A": jnp.sin(angle).sum(1) / angle.size + 3e-6, "w": dw}

    assert failing(verify.gradient(f, g, params, t)) == ["['A']"]


def test_autodiff_that_is_not_finite_does_not_fail_a_right_gradient():
    def f(p):
        return jnp.where(p > 1, jnp.sqrt(p - 1), 0.0).sum()

    def g(p):
        return jnp.where(p > 1, 0.5 / jnp.sqrt(jnp.where(p > 1, p - 1, 1)), 0.0)

    report = verify.gradient(f, g, jnp.array([0.0, 3.0]))
    assert report.status == "pass"
    assert "finite differences confirm the hand-written values" in report.leaves[0].messages[0]
    infinite = verify.gradient(
        lambda p: jnp.sqrt(p).sum(), lambda p: 2 + 0 * p, jnp.array([0.0, 1])
    )
    assert infinite.status == "fail"
    assert verify.gradient(f, lambda p: g(p) + 1, jnp.array([0.0, 3.0])).status == "fail"


def test_many_kinks_and_no_kink():
    def slope(p, at_zero=0.3):
        return jnp.where(p == 0, at_zero, jnp.sign(p))

    many = verify.gradient(lambda p: jnp.abs(p).sum(), slope, jnp.zeros(70))
    assert many.status == "pass"
    assert "70 entries lie at kinks" in str(many)
    # However many there are, each is looked at.
    least = jnp.full(70, 0.3).at[33].set(-1.01)
    hidden = verify.gradient(lambda p: jnp.abs(p).sum(), lambda p: slope(p, least), jnp.zeros(70))
    assert hidden.status == "fail"
    assert hidden.leaves[0].worst.index == (33,)
    curved = verify.gradient(lambda p: (1e4 * p**2).sum(), lambda p: 2e4 * p, jnp.array([0.0, 1.0]))
    assert curved.status == "pass"
    assert curved.leaves[0].kinks == 0


def test_callbacks_are_not_mistaken_for_each_other():
    def scaled(factor):
        def g(p):
            shape = jax.ShapeDtypeStruct(p.shape, p.dtype)
            return jax.pure_callback(lambda x: np.asarray(x) * factor, shape, p)

        return g

    assert verify.gradient(lambda p: (p**2).sum(), scaled(2.0), jnp.ones(3))
    assert not verify.gradient(lambda p: (p**2).sum(), scaled(3.0), jnp.ones(3))


def test_numpy_parameters_and_scalars():
    report = verify.gradient(
        lambda p, n: (p**n).sum(), lambda p, n: int(n) * p ** (n - 1), np.ones(3), np.int64(2)
    )
    assert report, str(report)


def test_a_rule_that_is_not_linear_in_its_cotangent_fails():
    wrong = Op(
        lambda x: ((x * x).sum(), x),
        lambda x, dy: (2 * x * abs(dy),),
        example=lambda key: (jnp.ones(3),),
    )
    assert verify.op(wrong).status == "fail"


def test_integers_keys_statics_and_keywords_pass_through():
    params = {"w": jnp.arange(3.0), "n": jnp.array([2, 3])}

    def f(p, key, power, *, scale):
        noise = jax.random.normal(key, (3,), p["w"].dtype)
        return scale * (p["n"].sum() * p["w"] ** power * noise).sum()

    def g(p, key, power, *, scale):
        noise = jax.random.normal(key, (3,), p["w"].dtype)
        return {"w": scale * p["n"].sum() * power * p["w"] ** (power - 1) * noise, "n": None}

    assert verify.gradient(f, g, params, jax.random.key(0), 2, scale=jnp.array(0.5))


def test_odd_leaves():
    params = {"scalar": jnp.array(2.0), "empty": jnp.zeros((0, 3)), "unused": jnp.ones(2)}
    report = verify.gradient(
        lambda p: p["scalar"] ** 2 + p["empty"].sum(),
        lambda p: {
            "scalar": 2 * p["scalar"],
            "empty": jnp.ones_like(p["empty"]),
            "unused": jnp.zeros(2, p["unused"].dtype),
        },
        params,
    )
    assert report, str(report)
    assert verify.gradient(lambda p: p * p, lambda p: 2 * p, 3.0)


def test_a_helper_redefined_since_is_seen():
    """As in a notebook: same functions, another meaning of what they call."""
    factor = {"value": 2.0}

    def f(p):
        return (p**2).sum()

    def g(p):
        return factor["value"] * p

    params = jnp.ones(3)
    assert verify.gradient(f, g, params)
    factor["value"] = 3.0
    assert not verify.gradient(f, g, params)
    factor["value"] = jnp.array([2.0, 2.0, 2.0])
    assert verify.gradient(f, g, params)
    factor["value"] = jnp.array([2.0, 2.0, 3.0])
    assert not verify.gradient(f, g, params)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((lambda p: p, lambda p: p, jnp.ones(3)), ValueError, r"float32\[3\].*one floating scalar"),
        ((lambda p: (p.sum(), 1.0), lambda p: p, jnp.ones(3)), ValueError, "auxiliary"),
        ((loss, lambda p: p, PARAMS, X), TypeError, r"manual_grad\(p\) cannot take 2"),
        ((lambda p: p, manual, PARAMS, X), TypeError, r"loss\(p\) cannot take 2"),
        ((loss, None, PARAMS, X), TypeError, "manual_grad is None"),
        ((loss, lambda p, x: None, PARAMS, X), TypeError, "manual_grad returns None; .* `return`"),
        ((loss, manual, {"n": jnp.arange(3)}, X), ValueError, r"no floating leaf \(\['n'\]: int32"),
        ((loss, manual, {}, X), ValueError, "no leaf at all"),
        ((loss, manual, {"w": "weights"}, X), ValueError, r"no floating leaf \(\['w'\]: str"),
        ((lambda p: np.sin(p).sum(), jnp.cos, jnp.ones(3)), TypeError, "NumPy .*write it with jax"),
        ((loss, manual, jnp.ones(2, complex), X), TypeError, "complex64.*two leaves"),
    ],
)
def test_bad_calls_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        verify.gradient(*arguments)


def test_model_checks_the_value_too(monkeypatch):
    config = mlp.Config(sizes=(3, 4, 2))
    assert verify.model(mlp, config)
    right = mlp.manual_value_and_grad
    monkeypatch.setattr(mlp, "manual_value_and_grad", lambda *a: (2 * right(*a)[0], right(*a)[1]))
    report = verify.model(mlp, config)
    assert "manual_value_and_grad returns the loss" in report.problems[0]
    monkeypatch.setattr(
        mlp,
        "manual_value_and_grad",
        lambda *a: (right(*a)[0], jax.tree.map(lambda d: 2 * d, right(*a)[1])),
    )
    monkeypatch.setattr(mlp, "manual_grad", lambda *a: right(*a)[1])
    report = verify.model(mlp, config)
    assert "manual_value_and_grad and manual_grad differ at layers[0].w" in report.problems
    with pytest.raises(TypeError, match="lacks Config, init_params"):
        verify.model(np)


def test_an_op_needs_an_example_or_inputs():
    double = Op(lambda x: (2 * x, None), lambda _, dy: (2 * dy,), example=None)
    with pytest.raises(TypeError, match=r"example of op <lambda> is None; .* give the inputs"):
        verify.op(double)
    assert verify.op(double, jnp.ones(3))
    with pytest.raises(TypeError, match=r"op is <.*tanh.*; it must be a jaxnn.op.Op: bind"):
        verify.op(jnp.tanh)


def test_op_takes_inputs_and_settings_of_ones_own():
    from jaxnn.ops.softmax import softmax

    report = verify.op(softmax, jnp.ones((2, 4)), axis=0)
    assert report
    assert report.name == "op softmax, axis=0"
    assert report.leaves[0].shape == (2, 4)


def test_numerical_gradient_of_any_pytree():
    params = {"a": jnp.array([0.5, 2.0]), "b": (1.5, np.array([[3.0]], np.float32))}

    def f(p):
        return jnp.sin(p["a"]).sum() * p["b"][0] + p["b"][1][0, 0] ** 3

    numerical = verify.numerical_gradient(f, params)
    exact = {
        "a": 1.5 * np.cos([0.5, 2.0]),
        "b": (np.sin(0.5) + np.sin(2.0), np.array([[27.0]])),
    }
    assert jax.tree.structure(numerical) == jax.tree.structure(exact)
    assert_leaves_close(numerical, exact, 1e-9)
    assert jax.tree.leaves(numerical)[0].dtype == np.float64
    coarse = verify.numerical_gradient(f, params, step=0.1)
    error = coarse["b"][1] - 27.0
    np.testing.assert_allclose(error, 0.01, rtol=1e-6)  # h^2 f'''/6 of a cube is h^2


@pytest.mark.parametrize(
    ("f", "params", "step", "error", "message"),
    [
        (jnp.sum, jnp.ones(2), 0.0, ValueError, "step is 0.0"),
        (jnp.sum, jnp.arange(2), 1e-5, TypeError, "params has dtype int32"),
        (jnp.sin, jnp.ones(2), 1e-5, ValueError, r"float64\[2\]"),
        (jnp.sum, jnp.zeros(0), 1e-5, ValueError, "no number"),
    ],
)
def test_numerical_gradient_refuses(f, params, step, error, message):
    with pytest.raises(error, match=message):
        verify.numerical_gradient(f, params, step=step)


def test_reports_hold_what_json_and_html_cannot():
    report = verify.gradient(
        lambda p: jnp.sqrt(p["<b>"]).sum(), lambda p: {"<b>": p["<b>"]}, {"<b>": -jnp.ones(2)}
    )
    assert json.loads(to_json([report]))["reports"][0]["loss"] == "nan"
    page = to_html([report])
    assert "&lt;b&gt;" in page
    assert "<b>" not in page


def test_what_is_too_long_to_compile_is_judged_alike(monkeypatch, undiagnosed):
    """Operation by operation, leaves in groups: the same verdicts as compiled, one by one."""
    monkeypatch.setattr(trace, "MOST_COMPILED", 0)
    monkeypatch.setattr(verdict, "MOST_WITNESSED", 1)
    right = verify.gradient(loss, manual, PARAMS, X)
    assert right.status == "pass"
    assert "run one by one" in right.coverage[-1]
    wrong = verify.gradient(loss, change("b", lambda d: 1.01 * d), PARAMS, X)
    assert failing(wrong) == ["['b']"]
