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
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxnn.checks import (
    check_backward,
    check_batch,
    check_batch_key,
    check_init,
    check_inputs,
    check_key,
    check_model,
    check_not_empty,
    is_seen,
)
from jaxnn.explicit import automatic, automatic_gradient
from jaxnn.models import mlp
from jaxnn.numerics import in_dtype_of
from jaxnn.op import door
from jaxnn.ops.activations import sigmoid
from jaxnn.ops.binary_cross_entropy import sigmoid_binary_cross_entropy
from jaxnn.settings import check_coefficient, check_integer


@dataclass(frozen=True)
class Config:
    """What the autoencoder is. Hashable and static: a different one is a different program.

    Attributes:
        sizes: widths of the encoder, pixels to latent dimensions; the decoder's are the reverse.
        activation: "relu", "sigmoid" or "tanh", after every layer but the last of each half.
        beta: weight of the KL term, at least 0 (Higgins et al., 2017); 1 gives the bound.
            JAX may trace it.

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


class KeyedInputs(NamedTuple):
    """Inputs (N, pixels) in [0, 1], and in training the key that the noise is drawn from."""

    inputs: Array
    key: Array | None = None


Batch = KeyedInputs
AXES = mlp.AXES


class Latent(NamedTuple):
    """The normal distribution that the encoder gives each input: both (N, latent dimensions)."""

    mean: Array
    log_variance: Array


EXAMPLE_CONFIGS = (
    Config(sizes=(5, 7, 3), activation="tanh"),
    Config(sizes=(3, 6, 4, 1), beta=0.3),
    Config(sizes=(4, 2), activation="sigmoid", beta=0.0),
)


@door(partial(check_init, kind=Config))
def init_params(key: Array, config: Config) -> Params:
    """Draw both halves as `mlp.init_params` does; raises as it does."""
    k_encoder, k_decoder = jax.random.split(key)
    return Params(
        mlp.init_params(k_encoder, config.encoder), mlp.init_params(k_decoder, config.decoder)
    )


def latent_sample_fwd(latent: Latent, noise: Array | None) -> tuple[Array, Array | None]:
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


def _check(params: Params, inputs: Array, config: Config) -> None:
    """Refuse what `encode` says it raises."""
    dtype = check_model(params, config, Config, init_params)
    check_inputs(inputs, dtype, config.sizes[:1])
    if not is_seen(inputs) or not inputs.size:
        return
    values = np.asarray(inputs)
    if values.min() < 0 or values.max() > 1:
        raise ValueError(
            f"inputs lie in [{values.min()}, {values.max()}]; they are taken as probabilities "
            "and must be in [0, 1]: scale them"
        )


def _check_latent(params: Params, z: Array, config: Config) -> None:
    """Refuse what `decode` says it raises."""
    dtype = check_model(params, config, Config, init_params)
    check_inputs(z, dtype, config.sizes[-1:])


def _check_sample(params: Params, key: Array, config: Config, n: int) -> None:
    """Refuse what `sample` says it raises."""
    check_model(params, config, Config, init_params)
    check_key("sample: key", key)
    check_integer("sample: n", n, 0)


def _check_batch(params: Params, batch: Batch, config: Config) -> None:
    """Refuse what `loss` says it raises."""
    check_batch(batch, Batch)
    inputs, key = Batch(*batch)
    _check(params, inputs, config)
    check_not_empty("inputs", inputs, "the loss is a mean over them")
    check_batch_key(key)


@door(_check)
def encode(params: Params, inputs: Array, config: Config) -> Latent:
    """Return the distributions that the encoder gives inputs (N, pixels).

    Raises:
        TypeError: the inputs are not floating, or not of the dtype of the parameters; the
            configuration is none of this model's, or the parameters not of its kind, or not all of
            one floating dtype.
        ValueError: the inputs' shape is not (N, pixels); the parameters are of another
            configuration; or (outside jit) a value is not in [0, 1].
    """
    latent, _ = encode_fwd(params, inputs, config)
    return latent


@door(_check_latent)
def decode(params: Params, z: Array, config: Config) -> Array:
    """Return the pixels (N, pixels), in [0, 1], that the decoder makes of z (N, latent dimensions).

    Raises:
        TypeError, ValueError: as `encode`, for z, whose values need only be finite.
    """
    logits, _ = mlp.layers_fwd(params.decoder, z, config.decoder)
    pixels, _ = sigmoid.fwd(logits)
    return pixels


@door(_check_sample)
def sample(params: Params, key: Array, config: Config, n: int) -> Array:
    """Draw `n` images (n, pixels), of latent points from N(0, 1).

    Raises:
        TypeError, ValueError: the key is none of `jax.random`, n no integer of at least 0; the
            parameters are of another model or configuration.
    """
    dtype = params.decoder.layers[0].w.dtype
    return decode(params, jax.random.normal(key, (n, config.sizes[-1]), dtype), config)


@door(_check)
def forward(params: Params, inputs: Array, config: Config) -> Array:
    """Return logits (N, pixels) of the reconstruction through the mean; raises as `encode`."""
    latent, _ = encode_fwd(params, inputs, config)
    logits, _ = mlp.layers_fwd(params.decoder, latent.mean, config.decoder)
    return logits


def encode_fwd(params: Params, inputs: Array, config: Config) -> tuple[Latent, mlp.LayersResiduals]:
    """Run the encoder, and cut its outputs into means and log variances; residuals."""
    outputs, saved = mlp.layers_fwd(params.encoder, inputs, config.encoder)
    return Latent(*jnp.split(outputs, 2, axis=-1)), saved


class LossResiduals(NamedTuple):
    """What both halves saved, the part of z that is noise, and what both terms of the loss saved.

    `noise` is None in evaluation; `reconstruction` the logits and the inputs.
    """

    encoder: mlp.LayersResiduals
    noise: Array | None
    decoder: mlp.LayersResiduals
    reconstruction: tuple[Array, Array]
    kl: Latent


@door(_check_batch)
def loss_fwd(params: Params, batch: Batch, config: Config) -> tuple[Array, LossResiduals]:
    """Return the reconstruction plus beta KL, per example, and residuals; raises as `loss`."""
    inputs, key = Batch(*batch)
    latent, encoder = encode_fwd(params, inputs, config)
    z, noise = latent_sample_fwd(latent, drawn_noise(key, latent))
    logits, decoder = mlp.layers_fwd(params.decoder, z, config.decoder)
    reconstruction, terms = sigmoid_binary_cross_entropy.fwd(logits, inputs, reduction="sum")
    kl, of_kl = latent_kl_fwd(latent)
    total = (reconstruction + in_dtype_of(config.beta, kl) * kl) / len(inputs)
    return total, LossResiduals(encoder, noise, decoder, terms, of_kl)


@door(partial(check_backward, residuals=LossResiduals, kind=Config))
def loss_bwd(saved: LossResiduals, dloss: Array, config: Config) -> Params:
    """Walk back from both terms of the loss.

    The reconstruction's gradient flows back through the decoder and the sample to the latent
    distribution, meets the KL term's there, and goes on through the encoder.
    """
    dreconstruction = dloss / len(saved.kl.mean)
    through_kl = latent_kl_bwd(saved.kl, in_dtype_of(config.beta, saved.kl.mean) * dreconstruction)
    dlogits, *_ = sigmoid_binary_cross_entropy.bwd(
        saved.reconstruction, dreconstruction, reduction="sum"
    )
    ddecoder, dz = mlp.layers_bwd(saved.decoder, dlogits, config.decoder)
    through_z = latent_sample_bwd(saved.noise, dz)
    doutputs = jnp.concatenate(jax.tree.map(jnp.add, through_z, through_kl), axis=-1)
    dencoder, _ = mlp.layers_bwd(saved.encoder, doutputs, config.encoder)
    return Params(dencoder, ddecoder)


@automatic
def loss(params: Params, batch: Batch, config: Config) -> Array:
    """Return the reconstruction plus beta KL in nats per example; without a key, z is the mean.

    Plain JAX throughout: `jax.grad(loss)` is the oracle for `manual_grad`.

    Raises:
        TypeError, ValueError: as `encode`; or there is no example; or the key is none of
            `jax.random`.
    """
    value, _ = loss_fwd(params, batch, config)
    return value


@automatic_gradient
def manual_value_and_grad(params: Params, batch: Batch, config: Config) -> tuple[Array, Params]:
    """Return the loss and its gradient by hand, from one forward pass; raises as `loss`."""
    value, saved = loss_fwd(params, batch, config)
    return value, loss_bwd(saved, jnp.ones_like(value), config)


def manual_grad(params: Params, batch: Batch, config: Config) -> Params:
    """Return the gradient of `loss` by hand: equals `jax.grad(loss)(params, batch, config)`."""
    _, grads = manual_value_and_grad(params, batch, config)
    return grads


@door(partial(check_init, kind=Config, function="example_batch"))
def example_batch(key: Array, config: Config) -> Batch:
    """Draw seven inputs in training for verification, one of them all 0, one all 1."""
    k_inputs, k_noise = jax.random.split(key)
    inputs = jax.random.uniform(k_inputs, (7, config.sizes[0]))
    return Batch(inputs.at[0].set(0.0).at[1].set(1.0), k_noise)


def drawn_noise(key: Array | None, latent: Latent) -> Array | None:
    """Draw standard-normal numbers, one per latent element: sqrt(2) erf^-1(u), u in (-1, 1).

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
