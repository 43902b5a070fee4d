"""Rules that make gradients wrong are refused; any optimizer, any user's model is spread."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import optax
import pytest
from conftest import assert_leaves_close
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from mesh_cases import tokens

from jaxnn import train
from jaxnn.data import KeyedBatch
from jaxnn.mesh import lay_out, place, shardings, value_and_grad
from jaxnn.models import mlp, transformer
from jaxnn.ops.collectives import Axes

pytestmark = pytest.mark.usefixtures("x64")
SIZES = {"vocabulary": 12, "positions": 8, "layers": 1, "width": 8, "heads": 2, "hidden": 12}
CONFIG = transformer.llama(**SIZES, experts=2)
NETWORK = mlp.Config(sizes=(6, 8, 4))
OTHER = "along which devices have other examples or tokens"


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"batch": "data", "experts": "data"}, f"rules['experts'] is 'data', {OTHER}"),
        ({"batch": "data", "heads": "data"}, f"rules['heads'] is 'data', {OTHER}"),
        ({"batch": "data", "vocab": "data"}, f"rules['vocab'] is 'data', {OTHER}"),
        ({"sequence": "data", "hidden": "data"}, f"rules['hidden'] is 'data', {OTHER}"),
        ({"batch": "data", "sequence": "data"}, "'batch' or 'sequence' to 'data' twice"),
        ({"batch": ("data", "data")}, "'batch' or 'sequence' to 'data' twice"),
        ([("batch", "data")], "rules is a list; it must be a dict"),
    ],
)
def test_one_axis_of_a_mesh_is_not_for_two_things(mesh, rules, message):
    with pytest.raises((TypeError, ValueError)) as error:
        lay_out(transformer, CONFIG, mesh, rules)
    assert message in str(error.value)


def matrices(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def kinds(params):
    return jax.tree.map(lambda leaf: "matrix" if leaf.ndim > 1 else "bias", params)


OPTIMIZERS = {
    "some masked": lambda: optax.masked(optax.adam(1e-2), matrices),
    "one for each kind": lambda: optax.multi_transform(
        {"matrix": optax.adam(1e-2), "bias": optax.sgd(1e-2)}, kinds
    ),
    "a list for each parameter": lambda: optax.sm3(1e-2),
    "flat": lambda: optax.flatten(optax.adam(1e-2)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_s_state_is_spread(mesh, name):
    def stepped(**over):
        optimizer, rows = OPTIMIZERS[name](), jax.random.normal(jax.random.key(1), (4, 6))
        state = train.init_state(mlp, NETWORK, optimizer, jax.random.key(0), **over)
        step = train.make_step(mlp, NETWORK, optimizer, **over)
        return step(state, (rows, jnp.array([0, 3, 1, 2])))[0]

    alone = stepped()
    state = stepped(mesh=mesh, rules={"batch": "data", "embed": "data"})
    assert_leaves_close((state.params, state.opt_state), (alone.params, alone.opt_state), 1e-9)
    if name == "some masked":
        moments = state.opt_state.inner_state[0].mu.layers[0].w
        assert moments.addressable_shards[0].data.shape == (3, 8)


def test_a_key_goes_round_no_ring(mesh):
    config = transformer.gpt2(**SIZES, dropout=0.5)
    layout = lay_out(transformer, config, mesh, {"sequence": "data"})
    batch = tokens(2, 8, 12)._replace(key=jax.random.key(1))
    placed = place(layout, batch)
    assert (jax.random.key_data(placed.key) == jax.random.key_data(batch.key)).all()
    assert (
        placed.inputs[0].tolist() == batch.inputs[0][jnp.array([0, 1, 6, 7, 2, 3, 4, 5])].tolist()
    )


def test_a_key_in_a_tuple_is_each_device_s_own(mesh):
    config = mlp.Config(sizes=(6, 8, 4), dropout=0.5)
    layout, params = lay_out(mlp, config, mesh), mlp.init_params(jax.random.key(0), config)
    batch = KeyedBatch(jnp.ones((2, 6)), jnp.array([0, 3]), jax.random.key(1))
    by_hand = jax.jit(value_and_grad(mlp, layout))
    found, other = (by_hand(params, place(layout, one)) for one in (tuple(batch), batch))
    assert_leaves_close(found, other, 1e-9)


def test_a_key_of_the_old_kind_trains_on_a_mesh_too(mesh):
    optimizer, batch = optax.sgd(0.1), (jnp.ones((3, 6))[:2], jnp.array([0, 3]))

    def stepped(**over):
        state = train.init_state(mlp, NETWORK, optimizer, jax.random.PRNGKey(0), **over)
        return train.make_step(mlp, NETWORK, optimizer, **over)(state, batch)[0].params

    assert_leaves_close(stepped(mesh=mesh), stepped(), 1e-9)


def test_by_hand_inside_shard_map_the_model_takes_its_parts():
    mesh = jax.make_mesh((2,), ("model",), devices=jax.devices()[:2], axis_types=(AxisType.Auto,))
    layout = lay_out(transformer, SEQUENCES, mesh, {"heads": "model", "vocab": "model"})
    params, batch = transformer.init_params(jax.random.key(0), SEQUENCES), tokens(2, 8, 12)

    def of_device(params, batch):
        return transformer.manual_value_and_grad(params, batch, layout.config)

    spread = jax.shard_map(
        of_device, mesh=mesh, in_specs=(layout.specs, P()), out_specs=(P(), layout.specs)
    )
    wanted = transformer.manual_value_and_grad(params, batch, SEQUENCES)
    assert_leaves_close(jax.jit(spread)(params, batch), wanted, 1e-9, 1e-12)
    with pytest.raises(ValueError, match="the configuration needs"):
        transformer.loss(params, batch, dataclasses.replace(SEQUENCES, width=16))


def user_model(axes):
    """Layers of a user's own, stacked, in a dict; the configuration is their number."""

    def loss(params, batch, layers):
        x = batch.inputs
        for i in range(layers):
            x = jnp.tanh(x @ params["w"][i])
        return ((x - batch.targets) ** 2).mean()

    return SimpleNamespace(
        __name__="user_model",
        AXES=axes,
        init_params=lambda key, layers: {"w": jax.random.normal(key, (layers, 4, 4))},
        loss=loss,
        manual_value_and_grad=jax.value_and_grad(loss),
    )


