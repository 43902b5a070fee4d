"""What the table of laws does not ask of the normalisations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_leaves_close, run

from jaxnn.ops.batch_norm import Running, batch_norm
from jaxnn.ops.l2_normalize import l2_normalize
from jaxnn.ops.normalisation import (
    Scale,
    group_norm,
    instance_norm,
    layer_norm,
    rms_norm,
)

pytestmark = pytest.mark.usefixtures("strict_dtypes")

NONE = Scale(None, None)
FRESH = Running(jnp.zeros(4), jnp.ones(4))


def by_hand(op, inputs, dout, **static):
    out, residuals = op.fwd(*inputs, **static)
    return out, op.bwd(residuals, dout, **static)


@pytest.mark.parametrize("value", [0.0, 2.0, -1e4])
def test_a_variance_of_zero_stays_finite(value):
    x = jnp.full((2, 3, 4), value)
    dy = jax.random.normal(jax.random.key(0), x.shape)

    def all_of_them(x, dy):
        new = Running(jnp.zeros(4), jnp.zeros(4))
        return [
            by_hand(layer_norm, (NONE, x), dy),
            by_hand(group_norm, (NONE, x), dy, groups=4),  # of one channel
            by_hand(group_norm, (NONE, x), dy, groups=1),
            by_hand(instance_norm, (NONE, x), dy),
            by_hand(rms_norm, (NONE, x), dy),
            by_hand(batch_norm, (NONE, FRESH, x), (dy, new), training=True),
        ]

    *centred, (rms, _), ((normed, running), _) = results = run(all_of_them, x, dy)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(results))
    for y in (*(y for y, _ in centred), normed):
        np.testing.assert_array_equal(y, 0)
    np.testing.assert_allclose(rms, np.sign(value), rtol=1e-5)
    np.testing.assert_allclose(running.mean, 0.1 * value, rtol=1e-6)
    np.testing.assert_allclose(running.variance, 0.9, rtol=1e-6)


def test_a_large_mean_does_not_cost_the_variance():
    """In float32 mean(x^2) - mean^2 is 0 or worse here."""
    x = 1e4 + jnp.array([[-0.5, 0.5, -0.25, 0.25]])
    expected = np.array([[-0.5, 0.5, -0.25, 0.25]]) / np.sqrt(0.15625 + 1e-5)
    np.testing.assert_allclose(layer_norm(NONE, x), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "scale", "eps", "tolerance"),
    [
        (np.float32, 1e13, 1e-5, 1e-5),
        (np.float32, 1e-14, 1e-30, 1e-5),
        (np.float32, 0.0, 1e-30, 1e-5),
        (np.float16, 2e4, 1e-5, 1e-2),
    ],
)
def test_batch_norm_goes_back_where_powers_of_sigma_are_out_of_range(dtype, scale, eps, tolerance):
    drawn = -np.abs(np.random.default_rng(0).normal(size=(16, 4))).clip(max=3)
    drawn[0] = 3  # times 2e4, further from the mean than float16 reaches
    x, dy = (scale * drawn).astype(dtype), np.cos(np.arange(64)).reshape(16, 4).astype(dtype)
    new = Running(jnp.zeros(4), jnp.zeros(4))
    _, (_, _, dx) = run(
        lambda x, dy: by_hand(batch_norm, (NONE, FRESH, x), (dy, new), training=True, eps=eps),
        x,
        dy,
    )
    x, dy = x.astype(np.float64), dy.astype(np.float64)
    sigma = np.sqrt(x.var(0) + eps)
    x_hat = (x - x.mean(0)) / sigma
    expected = (dy - dy.mean(0) - x_hat * (dy * x_hat).mean(0)) / sigma
    error = np.abs(np.asarray(dx, np.float64) - expected).max() / np.abs(expected).max()
    assert dx.dtype == dtype
    assert error < tolerance, error


def test_one_feature_or_position_is_normalised_to_the_shift():
    x = jnp.array([[[3.0]], [[-2.0]]])
    params = Scale(jnp.array([2.0]), jnp.array([5.0]))

    def both(x):
        dy = jnp.ones_like(x)
        return by_hand(layer_norm, (params, x), dy), by_hand(instance_norm, (params, x), dy)

    for y, (dparams, dx) in run(both, x):
        np.testing.assert_array_equal(y, 5)
        np.testing.assert_array_equal(dx, 0)
        np.testing.assert_array_equal(dparams.scale, 0)
        np.testing.assert_array_equal(dparams.shift, 2)


def test_evaluation_hands_out_the_running_statistics_as_they_came():
    x = jax.random.normal(jax.random.key(0), (1, 4))
    _, running = batch_norm(NONE, FRESH, x, training=False)
    assert_leaves_close(running, FRESH, 0)


@pytest.mark.parametrize("norm", [layer_norm, rms_norm])
def test_without_parameters_rows_go_back_as_with_a_scale_of_1(norm):
    rng = np.random.default_rng(3)
    x, dy = (jnp.asarray(rng.normal(size=(4, 3, 5)), jnp.float32) for _ in range(2))
    dx, expected = (
        norm.bwd(norm.fwd(params, x)[1], dy)[1] for params in (NONE, Scale(jnp.ones(5), None))
    )
    np.testing.assert_allclose(dx, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_statistics_of_narrow_numbers_are_wide(dtype):
    x = jnp.array([[300.0, 1.0, -300.0]], dtype)  # in float16 a square is infinite
    expected = np.array([300.0, 1.0, -300.0]) / np.sqrt(60000)
    eps = float(jnp.finfo(dtype).eps)
    y, dx = run(lambda x: (rms_norm(NONE, x), jax.grad(lambda x: rms_norm(NONE, x)[0, 1])(x)), x)
    np.testing.assert_allclose(np.asarray(y[0], float), expected, rtol=2 * eps)
    np.testing.assert_allclose(np.asarray(dx[0, 1], float), 1 / np.sqrt(60000), rtol=2 * eps)
    x = jnp.asarray(np.random.default_rng(0).normal(100, 1, (8, 64)), dtype)
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean(1, keepdims=True)) / exact.std(1, keepdims=True)
    y, residuals = layer_norm.fwd(NONE, x)
    assert y.dtype == residuals.x_hat.dtype == dtype
    np.testing.assert_allclose(np.asarray(y, float), exact, atol=2 * eps)
    np.testing.assert_allclose(np.asarray(residuals.y(), float), exact, atol=3 * eps)


@pytest.mark.parametrize("norm", [layer_norm, rms_norm])
def test_residuals_give_the_result_again(norm):
    rng = np.random.default_rng(4)
    params = Scale(*(jnp.asarray(rng.normal(size=5), jnp.float32) for _ in range(2)))
    y, residuals = norm.fwd(params, jnp.asarray(rng.normal(2, 1, (4, 3, 5)), jnp.float32))
    np.testing.assert_allclose(residuals.y(), y, rtol=1e-6)


def test_an_offset_is_added_to_a_narrow_scale_in_float32_and_residuals_know_it():
    """1 + 0.001 is 1 in bfloat16; Gemma's weights are of that size."""
    params = Scale(jnp.full(4, 0.003, "bfloat16"), None)
    x = jnp.array([[1.0, -1, 256, -256]], "bfloat16")
    y, residuals = rms_norm.fwd(params, x, offset=1.0)
    exact = np.asarray(x, float) / np.sqrt(np.square(np.asarray(x, float)).mean())
    exact *= 1 + float(params.scale[0])
    np.testing.assert_array_equal(y, jnp.asarray(exact, "bfloat16"))
    np.testing.assert_allclose(np.asarray(residuals.y(1.0), float), exact, rtol=0.01)
    assert (residuals.y() != residuals.y(1.0)).all()


