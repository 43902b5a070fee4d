"""What every model refuses in the same words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
