"""What the table of laws does not ask of losses of probabilities and of weighted hinges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_leaves_close, run
from test_ops_losses import by_autodiff, by_hand

from jaxnn.ops.binary_cross_entropy import binary_cross_entropy, sigmoid_binary_cross_entropy
from jaxnn.ops.hinge import multiclass_hinge
from jaxnn.ops.kl_divergence import kl_divergence
from jaxnn.ops.losses import huber, mean_absolute_error

pytestmark = pytest.mark.usefixtures("strict_dtypes")

ONE = jnp.float32(1.0)
Z, T = jnp.zeros((2, 3)), jnp.full((2, 3), 0.5)
WEIGHTS = jnp.ones(3)


def test_a_certain_mistake_costs_a_hundred_and_has_no_slope():
    """PyTorch's logarithm stops there, too; its slope is 1e12."""
    p, t = jnp.array([0.0, 1.0, 0.0, 1.0, 0.5]), jnp.array([1.0, 0.0, 0.0, 1.0, 1.0])
    for f in (by_hand, by_autodiff):
        loss, (dp, dt, *_) = f(binary_cross_entropy, (p, t), jnp.ones(5), reduction="none")
        np.testing.assert_allclose(loss, [100, 100, 0, 0, np.log(2)], rtol=1e-6)
        np.testing.assert_allclose(dp, [0, 0, 1, -1, -2])
        np.testing.assert_allclose(dt, [100, -100, 100, -100, 0], atol=1e-6)


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_a_probability_out_of_range_is_an_error_or_nan(p):
    with pytest.raises(ValueError, match=r"probabilities\[1\] is .*\(1 such.*\[0, 1\], the"):
        binary_cross_entropy(jnp.array([0.5, p]), jnp.ones(2))
    loss = run(
        lambda p: by_hand(binary_cross_entropy, (p, jnp.ones(2)), jnp.ones(2), reduction="none")[0],
        jnp.array([0.5, p]),
    )
    np.testing.assert_array_equal(np.isnan(loss), [False, True])


def test_weights_of_elements_broadcast_and_a_weight_of_yes_counts_yes_alone():
    z, t = (
        jnp.array([[30.0, -30.0, 1e4], [0.0, -1e4, 2.0]]),
        jnp.array([[0.0, 1.0, 0.0], [1, 1, 0]]),
    )
    plain = sigmoid_binary_cross_entropy(z, t, reduction="none")
    rows = jnp.array([[2.0], [0.0]])
    weighted = sigmoid_binary_cross_entropy(z, t, rows, reduction="none")
    np.testing.assert_allclose(weighted, plain * rows)
    costly = sigmoid_binary_cross_entropy(z, t, None, jnp.array(3.0), reduction="none")
    np.testing.assert_allclose(costly, jnp.where(t == 1, 3 * plain, plain), rtol=1e-6)
    _, cotangents = by_hand(sigmoid_binary_cross_entropy, (z, t, rows, jnp.array(3.0)), ONE)
    assert [d.shape for d in cotangents] == [(2, 3), (2, 3), (2, 1), ()]
    assert all(np.isfinite(d).all() for d in cotangents)
    _, auto = by_autodiff(sigmoid_binary_cross_entropy, (z, t, rows, jnp.array(3.0)), ONE)
    assert_leaves_close(cotangents, auto, 1e-6)


@pytest.mark.parametrize("per", ["distribution", "element"])
def test_a_negative_target_gives_nan_and_one_of_zero_nothing(per):
    log_q = jnp.log(jnp.array([[0.5, 0.5], [0.2, 0.8]])).at[1, 0].set(-jnp.inf)
    t = jnp.array([[-0.1, 1.1], [0.0, 1.0]])
    dout = jnp.ones(2) if per == "distribution" else jnp.ones((2, 2))
    for f in (by_hand, by_autodiff):
        loss, (dlog_q, dt) = f(kl_divergence, (log_q, t), dout, per=per, reduction="none")
        np.testing.assert_array_equal(np.isnan(loss).reshape(2, -1).any(1), [True, False])
        np.testing.assert_allclose(dlog_q, -t, rtol=1e-6)
        np.testing.assert_array_equal(np.isnan(dt), t < 0)
        assert dt[1, 0] == 0


def test_a_log_target_of_minus_infinity_is_a_target_of_zero():
    log_q = jnp.log(jnp.array([[0.5, 0.5], [0.2, 0.8]]))
    log_t = jnp.array([[-jnp.inf, 0.0], [jnp.log(0.3), jnp.log(0.7)]])
    loss, (dlog_q, dlog_t) = by_hand(kl_divergence, (log_q, log_t), ONE, log_targets=True)
    plain, (dplain, _) = by_hand(kl_divergence, (log_q, jnp.exp(log_t)), ONE)
    assert_leaves_close((loss, dlog_q), (plain, dplain), 1e-6)
    assert np.isfinite(dlog_t).all()
    assert dlog_t[0, 0] == 0


