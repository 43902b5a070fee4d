"""Steps and runs: manual against autodiff, against a plain loop, and one trace for all steps."""

import dataclasses
import sys
import types
from functools import partial
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import train
from jaxnn.data import Batch
from jaxnn.models import autoencoder, mlp, transformer
from jaxnn.train import steps

CONFIG = mlp.Config(sizes=(3, 8, 4), l2=0.01)
N = 10


def make_data(n=N):
    return mlp.example_batch(jax.random.key(5), CONFIG) if n == 7 else Batch(
        jax.random.normal(jax.random.key(1), (n, 3)), jnp.arange(n) % 4
    )  # fmt: skip


OPTIMIZERS = {
    "sgd": optax.sgd(0.1, momentum=0.9),
    "adamw": optax.adamw(optax.cosine_decay_schedule(0.01, 20)),
    "clipped lion": optax.chain(optax.clip_by_global_norm(0.5), optax.lion(1e-3)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_twenty_steps_by_hand_and_by_autodiff_end_alike(name, x64):
    data, ends = make_data(), []
    for gradient in ("manual", "autodiff"):
        state = train.init_state(mlp, CONFIG, OPTIMIZERS[name], jax.random.key(0))
        step = train.make_step(mlp, CONFIG, OPTIMIZERS[name], gradient)
        for _ in range(20):
            state, loss = step(state, data)
        assert int(state.step) == 20
        ends.append((state.params, loss))
    chex.assert_trees_all_close(*ends, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gradient", ["manual", "autodiff"])
def test_one_trace_whatever_the_number_of_steps(gradient):
    counted = types.SimpleNamespace(**vars(mlp))
    calls = []

    def count(function):
        def counting(*args):
            calls.append(1)
            return function(*args)

        return counting

    counted.manual_value_and_grad = count(mlp.manual_value_and_grad)
    counted.loss = count(mlp.loss)
    optimizer, data = optax.adam(0.01), make_data()
    state = train.init_state(counted, CONFIG, optimizer, jax.random.key(0))
    step = train.make_step(counted, CONFIG, optimizer, gradient)
    for _ in range(5):
        state, _ = step(state, data)
    assert len(calls) == 1
    run = train.make_run(
        counted, CONFIG, optimizer, data, epochs=3, batch_size=2, gradient=gradient
    )
    calls.clear()
    for _ in range(3):
        state, _ = run(state)
    assert sum(calls) == 1
    assert int(state.step) == 5 + 3 * 3 * 5


def test_a_full_batch_run_is_the_loop_of_its_steps():
    optimizer, data = optax.adam(0.01), make_data()
    start = train.init_state(mlp, CONFIG, optimizer, jax.random.key(0))
    step, state, losses = train.make_step(mlp, CONFIG, optimizer), start, []
    for _ in range(6):
        state, loss = step(state, data)
        losses.append(loss)
    run = train.make_run(
        mlp,
        CONFIG,
        optimizer,
        data,
        epochs=6,
        batch_size=N,
        evaluate=lambda params: {"accuracy": mlp.accuracy(params, data, CONFIG)},
    )
    end, history = run(start)
    chex.assert_trees_all_close(end.params, state.params, rtol=1e-5)
    np.testing.assert_allclose(history.loss, losses, rtol=1e-5)
    assert history.metrics["accuracy"].shape == (6,)
    np.testing.assert_allclose(
        history.metrics["accuracy"][-1], mlp.accuracy(end.params, data, CONFIG)
    )


def test_an_epoch_takes_every_example_once_in_a_new_order():
    """A model whose gradient is the mean of the batch: what it was fed shows in its steps."""
    fed = types.SimpleNamespace(
        init_params=lambda key, config: {"seen": jnp.zeros(N)},
        loss=lambda params, batch, config: params["seen"] @ batch[1].sum(0),
        manual_value_and_grad=lambda params, batch, config: (
            batch[0].sum(),
            {"seen": batch[1].sum(0)},
        ),
    )
    data = (jnp.arange(float(N)), jnp.eye(N))
    optimizer = optax.sgd(-1.0)  # adds what it is fed
    state = train.init_state(fed, None, optimizer, jax.random.key(0))
    run = train.make_run(fed, None, optimizer, data, epochs=1, batch_size=5)
    first, _ = run(state)
    np.testing.assert_array_equal(first.params["seen"], np.ones(N))
    run = train.make_run(fed, None, optimizer, data, epochs=1, batch_size=3)
    seen = [np.asarray(state.params["seen"])]
    for _ in range(4):
        state, _ = run(state)
        seen.append(np.asarray(state.params["seen"]))
    fed_each_epoch = np.diff(seen, axis=0)
    np.testing.assert_array_equal(fed_each_epoch.sum(1), 9 * np.ones(4))
    assert fed_each_epoch.max() == 1
    assert len({tuple(row) for row in fed_each_epoch}) > 1


class Drawn(NamedTuple):
    """A batch of a model that draws in training."""

    inputs: jax.Array
    key: jax.Array | None = None


def drawn_loss(params, batch, config):
    return params * (0.0 if batch.key is None else jax.random.normal(batch.key))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_step_hands_a_fresh_key_to_a_batch_that_has_one(batch_size):
    """A model whose gradient is its draw: equal losses after one step would be equal keys."""
    drawing = types.SimpleNamespace(
        init_params=lambda key, config: jnp.ones(()),
        loss=drawn_loss,
        manual_value_and_grad=lambda *a: jax.value_and_grad(drawn_loss)(*a),
    )
    optimizer, data = optax.sgd(0.0), Drawn(jnp.ones((3, 1)))
    start = train.init_state(drawing, None, optimizer, jax.random.key(0))
    run = train.make_run(drawing, None, optimizer, data, epochs=6, batch_size=batch_size)
    end, history = run(start)
    _, later = run(end)
    assert len({*np.asarray([history.loss, later.loss]).ravel().tolist()}) == 12
    step = train.make_step(drawing, None, optimizer)
    state, first = step(start, data)
    _, second = step(state, data)
    assert first != second
    assert step(start, data)[1] == first


def test_augment_changes_what_is_trained_on_and_nothing_else():
    """Doubled in each step or doubled before: the same losses; and the data's check sees it all."""
    data, optimizer, ends = make_data(), optax.sgd(0.1), []
    start = train.init_state(mlp, CONFIG, optimizer, jax.random.key(0))
    twice = data._replace(inputs=2 * data.inputs)
    for given, augment in (
        (data, lambda key, batch: batch._replace(inputs=2 * batch.inputs)),
        (twice, lambda key, batch: batch),
    ):
        make = partial(train.make_run, mlp, CONFIG, optimizer, given, augment=augment)
        state, history = make(epochs=2, batch_size=N)(start)
        step = train.make_step(mlp, CONFIG, optimizer, augment=augment)
        state, loss = step(state, given)
        ends.append((state, history, loss))
    chex.assert_trees_all_equal(*(jax.tree.map(_comparable, end) for end in ends))


def _comparable(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def test_augment_has_a_key_of_its_own_anew_at_each_step():
    """A model whose loss is what augment drew; beside it, what the model draws itself."""

    def loss(params, batch, config):
        return params * (batch.inputs[0] - jax.random.normal(batch.key))

    drawing = types.SimpleNamespace(
        init_params=lambda key, config: jnp.ones(()),
        loss=lambda params, batch, config: params,
        manual_value_and_grad=lambda *a: jax.value_and_grad(loss)(*a),
    )
    optimizer, data = optax.sgd(0.0), Drawn(jnp.ones(1))
    start = train.init_state(drawing, None, optimizer, jax.random.key(0))

    def augment(key, batch):
        assert batch.key is None
        return batch._replace(inputs=jax.random.normal(key, (1,)))

    run = train.make_run(drawing, None, optimizer, data, epochs=6, batch_size=1, augment=augment)
    _, history = run(start)
    assert len({0.0, *np.asarray(history.loss).tolist()}) == 7


def test_what_draws_nothing_costs_nothing():
    """A key is made in each step, and where nothing draws, thrown away before anything runs."""
    start = train.init_state(mlp, CONFIG, optax.sgd(0.1), jax.random.key(0))
    for rate, draws in ((0.0, False), (0.5, True)):
        config = dataclasses.replace(CONFIG, dropout=rate)
        run = train.make_run(mlp, config, optax.sgd(0.1), make_data(), epochs=2, batch_size=N)
        program = jax.jit(run).lower(start).compile().as_text()
        assert ("xor" in program) == draws  # of which all of JAX's random bits are made


def test_the_draws_of_a_step_are_none_of_an_epochs_order():
    """Of one key both are made: splitting it must give none of the steps' keys."""
    start = train.init_state(mlp, CONFIG, optax.sgd(0.1), jax.random.key(0))
    of_steps = {
        str(jax.random.key_data(steps._step_key(start._replace(step=jnp.int32(i)))))
        for i in range(4)
    }
    split = {str(jax.random.key_data(key)) for key in jax.random.split(start.key, 8)}
    assert len(of_steps | split) == 12


@pytest.mark.parametrize(
    ("augment", "error", "message"),
    [
        (3, TypeError, r"augment is 3; it must be a function augment\(key, batch\) -> batch"),
        (lambda key, batch: None, ValueError, r"augment returned None; .*inputs='float32\[5, 3\]'"),
        (
            lambda key, batch: batch._replace(inputs=batch.inputs[:, :2]),
            ValueError,
            r"augment returned \w*Batch\(inputs='float32\[5, 2\]'.*what it was given, \w*Batch",
        ),
        (
            lambda key, batch: batch._replace(inputs=batch.inputs > 0),
            ValueError,
            r"augment returned \w*Batch\(inputs='bool\[5, 3\]'",
        ),
    ],
)
def test_what_augment_may_return(augment, error, message):
    with pytest.raises(error, match=message):
        train.make_run(
            mlp, CONFIG, optax.sgd(0.1), make_data(), epochs=1, batch_size=5, augment=augment
        )


def test_a_plain_tuple_is_drawn_for_too():
    config, optimizer = autoencoder.EXAMPLE_CONFIGS[0], optax.sgd(0.0)
    state = train.init_state(autoencoder, config, optimizer, jax.random.key(0))
    batch = autoencoder.example_batch(jax.random.key(1), config)
    step = train.make_step(autoencoder, config, optimizer)
    losses = []
    for given in (batch, tuple(batch), [batch.inputs, None]):
        after, first = step(state, given)
        _, second = step(after, given)
        losses.append((float(first), float(second)))
    assert len(set(losses)) == 1
    assert losses[0][0] != losses[0][1]


class Backwards(NamedTuple):
    """The fields of a Batch with a key in another order."""

    key: jax.Array | None
    inputs: jax.Array


def test_a_tuple_with_names_of_its_own_is_not_taken_apart():
    given = []

    class Model:
        Batch = autoencoder.Batch

        @staticmethod
        def init_params(key, config):
            return jnp.zeros(())

        @staticmethod
        def manual_value_and_grad(params, batch, config):
            given.append(type(batch))
            return batch.inputs.sum(), params

    optimizer = optax.sgd(0.0)
    state = train.init_state(Model, None, optimizer, jax.random.key(0))
    step = train.make_step(Model, None, optimizer)
    x = jnp.ones((2, 3))
    for batch in (Backwards(None, x), autoencoder.Batch(x), (x,), [x, None], KeylessInputs(x)):
        assert step(state, batch)[1] == 6.0
    assert given == [Backwards, *[autoencoder.Batch] * 4]
    with pytest.raises(TypeError, match="batch is a tuple of 3"):
        step(state, (x, None, None))


class KeylessInputs(NamedTuple):
    """Those of a Batch without its key."""

    inputs: jax.Array


def test_runs_go_on_where_they_stopped_and_repeat_by_seed():
    optimizer, data = optax.adam(0.01), make_data()
    start = train.init_state(mlp, CONFIG, optimizer, jax.random.key(0))
    two = train.make_run(mlp, CONFIG, optimizer, data, epochs=2, batch_size=3)
    four = train.make_run(mlp, CONFIG, optimizer, data, epochs=4, batch_size=3)
    halves, _ = two(two(start)[0])
    whole, _ = four(start)
    chex.assert_trees_all_close(halves.params, whole.params, rtol=1e-6)
    chex.assert_trees_all_equal(whole.params, four(start)[0].params)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size is 0; it must be at least 1"),
        ({"batch_size": 11}, ValueError, "batch_size is 11; .*10"),
        ({"epochs": 0}, ValueError, "epochs is 0"),
        ({"epochs": 2.5}, TypeError, "epochs is 2.5; it must be an integer"),
        ({"batch_size": True}, TypeError, "batch_size is True"),
        ({"batch_size": 10**400}, ValueError, "batch_size is 10{49}; it must be below"),
        ({"epochs": 10**400}, ValueError, "epochs is 10{49}; it must be below"),
        ({"gradient": ["manual"]}, ValueError, r"gradient is \['manual'\]; it must be one of"),
        ({"gradient": "numeric"}, ValueError, "'numeric'.*'manual', 'autodiff'"),
        ({"data": make_data(0)}, ValueError, r"\(0, 3\), \(0,\)"),
        ({"data": Batch(jnp.ones((4, 3)), jnp.zeros(5, int))}, ValueError, r"\(4, 3\), \(5,\)"),
        ({"data": Batch(jnp.ones((4, 2)), jnp.zeros(4, int))}, ValueError, "the size"),
        ({"data": Batch(jnp.ones((4, 3)), jnp.full(4, 4))}, ValueError, r"label 4 .*\[0, 4\)"),
        ({"data": Batch(jnp.ones((4, 3)), jnp.ones(4))}, TypeError, "float32.*integer"),
        ({"data": Batch(jnp.full((4, 3), jnp.nan), jnp.zeros(4, int))}, ValueError, "nan"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_compiled(change, error, message):
    arguments = {"data": make_data(), "epochs": 1, "batch_size": 2} | change
    with pytest.raises(error, match=message):
        train.make_run(mlp, CONFIG, optax.sgd(0.1), **arguments)


def test_a_gradient_of_the_wrong_shape_is_refused():
    wrong = types.SimpleNamespace(**vars(mlp))
    wrong.manual_value_and_grad = lambda *args: (
        mlp.loss(*args),
        jax.tree.map(jnp.transpose, mlp.manual_grad(*args)),
    )
    optimizer = optax.sgd(0.1)
    state = train.init_state(wrong, CONFIG, optimizer, jax.random.key(0))
    with pytest.raises(AssertionError):
        train.make_step(wrong, CONFIG, optimizer)(state, make_data())


def test_a_model_without_a_gradient_by_hand_is_refused_unless_autodiff_is_asked_for():
    other = types.SimpleNamespace(__name__="other", init_params=mlp.init_params, loss=mlp.loss)
    optimizer, data = optax.sgd(0.1), make_data()
    with pytest.raises(TypeError, match=r"^other has no manual_value_and_grad; .*'autodiff'"):
        train.make_step(other, CONFIG, optimizer)
    with pytest.raises(TypeError, match=r"^other has no manual_value_and_grad"):
        train.make_run(other, CONFIG, optimizer, data, epochs=1, batch_size=2)
    state = train.init_state(other, CONFIG, optimizer, jax.random.key(0))
    train.make_step(other, CONFIG, optimizer, "autodiff")(state, data)


@pytest.mark.parametrize("wrong", [None, "adam", optax.adam, {"init": None, "update": None}, 0.1])
def test_what_is_no_optimizer_is_refused(wrong):
    said = r"^optimizer is .*; it must have the functions init and update.*pass optax.adam"
    for make in (
        lambda: train.init_state(mlp, CONFIG, wrong, jax.random.key(0)),
        lambda: train.make_step(mlp, CONFIG, wrong),
        lambda: train.make_run(mlp, CONFIG, wrong, make_data(), epochs=1, batch_size=2),
    ):
        with pytest.raises(TypeError, match=said):
            make()


def test_a_configuration_that_is_none_is_refused_before_anything_is_compiled():
    optimizer = optax.sgd(0.1)
    for wrong in (None, autoencoder.EXAMPLE_CONFIGS[0], {"sizes": (3, 4)}):
        for make in (
            lambda wrong=wrong: train.init_state(mlp, wrong, optimizer, jax.random.key(0)),
            lambda wrong=wrong: train.make_step(mlp, wrong, optimizer),
            lambda wrong=wrong: train.make_run(
                mlp, wrong, optimizer, make_data(), epochs=1, batch_size=2
            ),
        ):
            with pytest.raises(TypeError, match=r"config is .*; it must be a jaxnn.models.mlp"):
                make()


def test_keys_of_another_length_are_refused():
    for key in (jnp.zeros(3, jnp.uint32), jnp.zeros(1, jnp.uint32)):
        with pytest.raises(TypeError, match=r"init_state: key is uint32\[\d\]; it must be a key"):
            train.init_state(mlp, CONFIG, optax.sgd(0.1), key)
    state = train.init_state(mlp, CONFIG, optax.sgd(0.1), jax.random.PRNGKey(0))
    assert state.key.shape == (2,)


def test_what_is_no_state_is_refused():
    optimizer, data = optax.sgd(0.1), make_data()
    step = train.make_step(mlp, CONFIG, optimizer)
    run = train.make_run(mlp, CONFIG, optimizer, data, epochs=1, batch_size=N)
    state = train.init_state(mlp, CONFIG, optimizer, jax.random.key(0))
    with pytest.raises(TypeError, match=r"^state is Params; it must be the State that init_state"):
        step(state.params, data)
    with pytest.raises(TypeError, match=r"^state is Params"):
        run(state.params)
    with pytest.raises(TypeError, match=r"^state is tuple"):
        step(step(state, data), data)
    for wrong in (None, "state", 5, mlp, object()):
        for call in (lambda wrong=wrong: step(wrong, data), lambda wrong=wrong: run(wrong)):
            with pytest.raises(
                TypeError, match=r"^state is .*; it must be the State that init_state"
            ):
                call()


def test_a_batch_that_is_none_is_refused():
    step = train.make_step(mlp, CONFIG, optax.sgd(0.1))
    state = train.init_state(mlp, CONFIG, optax.sgd(0.1), jax.random.key(0))
    x, labels = make_data()
    for wrong in ((), (x,), (x, labels, None, None), [x], None, x):
        with pytest.raises(TypeError, match=r"batch is a .*it must be the jaxnn.data.KeyedBatch"):
            step(state, wrong)
    assert step(state, (x, labels))[1] == step(state, Batch(x, labels))[1]


MOST_FILES = 15
# On one device, and one that is no GPU, they hand on what they are given.
HAND_ON = {
    *("explicit.py", "mesh.py", "varying.py", "ops/collectives.py", "ops/sharded.py"),
    "ops/fast/cudnn_attention.py",
}
FOLDER = str(Path(train.__file__).parents[1])
# What a step of another kind of model, or its data, would need, and what is done before it.
NOT_OF_A_STEP = {
    "data.py",
    "text.py",
    "models/transformer_params.py",
    "models/generate.py",
    "models/sampling.py",
    "ops/activations.py",
    "ops/rotary.py",
    "ops/experts.py",
}


def test_a_step_of_gpt_is_read_in_few_files():
    """Of the library, those whose functions run while a step is traced."""
    config = transformer.gpt2(vocabulary=7, positions=6, layers=2, width=4, heads=2)
    optimizer = optax.adam(1e-3)
    state = train.init_state(transformer, config, optimizer, jax.random.key(0))
    batch = transformer.example_batch(jax.random.key(1), config)
    step, visited = train.make_step(transformer, config, optimizer), set()

    def see(frame, event, _):
        code = frame.f_code
        inside = code.co_filename.startswith(FOLDER) and code.co_name != "<module>"
        if event == "call" and inside:
            visited.add(str(Path(code.co_filename).relative_to(FOLDER)))

    sys.setprofile(see)
    try:
        jax.make_jaxpr(step)(state, batch)
    finally:
        sys.setprofile(None)
    visited.discard("verify/door.py")  # once the verifier was used, NumPy's arrays pass it
    assert {"train/steps.py", "op.py", "models/transformer.py", "ops/linear.py"} <= visited
    assert not visited & NOT_OF_A_STEP
    visited -= HAND_ON
    assert len(visited) <= MOST_FILES, " ".join(sorted(visited))


@pytest.mark.parametrize("config", mlp.EXAMPLE_CONFIGS, ids=str)
def test_a_tiny_batch_overfits(config):
    config = dataclasses.replace(config, sizes=(config.sizes[0], 24, config.sizes[-1]), l2=0.0)
    inputs = 2.0 * jnp.arange(4.0)[:, None] * jnp.ones(config.sizes[0]) - 3.0
    if config.loss == "softmax_cross_entropy":
        data = Batch(inputs, jnp.arange(4) % config.sizes[-1])
    else:
        data = Batch(inputs, jnp.cos(inputs[:, :1]) * jnp.ones(config.sizes[-1]))
    optimizer = optax.adam(0.02)
    state = train.init_state(mlp, config, optimizer, jax.random.key(1))
    run = train.make_run(mlp, config, optimizer, data, epochs=1500, batch_size=4)
    _, history = run(state)
    assert history.loss[0] > 0.1
    assert history.loss[-1] < 0.01


@pytest.mark.parametrize("size", [1, 4, 5, 10, 99])
def test_parts_join_to_what_the_whole_gives(size):
    """Ten examples in parts that divide them, do not, or hold them all."""
    data, params = make_data(), mlp.init_params(jax.random.key(0), CONFIG)

    def both(batch):
        return {
            "loss": mlp.loss(params, batch, CONFIG),
            "rows": mlp.forward(params, batch.inputs, CONFIG),
        }

    parts, whole = train.in_parts(both, data, size), both(data)
    chex.assert_trees_all_close(parts, whole, rtol=1e-5, atol=1e-6)
    jitted = jax.jit(lambda data: train.in_parts(both, data, size))(data)
    chex.assert_trees_all_close(jitted, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32])
def test_the_mean_of_many_parts_is_the_mean_in_short_floats(dtype):
    ours = train.in_parts(lambda x: x.mean(), np.full(60_001, 2.3, dtype))
    assert ours.dtype == dtype
    np.testing.assert_allclose(float(ours), 2.3, rtol=1e-2)


def test_parts_hold_no_more_examples_than_they_may():
    sizes = []
    train.in_parts(lambda x: sizes.append(len(x)) or x, np.zeros((10, 2), np.float32), 4)
    assert set(sizes) == {4, 2}


@pytest.mark.parametrize(
    ("function", "batch", "size", "message"),
    [
        (lambda x: x, np.zeros((0, 2)), 4, "number of examples, of at least 1"),
        (lambda x: x, np.zeros((3, 2)), 0, "size is 0"),
        (lambda x: x.sum(0), np.zeros((3, 2)), 3, r"shape \(2,\) for 3 examples.*row per example"),
    ],
)
def test_what_cannot_be_had_in_parts_is_refused(function, batch, size, message):
    with pytest.raises(ValueError, match=message):
        train.in_parts(function, batch, size)
