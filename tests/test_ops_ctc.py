"""What the table of laws does not ask of connectionist temporal classification."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_leaves_close, run
from test_ops_losses import by_autodiff, by_hand

from jaxnn.ops.ctc import ctc

pytestmark = pytest.mark.usefixtures("strict_dtypes")

LABELS, STEPS, LENGTHS = jnp.array([[1, 1], [2, 1]]), jnp.array([4, 3]), jnp.array([2, 1])
LOG_P = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (2, 4, 3)))


def spelt(path, blank=0):
    return [k for k, _ in itertools.groupby(path) if k != blank]


def test_it_is_the_sum_over_all_paths_that_spell_the_labels_and_gamma_where_they_are(x64):
    """By all 81 paths, one by one: of two equal labels and of two that need no blank between."""
    lengths = jnp.array([2, 2])
    y = np.exp(np.asarray(LOG_P, np.float64))
    each, expected = np.zeros(2), np.zeros(y.shape)
    for n in range(2):
        for path in itertools.product(range(3), repeat=int(STEPS[n])):
            if spelt(path) == LABELS[n].tolist():
                p = np.prod([y[n, t, k] for t, k in enumerate(path)])
                each[n] += p
                for t, k in enumerate(path):
                    expected[n, t, k] += p
    loss, (dlog_p, *_) = by_hand(
        ctc, (jnp.log(jnp.asarray(y)), LABELS, STEPS, lengths), jnp.ones(2), reduction="none"
    )
    np.testing.assert_allclose(loss, -np.log(each), rtol=1e-12)
    np.testing.assert_allclose(dlog_p, -expected / each[:, None, None], atol=1e-12)


def test_long_sequences_keep_their_digits_and_their_gradient_its_sum():
    """Each step's classes are expected once in all, whatever the length."""
    rng = np.random.default_rng(0)
    z, labels = rng.normal(size=(1, 600, 8)) * 4, rng.integers(1, 8, (1, 150))

    def both(log_p):
        ints = jnp.asarray(labels, jnp.int32), jnp.array([600]), jnp.array([150])
        return by_hand(ctc, (log_p, *ints), jnp.ones((), log_p.dtype), reduction="sum")

    loss, (dlog_p, *_) = run(both, jax.nn.log_softmax(jnp.asarray(z, jnp.float32)))
    np.testing.assert_allclose(dlog_p.sum(-1), -1, atol=1e-5)
    with jax.enable_x64(True):
        exact = run(both, jax.nn.log_softmax(jnp.asarray(z)))
        assert_leaves_close((loss, dlog_p), jax.tree.leaves(exact), 2e-5)


def test_what_cannot_be_spelt_costs_infinity_or_nothing():
    """Two equal labels need a blank between them: three steps."""
    inputs = LOG_P, LABELS, jnp.array([2, 3]), LENGTHS
    loss, (dlog_p, *_) = by_hand(ctc, inputs, jnp.ones(2), reduction="none")
    np.testing.assert_array_equal(np.isinf(loss), [True, False])
    np.testing.assert_array_equal(np.isnan(dlog_p).all((1, 2)), [True, False])
    assert np.isfinite(dlog_p[1]).all()
    loss, (dlog_p, *_) = by_hand(ctc, inputs, jnp.ones(2), zero_infinity=True, reduction="none")
    assert loss[0] == 0
    assert not dlog_p[0].any()
    alone = tuple(x[1:] for x in inputs)
    assert_leaves_close((loss[1:], dlog_p[1:]), both_alone(alone), 1e-6)


def both_alone(inputs):
    loss, (dlog_p, *_) = by_hand(ctc, inputs, jnp.ones(1), reduction="none")
    return loss, dlog_p


