"""The variational autoencoder against autodiff and SciPy, its noise, its script."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats
from conftest import assert_leaves_close, run

from experiments import autoencode
from jaxnn import train, verify
from jaxnn.models import autoencoder, mlp

strict = pytest.mark.usefixtures("strict_dtypes")
CONFIG = autoencoder.EXAMPLE_CONFIGS[0]


def draw(config):
    params = autoencoder.init_params(jax.random.key(0), config)
    params = jax.tree.map(lambda p: p + 0.1 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), params)
    return params, autoencoder.example_batch(jax.random.key(1), config)


@strict
@pytest.mark.parametrize("config", autoencoder.EXAMPLE_CONFIGS, ids=str)
def test_the_verifier_passes_it(config):
    assert verify.model(autoencoder, config).status == "pass"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("config", autoencoder.EXAMPLE_CONFIGS, ids=str)
def test_manual_grad_equals_autodiff(config, training, x64):
    params, batch = draw(config)
    batch = batch if training else batch._replace(key=None)
    (value, grads), (expected, oracle) = run(
        lambda *a: (
            autoencoder.manual_value_and_grad(*a, config),
            jax.value_and_grad(autoencoder.loss)(*a, config),
        ),
        params,
        batch,
    )
    assert_leaves_close(value, expected, 1e-14)
    assert_leaves_close(grads, oracle, 1e-10, floor=1e-16)


def test_the_loss_is_the_negative_bound_by_scipy(x64):
    """Without noise: -log p(x | mean) of Bernoulli pixels, plus SciPy's KL terms."""
    params, batch = draw(CONFIG)
    inputs = np.asarray(batch.inputs)
    mean, log_variance = autoencoder.encode(params, batch.inputs, CONFIG)
    p = np.asarray(autoencoder.decode(params, mean, CONFIG))
    bernoulli = -(scipy.special.xlogy(inputs, p) + scipy.special.xlog1py(1 - inputs, -p)).sum()
    entropy = scipy.stats.norm(scale=np.exp(log_variance / 2)).entropy()
    kl = (np.exp(log_variance) + mean**2 + np.log(2 * np.pi)) / 2 - entropy
    expected = (bernoulli + CONFIG.beta * kl.sum()) / len(inputs)
    ours = autoencoder.loss(params, batch._replace(key=None), CONFIG)
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    logits = autoencoder.forward(params, batch.inputs, CONFIG)
    np.testing.assert_allclose(scipy.special.expit(logits), p, rtol=1e-12)


def test_the_noise_is_normal_and_the_same_in_every_dtype():
    key = jax.random.key(0)
    with jax.enable_x64(True):
        latent = autoencoder.Latent(*jnp.zeros((2, 5000, 2)))
        exact = autoencoder.drawn_noise(key, latent)
        assert scipy.stats.kstest(np.ravel(exact), "norm").pvalue > 0.01
        for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.bfloat16, 0.01)):
            low = autoencoder.drawn_noise(key, autoencoder.Latent(*jnp.zeros((2, 5000, 2), dtype)))
            assert low.dtype == dtype
            np.testing.assert_allclose(low.astype(float), exact, rtol=tolerance, atol=1e-6)


@pytest.mark.usefixtures("undiagnosed")
def test_a_fault_in_the_samples_backward_is_caught(monkeypatch):
    right = autoencoder.latent_sample_bwd
    monkeypatch.setattr(
        autoencoder,
        "latent_sample_bwd",
        lambda *a: right(*a)._replace(log_variance=2 * right(*a).log_variance),
    )
    params, batch = draw(CONFIG)
    report = verify.gradient(autoencoder.loss, autoencoder.manual_grad, params, batch, CONFIG)
    failed = [row.path for row in report.leaves if row.status == "fail"]
    assert failed
    assert all(path.startswith("encoder") for path in failed)


def test_steps_by_hand_and_by_autodiff_end_alike_and_overfit(x64):
    config = autoencoder.Config(sizes=(6, 16, 2), beta=0.001)
    optimizer, ends = optax.adam(0.01), []
    data = autoencoder.Batch(jnp.eye(6)[:4])
    start = train.init_state(autoencoder, config, optimizer, jax.random.key(0))
    for gradient in ("manual", "autodiff"):
        state, step = start, train.make_step(autoencoder, config, optimizer, gradient)
        for _ in range(20):
            state, _ = step(state, data)
        ends.append(state.params)
    assert_leaves_close(*ends, 1e-9)
    go = train.make_run(autoencoder, config, optimizer, data, epochs=600, batch_size=4)
    _, history = go(start)
    assert history.loss[-20:].mean() < 0.2 < 2 < history.loss[0]


def test_samples_are_images():
    params, _ = draw(CONFIG)
    images = autoencoder.sample(params, jax.random.key(0), CONFIG, 9)
    assert images.shape == (9, 5)
    assert ((images >= 0) & (images <= 1)).all()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"sizes": (3,)}, ValueError, "at least two"),
        ({"sizes": (3, 0)}, ValueError, "at least 1"),
        ({"sizes": (3, 1.5)}, TypeError, "integer"),
        ({"activation": "swish"}, ValueError, "'swish'.*'relu'"),
        ({"beta": -1.0}, ValueError, "beta is -1.0.*at least 0"),
        ({"beta": float("nan")}, ValueError, "beta is nan"),
        ({"beta": None}, TypeError, "beta is None.*number"),
    ],
)
def test_a_bad_configuration_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        autoencoder.Config(**settings)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (jnp.ones((2, 4)), ValueError, r"\(2, 4\).*\(examples, 5\)"),
        (jnp.ones((0, 5)), ValueError, "at least one example"),
        (jnp.ones((2, 5), int), TypeError, "int32.*float32"),
        (jnp.full((2, 5), jnp.nan), ValueError, "nan"),
        (jnp.full((2, 5), 16.0), ValueError, r"16.0.*\[0, 1\]"),
    ],
)
def test_bad_data_is_refused(inputs, error, message):
    params, _ = draw(CONFIG)
    for function in (autoencoder.loss, autoencoder.manual_grad):
        with pytest.raises(error, match=message):
            function(params, autoencoder.Batch(inputs), CONFIG)
    wrong = params._replace(decoder=mlp.Params(()))
    with pytest.raises(ValueError, match=r"parameters\.decoder"):
        autoencoder.loss(wrong, autoencoder.Batch(jnp.ones((2, 5))), CONFIG)


def test_autoencode_draws_and_learns(tmp_path, capsys):
    losses = []
    for gradient in ("manual", "autodiff"):
        assert autoencode.main(epochs=5, hidden=(32,), gradient=gradient, out=tmp_path) == 0
        out = capsys.readouterr().out
        losses.append(re.search(r"held-out loss ([\d.]+) nats", out)[1])
    assert losses[0][:5] == losses[1][:5]
    assert float(losses[0]) < 35
    for name in ("loss", "reconstructions", "samples", "plane"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
