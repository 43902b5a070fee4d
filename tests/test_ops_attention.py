"""Attention, rotary embedding and the multi-head block: what their rows do not show."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_leaves_close, run
from rows.attention import attend

from jaxnn.op import plain_forms
from jaxnn.ops.attention import attention
from jaxnn.ops.fast import attention as fast
from jaxnn.ops.multi_head import MultiHead, multi_head
from jaxnn.ops.position_bias import PositionBias, alibi_bias, alibi_slopes
from jaxnn.ops.position_bias import relative_position_bias as bias_op
from jaxnn.ops.rotary import Scaling, rotary

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def draw(t, s, heads=2, kv_heads=1, n=2, size=3, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (n, t, heads, size), (n, s, kv_heads, size), (n, s, kv_heads, size)
    return tuple(jnp.asarray(rng.normal(size=shape)) for shape in shapes)


def both(q, k, v, mask, **static):
    """The result, its gradients by hand and those of `jax.grad`, under a cotangent of v's sort."""

    def f(q, k, v):
        return attention.fwd(q, k, v, mask, **static)[0]

    y, residuals = attention.fwd(q, k, v, mask, **static)
    dy = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
    return y, attention.bwd(residuals, dy, **static)[:3], jax.vjp(f, q, k, v)[1](dy)


@pytest.mark.parametrize(
    ("t", "s", "block", "static"),
    [
        (7, 7, 3, {}),
        (7, 7, 100, {"causal": True}),
        (5, 9, 2, {"causal": True, "window": 2}),
        (6, 4, 4, {"causal": True, "window": 1}),
        (1, 1, 1, {"causal": True}),
        (1, 8, 1, {"causal": True, "window": 20}),
        (9, 11, 2, {"causal": True}),
    ],
)
@pytest.mark.parametrize("run_unit", [1, 2, 64])
@pytest.mark.parametrize("of_keys", [False, True])
def test_runs_and_blocks_agree_with_the_plain_form(
    t, s, block, static, run_unit, of_keys, x64, monkeypatch
):
    """However long the runs of causal queries are, and whatever the mask depends on."""
    monkeypatch.setattr(fast, "RUN", run_unit)
    inputs = draw(t, s)
    mask = jnp.asarray(np.random.default_rng(1).random((2, 1, t, s if of_keys else 1)) < 0.8)

    def all_ways(*inputs):
        with plain_forms():
            plain = both(*inputs, mask, **static)
        return plain, [both(*inputs, mask, block=size, **static) for size in (None, block)]

    (y, hand, auto), in_parts = run(all_ways, *inputs)
    expected = attend(*map(np.asarray, inputs), np.asarray(mask), **static)
    assert_leaves_close(y, expected, 1e-12, floor=1e-15)
    assert_leaves_close(hand, auto, 1e-10, floor=1e-14)
    for part in in_parts:
        assert_leaves_close(part, (y, hand, auto), 1e-10, floor=1e-14)


@pytest.mark.parametrize(
    ("t", "s", "block", "bias_shape", "static"),
    [
        (7, 7, 3, (2, 2, 7, 7), {"causal": True}),
        (7, 9, 2, (2, 1, 9), {"causal": True, "window": 3, "softcap": 0.8, "rate": 0.5}),
        (5, 5, 2, (5, 1), {"rate": 0.3}),
        (6, 4, 6, (4,), {"causal": True, "rate": 0.2}),
        (5, 8, 3, (2, 1, 1, 1), {"causal": True, "softcap": 2.0}),
        (1, 6, 4, (1, 6), {"rate": 0.6, "softcap": 1.0}),
    ],
)
@pytest.mark.parametrize("run_unit", [1, 64])
def test_runs_and_blocks_take_their_part_of_bias_mask_and_draws(
    t, s, block, bias_shape, static, run_unit, x64, monkeypatch
):
    monkeypatch.setattr(fast, "RUN", run_unit)
    rng = np.random.default_rng(2)
    bias = rng.normal(size=bias_shape)
    bias[rng.random(bias_shape) < 0.1] = -np.inf
    inputs = *draw(t, s), jnp.asarray(rng.random(s) < 0.8), jnp.asarray(bias), jax.random.key(3)
    dy = jnp.asarray(rng.normal(size=inputs[0].shape))

    def form(size, *inputs):
        y, residuals = attention.fwd(*inputs, **static, block=size)
        return y, attention.bwd(residuals, dy, **static, block=size)

    def all_ways(*inputs):
        _, _, _, mask, _, key = inputs
        with plain_forms():
            plain = form(None, *inputs)
            _, pull = jax.vjp(
                lambda q, k, v, bias: attention.fwd(q, k, v, mask, bias, key, **static)[0],
                *inputs[:3],
                inputs[4],
            )
        return plain, pull(dy), form(None, *inputs), form(block, *inputs)

    plain, auto, *in_parts = run(all_ways, *inputs)
    expected = attend(*map(np.asarray, inputs[:5]), inputs[5], **static)
    assert_leaves_close(plain[0], expected, 1e-12, floor=1e-15)
    assert_leaves_close(plain[1], auto, 1e-10, floor=1e-14)
    for part in in_parts:
        assert_leaves_close(part, plain, 1e-10, floor=1e-14)