def test_impossible_classes_sequences_without_labels_and_without_steps():
    log_p = LOG_P.at[0, 1, 2].set(-jnp.inf).at[1, :, 2].set(-jnp.inf)
    inputs = log_p, jnp.array([[1, 2], [2, 2]]), jnp.array([4, 0]), jnp.array([2, 0])
    for f in (by_hand, by_autodiff):
        loss, (dlog_p, *_) = f(ctc, inputs, jnp.ones(2), reduction="none")
        assert np.isfinite(loss).all()
        assert loss[1] == 0
        assert np.isfinite(dlog_p).all()
        assert not dlog_p[1].any()
        assert dlog_p[0, 1, 2] == 0
    empty = jnp.zeros((2, 0), int)
    loss, (dlog_p, *_) = by_hand(
        ctc, (LOG_P, empty, STEPS, LENGTHS * 0), jnp.ones(2), reduction="none"
    )
    np.testing.assert_allclose(loss[0], -LOG_P[0, :, 0].sum(), rtol=1e-6)
    np.testing.assert_array_equal(dlog_p[0, :, 0], -1)
    none = tuple(x[:0] for x in (LOG_P, LABELS, STEPS, LENGTHS))
    assert ctc(*none, reduction="sum") == 0
    assert by_hand(ctc, none, jnp.ones(()), reduction="sum")[1][0].shape == (0, 4, 3)


@pytest.mark.parametrize(
    ("place", "value"), [(1, [[1, 0], [2, 1]]), (1, [[1, 3], [2, 1]]), (2, [5, 3]), (3, [3, 1])]
)
def test_what_is_out_of_range_makes_its_sequence_nan_where_it_cannot_be_seen(place, value):
    inputs = [LOG_P, LABELS, STEPS, LENGTHS]
    inputs[place] = jnp.array(value)
    with pytest.raises(ValueError, match="ctc: "):
        ctc(*inputs)
    loss, (dlog_p, *_) = run(lambda *x: by_hand(ctc, x, jnp.ones(2), reduction="none"), *inputs)
    np.testing.assert_array_equal(np.isnan(loss), [True, False])
    np.testing.assert_array_equal(np.isnan(dlog_p).all((1, 2)), [True, False])
    assert np.isfinite(dlog_p[1]).all()


@pytest.mark.parametrize(
    ("change", "static", "error", "message"),
    [
        ({0: LOG_P[0]}, {}, ValueError, r"log_probabilities has shape \(4, 3\).*batch first"),
        ({0: LABELS[..., None]}, {}, TypeError, "log_probabilities has dtype int"),
        ({1: LABELS * 1.0}, {}, TypeError, "labels has dtype float32.*astype"),
        ({1: LABELS[:1]}, {}, ValueError, r"labels has shape \(1, 2\)"),
        ({1: LABELS * 0}, {}, ValueError, "labels have the blank, 0, among them"),
        ({1: LABELS + 1}, {}, ValueError, r"label 3 at index \(1, 0\).*\[0, 3\)"),
        ({2: STEPS + 1}, {}, ValueError, r"input length 5 at index \(0,\).*steps there are"),
        ({3: LENGTHS + 1}, {}, ValueError, r"label length 3 at index \(0,\).*labels there are"),
        ({3: LENGTHS[None]}, {}, ValueError, r"label_lengths has shape \(1, 2\)"),
        ({0: LOG_P[:, :0]}, {}, ValueError, "at least one step and"),
        ({}, {"blank": 3}, ValueError, "blank is 3; it must be a class"),
        ({}, {"blank": -1}, ValueError, "blank is -1; it must be at least 0"),
        ({}, {"blank": None}, TypeError, "blank is None"),
        ({}, {"zero_infinity": 1}, TypeError, "zero_infinity is 1; it must be True or False"),
        ({}, {"reduction": "batchmean"}, ValueError, "'batchmean'.*'mean', 'sum', 'none'"),
    ],
)
def test_bad_inputs_are_named(change, static, error, message):
    inputs = [LOG_P, LABELS, STEPS, LENGTHS]
    for place, value in change.items():
        inputs[place] = value
    with pytest.raises(error, match=message):
        ctc(*inputs, **static)


def test_labels_past_a_length_and_steps_past_it_are_not_looked_at():
    labels, log_p = LABELS.at[1, 1].set(-7), LOG_P.at[1, 3].set(jnp.nan)
    kept = run(lambda p, y: by_hand(ctc, (p, y, STEPS, LENGTHS), jnp.ones(())), LOG_P, LABELS)
    other = run(lambda p, y: by_hand(ctc, (p, y, STEPS, LENGTHS), jnp.ones(())), log_p, labels)
    assert_leaves_close(other, kept, 0)
    assert ctc(log_p, labels, STEPS, LENGTHS) == kept[0]
