"""Causes in rules as people write them: slopes, kinks, NaN, a narrower dtype, indices, orders."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from jaxnn import verify

KEYS = jax.random.split(jax.random.key(3), 6)
X = jax.random.normal(KEYS[0], (3, 4))


def rule(forward, backward):
    """A rule of one input, whose backward is given the input, the output and dy."""

    @jax.custom_vjp
    def f(x):
        return forward(x)

    f.defvjp(lambda x: (forward(x), (x, forward(x))), lambda res, dy: (backward(*res, dy),))
    return f


def found(function, *inputs, **settings):
    """The one cause of everything that is wrong, where there is one."""
    report = verify.rule(function, *inputs, **settings)
    assert report.status == "fail", report
    (diagnosis,) = {leaf.diagnosis for leaf in report.leaves if leaf.status == "fail"}
    return diagnosis


def plain_sigmoid(x):
    return 1 / (1 + jnp.exp(-x))


def plain_log_cosh(x):
    return jnp.abs(x) + jnp.log1p(jnp.exp(-2 * jnp.abs(x)))


def root(x):
    """y with y^3 + y = x, by a loop."""

    def step(_, y):
        return y - (y**3 + y - x) / (3 * y * y + 1)

    return jax.lax.fori_loop(0, 12, step, x)


SLOPES = {
    "wrong sign of a term": (
        plain_sigmoid,
        lambda x, y: y * (1 + y),
        "wrong derivative",
        "y (1 + y) is taken for the derivative",
    ),
    "another function": (
        plain_log_cosh,
        lambda x, y: 1 - jnp.tanh(x) ** 2,
        "wrong derivative",
        "the derivative of tanh",
    ),
    "value, times 2": (
        lambda x: jnp.log(jnp.cosh(x) + jnp.sinh(x) ** 2),
        lambda x, y: 2 * y,
        "wrong saved value",
        "the value y is taken for the derivative, times 2",
    ),
    "sign of the argument": (
        lambda x: jnp.logaddexp(x, 0),
        lambda x, y: 1 - plain_sigmoid(x),
        "wrong saved value",
        "the derivative is taken at -x",
    ),
    "input for output": (
        root,
        lambda x, y: 1 / (3 * x * x + 1),
        "wrong saved value",
        "in terms of the output is given the input",
    ),
    "1 in the denominator": (
        root,
        lambda x, y: 1 / (3 * y * y),
        "missing term",
        "1 is not added to what the derivative divides by",
    ),
}


@pytest.mark.parametrize("slip", SLOPES)
def test_the_slope_of_an_elementwise_function(slip):
    forward, slope, cause, words = SLOPES[slip]
    diagnosis = found(rule(forward, lambda x, y, dy: dy * slope(x, y)), X)
    assert diagnosis.cause == cause
    assert words in diagnosis.text


def test_a_slope_that_is_almost_a_slip_has_no_cause():
    slope = rule(root, lambda x, y, dy: dy * (1 / (3 * y * y) + 1e-6 * x))
    diagnosis = found(slope, X)
    assert diagnosis is None or diagnosis.cause == "location"


def test_a_setting_forgotten_inside():
    @partial(jax.custom_vjp, nondiff_argnums=(1,))
    def f(x, beta):
        return jnp.logaddexp(beta * x, 0) / beta

    f.defvjp(lambda x, beta: (f(x, beta), x), lambda beta, x, dy: (dy * plain_sigmoid(x),))
    assert "1/2.5 times x, and 2.5 is the setting beta" in found(f, X, beta=2.5).text


def test_the_inner_derivative_of_an_activation():
    def forward(x):
        return x * jnp.tanh(0.8 * (x + 0.1 * x**3))

    def backward(x, y, dy):
        t = jnp.tanh(0.8 * (x + 0.1 * x**3))
        return dy * (t + x * (1 - t * t))

    diagnosis = found(rule(forward, backward), X)
    assert diagnosis.cause == "derivative left out"
    assert "inner derivative is taken as 1, of what is handed to tanh" in diagnosis.text


def test_a_cotangent_handed_on_is_no_value_of_the_forward():
    diagnosis = found(rule(lambda x: jnp.tanh(x @ jnp.ones((4, 4))), lambda x, y, dy: dy), X)
    assert diagnosis.cause == "derivative left out"
    assert "handed on" in diagnosis.text


def test_an_argument_handed_back_is():
    @jax.custom_vjp
    def f(x, t):
        return jnp.tanh(x * t) * t

    f.defvjp(lambda x, t: (f(x, t), (x, t)), lambda res, dy: (res[1], None))

    def loss(x, t):
        return f(x, t).sum()

    report = verify.gradient(loss, jax.grad(loss), X, X + 1)
    assert [leaf.diagnosis.cause for leaf in report.leaves] == ["forward value"]


def test_infinite_values_match_nothing():
    mask = X > -0.5

    def backward(x, y, dy):  # the mean of the scores let through
        return dy[:, None] * mask / mask.sum(-1, keepdims=True)

    forward = partial(jax.nn.logsumexp, axis=-1)
    diagnosis = found(rule(lambda x: forward(jnp.where(mask, x, -jnp.inf)), backward), X)
    assert diagnosis is None or diagnosis.cause == "location"


def test_entries_at_kinks_are_left_out():
    x = X.at[0, 0].set(0)

    def leaky(x, y, dy):
        return jnp.where(x < 0, dy, 0.1 * dy)

    diagnosis = found(rule(lambda x: jnp.where(x > 0, x, 0.1 * x), leaky), x)
    assert diagnosis.cause == "mask"
    clipped = rule(lambda x: jnp.clip(x, -0.5, 0.5), lambda x, y, dy: jnp.where(x == y, 0, dy))
    assert "the mask is inverted" in found(clipped, X).text


def test_the_smallest_for_the_largest():
    x = jax.random.normal(KEYS[4], (6, 5))
    x = x.at[0, 0].set(x[0, 1:].max())

    def backward(x, y, dy):
        return jnp.where(jnp.arange(5) == x.argmin(-1)[:, None], dy[:, None], 0)

    diagnosis = found(rule(lambda x: x.max(-1), backward), x)
    assert diagnosis.cause == "mask"
    assert "the smallest is taken for the largest in reduce_max" in diagnosis.text


def norm(x):
    return jnp.sqrt((x * x).sum(-1, keepdims=True))


def test_where_autodiff_has_no_value():
    x = X.at[1].set(0)
    diagnosis = found(rule(norm, lambda x, y, dy: dy * x), x)
    assert diagnosis.text == "each slice along axis 0 is multiplied by a number of its own"

    def at_zero(x, y, dy):
        return jnp.where(y > 0, dy * x / jnp.where(y > 0, y, 1), 2 * dy)

    assert "only index 1 of axis 0 is wrong" in found(rule(norm, at_zero), x).text

    def focus(x):
        return jnp.sqrt(1 - plain_sigmoid(x)) ** 2 * x + (1 - plain_sigmoid(x)) ** 0.5

    saturated = X.at[0, 0].set(60)
    q = 1 - plain_sigmoid(X)

    def exponent_left_out(x, y, dy):
        p = plain_sigmoid(x)
        q = jnp.where(p < 1, 1 - p, 1)
        return dy * jnp.where(p < 1, 1 - p - x * p * (1 - p) - p * (1 - p) * q**-0.5, 0)

    assert q.shape == X.shape
    diagnosis = found(rule(focus, exponent_left_out), saturated)
    assert "the exponent 0.5 is left out of 0.5 x^-0.5" in diagnosis.text


def in_float32(mistake):
    """The RMS norm of language models, in float32 whatever it is given."""

    @jax.custom_vjp
    def f(x, w):
        z = x.astype(jnp.float32)
        r = jax.lax.rsqrt((z * z).mean(-1, keepdims=True) + 1e-5)
        return (z * r * w.astype(jnp.float32)).astype(x.dtype)

    def backward(residuals, dy):
        x, w = (v.astype(jnp.float32) for v in residuals)
        dy = dy.astype(jnp.float32)
        r = jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)
        g = dy if mistake == "gain" else dy * w
        dx = r * g
        if mistake != "mean":
            dx -= r**3 * x * (g * x).mean(-1, keepdims=True)
        dw = (dy * x * r).sum(0)
        off = {"almost": 1e-4, "barely": 3e-6}.get(mistake, 0.0)
        return dx * (1 + off * x), dw

    f.defvjp(lambda x, w: (f(x, w), (x, w)), backward)
    return f


@pytest.mark.parametrize(
    ("mistake", "cause"),
    [("gain", "derivative left out"), ("mean", "missing term"), ("almost", ""), ("barely", "")],
)
def test_what_computes_in_float32_inside(mistake, cause):
    x, w = jax.random.normal(KEYS[5], (9, 33)), jax.random.normal(KEYS[1], (33,))
    diagnosis = found(in_float32(mistake), x, w)
    named = "" if diagnosis is None or diagnosis.cause == "location" else diagnosis.cause
    assert named == cause


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda ids: ids + 1, "off by 1: column 1 of the indices"),
        (lambda ids: ids.T.reshape(ids.shape), "axes 0 and 1 transposed, then reshaped"),
    ],
)
def test_other_rows_of_a_table(other, words):
    ids = jnp.array([[0, 1, 1], [2, 4, 5]])
    table = jax.random.normal(KEYS[2], (7, 2))
    wrong = rule(
        lambda table: table[ids],
        lambda table, y, dy: jnp.zeros_like(table).at[other(ids)].add(dy),
    )
    diagnosis = found(wrong, table)
    assert diagnosis.cause == "index"
    assert words in diagnosis.text


def of_order(x, places, dy):
    return jnp.zeros_like(x).at[jnp.arange(len(x))[:, None], places].set(dy)


@pytest.mark.parametrize(
    ("forward", "places", "cause", "words"),
    [
        (
            lambda x: jax.lax.top_k(x, 3)[0],
            lambda x: jnp.sort(jax.lax.top_k(x, 3)[1]),
            "permuted",
            "their places are sorted",
        ),
        (
            lambda x: jax.lax.top_k(x, 3)[0],
            lambda x: jnp.roll(jax.lax.top_k(x, 3)[1], 1, 0),
            "shifted",
            "shifted by 1 along axis 0: the places in top_k",
        ),
        (
            jnp.sort,
            lambda x: jnp.argsort(jnp.argsort(x)),
            "permuted",
            "the order is applied a second time",
        ),
    ],
)
def test_orders(forward, places, cause, words):
    diagnosis = found(rule(forward, lambda x, y, dy: of_order(x, places(x), dy)), X)
    assert diagnosis.cause == cause
    assert words in diagnosis.text


def test_each_of_the_entries_that_tie_given_the_whole():
    x = jax.random.normal(KEYS[4], (6, 5))
    x = x.at[:, 0].set(x.max(-1))
    diagnosis = found(
        rule(lambda x: x.max(-1), lambda x, y, dy: dy[:, None] * (x == y[:, None])), x
    )
    assert diagnosis.text.startswith("2 times the right one")


def test_a_cotangent_left_out_is_told_from_a_mask_left_out():
    words = "the other factor is taken as 1 in the product of an output and its cotangent"
    without = rule(jnp.tanh, lambda x, y, dy: 1 - y**2)
    assert verify.rule(without, X).leaves[0].diagnosis.text == words
    mask = jnp.where(X > 0.3, 1.0, 0.0)
    ignored = rule(lambda x: jnp.tanh(x) * mask, lambda x, y, dy: dy * (1 - jnp.tanh(x) ** 2))
    text = verify.rule(ignored, X).leaves[0].diagnosis.text
    assert text.startswith("the other factor is taken as 1 in mul (test_verify_cause_rules.py")
