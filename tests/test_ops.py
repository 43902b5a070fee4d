"""One table, `tests/rows`, drives every op through the same laws."""

import importlib
import inspect
import itertools
import pkgutil

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rows
import scipy.special
from conftest import assert_leaves_close, run
from jax import lax
from rows.labels import nll

import jaxnn.ops
from jaxnn import verify
from jaxnn.op import Op, plain_forms
from jaxnn.ops import activations, cross_entropy, losses, softmax
from jaxnn.ops import linear as linear_module
from jaxnn.ops.matmul import LADDER, matmul_operator
from jaxnn.verify.programs import compiled

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def modules(package):
    return [
        importlib.import_module(info.name)
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]


ROWS = dict(itertools.chain(*(module.ROWS.items() for module in modules(rows))))
TWO_FORMS = {name: row for name, row in ROWS.items() if row.op.fast is not row.op.plain}
# The laws hold for each form: these are the rows of ops whose pair is the plain one.
PLAIN = {
    f"{name}, plain": row._replace(op=row.op.replace(**row.op.plain._asdict()))
    for name, row in TWO_FORMS.items()
}
FORMS = ROWS | PLAIN
each_row = pytest.mark.parametrize("row", FORMS.values(), ids=FORMS.keys())
shapes = st.lists(st.sampled_from([1, 2, 3, 5, 8]), min_size=2, max_size=3).map(tuple)


def as_jax(tree, dtype):
    """Real numbers as arrays of this dtype, integers of int32; booleans and keys as they are."""

    def convert(x):
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return x
        x = np.asarray(x)  # converted here, and only put there: nothing has to be compiled
        kinds = ((jnp.floating, dtype), (jnp.bool_, bool), (jnp.integer, np.int32))
        wanted = next(wanted for kind, wanted in kinds if jnp.issubdtype(x.dtype, kind))
        return jax.device_put(x.astype(wanted))

    return jax.tree.map(convert, tree)


def admits(row, inputs, static):
    """Whether the door takes a setting for inputs of this kind."""
    try:
        row.op.admit(inputs, static)
    except ValueError:
        return False
    return True


def is_real(x):
    return jnp.issubdtype(x.dtype, jnp.floating)


def cotangent(row, inputs, seed=0):
    rng = np.random.default_rng(seed + 100)  # not the numbers that the inputs were drawn from
    out = jax.eval_shape(lambda *x: row.op.fwd(*x, **row.static)[0], *inputs)
    return as_jax(
        jax.tree.map(lambda o: rng.normal(size=o.shape), out), jax.tree.leaves(out)[0].dtype
    )


def dot(a, b):
    return sum(jax.tree.leaves(jax.tree.map(lambda x, y: (x * y).sum(), a, b)))


def by_hand(row, inputs, dout):
    _, residuals = row.op.fwd(*inputs, **row.static)
    return row.op.bwd(residuals, dout, **row.static)


def by_autodiff(row, inputs, dout):
    """`jax.vjp` of the plain forward, with None for the cotangents of integers."""
    _, pull = jax.vjp(lambda *x: row.op.fwd(*x, **row.static)[0], *inputs)
    return without_integers(pull(dout))


def by_call(row, op, inputs, dout):
    """The result of the op called as a function, and its cotangents through `jax.vjp`."""
    out, pull = jax.vjp(lambda *x: op(*x, **row.static), *inputs)
    return out, without_integers(pull(dout))


def without_integers(cotangents):
    return jax.tree.map(lambda d: None if d.dtype == jax.dtypes.float0 else d, cotangents)


def needs_devices(op):
    """Whether an op is none without axes of a mesh: tests/test_collectives.py is about those."""
    axis = op.__signature__.parameters.get("axis")
    return bool(op.varies) and axis is not None and axis.default is axis.empty


def test_every_op_has_a_row():
    found = {
        value
        for module in modules(jaxnn.ops)
        for value in vars(module).values()
        if isinstance(value, Op) and not needs_devices(value)
    }
    tested = {row.op for row in ROWS.values()}
    assert found == tested, f"add a row to tests/rows/ for {', '.join(map(str, found - tested))}"


@each_row
@hypothesis.settings(max_examples=4)
@hypothesis.given(shape=shapes, seed=st.integers(0, 99))
@hypothesis.example(shape=(5, 3), seed=0)
def test_at_any_shape_forward_equals_a_reference_and_backward_autodiff(row, shape, seed):
    drawn = row.draw(np.random.default_rng(seed), shape)
    with jax.enable_x64(True):
        inputs = as_jax(drawn, jnp.float64)
        dout = cotangent(row, inputs, seed)
        out, hand, auto = run(
            lambda x, d: (row.op(*x, **row.static), by_hand(row, x, d), by_autodiff(row, x, d)),
            inputs,
            dout,
        )
        assert_leaves_close(out, row.reference(*drawn, **row.static), 1e-12, floor=1e-15)
        # Where softmax has one class the truth is 0 and autodiff's own rounding is all there is.
        assert_leaves_close(hand, auto, 1e-10, floor=1e-15)