def test_a_user_s_model_that_knows_of_no_mesh_has_its_parameters_put_together(mesh):
    model, rows = user_model({"w": P("embed", None)}), jax.random.normal(jax.random.key(1), (2, 4))
    batch = KeyedBatch(rows, rows[::-1], None)
    layout = lay_out(model, 2, mesh, {"batch": "data", "embed": "data"})
    params = model.init_params(jax.random.key(0), 2)
    placed = jax.device_put(params, shardings(layout))
    assert placed["w"].addressable_shards[0].data.shape == (2, 2, 4)
    found = jax.jit(value_and_grad(model, layout))(placed, place(layout, batch))
    assert_leaves_close(found, model.manual_value_and_grad(params, batch, 2), 1e-9)
    with pytest.raises(ValueError, match="'hidden', and the model's configuration has no axes"):
        lay_out(user_model({"w": P(None, "hidden")}), 2, mesh, {"hidden": "data"})
    for wrong in (P("embeded", None), None):
        with pytest.raises(ValueError, match=r"AXES\['w'\] of the model is .* must be a Partition"):
            lay_out(user_model({"w": wrong}), 2, mesh, {"batch": "data"})
    model.manual_value_and_grad = lambda params, batch, layers: (0.0, [params["w"]])
    with pytest.raises(TypeError, match=r"structure of the parameters, PyTreeDef\({'w'"):
        jax.eval_shape(value_and_grad(model, layout), placed, batch)
    with pytest.raises(TypeError, match="has no AXES"):
        lay_out(user_model(None), 2, mesh)


BATCH = tokens(4, 16, 12)


@pytest.fixture(scope="module")
def ring():
    return jax.make_mesh((2, 2), ("data", "sequence"), devices=jax.devices()[:4])


