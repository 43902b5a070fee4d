"""What a verification says it could not see, that it checks itself, and its options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import verify
from jaxnn.op import Op
from jaxnn.ops.activations import tanh
from jaxnn.verify import comparison, finite_differences

P = {"w": jax.random.normal(jax.random.key(0), (3, 4)), "b": jnp.arange(1.0, 5.0)}
X = jax.random.normal(jax.random.key(1), (6, 3))


def loss(p, x):
    return jnp.sin(x @ p["w"] + p["b"]).mean()


def manual(p, x):
    dz = jnp.cos(x @ p["w"] + p["b"]) / (len(x) * 4)
    return {"w": x.T @ dz, "b": dz.sum(0)}


def wrong(p, x):
    return manual(p, x) | {"b": manual(p, x)["b"].at[2].multiply(1.5)}


def test_the_smallest_error_it_would_catch_is_caught_and_one_far_below_is_not():
    report = verify.gradient(loss, manual, P, X)
    assert report
    for leaf in report.leaves:
        assert 1e-10 <= leaf.sees < 1e-9
    for times, status in ((3.0, "pass"), (0.01, "pass"), (-3.0, "fail")):
        scale, sees = report.leaves[0].scale, report.leaves[0].sees
        error = scale * sees * (abs(times) if times < 0 else 0.1 * times)

        def off(p, x, error=error):
            g = manual(p, x)
            return g | {"b": g["b"].at[1].add(error)}

        assert verify.gradient(loss, off, P, X).status == status


@pytest.mark.parametrize(
    ("name", "value", "survivors"),
    [
        ("RELATIVE_TOLERANCE", 3.0, "zero, doubled, sign"),
        ("RELATIVE_TOLERANCE", 1.0, "zero, doubled"),
        ("largest", lambda values: 0.0, "zero, doubled, sign"),
        ("plausible_rounding", lambda loss: 1.0, "zero, doubled, sign"),
    ],
)
def test_a_fault_planted_in_the_comparison_fails_the_verification(
    monkeypatch, name, value, survivors
):
    """A comparison that sees nothing, or too little, lets the replayed faults pass: it says so."""
    monkeypatch.setattr(comparison, name, value)
    report = verify.gradient(loss, manual, P, X)
    assert report.status == "fail"
    assert f"these faults pass it: {survivors}" in report.problems[0]


def test_what_the_inputs_cannot_show_is_said():
    def said(f, params, *args):
        return " | ".join(verify.gradient(f, jax.grad(f), params, *args).coverage)

    p = {"w": jnp.ones((3, 4)), "dead": jnp.zeros((4, 4))}
    x = jax.random.normal(jax.random.key(2), (4, 3))
    mask, labels = jnp.ones(4, bool), jnp.array([0, 1, 1, 0])

    def f(p, x, mask, labels):
        z = jnp.where(mask[:, None], x @ p["w"], 0.0) + (0 * p["dead"]).sum()
        return -jax.nn.log_softmax(z)[jnp.arange(4), labels].sum()

    text = said(f, p, x, mask, labels)
    assert "the gradient of ['dead'] is zero here" in text
    assert "is all" not in text  # a second point was looked at, where nothing is 0 or 1
    assert "the leading size 4 of x is a dimension of the parameters too" in text
    assert "mask is True everywhere" in text
    assert "of the values 0 to 2, 1 never occur in labels (2)" in text
    assert "holds one example" in said(lambda p, x: (x @ p["w"]).sum(), {"w": jnp.ones(3)}, x[:1])
    half = said(lambda p: jax.nn.relu(p["w"][:, :2]).sum(), {"w": jnp.full((3, 4), 2.0)})
    assert "zero in 2 of 4 slices along axis 1" in half
    assert verify.gradient(loss, manual, P, X).coverage == ()
    # At a wrong one no second point is looked at.
    wrong = verify.gradient(lambda p: (p**2).sum(), lambda p: 3 * p, jnp.ones(3))
    assert "p is all one: a factor of it that is left out would not show" in wrong.coverage


def test_an_op_shares_its_leading_axis_with_its_cotangent():
    x = jax.random.normal(jax.random.key(0), (3, 4))
    assert verify.op(tanh, x).coverage == ()
    (said,) = verify.op(tanh, x[:, :3]).coverage
    assert "the leading size 3 of dout is a dimension of the parameters too" in said

    def add_fwd(x, b):
        return x.sum(-1, keepdims=True) + b, (x, b)

    def add_bwd(residuals, dy):
        x, _ = residuals
        return jnp.broadcast_to(dy.sum(-1, keepdims=True), x.shape), dy.sum(0)

    (said,) = verify.op(Op(add_fwd, add_bwd, example=None), x, jnp.arange(1.0, 4)).coverage
    assert "the leading size 3 of dout" in said

    def both_bwd(residuals, dout):
        a, b = residuals
        return dout[0] * b, dout[0] * a

    both = Op(lambda a, b: ((a * b, a.sum() * 0), (a, b)), both_bwd, example=None)
    assert not any("leading size" in said for said in verify.op(both, x, x + 1).coverage)

    def scaled_bwd(residuals, dy):
        x, b = residuals
        return dy * b[:, None], (dy * x).sum(-1)

    scaled = Op(lambda x, b: (x * b[:, None], (x, b)), scaled_bwd, example=None)
    assert not any("leading" in said for said in verify.op(scaled, x, jnp.arange(1.0, 4)).coverage)


def test_a_skipped_leaf_is_not_judged_and_needs_a_reason():
    report = verify.gradient(loss, wrong, P, X, skip={"['b']": "frozen"})
    assert report.status == "pass"
    assert [leaf.status for leaf in report.leaves] == ["skipped", "pass"]
    assert "frozen" in str(report)
    with pytest.raises(ValueError, match=r"\['c'\]\", which is no floating leaf.*\['b'\], \['w'\]"):
        verify.gradient(loss, manual, P, X, skip={"['c']": "why"})
    with pytest.raises(ValueError, match="needs a reason"):
        verify.gradient(loss, manual, P, X, skip={"['b']": " "})
    with pytest.raises(TypeError, match="must map paths to reasons"):
        verify.gradient(loss, manual, P, X, skip=["['b']"])


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"seed": 1.5}, TypeError, "seed is 1.5; it must be an integer"),
        ({"seed": jax.random.key(0)}, TypeError, "give it by position"),
        ({"seed": -1}, ValueError, "0 or more"),
        ({"batch_laws": "mean"}, TypeError, "must be a verify.BatchLaws"),
    ],
)
def test_options_that_are_meant_for_the_functions_are_named(option, error, message):
    with pytest.raises(error, match=message):
        verify.gradient(loss, manual, P, X, **option)


def test_batch_laws_and_second_order_are_asked_for():
    laws = verify.BatchLaws(arguments=(0,), reduction="mean")

    def constant(p, x):
        dz = jnp.cos(x @ p["w"] + p["b"]) / (6 * 4)
        return {"w": x.T @ dz, "b": dz.sum(0)}

    assert verify.gradient(loss, manual, P, X, batch_laws=laws, second_order=True)
    assert verify.gradient(loss, constant, P, X)
    report = verify.gradient(loss, constant, P, X, batch_laws=laws)
    assert "is the batch size a constant" in " ".join(report.problems)

    def stopped(p, x):
        return manual(jax.lax.stop_gradient(p), x)

    assert verify.gradient(loss, stopped, P, X)
    report = verify.gradient(loss, stopped, P, X, second_order=True)
    assert "second order" in report.problems[0]


def test_another_way_to_run_is_reported_apart():
    def branches(p, x):
        g = manual(p, x)
        return g if isinstance(x, jax.core.Tracer) else g | {"b": 2 * g["b"]}

    report = verify.gradient(loss, branches, P, X)
    assert report.status == "pass"
    assert "run eagerly, it gives" in report.elsewhere[0]


def test_functions_that_do_not_take_float64_are_compared_as_they_were_given():
    def carried(p, x):
        def step(c, row):
            return c + jnp.tanh(row @ p["w"]).sum(), None

        return jax.lax.scan(step, jnp.float32(0), x)[0]

    def by_hand(p, x):
        return {"w": x.T @ (1 - jnp.tanh(x @ p["w"]) ** 2)}

    report = verify.gradient(carried, by_hand, {"w": P["w"]}, X)
    assert report.status in ("pass", "inconclusive")
    assert "do not take float64" in report.coverage[0]
    report = verify.gradient(carried, lambda p, x: {"w": 1.1 * by_hand(p, x)["w"]}, P, X)
    assert report.status == "fail"


def test_forward_mode_is_heard_through_rules_too():
    report = verify.gradient(loss, wrong, P, X)
    worst = next(leaf.worst for leaf in report.leaves if leaf.worst)
    np.testing.assert_allclose(worst.forward, worst.autodiff, rtol=1e-12)
    assert len(worst.ladder) == len(finite_differences.STEPS)

    @jax.custom_vjp
    def sine(x):
        return jnp.sin(x)

    sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, dy: (jnp.cos(x) * dy,))
    report = verify.gradient(lambda p: sine(p).sum(), lambda p: 2 * jnp.cos(p), jnp.ones(3))
    # The rule is replaced by the function, which has forward mode.
    np.testing.assert_allclose(report.leaves[0].worst.forward, np.cos(1), rtol=1e-12)
    assert report.leaves[0].diagnosis.cause == "factor"


def test_a_witness_that_sides_with_the_wrong_is_caught(monkeypatch):
    """Faults planted in the verifier: each must change what is said of a right or a wrong one."""
    monkeypatch.setattr(finite_differences.Slope, "agrees_with", lambda self, value: True)
    assert "too coarse" in str(verify.gradient(loss, wrong, P, X))
    monkeypatch.undo()
    monkeypatch.setattr(finite_differences.Slope, "agrees_with", lambda self, value: False)
    assert verify.gradient(loss, manual, P, X).status == "inconclusive"


def test_what_belongs_to_the_parameters_is_none_of_the_arguments():
    params = {"n": jnp.arange(4), "w": jnp.linspace(0.1, 0.9, 12).reshape(4, 3)}
    x = jnp.linspace(-1.0, 1.0, 20).reshape(5, 4)

    def by_hand(p, x):
        return {"n": None, "w": x.T @ jnp.cos(x @ p["w"])}

    report = verify.gradient(lambda p, x: jnp.sin(x @ p["w"]).sum(), by_hand, params, x)
    assert report
    assert not any("['n']" in line for line in report.coverage)
