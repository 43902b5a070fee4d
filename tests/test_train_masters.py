"""Masters in float32 of weights that are narrower."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import train
from jaxnn.models import mlp


def descend(optimizer, params, grads, steps):
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_small_steps_are_added_up():
    """Each is an eighth of what bfloat16 can tell from 1."""
    ones, grads = {"w": jnp.ones(3, jnp.bfloat16)}, {"w": jnp.full(3, 2.0**-10, jnp.bfloat16)}
    plain, _ = descend(optax.sgd(1.0), ones, grads, 64)
    assert (plain["w"] == 1).all()
    moved, state = descend(train.with_masters(optax.sgd(1.0)), ones, grads, 64)
    assert moved["w"].dtype == jnp.bfloat16
    assert (moved["w"] == 1 - 64 * 2.0**-10).all()
    assert state.masters["w"].dtype == jnp.float32


def test_the_weights_are_the_masters_rounded_and_these_are_adams_of_float32():
    rng = np.random.default_rng(0)
    params = jnp.asarray(rng.normal(size=50), jnp.bfloat16)
    grads = jnp.asarray(rng.normal(size=50), jnp.bfloat16)
    adam = optax.adamw(1e-2)
    moved, state = descend(train.with_masters(adam), params, grads, 20)
    expected, of_adam = descend(adam, params.astype(jnp.float32), grads.astype(jnp.float32), 20)
    np.testing.assert_array_equal(state.masters, expected)
    np.testing.assert_array_equal(moved, expected.astype(jnp.bfloat16))
    assert jax.tree.map(lambda x: x.dtype, state.inner) == jax.tree.map(lambda x: x.dtype, of_adam)


def test_of_wide_weights_it_is_the_optimizer():
    params, grads = jnp.linspace(-1, 1, 7), jnp.linspace(2, 1, 7)
    masters, _ = descend(train.with_masters(optax.sgd(0.1)), params, grads, 3)
    plain, _ = descend(optax.sgd(0.1), params, grads, 3)
    np.testing.assert_allclose(masters, plain, rtol=1e-6)


def test_a_step_trains_with_it():
    config = mlp.Config(sizes=(3, 4, 2))
    optimizer = train.with_masters(optax.adam(1e-3))
    state = train.init_state(mlp, config, optimizer, jax.random.key(0))
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.params)
    state = state._replace(params=params, opt_state=optimizer.init(params))
    step = train.make_step(mlp, config, optimizer, donate=True)
    batch = mlp.example_batch(jax.random.key(1), config)
    batch = batch._replace(inputs=batch.inputs.astype(jnp.bfloat16))
    state, loss = step(state, batch)
    state, after = step(state, batch)
    assert float(after) <= float(loss)
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.bfloat16)}


def test_what_cannot_be_is_refused_in_words():
    with pytest.raises(TypeError, match="functions init and update"):
        train.with_masters("adam")
    optimizer = train.with_masters(optax.sgd(0.1))
    state = optimizer.init(jnp.ones(2))
    with pytest.raises(ValueError, match="params is None; they must be the weights"):
        optimizer.update(jnp.ones(2), state)