def kind(row):
    """The op, and of what its inputs are."""
    leaves, tree = jax.tree.flatten(row.draw(np.random.default_rng(0), (2, 2)))
    return row.op.name, tree, [leaf.dtype for leaf in leaves]


@pytest.mark.parametrize("row", TWO_FORMS.values(), ids=TWO_FORMS.keys())
@hypothesis.settings(max_examples=4)
@hypothesis.given(shape=shapes, seed=st.integers(0, 99))
@hypothesis.example(shape=(8, 8), seed=0)
def test_the_fast_form_equals_the_plain_one(row, shape, seed):
    """Under the row's settings; the first with such inputs, under all the op is verified with."""
    with jax.enable_x64(True):
        inputs = as_jax(row.draw(np.random.default_rng(seed), shape), jnp.float64)
        first = next(other for other in TWO_FORMS.values() if kind(other) == kind(row))
        settings = [s for s in row.op.settings if row is first and admits(row, inputs, s)]
        of_row = [row, *(row._replace(static=s) for s in settings)]
        douts = [cotangent(each, inputs, seed) for each in of_row]

        def under_all(inputs, douts):
            return [
                (each.op.fwd(*inputs, **each.static)[0], by_hand(each, inputs, dout))
                for each, dout in zip(of_row, douts, strict=True)
            ]

        def plainly(inputs, douts):
            with plain_forms():
                return under_all(inputs, douts)

        fast, plain = run(lambda *x: (under_all(*x), plainly(*x)), inputs, douts)
        assert_leaves_close(fast, plain, 1e-10, floor=1e-14)


@each_row
def test_backward_equals_finite_differences(row):
    with jax.enable_x64(True):
        inputs = as_jax(row.draw(np.random.default_rng(3), (3, 2)), jnp.float64)
        dout = cotangent(row, inputs)
        leaves, tree = jax.tree.flatten(inputs)
        floats = [x for x in leaves if is_real(x)]

        def f(floats):
            left = iter(floats)
            full = jax.tree.unflatten(tree, [next(left) if is_real(x) else x for x in leaves])
            return dot(row.op.fwd(*full, **row.static)[0], dout)

        numerical = verify.numerical_gradient(f, floats)
        hand = run(lambda x, d: by_hand(row, x, d), inputs, dout)
        assert_leaves_close(hand, numerical, 1e-7, floor=1e-9)


@each_row
def test_grad_of_the_op_runs_the_hand_written_rule(row):
    def broken_bwd(*args, **static):
        return jax.tree.map(lambda d: d + 1, row.op.bwd(*args, **static))

    broken = row.op.replace(bwd=broken_bwd)
    inputs = row.op.example(jax.random.key(1))
    right, wrong, hand = run(
        lambda x, d: (
            by_call(row, row.op, x, d)[1],
            by_call(row, broken, x, d)[1],
            by_hand(row, x, d),
        ),
        inputs,
        cotangent(row, inputs),
    )
    assert_leaves_close(right, hand, 1e-6)
    assert_leaves_close(wrong, jax.tree.map(lambda d: d + 1, hand), 1e-6)


@each_row
def test_jit_vmap_and_scan_change_nothing(row):
    stacked, examples = run(
        lambda keys: (
            examples := jax.vmap(row.op.example)(keys),
            [row_of(examples, i) for i in range(3)],
        ),
        jax.random.split(jax.random.key(2), 3),
    )
    dout = cotangent(row, examples[0])

    def both(inputs):
        return by_call(row, row.op, inputs, dout)

    eager = jax.tree.map(lambda *x: np.stack(x), *[both(inputs) for inputs in examples])
    ways = run(
        lambda x: (
            both(row_of(x, 0)),
            jax.vmap(both)(x),
            lax.scan(lambda c, i: (c, both(i)), 0, x)[1],
        ),
        stacked,
    )
    for other, truth in zip(ways, (row_of(eager, 0), eager, eager), strict=True):
        assert_leaves_close(other, truth, 2e-6)


