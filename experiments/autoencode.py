"""Handwritten digits through two numbers and back, by a variational autoencoder.

    python -m experiments.autoencode                       train; about half a minute
    python -m experiments.autoencode --gradient autodiff   the same curve from jax.grad
    python -m experiments.autoencode --latent 8            a sharper bottleneck, no plane to draw

Verifies the gradient of the very network it is about to train, trains it, and writes loss curve,
reconstructions, samples, the latent plane and parameters to `--out`.
"""

from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from experiments import cli, parameters, pictures
from experiments import fit as fitting
from jaxnn import data, train, verify
from jaxnn.models import autoencoder

# The decoded plane spans so many standard deviations of the latent distribution N(0, 1).
REACH = 2.5


def main(
    seed: int = 0,
    epochs: int = 100,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    hidden: tuple[int, ...] = (256,),
    latent: int = 2,
    activation: Literal["relu", "sigmoid", "tanh"] = "relu",
    beta: float = 1.0,
    gradient: train.Gradient = "manual",
    out: Path = Path("out/autoencode"),
) -> int:
    """Train a variational autoencoder of handwritten digits with its hand-written gradient.

    Args:
        seed: Of the held-out fifth, the initial parameters, the order of the batches, the noise.
        epochs: Passes over the training data.
        batch_size: Examples per step.
        learning_rate: Adam's, decayed to 0 by a cosine.
        hidden: Widths of the encoder's hidden layers; the decoder's are the reverse.
        latent: Numbers that an image is squeezed into.
        activation: After every hidden layer.
        beta: Weight of the KL term.
        gradient: By hand, or by jax.grad.
        out: Folder for pictures and parameters.
    """
    cli.check_positive(
        epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, latent=latent
    )
    split = data.digits(seed)
    config = autoencoder.Config(
        sizes=(split.train.inputs.shape[1], *hidden, latent), activation=activation, beta=beta
    )
    k_state, k_held_out, k_samples = jax.random.split(jax.random.key(seed), 3)

    def evaluate(params: autoencoder.Params) -> jax.Array:
        batch = autoencoder.Batch(split.held_out.inputs, k_held_out)
        return autoencoder.loss(params, batch, config)

    calls, per_call = fitting.split(epochs, at_once=5)
    steps = epochs * max(len(split.train.inputs) // batch_size, 1)
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    run = train.make_run(
        autoencoder,
        config,
        optimizer,
        autoencoder.Batch(split.train.inputs),
        epochs=per_call,
        batch_size=batch_size,
        gradient=gradient,
        evaluate=evaluate,
    )
    state = train.init_state(autoencoder, config, optimizer, k_state)
    folder = cli.folder(out, "params.safetensors")
    print(config)

    first = autoencoder.Batch(split.train.inputs[:64], state.key)
    report = verify.gradient(autoencoder.loss, autoencoder.manual_grad, state.params, first, config)
    print(f"\n{report}\n")
    if report.status == "fail":  # a kink under the data is no reason not to train
        return 1

    result = fitting.fit(run, state, calls)
    params, history = result.params, result.history
    parameters.save(folder / "params.safetensors", params, config, seed)
    print(f"wrote {folder / 'params.safetensors'}")
    pictures.loss(folder / "loss.png", history.loss, "epoch", held_out=history.metrics)
    shown = split.held_out.inputs[:16]
    rebuilt = autoencoder.decode(params, autoencoder.encode(params, shown, config).mean, config)
    pictures.rebuilt(
        folder / "reconstructions.png",
        shown,
        rebuilt,
        f"Digits squeezed into {latent} number{'s' * (latent > 1)}, and rebuilt",
    )
    samples = autoencoder.sample(params, k_samples, config, 64)
    pictures.images(folder / "samples.png", samples.reshape(4, 16, -1), "Drawn, not written")
    if latent == 2:
        axis = jnp.linspace(-REACH, REACH, 15)
        plane = jnp.stack(jnp.meshgrid(axis, -axis), -1)
        decoded = autoencoder.decode(params, plane.reshape(-1, 2), config).reshape(15, 15, -1)
        means = autoencoder.encode(params, split.held_out.inputs, config).mean
        pictures.latent_plane(folder / "plane.png", means, split.held_out.targets, decoded, REACH)
    print(
        f"held-out loss {history.metrics[-1]:.3f} nats per image after {len(history.loss)} epochs, "
        f"training loss {history.loss[-1]:.3f}, "
        f"{result.seconds:.1f} s with gradient {gradient!r}, compilation included"
    )
    return result.status


if __name__ == "__main__":
    cli.run(main)
