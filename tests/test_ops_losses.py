"""What the table of laws does not ask of the losses, the weighted mean and the embedding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_leaves_close, run
from rows.labels import nll
from test_ops import without_integers

from jaxnn.numerics import REDUCTIONS
from jaxnn.op import plain_forms
from jaxnn.ops import losses
from jaxnn.ops.binary_cross_entropy import binary_cross_entropy, sigmoid_binary_cross_entropy
from jaxnn.ops.cross_entropy import softmax_cross_entropy
from jaxnn.ops.fast import linear_cross_entropy as fast
from jaxnn.ops.hinge import multiclass_hinge
from jaxnn.ops.kl_divergence import kl_divergence
from jaxnn.ops.linear import Embedding, Linear, embedding, linear, unembed
from jaxnn.ops.linear_cross_entropy import linear_cross_entropy
from jaxnn.ops.weighted_mean import weighted_mean

pytestmark = pytest.mark.usefixtures("strict_dtypes")

PAIRED = (
    losses.mean_squared_error,
    losses.mean_absolute_error,
    losses.huber,
    binary_cross_entropy,
    sigmoid_binary_cross_entropy,
    kl_divergence,
)
LABELLED = (softmax_cross_entropy, multiclass_hinge)
ALL = (*PAIRED, *LABELLED, linear_cross_entropy)


def unweighted(op, inputs):
    """Inputs without weights, of which the mean is not that of the losses."""
    return inputs[: 3 if op is linear_cross_entropy else 2]


def by_hand(op, inputs, dout, **static):
    out, residuals = op.fwd(*inputs, **static)
    return out, op.bwd(residuals, dout, **static)


def by_autodiff(op, inputs, dout, **static):
    out, pull = jax.vjp(lambda *x: op.fwd(*x, **static)[0], *inputs)
    return out, without_integers(pull(dout))


@pytest.mark.parametrize("op", ALL, ids=lambda op: op.name)
def test_every_reduction_of_every_loss_is_right_under_any_cotangent(op, x64):
    inputs = unweighted(op, op.example(jax.random.key(3)))
    inputs = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, inputs)
    each = op.fwd(*inputs, reduction="none")[0]
    weights = jax.random.normal(jax.random.key(4), each.shape, each.dtype)

    def all_ways(inputs, weights):
        cotangents = {"mean": weights.sum(), "sum": weights.sum(), "none": weights}
        return {
            name: [f(op, inputs, dout, reduction=name) for f in (by_hand, by_autodiff)]
            for name, dout in cotangents.items()
        }

    results = run(all_ways, inputs, weights)
    for hand, auto in results.values():
        assert_leaves_close(hand, auto, 1e-12, floor=1e-15)
    np.testing.assert_allclose(results["mean"][0][0], each.mean(), rtol=1e-12)
    np.testing.assert_allclose(results["sum"][0][0], each.sum(), rtol=1e-12)


@pytest.mark.parametrize("op", ALL, ids=lambda op: op.name)
def test_an_unknown_reduction_is_named_with_the_three_known(op):
    inputs = op.example(jax.random.key(0))
    with pytest.raises(ValueError, match=f"{op.name}: reduction is 'average'.*'mean', 'sum', 'non"):
        op(*inputs, reduction="average")


def test_a_weighted_mean_of_nothing_is_zero_and_so_is_its_gradient():
    v = jnp.array([[1.0, 2.0, 5.0]])
    for w, mean in (
        (jnp.zeros((1, 3)), 0.0),
        (jnp.zeros((1, 3), bool), 0.0),
        (jnp.array([[True, False, True]]), 3.0),
        (jnp.array([[2, 1, 0]]), 4 / 3),
    ):
        out, (dv, dw) = by_hand(weighted_mean, (v, w), jnp.float32(1.0))
        np.testing.assert_allclose(out, mean, rtol=1e-6)
        kept = np.asarray(w, float)
        expected = kept / max(kept.sum(), 1)
        np.testing.assert_allclose(dv, expected, rtol=1e-6)
        assert dw is None or not dw.any()
        np.testing.assert_allclose(jax.grad(weighted_mean)(v, w), expected, rtol=1e-6)


def test_masked_rows_of_any_loss_do_not_count():
    z, labels = jax.random.normal(jax.random.key(0), (4, 3)), jnp.array([0, 2, 1, 1])
    mask = jnp.array([True, False, True, False])
    masked = weighted_mean(softmax_cross_entropy(z, labels, reduction="none"), mask)
    np.testing.assert_allclose(masked, softmax_cross_entropy(z[mask], labels[mask]), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_huge_scores_give_finite_and_right_losses(scale):
    z = jnp.array([[scale, 0.0, -scale], [0.0, scale, scale]])
    labels, targets = jnp.array([0, 2]), jnp.array([[1.0, 0.5, 0.0], [1.0, 0.0, 0.25]])
    static = {"label_smoothing": 0.1, "z_loss": 1e-4, "reduction": "none"}
    wide = np.asarray(z, np.float64)

    def both(z, w, x):
        one = jnp.ones(2)
        return (
            by_hand(softmax_cross_entropy, (z, labels), one, **static),
            by_hand(linear_cross_entropy, (Linear(w), x, labels), one, chunk=1, **static),
            by_hand(sigmoid_binary_cross_entropy, (z, targets), jnp.float32(1.0)),
            by_hand(multiclass_hinge, (z, labels), one, reduction="none"),
        )

    results = run(both, z, jnp.eye(3), z)
    cross, linear_cross, binary, hinge = results
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(results))
    np.testing.assert_allclose(cross[0], nll(wide, np.asarray(labels), **static), rtol=1e-6)
    assert_leaves_close(linear_cross[0], cross[0], 1e-6)
    assert_leaves_close(linear_cross[1][1], cross[1][0], 1e-6)
    expected = np.logaddexp(0, wide) - np.asarray(targets) * wide
    np.testing.assert_allclose(binary[0], expected.mean(), rtol=1e-6)
    slope = 1 / (1 + np.exp(-np.clip(wide, -700, 700))) - np.asarray(targets)
    np.testing.assert_allclose(binary[1][0], slope / 6, atol=1e-7)
    others = [
        np.maximum(np.delete(row, k) - row[k] + 1, 0).sum() / 3
        for row, k in zip(wide, labels, strict=True)
    ]
    np.testing.assert_allclose(hinge[0], others, rtol=1e-6)


def test_classes_ruled_out_by_minus_infinity_cost_nothing():
    z, labels = jnp.array([[1.0, -jnp.inf, 2.0]]), jnp.array([2])
    loss, (dz, *_) = by_hand(softmax_cross_entropy, (z, labels), jnp.float32(1.0))
    np.testing.assert_allclose(loss, np.logaddexp(0, -1), rtol=1e-6)
    np.testing.assert_allclose(dz[0, 1], 0)
    log_q, targets = jnp.array([[0.0, -jnp.inf]]), jnp.array([[1.0, 0.0]])
    for f in (by_hand, by_autodiff):
        out = f(kl_divergence, (log_q, targets), jnp.float32(1.0))
        assert_leaves_close(out, (0.0, (-targets, targets)), 0)


def test_single_examples_and_single_classes():
    one, label = jnp.array([[3.0]]), jnp.array([0])
    assert softmax_cross_entropy(one, label, label_smoothing=0.3) == 0
    assert multiclass_hinge(one, label) == 0
    assert linear_cross_entropy(Linear(one), one, label) == 0
    assert multiclass_hinge(jnp.array([2.0, 1.5]), jnp.array(0), reduction="none") == 0.25
    assert losses.huber(jnp.array(3.0), jnp.array(1.0), delta=0.5) == 0.875
    assert losses.mean_squared_error(jnp.array(3.0), jnp.array(1.0), reduction="none") == 4


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 7, 8, 9, 100])
def test_chunks_of_any_size_equal_the_two_ops_apart(chunk, biased, x64):
    k1, k2 = jax.random.split(jax.random.key(0))
    x = jax.random.normal(k2, (1, 7, 2))
    params = Linear(jax.random.normal(k1, (2, 9)), jnp.linspace(-1.0, 1.0, 9) if biased else None)
    labels = jnp.arange(7)[None]
    dout = jax.random.normal(k1, (1, 7))
    static = {"label_smoothing": 0.1, "z_loss": 0.1, "reduction": "none"}

    def apart(params, x):
        return softmax_cross_entropy.fwd(linear(params, x), labels, **static)[0]

    def together(params, x, dout):
        loss, pull = jax.vjp(apart, params, x)
        return by_hand(linear_cross_entropy, (params, x, labels), dout, chunk=chunk, **static), (
            loss,
            pull(dout),
        )

    hand, auto = run(together, params, x, dout)
    assert_leaves_close(hand, auto, 1e-13)


@pytest.mark.parametrize(
    ("rows", "classes", "chunked"),
    [(8, 8, 0), (8, 9, 1), (64, 4, 0), (64, 5, 1)],
)
def test_on_both_sides_of_few_logits_the_forms_agree(rows, classes, chunked, x64, monkeypatch):
    monkeypatch.setattr(fast, "FEW", 64)
    monkeypatch.setattr(fast, "LOGITS", 64)
    monkeypatch.setattr(fast, "CLASSES", 4)
    rng = np.random.default_rng(0)
    w, x, dloss = (jnp.asarray(rng.normal(size=s)) for s in ((2, classes), (rows, 2), (rows,)))
    static = {"label_smoothing": 0.1, "z_loss": 0.1, "reduction": "none"}
    inputs = Linear(w), x, jnp.asarray(rng.integers(0, classes, rows))

    def both_forms(*inputs):
        with plain_forms():
            plain = by_hand(linear_cross_entropy, inputs, dloss, **static)
        return plain, by_hand(linear_cross_entropy, inputs, dloss, **static)

    _, residuals = linear_cross_entropy.fwd(*inputs, **static)
    assert isinstance(residuals, fast.ChunkedResiduals) == chunked
    plain, in_chunks = run(both_forms, *inputs)
    assert_leaves_close(in_chunks, plain, 1e-12)


def test_linear_cross_entropy_never_holds_all_logits():
    n, d, v = 512, 4, 2048
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((d, v), (n, d))]
    labels = jax.ShapeDtypeStruct((n,), jnp.int32)

    def apart(w, x, labels):
        return softmax_cross_entropy.fwd(x @ w, labels)[0]

    def by_op(w, x, labels):
        return linear_cross_entropy(Linear(w), x, labels, chunk=32)

    def temporary(loss):
        compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*shapes, labels).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(by_op) < 4 * n * v / 4
    assert temporary(apart) > 4 * n * v


def test_the_softmax_is_kept_where_there_are_few_logits():
    def kept(rows, classes):
        w, x = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, classes), (rows, 1)))
        labels = jax.ShapeDtypeStruct((rows,), jnp.int32)
        _, residuals = jax.eval_shape(
            lambda *inputs: linear_cross_entropy.fwd(*inputs), Linear(w), x, labels
        )
        return max(leaf.size for leaf in jax.tree.leaves(residuals))

    assert kept(2**13, 2**8) == 2**21
    assert kept(2**13, 2**8 + 1) == 2**13
    assert kept(2**16, 128) == 2**23
    assert kept(2**16, 129) == 2**16
    assert fast.classes_at_once(1024, 8192, None) == 512  # of many logits, half a million at a time
    assert fast.classes_at_once(1024, 8192, 100) == 100
    with plain_forms():
        assert kept(2**16, 129) == 2**16 * 129


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_an_error_or_makes_its_row_nan(label):
    z, labels = jnp.zeros((2, 3)), jnp.array([1, label])
    for op, inputs, static in (
        (softmax_cross_entropy, (z,), {}),
        (multiclass_hinge, (z,), {}),
        (linear_cross_entropy, (Linear(jnp.eye(3)), z), {}),
        (linear_cross_entropy, (Linear(jnp.eye(3)), z), {"chunk": 2}),
    ):
        with pytest.raises(ValueError, match=rf"{op.name}: label {label} at index \(1,\).*\[0, 3"):
            op(*inputs, labels, **static)

        def gradient(labels, op=op, inputs=inputs, static=static):
            return by_hand(op, (*inputs, labels), jnp.ones(2), reduction="none", **static)

        loss, cotangents = run(gradient, labels)
        dz = cotangents[len(inputs) - 1]
        np.testing.assert_array_equal(np.isnan(loss), [False, True])
        np.testing.assert_array_equal(np.isnan(dz).all(-1), [False, True])
        np.testing.assert_array_equal(np.isnan(dz).any(-1), [False, True])


def test_a_token_out_of_range_is_an_error_or_a_row_of_nan():
    params = Embedding(jnp.ones((3, 2)))
    for token in (-1, 3):
        tokens = jnp.array([[0, token]])
        with pytest.raises(ValueError, match=rf"token {token} at index \(0, 1\).*\[0, 3\); each"):
            embedding(params, tokens)
        y, (dparams, _) = run(
            lambda t: by_hand(embedding, (params, t), jnp.ones((1, 2, 2))), tokens
        )
        np.testing.assert_array_equal(y, [[[1, 1], [np.nan, np.nan]]])
        np.testing.assert_array_equal(dparams.table, [[1, 1], [0, 0], [0, 0]])


def test_a_tied_table_gets_the_gradients_of_both_its_uses(x64):
    tokens = jnp.array([[1, 4, 4], [0, 4, 2]])
    table = jax.random.normal(jax.random.key(0), (5, 3))

    def loss(table, embed, attend):
        y = attend(Embedding(table), embed(Embedding(table), tokens))
        return (jnp.sin(y)).sum()

    hand, auto = run(
        lambda t: (
            jax.grad(loss)(t, embedding, unembed),
            jax.grad(loss)(t, lambda p, i: p.table[i], lambda p, x: x @ p.table.T),
        ),
        table,
    )
    assert_leaves_close(hand, auto, 1e-13)


def test_totals_and_shares_of_narrow_losses_neither_overflow_nor_vanish():
    n = 70_000
    ones = jnp.ones(n, jnp.float16)
    mean, (dvalues, _) = by_hand(weighted_mean, (ones, ones), jnp.float16(100))
    assert mean == 1
    np.testing.assert_allclose(dvalues, 100 / n, rtol=1e-3)
    _, (dx, _) = by_hand(losses.mean_squared_error, (ones, 0 * ones), jnp.float16(100))
    np.testing.assert_allclose(dx, 200 / n, rtol=1e-3)
    row = jnp.zeros((1, n), jnp.float16)
    loss = softmax_cross_entropy(row, jnp.array([3]))
    np.testing.assert_allclose(loss, np.log(n), rtol=1e-3)


def test_small_chunks_do_not_round_the_sum_over_them():
    k1, k2 = jax.random.split(jax.random.key(0))
    w = 1 + jax.random.normal(k1, (2, 4096), jnp.bfloat16)
    x = jax.random.normal(k2, (3, 2), jnp.bfloat16)
    labels = jnp.array([0, 2047, 4095])

    def dx(w, x):
        _, residuals = linear_cross_entropy.fwd(Linear(w), x, labels, chunk=4)
        return linear_cross_entropy.bwd(residuals, jnp.ones((), w.dtype), chunk=4)[1]

    narrow = run(dx, w, x)
    assert narrow.dtype == x.dtype
    assert_leaves_close(narrow, run(dx, *(a.astype(jnp.float32) for a in (w, x))), 0.01)


def test_numpys_arrays_and_settings_are_taken():
    z, labels = np.ones((2, 3), np.float32), np.zeros(2, np.int32)
    assert embedding(Embedding(z), labels).shape == (2, 3)
    for op, inputs, static in (
        (losses.huber, (z, z), {"delta": np.float32(2)}),
        (losses.l2_penalty, ([z],), {"coefficient": np.float64(2)}),
        (weighted_mean, (z, z), {}),
        (softmax_cross_entropy, (z, labels), {"z_loss": np.float32(0.1)}),
        (linear_cross_entropy, (Linear(z.T), z, labels * 0), {"chunk": np.int64(1)}),
        (linear_cross_entropy, (Linear(z.T), z, labels * 0), {"z_loss": np.float64(1)}),
    ):
        assert op(*inputs, **static).dtype == jnp.float32


Z, LABELS, TWO = jnp.zeros((2, 3)), jnp.zeros(2, int), Embedding(jnp.zeros((4, 2)))
TURNED = Linear(Z.T)
NARROW = Linear(Z.T.astype("bfloat16"))


@pytest.mark.parametrize(
    ("op", "inputs", "static", "error", "message"),
    [
        (losses.huber, (Z, Z), {"delta": 0.0}, ValueError, "delta is 0.0.*positive"),
        (losses.huber, (Z, [0.0]), {}, TypeError, "huber: targets is a list.*jnp.asarray"),
        (kl_divergence, (Z, Z[0]), {}, ValueError, r"log_probab.*\(2, 3\), targets \(3,\)"),
        (
            kl_divergence,
            (Z[0, 0], Z[0, 0]),
            {},
            ValueError,
            r"\(\); .*dimension of K classes",
        ),
        (
            weighted_mean,
            (Z, Z[:, :1]),
            {},
            ValueError,
            r"values have shape \(2, 3\), weights \(2, 1",
        ),
        (weighted_mean, (Z[:0], Z[:0]), {}, ValueError, r"\(0, 3\), no element.*non-empty"),
        (
            multiclass_hinge,
            (Z, Z),
            {},
            TypeError,
            "labels has dtype float32.*argmax",
        ),
        (
            softmax_cross_entropy,
            (Z, LABELS),
            {"label_smoothing": 2},
            ValueError,
            r"is 2;.*\[0, 1\]",
        ),
        (
            softmax_cross_entropy,
            (Z, LABELS),
            {"z_loss": -1.0},
            ValueError,
            "z_loss is -1.0.*least 0",
        ),
        (
            linear_cross_entropy,
            (TURNED, Z, LABELS),
            {"chunk": 0},
            ValueError,
            "chunk is 0.*at least 1",
        ),
        (
            linear_cross_entropy,
            (TURNED, Z, LABELS),
            {"chunk": True},
            TypeError,
            "chunk is True",
        ),
        (linear_cross_entropy, (NARROW, Z, LABELS), {}, TypeError, "bfloat16.*one"),
        (linear_cross_entropy, (Z.T, Z, LABELS), {}, TypeError, r"params is a .*Linear\(\.\.\.\)"),
        (
            linear_cross_entropy,
            (Linear(Z.T, Z[0]), Z, LABELS),
            {},
            ValueError,
            r"b has shape \(3,\), beside w \(3, 2\)",
        ),
        (softmax_cross_entropy, (Z, LABELS), {"z_loss": "1"}, TypeError, "z_loss is '1'"),
        (softmax_cross_entropy, (Z, LABELS), {"label_smoothing": None}, TypeError, "is None"),
        (softmax_cross_entropy, ([[0.0]], LABELS), {}, TypeError, "logits is a list"),
        (multiclass_hinge, (Z, LABELS), {"margin": float("nan")}, ValueError, "margin is nan"),
        (losses.huber, (Z, Z), {"delta": float("inf")}, ValueError, "delta is inf"),
        (losses.huber, (Z, Z), {"reduction": np.array(["mean"])}, ValueError, "one of 'mean'"),
        (losses.l2_penalty, (Z,), {"coefficient": "2"}, TypeError, "coefficient is '2'"),
        (losses.l2_penalty, ({"a": 1.0},), {}, TypeError, "weights.'a'. is a .*asarray"),
        (losses.l2_penalty, (Z,), {"coefficient": 10**400}, ValueError, "coefficient is 1000"),
        (
            losses.l2_penalty,
            ([Z, Z.astype("bfloat16")],),
            {},
            TypeError,
            r"weights\[0\] float32, weights\[1\] bfloat16.*one",
        ),
        (losses.l2_penalty, ([Z, LABELS],), {}, TypeError, r"weights\[1\] has dtype int.*float"),
        (
            losses.huber,
            (Z, Z.astype("bfloat16")),
            {},
            TypeError,
            "predictions float32, targets bfloat16.*one",
        ),
        (losses.huber, (LABELS, LABELS), {}, TypeError, "predictions has dtype int.*floating"),
        (losses.huber, (Z, Z), {"delta": [1.0]}, TypeError, r"delta is \[1\.0\]"),
        (losses.mean_squared_error, (Z, Z + 0j), {}, TypeError, "targets has dtype complex.*real"),
        (weighted_mean, (Z, Z + 0j), {}, TypeError, "weights has dtype complex.*real"),
        (weighted_mean, ([0.0], Z), {}, TypeError, "weighted_mean: values is a list"),
        (losses.mean_squared_error, (Z, Z), {"reduction": None}, ValueError, "is None.*'mean'"),
        (embedding, (Embedding([[1.0]]), LABELS), {}, TypeError, "table is a list"),
        (
            linear_cross_entropy,
            (Linear(Z), Z, LABELS),
            {},
            ValueError,
            r"x has shape \(2, 3\), beside w \(2, 3\).*transpose w",
        ),
        (
            linear_cross_entropy,
            (TURNED, Z, LABELS[:1]),
            {},
            ValueError,
            r"\(1,\), logits \(2, 2\)",
        ),
        (embedding, (TWO, jnp.zeros(3)), {}, TypeError, "tokens has dtype float32.*integers"),
        (embedding, (TWO, [1]), {}, TypeError, "tokens is a list.*asarray"),
        (embedding, (Embedding(Z[0]), LABELS), {}, ValueError, r"table has shape \(3,\).*\(V, D\)"),
        (
            unembed,
            (TWO, Z),
            {},
            ValueError,
            r"x has shape \(2, 3\), beside table \(4, 2\).*feature",
        ),
    ],
)
def test_bad_inputs_are_named(op, inputs, static, error, message):
    with pytest.raises(error, match=message):
        op(*inputs, **static)


@pytest.mark.parametrize("op", PAIRED, ids=lambda op: op.name)
def test_an_empty_batch_has_a_sum_and_no_mean(op):
    x = jnp.zeros((0, 3))
    total, (dx, *_) = by_hand(op, (x, x), jnp.float32(1.0), reduction="sum")
    assert (total, dx.shape) == (0, (0, 3))
    assert op(x, x, reduction="none").size == 0
    for call in (op, op.fwd):
        with pytest.raises(ValueError, match=rf"{op.name}: .*\(0, 3\), no element.*non-empty"):
            call(x, x)


@pytest.mark.parametrize("op", PAIRED, ids=lambda op: op.name)
def test_targets_may_be_integers_or_booleans(op):
    x, dout = jnp.linspace(0.1, 0.9, 6).reshape(2, 3), jnp.float32(0.7)
    t = jnp.array([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    loss, (dx, *_) = by_hand(op, (x, t), dout)
    for other in (t.astype(int), t.astype(bool)):
        out, pull = jax.vjp(lambda x, other=other: op(x, other), x)
        assert_leaves_close((out, pull(dout)), (loss, (dx,)), 1e-6)


def test_the_three_reductions_are_the_settings_that_are_verified():
    for op in PAIRED + LABELLED + (linear_cross_entropy,):
        assert {s.get("reduction", "mean") for s in op.settings} == set(REDUCTIONS)


@pytest.mark.parametrize("op", [*LABELLED, linear_cross_entropy], ids=lambda op: op.name)
def test_a_batch_without_rows_has_a_sum_but_no_mean(op):
    logits, labels = jnp.zeros((0, 3)), jnp.zeros(0, int)
    params = (Linear(jnp.zeros((3, 3))),) if op is linear_cross_entropy else ()
    inputs = (*params, logits, labels)
    total, cotangents = by_hand(op, inputs, jnp.ones(()), reduction="sum")
    assert total == 0
    assert not any(d.any() for d in jax.tree.leaves(cotangents))
    assert op(*inputs, reduction="none").shape == (0,)
    with pytest.raises(ValueError, match=rf"{op.name}: .*\(0, 3\).*for the mean, a row"):
        op(*inputs)