def row_of(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


FACTORS = {"rate", "coefficient", "label_smoothing", "z_loss"}
WITH_FACTORS = {name: row for name, row in FORMS.items() if FACTORS & row.static.keys()}


@pytest.mark.parametrize("row", WITH_FACTORS.values(), ids=WITH_FACTORS.keys())
def test_factors_may_be_traced_and_have_no_derivative(row):
    """One program of several is each of them by itself, also where the vjp is taken outside it."""
    inputs = row.op.example(jax.random.key(1))
    dout = cotangent(row, inputs)
    numbers = {name: row.static[name] for name in FACTORS & row.static.keys()}
    scales = (1.0, 0.5)
    several = {name: jnp.float32(scales) * number for name, number in numbers.items()}

    def alone(scale):
        scaled = {name: float(np.float32(scale * number)) for name, number in numbers.items()}
        return by_call(row._replace(static=row.static | scaled), row.op, inputs, dout)

    def together(several, inputs, dout):
        def of(factors):
            with_these = row._replace(static=row.static | factors)
            return by_call(with_these, row.op, inputs, dout), by_hand(with_these, inputs, dout)

        called, hand = jax.vmap(of)(several)
        _, pull = jax.vjp(
            lambda *x: jax.vmap(lambda f: row.op(*x, **row.static | f))(several), *inputs
        )
        summed = without_integers(pull(jax.tree.map(lambda d: jnp.stack([d, d]), dout)))
        of_factors = jax.grad(lambda f: dot(row.op(*inputs, **row.static | f), dout))(
            row_of(several, 0)
        )
        return called, hand, summed, of_factors

    called, hand, summed, of_factors = run(together, several, inputs, dout)
    each = jax.tree.map(lambda *x: np.stack(x), *map(alone, scales))
    assert_leaves_close(called, each, 2e-6)
    assert_leaves_close(hand, each[1], 2e-6)
    assert_leaves_close(summed, jax.tree.map(lambda d: d.sum(0), each[1]), 4e-6)
    assert all(np.isnan(d) for d in of_factors.values())


@each_row
def test_narrow_dtypes_stay_within_autodiffs_own_error(row):
    drawn = row.draw(np.random.default_rng(5), (5, 8))
    dtypes = ("bfloat16", "float16", "float32")
    inputs = [as_jax(drawn, dtype) for dtype in dtypes]
    douts = [cotangent(row, x) for x in inputs]
    results = run(
        lambda *drawn: [(by_hand(row, x, d), by_autodiff(row, x, d)) for x, d in drawn],
        *zip(inputs, douts, strict=True),
    )
    with jax.enable_x64(True):
        lifted = as_jax(list(zip(inputs, douts, strict=True)), np.float64)
        exactly = compiled(lambda x, d: by_autodiff(row, x, d), *lifted[0])
        truths = [exactly.run(*problem) for problem in lifted]
    for dtype, (hand, auto), truth in zip(dtypes, results, truths, strict=True):
        eps = float(jnp.finfo(dtype).eps)
        for h, a, t in zip(*map(jax.tree.leaves, (hand, auto, truth)), strict=True):
            assert h.dtype == dtype
            assert h.shape == t.shape
            t = np.asarray(t)
            ours, theirs = (np.abs(np.asarray(v, np.float64) - t).max() for v in (h, a))
            # Another order of the same sum is by chance a third or three times as far off.
            assert ours <= 3 * theirs + 2 * eps * np.abs(t).max(), (dtype, ours, theirs)


def empty_batch(row):
    drawn = row.draw(np.random.default_rng(0), (0, 4))
    if not any(np.size(leaf) == 0 for leaf in jax.tree.leaves(drawn)):
        *others, last = drawn
        drawn = (*others, jax.tree.map(lambda x: x[:0], last))
    return as_jax(drawn, jnp.float32)


@each_row
def test_an_empty_batch_has_an_empty_result_and_no_gradient_or_is_refused_in_words(row):
    inputs = empty_batch(row)
    reduction = inspect.signature(row.op.plain.fwd).parameters.get("reduction")
    default = {} if reduction is None else {"reduction": reduction.default}
    if row.averages or (default | row.static).get("reduction") == "mean":
        with pytest.raises(ValueError, match=r"\(.*0.*\).*(mean|variance).*pass"):
            row.op(*inputs, **row.static)
        return
    dout = cotangent(row, inputs)
    out, cotangents = by_call(row, row.op, inputs, dout)
    y, *_ = jax.tree.leaves(out)
    np.testing.assert_array_equal(y, jnp.zeros_like(y))  # no entry, or the sum of none
    of_params, *_ = cotangents
    for d, x in zip(jax.tree.leaves(of_params), jax.tree.leaves(inputs[0]), strict=True):
        np.testing.assert_array_equal(d, jnp.zeros_like(x))
    for d in jax.tree.leaves(cotangents):
        assert np.isfinite(d).all()


FAULTS = {
    "zero": lambda d: d * 0,
    "doubled": lambda d: 2 * d,
    "sign": lambda d: -d,
    "one entry": lambda d: d.ravel().at[d.size // 2].add(1e-6 * abs(d).max()).reshape(d.shape),
    "not finite": lambda d: d.ravel().at[0].set(jnp.nan).reshape(d.shape),
}


# A report that passes has caught more faults, planted in the gradient it looked at: see
# `jaxnn.verify.coverage`. These are planted outside, one for each row, in turn.
@pytest.mark.usefixtures("undiagnosed")
@pytest.mark.parametrize(
    ("row", "fault"),
    list(zip(FORMS.values(), itertools.cycle(FAULTS.values()), strict=False)),
    ids=FORMS.keys(),
)
def test_the_verifier_passes_the_rule_and_catches_a_fault_in_it(row, fault):
    report = verify.op(row.op, **row.static)
    assert report.status == "pass", str(report)

    def wrong(*args, **static):
        first, *others = row.op.bwd(*args, **static)
        return (jax.tree.map(fault, first), *others)

    # Where the row has no settings, the first of those that the op has just been verified under.
    report = verify.op(row.op.replace(bwd=wrong, settings=row.op.settings[:1]), **row.static)
    assert report.status == "fail", str(report)


def test_relu_has_slope_zero_at_zero_and_passes_nan_on():
    x = jnp.array([-0.0, 0.0, 1.0, jnp.nan])
    y, residuals = activations.relu.fwd(x)
    assert np.isnan(y[3])
    np.testing.assert_array_equal(activations.relu.bwd(residuals, jnp.ones(4))[0][:3], [0, 0, 1])


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_huge_logits_stay_finite_and_right(scale):
    z = jnp.array([[scale, 0.0, -scale], [0.0, scale, scale]])
    labels = jnp.array([0, 2])
    loss, residuals = cross_entropy.softmax_cross_entropy.fwd(z, labels)
    np.testing.assert_allclose(loss, nll(np.asarray(z, np.float64), np.asarray(labels)), rtol=1e-6)
    dz, *_ = cross_entropy.softmax_cross_entropy.bwd(residuals, jnp.ones(()))
    p = scipy.special.softmax(np.asarray(z, np.float64), -1)
    np.testing.assert_allclose(dz, (p - np.eye(3)[labels]) / 2, atol=1e-7)
    for op in (softmax.softmax, softmax.log_softmax):
        assert np.isfinite(op(z)).all()


@pytest.mark.parametrize("label", [-1, -3, 3, 100])
def test_a_label_out_of_range_is_an_error_or_nan_never_a_number(label):
    z, labels = jnp.zeros((2, 3)), jnp.array([1, label])
    with pytest.raises(ValueError, match=rf"label {label} at index \(1,\).*outside \[0, 3\)"):
        cross_entropy.softmax_cross_entropy(z, labels)
    assert np.isnan(jax.jit(cross_entropy.softmax_cross_entropy)(z, labels))


def test_narrow_label_dtypes_can_name_many_classes():
    z = jax.random.normal(jax.random.key(0), (2, 300))
    wide = cross_entropy.softmax_cross_entropy(z, jnp.array([3, 200]))
    assert cross_entropy.softmax_cross_entropy(z, jnp.array([3, 200], jnp.uint8)) == wide


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
            r"b has shape \(1,\), beside w \(3, 2\).*b \(O,\) or None",
        ),
    ],
)
def test_bad_inputs_are_named(op, inputs, error, message):
    ops = {
        "cross": cross_entropy.softmax_cross_entropy,
        "mse": losses.mean_squared_error,
        "l2": losses.l2_penalty,
        "linear": linear_module.linear,
    }
    with pytest.raises(error, match=message):
        ops[op](*inputs)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sums_over_4096_tokens_are_wide_in_16_bits(dtype):
    """A running sum of ones stops at 256 in bfloat16 and at 2,048 in float16."""
    tokens, ones = jnp.zeros(4096, int), jnp.ones((4096, 1), dtype)
    _, of_tokens = linear_module.embedding.fwd(linear_module.Embedding(ones[:3]), tokens)
    dtable, _ = linear_module.embedding.bwd(of_tokens, ones)
    np.testing.assert_array_equal(dtable.table, [[4096], [0], [0]])
    _, of_layer = linear_module.linear.fwd(linear_module.Linear(ones[:1], ones[0]), ones)
    np.testing.assert_array_equal(linear_module.linear.bwd(of_layer, ones)[0].b, 4096)
    np.testing.assert_array_equal(linear_module.linear.bwd(of_layer, ones)[0].w, 4096)


def test_a_bias_is_added_before_a_narrow_result_is_rounded():
    params = linear_module.Linear(jnp.full((2, 1), 257 / 256, "float32"), jnp.array([-2.0]))
    params = jax.tree.map(lambda p: p.astype("bfloat16"), params)
    x = jnp.array([[1.0, 129 / 128]], "bfloat16")
    exact = np.asarray(x, float) @ np.asarray(params.w, float) + np.asarray(params.b, float)
    np.testing.assert_array_equal(np.asarray(linear_module.linear(params, x), float), exact)


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
