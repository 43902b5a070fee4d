"""`verify.op`: which settings it verifies, what it makes of None, and how it refuses an example."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import verify
from jaxnn.op import Op
from jaxnn.verify.findings import LeafReport
from jaxnn.verify.ops import combine
from jaxnn.verify.report import Report

pytestmark = pytest.mark.usefixtures("undiagnosed")


def one(key):
    return (jax.random.normal(key, (3,)),)


def scale_fwd(x, *, gain=1.0):
    return gain * x, ()


def deaf_bwd(_, dy, *, gain=1.0):
    return (dy,)


def scale_bwd(_, dy, *, gain=1.0):
    return (gain * dy,)


def test_without_settings_every_one_listed_is_verified():
    scale = Op(scale_fwd, deaf_bwd, example=one, settings=({}, {"gain": 2.0}))
    report = verify.op(scale)
    assert report.name == "op scale"
    assert [(leaf.path.partition(" ")[2], leaf.status) for leaf in report.leaves] == [
        ("(default settings)", "pass"),
        ("(gain=2.0)", "fail"),
    ]
    assert report.loss is None
    (only,) = verify.op(scale, gain=1.0).leaves  # of settings given, these alone
    assert only.status == "pass"
    alone = verify.op(Op(scale_fwd, deaf_bwd, example=one, settings=({"gain": 2.0},)))
    assert alone.status == "fail"
    assert alone.name == "op scale, gain=2.0"


def test_what_all_settings_say_is_said_once():
    scale = Op(scale_fwd, scale_bwd, one, ({"gain": 3.0}, {"gain": 2.0}))
    leaf = LeafReport("x", (3,), "float32", "pass")
    first = Report("", 1.0, (leaf,), (), 1.0, "a", ("b", "c"), ("r",), ("d",))
    second = Report("", 2.0, (leaf,), ("e",), 0.5, "", ("c",), ("r",), ())
    both = combine(scale, {"gain=3.0": first, "": second})
    assert both == Report(
        "op scale",
        None,
        (replace(leaf, path="x (gain=3.0)"), replace(leaf, path="x (default settings)")),
        ("default settings: e",),
        1.5,
        chain="gain=3.0: a",
        coverage=("c", "gain=3.0: b"),
        rules=("r",),
        elsewhere=("gain=3.0: d",),
    )
    assert combine(scale, {"gain=3.0": first}) is first


def test_a_backward_in_numpy_is_run_as_it_is_and_the_report_says_where_it_raises():
    def fwd(x):
        return x * x, x

    report = verify.op(Op(fwd, lambda x, dy: (2 * np.asarray(x) * dy,), one))
    assert report
    for said, way in zip(report.elsewhere[-2:], ("lax.scan", "jax.checkpoint"), strict=True):
        assert way in said
        assert "bwd of op fwd hands a traced array to NumPy" in said


def test_a_setting_that_is_never_changed_from_a_neutral_default_is_named():
    (said,) = verify.op(Op(scale_fwd, deaf_bwd, example=one)).coverage
    assert said.startswith("the setting gain is at its default 1.0: ")
    assert not verify.op(Op(scale_fwd, scale_bwd, one, ({}, {"gain": 2.0}))).coverage
    assert not verify.op(Op(scale_fwd, scale_bwd, one), gain=3.0).coverage


@pytest.mark.parametrize("settings", [(), {"gain": 2.0}, ("gain",), None])
def test_settings_that_are_no_tuple_of_dictionaries_are_refused(settings):
    with pytest.raises(TypeError, match=r"settings of op scale is .*a tuple of dictionaries"):
        verify.op(Op(scale_fwd, scale_bwd, one, settings))


def test_a_setting_or_an_input_by_name():
    with pytest.raises(TypeError, match="fwd of op scale takes no setting gian"):
        verify.op(Op(scale_fwd, scale_bwd, one), gian=2.0)
    with pytest.raises(TypeError, match="bwd of op scale takes no setting gain"):
        verify.op(Op(scale_fwd, lambda _, dy: (dy,), one), gain=2.0)
    assert verify.op(Op(scale_fwd, scale_bwd, None), x=jnp.ones(2), gain=2.0)


def raising(key):
    raise KeyError("weights")


@pytest.mark.parametrize(
    ("example", "error", "words"),
    [
        (None, TypeError, "is None; it must be a function of a key"),
        (lambda: (jnp.ones(3),), TypeError, "cannot be called with a key"),
        (lambda key: jnp.ones(3), TypeError, "returns an array; .* as a tuple"),
        (lambda key: [jnp.ones(3)], TypeError, r"returns \[.*; .* as a tuple"),
        (lambda key: (), TypeError, r"returns \(\); .* as a tuple"),
        (raising, ValueError, "raised KeyError: 'weights'; it must be a function of a key"),
    ],
)
def test_an_example_that_gives_no_inputs(example, error, words):
    with pytest.raises(error, match=f"(?s)^example of op scale {words}"):
        verify.op(Op(scale_fwd, scale_bwd, example))


@pytest.mark.parametrize(("used", "status"), [(0.0, "pass"), (1.0, "fail")])
def test_none_for_a_floating_input_is_zero_and_judged_as_that(used, status):
    bounded = Op(
        lambda bound, x: (x + used * bound, bound),
        lambda bound, dy: (None, dy),
        example=lambda key: (jnp.float32(0.5), jax.random.normal(key, (5,))),
    )
    report = verify.op(bounded)
    assert report.status == status
    assert not any(leaf.messages for leaf in report.leaves)


def test_float0_for_an_integer_input_passes_without_a_word():
    def bwd(residuals, dout):
        table, index = residuals
        none = np.zeros(index.shape, jax.dtypes.float0)
        return jnp.zeros_like(table).at[index].add(dout), none

    rows = Op(
        lambda table, index: (table[index], (table, index)),
        bwd,
        example=lambda key: (jax.random.normal(key, (4, 3)), jnp.array([0, 2, 2])),
    )
    report = verify.op(rows)
    assert report
    assert report.elsewhere == ()


def test_a_cotangent_of_another_structure_fails_and_is_no_crash():
    wrong = Op(
        lambda p: (p["a"] * 2, ()),
        lambda _, dy: ({"b": 2 * dy},),
        example=lambda key: ({"a": jnp.ones(3)},),
    )
    assert verify.op(wrong).status == "fail"


def test_a_cotangent_is_not_what_somebody_s_inputs_are():
    """x and dy alike, x^T dy is symmetric, and its transpose is right."""

    def fwd(x, w):
        return x @ w, (x, w)

    def bwd(saved, dy):
        x, w = saved
        return dy @ w.T, dy.T @ x

    x, w = np.random.default_rng(0).normal(size=(2, 4, 4)).astype(np.float32)
    report = verify.op(Op(fwd, bwd), x, w)
    assert [leaf.path for leaf in report.leaves if leaf.wrong] == ["w"]
    assert "right at the point given" not in str(report)