def test_dropout_keeps_its_share_of_p_and_the_mean_over_keys_is_what_it_is_without():
    """Of values that are the unit vectors, y is p as dropped: exact in each entry."""
    t, keys = 40, 400
    q, k, _ = draw(t, t, heads=1, n=1)
    q, k, v = 0.1 * q, 0.1 * k, jnp.eye(t)[None, :, None]

    def dropped(key):
        return attention.fwd(q, k, v, None, None, key, rate=0.3)[0][0, :, 0]

    drawn = jax.random.split(jax.random.key(0), keys)
    p, of_keys = run(
        lambda drawn: (attention.fwd(q, k, v, None)[0][0, :, 0], jax.vmap(dropped)(drawn)), drawn
    )
    kept = of_keys > 0
    # Within 5 deviations of the share of all, of the entries of a key, of a row and of an entry.
    for axes in (None, (1, 2), (0, 2), (0, 1), 0):
        share = kept.mean(axes)
        deviation = np.sqrt(0.3 * 0.7 / (kept.size / share.size))
        assert abs(share - 0.7).max() < 5 * deviation
    np.testing.assert_allclose(
        np.where(kept, of_keys * 0.7, p), np.broadcast_to(p, kept.shape), rtol=1e-5
    )
    spread = p * np.sqrt(0.3 / 0.7 / keys)
    assert (abs(of_keys.mean(0) - p) < 5 * spread).all()
    # Neighbouring entries, rows and keys are dropped independently of each other.
    for axis in range(3):
        both_kept = (kept & np.roll(kept, 1, axis)).mean()
        assert abs(both_kept - 0.49) < 5 * np.sqrt(0.49 * 0.51 / kept.size)


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_a_key_of_any_generator_drops_the_same_in_every_form(kind, monkeypatch):
    monkeypatch.setattr(fast, "RUN", 2)
    q, k, v = draw(8, 8)
    static = {"causal": True, "rate": 0.5}

    def ways(key):
        with plain_forms():
            plain = attention.fwd(q, k, v, None, None, key, **static)[0]
        blocks = attention.fwd(q, k, v, None, None, key, block=3, **static)[0]
        return plain, attention.fwd(q, k, v, None, None, key, **static)[0], blocks

    plain, *others = run(ways, jax.random.key(7, impl=kind))
    other, *_ = run(ways, jax.random.key(8, impl=kind))
    for form in others:
        assert_leaves_close(form, plain, 1e-6)
    assert abs(other - plain).max() > 0.1


def test_no_key_or_no_rate_drops_nothing():
    q, k, v = draw(5, 5)
    y = attention(q, k, v, None)
    np.testing.assert_array_equal(attention(q, k, v, None, None, None, rate=0.5), y)
    np.testing.assert_array_equal(attention(q, k, v, None, None, jax.random.key(0)), y)


@pytest.mark.parametrize(
    ("t", "s", "block", "window", "runs"),
    [
        (143, 143, None, None, 1),
        (144, 144, None, None, 2),
        (144, 150, None, 20, 2),
        (8, 6, 2**31 - 1, 2**31 - 1, 1),
        (400, 399, None, None, 1),
        (575, 575, 115, None, 1),
        (576, 576, 115, None, 2),
        (576, 576, 96, None, 2),
        (576, 576, 575, 30, 1),
        (300, 310, 64, 30, 1),
    ],
)
def test_on_both_sides_of_where_runs_begin_the_forms_agree(t, s, block, window, runs, x64):
    q, k, v = draw(t, s, n=1, size=2)
    static = {"causal": True, "window": window, "block": block}
    assert len(fast._runs(q, k, **static)) == runs

    def both_forms(*inputs):
        with plain_forms():
            plain = both(*inputs, None, **static)
        return plain[:2], both(*inputs, None, **static)[:2]

    plain, in_parts = run(both_forms, q, k, v)
    assert_leaves_close(in_parts, plain, 1e-11)


