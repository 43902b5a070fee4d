"""Attention by cuDNN, as far as a CPU can see it: the programs for CUDA, and the kernels' contract.

Here both kernels are lowered for the CPU too, as plain sums of what cuDNN says that they give: the
numbers are of the whole way there and back. What is missing is cuDNN itself, which
`python -m experiments.benchmark.gpu` holds to the plain pair.
"""

import dataclasses
import json
import re
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import run
from jax._src.cudnn import fused_attention_stablehlo as kernels
from jax._src.interpreters import mlir
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxnn.data import KeyedBatch
from jaxnn.models import transformer
from jaxnn.op import plain_forms
from jaxnn.ops.attention import AttentionResiduals, attention
from jaxnn.ops.fast import cudnn_attention as cudnn

N, T, H, G, D = 2, 64, 4, 2, 16


def scores_of(q, k, scale, mask_type, sliding_window_length):
    """Of queries and keys (N, T, H, D), the scores (N, H, T, S) in float32; -inf where hidden."""
    q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    s = scale * jnp.einsum("nthd,nshd->nhts", q, k)
    ahead = jnp.arange(s.shape[2])[:, None] - jnp.arange(s.shape[3])
    if mask_type == kernels.MaskType.CAUSAL:
        s = jnp.where(ahead >= 0, s, -jnp.inf)
    return jnp.where(ahead < sliding_window_length, s, -jnp.inf) if sliding_window_length else s


def heads_for(x, h):
    return jnp.repeat(x.astype(jnp.float32), h // x.shape[2], axis=2)


def forward(q, k, v, *_, scale, mask_type, sliding_window_length, **__):
    """What cuDNN's forward gives: y, and the natural logarithm of the sums (N, H, T)."""
    k, v = (heads_for(x, q.shape[2]) for x in (k, v))
    s = scores_of(q, k, scale, mask_type, sliding_window_length)
    log_sums = jax.nn.logsumexp(s, -1)
    y = jnp.einsum("nhts,nshd->nthd", jnp.exp(s - log_sums[..., None]), v)
    return y.astype(q.dtype), log_sums


def backward(q, k, v, *others, scale, mask_type, sliding_window_length, **_):
    """What cuDNN's backward gives of these, of y and of L; each key head sums over its queries'."""
    *_, log_sums, y, dy = others
    y, dy = y.astype(jnp.float32), dy.astype(jnp.float32)
    wide_k, wide_v = (heads_for(x, q.shape[2]) for x in (k, v))
    s = scores_of(q, wide_k, scale, mask_type, sliding_window_length)
    p = jnp.exp(s - log_sums[..., None])
    dp = jnp.einsum("nthd,nshd->nhts", dy, wide_v)
    ds = scale * p * (dp - (dy * y).sum(-1).swapaxes(1, 2)[..., None])
    dq = jnp.einsum("nhts,nshd->nthd", ds, wide_k)
    dk = jnp.einsum("nhts,nthd->nshd", ds, q.astype(jnp.float32))
    dv = jnp.einsum("nhts,nthd->nshd", p, dy)
    dk, dv = (
        x.reshape(*like.shape[:3], -1, like.shape[3]).sum(3)
        for x, like in ((dk, k), (dv, v))
    )  # fmt: skip
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


for primitive, function in (
    (kernels._dot_product_attention_fwd_p, forward),
    (kernels._dot_product_attention_bwd_p, backward),
):
    mlir.register_lowering(primitive, mlir.lower_fun(function, True), platform="cpu")


@pytest.fixture
def on_gpu(monkeypatch):
    """JAX believes that there is a GPU, with cuDNN; programs are for whatever they are lowered."""
    monkeypatch.setattr(kernels, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(compute_capability="9.0")])


@pytest.fixture
def emulated(on_gpu, monkeypatch):
    """The CPU runs what is for CUDA."""
    monkeypatch.setattr(cudnn.lax, "platform_dependent", lambda *x, cuda, default: cuda(*x))
    jitted = cudnn._forward, cudnn._backward
    for function in jitted:
        function.clear_cache()
    yield
    for function in jitted:
        function.clear_cache()


def draw(t=T, s=T, heads=(H, G), size=D, values=D, dtype=jnp.bfloat16, n=N):
    rng = np.random.default_rng(0)
    shapes = (n, t, heads[0], size), (n, s, heads[1], size), (n, s, heads[1], values)
    shapes += ((n, t, heads[0], values),)
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def step(q, k, v, dy, mask=None, bias=None, key=None, **static):
    y, residuals = attention.fwd(q, k, v, mask, bias, key, **static)
    return (y, residuals.log_normaliser), attention.bwd(residuals, dy, **static)[:3]


