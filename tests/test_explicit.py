"""On a mesh of explicit axes: what types come out, and that the numbers are one device's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_leaves_close, run
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_ops import ROWS, as_jax, by_call, by_hand, cotangent

from jaxnn.models import autoencoder, cnn, mlp, rnn, transformer
from jaxnn.op import Op
from jaxnn.ops.linear import Linear, linear

pytestmark = pytest.mark.usefixtures("x64")
MODELS = (mlp, autoencoder, cnn, rnn, transformer)
CONFIGS = [(model, config) for model in MODELS for config in model.EXAMPLE_CONFIGS]


@pytest.fixture
def mesh():
    with jax.set_mesh(jax.make_mesh((2, 2), ("data", "model"))):
        mesh = jax.sharding.get_abstract_mesh()
        assert mesh.axis_types == (AxisType.Explicit,) * 2  # what JAX makes where nothing is said
        yield mesh


def specs(tree):
    """How the type of each leaf of real numbers says that it is split."""
    real = (x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating))
    return [tuple(jax.typeof(x).sharding.spec) for x in real]


def drawn(row, n):
    return as_jax(row.draw(np.random.default_rng(0), (n, 3, 5)), jnp.float64)


def split_as(small, large):
    """For each leaf, "data" for the first dimension that is twice as large for twice the batch."""

    def spec(a, b):
        sizes = zip(a.shape, b.shape, strict=True)
        doubled = [i for i, (n, m) in enumerate(sizes) if m == 2 * n and n % 2 == 0]
        return P(*("data" if [i] == doubled[:1] else None for i in range(a.ndim)))

    return jax.tree.map(spec, small, large)


def put(tree, specs):
    return jax.tree.map(jax.device_put, tree, specs)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_what_comes_out_of_an_op_is_split_as_what_went_in(row, mesh):
    inputs, more = drawn(row, 4), drawn(row, 8)
    douts = cotangent(row, inputs), cotangent(row, more)
    wanted, of_y = split_as(inputs, more), split_as(*douts)
    placed = put(inputs, wanted), put(douts[0], of_y)

    def both(inputs, dout):
        y, _ = row.op.fwd(*inputs, **row.static)
        return y, by_hand(row, inputs, dout), by_call(row, row.op, inputs, dout)

    y, by_pair, (called, through) = jax.eval_shape(both, *placed)
    assert specs(y) == specs(called) == specs(placed[1])
    assert specs(by_pair) == specs(through) == specs(placed[0])


def example(model, config):
    """Parameters, and a batch of twice the example's; and how both are to be split.

    Of each parameter, layers that are stacked aside, two dimensions: over "data" as the batch is,
    and over "model".
    """
    params = model.init_params(jax.random.key(0), config)
    small = model.example_batch(jax.random.key(1), config)
    batch = jax.tree.map(lambda x: jnp.concatenate([x, x]) if x.ndim else x, small)

    def of_param(path, x):
        first = "blocks" in jax.tree_util.keystr(path)
        even = [i for i, n in enumerate(x.shape) if i >= first and n % 2 == 0]
        taken = dict(zip(even, ("data", "model"), strict=False))
        return P(*map(taken.get, range(x.ndim)))

    of_batch = jax.tree.map(lambda x: P("data") if x.ndim else P(), batch)
    return (params, batch), (jax.tree_util.tree_map_with_path(of_param, params), of_batch)


IDS = [f"{model.__name__} {i}" for i, (model, _) in enumerate(CONFIGS)]


@pytest.mark.parametrize(("model", "config"), CONFIGS, ids=IDS)
def test_a_gradient_is_split_as_the_parameters_and_outputs_as_the_batch(model, config, mesh):
    params, batch = put(*example(model, config))

    def all_of(params, batch):
        by_hand = model.manual_value_and_grad(params, batch, config)
        by_jax = jax.grad(model.loss)(params, batch, config)
        return by_hand, by_jax, model.forward(params, batch[0], config)

    (value, by_hand), by_jax, outputs = jax.eval_shape(all_of, params, batch)
    assert specs(value) == [()]
    assert specs(by_hand) == specs(by_jax) == specs(params)
    assert specs(outputs)[0][0] == "data"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_the_numbers_are_one_device_s(model, mesh):
    config = model.EXAMPLE_CONFIGS[-1]
    given, split = example(model, config)

    def by_hand(params, batch):
        return model.manual_value_and_grad(params, batch, config)

    def by_pair(params, batch):
        value, saved = model.loss_fwd(params, batch, config)
        return value, model.loss_bwd(saved, jnp.ones_like(value), config)

    alone = run(by_hand, *given)
    assert_leaves_close(jax.jit(by_hand)(*put(given, split)), alone, 1e-9, 1e-12)
    assert_leaves_close(jax.jit(by_pair)(*put(given, split)), alone, 1e-9, 1e-12)


def test_where_a_function_may_be_called():
    """Without the mesh being set, over a part of the axes, under JAX's transformations."""
    kw, kx = jax.random.split(jax.random.key(0))
    w, x = jax.random.normal(kw, (6, 4)), jax.random.normal(kx, (8, 3, 6))
    types = (AxisType.Explicit, AxisType.Auto)
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=types)
    split = jax.device_put(x, NamedSharding(mesh, P("data")))

    def once(w, x):
        return linear(Linear(w), x)

    def each(w, x):
        return jax.vmap(lambda x: linear(Linear(w), x))(x)

    def again(w, x):
        return jax.lax.scan(lambda y, _: (linear(Linear(w), x), None), once(w, x), None, 2)[0]

    of_device = jax.shard_map(once, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))
    plain = np.asarray(x) @ np.asarray(w)
    assert_leaves_close(once(w, split), plain, 1e-12)
    for function in (once, each, again, of_device):
        y = jax.jit(function)(w, split)  # the weights were put nowhere
        assert jax.typeof(y).sharding.spec == P("data", None, None)
        assert_leaves_close(y, plain, 1e-12)


