"""What the table of laws does not ask of cosine and triplet losses: extremes and bad input."""

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_leaves_close, run
from test_ops_losses import by_autodiff, by_hand

from jaxnn.ops.cosine import cosine_embedding, cosine_similarity
from jaxnn.ops.triplet import triplet_margin

pytestmark = pytest.mark.usefixtures("strict_dtypes")

ONE = jnp.float32(1.0)
A, B = jnp.array([[3.0, 4.0], [1.0, 0.0]]), jnp.array([[4.0, 3.0], [0.0, 2.0]])
LABELS = jnp.array([1, -1])


@pytest.mark.parametrize("scale", [1e4, 1e-3, 1e-18])
def test_the_cosine_is_of_the_angle_alone(scale):
    """Short vectors' too, with an eps that is smaller."""
    c, (da, db) = by_hand(cosine_similarity, (A * scale, B), jnp.ones(2), eps=1e-19)
    np.testing.assert_allclose(c, [0.96, 0], rtol=1e-6)
    _, (da_of_one, db_of_one) = by_hand(cosine_similarity, (A, B), jnp.ones(2))
    assert_leaves_close((da * scale, db), (da_of_one, db_of_one), 1e-5)


def test_zeros_are_like_nothing_and_stay_finite():
    zeros = jnp.zeros((2, 2))
    c, (da, db) = by_hand(cosine_similarity, (zeros, B), jnp.ones(2))
    assert not c.any()
    assert not db.any()
    np.testing.assert_allclose(da, B / jnp.linalg.norm(B, axis=-1, keepdims=True) / 1e-8)
    for f in (by_hand, by_autodiff):
        loss, (da, db, _) = f(cosine_embedding, (zeros, B, LABELS), ONE)
        assert loss == 0.5
        assert np.isfinite(da).all()
        assert not db.any()


def test_pairs_at_the_margin_have_no_slope_and_other_labels_no_loss():
    loss, (da, db, _) = by_hand(cosine_embedding, (A, A, -LABELS), ONE, margin=1.0)
    assert loss == 0
    assert not da.any()
    assert not db.any()
    with pytest.raises(ValueError, match=r"labels are not all 1 or -1.*2 \* labels - 1"):
        cosine_embedding(A, B, LABELS * 0)
    each = run(
        lambda y: by_hand(cosine_embedding, (A, B, y), jnp.ones(2), reduction="none")[0],
        jnp.array([1, 0]),
    )
    np.testing.assert_array_equal(np.isnan(each), [False, True])


def test_triplets_far_apart_teach_nothing_and_equal_ones_cost_the_margin():
    far = A + 100
    loss, grads = by_hand(triplet_margin, (A, B, far), ONE)
    assert loss == 0
    assert not any(d.any() for d in grads)
    for p in (1.0, 2.0, 3.5):
        for f in (by_hand, by_autodiff):
            loss, grads = f(triplet_margin, (A, A, A), ONE, p=p, eps=0.0, swap=True, margin=0.25)
            assert loss == 0.25
            assert not any(d.any() for d in grads)


def test_where_both_distances_are_the_same_the_anchor_and_the_positive_share_the_slope():
    """As PyTorch's minimum does."""
    inputs = A, A, B
    static = {"swap": True, "margin": 5.0}
    hand, auto = (f(triplet_margin, inputs, ONE, **static) for f in (by_hand, by_autodiff))
    assert_leaves_close(hand, auto, 1e-6)


def test_empty_batches_have_a_sum():
    none = jnp.zeros((0, 3))
    assert cosine_similarity(none, none).shape == (0,)
    assert cosine_embedding(none, none, LABELS[:0], reduction="sum") == 0
    assert triplet_margin(none, none, none, reduction="none").shape == (0,)
    with pytest.raises(ValueError, match=r"triplet_margin: anchor .*non-empty"):
        triplet_margin(none, none, none)


@pytest.mark.parametrize(
    ("op", "inputs", "static", "error", "message"),
    [
        (cosine_similarity, (A, B[:1]), {}, ValueError, r"a have shape \(2, 2\), b \(1, 2\)"),
        (cosine_similarity, (A, B), {"eps": 0.0}, ValueError, "eps is 0.0.*positive"),
        (cosine_similarity, (A, B.astype("float16")), {}, TypeError, "a float32, b float16"),
        (cosine_similarity, (A[0, 0], B[0, 0]), {}, ValueError, r"a has shape \(\).*\(..., D\)"),
        (cosine_embedding, (A, B, LABELS * 1.0), {}, TypeError, "labels has dtype float32"),
        (cosine_embedding, (A, B, LABELS[:1]), {}, ValueError, r"labels have shape \(1,\)"),
        (cosine_embedding, (A, B, LABELS), {"margin": 2.0}, ValueError, r"within \[-1, 1\]"),
        (cosine_embedding, (A, B, LABELS), {"reduction": 1}, ValueError, "reduction is 1"),
        (triplet_margin, (A, B, B[:1]), {}, ValueError, r"anchor have .*negative \(1, 2\)"),
        (triplet_margin, (A, B, B), {"p": 0.5}, ValueError, "p is 0.5; .*at least 1"),
        (triplet_margin, (A, B, B), {"p": float("inf")}, ValueError, "p is inf"),
        (triplet_margin, (A, B, B), {"margin": 0.0}, ValueError, "margin is 0.0.*positive"),
        (triplet_margin, (A, B, B), {"eps": -1.0}, ValueError, "eps is -1.0"),
        (triplet_margin, (A, B, B), {"swap": 1}, TypeError, "swap is 1"),
        (triplet_margin, (A, B, LABELS), {}, ValueError, r"negative \(2,\)"),
    ],
)
def test_bad_inputs_are_named(op, inputs, static, error, message):
    with pytest.raises(error, match=message):
        op(*inputs, **static)