def lowered(function, *inputs, platform="cuda"):
    traced = jax.jit(lambda *x: function(*x)).trace(*inputs)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def calls(text):
    """Which of cuDNN's kernels a program calls."""
    return re.findall(r"@__cudnn\$(\w+)", text)


BOTH = ["fmhaSoftmax", "fmhaSoftmaxBackward"]


def scanned(q, k, v, dy):
    return jax.lax.scan(lambda x, _: (step(x, k, v, dy, causal=True)[0][0], 0), q, None, length=3)


def graded(q, k, v, dy):
    def f(*inputs):
        return jnp.vdot(attention(*inputs, causal=True), dy)

    return jax.grad(f, argnums=(0, 1, 2))(q, k, v)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (partial(step, causal=True), BOTH),
        (step, BOTH),
        (graded, BOTH),
        (scanned, BOTH[:1]),
        (lambda *x: jax.vmap(graded, (0, None, 0, 0))(*(y[None] for y in x)), None),
    ],
    ids=["causal", "full", "jax.grad of the op", "scan", "vmap"],
)
def test_a_program_for_cuda_calls_each_kernel_once(on_gpu, function, expected):
    inputs = draw()
    if expected is None:  # mapped over: k is shared
        q, k, v, dy = inputs
        expected, function = BOTH, jax.vmap(graded, (0, None, 1, 0))
        inputs = q[None], k, v[:, None], dy[None]
    text = lowered(function, *inputs)
    assert calls(text) == expected
    assert "stablehlo.exponential" not in text  # nothing of the other form is in it
    assert not calls(lowered(function, *inputs, platform="cpu"))


def test_the_kernels_are_told_the_mask_the_window_and_the_scale(on_gpu):
    for static, mask, window in (
        ({"causal": True, "window": 7, "scale": 0.3}, "CAUSAL", 7),
        ({"causal": True, "window": 1000, "scale": 0.3}, "CAUSAL", 0),
        ({"scale": 0.3}, "NO_MASK", 0),
    ):
        text = lowered(partial(step, **static), *draw())
        configs = re.findall(r'backend_config = "(.*?)"[,}]', text)
        assert len(configs) == 2
        for config in configs:
            told = json.loads(config.replace(r"\22", '"'))["cudnn_fmha_backend_config"]
            assert (told["mask_type"], told["sliding_window_length"]) == (mask, window)
            assert told["fmha_scale"] == 0.3


@pytest.mark.parametrize(
    "other",
    [
        {"mask": jnp.ones(T, bool)},
        {"bias": jnp.ones(T, jnp.bfloat16)},
        {"key": jax.random.key(0), "rate": 0.5},
        {"softcap": 2.0},
        {"block": 16},
        {"dtype": jnp.float32},
        {"size": 12},
        {"size": 136, "values": 136},
        {"values": 8},
        {"t": 70, "causal": True},
        {"t": 63, "s": 63},
        {"n": 0},
    ],
    ids=lambda other: " ".join(other),
)  # fmt: skip
def test_what_the_kernels_cannot_do_is_done_in_parts(on_gpu, other):
    shapes = {name: other[name] for name in ("t", "s", "size", "values", "dtype", "n")
              if name in other}  # fmt: skip
    if "size" in other and "values" not in other:
        shapes["values"] = other["size"]
    rest = {name: value for name, value in other.items() if name not in shapes}
    assert not calls(lowered(partial(step, **rest), *draw(**shapes)))
    assert calls(lowered(partial(step, key=jax.random.key(0)), *draw(t=70))) == BOTH


def test_only_a_gpu_that_has_the_kernels_is_asked(on_gpu, monkeypatch):
    program = partial(step, causal=True)
    for capability in ("7.5", "gfx90a", ""):
        device = SimpleNamespace(compute_capability=capability)
        monkeypatch.setattr(jax, "devices", lambda device=device: [device])
        assert not calls(lowered(program, *draw()))
    device = SimpleNamespace(compute_capability="10.0")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert calls(lowered(program, *draw())) == BOTH
    with plain_forms():
        assert not calls(lowered(program, *draw()))
    monkeypatch.setattr(kernels, "check_cudnn_version", no_cudnn)
    assert not calls(lowered(program, *draw()))


def no_cudnn():
    raise RuntimeError("cuDNN is not detected.")


def test_a_cpu_does_not_ask(monkeypatch):
    monkeypatch.setattr(kernels, "check_cudnn_version", lambda: 91000)
    assert not calls(lowered(partial(step, causal=True), *draw()))


