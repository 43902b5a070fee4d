"""verify.against: a kernel, a callback, a solver, NumPy beside a plain reference."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from jaxnn import verify
from jaxnn.verify.findings import LeafReport
from jaxnn.verify.triples import Triple, compare_with_reference

X = jax.random.normal(jax.random.key(0), (4, 3))
W = jax.random.normal(jax.random.key(1), (3, 2))


def with_rule(f, bwd):
    rule = jax.custom_vjp(f)
    rule.defvjp(lambda *inputs: (f(*inputs), inputs), bwd)
    return rule


def product(x, w):
    return x @ w


def kernel(factor=1.0, shift=0.0):
    """A matrix product in Pallas, its backward in jax.numpy."""

    def body(x, w, out):
        out[...] = x[...] @ w[...] + shift

    def product_kernel(x, w):
        shape = jax.ShapeDtypeStruct((len(x), w.shape[1]), x.dtype)
        return pl.pallas_call(body, out_shape=shape, interpret=True)(x, w)

    return with_rule(product_kernel, lambda r, d: (d @ r[1].T, factor * r[0].T @ d))


def called_back(function):
    """The function in NumPy, called back; its backward in jax.numpy is that of the sine."""

    def sine(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda a: function(np.asarray(a)), shape, x)

    return sine


def statuses(report):
    return {leaf.path: leaf.status for leaf in report.leaves}


def test_a_kernel_that_is_right_passes_by_value_and_gradient(undiagnosed):
    report = verify.assert_against(kernel(), product, X, W)
    assert statuses(report) == {"out": "pass", "x": "pass", "w": "pass"}
    assert report.name == "product_kernel against product"
    assert len(report.rules) == 1
    assert all(0 < leaf.sees < 1e-4 for leaf in report.leaves)


def test_a_wrong_value_and_a_wrong_gradient_are_each_told(undiagnosed):
    wrong = verify.against(kernel(factor=1.5), product, X, W)
    assert statuses(wrong) == {"out": "pass", "x": "pass", "w": "fail"}
    off = verify.against(kernel(shift=1e-4), product, X, W)
    assert statuses(off) == {"out": "fail", "x": "pass", "w": "pass"}
    assert "off by 1.0e-04" in off.leaves[0].messages[0]
    with pytest.raises(verify.GradientMismatch):
        verify.assert_against(kernel(factor=1.5), product, X, W)


def test_a_wrong_gradient_has_its_cause():
    report = verify.against(kernel(factor=1.5), product, X, W)
    leaf = report.leaves[-1]
    assert "1.5 times" in leaf.diagnosis.text


def test_what_has_no_derivative_is_compared_in_its_values_and_that_is_said():
    sine = called_back(np.sin)
    report = verify.against(sine, jnp.sin, X)
    assert statuses(report) == {"out": "pass"}
    assert any("the gradient, as sine has none" in line for line in report.coverage)
    right = with_rule(sine, lambda r, d: (jnp.cos(r[0]) * d,))
    assert statuses(verify.against(right, jnp.sin, X)) == {"out": "pass", "x": "pass"}


def softmax_in_numpy(x):
    e = np.exp(x - np.max(x, -1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def backward_in_numpy(whole):
    def backward(x, dout):
        y = softmax_in_numpy(np.asarray(x))
        inner = (y * np.asarray(dout)).sum(-1, keepdims=True) if whole else y * dout
        return (y * (np.asarray(dout) - inner),)

    return backward


def test_numpy_on_both_sides_is_run_as_it_is(undiagnosed):
    report = verify.against(softmax_in_numpy, jax.nn.softmax, X, backward=backward_in_numpy(True))
    assert report.status == "pass"
    assert any("cannot be traced and was run as it is" in line for line in report.coverage)
    wrong = verify.against(softmax_in_numpy, jax.nn.softmax, X, backward=backward_in_numpy(False))
    assert statuses(wrong) == {"out": "pass", "x": "fail"}


def test_numpy_that_writes_into_its_input_writes_into_a_copy():
    x = np.array(X)
    report = verify.against(lambda x: np.multiply(x, 2, out=x), lambda x: 2 * x, x)
    assert report.status == "pass"
    assert np.array_equal(x, X)


class Pair(NamedTuple):
    y: jax.Array
    at: jax.Array


def test_outputs_have_names_and_integers_must_be_equal(undiagnosed):
    def largest(x):
        return Pair(x.max(-1), x.argmax(-1))

    report = verify.against(lambda x: Pair(x.max(-1), x.argmin(-1)), largest, X)
    assert statuses(report) == {"out.y": "pass", "out.at": "fail", "x": "pass"}
    assert verify.against(largest, largest, X).status == "pass"
    skipped = verify.against(
        lambda x: Pair(x.max(-1), x.argmin(-1)), largest, X, skip={"out.at": "ties"}
    )
    assert skipped.status == "pass"


def test_what_is_nan_in_masked_places_is_wrong(undiagnosed):
    mask = jnp.array([[1, 1, 0], [0, 0, 0], [1, 0, 1], [1, 1, 1]], bool)

    def plain(x, mask):
        return jax.nn.softmax(jnp.where(mask, x, -1e30), -1) * mask

    report = verify.against(
        lambda x, mask: jax.nn.softmax(jnp.where(mask, x, -jnp.inf), -1), plain, X, mask
    )
    assert statuses(report)["out"] == "fail"
    assert "nan at [1, 0] (3 such entries)" in report.leaves[0].messages[0]


def test_what_differs_from_run_to_run_is_not_deterministic(undiagnosed):
    calls = []

    def another_each_time(x):
        calls.append(1)
        return (x * (1 + 1e-7 * (len(calls) % 2))).astype(x.dtype)

    report = verify.against(called_back(another_each_time), lambda x: 1 * x, X)
    assert report.status == "fail"
    assert "not deterministic: run twice, out is" in report.problems[0]


def test_a_second_point_shows_what_ones_hide(undiagnosed):
    ones = jnp.ones(3)
    report = verify.against(lambda x, g: x, lambda x, g: x * g, X, ones)
    assert report.status == "fail"
    by_chance = with_rule(lambda x, g: x * g, lambda r, d: (d, (r[0] * d).sum(0)))
    report = verify.against(by_chance, lambda x, g: x * g, X, ones)
    assert statuses(report) == {"out": "pass", "x": "fail", "g": "pass"}
    assert "right at the point given" in report.problems[0]


def rms(x, g):
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * g


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_working_dtype_is_what_is_judged(dtype, undiagnosed):
    def in_float32(x, g, off):
        y, g = x.astype(jnp.float32), g.astype(jnp.float32)
        return ((1 + off) * rms(y, g)).astype(x.dtype)

    x, g = X.astype(dtype), jnp.arange(1.0, 4.0).astype(dtype)
    epsilon = float(jnp.finfo(dtype).eps)
    assert verify.against(lambda x, g: in_float32(x, g, 0.0), rms, x, g).status == "pass"
    off = verify.against(lambda x, g: in_float32(x, g, 100 * epsilon), rms, x, g)
    assert statuses(off)["out"] == "fail"


def test_in_float64_small_errors_show_unless_declared(x64, undiagnosed):
    x = jnp.linspace(0.1, 2.0, 5)

    def nearly(x):
        return jnp.sin(x) * (1 + 1e-8)

    assert verify.against(jnp.sin, jnp.sin, x).status == "pass"
    assert statuses(verify.against(nearly, jnp.sin, x)) == {"out": "fail", "x": "fail"}
    reason = (1e-7, "the table has eight digits")
    declared = verify.against(nearly, jnp.sin, x, tolerance={"out": reason, "x": reason})
    assert declared.status == "pass"
    assert "the table has eight digits" in str(declared)
    half = verify.against(nearly, jnp.sin, x, tolerance={"out": reason})
    assert statuses(half) == {"out": "pass", "x": "fail"}


def test_a_cotangent_that_is_none_is_zero(undiagnosed):
    def rows(table, at):
        return table[at]

    def backward(table, at, dout):
        return jnp.zeros_like(table).at[at].add(dout), None

    at = jnp.array([0, 2, 2])
    assert verify.against(rows, rows, X, at, backward=backward).status == "pass"
    nothing = verify.against(rows, rows, X, at, backward=lambda table, at, dout: (None, None))
    assert statuses(nothing) == {"out": "pass", "table": "fail"}


def test_pytrees_settings_and_keys(undiagnosed):
    def layer(params, key, x, *, rate):
        kept = jax.random.bernoulli(key, 1 - rate, x.shape)
        return {"y": (x * kept) @ params["w"]}

    def other(params, key, x, *, rate):
        kept = jax.random.uniform(key, x.shape) < 1 - rate
        return {"y": jnp.where(kept, x, 0) @ params["w"]}

    report = verify.against(other, layer, {"w": W}, jax.random.key(3), X, rate=0.3)
    assert statuses(report) == {"out['y']": "pass", "params['w']": "pass", "x": "pass"}
    assert report.name == "other against layer, rate=0.3"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: verify.against(3, jnp.sin, X), r"f is 3; it must be a function"),
        (lambda: verify.against(jnp.sin, jnp.sin), "no inputs are given"),
        (lambda: verify.against(product, lambda x: x, X, W), r"reference\(x\) cannot take 2"),
        (lambda: verify.against(lambda x: x, product, X, W), r"f\(x\) cannot take 2"),
        (lambda: verify.against(jnp.sin, lambda x: x, X, n=1), r"f\(x.*\) .* cannot .* n=\.\.\."),
        (lambda: verify.against(jnp.sin, jnp.sum, X), r"the reference returns float32\[\]"),
        (lambda: verify.against(jnp.sin, lambda x: np.sin(x), X), "looks at the values.*jax.numpy"),
        (lambda: verify.against(jnp.sin, called_back(np.sin), X), "no derivative in reverse or"),
        (lambda: verify.against(jnp.exp, jnp.exp, X + 1j), "complex64.*the imaginary part"),
        (lambda: verify.against(jnp.sin, jnp.sin, X, backward=lambda x, dout: dout),
         "backward returns a .*Tracer; it must return a tuple of one cotangent per input"),
        (lambda: verify.against(jnp.sin, jnp.sin, X, backward=lambda x, dout: (dout, dout)),
         "backward returns 2 cotangents"),
        (lambda: verify.against(jnp.sin, jnp.sin, X, backward=lambda x, dout: ((dout, dout),)),
         "a leaf .* that the parameters lack; backward must return a tuple"),
        (lambda: verify.against(jnp.sin, jnp.sin, X, backward=lambda x, d: (d,)),
         r"backward\(x, d\) cannot take .* dout=\.\.\."),
        (lambda: verify.against(jnp.sin, jnp.sin, X, tolerance={"out": (1e-3, "")}), "reason"),
        (lambda: verify.against(jnp.sin, jnp.sin, X, skip={"y": "why"}), "'y'.*out, x"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_in_words(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def one_array(got, low, truth, dtype="float32"):
    arrays = [np.asarray(x, np.float64) for x in (got, low, truth)]
    return Triple(*arrays, dtype, floating=True)


EPSILON = 2.0**-23
LEAF = LeafReport("out", (2,), "float32", "fail")


def test_a_reference_that_is_exact_by_luck_does_not_accuse():
    """At the point given its error is 0 and ours above the bound; elsewhere it is as large."""
    lucky = one_array([1.0, 1.0 + 2e-6], [1.0, 1.0], [1.0, 1.0])
    usual = one_array([1.0, 1.0 + 2e-6], [1.0 + 1e-6, 1.0], [1.0, 1.0])
    assert compare_with_reference(LEAF, lucky, EPSILON, 0.0, lambda: [usual] * 4).status == "pass"
    assert compare_with_reference(LEAF, lucky, EPSILON, 0.0, lambda: [lucky] * 4).status == "fail"
    exact = one_array([1.0, 1.0], [1.0, 1.0], [1.0, 1.0])
    assert (
        compare_with_reference(LEAF, lucky, EPSILON, 0.0, lambda: [exact, *[lucky] * 3]).status
        == "fail"
    )
    assert compare_with_reference(LEAF, lucky, EPSILON, 1e-6, lambda: [lucky] * 4).status == "pass"


def test_where_the_reference_is_not_finite_nothing_is_judged():
    here = one_array([1.0, 5.0], [1.0, np.inf], [1.0, np.nan])
    leaf = compare_with_reference(LEAF, here, EPSILON, 0.0, list)
    assert leaf.status == "pass"
    assert "the reference gives nan at [1] (1 such entries): not judged" in leaf.messages[0]
    nowhere = one_array([1.0, 5.0], [np.nan, np.nan], [np.nan, np.nan])
    assert compare_with_reference(LEAF, nowhere, EPSILON, 0.0, list).status == "inconclusive"