def test_what_augments_a_batch_sees_it_in_the_order_of_the_text(ring):
    def changed(_, batch):
        return batch._replace(inputs=batch.inputs.at[:, 5].set(0))

    config, optimizer = transformer.gpt2(**SIZES | {"positions": 16}), optax.sgd(0.1)

    def stepped(**over):
        state = train.init_state(transformer, config, optimizer, jax.random.key(0), **over)
        step = train.make_step(transformer, config, optimizer, augment=changed, **over)
        return step(state, BATCH)

    (spread, loss), (alone, wanted) = stepped(mesh=ring), stepped()
    assert_leaves_close((spread.params, loss), (alone.params, wanted), 1e-9, 1e-12)


SEQUENCES = transformer.gpt2(**SIZES)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (BATCH, r"tokens have shape \(4, 16\), sequences of 16; there are 8 positions"),
        (BATCH._replace(inputs=BATCH.inputs * 0.5), "tokens has dtype float32; it must be of int"),
        (BATCH._replace(inputs=BATCH.inputs[:, :8]), r"targets have shape \(4, 16\), tokens"),
        (jax.tree.map(lambda leaf: leaf[:0, :8], BATCH), "no element"),
        (None, "batch is a NoneType"),
    ],
)
def test_what_the_model_refuses_is_refused_on_a_mesh_too(ring, batch, message):
    optimizer = optax.sgd(0.1)
    state = train.init_state(transformer, SEQUENCES, optimizer, jax.random.key(0), mesh=ring)
    step = train.make_step(transformer, SEQUENCES, optimizer, mesh=ring)
    with pytest.raises((TypeError, ValueError), match=message):
        step(state, batch)


def test_states_and_meshes_that_are_others_are_refused(mesh):
    optimizer, key = optax.adam(1e-2), jax.random.key(0)
    step = train.make_step(mlp, NETWORK, optimizer, mesh=mesh)
    batch = jnp.ones((4, 6)), jnp.zeros(4, int)
    with pytest.raises(TypeError, match=r"state\.opt_state is .* another optimizer's"):
        step(train.init_state(mlp, NETWORK, optax.sgd(0.1), key, mesh=mesh), batch)
    other = train.init_state(mlp, mlp.Config(sizes=(6, 10, 4)), optimizer, key)
    with pytest.raises(ValueError, match=r"layers\[0\]\.w of shape \(6, 10\), the configuration"):
        step(other, batch)
    with pytest.raises(TypeError, match="AbstractMesh, which has no devices"):
        train.init_state(mlp, NETWORK, optimizer, key, mesh=mesh.abstract_mesh)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (Axes(heads=("model",)), r"config\.axes\.heads is \('model',\), and there is no axis"),
        (Axes(batch="data"), r"config\.axes\.batch is 'data'; it must be a tuple of names"),
    ],
)
def test_a_configuration_s_axes_are_of_the_mesh_around_the_call(axes, message):
    config = dataclasses.replace(SEQUENCES, axes=axes)
    params = transformer.init_params(jax.random.key(0), config)
    with pytest.raises((TypeError, ValueError), match=message):
        transformer.loss(params, tokens(2, 8, 12), config)


def test_a_mesh_with_explicit_axes_may_be_set_around_it():
    mesh = jax.make_mesh(
        (2,), ("fsdp",), devices=jax.devices()[:2], axis_types=(AxisType.Explicit,)
    )
    optimizer = optax.adam(1e-2)

    def trained(**over):
        rows, labels = jax.random.normal(jax.random.key(1), (4, 6)), jnp.array([0, 3, 1, 2])
        state = train.init_state(mlp, NETWORK, optimizer, jax.random.key(0), **over)
        state, _ = train.make_step(mlp, NETWORK, optimizer, **over)(state, (rows, labels))
        run = train.make_run(
            mlp, NETWORK, optimizer, (rows, labels), epochs=1, batch_size=2, **over
        )
        run.traced(state)
        return run(state)[0].params

    with jax.set_mesh(mesh):
        spread = jax.device_get(trained(mesh=mesh))
    assert_leaves_close(spread, trained(), 1e-9)