def test_what_is_saved_is_split_as_it_was(mesh):
    """A width of the batch's size, of which it cannot be told by sizes what it is."""
    w, x = jnp.ones((8, 4)), jnp.ones((8, 3, 8))
    given = put((Linear(w), x), (Linear(P("data", "model")), P("data")))
    y, saved = jax.eval_shape(linear.fwd, *given)
    assert specs(saved) == specs(given)
    assert specs(y) == [("data", None, "model")]


def test_a_cotangent_that_is_made_of_nothing():
    mesh = jax.make_mesh((2,), ("data",))
    none = Op(lambda x: (x, x.shape), lambda saved, dy: (jnp.zeros(dy.shape),))
    dy = jax.device_put(jnp.ones((4, 3)), NamedSharding(mesh, P("data")))
    (dx,) = none.bwd((), dy)
    assert jax.typeof(dx).sharding.spec == P("data", None)


def test_a_traced_setting_comes_along(mesh):
    config = mlp.Config(sizes=(4, 6, 3), activation="tanh", l2=0.25)
    given, split = example(mlp, config)

    def by_hand(l2, *given):
        return mlp.manual_value_and_grad(*given, dataclasses.replace(config, l2=l2))

    found = jax.jit(by_hand)(jax.device_put(0.25, P()), *put(given, split))
    alone = run(lambda *given: mlp.manual_value_and_grad(*given, config), *given)
    assert_leaves_close(found, alone, 1e-9, 1e-12)


def test_on_one_device_nothing_is_added():
    def by_hand(x):
        y, saved = linear.fwd(Linear(jnp.ones((4, 3))), x)
        return linear.bwd(saved, y), linear(Linear(jnp.ones((4, 3))), x)

    program = str(jax.make_jaxpr(by_hand)(jnp.ones((2, 4))))
    assert "reshard" not in program
    assert "dot_general" in program
