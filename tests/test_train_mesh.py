"""Training on a mesh: steps, runs and epochs end where those on one device end."""

import jax
import jax.numpy as jnp
import optax
import pytest
from conftest import assert_leaves_close
from mesh_cases import tokens

from jaxnn import train
from jaxnn.models import mlp, transformer

pytestmark = pytest.mark.usefixtures("x64")
CONFIG = transformer.llama(
    vocabulary=12, positions=8, layers=2, width=8, heads=4, kv_heads=2, hidden=12
)
OPTIMIZER = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2))
DATA = tokens(16, 8, 12)


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2, 2, 2), ("fsdp", "sequence", "model"))


def of_steps(**over):
    state = train.init_state(transformer, CONFIG, OPTIMIZER, jax.random.key(0), **over)
    step = train.make_step(transformer, CONFIG, OPTIMIZER, **over)
    for _ in range(3):
        state, loss = step(state, DATA)
    return state, loss


def of_a_run(**over):
    state = train.init_state(transformer, CONFIG, OPTIMIZER, jax.random.key(0), **over)
    settings = {"epochs": 2, "batch_size": 8}
    state, history = train.make_run(transformer, CONFIG, OPTIMIZER, DATA, **settings, **over)(state)
    return state, history.loss


def of_an_epoch(**over):
    state = train.init_state(transformer, CONFIG, OPTIMIZER, jax.random.key(0), **over)
    batches = [jax.tree.map(lambda x, i=i: x[i : i + 8], DATA) for i in (0, 8)]

    def evaluate(params):
        return (params.tokens.table**2).sum()

    run = train.make_epoch(transformer, CONFIG, OPTIMIZER, batches, evaluate=evaluate, **over)
    state, history = run(state)
    return state, history


@pytest.mark.parametrize("train_some", [of_steps, of_a_run, of_an_epoch])
def test_training_on_a_mesh_ends_where_that_on_one_device_does(train_some, mesh):
    alone, spread = (jax.tree.map(jnp.asarray, train_some(**over)) for over in ({}, {"mesh": mesh}))
    for tree in (alone, spread):
        assert int(tree[0].step) >= 2
    without_key = [(state._replace(key=None), seen) for state, seen in (alone, spread)]
    assert_leaves_close(without_key[1], without_key[0], 1e-8, 1e-12)
    assert (jax.random.key_data(spread[0].key) == jax.random.key_data(alone[0].key)).all()


def test_the_state_is_spread_moments_beside_their_parameters(mesh):
    state, _ = of_steps(mesh=mesh)
    wq = state.params.blocks.attention.wq
    assert wq.addressable_shards[0].data.shape == (2, 4, 4)  # of (2, 8, 8): width, heads
    moments = state.opt_state[1][0].mu.blocks.attention.wq
    assert moments.sharding == wq.sharding


def test_by_autodiff_the_compiler_spreads_it(mesh):
    settings = {"gradient": "autodiff", "mesh": mesh}
    state = train.init_state(transformer, CONFIG, OPTIMIZER, jax.random.key(0), mesh=mesh)
    spread = train.make_step(transformer, CONFIG, OPTIMIZER, **settings)(state, DATA)
    alone = train.make_step(transformer, CONFIG, OPTIMIZER)(
        train.init_state(transformer, CONFIG, OPTIMIZER, jax.random.key(0)), DATA
    )
    (ours, our_loss), (theirs, their_loss) = spread, alone
    assert_leaves_close((ours.params, our_loss), (theirs.params, their_loss), 1e-8, 1e-12)


def test_a_state_that_is_given_up_is_gone():
    config, optimizer = mlp.Config(sizes=(3, 4, 2)), optax.adam(1e-2)
    step = train.make_step(mlp, config, optimizer, donate=True)
    start = train.init_state(mlp, config, optimizer, jax.random.key(0))
    batch = (jnp.ones((2, 3)), jnp.array([0, 1]))
    state, _ = step(start, batch)
    assert jnp.isfinite(state.params.layers[0].w).all()
    with pytest.raises(RuntimeError, match="deleted"):
        start.params.layers[0].w + 1


@pytest.mark.parametrize(
    ("shape", "names", "rules", "message"),
    [
        ((8,), ("x",), None, "the mesh has an axis 'x', which no rule leads to; its 8 devices"),
        ((8,), ("model",), None, "heads is 4 for 8 devices along model; they must divide it"),
        ((2,), ("data",), {"batch": "date"}, "rules['batch'] is 'date'; it must be an axis of"),
        ((2,), ("data",), {"batches": "data"}, "rules have 'batches', which the model has not"),
        ((2,), ("data",), {"embed": "data"}, "rules['embed'] is 'data', over which neither"),
        ((2,), ("data",), {"hidden": ("data", "data")}, "would be spread along 'data' twice"),
    ],
)
def test_rules_that_do_not_fit_are_refused(shape, names, rules, message):
    mesh = jax.make_mesh(shape, names)
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is looked at below
        train.init_state(transformer, CONFIG, OPTIMIZER, jax.random.key(0), mesh=mesh, rules=rules)
    assert message in str(error.value)


def test_what_the_devices_do_not_divide_is_refused(mesh):
    step = train.make_step(transformer, CONFIG, OPTIMIZER, mesh=mesh)
    state = train.init_state(transformer, CONFIG, OPTIMIZER, jax.random.key(0), mesh=mesh)
    for batch, message in (
        (tokens(7, 8, 12), "of shape (7, 8) has 7 for 2 devices along fsdp"),
        (tokens(8, 6, 12), "t is 6 for 2 devices; it must be divisible by 4"),
    ):
        with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is looked at below
            step(state, batch)
        assert message in str(error.value)
    with pytest.raises(ValueError, match=r"rules is .* without a mesh"):
        train.make_step(transformer, CONFIG, OPTIMIZER, rules={"batch": "data"})
    with pytest.raises(TypeError, match=r"mesh is a tuple; it must be a jax.sharding.Mesh"):
        train.make_step(transformer, CONFIG, OPTIMIZER, mesh=("data",))
