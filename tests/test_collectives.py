"""Collectives on a mesh of eight devices: NumPy's values, and the gradients of whole arrays."""

import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_leaves_close
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnn.ops
from jaxnn import verify
from jaxnn.op import Op
from jaxnn.ops import collectives
from jaxnn.ops.collectives import Axis, all_copy, all_gather, all_sum, on_first, reduce_scatter
from jaxnn.ops.collectives import ring_shift as shift

pytestmark = pytest.mark.usefixtures("x64")
AXIS = ("data", "model")  # 4 x 2 devices, as one axis of eight
X = np.random.default_rng(0).normal(size=(8, 16, 3, 8))  # what each device has
OPS = {name: op for name, op in vars(collectives).items() if isinstance(op, Op)}
# Where x lies, where y does, and what y is of all devices' x.
REFERENCES = {
    "all_copy": ({}, P(), P(AXIS), lambda x: np.stack([x] * 8)),
    "all_sum": ({}, P(AXIS), P(), lambda x: x.sum(0)),
    "all_mean": ({}, P(AXIS), P(), lambda x: x.mean(0)),
    "all_gather": (
        {"dimension": 1}, P(AXIS), P(AXIS), lambda x: np.stack([np.concatenate(x, 1)] * 8),
    ),
    "reduce_scatter": (
        {"dimension": 0}, P(AXIS), P(AXIS), lambda x: x.sum(0).reshape(8, 2, 3, 8),
    ),
    "ring_shift": ({"steps": 3}, P(AXIS), P(AXIS), lambda x: np.roll(x, 3, 0)),
    "all_to_all": (
        {"split": 2, "join": 0}, P(AXIS), P(AXIS),
        lambda x: np.stack([np.concatenate(x[..., i : i + 1]) for i in range(8)]),
    ),
}  # fmt: skip


@pytest.fixture
def mesh():
    return jax.make_mesh((4, 2), ("data", "model"))


def on_devices(function, mesh, into, out, *arrays):
    """A function of the devices' parts, which lie along a first axis where they differ."""

    def local(*parts):
        given = [x[0] if spec else x for x, spec in zip(parts, into, strict=True)]
        return jax.tree.map(lambda y: y[None] if out else y, function(*given))

    placed = [jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(arrays, into, strict=True)]
    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=into, out_specs=out))(*placed)


def test_every_collective_is_in_the_table():
    assert OPS.keys() == REFERENCES.keys()


@pytest.mark.parametrize("name", REFERENCES)
def test_a_collective_and_its_gradient_on_eight_devices(name, mesh):
    static, into, out, reference = REFERENCES[name]
    op, x = OPS[name], X if into else X[0]

    def forward(x):
        return op.fwd(x, axis=AXIS, **static)[0]

    def backward(x, dy):
        """By hand; and called, under autodiff."""
        (by_hand,) = op.bwd(op.fwd(x, axis=AXIS, **static)[1], dy, axis=AXIS, **static)
        return by_hand, jax.vjp(lambda x: op(x, axis=AXIS, **static), x)[1](dy)[0]

    y = on_devices(forward, mesh, (into,), out, x)
    assert_leaves_close(y, reference(x), 1e-14)
    rng = np.random.default_rng(1)
    dy = rng.normal(size=y.shape)
    dx, called = map(np.asarray, on_devices(backward, mesh, (into, out), into, x, dy))
    assert_leaves_close(called, dx, 1e-14)
    # All of these are linear: y(v) . dy = v . dx for every v.
    for _ in range(5):
        v = rng.normal(size=x.shape)
        assert np.isclose((reference(v) * dy).sum(), (v * dx).sum(), rtol=1e-12)


# Every op with axes, under the last of its settings that names some.
OVER_DEVICES = {
    name: op
    for module in pkgutil.iter_modules(jaxnn.ops.__path__)
    for name, op in vars(importlib.import_module(f"jaxnn.ops.{module.name}")).items()
    if isinstance(op, Op)
    and any(p.annotation is Axis for p in op.__signature__.parameters.values())
}


@pytest.mark.parametrize("name", OVER_DEVICES)
def test_an_op_over_devices_is_proven_on_one(name):
    op = OVER_DEVICES[name]
    static = [s for s in op.settings if any(isinstance(v, tuple) for v in s.values())][-1]
    report = verify.op(op, **static)
    assert report, report
    assert not report.elsewhere
    assert any("jax.grad" in line for line in report.coverage)  # what was not run is said


def wrong(op, bwd):
    return op.replace(bwd=bwd)


WRONG = {
    "no sum": wrong(all_copy, lambda _, dy, axis: (dy,)),
    "summed": wrong(all_sum, lambda _, dy, axis: (jax.lax.psum(dy, axis),)),
    "a mean": wrong(all_copy, lambda _, dy, axis: (jax.lax.pmean(dy, axis),)),
    "its part of its own": wrong(
        all_gather,
        lambda _, dy, axis, dimension: (
            jax.lax.dynamic_slice_in_dim(
                dy, jax.lax.axis_index(axis) * (dy.shape[dimension] // 3), dy.shape[dimension] // 3,
                dimension,
            ),
        ),
    ),
    "the way it came": wrong(
        shift, lambda _, dy, axis, steps: shift.fwd(dy, axis=axis, steps=steps)[0:1]
    ),
    "not gathered": wrong(
        reduce_scatter, lambda _, dy, axis, dimension: (jnp.concatenate([dy] * 3, dimension),)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.usefixtures("undiagnosed")
def test_a_wrong_backward_of_a_collective_is_caught(name):
    op = WRONG[name]
    report = verify.op(op, **op.settings[0])
    assert report.status == "fail"
    if name == "no sum":
        assert "along 'devices' devices return different cotangents of x" in report.problems[0]


def test_an_op_over_devices_says_what_differs_among_them():
    op = all_sum.replace(varies=None)
    with pytest.raises(TypeError, match="for which `varies` is missing"):
        verify.op(op)
    with pytest.raises(TypeError, match="for each of 1 inputs"):
        verify.op(all_sum.replace(varies={"axis": ((True, False), False)}))


def test_on_one_device_a_collective_is_the_identity():
    x = X[0]
    for name, (static, *_) in REFERENCES.items():
        y, saved = OPS[name].fwd(x, axis=(), **static)
        assert_leaves_close(y, x, 0)
        assert_leaves_close(OPS[name].bwd(saved, x, axis=(), **static), (x,), 0)


def test_what_is_on_the_first_device_is_summed_once(mesh):
    def total(b):
        return all_sum.fwd(on_first(b, axis=AXIS), axis=AXIS)[0]

    assert_leaves_close(on_devices(total, mesh, (P(),), P(), X[0]), X[0], 0)
    assert on_first(None, axis=AXIS) is None


def test_an_axis_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no axis 'data' here"):
        all_sum(X[0], axis=("data",))
    with pytest.raises(TypeError, match="tuple of names"):
        all_sum(X[0], axis="data")