def test_a_single_number_has_a_divergence_per_element():
    value = kl_divergence(jnp.log(jnp.array(0.5)), jnp.array(1.0), per="element")
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)


def test_equal_values_have_no_absolute_slope_and_smooth_l1_is_hubers():
    p, t = jnp.array([1.0, 2.0, -3.0]), jnp.array([1.0, 0.0, 0.0])
    loss, (dp, dt) = by_hand(mean_absolute_error, (p, t), ONE, reduction="sum")
    assert loss == 5
    np.testing.assert_array_equal(dp, [0, 1, -1])
    np.testing.assert_array_equal(dt, [0, -1, 1])
    smooth = huber(p, t, delta=0.5, reduction="sum") / 0.5
    np.testing.assert_allclose(smooth, np.sum([0, 2 - 0.25, 3 - 0.25]), rtol=1e-6)


def test_a_label_out_of_range_makes_the_gradient_of_hinges_weights_nan():
    def gradient(labels):
        inputs = Z, labels, WEIGHTS
        return by_hand(multiclass_hinge, inputs, jnp.ones(2), p=2, reduction="none")

    loss, (dz, _, dw) = run(gradient, jnp.array([1, 3]))
    np.testing.assert_array_equal(np.isnan(loss), [False, True])
    np.testing.assert_array_equal(np.isnan(dz).all(-1), [False, True])
    assert np.isnan(dw).any()


LABELS = jnp.array([0, 2])


@pytest.mark.parametrize(
    ("op", "inputs", "static", "error", "message"),
    [
        (sigmoid_binary_cross_entropy, (Z, T, WEIGHTS[:2]), {}, ValueError, r"weights has shape"),
        (sigmoid_binary_cross_entropy, (Z, T, Z[None]), {}, ValueError, r"broadcast to \(2, 3\)"),
        (sigmoid_binary_cross_entropy, (Z, T, None, [1.0]), {}, TypeError, "pos_weight is a list"),
        (sigmoid_binary_cross_entropy, (Z, T, Z > 0), {}, TypeError, "weights has dtype bool"),
        (sigmoid_binary_cross_entropy, (Z, T[:1]), {}, ValueError, r"logits have shape \(2, 3\)"),
        (binary_cross_entropy, (T, T, WEIGHTS.astype("float16")), {}, TypeError, "float16; they"),
        (binary_cross_entropy, (T, T), {"reduction": "all"}, ValueError, "reduction is 'all'"),
        (binary_cross_entropy, (Z[:0], T[:0]), {}, ValueError, "non-empty batch"),
        (kl_divergence, (Z, T), {"per": "row"}, ValueError, "'row'.*'distribution', 'element'"),
        (kl_divergence, (Z, T), {"log_targets": "yes"}, TypeError, "log_targets is 'yes'"),
        (kl_divergence, (Z, LABELS), {}, ValueError, r"targets \(2,\); they must be equal"),
        (kl_divergence, (Z, Z.astype(int)), {"log_targets": True}, TypeError, "targets has dtype"),
        (kl_divergence, (Z[0, 0], T[0, 0]), {}, ValueError, "per='element'"),
        (multiclass_hinge, (Z, LABELS), {"p": 3}, ValueError, "p is 3; it must be 1 or 2"),
        (multiclass_hinge, (Z, LABELS), {"p": None}, TypeError, "p is None"),
        (multiclass_hinge, (Z, LABELS, WEIGHTS[:2]), {}, ValueError, "class_weights has shape"),
        (mean_absolute_error, (Z, T.astype("float16")), {}, TypeError, "targets float16"),
        (mean_absolute_error, (Z, T[:1]), {}, ValueError, "mean_absolute_error: predictions have"),
    ],
)
def test_bad_inputs_are_named(op, inputs, static, error, message):
    with pytest.raises(error, match=message):
        op(*inputs, **static)


def test_numpys_arrays_are_taken():
    z, t = (np.asarray(x) for x in (Z, T))
    assert sigmoid_binary_cross_entropy(z, t, np.float32([[2.0]])) == 2 * np.log(2).astype(
        "float32"
    )
    jax.grad(lambda w: sigmoid_binary_cross_entropy(z, t, w))(WEIGHTS)


def test_of_no_classes_the_divergence_and_its_gradient_are_empty_sums():
    def loss(log_q):
        return kl_divergence(log_q, jnp.ones((2, 0)), reduction="sum")

    value, grad = jax.value_and_grad(loss)(jnp.ones((2, 0)))
    assert value == 0
    assert grad.shape == (2, 0)


def test_a_difference_beyond_16_bits_has_a_mean_within_them():
    predictions, targets = jnp.array([6e4, 1], jnp.float16), jnp.array([-6e4, 0], jnp.float16)
    assert mean_absolute_error(predictions, targets) == jnp.float16(60000.5)
