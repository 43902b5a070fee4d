"""What the table of laws does not ask of the losses of class labels: what is ignored, extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_leaves_close, run
from rows.labels import nll
from test_ops_losses import by_autodiff, by_hand

from jaxnn.op import plain_forms
from jaxnn.ops.cross_entropy import softmax_cross_entropy
from jaxnn.ops.linear import Linear
from jaxnn.ops.linear_cross_entropy import linear_cross_entropy
from jaxnn.ops.nll import nll_loss

pytestmark = pytest.mark.usefixtures("strict_dtypes")

Z = jnp.array([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]])
LABELS = jnp.array([2, 0])
ONE = jnp.float32(1.0)


@pytest.mark.parametrize("chunk", [None, 2])
def test_an_ignored_row_adds_nothing_whatever_is_in_it(chunk):
    x = jnp.concatenate([Z, jnp.full((1, 3), jnp.nan), Z])
    labels = jnp.array([2, -100, -100, -100, 0])
    params = Linear(jnp.eye(3), jnp.arange(3.0))
    static = {"ignore_index": -100, "label_smoothing": 0.1}

    def both(labels, kept):
        return (
            by_hand(linear_cross_entropy, (params, x, labels), ONE, chunk=chunk, **static),
            by_hand(softmax_cross_entropy, (x, labels), ONE, **static),
            by_hand(linear_cross_entropy, (params, x[::4], kept), ONE, chunk=chunk, **static),
            by_hand(softmax_cross_entropy, (x[::4], kept), ONE, **static),
        )

    for dtype in (jnp.int32, jnp.int8):
        linear, softmax, linear_kept, softmax_kept = run(
            both, labels.astype(dtype), jnp.array([2, 0])
        )
        assert_leaves_close(linear[0], linear_kept[0], 1e-6)
        assert_leaves_close(linear[1][0], linear_kept[1][0], 1e-6)
        for ours, (_, kept) in ((linear[1][1], linear_kept), (softmax[1][0], softmax_kept)):
            dx = kept[1] if len(kept) == 4 else kept[0]
            np.testing.assert_allclose(ours[::4], dx, rtol=1e-6)
            np.testing.assert_array_equal(ours[1:4], 0)


@pytest.mark.parametrize("op", [softmax_cross_entropy, nll_loss], ids=lambda op: op.name)
def test_the_mean_of_rows_that_are_all_ignored_or_weigh_nothing_is_zero(op):
    ignored = jnp.full(2, 7)
    for inputs, static in (
        ((Z, ignored), {"ignore_index": 7}),
        ((Z, ignored, jnp.ones(3)), {"ignore_index": 7}),
        ((Z, LABELS, jnp.zeros(3)), {}),
    ):
        loss, (dz, *_) = by_hand(op, inputs, ONE, **static)
        assert loss == 0
        assert not dz.any()
    assert op(Z, jnp.array([0, 7]), ignore_index=7) == op(Z[:1], jnp.array([0]))


def test_one_hot_targets_are_labels_and_a_single_row_needs_no_axis():
    hot = jax.nn.one_hot(LABELS, 3)
    weights = jnp.array([0.5, 2.0, 1.5])
    for static in ({"reduction": "none"}, {"reduction": "sum", "label_smoothing": 0.2}):
        soft = softmax_cross_entropy(Z, hot, weights, **static)
        np.testing.assert_allclose(soft, softmax_cross_entropy(Z, LABELS, weights, **static), 1e-6)
    for op in (softmax_cross_entropy, nll_loss):
        loss, (dz, *_) = by_hand(op, (Z[0], LABELS[0]), ONE)
        same, (dzs, *_) = by_hand(op, (Z[:1], LABELS[:1]), ONE)
        assert_leaves_close((loss, dz), (same, dzs[0]), 1e-6)
    np.testing.assert_allclose(
        softmax_cross_entropy(Z[0], hot[0]), softmax_cross_entropy(Z[:1], LABELS[:1]), rtol=1e-6
    )


@pytest.mark.parametrize("chunk", [1, 3])
def test_a_class_ruled_out_and_without_a_target_adds_nothing(chunk):
    """A bias of minus infinity hides the padding of a vocabulary."""
    z = jnp.array([[1.0, -jnp.inf, 2.0]])
    weights, targets = jnp.array([0.5, 2.0, 1.5]), jnp.array([[0.25, 0.0, 0.5]])
    params = Linear(jnp.eye(3)[:, :3], jnp.array([0.0, -jnp.inf, 0.0]))
    x = jnp.array([[1.0, 0.0, 2.0]])

    def all_ways(targets):
        return [
            f(softmax_cross_entropy, (z, given, weights), ONE)
            for given in (targets, jnp.array([2]))
            for f in (by_hand, by_autodiff)
        ], [by_hand(linear_cross_entropy, (params, x, jnp.array([2]), weights), ONE, chunk=chunk)]

    (soft, soft_auto, hard, hard_auto), (linear,) = run(all_ways, targets)
    kept = np.array([0, 2])
    truth = nll(np.asarray(z)[:, kept], np.asarray(targets)[:, kept], np.asarray(weights)[kept])
    np.testing.assert_allclose(soft[0], truth, rtol=1e-6)
    assert_leaves_close(soft, soft_auto, 1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((soft, hard, linear)))
    assert_leaves_close(hard[0], hard_auto[0], 1e-6)
    assert_leaves_close((linear[0], linear[1][3]), (hard[0], hard[1][2]), 1e-6, floor=1e-7)


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_huge_logits_with_targets_and_weights_stay_right(scale, x64):
    z = np.array([[scale, 0.0, -scale], [0.0, scale, scale]])
    targets, weights = np.array([[0.5, 0.5, 0.0], [0.25, 0.5, 0.5]]), np.array([0.5, 2.0, 1.5])
    truth = nll(z, targets, weights, reduction="none")
    wide = by_hand(softmax_cross_entropy, jax.tree.map(jnp.asarray, (z, targets, weights)), 1.0)
    narrow = by_hand(
        softmax_cross_entropy,
        jax.tree.map(lambda x: jnp.asarray(x, "float32"), (z, targets, weights)),
        ONE,
    )
    np.testing.assert_allclose(narrow[0], truth.mean(), rtol=1e-6)
    assert_leaves_close(narrow, wide, 1e-6)


def test_chunks_equal_the_plain_form_with_weights_and_ignored_rows(x64):
    rng = np.random.default_rng(0)
    params = Linear(*(jnp.asarray(rng.normal(size=s)) for s in ((2, 9), (9,))))
    x, weights = jnp.asarray(rng.normal(size=(7, 2))), jnp.asarray(rng.uniform(size=9))
    labels = jnp.asarray(rng.integers(0, 9, 7)).at[2].set(-1)
    for reduction in ("mean", "sum", "none"):
        dout = jnp.asarray(rng.normal(size=7 if reduction == "none" else ()))

        def both_forms(weights, dout, reduction=reduction):
            static = {"label_smoothing": 0.1, "z_loss": 0.1, "ignore_index": -1, "chunk": 4}
            static["reduction"] = reduction
            with plain_forms():
                plain = by_hand(linear_cross_entropy, (params, x, labels, weights), dout, **static)
            return by_hand(
                linear_cross_entropy, (params, x, labels, weights), dout, **static
            ), plain

        chunked, plain = run(both_forms, weights, dout)
        assert_leaves_close(chunked, plain, 1e-12)


HOT, WEIGHTS = jnp.zeros((2, 3)), jnp.ones(3)


@pytest.mark.parametrize(
    ("op", "inputs", "static", "error", "message"),
    [
        (softmax_cross_entropy, (Z, Z[:, 0]), {}, TypeError, r"shape \(2,\); .*integers.*\(2, 3\)"),
        (softmax_cross_entropy, (Z, HOT[:, :2]), {}, TypeError, r"shape \(2, 2\); .*target for"),
        (
            softmax_cross_entropy,
            (Z, HOT.astype("bfloat16")),
            {},
            TypeError,
            "labels bfloat16.*one",
        ),
        (softmax_cross_entropy, (Z, HOT), {"ignore_index": 0}, ValueError, "targets 0"),
        (softmax_cross_entropy, (Z, HOT > 0), {}, TypeError, "dtype bool.*integers"),
        (softmax_cross_entropy, (Z, LABELS, WEIGHTS[:2]), {}, ValueError, r"\(2,\).*each class"),
        (softmax_cross_entropy, (Z, LABELS, [1.0]), {}, TypeError, "class_weights is a list"),
        (softmax_cross_entropy, (Z, LABELS, LABELS), {}, ValueError, "class_weights has shape"),
        (softmax_cross_entropy, (Z, LABELS, jnp.arange(3)), {}, TypeError, "class_weights has dt"),
        (softmax_cross_entropy, (Z, LABELS), {"ignore_index": 0.5}, TypeError, "is 0.5.*or None"),
        (softmax_cross_entropy, (Z, LABELS), {"ignore_index": True}, TypeError, "is True"),
        (softmax_cross_entropy, (Z, LABELS - 1), {"ignore_index": 0}, ValueError, "out with 0"),
        (nll_loss, (Z, HOT), {}, TypeError, "labels has dtype float32.*integers"),
        (nll_loss, (Z, LABELS, WEIGHTS[:2]), {}, ValueError, "nll_loss: class_weights has shape"),
        (nll_loss, (Z, LABELS + 2), {}, ValueError, r"label 4 at index \(0,\)"),
        (nll_loss, (Z[:0], LABELS[:0]), {}, ValueError, "log_probabilities have shape.*a row"),
        (
            linear_cross_entropy,
            (Linear(Z.T), Z, LABELS * 0, WEIGHTS),
            {},
            ValueError,
            r"class_weights has shape \(3,\), beside logits \(2, 2\)",
        ),
        (linear_cross_entropy, (Linear(Z.T), Z, HOT), {}, TypeError, r"shape \(2, 3\); .*\(2, 2\)"),
    ],
)
def test_bad_inputs_are_named(op, inputs, static, error, message):
    with pytest.raises(error, match=message):
        op(*inputs, **static)


@pytest.mark.parametrize("chunk", [None, 2])
def test_an_ignored_row_adds_nothing_where_its_class_is_ruled_out(chunk):
    """A bias of -inf on the padding's class, which is ignored."""
    params = Linear(jnp.ones((2, 5)), jnp.zeros(5).at[0].set(-jnp.inf))
    inputs = params, jnp.ones((3, 2)), jnp.array([0, 1, 2]), jnp.ones(5)
    loss, (dparams, _, _, dweights) = by_hand(
        linear_cross_entropy, inputs, ONE, chunk=chunk, ignore_index=0
    )
    np.testing.assert_allclose(loss, np.log(4), rtol=1e-6)
    np.testing.assert_allclose(dparams.b, [0, -0.25, -0.25, 0.25, 0.25], rtol=1e-5)
    np.testing.assert_allclose(dweights, 0, atol=1e-6)