@pytest.mark.parametrize("block", [None, 2])
def test_huge_scores_and_rows_that_see_nothing_stay_finite(block):
    q, k, v = (x.astype(jnp.float32) for x in draw(4, 4, size=1))
    q, k = 100 * jnp.sign(q), 100 * jnp.sign(k)  # scores of +-1e4
    mask = jnp.ones((2, 1, 4, 4), bool).at[0, 0, 2].set(False).at[1].set(False)
    y, hand, auto = run(lambda *x: both(*x, mask, block=block), q, k, v)
    for leaf in jax.tree.leaves((y, hand, auto)):
        assert np.isfinite(leaf).all()
    assert not np.any(y[0, 2])
    assert not np.any(y[1])
    for dq, dk, dv in (hand, auto):
        assert not np.any(dq[0, 2])
        assert not any(np.any(d[1]) for d in (dq, dk, dv))


def test_causal_attention_is_that_of_jax_nn(x64):
    q, k, v = draw(5, 5, heads=4, kv_heads=2)
    for window in (None, 2):
        local = None if window is None else (window - 1, 0)
        with jax.numpy_dtype_promotion("standard"):
            theirs = jax.nn.dot_product_attention(q, k, v, is_causal=True, local_window_size=local)
        ours = attention(q, k, v, None, causal=True, window=window)
        assert_leaves_close(ours, theirs, 1e-6)  # theirs is rounded to float32


def test_one_new_query_on_a_cache_is_the_last_of_a_whole_pass(x64):
    q, k, v = draw(6, 6)
    whole = attention(q, k, v, None, causal=True, window=4)
    last = attention(q[:, -2:], k, v, None, causal=True, window=4)
    assert_leaves_close(last, whole[:, -2:], 1e-12)


def test_small_cotangents_of_long_rows_do_not_vanish_in_float16():
    q, k, v = (0.1 * x for x in draw(1024, 1024, heads=1, n=1, size=8))
    dy = 1e-4 * (1.5 + jnp.cos(jnp.arange(q.size)).reshape(q.shape))

    def dv(q, k, v, dy):
        _, residuals = attention.fwd(q, k, v, None)
        return attention.bwd(residuals, dy)[2]

    inputs = [x.astype(jnp.float16) for x in (q, k, v, dy)]
    exact = run(dv, *(x.astype(jnp.float32) for x in inputs))
    assert_leaves_close(run(dv, *inputs), exact, 0.02)


def temporary(f, *shapes):
    """Bytes that the compiled f needs beside float32 inputs of these shapes and its results."""
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(f).lower(*inputs).compile().memory_analysis().temp_size_in_bytes


def test_runs_hold_less_than_all_scores_and_blocks_the_least():
    shape = n, t, h, _ = 4, 1024, 4, 8

    def memory(block):
        return temporary(lambda *x: both(*x, None, causal=True, block=block)[:2], *[shape] * 3)

    with plain_forms():
        plain = memory(None)
    scores = 4 * n * h * t * t
    assert memory(16) < scores / 8
    assert 2 * scores < plain > 1.4 * memory(None)


def test_blocks_hold_no_more_of_a_broadcast_bias_or_of_draws():
    n, t, h = 2, 1024, 4

    def memory(t, rate, block=16):
        def f(*x):
            static = {"causal": True, "block": block, "rate": rate}
            y, residuals = attention.fwd(*x[:3], None, x[3], jax.random.key(0), **static)
            return attention.bwd(residuals, y, **static)

        return temporary(f, *[(n, t, h, 8)] * 3, (h, 1, t))

    scores = 4 * n * h * t * t
    assert memory(t, 0.0) < scores / 8
    assert memory(t, 0.5) < scores / 4
    assert memory(2 * t, 0.5) < 2.5 * memory(t, 0.5)  # of 4 if all were held


