"""Activations, gated units, masked softmax, dropout: what the laws of `test_ops` do not say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from conftest import assert_leaves_close, run

from jaxnn.ops import activations as act
from jaxnn.ops import exponential_linear, gated, piecewise_linear, shrinkage
from jaxnn.ops.activations import dropout
from jaxnn.ops.piecewise_linear import Slope
from jaxnn.ops.softmax import log_softmax, masked_log_softmax, masked_softmax, softmax

pytestmark = pytest.mark.usefixtures("strict_dtypes")

# What to call, its settings, and the same in jax.nn.
IN_JAX_NN = (
    (act.relu, {}, jax.nn.relu),
    (piecewise_linear.leaky_relu, {}, jax.nn.leaky_relu),
    (piecewise_linear.leaky_relu, {"slope": -0.5}, lambda x: jax.nn.leaky_relu(x, -0.5)),
    (exponential_linear.elu, {}, jax.nn.elu),
    (exponential_linear.elu, {"alpha": 0.0}, lambda x: jax.nn.elu(x, 0.0)),
    (exponential_linear.elu, {"alpha": 2.5}, lambda x: jax.nn.elu(x, 2.5)),
    (exponential_linear.selu, {}, jax.nn.selu),
    (act.softplus, {}, jax.nn.softplus),
    (act.sigmoid, {}, jax.nn.sigmoid),
    (piecewise_linear.hard_sigmoid, {}, jax.nn.hard_sigmoid),
    (act.tanh, {}, jax.nn.tanh),
    (gated.silu, {}, jax.nn.silu),
    (gated.gelu, {}, lambda x: jax.nn.gelu(x, approximate=False)),
    (gated.gelu, {"approximate": True}, lambda x: jax.nn.gelu(x, approximate=True)),
    (gated.mish, {}, jax.nn.mish),
    (exponential_linear.celu, {}, jax.nn.celu),
    (exponential_linear.celu, {"alpha": 2.5}, lambda x: jax.nn.celu(x, 2.5)),
    (act.log_sigmoid, {}, jax.nn.log_sigmoid),
    (act.soft_sign, {}, jax.nn.soft_sign),
    (piecewise_linear.relu6, {}, jax.nn.relu6),
    (piecewise_linear.hard_swish, {}, jax.nn.hard_swish),
    (shrinkage.tanh_shrink, {}, lambda x: x - jnp.tanh(x)),
)


def values_and_slopes(x):
    """Of every activation, the values and slopes by hand."""
    results = []
    for op, static, _ in IN_JAX_NN:
        y, residuals = op.fwd(x, **static)
        results.append((y, *op.bwd(residuals, jnp.ones_like(x), **static)))
    return results


def test_values_and_slopes_are_those_of_jax_nn_at_kinks_too(x64):
    kinks = [0.0, -0.0, -3.0, 3.0, 1e-320, -1e-320]
    x = jnp.asarray(np.concatenate([kinks, np.linspace(-45, 45, 61)]))

    def theirs(x):
        return [
            (y, *pull(jnp.ones_like(x)))
            for y, pull in (jax.vjp(function, x) for _, _, function in IN_JAX_NN)
        ]

    assert_leaves_close(run(values_and_slopes, x), run(theirs, x), 1e-13)


def truths(x):
    """The values and slopes again, from SciPy in float64, for huge x too."""
    s, phi = scipy.special.expit, np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
    expm1, exp = (f(np.minimum(x, 0)) for f in (np.expm1, np.exp))
    below, above = x <= 0, x >= 0
    tau = np.tanh(np.logaddexp(x, 0))
    u, du = (np.sqrt(2 / np.pi) * v for v in (x + 0.044715 * x**3, 1 + 0.134145 * x * x))
    scale, alpha = 1.0507009873554805, 1.6732632423543772
    return [
        (np.maximum(x, 0), x > 0),
        (np.where(above, x, 0.01 * x), np.where(above, 1, 0.01)),
        (np.where(above, x, -0.5 * x), np.where(above, 1, -0.5)),
        (np.where(below, expm1, x), np.where(below, exp, 1)),
        (np.maximum(x, 0), x > 0),
        (np.where(below, 2.5 * expm1, x), np.where(below, 2.5 * exp, 1)),
        (
            scale * np.where(below, alpha * expm1, x),
            scale * np.where(below, alpha * exp, 1),
        ),
        (np.logaddexp(x, 0), s(x)),
        (s(x), s(x) * s(-x)),
        (np.clip((x + 3) / 6, 0, 1), (np.abs(x) < 3) / 6),
        (np.tanh(x), 1 / np.cosh(np.clip(x, -300, 300)) ** 2),
        (x * s(x), s(x) + x * s(x) * s(-x)),
        (x * scipy.special.ndtr(x), scipy.special.ndtr(x) + x * phi),
        (x * s(2 * u), s(2 * u) + x * s(2 * u) * s(-2 * u) * 2 * du),
        (x * tau, tau + x * (1 - tau**2) * s(x)),
        (np.where(below, expm1, x), np.where(below, exp, 1)),
        (
            np.where(below, 2.5 * np.expm1(np.minimum(x, 0) / 2.5), x),
            np.exp(np.minimum(x, 0) / 2.5),
        ),
        (-np.logaddexp(0, -x), s(-x)),
        (x / (1 + abs(x)), 1 / (1 + abs(x)) ** 2),
        (np.clip(x, 0, 6), (x > 0) & (x < 6)),
        (
            x * np.clip(x + 3, 0, 6) / 6,
            np.where(x <= -3, 0, np.where(x >= 3, 1, x / 3 + 0.5)),
        ),
        (x - np.tanh(x), np.tanh(x) ** 2),
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_huge_inputs_keep_true_values_and_slopes(dtype):
    x = jnp.array([-1e4, -700, -90, -20, -8, -2, -0.5, 0, 1e-3, 0.5, 2, 8, 20, 90, 700, 1e4], dtype)
    eps = float(jnp.finfo(dtype).eps)
    exact = truths(np.asarray(x, np.float64))
    for (op, static, _), ours, true in zip(
        IN_JAX_NN, run(values_and_slopes, x), exact, strict=True
    ):
        for a, b in zip(ours, true, strict=True):
            a = np.asarray(a, np.float64)
            assert (np.abs(a - b) <= 6 * eps * np.maximum(np.abs(b), 1)).all(), (op, static, a, b)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_values_and_slopes_keep_their_digits_however_small(dtype):
    """A slope far left is tiny, and near a zero of it two terms cancel."""
    x = jnp.asarray(np.linspace(-30, 30, 601), dtype)
    eps, tiny = float(jnp.finfo(dtype).eps), float(jnp.finfo(dtype).tiny)
    exact = truths(np.asarray(x, np.float64))
    for (op, static, _), ours, true in zip(
        IN_JAX_NN, run(values_and_slopes, x), exact, strict=True
    ):
        # The slopes of these two are of y, which near 1 has no digits of 1 - y.
        kept = 1 if op in (act.sigmoid, act.tanh) else 2
        for a, b in zip(ours[:kept], true[:kept], strict=True):
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            seen = np.abs(b) > 4 * tiny if dtype == "float16" else np.abs(b) > 1e-30
            worst = (np.abs(a - b) / np.maximum(np.abs(b), tiny))[seen].max(initial=0)
            # In 16 bits the last rounding alone; float32 has no digits to spare where terms cancel,
            # nor for x^2 and x^3 in the exponent of GELU, nor for x - tanh(x).
            assert worst <= (400 if dtype == "float32" else 0.51) * eps, (op, static, worst / eps)


def test_slopes_at_infinity_are_limits():
    limits = {piecewise_linear.leaky_relu: 0.01, exponential_linear.selu: 0.0}
    for op in (
        act.relu,
        piecewise_linear.leaky_relu,
        exponential_linear.elu,
        exponential_linear.selu,
        act.softplus,
        act.sigmoid,
        act.tanh,
    ):
        (slope,) = op.bwd(op.fwd(jnp.array([-jnp.inf, jnp.inf]))[1], jnp.ones(2))
        right = {
            act.sigmoid: 0.0,
            act.tanh: 0.0,
            exponential_linear.selu: exponential_linear.SELU_SCALE,
        }.get(op, 1.0)
        np.testing.assert_allclose(slope, [limits.get(op, 0.0), right], rtol=1e-6, err_msg=op.name)
    for approximate in (False, True):
        (slope,) = gated.gelu.bwd(
            jnp.array([-jnp.inf, jnp.inf]), jnp.ones(2), approximate=approximate
        )
        np.testing.assert_array_equal(slope, [0, 1])


def test_at_the_largest_numbers_slopes_are_limits_too():
    ends = jnp.array([-1.0, 1.0]) * jnp.finfo("float32").max
    for op, static, _ in IN_JAX_NN:
        (slope,) = op.bwd(op.fwd(ends, **static)[1], jnp.ones(2), **static)
        assert np.isfinite(slope).all(), (op, static, slope)


def test_selu_keeps_mean_0_and_variance_1(x64):
    y = exponential_linear.selu(
        jnp.asarray(scipy.special.ndtri((np.arange(200_000) + 0.5) / 200_000))
    )
    np.testing.assert_allclose([y.mean(), y.var()], [0, 1], atol=1e-3)


def test_gated_units_are_those_of_jax_nn_and_open_or_closed_at_the_ends():
    x = jax.random.normal(jax.random.key(0), (3, 10))
    value, gate = jnp.split(x, 2, axis=-1)
    np.testing.assert_allclose(gated.glu(gate, value), jax.nn.glu(x), rtol=1e-6)
    ends = jnp.array([-1e4, 1e4])
    for op in (gated.glu, gated.swiglu, gated.geglu):
        _, halves = op.fwd(ends, ends)
        dgate, dvalue = op.bwd(halves, jnp.ones(2))
        passed = 1.0 if op is gated.glu else 1e4
        np.testing.assert_array_equal(dvalue, [0, passed])
        np.testing.assert_array_equal(dgate, [0, 0 if op is gated.glu else 1e4])


def test_hidden_scores_have_a_log_of_minus_infinity_and_no_gradient(x64):
    x = jnp.array([[1.0, 2, 3], [1e4, -1e4, 1e4], [jnp.nan, 1, jnp.inf], [jnp.nan] * 3, [4, 3, 2]])
    mask = jnp.array([[1, 1, 0], [1, 1, 1], [0, 1, 0], [0, 0, 0], [0, 1, 1]], bool)
    dy = jax.random.normal(jax.random.key(0), x.shape)

    def ways(x, mask, dy):
        y, pull = jax.vjp(lambda x: masked_log_softmax(x, mask), x)
        over, _ = masked_log_softmax.fwd(x.T, mask.T, axis=0)
        plain, plainly = jax.vjp(lambda x: log_softmax(jnp.where(mask, x, -jnp.inf)), x)
        oracle = jax.vjp(lambda x: masked_log_softmax.fwd(x, mask)[0], x)[1](dy)[0]
        return y, over.T, *pull(dy), oracle, plain, *plainly(jnp.where(mask, dy, 0))

    y, over, dx, oracle, plain, plainly = run(ways, x, mask, dy)
    some = np.array([0, 1, 2, 4])  # with nothing to be seen, the plain one is NaN
    np.testing.assert_allclose(y[some], plain[some], rtol=1e-14)
    np.testing.assert_array_equal(y[3], -np.inf)
    np.testing.assert_array_equal(over, y)
    np.testing.assert_allclose(dx[some], plainly[some], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(dx, oracle, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(dx[~mask], 0)


@pytest.mark.parametrize("temperature", [1.0, 1e-3])
def test_a_hidden_row_is_0_with_gradient_0_and_what_is_hidden_never_counts(temperature):
    x = jnp.array([[1.0, 2, 3], [1e4, -1e4, 1e4], [jnp.nan, 1, jnp.inf], [jnp.nan] * 3])
    mask = jnp.array([[1, 1, 0], [1, 1, 1], [0, 1, 0], [0, 0, 0]], bool)
    dy = jnp.broadcast_to(jnp.arange(3.0), x.shape)

    def forward(x):
        return masked_softmax.fwd(x, mask, temperature=temperature)[0]

    def both(x):
        y, pull = jax.vjp(lambda x: masked_softmax(x, mask, temperature=temperature), x)
        return y, *pull(dy), *jax.vjp(forward, x)[1](dy)

    y, dx, oracle = run(both, x)
    p = scipy.special.expit(-1 / temperature)
    right = [[p, 1 - p, 0], [0.5, 0, 0.5], [0, 1, 0], [0, 0, 0]]
    np.testing.assert_allclose(y, right, rtol=1e-6, atol=1e-30)
    slope = p * (1 - p) / temperature
    right = [[-slope, slope, 0], [-0.5 / temperature, 0, 0.5 / temperature], [0] * 3, [0] * 3]
    np.testing.assert_allclose(dx, right, rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(oracle, right, rtol=1e-6, atol=1e-30)


def test_the_mask_broadcasts_and_agrees_with_jax_nn(x64):
    x = jax.random.normal(jax.random.key(0), (2, 3, 5))
    shapes = ((), (5,), (3, 1), (2, 1, 5), (2, 3, 5))
    masks = [jnp.arange(np.prod(shape, dtype=int)).reshape(shape) % 3 != 1 for shape in shapes]

    def both(x, masks):
        for mask in masks:
            for axis in (0, -1):
                theirs = jax.nn.softmax(x, axis, where=jnp.broadcast_to(mask, x.shape))
                yield masked_softmax(x, mask, axis=axis), jnp.nan_to_num(theirs)

    for ours, theirs in run(lambda x, masks: list(both(x, masks)), x, masks):
        np.testing.assert_allclose(ours, theirs, rtol=1e-14)


def test_dropout_drops_the_share_it_is_told_and_keeps_the_mean():
    x, key = jnp.ones(100_000), jax.random.key(3)
    for rate in (0.0, 0.1, 0.75, 1 - 2**-20):
        y = dropout(x, key, rate=rate)
        share = float((y == 0).mean())
        deviation = (rate * (1 - rate) / x.size) ** 0.5
        assert abs(share - rate) <= 4 * deviation
        assert set(np.unique(y)) <= {np.float32(0), np.float32(1) / np.float32(1 - rate)}
    np.testing.assert_array_equal(dropout(x, key, rate=0.0), x)


def test_one_key_drops_the_same_in_both_passes_and_in_every_dtype():
    key = jax.random.key(3)
    y, pull = jax.vjp(lambda x, key: dropout(x, key, rate=0.5), jnp.ones((7, 5)), key)
    dx, dkey = pull(jnp.ones((7, 5)))
    np.testing.assert_array_equal(dx, y)
    assert dkey.dtype == jax.dtypes.float0
    for dtype in ("bfloat16", "float16"):
        np.testing.assert_array_equal(dropout(jnp.ones((7, 5), dtype), key, rate=0.5), y)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(dropout(jnp.ones((7, 5)), key, rate=0.5), y)
    raw = jax.random.key_data(key)
    np.testing.assert_array_equal(dropout(jnp.ones((7, 5)), raw, rate=0.5), y)
    assert (dropout(jnp.ones((7, 5)), jax.random.key(4), rate=0.5) != y).any()


def test_what_dropout_drops_is_gone_even_if_it_is_no_number():
    y = dropout(jnp.full(9, jnp.nan), jax.random.key(0), rate=0.5)
    kept = dropout(jnp.ones(9), jax.random.key(0), rate=0.5) > 0
    np.testing.assert_array_equal(jnp.isnan(y), kept)


def test_probabilities_of_70_000_narrow_scores_add_up():
    x = jnp.zeros(70_000, jnp.float16)
    for y in (softmax(x), masked_softmax(x, x == 0), jnp.exp(log_softmax(x))):
        np.testing.assert_allclose(np.asarray(y, np.float64).sum(), 1, rtol=0.01)


def test_numpys_arrays_and_settings_are_taken_and_widen_nothing():
    x = np.ones((2, 3), np.float32)
    assert softmax(x, temperature=np.float32(2), axis=np.int64(1)).shape == (2, 3)
    assert masked_softmax(x, x > 0).shape == gated.glu(x, x).shape == (2, 3)
    assert dropout(x, jax.random.key(0), rate=np.float64(0.5)).shape == (2, 3)
    assert (
        exponential_linear.elu.fwd(jnp.ones(3, "bfloat16"), alpha=np.float32(2))[0].dtype
        == "bfloat16"
    )
    assert piecewise_linear.leaky_relu.fwd(np.float32(-0.5), slope=np.float32(0.5))[0] == -0.25


def test_a_softmax_over_nothing_is_empty():
    x = jnp.zeros((2, 0))
    for op, inputs in ((softmax, (x,)), (log_softmax, (x,)), (masked_softmax, (x, x > 0))):
        y, pull = jax.vjp(lambda x, op=op, rest=inputs[1:]: op(x, *rest), x)
        assert y.shape == pull(y)[0].shape == (2, 0), op


MASK = jnp.ones(3, bool)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: exponential_linear.elu(x, alpha=float("nan")), ValueError, "alpha is nan"),
        (lambda x: exponential_linear.celu(x, alpha=0), ValueError, "celu: alpha is 0;.*not 0"),
        (lambda x: act.softplus(x, beta=0.0), ValueError, r"softplus: beta is 0\.0;.*positive"),
        (lambda x: act.softplus(x, threshold="20"), TypeError, "threshold is '20'.*None for none"),
        (lambda x: shrinkage.hard_shrink(x, lambd=-1), ValueError, "lambd is -1;.*at least 0"),
        (lambda x: shrinkage.soft_shrink(x, lambd=None), TypeError, "soft_shrink: lambd is None"),
        (
            lambda x: shrinkage.threshold(x, threshold=float("nan"), value=0),
            ValueError,
            "threshold: threshold is nan",
        ),
        (lambda x: shrinkage.threshold(x, threshold=1.0), TypeError, "missing.*'value'"),
        (
            lambda x: piecewise_linear.hard_tanh(x, min_val=1, max_val=1),
            ValueError,
            "min_val is 1 and max_val 1;.*below",
        ),
        (
            lambda x: piecewise_linear.prelu(Slope(x[0, :2]), x),
            ValueError,
            r"prelu: slope has shape \(2,\), x \(2, 3\);.*\(3,\).*channels last",
        ),
        (lambda x: piecewise_linear.prelu(x[0], x), TypeError, "prelu: params is a .*Slope"),
        (
            lambda x: piecewise_linear.prelu(Slope(x[0].astype("bfloat16")), x),
            TypeError,
            "slope bfloat16, x float32",
        ),
        (lambda x: piecewise_linear.prelu(Slope(0.25), x), TypeError, "slope is a float"),
        (lambda x: gated.glu(x, x[:1]), ValueError, r"glu: .*\(2, 3\).*\(1, 3\).*split"),
        (lambda x: gated.swiglu(x, x[0]), ValueError, r"swiglu: .*\(2, 3\).*\(3,\).*split"),
        (lambda x: gated.geglu(x[..., :1], x), ValueError, r"geglu: .*\(2, 1\).*\(2, 3\)"),
        (lambda x: softmax(x, temperature=0), ValueError, "softmax: temperature is 0;.*argmax"),
        (
            lambda x: masked_softmax(x, MASK, temperature=-2.0),
            ValueError,
            r"masked_softmax: temperature is -2\.0",
        ),
        (lambda x: masked_log_softmax(x, x), TypeError, "masked_log_softmax: mask has dtype float"),
        (
            lambda x: masked_log_softmax(x, MASK, axis=2),
            ValueError,
            "masked_log_softmax: axis is 2",
        ),
        (lambda x: masked_softmax(x, x), TypeError, "mask has dtype float32;.*mask > 0"),
        (lambda x: masked_softmax(x, [True]), TypeError, "mask is a list;.*an array"),
        (lambda x: masked_softmax(x, MASK[:2]), ValueError, r"\(2,\); .*broadcast to \(2, 3\)"),
        (lambda x: masked_softmax(x[0], MASK[None]), ValueError, r"\(1, 3\); .* to \(3,\)"),
        (lambda x: dropout(x, jax.random.key(0), rate=1.0), ValueError, r"1\.0;.*drop.*1 - p"),
        (lambda x: dropout(x, jax.random.key(0), rate=-0.1), ValueError, r"rate is -0\.1"),
        (lambda x: dropout(x, jax.random.key(0), rate=float("nan")), ValueError, "rate is nan"),
        (lambda x: dropout.fwd(x, jax.random.key(0), rate=2.0), ValueError, "dropout: rate is 2"),
        (lambda x: dropout(x, jax.random.key(0), rate=10**400), ValueError, "rate is 1000"),
        (lambda x: dropout(x, jnp.zeros(2), rate=0.5), TypeError, r"key is float32\[2\]"),
        (
            lambda x: dropout(x.astype(int), jax.random.key(0), rate=0.5),
            TypeError,
            "x has dtype int32.*float",
        ),
        (
            lambda x: dropout(x, None, rate=0.5),
            TypeError,
            "key is None.*random.key.*leave dropout out",
        ),
        (lambda x: dropout([1.0], jax.random.key(0), rate=0.5), TypeError, "x is a list"),
        (
            lambda x: piecewise_linear.leaky_relu(x, slope="2"),
            TypeError,
            "leaky_relu: slope is '2'.*number",
        ),
        (
            lambda x: piecewise_linear.leaky_relu(x, slope=float("inf")),
            ValueError,
            "slope is inf.*finite",
        ),
        (lambda x: exponential_linear.elu(x, alpha=True), TypeError, "elu: alpha is True"),
        (
            lambda x: exponential_linear.elu(x, alpha=[1.0]),
            TypeError,
            r"elu: alpha is \[1\.0\].*number",
        ),
        (
            lambda x: exponential_linear.elu(x, alpha=10**400),
            ValueError,
            "elu: alpha is 1000.*finite",
        ),
        (lambda x: gated.geglu(x, x, approximate=1), TypeError, "geglu: approximate is 1; .*True"),
        (lambda x: gated.glu(x, x.astype(int)), TypeError, "glu: value has dtype int32.*float"),
        (
            lambda x: gated.swiglu(x, x.astype("bfloat16")),
            TypeError,
            "swiglu: .*gate float32, value bfloat16",
        ),
        (
            lambda x: gated.gelu(x, approximate="no"),
            TypeError,
            "approximate is 'no'.*True or False",
        ),
        (lambda x: gated.glu(x, [0.0]), TypeError, "glu: value is a list.*asarray"),
        (lambda x: gated.swiglu(None, x), TypeError, "swiglu: gate is a NoneType.*an array"),
        (lambda x: softmax(x[0, 0]), ValueError, r"axis is -1, x has shape \(\)"),
        (lambda x: softmax.fwd(0.5), TypeError, "softmax: x is a float"),
        (lambda x: softmax(x.astype(int)), TypeError, "softmax: x has dtype int32.*floating"),
        (lambda x: softmax(x, axis="2"), TypeError, "softmax: axis is '2'.*integer"),
        (lambda x: log_softmax(x, axis=1.5), TypeError, "axis is 1.5"),
        (lambda x: log_softmax(x, axis=2), ValueError, r"axis is 2, x has shape \(2, 3\)"),
        (lambda x: softmax(x, temperature=1e-46), ValueError, "1e-46.*positive in float32"),
        (lambda x: masked_softmax(x, MASK, temperature=float("inf")), ValueError, "is inf.*finite"),
    ],
)
def test_bad_settings_and_inputs_are_named_before_anything_is_compiled(call, error, message):
    with pytest.raises(error, match=message):
        jax.eval_shape(call, jnp.zeros((2, 3)))


@pytest.mark.parametrize("op", dict.fromkeys(op for op, *_ in IN_JAX_NN), ids=lambda op: op.name)
def test_activations_refuse_what_is_no_floating_array(op):
    for x, message in (
        (jnp.arange(3), "x has dtype int32; it must be floating: cast"),
        (jnp.zeros(3, bool), "x has dtype bool; it must be floating"),
        (jnp.zeros(3, complex), "x has dtype complex64; it must be floating"),
        ([0.0], "x is a list; it must be an array: wrap"),
        (0.5, "x is a float; it must be an array"),
        (None, "x is a NoneType; it must be an array"),
    ):
        for call in (op, op.fwd):
            with pytest.raises(TypeError, match=f"^{op.name}: {message}"):
                call(x)


def test_a_limit_that_16_bits_round_is_not_reached_below_it():
    x = jnp.bfloat16(0.69921875)  # the nearest to 0.7
    assert jax.grad(lambda x: piecewise_linear.hard_tanh(x, max_val=0.7))(x) == 1


def test_softplus_is_x_where_x_is_nearly_the_largest_number():
    x = jnp.array([3e38, -3e38], jnp.float32)
    y, dx = jax.vmap(jax.value_and_grad(lambda x: act.softplus(x, beta=2.0)))(x)
    np.testing.assert_array_equal(y, np.array([3e38, 0], np.float32))
    np.testing.assert_array_equal(dx, [1, 0])


@pytest.mark.parametrize("op", [piecewise_linear.leaky_relu, piecewise_linear.hard_sigmoid])
def test_a_backward_that_saved_no_number_takes_one_of_pythons(op):
    _, residuals = op.fwd(jnp.float32(2.0))
    (dx,) = op.bwd(residuals, 1.0)
    np.testing.assert_allclose(dx, jax.grad(op)(jnp.float32(2.0)), rtol=1e-6)


def test_integers_beyond_32_bits_are_taken_where_numbers_are():
    x = jnp.array([-1.0, 2.0])
    for op, setting in ((act.softplus, "beta"), (exponential_linear.elu, "alpha")):
        exact, given = (op(x, **{setting: number}) for number in (1e10, 10**10))
        np.testing.assert_array_equal(given, exact)
        _, residuals = op.fwd(x, **{setting: 10**10})
        assert np.isfinite(op.bwd(residuals, x, **{setting: 10**10})[0]).all()
