"""Rules that make gradients wrong are refused; any optimizer, any user's model is spread."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import optax
import pytest
from conftest import assert_leaves_close
from jax.sharding import PartitionSpec as P
from mesh_cases import tokens

from jaxnn import train
from jaxnn.data import KeyedBatch
from jaxnn.mesh import lay_out, place, shardings, value_and_grad
from jaxnn.models import mlp, transformer

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
    with pytest.raises(TypeError, match="has no AXES"):
        lay_out(user_model(None), 2, mesh)
