"""One table drives every op through the same laws."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from conftest import assert_leaves_close, run

import jaxnn.ops
from jaxnn import verify
from jaxnn.op import Op
from jaxnn.ops import activations, losses
from jaxnn.ops import linear as linear_module
from jaxnn.ops.matmul import LADDER, matmul_operator

pytestmark = pytest.mark.usefixtures("strict_dtypes")


class Row(NamedTuple):
    """An op, its forward from an independent source, and how to draw inputs of any shape."""

    op: Op
    static: dict[str, Any]
    reference: Callable[..., Any]
    draw: Callable[[np.random.Generator, tuple[int, ...]], tuple[Any, ...]]


def one(rng, shape):
    return (rng.normal(size=shape),)


def affine(rng, shape):
    width = 1 + shape[0] % 4
    params = linear_module.Linear(rng.normal(size=(shape[-1], width)), rng.normal(size=width))
    return params, rng.normal(size=shape)


def pair(rng, shape):
    return rng.normal(size=shape), rng.normal(size=shape)


def labelled(rng, shape):
    return rng.normal(size=shape), rng.integers(0, shape[-1], shape[:-1])


def tree(rng, shape):
    return ({"a": rng.normal(size=shape), "b": [rng.normal(size=shape[::-1])]},)


def nll(z, t):
    log_p = scipy.special.log_softmax(z, axis=-1)
    return -np.mean(np.take_along_axis(log_p, t[..., None], -1))


def half_squares(w):
    return 0.15 * sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(w))


ROWS = {
    "relu": Row(activations.relu, {}, lambda x: x * (x > 0), one),
    "sigmoid": Row(activations.sigmoid, {}, scipy.special.expit, one),
    "tanh": Row(activations.tanh, {}, np.tanh, one),
    "softmax": Row(activations.softmax, {}, lambda x: scipy.special.softmax(x, -1), one),
    "softmax axis 0": Row(
        activations.softmax, {"axis": 0}, lambda x: scipy.special.softmax(x, 0), one
    ),
    "log_softmax": Row(
        activations.log_softmax, {}, lambda x: scipy.special.log_softmax(x, -1), one
    ),
    "log_softmax axis 0": Row(
        activations.log_softmax, {"axis": 0}, lambda x: scipy.special.log_softmax(x, 0), one
    ),
    "linear": Row(
        linear_module.linear,
        {},
        lambda p, x: np.einsum("...i,io->...o", x, p.w) + p.b,
        affine,
    ),
    "mean_squared_error": Row(
        losses.mean_squared_error, {}, lambda p, t: np.mean(np.square(p - t)), pair
    ),
    "softmax_cross_entropy": Row(losses.softmax_cross_entropy, {}, nll, labelled),
    "l2_penalty": Row(losses.l2_penalty, {"coefficient": 0.3}, half_squares, tree),
}
rows = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
shapes = st.lists(st.sampled_from([1, 2, 3, 5, 8]), min_size=2, max_size=3).map(tuple)


def as_jax(tree, dtype):
    return jax.tree.map(
        lambda x: jnp.asarray(x, dtype if np.asarray(x).dtype.kind == "f" else jnp.int32), tree
    )


def cotangent(row, inputs, seed=0):
    out = jax.eval_shape(lambda *x: row.op.fwd(*x, **row.static)[0], *inputs)
    return jnp.asarray(np.random.default_rng(seed).normal(size=out.shape), out.dtype)


def by_hand(row, inputs, dout):
    _, residuals = row.op.fwd(*inputs, **row.static)
    return row.op.bwd(residuals, dout, **row.static)


def by_autodiff(row, inputs, dout):
    """`jax.vjp` of the plain forward, with None for the cotangents of integers."""
    _, pull = jax.vjp(lambda *x: row.op.fwd(*x, **row.static)[0], *inputs)
    return jax.tree.map(lambda d: None if d.dtype == jax.dtypes.float0 else d, pull(dout))


def test_every_op_has_a_row():
    found = {
        value
        for info in pkgutil.walk_packages(jaxnn.ops.__path__, "jaxnn.ops.")
        for value in vars(importlib.import_module(info.name)).values()
        if isinstance(value, Op)
    }
    assert found == {row.op for row in ROWS.values()}


@rows
@hypothesis.given(shape=shapes, seed=st.integers(0, 99))
def test_forward_equals_an_independent_reference(row, shape, seed):
    inputs = row.draw(np.random.default_rng(seed), shape)
    with jax.enable_x64(True):
        out = run(lambda *x: row.op(*x, **row.static), *as_jax(inputs, jnp.float64))
        assert_leaves_close(out, row.reference(*inputs), 1e-12, floor=1e-15)


@rows
@hypothesis.given(shape=shapes, seed=st.integers(0, 99))
def test_backward_equals_autodiff_under_a_random_cotangent(row, shape, seed):
    with jax.enable_x64(True):
        inputs = as_jax(row.draw(np.random.default_rng(seed), shape), jnp.float64)
        dout = cotangent(row, inputs, seed)
        hand, auto = run(lambda x, d: (by_hand(row, x, d), by_autodiff(row, x, d)), inputs, dout)
        # Where softmax has one class the truth is 0 and autodiff's own rounding is all there is.
        assert_leaves_close(hand, auto, 1e-10, floor=1e-15)


@rows
def test_backward_equals_finite_differences(row):
    with jax.enable_x64(True):
        inputs = as_jax(row.draw(np.random.default_rng(3), (3, 2)), jnp.float64)
        dout = cotangent(row, inputs)
        floats = [x for x in jax.tree.leaves(inputs) if x.dtype == jnp.float64]

        def f(floats):
            left = iter(floats)
            full = jax.tree.map(lambda x: next(left) if x.dtype == jnp.float64 else x, inputs)
            return (row.op.fwd(*full, **row.static)[0] * dout).sum()

        numerical = verify.numerical_gradient(f, floats)
        assert_leaves_close(by_hand(row, inputs, dout), numerical, 1e-7)


@rows
def test_grad_of_the_op_runs_the_hand_written_rule(row):
    inputs = row.op.example(jax.random.key(1))
    dout = cotangent(row, inputs)
    broken = dataclasses.replace(
        row.op,
        bwd=lambda *a, **k: jax.tree.map(lambda d: d + 1, row.op.bwd(*a, **k)),
    )
    for op, shift in ((row.op, 0.0), (broken, 1.0)):
        _, pull = jax.vjp(lambda *x, op=op: op(*x, **row.static), *inputs)
        got = jax.tree.map(lambda d: None if d.dtype == jax.dtypes.float0 else d, pull(dout))
        expected = jax.tree.map(lambda d, shift=shift: d + shift, by_hand(row, inputs, dout))
        assert_leaves_close(got, expected, 1e-6)


@rows
def test_jit_vmap_and_scan_change_nothing(row):
    keys = jax.random.split(jax.random.key(2), 3)
    examples = [row.op.example(key) for key in keys]
    dout = cotangent(row, examples[0])
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *examples)

    def both(inputs):
        out, pull = jax.vjp(lambda *x: row.op(*x, **row.static), *inputs)
        grads = jax.tree.map(
            lambda d, x: jnp.zeros(()) if d.dtype == jax.dtypes.float0 else d, pull(dout), inputs
        )
        return out, grads

    eager = jax.tree.map(lambda *x: jnp.stack(x), *[both(inputs) for inputs in examples])
    jitted = jax.tree.map(lambda *x: jnp.stack(x), *[jax.jit(both)(x) for x in examples])
    _, scanned = jax.jit(lambda x: jax.lax.scan(lambda c, i: (c, both(i)), 0, x))(stacked)
    for other in (jitted, jax.jit(jax.vmap(both))(stacked), scanned):
        assert_leaves_close(other, eager, 1e-6)


@rows
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_narrow_dtypes_stay_within_autodiffs_own_error(row, dtype):
    inputs = as_jax(row.draw(np.random.default_rng(5), (5, 8)), dtype)
    dout = cotangent(row, inputs)
    hand, auto = by_hand(row, inputs, dout), by_autodiff(row, inputs, dout)
    with jax.enable_x64(True):
        lifted = jax.tree.map(
            lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, inputs
        )
        truth = by_autodiff(row, lifted, dout.astype(jnp.float64))
    eps = float(jnp.finfo(dtype).eps)
    for h, a, t in zip(*map(jax.tree.leaves, (hand, auto, truth)), strict=True):
        assert h.dtype == dtype
        assert h.shape == t.shape
        t = np.asarray(t)
        ours, theirs = (np.abs(np.asarray(v, np.float64) - t).max() for v in (h, a))
        assert ours <= 2 * theirs + eps * np.abs(t).max()


FAULTS = {
    "zero": lambda d: d * 0,
    "doubled": lambda d: 2 * d,
    "sign": lambda d: -d,
    "one entry": lambda d: d.ravel().at[d.size // 2].add(1e-6 * abs(d).max()).reshape(d.shape),
    "not finite": lambda d: d.ravel().at[0].set(jnp.nan).reshape(d.shape),
}


@rows
def test_the_verifier_passes_the_rule_and_catches_a_fault_in_it(row):
    assert verify.op(row.op, **row.static).status == "pass"
    for name, fault in FAULTS.items():

        def wrong(*args, fault=fault, **static):
            first, *others = row.op.bwd(*args, **static)
            return (jax.tree.map(fault, first), *others)

        report = verify.op(dataclasses.replace(row.op, bwd=wrong), **row.static)
        assert report.status == "fail", (name, str(report))


def test_relu_has_slope_zero_at_zero_and_passes_nan_on():
    x = jnp.array([-0.0, 0.0, 1.0, jnp.nan])
    y, residuals = activations.relu.fwd(x)
    assert np.isnan(y[3])
    np.testing.assert_array_equal(activations.relu.bwd(residuals, jnp.ones(4))[0][:3], [0, 0, 1])


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_huge_logits_stay_finite_and_right(scale):
    z = jnp.array([[scale, 0.0, -scale], [0.0, scale, scale]])
    labels = jnp.array([0, 2])
    loss, residuals = losses.softmax_cross_entropy.fwd(z, labels)
    np.testing.assert_allclose(loss, nll(np.asarray(z, np.float64), np.asarray(labels)), rtol=1e-6)
    dz, _ = losses.softmax_cross_entropy.bwd(residuals, jnp.ones(()))
    p = scipy.special.softmax(np.asarray(z, np.float64), -1)
    np.testing.assert_allclose(dz, (p - np.eye(3)[labels]) / 2, atol=1e-7)
    for op in (activations.softmax, activations.log_softmax):
        assert np.isfinite(op(z)).all()


@pytest.mark.parametrize("label", [-1, -3, 3, 100])
def test_a_label_out_of_range_is_an_error_or_nan_never_a_number(label):
    z, labels = jnp.zeros((2, 3)), jnp.array([1, label])
    with pytest.raises(ValueError, match=rf"label {label} at index \(1,\).*outside \[0, 3\)"):
        losses.softmax_cross_entropy(z, labels)
    assert np.isnan(jax.jit(losses.softmax_cross_entropy)(z, labels))


def test_narrow_label_dtypes_can_name_many_classes():
    z = jax.random.normal(jax.random.key(0), (2, 300))
    wide = losses.softmax_cross_entropy(z, jnp.array([3, 200]))
    assert losses.softmax_cross_entropy(z, jnp.array([3, 200], jnp.uint8)) == wide


@pytest.mark.parametrize(
    ("op", "inputs", "error", "message"),
    [
        ("cross", (jnp.zeros((2, 3)), jnp.zeros(2)), TypeError, "dtype float32.*integer"),
        ("cross", (jnp.zeros((2, 3)), jnp.zeros(3, int)), ValueError, r"\(3,\).*\(2, 3\)"),
        ("cross", (jnp.zeros((0, 3)), jnp.zeros(0, int)), ValueError, r"\(0, 3\).*non-empty"),
        ("mse", (jnp.zeros((2, 1)), jnp.zeros(2)), ValueError, r"\(2, 1\).*\(2,\).*reshape"),
        ("mse", (jnp.zeros((0, 1)), jnp.zeros((0, 1))), ValueError, r"\(0, 1\).*non-empty"),
        ("l2", ((),), ValueError, "no leaf"),
        (
            "linear",
            (linear_module.Linear(jnp.zeros((3, 2)), jnp.zeros(2)), jnp.zeros((4, 5))),
            ValueError,
            r"\(4, 5\).*\(3, 2\).*transpose",
        ),
        (
            "linear",
            (linear_module.Linear(jnp.zeros((3, 2)), jnp.zeros(1)), jnp.zeros((4, 3))),
            ValueError,
            r"\(3, 2\), b \(1,\)",
        ),
    ],
)
def test_bad_inputs_are_named(op, inputs, error, message):
    ops = {
        "cross": losses.softmax_cross_entropy,
        "mse": losses.mean_squared_error,
        "l2": losses.l2_penalty,
        "linear": linear_module.linear,
    }
    with pytest.raises(error, match=message):
        ops[op](*inputs)


@pytest.mark.parametrize("multiply", LADDER.values(), ids=LADDER.keys())
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 3), (2, 1, 4)])
def test_every_rung_of_the_ladder_multiplies(multiply, shape, x64):
    n, k, m = shape
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(n, k)), rng.normal(size=(k, m))
    np.testing.assert_allclose(multiply(jnp.asarray(a), jnp.asarray(b)), a.dot(b), rtol=1e-12)
    with pytest.raises(ValueError, match="columns of a"):
        multiply(jnp.zeros((n, k)), jnp.zeros((k + 1, m)))


def test_the_first_rung_really_loops():
    with pytest.raises(jax.errors.TracerArrayConversionError):
        jax.jit(LADDER["loops"])(jnp.ones((2, 2)), jnp.ones((2, 2)))
    jax.jit(matmul_operator)(jnp.ones((2, 2)), jnp.ones((2, 2)))