def test_of_hidden_scores_a_causal_pass_computes_few():
    def flops(causal):
        f = jax.jit(lambda *x: attention.fwd(*x, None, causal=causal)[0])
        inputs = [jax.ShapeDtypeStruct((1, 1024, 1, 32), jnp.float32)] * 3
        return f.lower(*inputs).compile().cost_analysis()["flops"]

    # XLA's versions count what is no product differently: by 2% of all.
    assert flops(True) / flops(False) == pytest.approx(10 / 16, abs=0.03)


def test_a_batch_of_none_gives_none():
    q, k, v = (x[:0] for x in draw(5, 5))
    for static in ({}, {"causal": True}, {"causal": True, "block": 2, "rate": 0.5}):
        y, hand, _ = both(q, k, v, None, **static)
        assert [d.shape for d in (y, *hand)] == [q.shape, q.shape, k.shape, v.shape]
        _, residuals = attention.fwd(q, k, v, None, jnp.ones((5, 5)), jax.random.key(0), **static)
        *_, dbias, _ = attention.bwd(residuals, y, **static)
        np.testing.assert_array_equal(dbias, np.zeros((5, 5)))
    z, residuals = multi_head.fwd(PARAMS, X[:0], None, None, **HEADS)
    dparams, dx, *_ = multi_head.bwd(residuals, z, **HEADS)
    assert dx.shape == (0, 5, 3)
    assert not any(d.any() for d in jax.tree.leaves(dparams))


