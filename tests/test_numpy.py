"""NumPy's arrays are taken as JAX takes them: doors see the dtype that the arithmetic will have."""

import warnings
from functools import partial

import fuzz
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxnn import data, train
from jaxnn.models import mlp
from jaxnn.ops.activations import relu
from jaxnn.ops.cross_entropy import softmax_cross_entropy
from jaxnn.ops.linear import embedding

OPS = fuzz.ops()
MODELS = {model.__name__.split(".")[-1]: model for model in fuzz.MODELS}


def as_numpy(tree):
    """As NumPy has numbers where nobody says otherwise: float64 and int64. Keys stay."""

    def wide(leaf):
        if not isinstance(leaf, jax.Array) or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        return np.asarray(leaf, {"f": np.float64, "i": np.int64}.get(leaf.dtype.kind))

    return jax.tree.map(wide, tree)


def described(function, *arguments, **settings):
    """The shapes and dtypes of what a call gives, whose doors see the arguments' values."""
    return jax.eval_shape(lambda: function(*arguments, **settings))


def on_devices(op):
    """The op on three devices that have the same."""
    mesh = jax.make_mesh((3,), ("devices",), axis_types=(AxisType.Auto,))

    def spread(*inputs, **settings):
        call = partial(op, *inputs, **settings)  # closed over: as arguments they were JAX's
        return jax.shard_map(call, mesh=mesh, in_specs=(), out_specs=P(), check_vma=False)()

    return spread


@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("name", OPS)
def test_an_op_takes_numpys_default_dtypes_as_jax_does(name, wide):
    op = OPS[name]
    with jax.enable_x64(wide):
        inputs = op.example(jax.random.key(0))
        ours = jax.tree.map(jnp.asarray, as_numpy(inputs))
        for settings in op.settings[:1]:
            call = on_devices(op) if any(settings.get(axis) for axis in op.varies or ()) else op
            got = described(call, *as_numpy(inputs), **settings)
            assert got == described(call, *ours, **settings)


@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_takes_numpys_default_dtypes_as_jax_does(name, wide):
    model = MODELS[name]
    with jax.enable_x64(wide):
        config = model.EXAMPLE_CONFIGS[0]
        params = model.init_params(jax.random.key(0), config)
        batch = model.example_batch(jax.random.key(1), config)
        calls = {"loss": batch, "manual_grad": batch, "forward": batch[0]}
        if hasattr(model, "accuracy") and getattr(config, "loss", "") != "mean_squared_error":
            calls |= {"accuracy": batch, "probabilities": batch[0]}
        for function, given in calls.items():
            function = getattr(model, function)
            wanted = described(function, params, jax.tree.map(_wide_if(wide), given), config)
            assert described(function, params, as_numpy(given), config) == wanted
            assert described(function, as_numpy(params), as_numpy(given), config) == wanted


def _wide_if(wide):
    return lambda leaf: jnp.asarray(as_numpy(leaf)) if wide else leaf


def test_numpys_data_trains_and_is_evaluated():
    rng = np.random.default_rng(0)
    batch = data.Batch(rng.normal(size=(20, 3)), np.arange(20) % 2)
    config, optimizer = mlp.Config(sizes=(3, 4, 2)), optax.sgd(0.1)
    state = train.init_state(mlp, config, optimizer, jax.random.key(0))

    def evaluate(params):
        return mlp.accuracy(params, batch, config)

    make = (mlp, config, optimizer, batch)
    run = train.make_run(*make, epochs=2, batch_size=5, evaluate=evaluate)
    state, history = run(state)
    state, _ = train.make_step(*make[:3])(state, batch)
    narrow = jax.tree.map(jnp.asarray, batch)
    assert evaluate(state.params) == mlp.accuracy(state.params, narrow, config)
    assert mlp.loss(state.params, batch, config) == mlp.loss(state.params, narrow, config)
    assert history.metrics.shape == (2,)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.full((2, 3), 1e300), r"^relu: x has the value 1e\+300, beyond float32"),
        (np.ma.masked_array([1.0, 2.0], [0, 1]), "^relu: x is a masked array"),
        (np.ones(3, np.longdouble), "has dtype float128, which JAX has not"),
        (np.array(["a"]), "has dtype <U1, which JAX has not"),
    ],
)
def test_what_jax_cannot_hold_is_refused(value, message):
    with pytest.raises((TypeError, ValueError), match=message):
        relu(value)


def test_integers_beyond_32_bits_are_refused_and_not_wrapped():
    table, logits = embedding.example(jax.random.key(0))[0], jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r"the value 4294967296, beyond int32"):
        embedding(table, np.array([2**32]))
    with pytest.raises(ValueError, match=r"beyond int32"):
        softmax_cross_entropy(logits, np.array([0, -(2**40)]))
    with jax.enable_x64(True), pytest.raises(ValueError, match="4294967296"):
        embedding(table, np.array([2**32]))


def test_infinities_and_what_is_too_small_are_taken_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = relu(np.array([np.inf, -np.inf, 1e-300, np.nan, 2.0]))
    np.testing.assert_array_equal(got, np.array([np.inf, 0, 0, np.nan, 2], np.float32))


def test_lists_are_refused_alike_everywhere():
    config = mlp.Config(sizes=(3, 2))
    params = mlp.init_params(jax.random.key(0), config)
    lists, labels = [[1.0, 2.0, 3.0]], [0]
    optimizer = optax.sgd(0.1)
    step = train.make_step(mlp, config, optimizer)
    state = train.init_state(mlp, config, optimizer, jax.random.key(0))
    for call in (
        lambda: relu(lists),
        lambda: mlp.forward(params, lists, config),
        lambda: mlp.loss(params, (lists, labels), config),
        lambda: mlp.accuracy(params, (jnp.ones((1, 3)), labels), config),
        lambda: step(state, (lists, labels)),
        lambda: train.make_run(mlp, config, optimizer, (lists, labels), epochs=1, batch_size=1),
    ):
        with pytest.raises(TypeError, match=r"is a list; it must be an array: wrap it in jnp"):
            call()
    assert data.usable_batch(lists, labels).inputs.shape == (1, 3)  # which makes arrays