def off(a, b):
    """The largest difference by the scale, over all leaves."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    pairs = [[np.asarray(x, np.float64) for x in pair] for pair in pairs]
    return max(np.abs(x - y).max() / np.abs(y).max() for x, y in pairs)


@pytest.mark.parametrize(
    ("shapes", "static"),
    [
        ({}, {"causal": True}),
        ({"t": 70, "s": 90, "heads": (2, 2)}, {"scale": 0.7}),
        ({"t": 70, "s": 70, "heads": (4, 1), "dtype": jnp.float16}, {"causal": True, "window": 9}),
    ],
    ids=["causal", "full", "window"],
)
def test_what_the_kernels_give_is_put_where_it_belongs(emulated, shapes, static):
    """There and back, alone and mapped over with keys shared, against the plain form in float32."""
    q, k, v, dy = draw(**shapes)
    k = jnp.broadcast_to(k[:1], k.shape)
    of = partial(step, **static)
    mapped = jax.vmap(of, in_axes=(0, None, 1, 0))

    def alone_and_mapped(q, k, v, dy):
        both_ways = [jnp.stack([x, x[::-1]]) for x in (q, v, dy)]
        both_ways[1] = both_ways[1].swapaxes(0, 1)
        return of(q, k, v, dy), mapped(both_ways[0], k, *both_ways[1:])

    alone, of_all = run(alone_and_mapped, q, k, v, dy)
    with plain_forms():
        wide = [x.astype(jnp.float32) for x in (q, k, v, dy)]
        expected = run(lambda *x: step(*x, **static), *wide)
    (y, log_normaliser), grads = alone
    assert y.dtype == grads[0].dtype == q.dtype
    assert log_normaliser.dtype == jnp.float32
    assert off(log_normaliser, expected[0][1]) < 1e-5
    assert off(alone, expected) < 1e-2
    assert off(of_all, jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), alone)) < 5e-3


def test_a_wide_cotangent_and_a_wide_y_are_taken_as_the_ring_hands_them(emulated):
    q, k, v, dy = draw()

    def wide(q, k, v, dy):
        (y, log), narrow = step(q, k, v, dy, causal=True)
        saved = AttentionResiduals(q, k, v, None, None, None, y.astype(jnp.float32), log)
        return narrow, attention.bwd(saved, dy.astype(jnp.float32), causal=True)[:3]

    narrow, grads = run(wide, q, k, v, dy)
    assert {x.dtype for x in grads} == {jnp.dtype(jnp.float32)}
    assert off(grads, narrow) == 0


def test_what_jax_differentiates_is_the_other_form(on_gpu):
    """Both outputs, once and twice: the kernels have no derivative of L, and none of the second."""
    q, k, v, dy = draw()

    def of_both(q):
        y, saved = attention.fwd(q, k, v, causal=True)
        return (y.astype(jnp.float32) ** 2).sum() + jnp.sin(saved.log_normaliser).sum()

    def twice(q):
        def once(q):
            return jnp.vdot(graded(q, k, v, dy)[0], dy).astype(jnp.float32)

        return jax.grad(once)(q)

    def every(q):
        return jax.grad(of_both)(q), twice(q)

    assert not calls(lowered(jax.grad(of_both), q))
    found = run(every, q)
    with plain_forms():
        expected = run(lambda q: every(q), q)
    assert off(found, expected) < 3e-2


def test_on_a_mesh_each_device_calls_them_for_its_own(emulated):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    q, k, v, dy = draw()

    def looped(q, k, v, dy):
        def turn(_, __):
            (y, _), grads = step(q, k, v, dy, causal=True)
            return (y, grads), None  # of the type that the loop began with

        zeros = jax.tree.map(lambda x: 0 * x, (dy, (q, k, v)))  # of a type that varies
        return jax.lax.scan(turn, zeros, None, length=1)[0]

    spread = jax.shard_map(looped, mesh=mesh, in_specs=(P("data"),) * 4, out_specs=P("data"))
    found = run(spread, q, k, v, dy)
    (y, _), grads = run(partial(step, causal=True), q, k, v, dy)
    assert off(found, (y, grads)) < 1e-6


@pytest.mark.parametrize(("recompute", "expected"), [(False, BOTH), (True, [*BOTH[:1], *BOTH])])
def test_a_model_calls_them_once_a_pass(on_gpu, recompute, expected):
    """Its layers are a loop; to recompute a layer is to run its forward again."""
    config = transformer.gpt2(vocabulary=32, positions=T, layers=3, width=2 * D, heads=2)
    config = dataclasses.replace(config, recompute=recompute)
    params = jax.eval_shape(lambda: transformer.init_params(jax.random.key(0), config))
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), params)
    tokens = jax.ShapeDtypeStruct((N, T), jnp.int32)
    program = partial(transformer.manual_value_and_grad, config=config)
    assert calls(lowered(program, params, KeyedBatch(tokens, tokens))) == expected