NARROW_WAYS = {
    "plain": {},
    "causal": {"causal": True},
    "in runs": {"causal": True, "t": 160, "kv_heads": 1},
    "in blocks": {"block": 16, "kv_heads": 2},
    "window in blocks": {"causal": True, "window": 20, "block": 16, "kv_heads": 1},
    "masked": {"masked": True, "kv_heads": 2},
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("way", NARROW_WAYS)
def test_in_16_bits_within_three_times_the_error_of_jax_nn(way, dtype):
    """Where scores are large (queries and keys of deviation 4), against float64 of the same."""
    static = dict(NARROW_WAYS[way])
    t, kv_heads, masked = (static.pop(*x) for x in (("t", 64), ("kv_heads", 4), ("masked", False)))
    seeds = range(3)
    drawn = [
        (*draw(t, t, 4, kv_heads, 2, 32, s), draw(t, t, 4, size=32, seed=s + 9)[0]) for s in seeds
    ]
    narrow = [
        jnp.stack(x).astype(dtype) * c
        for x, c in zip(zip(*drawn, strict=True), (4, 4, 1, 1), strict=True)
    ]
    mask = jnp.asarray(np.random.default_rng(0).random((2, 1, t, t)) < 0.7) if masked else None

    def ours(q, k, v, dy):
        y, residuals = attention.fwd(q, k, v, mask, **static)
        return y, *attention.bwd(residuals, dy, **static)[:3]

    def plainly(*inputs):
        with plain_forms():
            return ours(*inputs)

    def theirs(q, k, v, dy):
        window = static.get("window")
        y, pull = jax.vjp(
            partial(
                jax.nn.dot_product_attention,
                mask=mask,
                is_causal="causal" in static,
                local_window_size=None if window is None else (window - 1, 0),
            ),
            q,
            k,
            v,
        )
        return y, *pull(dy)

    with jax.numpy_dtype_promotion("standard"):
        peer = jax.vmap(theirs)(*narrow)  # compiled at once, it asks for more than a CPU has
    forms = [run(jax.vmap(form), *narrow) for form in (ours, plainly)]
    with jax.enable_x64(True):
        truth = run(jax.vmap(ours), *(jnp.asarray(np.asarray(x, np.float64)) for x in narrow))
    for form in forms:
        for one, other, exact in zip(form, peer, map(np.asarray, truth), strict=True):
            assert one.dtype == dtype
            errors = (np.abs(np.asarray(x, np.float64) - exact) for x in (one, other))
            error, least = (x.reshape(len(seeds), -1).max(1) for x in errors)
            assert (error <= 3 * least).all(), error / least


def test_in_float32_no_number_is_converted():
    def counted(dtype):
        q, k, v = (x.astype(dtype) for x in draw(160, 160, heads=4, kv_heads=2))
        program = jax.jit(lambda *x: both(*x, None, causal=True)[:2]).lower(q, k, v).as_text()
        return len(re.findall(r"stablehlo.convert .*: \(tensor<.*xb?f\d+>\)", program))

    assert counted("float32") == 0 < counted("bfloat16")


def test_sums_beyond_float16_are_divided_in_time():
    q, k, v = (np.full((1, 300, 1, 1), x, np.float16) for x in (0, 0, 500))
    np.testing.assert_array_equal(attention(q, k, v, None), v)


def test_turned_products_depend_on_the_distance_alone(x64):
    q, k, _ = draw(1, 1, heads=1, size=4)

    def product(i, j):
        turned = (rotary(x, jnp.array([p]), base=50.0) for x, p in ((q, i), (k, j)))
        return jnp.einsum("nthd,nthd->n", *turned)

    assert_leaves_close(product(9, 4), product(105, 100), 1e-12)
    np.testing.assert_array_equal(rotary(q, jnp.array([0])), q)


@pytest.mark.parametrize(("dtype", "far"), [("uint8", 200), ("uint32", 70), ("int8", -128)])
def test_positions_of_any_integer_dtype_turn_back_as_far(dtype, far):
    x, positions = jnp.arange(1.0, 9).reshape(1, 2, 1, 4), jnp.array([3, far], dtype)
    y, residuals = rotary.fwd(x, positions)
    np.testing.assert_allclose(rotary.bwd(residuals, y)[0], x, rtol=1e-5)


def test_far_positions_keep_their_angles_in_bfloat16():
    x, positions = jnp.ones((1, 2, 1, 2)), jnp.array([256, 257])
    exact = np.cos([256.0, 257.0]) - np.sin([256.0, 257.0])
    ours = rotary(x.astype(jnp.bfloat16), positions)[0, :, 0, 0]
    np.testing.assert_allclose(np.asarray(ours, np.float64), exact, atol=0.02)


def test_the_block_without_biases_given_positions_or_rotary_and_in_blocks(x64):
    """By hand as by `jax.vjp`, and in blocks as at once; positions count from 0 unless given."""
    rng = np.random.default_rng(0)
    drawn = [rng.normal(size=s) for s in ((3, 8), (3, 4), (3, 4), (8, 2), (2, 5, 3), (2, 5, 2))]
    *weights, x, dz = map(jnp.asarray, drawn)

    def ways(params, x, positions, **static):
        z, residuals = multi_head.fwd(params, x, positions, None, **HEADS, **static)
        hand = multi_head.bwd(residuals, dz, **HEADS, **static)[:2]
        _, pull = jax.vjp(
            lambda p, x: multi_head.fwd(p, x, positions, None, **HEADS, **static)[0], params, x
        )
        return z, hand, pull(dz)

    (z, hand, auto), blocks, counted = run(
        lambda p, x: (
            ways(p, x, jnp.arange(5), rotary_base=10.0),
            ways(p, x, None, rotary_base=10.0, block=2),
            ways(p, x, None, causal=True, window=2, block=2),
        ),
        MultiHead(*weights),
        x,
    )
    assert_leaves_close(hand, auto, 1e-10)
    assert_leaves_close(blocks, (z, hand, auto), 1e-10)
    assert_leaves_close(counted[1], counted[2], 1e-10)


@pytest.mark.parametrize("heads", [1, 2, 3, 8, 12])
def test_alibi_falls_by_slopes_that_halve_in_steps(heads):
    slopes = np.sort(alibi_slopes(heads))[::-1]
    power = 2 ** int(np.log2(heads))
    np.testing.assert_allclose(
        2.0 ** (-8 * np.arange(1, power + 1) / power), alibi_slopes(heads)[:power]
    )
    assert len(set(slopes.tolist())) == heads
    bias = alibi_bias(heads, 3, 5, jnp.bfloat16)
    assert (bias.shape, bias.dtype) == ((heads, 3, 5), jnp.bfloat16)
    exact = (
        -np.abs(np.arange(2, 5)[:, None] - np.arange(5))
        * np.asarray(alibi_slopes(heads))[:, None, None]
    )
    np.testing.assert_allclose(bias.astype(jnp.float32), exact, rtol=0.004)
    q, k, v = draw(3, 5, heads=heads)
    by_key = alibi_slopes(heads)[:, None, None] * jnp.arange(5.0)
    far, near = (
        attention(q, k, v, None, b, causal=True) for b in (alibi_bias(heads, 3, 5), by_key)
    )
    assert_leaves_close(far, near, 1e-5)


def test_alibi_names_bad_sizes():
    for wrong, error, words in (
        ((0, 3, 3), ValueError, "alibi_slopes: heads is 0"),
        ((2, 3.0, 3), TypeError, "alibi_bias: queries is 3.0"),
        ((2, 3, 3, int), TypeError, "must be floating"),
    ):
        with pytest.raises(error, match=words):
            alibi_bias(*wrong)


def test_many_pairs_of_a_bucket_add_up_in_float32():
    dbias = jnp.full((1, 1, 600, 600), 1e-3, jnp.bfloat16)
    (dparams,) = bias_op.bwd(jnp.zeros((4, 1), jnp.bfloat16), dbias, queries=600, keys=600)
    exact = float(dbias[0, 0, 0, 0]) * 600 * 600
    assert dparams.table.dtype == jnp.bfloat16
    np.testing.assert_allclose(dparams.table.astype(jnp.float32).sum(), exact, rtol=0.005)


Q, KV = jnp.zeros((2, 5, 4, 6)), jnp.zeros((2, 7, 2, 6))
WEIGHTS = (jnp.zeros((3, 8)), jnp.zeros((3, 4)), jnp.zeros((3, 4)), jnp.zeros((8, 3)))
PARAMS, X = MultiHead(*WEIGHTS), jnp.zeros((2, 5, 3))
HEADS = {"heads": 4, "kv_heads": 2}
TABLE, SIZES = PositionBias(jnp.zeros((8, 3))), {"queries": 5, "keys": 7}


@pytest.mark.parametrize(
    ("op", "inputs", "static", "error", "message"),
    [
        (attention, (Q[0], KV, KV, None), {}, ValueError, "(5, 4, 6).*(N, T, H, D)"),
        (
            attention,
            (Q[..., :5], KV, KV, None),
            {},
            ValueError,
            "k has shape (2, 7, 2, 6), beside q (2, 5, 4, 5).*k (N, S, G, D)",
        ),
        (
            attention,
            (Q, KV, KV[:, :6], None),
            {},
            ValueError,
            "v has shape (2, 6, 2, 6).*slice what differs",
        ),
        (attention, (Q[:, :, :3], KV, KV, None), {}, ValueError, "3 query heads, 2 heads"),
        (attention, (Q, KV, KV, jnp.ones((5, 7))), {}, TypeError, "mask has dtype float32"),
        (attention, (Q, KV, KV, jnp.ones((2, 7), bool)), {}, ValueError, "(2, 7).*(2, 4, 5, 7)"),
        (attention, (Q, KV, KV, jnp.ones((3, 1, 1, 1, 1), bool)), {}, ValueError, "(3, 1, 1, 1"),
        (attention, (Q, KV, KV, [[True]]), {}, TypeError, "mask is a list.*jnp.asarray"),
        (attention, (Q, KV, None, None), {}, TypeError, "attention: v is a NoneType"),
        (attention, (Q[:, :0], KV, KV, None), {}, ValueError, "(2, 0, 4, 6).*at least 1"),
        (
            attention,
            (Q[:, :0], KV, KV, None),
            {"block": 2},
            ValueError,
            "(2, 0, 4, 6).*at least 1",
        ),
        (
            attention,
            (Q, KV.astype(jnp.bfloat16), KV, None),
            {"block": 2},
            TypeError,
            "q float32, k bfloat16, v float32; they must be one",
        ),
        (attention, (Q, KV, KV, None, Q > 0), {}, TypeError, "bias has dtype bool.*floating"),
        (
            attention,
            (Q, KV, KV, None, jnp.zeros((5, 7), "bfloat16")),
            {},
            TypeError,
            "v float32, bias bfloat16; they must be one",
        ),
        (
            attention,
            (Q, KV, KV, None, jnp.zeros(4)),
            {},
            ValueError,
            "bias has shape (4,); it must broadcast to (2, 4, 5, 7).*bias[:, None, None]",
        ),
        (attention, (Q, KV, KV, None, None, 3), {"rate": 0.1}, TypeError, "key is 3.*or None"),
        (attention, (Q, KV, KV, None), {"rate": 1.0}, ValueError, "rate is 1.0.*in [0, 1)"),
        (attention, (Q, KV, KV, None), {"softcap": 0}, ValueError, "softcap is 0.*positive.*None"),
        (attention, (Q, KV, KV, None), {"softcap": np.inf}, ValueError, "softcap is inf.*finite"),
        (attention, (Q, KV, KV, None), {"softcap": True}, TypeError, "softcap is True.*a number"),
        (bias_op, (TABLE,), {"queries": 2, "keys": 0}, ValueError, "keys is 0.*at least 1"),
        (bias_op, (TABLE.table,), SIZES, TypeError, "params is a .*PositionBias(...)"),
        (bias_op, (PositionBias(Q),), SIZES, ValueError, "(2, 5, 4, 6).*(B, H).*(buckets, heads)"),
        (bias_op, (PositionBias(jnp.zeros((5, 2))),), SIZES, ValueError, "5 buckets.*even.*from 4"),
        (
            bias_op,
            (TABLE,),
            SIZES | {"max_distance": 2},
            ValueError,
            "is 2; it must be above the 2",
        ),
        (bias_op, (TABLE,), SIZES | {"bidirectional": 0}, TypeError, "bidirectional is 0.*True"),
        (attention, (Q, KV, KV, None), {"block": 0}, ValueError, "block is 0.*at least 1"),
        (attention, (Q, KV, KV, None), {"block": True}, TypeError, "block is True.*integer"),
        (attention, (Q, KV, KV, None), {"causal": 1}, TypeError, "causal is 1.*True or False"),
        (attention, (Q, KV, KV, None), {"scale": "1"}, TypeError, "scale is '1'.*a number"),
        (attention, (Q, KV, KV, None), {"scale": np.inf}, ValueError, "scale is inf.*be finite"),
        (
            attention,
            (Q, KV, KV, None),
            {"causal": True, "window": 2.5},
            TypeError,
            "window is 2.5.*integer of at least 1",
        ),
        (
            attention,
            (Q, KV, KV, None),
            {"window": 3},
            ValueError,
            "window is 3 but causal is False",
        ),
        (rotary, (X, jnp.arange(5)), {}, ValueError, "(2, 5, 3).*(N, T, H, D).*four dimensions"),
        (rotary, (Q[..., :5], jnp.arange(5)), {}, ValueError, "size 5; the size must be even"),
        (
            rotary,
            (Q, jnp.arange(5.0)),
            {},
            TypeError,
            "positions has dtype float32; it must be of integers",
        ),
        (rotary, (Q, jnp.arange(7)), {}, ValueError, "(7,), x (2, 5, 4, 6).*5 positions"),
        (rotary, (Q, jnp.arange(5)), {"base": 0}, ValueError, "base is 0.*positive"),
        (rotary, (Q, jnp.arange(5)), {"base": 1e-50}, ValueError, "1e-50.*positive in float32"),
        (rotary, (Q, jnp.arange(5)), {"base": 1e-37}, ValueError, "1e-37.*at least 2.5e-29"),
        (rotary, (Q, jnp.arange(5)), {"base": float("inf")}, ValueError, "base is inf.*finite"),
        (rotary, (Q, jnp.arange(5)), {"scaling": 2.0}, TypeError, "is a float.*rotary.Scaling"),
        (rotary, (Q, jnp.arange(5)), {"scaling": Scaling("2")}, TypeError, "factor is '2'"),
        (rotary, (Q, jnp.arange(5)), {"scaling": Scaling(0.5)}, ValueError, "is 0.5.*at least 1"),
        (rotary, (Q, jnp.arange(5)), {"scaling": Scaling(2.0, 1.0)}, ValueError, "high None"),
        (
            rotary,
            (Q, jnp.arange(5)),
            {"scaling": Scaling(2.0, 4.0, 4.0, 8)},
            ValueError,
            "high is 4.0.*above low, which is 4.0",
        ),
        (
            rotary,
            (Q, jnp.arange(5)),
            {"scaling": Scaling(2.0, 1.0, 4.0, 8.5)},
            TypeError,
            "positions is 8.5.*integer",
        ),
        (rotary, (Q.astype(int), jnp.arange(5)), {}, TypeError, "x has dtype int32.*floating"),
        (
            multi_head,
            (PARAMS, X, None, None),
            HEADS | {"rotary_scaling": Scaling(2.0)},
            ValueError,
            "rotary_base is None; there must be a base",
        ),
        (
            multi_head,
            (PARAMS, X, None, None),
            HEADS | {"norm_offset": 1.0},
            ValueError,
            "norm_offset is 1.0 but q_norm and k_norm are None",
        ),
        (
            multi_head,
            (PARAMS._replace(q_norm=jnp.zeros(4)), X, None, None),
            HEADS,
            ValueError,
            "q_norm has shape (4,); with 4 heads of size 2 it must be (2,)",
        ),
        (
            multi_head,
            (PARAMS._replace(k_norm=jnp.zeros(2)), X, None, None),
            HEADS | {"norm_eps": 0.0},
            ValueError,
            "eps is 0.0",
        ),
        (rotary, (Q, [0, 1, 2, 3, 4]), {}, TypeError, "positions is a list"),
        (
            multi_head,
            (PARAMS, X, None, None),
            {"heads": 3},
            ValueError,
            "8 outputs for 3 heads; they",
        ),
        (
            multi_head,
            (PARAMS, X, None, None),
            {"heads": 4, "kv_heads": 3},
            ValueError,
            "4 query heads, 3 heads",
        ),
        (multi_head, (PARAMS, X, None, None), {"heads": 4}, ValueError, "must be (3, 8)"),
        (multi_head, (PARAMS, X, None, None), {"heads": None}, TypeError, "heads is None.*integer"),
        (multi_head, (PARAMS, X, None, None), {"heads": 0}, ValueError, "heads is 0.*at least 1"),
        (
            multi_head,
            (PARAMS, X, None, None),
            {"heads": 4, "kv_heads": "2"},
            TypeError,
            "kv_heads is '2'.*or None",
        ),
        (multi_head, (WEIGHTS, X, None, None), HEADS, TypeError, "is a tuple.*MultiHead(...)"),
        (multi_head, (PARAMS, None, None, None), HEADS, TypeError, "multi_head: x is a NoneType"),
        (
            multi_head,
            (PARAMS._replace(bo=jnp.zeros(3, "bfloat16")), X, None, None),
            HEADS,
            TypeError,
            "bo bfloat16, x float32; they must be one",
        ),
        (multi_head, (PARAMS, X, X, None), HEADS | {"rotary_base": 9.0}, TypeError, "of integers"),
        (multi_head, (PARAMS, X, None, X > 0), HEADS, ValueError, "mask has shape (2, 5, 3)"),
        (multi_head, (PARAMS, X, None, None), HEADS | {"window": 2}, ValueError, "causal is False"),
        (
            attention,
            (Q, KV, KV, None),
            {"causal": True, "window": -(10**400)},
            ValueError,
            "must be at least 1",
        ),
        (attention, (Q, KV, KV, None), {"scale": 10**400}, ValueError, "must be finite"),
        (
            multi_head,
            (PARAMS, X[:, :0], None, None),
            HEADS,
            ValueError,
            "(2, 0, 4, 2).*must be at least 1",
        ),
        (
            multi_head,
            (PARAMS, X[..., :2], None, None),
            HEADS,
            ValueError,
            "x has shape (2, 5, 2), beside wq (3, 8)",
        ),
        (
            multi_head,
            (PARAMS._replace(wo=X), X, None, None),
            HEADS,
            ValueError,
            "wo has shape (2, 5, 3).*wo (Q, O)",
        ),
        (
            multi_head,
            (PARAMS._replace(bk=jnp.zeros(8)), X, None, None),
            HEADS,
            ValueError,
            "bk has shape (8,), beside wq (3, 8), wk (3, 4).*bk (K,) or None",
        ),
    ],
)
def test_bad_inputs_are_named(op, inputs, static, error, message):
    with pytest.raises(error, match=re.escape(message).replace(r"\.\*", ".*")):
        op(*inputs, **static)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_numpy_made_is_taken_and_widens_nothing(dtype):
    q, k, v = (np.asarray(x.astype(dtype)) for x in draw(5, 5))
    mask, two = np.ones((2, 1, 5, 5), bool), np.int64(2)
    static = {"causal": np.True_, "window": two, "block": two, "scale": np.float64(0.5)}
    leaves = jax.eval_shape(
        lambda: (attention(q, k, v, mask, **static), both(q, k, v, mask, **static))
    )
    assert {leaf.dtype.name for leaf in jax.tree.leaves(leaves)} == {dtype}
    z = jax.eval_shape(
        lambda: multi_head.fwd(PARAMS, X, None, None, heads=2 * two, kv_heads=two)[0]
    )
    assert z.shape == (2, 5, 3)
