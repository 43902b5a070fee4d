"""The convolutional classifier: against autodiff in both modes, its statistics, its script."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_leaves_close, run

from experiments import cli, digits
from jaxnn import data, train, verify
from jaxnn.models import cnn

strict = pytest.mark.usefixtures("strict_dtypes")
BATCH_NORM, GROUP_NORM = cnn.EXAMPLE_CONFIGS


def draw(config, training=True):
    """Parameters away from 0 and 1, and the example batch, in the default dtype."""
    k_params, k_noise, k_batch = jax.random.split(jax.random.key(3), 3)
    leaves, tree = jax.tree.flatten(cnn.init_params(k_params, config))
    keys = jax.random.split(k_noise, len(leaves))
    noisy = [
        p + 0.1 * jax.random.normal(k, p.shape, p.dtype) for p, k in zip(leaves, keys, strict=True)
    ]
    batch = cnn.example_batch(k_batch, config)
    return jax.tree.unflatten(tree, noisy), batch if training else batch._replace(key=None)


@strict
@pytest.mark.parametrize("config", cnn.EXAMPLE_CONFIGS, ids=str)
def test_the_verifier_passes_it_in_training(config):
    assert verify.model(cnn, config).status == "pass"


@strict
def test_the_verifier_passes_it_in_evaluation():
    params, batch = draw(BATCH_NORM, training=False)
    report = verify.gradient(cnn.loss, cnn.manual_grad, params, batch, BATCH_NORM)
    assert report.status == "pass", str(report)


@strict
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("config", cnn.EXAMPLE_CONFIGS, ids=str)
def test_manual_grad_equals_autodiff(config, training, x64):
    params, batch = draw(config, training)
    (value, grads), (expected, oracle) = run(
        lambda *a: (
            cnn.manual_value_and_grad(*a, config),
            jax.value_and_grad(cnn.loss)(*a, config),
        ),
        params,
        batch,
    )
    assert_leaves_close(value, expected, 1e-14)
    assert_leaves_close(grads, oracle, 1e-10, floor=1e-16)
    if training and config.norm == "batch":
        assert not grads.norm.running.mean.any()


@strict
@pytest.mark.usefixtures("undiagnosed")
def test_a_fault_in_a_blocks_backward_is_caught(monkeypatch):
    right = cnn.block_bwd

    def without_shortcut(residuals, dy, *args):
        """The skip's own gradient forgotten: only dx of the first convolution goes back."""
        dblock, dx = right(residuals, dy, *args)
        relu1, relu2 = residuals.first.relu, residuals.second.relu
        return dblock, dx if relu1.shape != relu2.shape else dx - jnp.where(relu2 > 0, dy, 0)

    monkeypatch.setattr(cnn, "block_bwd", without_shortcut)
    params, batch = draw(GROUP_NORM)
    report = verify.gradient(cnn.loss, cnn.manual_grad, params, batch, GROUP_NORM)
    failed = {row.path for row in report.leaves if row.status == "fail"}
    assert "stem.w" in failed
    assert not any(path.startswith(("blocks[1]", "head")) for path in failed)


def test_twenty_steps_by_hand_and_by_autodiff_end_alike(x64):
    optimizer, batch, ends = optax.adam(1e-3), draw(BATCH_NORM)[1], []
    start = train.init_state(cnn, BATCH_NORM, optimizer, jax.random.key(0))
    for gradient in ("manual", "autodiff"):
        state, step = start, train.make_step(cnn, BATCH_NORM, optimizer, gradient)
        for _ in range(20):
            state, value = step(state, batch)
        ends.append((state.params, value))
    chex.assert_trees_all_close(*ends, rtol=1e-8, atol=1e-11)
    chex.assert_trees_all_equal(ends[0][0].norm.running, start.params.norm.running)


