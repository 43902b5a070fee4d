"""The variational autoencoder in PyTorch, float64, to 1e-9: loss and gradients."""

import jax
import numpy as np
import pytest
from conftest import assert_leaves_close, run

torch = pytest.importorskip(
    "torch", reason="PyTorch is an optional peer: pip install -e '.[peers]'"
)

from torch.distributions import Bernoulli, Normal, kl_divergence  # noqa: E402

from experiments import torch_peer  # noqa: E402
from jaxnn.models import autoencoder  # noqa: E402


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("config", autoencoder.EXAMPLE_CONFIGS, ids=str)
def test_autoencoder(config, training, x64):
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: p + 0.1 * rng.normal(size=p.shape),
        autoencoder.init_params(jax.random.key(0), config),
    )
    inputs, key = autoencoder.example_batch(jax.random.key(1), config)
    batch = autoencoder.Batch(inputs, key if training else None)
    value, grads = run(lambda *a: autoencoder.manual_value_and_grad(*a, config), params, batch)

    encoder = torch_peer.network(params.encoder, config.encoder)
    decoder = torch_peer.network(params.decoder, config.decoder)
    x = torch.from_numpy(np.array(inputs))
    mean, log_variance = encoder(x).chunk(2, -1)
    latent = Normal(mean, torch.exp(log_variance / 2))
    z = mean
    if training:  # PyTorch cannot draw what a key of JAX's does
        drawn = autoencoder.drawn_noise(key, autoencoder.Latent(*2 * [np.zeros(mean.shape)]))
        z = mean + latent.scale * torch.from_numpy(np.array(drawn))
    reconstruction = -Bernoulli(logits=decoder(z), validate_args=False).log_prob(x).sum()
    kl = kl_divergence(latent, Normal(0.0, 1.0)).sum()
    expected = (reconstruction + config.beta * kl) / len(x)
    expected.backward()

    assert_leaves_close(value, expected.item(), 1e-9)
    for ours, net in ((grads.encoder, encoder), (grads.decoder, decoder)):
        theirs = [p.grad.numpy().T for p in net.parameters()]  # weights, biases, layer by layer
        assert_leaves_close(ours, theirs, 1e-9, floor=1e-14)
