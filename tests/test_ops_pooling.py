"""Pooling, unpooling, resizing and padding: ties, extremes, width of sums, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_leaves_close, run
from jax import lax
from test_ops_convolution import both, by_autodiff, normal

from jaxnn.ops import adaptive_pooling, padding, pooling, resize, unpooling
from jaxnn.ops.adaptive_pooling import (
    adaptive_average_pool,
    adaptive_max_pool,
    global_average_pool,
    global_max_pool,
)
from jaxnn.ops.padding import pad
from jaxnn.ops.pooling import average_pool, max_pool
from jaxnn.ops.resize import pixel_shuffle, pixel_unshuffle, upsample_linear, upsample_nearest
from jaxnn.ops.unfold import unfold
from jaxnn.ops.unpooling import max_pool_indices, max_unpool

RNG = np.random.default_rng(0)
OPS = {
    op.name: op
    for module in (adaptive_pooling, padding, pooling, resize, unpooling)
    for op in vars(module).values()
    if type(op).__name__ == "Op"
}


@pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())
@pytest.mark.usefixtures("strict_dtypes")
def test_an_empty_batch_is_taken_and_its_gradients_are_empty(op):
    inputs = jax.tree.map(lambda x: x[:0], op.example(jax.random.key(0)))
    static = op.settings[-1]
    y = jax.eval_shape(lambda *x: op(*x, **static), *inputs)
    _, cotangents = run(lambda *x: both(op, x, jnp.ones(y.shape), **static), *inputs)
    assert len(y) == 0
    assert [d.shape for d in jax.tree.leaves(cotangents)] == [inputs[0].shape]


@pytest.mark.parametrize("op", [max_pool, max_unpool, adaptive_max_pool, upsample_linear])
def test_a_wrong_dimension_of_positions_is_named(op):
    inputs = op.example(jax.random.key(0))
    for wrong in (inputs[0][0, 0], inputs[0][None, None]):
        with pytest.raises(ValueError, match=rf"{op.name}: x has .*\(N, D, H, W, C\)"):
            op(wrong, *inputs[1:], **op.settings[-1])


@pytest.mark.parametrize(
    ("window", "stride", "padding"), [((2, 2), None, "valid"), ((3, 2), (1, 2), "same")]
)
def test_ties_are_shared_as_jax_does(window, stride, padding, x64):
    x = jnp.asarray(RNG.integers(0, 3, (2, 6, 5, 2)), float)
    strides = stride or window

    def lax_max(x):
        return lax.reduce_window(
            x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), padding.upper()
        )

    static = {"window": window, "stride": stride, "padding": padding}
    dy = normal(*lax_max(x).shape)
    ours, theirs = run(
        lambda x: (both(max_pool, (x,), dy, **static), by_autodiff(lax_max, (x,), dy)), x
    )
    assert_leaves_close(ours, theirs, 1e-14)
    every = dy[:, 0, 0]
    ours = both(global_max_pool, (x,), every)
    assert_leaves_close(ours, by_autodiff(lambda x: x.max((1, 2)), (x,), every), 1e-14)


def test_huge_values_and_infinities_stay(x64):
    x = jnp.full((1, 4, 4, 1), -1e308).at[0, 0, 0].set(-jnp.inf)
    y, (dx,) = both(max_pool, (x,), jnp.ones((1, 2, 2, 1)))
    assert (y == -1e308).all()
    assert dx.sum() == 4
    y, (dx,) = both(global_average_pool, (jnp.full((1, 2, 2, 1), 1e4),), jnp.ones((1, 1)))
    np.testing.assert_array_equal(y, 1e4)
    np.testing.assert_array_equal(dx, 0.25)


def test_nan_reaches_the_output_and_loses_no_gradient(x64):
    x = jnp.arange(16.0).reshape(1, 4, 4, 1).at[0, 1, 0].set(jnp.nan)
    y, (dx,) = both(max_pool, (x,), normal(1, 2, 2, 1))
    np.testing.assert_array_equal(jnp.isnan(y).ravel(), [True, False, False, False])
    assert ((dx != 0).sum(), (dx[0, :2, :2] != 0).sum()) == (4, 1)
    x = x.at[0, 0, 0].set(jnp.nan)  # under the first window's last tap, after three of padding
    _, (dx,) = both(max_pool, (x,), jnp.ones((1, 3, 3, 1)), padding=1)
    assert (dx[0, 0, 0, 0], dx.sum()) == (1, 9)


@pytest.mark.parametrize(
    ("dtype", "large"), [("bfloat16", 256), ("float16", 2048), ("float64", 2**53 - 8)]
)
def test_sums_of_many_are_not_of_few_digits(dtype, large, x64):
    """In half precision large + 1 is large again, and no float16 is 512 x 512 to divide by."""
    x = jnp.ones((1, 3, 3, 1), dtype).at[0, 0, 0].set(large)
    dy, peak = x, jnp.zeros((1, 5, 5, 1), dtype).at[0, 2, 2].set(1)
    wide, one = jnp.ones((1, 512, 512, 1), dtype), jnp.ones((1, 1), dtype)
    static = {"window": 3, "stride": 1}
    sums, *everywhere = run(
        lambda x, peak, wide: (
            (
                9 * average_pool(x, window=3)[0, 0, 0, 0],
                9 * both(average_pool, (peak,), dy, **static)[1][0][0, 2, 2, 0],
                both(max_pool, (peak,), dy, **static)[1][0][0, 2, 2, 0],
            ),
            both(global_average_pool, (wide,), one)[1][0],
            both(global_max_pool, (wide,), one)[1][0],
        ),
        x,
        peak,
        wide,
    )
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(sums, float), large + 8, rtol=2 * eps)
    for dx in everywhere:
        np.testing.assert_allclose(np.asarray(dx, float), 2.0**-18, rtol=2 * eps)
    assert {leaf.dtype.name for leaf in (*sums, *everywhere)} == {dtype}


def test_shares_of_many_windows_are_added_up_in_float32():
    """In bfloat16 the sum of 512 shares of 1/512 stops at a half."""
    x, dy = jnp.ones((1, 1, 1023, 1), jnp.bfloat16), jnp.ones((1, 1, 512, 1), jnp.bfloat16)
    (dx,) = average_pool.bwd(x, dy, window=(1, 512), stride=1)
    assert (dx[0, 0, 511, 0], dx.dtype) == (1, jnp.bfloat16)
    (dx,) = unfold.bwd(x, jnp.full((1, 1, 512, 512), 1 / 512, x.dtype), kernel=(1, 512))
    assert (dx[0, 0, 511, 0], dx.dtype) == (1, jnp.bfloat16)


def test_of_many_nans_the_first_gets_the_gradient_or_all_an_equal_share(x64):
    x = normal(1, 2, 3, 1).at[0, 0, 1].set(jnp.nan).at[0, 1, 2].set(jnp.nan)
    share = {max_pool: [0, 1, 0, 0, 0, 0], adaptive_max_pool: [0, 1, 0, 0, 0, 0]}
    share[global_max_pool] = [0, 0.5, 0, 0, 0, 0.5]
    settings = {max_pool: {"window": (2, 3)}, adaptive_max_pool: {"size": 1}, global_max_pool: {}}
    for op, expected in share.items():
        y, residuals = op.fwd(x, **settings[op])
        (dx,) = op.bwd(residuals, jnp.ones(y.shape), **settings[op])
        assert np.isnan(y).all()
        np.testing.assert_array_equal(dx.ravel(), expected)


@pytest.mark.parametrize("value", [-np.inf, 0.0])
def test_of_equal_values_the_padding_is_never_the_largest(value, x64):
    x = jnp.full((1, 2, 2, 1), value)
    static = {"window": 2, "padding": 1}
    _, (dx,) = both(max_pool, (x,), jnp.ones((1, 2, 2, 1)), **static)
    np.testing.assert_array_equal(dx, jnp.ones_like(x))
    np.testing.assert_array_equal(max_pool_indices(x, **static).ravel(), np.arange(4))


@pytest.mark.parametrize(
    "static", [{"window": 2}, {"window": 2, "stride": 2, "padding": 1, "ceil_mode": True}]
)
def test_indices_find_the_maxima_and_unpooling_puts_them_back(static, x64):
    x = normal(2, 5, 4, 3)
    y, indices = max_pool(x, **static), max_pool_indices(x, **static)
    flat = x.reshape(2, 20, 3)
    found = jnp.take_along_axis(flat, indices.reshape(2, -1, 3), 1).reshape(y.shape)
    np.testing.assert_array_equal(found, y)
    back = max_unpool(y, indices, size=(5, 4))
    assert back.shape == x.shape
    np.testing.assert_array_equal(max_pool(jnp.where(back == 0, -jnp.inf, back), **static), y)


def test_an_index_that_cannot_be_is_an_error_or_nan():
    y, indices = jnp.ones((1, 1, 2, 1)), jnp.array([3, 6]).reshape(1, 1, 2, 1)
    with pytest.raises(ValueError, match=r"index 6 at index \(0, 0, 1, 0\).*outside \[0, 6\)"):
        max_unpool(y, indices, size=(2, 3))
    unpool = jax.jit(lambda i, y: max_unpool(y, i, size=(2, 3)))
    x, pull = jax.vjp(lambda y: unpool(indices, y), y)
    (dy,) = pull(jnp.ones_like(x))
    np.testing.assert_array_equal(jnp.isnan(x).ravel(), [0, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(dy.ravel(), [1, np.nan])


def test_one_place_of_all_is_the_global_pooling(x64):
    x = normal(2, 4, 3, 5, 2)
    for adaptive, everywhere in (
        (adaptive_average_pool, global_average_pool),
        (adaptive_max_pool, global_max_pool),
    ):
        dy = normal(2, 2)
        y, (dx,) = both(adaptive, (x,), dy[:, None, None, None], size=1)
        assert_leaves_close(
            (y[:, 0, 0, 0], dx),
            both(everywhere, (x,), dy)[0:1] + both(everywhere, (x,), dy)[1],
            1e-13,
        )


def test_the_shuffle_is_undone(x64):
    x = normal(2, 3, 2, 18)
    np.testing.assert_array_equal(pixel_unshuffle(pixel_shuffle(x, factor=3), factor=3), x)


@pytest.mark.parametrize("padding", [1, ((0, 2), (1, 1))])
def test_padding_before_is_the_padding_of_the_pooling(padding, x64):
    x = normal(2, 5, 4, 3)
    ours = average_pool(pad(x, padding=padding), window=3, stride=2)
    assert_leaves_close(ours, average_pool(x, window=3, stride=2, padding=padding), 1e-14)


IMAGE, NAN = jnp.zeros((2, 5, 4, 6)), float("nan")
UNPOOLED = jnp.zeros((2, 2, 2, 3)), jnp.zeros((2, 2, 2, 3), int)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: max_pool(IMAGE, window=(6, 1)), r"spans \(6, 1\).*\(5, 4\)"),
        (lambda: max_pool(IMAGE, padding=2), r"padding is \(\(2, 2\).*window \(2, 2\)"),
        (
            lambda: average_pool(IMAGE[:, :1, :1], padding=1, dilation=2),
            r"the dilation \(2, 2\).*must hold a position of x",
        ),
        (lambda: average_pool(IMAGE[0, 0]), r"average_pool: x has shape \(4, 6\).*\(N, T, C\)"),
        (lambda: max_pool(IMAGE, window=(2, 2, 2)), r"max_pool: window is \(2, 2, 2\)"),
        (lambda: max_pool(IMAGE[0], window=(2, 2)), r"window is \(2, 2\).*or 1 of them"),
        (lambda: max_pool(IMAGE, dilation=0), "max_pool: dilation is 0"),
        (lambda: max_pool_indices(IMAGE, stride=0), "max_pool_indices: stride is 0"),
        (lambda: average_pool(IMAGE, divisor=0), "average_pool: divisor is 0; .*at least 1"),
        (
            lambda: global_average_pool(IMAGE[..., :0]),
            r"x has shape \(2, 5, 4, 0\).*but N must be at least 1",
        ),
        (
            lambda: global_max_pool(IMAGE[:, :0]),
            r"x has shape \(2, 0, 4, 6\).*but N must be at least 1",
        ),
        (lambda: average_pool(IMAGE, stride=0), "average_pool: stride is 0"),
        (lambda: max_pool(IMAGE, padding="causal"), "max_pool: padding is 'causal'"),
        (lambda: adaptive_max_pool(IMAGE, size=0), "adaptive_max_pool: size is 0"),
        (lambda: adaptive_average_pool(IMAGE, size=(1, 2, 3)), r"size is \(1, 2, 3\).*2 of them"),
        (lambda: max_unpool(*UNPOOLED, size=(4,)), r"max_unpool: size is \(4,\)"),
        (
            lambda: max_unpool(UNPOOLED[0], UNPOOLED[1][:1], size=4),
            r"indices have shape \(1, 2, 2, 3\), y \(2, 2, 2, 3\); they must be equal",
        ),
        (lambda: upsample_nearest(IMAGE, factor=0), "factor is 0"),
        (lambda: upsample_nearest(IMAGE, factor=10**400), "factor is 1000.*below 2147483648"),
        (
            lambda: upsample_nearest(IMAGE, factor=2**29),
            r"factor is 536870912.*stay below 2147483648",
        ),
        (lambda: upsample_linear(IMAGE, size=(3, -1)), "upsample_linear: size is -1"),
        (
            lambda: pixel_shuffle(IMAGE),
            r"x has shape \(2, 5, 4, 6\), the factor is 2; its channels must be multiples of 4",
        ),
        (lambda: pixel_unshuffle(IMAGE), "height and width must be multiples of 2: pad x"),
        (lambda: pixel_shuffle(IMAGE[0]), r"pixel_shuffle: x has shape.*\(N, H, W, C\)"),
        (lambda: pad(IMAGE, mode="edge"), "mode is 'edge'.*'constant', 'reflect', 'replicate'"),
        (lambda: pad(IMAGE, padding="same"), "pad: padding is 'same'.*2 pair"),
        (lambda: pad(IMAGE, padding=-1), "pad: padding is -1"),
        (
            lambda: pad(IMAGE, padding=4, mode="reflect"),
            r"padding is 4.*'reflect' an axis padded by \(4, 4\) must have 5",
        ),
        (lambda: pad(IMAGE, padding=((0, 0), (5, 0)), mode="circular"), "must have 5 positions"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: max_pool(IMAGE, window=NAN), "max_pool: window is nan"),
        (
            lambda: max_pool(IMAGE, ceil_mode=1),
            "max_pool: ceil_mode is 1; it must be True or False",
        ),
        (lambda: average_pool(IMAGE, count_include_pad=None), "count_include_pad is None"),
        (lambda: average_pool(IMAGE, divisor=0.5), "divisor is 0.5; .*or None to count"),
        (lambda: upsample_nearest(IMAGE, factor="2"), "factor is '2'; it must be an integer"),
        (lambda: upsample_nearest(IMAGE, exact="yes"), "exact is 'yes'; it must be True or False"),
        (lambda: upsample_linear(IMAGE, size=2.0), "upsample_linear: size is 2.0"),
        (lambda: adaptive_max_pool(IMAGE, size=None), "adaptive_max_pool: size is None"),
        (lambda: global_max_pool(None), "global_max_pool: x is a NoneType"),
        (lambda: average_pool(IMAGE.astype(int)), "average_pool: x has dtype int.*floating"),
        (lambda: upsample_nearest([[1.0]]), "upsample_nearest: x is a list"),
        (lambda: max_pool(IMAGE, stride="2"), "max_pool: stride is '2'"),
        (lambda: max_unpool(UNPOOLED[0], UNPOOLED[0], size=4), "indices has dtype float.*integers"),
        (lambda: pad(IMAGE, value="0"), "pad: value is '0'; it must be a number"),
        (lambda: pixel_shuffle(IMAGE, factor=2.0), "pixel_shuffle: factor is 2.0"),
    ],
)
def test_what_is_of_a_wrong_kind_is_named(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.usefixtures("strict_dtypes")
def test_what_numpy_made_is_taken():
    two, image = np.int64(2), np.asarray(IMAGE)
    for op, static in (
        (max_pool, {"window": two, "ceil_mode": np.bool_(True)}),
        (average_pool, {"window": two, "divisor": two}),
        (adaptive_max_pool, {"size": two}),
        (upsample_nearest, {"factor": two}),
        (pad, {"padding": two, "mode": "reflect", "value": np.float32(0)}),
    ):
        y = jax.eval_shape(lambda op=op, s=static: op(image, **s))
        _, (dx,) = jax.eval_shape(
            lambda d, op=op, s=static: both(op, (image,), d, **s), jnp.zeros(y.shape)
        )
        assert (dx.shape, dx.dtype) == (image.shape, "float32")


def test_indices_of_few_bits_name_any_position():
    ones = jnp.ones((1, 2, 2, 1))
    where = jnp.array([3, 7, 100, 120]).reshape(1, 2, 2, 1)
    wide = max_unpool(ones, where, size=16)
    assert wide.sum() == 4
    np.testing.assert_array_equal(max_unpool(ones, where.astype(jnp.int8), size=16), wide)