def test_a_tiny_batch_overfits():
    config = cnn.Config(shape=(4, 4, 1), channels=(8, 8), classes=4, norm="group", groups=2)
    inputs = jax.random.normal(jax.random.key(0), (4, 16))
    optimizer = optax.adam(0.01)
    state = train.init_state(cnn, config, optimizer, jax.random.key(1))
    batch = cnn.Batch(inputs, jnp.arange(4))
    go = train.make_run(cnn, config, optimizer, batch, epochs=200, batch_size=4)
    state, history = go(state)
    assert history.loss[0] > 0.5
    assert history.loss[-1] < 0.01
    assert cnn.accuracy(state.params, batch, config) == 1


def test_statistics_of_all_data_make_evaluation_the_training_forward(x64):
    """What evaluation differs by is the unbiased variance: a factor n/(n - 1) of the variance."""
    params, (inputs, *_) = draw(BATCH_NORM)
    inputs = jnp.tile(inputs, (300, 1))
    settled = cnn.update_running(params, inputs, BATCH_NORM)
    (logits, _), _ = cnn.network_fwd(params, inputs, BATCH_NORM, None, training=True)
    np.testing.assert_allclose(cnn.forward(settled, inputs, BATCH_NORM), logits, rtol=2e-3)
    images = inputs.reshape(-1, *BATCH_NORM.shape)
    z = jax.lax.conv_general_dilated(
        images, params.stem.w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    running = settled.norm.running
    np.testing.assert_allclose(running.mean, z.mean((0, 1, 2)), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(running.variance, z.var((0, 1, 2), ddof=1), rtol=1e-9)
    assert jax.tree.structure(settled) == jax.tree.structure(params)
    chex.assert_trees_all_equal(settled.head, params.head)


def test_the_key_alone_decides_what_is_dropped():
    params, batch = draw(BATCH_NORM)
    loss = jax.jit(lambda batch: cnn.loss(params, batch, BATCH_NORM))
    assert loss(batch) == loss(batch)
    assert loss(batch) != loss(batch._replace(key=jax.random.key(9)))
    assert loss(batch._replace(key=None)) == loss(data.Batch(*batch[:2])) != loss(batch)


def test_flat_and_shaped_images_are_the_same():
    params, batch = draw(BATCH_NORM)
    images = batch.inputs.reshape(-1, *BATCH_NORM.shape)
    np.testing.assert_array_equal(
        cnn.forward(params, images, BATCH_NORM), cnn.forward(params, batch.inputs, BATCH_NORM)
    )
    p = cnn.probabilities(params, images, BATCH_NORM)
    np.testing.assert_allclose(p.sum(-1), np.ones(7), rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"shape": (8, 8)}, ValueError, r"\(8, 8\).*height, width, channels"),
        ({"shape": (8, 0, 1)}, ValueError, r"\(8, 0, 1\).*at least 1"),
        ({"channels": ()}, ValueError, "at least one stage"),
        ({"channels": (8, 2.5)}, TypeError, "2.5.*integer"),
        ({"blocks": 0}, ValueError, "blocks is 0.*at least 1"),
        ({"classes": True}, TypeError, "classes is True.*integer"),
        ({"norm": "layer"}, ValueError, "'layer'.*'batch', 'group'"),
        ({"norm": "group", "groups": 5}, ValueError, r"groups are 5.*\(32, 64\).*divide"),
        ({"dropout": 1.0}, ValueError, r"dropout is 1.0.*\[0, 1\)"),
        ({"dropout": float("nan")}, ValueError, "dropout is nan"),
        ({"dropout": "a"}, TypeError, "dropout is 'a'.*number"),
        ({"channels": 32}, TypeError, "channels is 32.*tuple"),
    ],
)
def test_a_bad_configuration_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        cnn.Config(**settings)


