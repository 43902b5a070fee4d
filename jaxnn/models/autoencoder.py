"""A variational autoencoder: images through a few numbers with a known distribution, and back.

    mean, log variance = encoder(x)                 a perceptron, per example and latent dimension
    z      = mean + exp(log variance / 2) noise     noise ~ N(0, 1)
    logits = decoder(z)                             a perceptron of the same widths backwards

    loss = mean over examples of  sum over pixels of the binary cross-entropy of x under the logits
                                + beta KL(N(mean, variance) || N(0, 1)),   in nats

With beta 1 and x in {0, 1} the loss is a bound on -log p(x): the negative evidence lower bound of
Kingma and Welling 2014, "Auto-encoding variational Bayes", equation 10 and appendix B. The sample
is written such that the gradient passes through it to mean and variance (section 2.4).
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxnn.checks import check_key
from jaxnn.models import mlp
from jaxnn.models.inputs import check_inputs, check_params, unpack
from jaxnn.ops.activations import sigmoid
from jaxnn.ops.losses import sigmoid_binary_cross_entropy
from jaxnn.settings import check_coefficient


@dataclass(frozen=True)
class Config:
    """What the autoencoder is. Hashable and static: a different one is a different program.

    Attributes:
        sizes: widths of the encoder, pixels to latent dimensions; the decoder's are the reverse.
        activation: "relu", "sigmoid" or "tanh", after every layer but the last of each half.
        beta: weight of the KL term, at least 0 (Higgins et al., 2017); 1 gives the bound.

    Raises:
        ValueError: a setting is outside its range; the message lists the known names.
        TypeError: a setting is of another kind than above.
    """

    sizes: tuple[int, ...] = (64, 256, 2)
    activation: str = "relu"
    beta: float = 1.0

    def __post_init__(self) -> None:
        """Check every setting; sizes and activation by the rules of the perceptron."""
        checked = mlp.Config(sizes=self.sizes, activation=self.activation)
        object.__setattr__(self, "sizes", checked.sizes)
        object.__setattr__(self, "beta", check_coefficient("beta", self.beta))

    @property
    def encoder(self) -> mlp.Config:
        """The encoder, whose last layer gives a mean and a log variance per latent dimension."""
        *widths, latent = self.sizes
        return mlp.Config(sizes=(*widths, 2 * latent), activation=self.activation)

    @property
    def decoder(self) -> mlp.Config:
        """The decoder, from latent dimensions to a logit per pixel."""
        return mlp.Config(sizes=self.sizes[::-1], activation=self.activation)


class Params(NamedTuple):
    """The two perceptrons."""

    encoder: mlp.Params
    decoder: mlp.Params


class Batch(NamedTuple):
    """Inputs (N, pixels) in [0, 1], and in training the key that the noise is drawn from."""

    inputs: Array
    key: Array | None = None


class Latent(NamedTuple):
    """The normal distribution that the encoder gives each input: both (N, latent dimensions)."""

    mean: Array
    log_variance: Array


EXAMPLE_CONFIGS = (
    Config(sizes=(5, 7, 3), activation="tanh"),
    Config(sizes=(3, 6, 4, 1), beta=0.3),
    Config(sizes=(4, 2), activation="sigmoid", beta=0.0),
)


def init_params(key: Array, config: Config) -> Params:
    """Both halves as `mlp.init_params` draws them; raises as it does."""
    check_key("init_params: key", key)
    k_encoder, k_decoder = jax.random.split(key)
    return Params(
        mlp.init_params(k_encoder, config.encoder), mlp.init_params(k_decoder, config.decoder)
    )


def latent_sample_fwd(latent: Latent, noise: Array | None) -> tuple[Array, Any]:
    """z = mean + exp(log variance / 2) noise; without noise, in evaluation, z = mean.

    Saves the part of z that is noise.
    """
    mean, log_variance = latent
    if noise is None:
        return mean, None
    deviation = jnp.exp(log_variance / 2) * noise
    return mean + deviation, deviation


def latent_sample_bwd(deviation: Array | None, dz: Array) -> Latent:
    """dmean = dz;  dlog variance = dz exp(log variance / 2) noise / 2."""
    return Latent(dz, jnp.zeros_like(dz) if deviation is None else dz * deviation / 2)


def latent_kl_fwd(latent: Latent) -> tuple[Array, Latent]:
    """KL(N(mean, variance) || N(0, 1)) in nats, summed over all elements; saves its input.

    sum of (variance + mean^2 - 1 - log variance) / 2, Kingma and Welling's appendix B.
    """
    mean, log_variance = latent
    # expm1: near variance 1 the terms cancel, and the digits of the difference must not be lost.
    return (jnp.expm1(log_variance) - log_variance + mean**2).sum() / 2, latent


def latent_kl_bwd(latent: Latent, dkl: Array) -> Latent:
    """dmean = mean dkl;  dlog variance = (variance - 1) dkl / 2."""
    return Latent(latent.mean * dkl, jnp.expm1(latent.log_variance) * dkl / 2)


def encode(params: Params, inputs: Array, config: Config) -> Latent:
    """What the encoder says of inputs (N, pixels).

    Raises:
        TypeError: the inputs are not floating, or not of the dtype of the parameters.
        ValueError: their shape is not (N, pixels) with N at least 1; the parameters are of another
            configuration; or (outside jit) a value is not in [0, 1].
    """
    _check(params, inputs, config)
    return Latent(*jnp.split(mlp.forward(params.encoder, inputs, config.encoder), 2, axis=-1))


def decode(params: Params, z: Array, config: Config) -> Array:
    """The pixels (N, pixels), in [0, 1], that the decoder makes of z (N, latent dimensions).

    Raises:
        TypeError, ValueError: as `mlp.forward` for z; the parameters are of another model.
    """
    check_params(params, init_params, config)
    return sigmoid.fwd(mlp.forward(params.decoder, z, config.decoder))[0]


def sample(params: Params, key: Array, config: Config, n: int) -> Array:
    """`n` images (n, pixels) of latent points drawn from N(0, 1).

    Raises:
        TypeError, ValueError: the key is none of `jax.random`; the parameters are of another model.
    """
    check_params(params, init_params, config)
    check_key("sample: key", key)
    dtype = params.decoder.layers[0].w.dtype
    return decode(params, jax.random.normal(key, (n, config.sizes[-1]), dtype), config)


def forward(params: Params, inputs: Array, config: Config) -> Array:
    """Logits (N, pixels) of the reconstruction through the mean; raises as `encode`."""
    mean = encode(params, inputs, config).mean
    return mlp.forward(params.decoder, mean, config.decoder)


def loss(params: Params, batch: Batch, config: Config) -> Array:
    """Reconstruction plus beta KL in nats per example; a scalar. Without a key, z is the mean.

    Plain JAX throughout: `jax.grad(loss)` is the oracle for `manual_grad`.

    Raises:
        TypeError, ValueError: as `encode`.
    """
    inputs, key = unpack(batch, Batch)
    _check(params, inputs, config)
    outputs, _ = mlp.layers_fwd(params.encoder, inputs, config.encoder)
    latent = Latent(*jnp.split(outputs, 2, axis=-1))
    z, _ = latent_sample_fwd(latent, drawn_noise(key, latent))
    logits, _ = mlp.layers_fwd(params.decoder, z, config.decoder)
    reconstruction, _ = sigmoid_binary_cross_entropy.fwd(logits, inputs, reduction="sum")
    kl, _ = latent_kl_fwd(latent)
    return (reconstruction + config.beta * kl) / len(inputs)


def manual_value_and_grad(params: Params, batch: Batch, config: Config) -> tuple[Array, Params]:
    """The loss and its gradient by hand, from one forward pass; raises as `loss`.

    The reconstruction's gradient flows back through the decoder and the sample to the latent
    distribution, meets the KL term's there, and goes on through the encoder.
    """
    inputs, key = unpack(batch, Batch)
    _check(params, inputs, config)
    outputs, encoder_residuals = mlp.layers_fwd(params.encoder, inputs, config.encoder)
    latent = Latent(*jnp.split(outputs, 2, axis=-1))
    z, sample_residuals = latent_sample_fwd(latent, drawn_noise(key, latent))
    logits, decoder_residuals = mlp.layers_fwd(params.decoder, z, config.decoder)
    reconstruction, reconstruction_residuals = sigmoid_binary_cross_entropy.fwd(
        logits, inputs, reduction="sum"
    )
    kl, kl_residuals = latent_kl_fwd(latent)
    total = (reconstruction + config.beta * kl) / len(inputs)

    dreconstruction = jnp.ones_like(total) / len(inputs)
    through_kl = latent_kl_bwd(kl_residuals, config.beta * dreconstruction)
    dlogits, _ = sigmoid_binary_cross_entropy.bwd(
        reconstruction_residuals, dreconstruction, reduction="sum"
    )
    ddecoder, dz = mlp.layers_bwd(decoder_residuals, dlogits, config.decoder)
    through_z = latent_sample_bwd(sample_residuals, dz)
    dlatent = jax.tree.map(jnp.add, through_z, through_kl)
    dencoder, _ = mlp.layers_bwd(
        encoder_residuals, jnp.concatenate(dlatent, axis=-1), config.encoder
    )
    return total, Params(dencoder, ddecoder)


def manual_grad(params: Params, batch: Batch, config: Config) -> Params:
    """The gradient of `loss` by hand: equals `jax.grad(loss)(params, batch, config)`."""
    _, grads = manual_value_and_grad(params, batch, config)
    return grads


def example_batch(key: Array, config: Config) -> Batch:
    """Seven inputs in training for verification, one of them all 0, one all 1."""
    k_inputs, k_noise = jax.random.split(key)
    inputs = jax.random.uniform(k_inputs, (7, config.sizes[0]))
    return Batch(inputs.at[0].set(0.0).at[1].set(1.0), k_noise)


def drawn_noise(key: Array | None, latent: Latent) -> Array | None:
    """Standard-normal numbers, one per latent element: sqrt(2) erf^-1(u), u uniform in (-1, 1).

    Drawn as integers, which a key makes the same in every dtype: those of `jax.random.normal`
    would be others in float64, and a gradient could not be compared between dtypes.
    """
    if key is None:
        return None
    dtype = latent.mean.dtype
    # In fewer than 32 bits u could round to 1.
    wide = dtype if dtype.itemsize >= 4 else jnp.dtype(jnp.float32)
    u = ((jax.random.bits(key, latent.mean.shape, jnp.uint32) >> 9).astype(wide) + 0.5) / 2**22 - 1
    return (math.sqrt(2) * lax.erf_inv(u)).astype(dtype)


def _check(params: Params, inputs: Array, config: Config) -> None:
    """Refuse parameters of another configuration, and inputs that are no images in [0, 1]."""
    check_params(params, init_params, config)
    check_inputs(inputs, params.encoder.layers[0].w.dtype, config.sizes[:1])
    if not isinstance(inputs, jax.core.Tracer):
        values = np.asarray(inputs)
        if values.min() < 0 or values.max() > 1:
            raise ValueError(
                f"inputs lie in [{values.min()}, {values.max()}]; they are taken as probabilities "
                "and must be in [0, 1]: scale them"
            )
