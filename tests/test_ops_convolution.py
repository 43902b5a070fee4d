"""Convolution and pooling: other forms that must agree, edge sizes, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_leaves_close, run
from jax import lax

from jaxnn.ops.convolution import Conv, ConvResiduals, conv1d, conv2d, conv2d_transpose
from jaxnn.ops.pooling import (
    average_pool,
    global_average_pool,
    global_max_pool,
    max_pool,
    upsample_nearest,
)
from jaxnn.ops.unfold import conv2d_unfold, unfold
from jaxnn.ops.windows import from_tap, placement, under_tap

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape))


def both(op, inputs, dy, **static):
    y, residuals = op.fwd(*inputs, **static)
    return y, op.bwd(residuals, dy, **static)


def by_autodiff(forward, inputs, dy):
    y, pull = jax.vjp(forward, *inputs)
    return y, pull(dy)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_kernels_gradient_is_summed_over_many_in_float32(dtype):
    x, dy = (1 + normal(2048, size, 2).astype(dtype) / 4 for size in (4, 3))
    params = Conv(jnp.zeros((2, 2, 2), dtype), jnp.zeros(2, dtype))

    def of(x, dy, params):
        return conv1d.bwd(ConvResiduals(params, x), dy)[0]

    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (x, dy, params))
    narrow, exact = run(of, x, dy, params), run(of, *wide)
    assert {leaf.dtype.name for leaf in narrow} == {dtype}
    assert_leaves_close(narrow, exact, 0.005)


@pytest.mark.parametrize(
    ("size", "kernel", "static"),
    [
        ((7, 6), (3, 2), {"stride": (2, 1), "padding": "same", "dilation": (1, 2)}),
        ((9,), 2, {"stride": 3, "padding": ((4, 2),)}),
        ((5,), 3, {"padding": "causal"}),
        ((4, 5), (4, 1), {"padding": 1}),
    ],
)
def test_what_lies_under_a_tap_and_back_are_adjoint(size, kernel, static, x64):
    """And a place holds what the formula says, whatever is under it."""
    at = placement(size, kernel, **static)
    x, dy = normal(2, *size, 3), normal(2, *at.places, 3)
    padded = jnp.pad(x, [(0, 0), *at.padding, (0, 0)])
    taps = list(at.taps)
    assert len(taps) == np.prod(at.kernel)
    for tap in taps:
        under = under_tap(padded, tap, at)
        last = tuple((n - 1) * s + t for n, s, t in zip(at.places, at.stride, tap, strict=True))
        np.testing.assert_array_equal(under[(0, *(-1,) * len(size))], padded[(0, *last)])
        np.testing.assert_allclose((under * dy).sum(), (x * from_tap(dy, tap, at)).sum())


@pytest.mark.parametrize(
    ("op", "inputs", "static"),
    [
        (conv1d, (Conv(jnp.ones((3, 2, 6)), jnp.ones(6)), jnp.ones((0, 8, 4))), {"groups": 2}),
        (conv2d, (Conv(jnp.ones((2, 3, 4, 6)), jnp.ones(6)), jnp.ones((0, 7, 5, 4))), {}),
        (
            conv2d_transpose,
            (Conv(jnp.ones((2, 3, 3, 4)), jnp.ones(6)), jnp.ones((0, 4, 5, 4))),
            {"groups": 2, "stride": 2},
        ),
        (unfold, (jnp.ones((0, 7, 5, 4)),), {"kernel": 2}),
        (conv2d_unfold, (Conv(jnp.ones((2, 3, 4, 6)), jnp.ones(6)), jnp.ones((0, 7, 5, 4))), {}),
        (max_pool, (jnp.ones((0, 7, 5, 4)),), {}),
        (average_pool, (jnp.ones((0, 7, 5, 4)),), {}),
        (global_average_pool, (jnp.ones((0, 7, 5, 4)),), {}),
        (global_max_pool, (jnp.ones((0, 7, 5, 4)),), {}),
        (upsample_nearest, (jnp.ones((0, 7, 5, 4)),), {}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
@pytest.mark.usefixtures("strict_dtypes")
def test_an_empty_batch_is_taken_and_its_gradients_are_zero(op, inputs, static):
    y = op(*inputs, **static)
    assert len(y) == 0
    _, cotangents = run(lambda *x: both(op, x, jnp.ones(y.shape), **static), *inputs)
    for d, like in zip(*map(jax.tree.leaves, (cotangents, inputs)), strict=True):
        np.testing.assert_array_equal(d, jnp.zeros_like(like))


@pytest.mark.parametrize("static", [{}, {"stride": 2, "padding": "same", "dilation": (1, 2)}])
def test_unfolding_and_a_product_is_the_convolution(static, x64):
    x, params = normal(2, 8, 7, 3), Conv(normal(3, 2, 3, 5), normal(5))
    dy = normal(*jax.eval_shape(lambda *a: conv2d.fwd(*a, **static)[0], params, x).shape)
    plain, unfolded = run(
        lambda *a: (both(conv2d, a, dy, **static), both(conv2d_unfold, a, dy, **static)), params, x
    )
    assert_leaves_close(unfolded, plain, 1e-13)


@pytest.mark.parametrize(
    ("size", "static"),
    [
        ((8, 7), {"stride": 3, "padding": "same"}),
        ((9, 5), {"stride": (2, 4), "padding": ((5, 0), (0, 7)), "dilation": 2}),
        ((3, 2), {}),  # the kernel is as large as the image
        ((1, 1), {"padding": 2}),
        ((4, 4), {"padding": 1, "groups": 4}),  # depthwise
    ],
)
def test_settings_at_their_edges_equal_autodiff(size, static, x64):
    """Strides that leave a remainder, more padding than kernel, kernels as large as the image."""
    groups = static.get("groups", 1)
    x, params = normal(2, *size, 4), Conv(normal(3, 2, 4 // groups, 8), None)
    dy = normal(*jax.eval_shape(lambda *a: conv2d.fwd(*a, **static)[0], params, x).shape)
    ours, theirs = run(
        lambda *a: (
            both(conv2d, a, dy, **static),
            by_autodiff(lambda *b: conv2d.fwd(*b, **static)[0], a, dy),
        ),
        params,
        x,
    )
    assert_leaves_close(ours, theirs, 1e-12)


def test_padding_by_name_is_lax_s(x64):
    x, w = normal(2, 8, 7, 3), normal(3, 2, 3, 5)
    for padding in ("same", "valid"):
        ours = conv2d(Conv(w, None), x, stride=2, padding=padding)
        theirs = lax.conv_general_dilated(
            x, w, (2, 2), padding.upper(), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        assert_leaves_close(ours, theirs, 1e-13)


def test_a_causal_output_sees_nothing_later(x64):
    x, params = normal(1, 6, 2), Conv(normal(3, 2, 1), None)
    y = conv1d(params, x, padding="causal", dilation=2)
    changed = conv1d(params, x.at[0, 4:].set(9.0), padding="causal", dilation=2)
    np.testing.assert_array_equal(changed[0, :4], y[0, :4])
    assert y.shape == (1, 6, 1)
    assert (changed[0, 4:] != y[0, 4:]).all()


def test_the_transpose_is_the_adjoint(x64):
    """<conv x, y> = <x, transpose y>, with every setting, for a size that it brings back."""
    static = {"stride": (2, 3), "padding": ((1, 0), (2, 1)), "dilation": (1, 2), "groups": 2}
    x, w = normal(2, 8, 11, 4), normal(3, 2, 2, 6)
    y = conv2d(Conv(w, None), x, **static)
    z = normal(*y.shape)
    for extra in ((1, 0), 1, (0, 2)):
        back = conv2d_transpose(Conv(w, None), z, **static, output_padding=extra)
        forth = conv2d(Conv(w, None), back, **static)
        assert forth.shape == z.shape
    assert back.shape[1:3] == (8, 11)
    np.testing.assert_allclose((y * z).sum(), (x * back).sum(), rtol=1e-12)


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


IMAGE, KERNEL = jnp.zeros((2, 5, 4, 6)), Conv(jnp.zeros((3, 3, 6, 4)), jnp.zeros(4))
NAN, SPREAD = float("nan"), Conv(jnp.zeros((2, 2, 3, 6)), None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: conv2d(KERNEL, IMAGE[0]), r"x has shape \(5, 4, 6\).*\(N, H, W, C\)"),
        (lambda: conv2d(KERNEL, IMAGE[..., :5]), r"x has 5 channels.*takes 6 in 1 group"),
        (lambda: conv2d(KERNEL, IMAGE[:, :2]), r"spans \(3, 3\).*has \(2, 4\).*fit inside"),
        (lambda: conv2d(KERNEL, IMAGE, dilation=3), r"spans \(7, 7\) positions"),
        (lambda: conv2d(KERNEL, IMAGE, stride=0), "stride is 0.*at least 1"),
        (lambda: conv2d(KERNEL, IMAGE, stride=(1, 2, 3)), r"stride is \(1, 2, 3\).*2 of them"),
        (lambda: conv2d(KERNEL, IMAGE, dilation=-1), "dilation is -1.*at least 1"),
        (lambda: conv2d(KERNEL, IMAGE, groups=3), "groups is 3.*divide its last dimension, 4"),
        (lambda: conv2d(KERNEL, IMAGE, groups=2), "x has 6 channels.*takes 12 in 2 group"),
        (lambda: conv2d(KERNEL, IMAGE, padding="causal"), "padding is 'causal'.*'same' or 'valid'"),
        (lambda: conv2d(KERNEL, IMAGE, padding=((1, 1),)), r"padding is \(\(1, 1\),\).*2 pair"),
        (lambda: conv2d(KERNEL._replace(b=jnp.zeros(3)), IMAGE), r"b has shape \(3,\).*\(4,\)"),
        (
            lambda: conv2d_transpose(Conv(jnp.zeros((2, 2, 3, 6)), None), IMAGE, padding=4),
            "would have .* pad less",
        ),
        (
            lambda: conv2d_transpose(Conv(jnp.zeros((2, 2, 3, 6)), None), IMAGE, output_padding=1),
            r"output_padding is 1, the stride \(1, 1\).*from 0 to stride - 1",
        ),
        (
            lambda: conv2d_transpose(KERNEL._replace(b=None), IMAGE),
            "conv2d_transpose: x has 6 channels.*takes 4 in 1 group",
        ),
        (
            lambda: conv2d_unfold(Conv(jnp.zeros((3, 3, 5, 4)), None), IMAGE),
            r"conv2d_unfold: w has shape \(3, 3, 5, 4\).*\(2, 5, 4, 6\).*w \(K, L, C, O\)",
        ),
        (lambda: conv2d_unfold(Conv(jnp.zeros((3, 3, 3, 2, 4)), None), IMAGE), "K, L, C, O"),
        (lambda: max_pool(IMAGE, window=(6, 1)), r"spans \(6, 1\).*\(5, 4\)"),
        (lambda: max_pool(IMAGE, padding=2), r"padding is \(\(2, 2\).*window \(2, 2\)"),
        (lambda: average_pool(IMAGE[0]), r"average_pool: x has shape \(5, 4, 6\)"),
        (lambda: unfold(IMAGE, kernel=(2, 0)), "unfold: kernel is 0.*or 2 of them"),
        (lambda: max_pool(IMAGE, window=(2, 2, 2)), r"max_pool: window is \(2, 2, 2\)"),
        (lambda: conv2d(KERNEL, IMAGE, padding=-1), "padding is -1.*'same'.*2 pair"),
        (lambda: conv2d_unfold(KERNEL, IMAGE, stride=0), "conv2d_unfold: stride is 0"),
        (lambda: conv2d_unfold(KERNEL, IMAGE[:, :2]), "conv2d_unfold: the kernel spans"),
        (lambda: upsample_nearest(IMAGE, factor=0), "factor is 0"),
        (
            lambda: conv2d(KERNEL, IMAGE[..., None]),
            r"x has shape \(2, 5, 4, 6, 1\).*\(N, H, W, C\)",
        ),
        (lambda: conv1d(KERNEL, IMAGE[0]), r"w has shape \(3, 3, 6, 4\).*w \(K, I, O\)"),
        (
            lambda: conv2d(KERNEL, IMAGE[:, :0], padding=2),
            r"x has shape \(2, 0, 4, 6\).*but N must be at least 1",
        ),
        (
            lambda: conv2d(Conv(KERNEL.w[..., :0], None), IMAGE),
            r"shape \(2, 5, 4, 6\), beside w \(3, 3, 6, 0\).*but N must be at least 1",
        ),
        (
            lambda: global_average_pool(IMAGE[..., :0]),
            r"x has shape \(2, 5, 4, 0\).*but N must be at least 1",
        ),
        (
            lambda: global_max_pool(IMAGE[:, :0]),
            r"x has shape \(2, 0, 4, 6\).*but N must be at least 1",
        ),
        (lambda: conv2d(KERNEL, IMAGE, stride=10**400), "stride is 1000.*below 2147483648"),
        (lambda: conv2d(KERNEL, IMAGE, padding=2**31), "padding is 2147483648.*below 2147483648"),
        (lambda: conv2d_transpose(SPREAD, IMAGE, stride=2**30), "would have .*below 2.31"),
        (lambda: conv2d_transpose(SPREAD, IMAGE, padding="same"), "padding is 'same'.*transpose"),
        (lambda: conv2d_transpose(SPREAD, IMAGE, output_padding=-1), "output_padding is -1"),
        (lambda: average_pool(IMAGE, stride=0), "average_pool: stride is 0"),
        (lambda: max_pool(IMAGE, padding="causal"), "max_pool: padding is 'causal'"),
        (lambda: upsample_nearest(IMAGE, factor=10**400), "factor is 1000.*below 2147483648"),
        (
            lambda: upsample_nearest(IMAGE, factor=2**29),
            r"factor is 536870912.*stay below 2147483648",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: conv2d(KERNEL, IMAGE, stride=2.0),
            "conv2d: stride is 2.0; .*integer of at least 1",
        ),
        (lambda: conv2d(KERNEL, IMAGE, stride="2"), "stride is '2'; .*or 2 of them"),
        (lambda: conv2d(KERNEL, IMAGE, dilation=(1, True)), "dilation is True"),
        (lambda: conv2d(KERNEL, IMAGE, padding=((1.5, 1), (1, 1))), "padding is 1.5"),
        (lambda: conv2d(KERNEL, IMAGE, padding=None), "padding is None; .*'same' or 'valid'"),
        (lambda: conv2d(KERNEL, IMAGE, groups=NAN), "groups is nan; it must be an integer"),
        (lambda: conv2d_transpose(SPREAD, IMAGE, groups=None), "conv2d_transpose: groups is None"),
        (lambda: conv2d_transpose(SPREAD, IMAGE, dilation=1.5), "dilation is 1.5"),
        (lambda: max_pool(IMAGE, window=NAN), "max_pool: window is nan"),
        (lambda: upsample_nearest(IMAGE, factor="2"), "factor is '2'; it must be an integer"),
        (
            lambda: conv2d(tuple(KERNEL), IMAGE),
            r"conv2d: params is a tuple.*convolution.Conv: .*Conv\(...\)",
        ),
        (
            lambda: conv2d(KERNEL._replace(b=1.0), IMAGE),
            "conv2d: b is a .*[Ff]loat; .*an array",
        ),
        (lambda: conv2d.fwd(KERNEL._replace(b=1.0), IMAGE), "conv2d: b is a float.*an array"),
        (lambda: conv2d_transpose(SPREAD._replace(w=[1.0]), IMAGE), "w is a list"),
        (lambda: conv2d(Conv(None, None), IMAGE), "conv2d: w is a NoneType"),
        (lambda: conv2d_unfold(tuple(KERNEL), IMAGE), "conv2d_unfold: params is a tuple"),
        (lambda: conv1d(KERNEL, [[1.0]]), "conv1d: x is a list.*jnp.asarray"),
        (lambda: global_max_pool(None), "global_max_pool: x is a NoneType"),
        (lambda: average_pool(IMAGE.astype(int)), "average_pool: x has dtype int.*floating"),
        (lambda: unfold(IMAGE.astype(complex), kernel=2), "unfold: x has dtype complex.*floating"),
        (lambda: conv2d(KERNEL, IMAGE.astype(bool)), "conv2d: x has dtype bool.*floating"),
        (
            lambda: conv2d(KERNEL, IMAGE.astype(jnp.bfloat16)),
            "conv2d: the dtypes are x bfloat16, w float32, b float32.*must be one",
        ),
        (lambda: conv2d_unfold(None, IMAGE), "conv2d_unfold: params is a NoneType"),
        (lambda: upsample_nearest([[1.0]]), "upsample_nearest: x is a list"),
        (lambda: max_pool(IMAGE, stride="2"), "max_pool: stride is '2'"),
        (lambda: conv2d_transpose(SPREAD, IMAGE, output_padding=[0, None]), "padding is None"),
    ],
)
def test_what_is_of_a_wrong_kind_is_named(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.usefixtures("strict_dtypes")
def test_what_numpy_made_is_taken():
    """Settings and arrays, by the op as a function and by its forward and backward."""
    two, kernel, image = np.int64(2), jax.tree.map(np.asarray, KERNEL), np.asarray(IMAGE)
    for op, inputs, static in (
        (conv2d, (kernel._replace(w=kernel.w[:, :, :3]), image),
         {"groups": two, "stride": (two, 1), "padding": two, "dilation": np.int32(1)}),
        (conv2d_transpose, (kernel._replace(b=None), image[..., :4]),
         {"stride": two, "output_padding": two // 2}),
        (conv2d_unfold, (kernel, image), {"stride": two}),
        (unfold, (image,), {"kernel": two}),
        (max_pool, (image,), {"window": two}),
        (average_pool, (image,), {"window": two}),
        (upsample_nearest, (image,), {"factor": two}),
    ):  # fmt: skip
        y = jax.eval_shape(lambda op=op, i=inputs, s=static: op(*i, **s))
        dy = jnp.zeros(y.shape)
        _, cotangents = jax.eval_shape(lambda d, op=op, i=inputs, s=static: both(op, i, d, **s), dy)
        assert jax.tree.map(jnp.shape, cotangents) == jax.tree.map(jnp.shape, inputs)
        assert {d.dtype.name for d in jax.tree.leaves(cotangents)} == {"float32"}