GOOD = cnn.Batch(jnp.ones((3, 24)), jnp.array([0, 1, 2]))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"inputs": jnp.ones((3, 25))}, ValueError, r"\(3, 25\).*3, 4, 2\).*\(examples, 24\)"),
        ({"inputs": jnp.ones((3, 4, 2))}, ValueError, r"\(3, 4, 2\).*x\[None\]"),
        ({"inputs": jnp.ones((0, 24))}, ValueError, r"\(0, 24\).*at least one example"),
        ({"inputs": jnp.ones((3, 24), int)}, TypeError, "int32.*float32"),
        ({"inputs": [[1.0]]}, TypeError, "list.*jnp.asarray"),
        ({"inputs": GOOD.inputs.at[1, 2].set(jnp.nan)}, ValueError, r"\[1, 2\] is nan"),
        ({"targets": jnp.array([0, 1, 3])}, ValueError, r"label 3.*\[0, 3\)"),
        ({"targets": jnp.zeros(2, int)}, ValueError, r"\(2,\).*same length"),
    ],
)
def test_bad_data_is_refused_before_anything_is_compiled(change, error, message):
    params = cnn.init_params(jax.random.key(0), BATCH_NORM)
    for function in (cnn.loss, cnn.manual_grad, cnn.accuracy):
        with pytest.raises(error, match=message):
            function(params, GOOD._replace(**change), BATCH_NORM)


def test_what_does_not_fit_is_refused():
    params = cnn.init_params(jax.random.key(0), BATCH_NORM)
    with pytest.raises(ValueError, match="the configuration needs"):
        cnn.forward(params, GOOD.inputs, GROUP_NORM)
    single = cnn.Config(shape=(1, 1, 1), channels=(2,), classes=2)
    batch = cnn.Batch(jnp.ones((1, 1)), jnp.zeros(1, int), jax.random.key(0))
    with pytest.raises(ValueError, match="training needs at least 2"):
        cnn.loss(cnn.init_params(jax.random.key(0), single), batch, single)


SMALL = {"model": "cnn", "channels": (4,)}


def test_digits_by_a_small_network(tmp_path, capsys, monkeypatch):
    whole = data.digits(0)
    few = data.Split(*(jax.tree.map(lambda x: x[:96], half) for half in whole))
    monkeypatch.setattr(data, "digits", lambda seed: few)
    # Both runs verify the same hand-written gradient at the same parameters.
    verified, verify_gradient = [], cli.verify.gradient
    monkeypatch.setattr(
        cli.verify,
        "gradient",
        lambda *a: verified[0] if verified else verified.append(verify_gradient(*a)) or verified[0],
    )
    losses = []
    for gradient in ("manual", "autodiff"):
        assert digits.main(epochs=2, batch_size=48, gradient=gradient, out=tmp_path, **SMALL) == 0
        out = capsys.readouterr().out
        assert "PASS         manual_grad" in out
        assert "channels=(4,)" in out
        losses.append(re.search(r"training loss ([\d.]+)", out)[1])
    assert losses[0] == losses[1]
    accuracy, best = re.search(r"held-out accuracy ([\d.]+)% .* of epoch (\d+)", out).groups()
    # What is saved has the running statistics with which the log's figure was taken.
    epoch = np.genfromtxt(tmp_path / "log.csv", delimiter=",", names=True)[int(best) - 1]
    assert float(accuracy) == pytest.approx(100 * epoch["val_accuracy"], abs=0.006)
    assert digits.main(predict=tmp_path / "params.safetensors", **SMALL) == 0
    assert f"held-out accuracy {accuracy}% of 96" in capsys.readouterr().out


def test_digits_of_another_network_are_refused(tmp_path, command):
    config = cnn.Config(channels=(4, 8))
    params = cnn.init_params(jax.random.key(0), config)
    notes = {"script": "experiments.digits", "options": {"model": "cnn", "channels": [4, 8]}}
    file = tmp_path / "params.safetensors"
    train.save_params(file, params, model=cnn, config=config, notes=notes)
    with pytest.raises(ValueError, match="--channels is 4, in the run 4 8"):
        digits.main(predict=file, **SMALL)
    status, printed = command(digits.main, "--model", "rnn")
    assert status == 2
    assert "rnn" in printed.err
