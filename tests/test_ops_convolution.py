"""Convolution and unfolding: other forms that must agree, edge sizes, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_leaves_close, run
from jax import lax

from jaxnn.ops.convolution import (
    Conv,
    ConvResiduals,
    conv1d,
    conv1d_transpose,
    conv2d,
    conv2d_transpose,
    conv3d,
    conv3d_transpose,
)
from jaxnn.ops.fast import convolution as fast
from jaxnn.ops.unfold import conv2d_unfold, fold, unfold
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
        (conv3d, (Conv(jnp.ones((1, 2, 3, 4, 6)), jnp.ones(6)), jnp.ones((0, 2, 7, 5, 4))), {}),
        (
            conv1d_transpose,
            (Conv(jnp.ones((3, 3, 4)), jnp.ones(6)), jnp.ones((0, 4, 4))),
            {"groups": 2, "stride": 2},
        ),
        (unfold, (jnp.ones((0, 7, 5, 4)),), {"kernel": 2}),
        (fold, (jnp.ones((0, 6, 4, 8)),), {"kernel": 2, "size": (7, 5)}),
        (conv2d_unfold, (Conv(jnp.ones((2, 3, 4, 6)), jnp.ones(6)), jnp.ones((0, 7, 5, 4))), {}),
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


@pytest.mark.parametrize("numbers", [1, 400])
@pytest.mark.parametrize(
    ("size", "taps", "channels", "static"),
    [
        ((9,), (3,), (2, 3), {"padding": "causal", "dilation": 2}),  # the first axis moves dy
        ((6, 5), (3, 2), (4, 3), {"padding": ((2, 1), (0, 1)), "dilation": (1, 2)}),
        ((7, 5), (3, 2), (4, 3), {"stride": 2, "padding": 1}),  # which a stride forbids
        ((6, 5), (3, 2), (1, 9), {}),  # to move x is less
        ((4, 3, 5), (2, 1, 3), (2, 3), {"stride": (1, 2, 1), "padding": "same"}),
    ],
)
def test_the_fast_kernels_gradient_in_a_loop_is_the_plain_one(
    size, taps, channels, static, numbers, monkeypatch, x64
):
    monkeypatch.setattr(fast, "NUMBERS", numbers)  # of one example at a time, and of some
    op = {1: conv1d, 2: conv2d, 3: conv3d}[len(size)]
    x, params = normal(9, *size, channels[0]), Conv(normal(*taps, *channels), None)

    def both_forms(params, x, dy):
        saved = op.plain.fwd(params, x, **static)[1]
        return tuple(form.bwd(saved, dy, **static)[0].w for form in (op.fast, op.plain))

    dy = normal(*op.plain.fwd(params, x, **static)[0].shape)
    program = str(jax.make_jaxpr(both_forms)(params, x, dy))
    assert "scan" in program
    np.testing.assert_allclose(*run(both_forms, params, x, dy), rtol=1e-12, atol=1e-12)


def test_on_anything_but_a_cpu_the_kernels_gradient_is_a_convolution(monkeypatch):
    saved = ConvResiduals(Conv(normal(3, 3, 2, 4), None), normal(2, 5, 5, 2))

    def convolutions():
        program = jax.make_jaxpr(lambda dy: conv2d.fast.bwd(saved, dy)[0].w)(normal(2, 3, 3, 4))
        return str(program).count("conv_general_dilated")

    here = convolutions()  # of dx alone
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert (here, convolutions()) == (1, 2)


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


def test_folding_is_the_adjoint_of_unfolding_for_any_axes(x64):
    for size in ((7,), (4, 5), (3, 4, 3)):
        static = {"kernel": 2, "stride": 2, "padding": 1, "dilation": 2}
        u = unfold(x := normal(2, *size, 3), **static)
        v = normal(*u.shape)
        np.testing.assert_allclose((u * v).sum(), (x * fold(v, size=size, **static)).sum())


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
            "conv2d_unfold: x has 6 channels.*takes 5 in 1 group",
        ),
        (lambda: conv2d_unfold(Conv(jnp.zeros((3, 3, 3, 2, 4)), None), IMAGE), "K, L, I, O"),
        (lambda: unfold(IMAGE, kernel=(2, 0)), "unfold: kernel is 0.*or 2 of them"),
        (lambda: conv2d(KERNEL, IMAGE, padding=-1), "padding is -1.*'same'.*2 pair"),
        (lambda: conv2d_unfold(KERNEL, IMAGE, groups=3), "conv2d_unfold: groups is 3"),
        (lambda: conv3d(KERNEL, IMAGE), r"conv3d: x has shape .*\(N, D, H, W, C\)"),
        (lambda: conv3d_transpose(SPREAD, IMAGE[None]), r"w has shape .*w \(K, L, M, O, I\)"),
        (lambda: conv1d_transpose(SPREAD._replace(w=SPREAD.w[0]), IMAGE[0], padding=9), "pad less"),
        (
            lambda: fold(IMAGE, size=7, kernel=2),
            r"fold: u has shape \(2, 5, 4, 6\).*\(6, 6\) places and channels that 4 divides",
        ),
        (lambda: fold(IMAGE, size=(7, 0), kernel=2), "fold: size is 0"),
        (lambda: conv2d_unfold(KERNEL, IMAGE, stride=0), "conv2d_unfold: stride is 0"),
        (lambda: conv2d_unfold(KERNEL, IMAGE[:, :2]), "conv2d_unfold: the kernel spans"),
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
        (lambda: conv2d(KERNEL, IMAGE, stride=10**400), "stride is 1000.*below 2147483648"),
        (lambda: conv2d(KERNEL, IMAGE, padding=2**31), "padding is 2147483648.*below 2147483648"),
        (lambda: conv2d_transpose(SPREAD, IMAGE, stride=2**30), "would have .*below 2.31"),
        (lambda: conv2d_transpose(SPREAD, IMAGE, padding="same"), "padding is 'same'.*transpose"),
        (lambda: conv2d_transpose(SPREAD, IMAGE, output_padding=-1), "output_padding is -1"),
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
        (lambda: unfold(IMAGE.astype(complex), kernel=2), "unfold: x has dtype complex.*floating"),
        (lambda: conv2d(KERNEL, IMAGE.astype(bool)), "conv2d: x has dtype bool.*floating"),
        (
            lambda: conv2d(KERNEL, IMAGE.astype(jnp.bfloat16)),
            "conv2d: the dtypes are x bfloat16, w float32, b float32.*must be one",
        ),
        (lambda: conv2d_unfold(None, IMAGE), "conv2d_unfold: params is a NoneType"),
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
    ):  # fmt: skip
        y = jax.eval_shape(lambda op=op, i=inputs, s=static: op(*i, **s))
        dy = jnp.zeros(y.shape)
        _, cotangents = jax.eval_shape(lambda d, op=op, i=inputs, s=static: both(op, i, d, **s), dy)
        assert jax.tree.map(jnp.shape, cotangents) == jax.tree.map(jnp.shape, inputs)
        assert {d.dtype.name for d in jax.tree.leaves(cotangents)} == {"float32"}