def test_a_vector_of_0_stays_0_and_goes_back_as_divided_by_eps():
    x = jnp.array([[0.0, 0.0], [3e-5, 4e-5], [jnp.nan, 1.0]])
    y, (dx,) = by_hand(l2_normalize, (x,), jnp.ones((3, 2)), eps=1e-3)
    np.testing.assert_allclose(y[:2], [[0, 0], [0.03, 0.04]], rtol=1e-6)
    np.testing.assert_allclose(dx[:2], 1000.0, rtol=1e-6)
    assert np.isnan(y[2]).all()
    assert np.isnan(dx[2]).all()


def test_an_inner_axis_may_be_empty_where_no_mean_is_taken_over_it():
    x, params = jnp.zeros((2, 0, 4)), Scale(jnp.ones(4), jnp.ones(4))
    y, (dparams, dx) = by_hand(layer_norm, (params, x), x)
    assert y.shape == dx.shape == x.shape
    np.testing.assert_array_equal(dparams.scale, jnp.zeros(4))


def test_numpys_arrays_and_settings_are_taken():
    x, scale = np.ones((2, 3, 4), np.float32), Scale(np.ones(4, np.float32), None)
    running = Running(np.zeros(4, np.float32), np.ones(4, np.float32))
    assert group_norm(scale, x, groups=np.int64(2), eps=np.float32(1e-5)).dtype == x.dtype
    static = {"training": np.bool_(True), "momentum": np.float64(0.1)}
    y, _ = batch_norm(scale, running, x, **static)
    assert y.dtype == x.dtype


