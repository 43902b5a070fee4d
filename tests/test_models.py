"""What every model refuses in the same words."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_leaves_close, run

from jaxnn import train
from jaxnn.models import autoencoder, cnn, generate, mlp, rnn, transformer

MODELS = (mlp, cnn, rnn, transformer, autoencoder)


@pytest.fixture(params=MODELS, ids=lambda model: model.__name__.rsplit(".", 1)[-1])
def made(request):
    """A model, its parameters, a batch and the configuration of both."""
    model, config = request.param, request.param.EXAMPLE_CONFIGS[0]
    params = model.init_params(jax.random.key(0), config)
    return model, params, model.example_batch(jax.random.key(1), config), config


ORDER = "pass the parameters, then the batch (or the inputs), then the configuration"


@pytest.mark.parametrize("name", ["loss", "manual_value_and_grad", "manual_grad", "forward"])
def test_parameters_and_batch_exchanged_are_refused(made, name):
    model, params, batch, config = made
    with pytest.raises(TypeError) as refused:
        getattr(model, name)(batch, params, config)
    said = str(refused.value)
    kind = type(batch).__name__
    assert said.startswith((f"params is a {kind}; it must be", "batch is a Params; it must be"))
    assert said.endswith(ORDER)


def test_a_batch_is_a_tuple_of_as_many_parts(made):
    model, params, batch, config = made
    # An array of inputs would be unpacked row by row.
    for wrong in (batch[0], batch[0][:2], None, (), (*batch, None)):
        functions = [model.loss, model.manual_value_and_grad]
        for function in (*functions, cnn.accuracy) if model is cnn else functions:
            with pytest.raises(TypeError, match=rf"batch is a {type(wrong).__name__}.*\(.*, "):
                function(params, wrong, config)
    for right in (tuple(batch), list(batch)):
        assert model.loss(params, right, config) == model.loss(params, batch, config)
    with pytest.raises(TypeError, match=f"of {len(batch) + 1}; it must be"):
        model.loss(params, (*batch, None), config)
    if hasattr(batch, "key"):
        short = batch._replace(key=None)
        assert model.loss(params, short[:-1], config) == model.loss(params, short, config)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (0, "0"),
        (None, "None"),
        ([0] * 100, r"\[0, 0.{10,50}"),
        (jnp.zeros((), jnp.uint32), r"uint32\[\]"),
        (np.zeros(2, np.float32), r"float32\[2\]"),
        (jax.random.split(jax.random.key(0)), r"key<fry>\[2\]"),
    ],
)
def test_what_is_no_key_is_refused(made, key, said):
    model, params, _, config = made
    rule = "key is " + said + "; it must be a key of jax.random: pass jax.random.key"
    with pytest.raises(TypeError, match="init_params: " + rule):
        model.init_params(key, config)
    with pytest.raises(TypeError, match="init_state: " + rule):
        train.init_state(model, config, None, key)
    write = {rnn: rnn.generate, transformer: generate.generate}.get(model)
    if write:
        with pytest.raises(TypeError, match="generate: " + rule):
            write(params, jnp.zeros((1, 1), int), config, key, length=1)
    if model is autoencoder:
        with pytest.raises(TypeError, match="sample: " + rule):
            model.sample(params, key, config, 2)


def test_what_draws_and_decodes_refuses_other_parameters():
    params = mlp.init_params(jax.random.key(0), mlp.EXAMPLE_CONFIGS[0])
    config = autoencoder.EXAMPLE_CONFIGS[0]
    for call in (
        lambda: autoencoder.sample(params, jax.random.key(0), config, 2),
        lambda: autoencoder.decode(params, jnp.zeros((1, config.sizes[-1])), config),
    ):
        with pytest.raises(TypeError, match=r"params is a Params; it must be the .*autoencoder"):
            call()


def test_a_key_may_be_untyped(made):
    model, params, _, config = made
    of_numbers = model.init_params(jax.random.PRNGKey(0), config)
    assert jax.tree.structure(of_numbers) == jax.tree.structure(params)


def entrances(model, params, batch, config, key=None):
    """Every public function that a person calls, by name, with what it is given."""
    key = jax.random.key(0) if key is None else key
    inputs = batch[0]
    calls = {
        "init_params": lambda: model.init_params(key, config),
        "forward": lambda: model.forward(params, inputs, config),
        "loss_fwd": lambda: model.loss_fwd(params, batch, config),
        "loss": lambda: model.loss(params, batch, config),
        "manual_value_and_grad": lambda: model.manual_value_and_grad(params, batch, config),
        "manual_grad": lambda: model.manual_grad(params, batch, config),
    }
    write = {rnn: rnn.generate, transformer: generate.generate}.get(model)
    more = {
        "probabilities": lambda: model.probabilities(params, inputs, config),
        "accuracy": lambda: model.accuracy(params, batch, config),
        "update_running": lambda: model.update_running(params, inputs, config),
        "encode": lambda: model.encode(params, inputs, config),
        "decode": lambda: model.decode(params, jnp.zeros((1, 3)), config),
        "sample": lambda: model.sample(params, key, config, 2),
    }
    own = vars(model) if model is not rnn else {}
    calls |= {name: call for name, call in more.items() if name in own}
    if write:
        calls["generate"] = lambda: write(params, inputs[:, :2], config, key, length=1)
    if model is transformer:
        calls["cached_forward"] = lambda: generate.cached_forward(
            params, generate.Cache(None, None), inputs, 0, config
        )
        calls["init_cache"] = lambda: generate.init_cache(params, 2, 3, config)
    return calls


@pytest.mark.parametrize("wrong", ["None", "another model's", "a dict"])
def test_a_configuration_of_nothing_or_of_another_model_is_refused(made, wrong):
    model, params, batch, config = made
    other = (cnn if model is mlp else mlp).EXAMPLE_CONFIGS[0]
    given = {"None": None, "another model's": other, "a dict": dataclasses.asdict(config)}[wrong]
    for name, call in entrances(model, params, batch, given).items():
        with pytest.raises(TypeError) as refused:
            call()
        assert "; it must be a jaxnn.models" in str(refused.value), name
        assert str(refused.value).startswith("config is "), name
    with pytest.raises(TypeError, match="config is"):
        train.init_state(model, given, optax.sgd(0.1), jax.random.key(0))
    with pytest.raises(TypeError, match="config is"):
        train.make_step(model, given, optax.sgd(0.1))


def one_leaf(params, change):
    """The parameters with their last leaf changed."""
    leaves, tree = jax.tree.flatten(params)
    return jax.tree.unflatten(tree, [*leaves[:-1], change(leaves[-1])])


PARAMS = {
    "None": (lambda p: None, TypeError, "params is a NoneType; it must be the jaxnn"),
    "a plain tuple": (tuple, TypeError, "params is a tuple; it must be the jaxnn"),
    "one of bfloat16": (
        lambda p: one_leaf(p, lambda x: x.astype(jnp.bfloat16)),
        TypeError,
        "the dtypes are .*bfloat16.*; they must be one",
    ),
    "one of integers": (
        lambda p: one_leaf(p, lambda x: x.astype(int)), TypeError, "int32; it must be floating"
    ),
    "one complex": (
        lambda p: one_leaf(p, lambda x: x + 0j), TypeError, "complex64; it must be floating"
    ),
    "one a number": (
        lambda p: one_leaf(p, lambda x: 1.0), TypeError, "is a float; it must be an array"
    ),
    "one None": (
        lambda p: one_leaf(p, lambda x: None), ValueError, "has shape None, the configuration needs"
    ),
    "one of another shape": (
        lambda p: one_leaf(p, lambda x: x[..., :-1]), ValueError, "they must fit"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PARAMS)
def test_parameters_that_are_none_are_refused(made, case):
    model, params, batch, config = made
    change, error, said = PARAMS[case]
    calls = entrances(model, change(params), batch, config)
    for call in [call for name, call in calls.items() if name != "init_params"]:
        with pytest.raises(error, match=said):
            call()


def test_settings_beyond_all_bounds_are_refused(made):
    _, _, _, config = made
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "axes":  # of a mesh, which jaxnn.mesh names
            with pytest.raises(TypeError, match="axes is a tuple"):
                dataclasses.replace(config, axes=("data",))
            continue
        sizes = isinstance(value, tuple)
        integer = isinstance(value, int) and not isinstance(value, bool)
        if not (sizes or integer or isinstance(value, float)):
            continue
        for wrong in (10**400, -1):
            given = (wrong, *value[1:]) if sizes else wrong
            with pytest.raises(ValueError, match=f"{field.name}.* is .*must be"):
                dataclasses.replace(config, **{field.name: given})


@pytest.mark.parametrize("key", [jnp.zeros(3, jnp.uint32), np.zeros(5, np.uint32), 7, "key"])
def test_a_key_of_another_length_is_refused(made, key):
    model, params, batch, config = made
    calls = entrances(model, params, batch, config, key)
    for name in {"init_params", "generate", "sample"} & set(calls):
        with pytest.raises(TypeError, match=r"it must be a key of jax.random"):
            calls[name]()
    if hasattr(batch, "key"):
        calls = entrances(model, params, batch._replace(key=key), config)
        for name in ("loss_fwd", "loss", "manual_value_and_grad", "manual_grad"):
            with pytest.raises(TypeError, match=r"batch: key is .*must be a key of jax.random"):
                calls[name]()


def test_an_empty_batch_is_refused_where_a_mean_is_needed_only(made):
    model, params, batch, config = made
    if model is mlp:
        config = mlp.EXAMPLE_CONFIGS[1]
        params = mlp.init_params(jax.random.key(0), config)
        batch = mlp.example_batch(jax.random.key(1), config)
    empty = type(batch)(*(x[:0] for x in batch[: 1 + hasattr(batch, "targets")]))
    calls = entrances(model, params, empty, config)
    for name in {"loss_fwd", "loss", "manual_grad", "accuracy", "update_running"} & set(calls):
        with pytest.raises(ValueError, match=r"no element; it must have some, for .*mean"):
            calls[name]()
    for name in {"forward", "probabilities", "encode", "generate"} & set(calls):
        for leaf in jax.tree.leaves(calls[name]()):
            assert len(leaf) == 0, name
    if model is autoencoder:
        assert model.sample(params, jax.random.key(0), config, 0).shape == (0, config.sizes[0])


def test_inputs_of_another_dtype_than_the_parameters_are_refused(made):
    model, params, batch, config = made
    for dtype in (jnp.bfloat16, jnp.complex64, bool):
        call = entrances(model, params, batch._replace(inputs=batch.inputs.astype(dtype)), config)
        for name in ("forward", "loss", "manual_grad"):
            with pytest.raises(TypeError, match=jnp.dtype(dtype).name):
                call[name]()


def test_the_pair_is_what_the_loss_and_its_gradient_are_made_of(made):
    """Also with a cotangent that is not 1: the gradient is linear in it."""
    model, params, batch, config = made
    value, saved = model.loss_fwd(params, batch, config)
    assert value == model.loss(params, batch, config)
    grads = model.loss_bwd(saved, jnp.full_like(value, 3.0), config)
    oracle = jax.grad(lambda p: 3.0 * model.loss(p, batch, config))(params)
    assert_leaves_close(grads, oracle, 1e-4, floor=1e-6)


def test_arrays_of_numpy_are_taken_as_they_are(made):
    model, params, batch, config = made
    batch = type(batch)(*batch[: 1 + hasattr(batch, "targets")])  # without a key
    as_numpy = jax.tree.map(np.asarray, (params, batch))
    assert model.loss(*as_numpy, config) == model.loss(*jax.tree.map(jnp.asarray, as_numpy), config)


FACTORS = {"l2": 0.3, "dropout": 0.4, "beta": 0.7, "balance": 0.2}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__.rsplit(".", 1)[-1])
def test_factors_may_be_traced_and_many_are_one_program(model):
    """By hand as autodiff, each as if it were alone with the number."""
    names = FACTORS.keys() & {field.name for field in dataclasses.fields(model.Config)}
    # The last example of the transformer has experts, whose losses are balanced.
    base = model.EXAMPLE_CONFIGS[-1 if model is transformer else 0]
    config = dataclasses.replace(base, **{name: FACTORS[name] for name in names})
    params = model.init_params(jax.random.key(0), config)
    batch = model.example_batch(jax.random.key(1), config)
    scales = np.float32([1.0, 0.5, 0.0])

    def of(scale, read=lambda x: x):
        settings = {name: read(np.float32(FACTORS[name]) * scale) for name in names}
        return dataclasses.replace(config, **settings)

    def both(params, batch, scale):
        return (
            model.manual_value_and_grad(params, batch, of(scale)),
            jax.value_and_grad(model.loss)(params, batch, of(scale)),
        )

    hand, auto = run(jax.vmap(both, (None, None, 0)), params, batch, scales)
    assert_leaves_close(hand, auto, 2e-5, floor=1e-7)
    alone = run(
        lambda *x: [model.manual_value_and_grad(*x, of(scale, float)) for scale in scales],
        params,
        batch,
    )
    for i, one in enumerate(alone):
        assert_leaves_close(jax.tree.map(lambda x: x[i], hand), one, 2e-5, floor=1e-7)  # noqa: B023


def test_a_traced_factor_leaves_the_dtype_of_narrow_parameters(made):
    model, params, batch, config = made
    names = FACTORS.keys() & {field.name for field in dataclasses.fields(config)}

    def narrow(x):
        return x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x

    def graded(params, batch, factor):
        traced = dataclasses.replace(config, **dict.fromkeys(names, factor))
        return model.manual_value_and_grad(params, batch, traced)

    params, batch = jax.tree.map(narrow, (params, batch))
    value, grads = jax.eval_shape(graded, params, batch, jnp.float32(0.1))
    assert {leaf.dtype for leaf in jax.tree.leaves((value, grads))} == {jnp.dtype(jnp.bfloat16)}


def test_what_is_traced_is_a_real_number_and_what_shapes_the_program_is_none():
    for wrong in (jnp.ones(2), jnp.int32(1)):
        with pytest.raises(TypeError, match=r"l2 is .*it must be a number of Python's"):
            jax.jit(lambda x: mlp.Config(l2=x).l2)(wrong)
    with pytest.raises(TypeError, match=r"eps is .*it must be a number of Python's"):
        jax.jit(lambda x: transformer.Config(eps=x).eps)(1e-5)