X = jnp.zeros((2, 3, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: layer_norm(Scale(jnp.ones(3), None), X),
            r"scale has shape \(3,\).*x \(2, 3, 4\).*\(C,\)",
        ),
        (
            lambda: rms_norm(Scale(None, jnp.ones(())), X),
            r"shift has shape \(\).*x \(2, 3, 4\).*\(C,\)",
        ),
        (lambda: layer_norm(NONE, X, eps=0.0), "layer_norm: eps is 0.0.*positive"),
        (lambda: l2_normalize(X, axis=3), r"l2_normalize: axis is 3, x has shape \(2, 3, 4\)"),
        (lambda: l2_normalize(X, axis=-4), r"l2_normalize: axis is -4.*at least -3"),
        (lambda: l2_normalize(X, eps=0.0), "l2_normalize: eps is 0.0;.*positive"),
        (lambda: l2_normalize(X.astype(int)), "l2_normalize: x has dtype int32.*floating"),
        (lambda: layer_norm(NONE, X, axes=0), "layer_norm: axes is 0.*at least 1"),
        (lambda: layer_norm(NONE, X, axes=4), r"x has shape \(2, 3, 4\).*\(..., C, D, E, F\)"),
        (lambda: rms_norm(NONE, X, axes=1.0), "rms_norm: axes is 1.0.*integer"),
        (
            lambda: layer_norm(Scale(jnp.ones((2, 4)), None), X, axes=2),
            r"scale has shape \(2, 4\), .*x \(2, 3, 4\).*scale \(C, D\) or None",
        ),
        (lambda: layer_norm(NONE, X[:, :0], axes=2), "no axis may be empty"),
        (lambda: rms_norm(NONE, X, offset=1.0), "offset is 1.0 but scale is None.*pass a scale"),
        (lambda: rms_norm(NONE, X, offset="1"), "rms_norm: offset is '1'.*finite"),
        (lambda: rms_norm(NONE, X, offset=float("inf")), "offset is inf.*finite"),
        (lambda: rms_norm(NONE, X, eps=1e-46), "eps is 1e-46.*positive in float32"),
        (lambda: layer_norm(NONE, X[..., :0]), r"\(2, 3, 0\).*no axis may be empty"),
        (lambda: rms_norm(NONE, X[..., :0]), r"\(2, 3, 0\).*no axis may be empty"),
        (lambda: group_norm(NONE, X[:, :0], groups=2), r"\(2, 0, 4\).*no axis may be empty"),
        (lambda: instance_norm(NONE, X[:, :0]), r"\(2, 0, 4\).*no axis may be empty"),
        (lambda: batch_norm(NONE, FRESH, X[:0], training=True), "0 values per channel.*2"),
        (lambda: layer_norm(NONE, jnp.zeros(())), r"shape \(\).*x \(..., C\)"),
        (lambda: group_norm(NONE, X, groups=3), "groups are 3 but x has 4 channels"),
        (lambda: group_norm(NONE, X, groups=0), "groups is 0"),
        (lambda: group_norm(NONE, X[0, 0], groups=2), r"\(4,\); it must be \(N, ..., C\)"),
        (lambda: instance_norm(NONE, X[0]), r"\(3, 4\).*3 axes"),
        (lambda: batch_norm(NONE, FRESH, X[:1, :1], training=True), "1 values per channel.*2"),
        (lambda: batch_norm(NONE, FRESH, X[..., :3], training=False), r"mean has shape \(4,\)"),
        (lambda: batch_norm(NONE, FRESH, X, training=True, momentum=1.1), "momentum is 1.1"),
        (lambda: batch_norm(NONE, FRESH, X, training=1), "training is 1; it must be True or False"),
        (lambda: batch_norm(NONE, None, X, training=True), "running is a NoneType.*Running"),
        (lambda: batch_norm(NONE, tuple(FRESH), X, training=True), "running is a tuple.*Running"),
        (lambda: batch_norm(NONE, Running([0.0], 1.0), X, training=False), "mean is a list"),
        (
            lambda: batch_norm(NONE, Running(FRESH.mean, jnp.ones(4, int)), X, training=False),
            "variance has dtype int32.*floating",
        ),
        (lambda: batch_norm(NONE, FRESH, X, training=True, momentum="1"), "momentum is '1'"),
        (lambda: layer_norm(NONE, X.astype(int)), "x has dtype int32.*floating"),
        (lambda: layer_norm(NONE, [1.0]), "layer_norm: x is a list"),
        (lambda: rms_norm(NONE, X.astype(complex)), "x has dtype complex64.*floating"),
        (lambda: layer_norm((None, None), X), "layer_norm: params is a tuple.*Scale"),
        (lambda: rms_norm.fwd(None, X), "rms_norm: params is a NoneType.*Scale"),
        (lambda: group_norm([None] * 2, X, groups=2), "group_norm: params is a list.*Scale"),
        (lambda: batch_norm(None, FRESH, X, training=True), "batch_norm: params is a NoneType"),
        (lambda: layer_norm(NONE, X, eps=10**400), "layer_norm: eps is 1000.*finite"),
        (lambda: group_norm(NONE, X, groups=10**400), "groups is 1000.*below"),
        (lambda: batch_norm(NONE, FRESH, X, training=[True]), r"training is \[True\]"),
        (lambda: layer_norm(Scale([1.0] * 4, None), X), "layer_norm: scale is a list"),
        (lambda: layer_norm(NONE, X, eps="2"), "layer_norm: eps is '2'"),
        (lambda: group_norm(NONE, X, groups=1.5), "groups is 1.5.*integer"),
        (lambda: group_norm(NONE, X, groups=True), "groups is True"),
    ],
)
def test_bad_inputs_are_named(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
