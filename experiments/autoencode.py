"""Handwritten digits through two numbers and back, by a variational autoencoder.

    python -m experiments.autoencode                       train; about half a minute
    python -m experiments.autoencode --gradient autodiff   the same curve from jax.grad
    python -m experiments.autoencode --latent 8            a sharper bottleneck, no plane to draw
    python -m experiments.autoencode --resume out/autoencode   go on with a run that was stopped

Verifies the gradient of the very network it is about to train, trains it, and writes to `--out` the
parameters of the epoch with the lowest held-out loss, what `--resume` needs, a log, loss curve,
reconstructions, samples and the latent plane.
"""

from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from experiments import cli, pictures, recall
from jaxnn import data, train
from jaxnn.models import autoencoder

# The decoded plane spans so many standard deviations of the latent distribution N(0, 1).
REACH = 2.5


@recall.recalls(resume=())
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
    verify: bool = True,
    resume: Path | None = None,
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
        verify: Prove the gradient before training with it; a run that goes on was proven before.
        resume: The folder of a run that was stopped: go on with it, with the options that it has,
            to where it would have ended; if it has ended, draw its pictures again.
        out: Folder for parameters, log and pictures. A run that it has moves to "previous" in it.
    """
    cli.check_positive(
        epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, latent=latent
    )
    options = dict(locals())
    split = data.digits(seed)
    config = autoencoder.Config(
        sizes=(split.train.inputs.shape[1], *hidden, latent), activation=activation, beta=beta
    )
    k_state, k_held_out, k_samples = jax.random.split(jax.random.key(seed), 3)

    def evaluate(params: autoencoder.Params) -> dict[str, jax.Array]:
        batch = autoencoder.Batch(split.held_out.inputs, k_held_out)
        return {"loss": autoencoder.loss(params, batch, config)}

    steps = cli.steps_in(epochs, len(split.train.inputs), batch_size)
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    run = train.make_run(
        autoencoder,
        config,
        optimizer,
        autoencoder.Batch(split.train.inputs),
        epochs=1,
        batch_size=batch_size,
        gradient=gradient,
        evaluate=evaluate,
    )
    state = train.init_state(autoencoder, config, optimizer, k_state)
    with cli.run_folder(out) as folder:
        print(config)
        first = autoencoder.Batch(split.train.inputs[:64], state.key)
        if verify and not cli.holds(autoencoder, state.params, first, config):
            return 1
        result = train.fit(
            run,
            state,
            epochs=epochs,
            minimize="val_loss",
            folder=folder,
            model=autoencoder,
            config=config,
            notes=recall.notes(main, options, split, seed=seed),
            resume=resume is not None,
            also=cli.DRAWN,
        )
        if not result.best_epoch:
            return result.status
        history = result.history
        pictures.loss(
            folder / "loss.png", history.loss, "epoch", history.metrics["loss"], result.best_epoch
        )
        _draw(folder, result.params, config, split.held_out, k_samples)
    held_out = history.metrics["loss"]
    print(
        f"held-out loss {held_out[result.best_epoch - 1]:.3f} nats per image by the parameters "
        f"saved, those of epoch {result.best_epoch}, the best of {len(held_out)}; "
        f"{held_out[-1]:.3f} after the last\n"
        f"training loss {history.loss[-1]:.3f} at the end, "
        f"{cli.took(result, gradient, resume)}"
    )
    return result.status


def _draw(
    folder: Path,
    params: autoencoder.Params,
    config: autoencoder.Config,
    held_out: data.Batch,
    key: jax.Array,
) -> None:
    """What the network makes of held-out digits, and of numbers it was never given."""
    shown = held_out.inputs[:16]
    rebuilt = autoencoder.decode(params, autoencoder.encode(params, shown, config).mean, config)
    latent = config.sizes[-1]
    pictures.rebuilt(
        folder / "reconstructions.png",
        shown,
        rebuilt,
        f"Digits squeezed into {latent} number{'s' * (latent > 1)}, and rebuilt",
    )
    samples = autoencoder.sample(params, key, config, 64)
    pictures.images(folder / "samples.png", samples.reshape(4, 16, -1), "Drawn, not written")
    if config.sizes[-1] == 2:
        axis = jnp.linspace(-REACH, REACH, 15)
        plane = jnp.stack(jnp.meshgrid(axis, -axis), -1)
        decoded = autoencoder.decode(params, plane.reshape(-1, 2), config).reshape(15, 15, -1)
        means = autoencoder.encode(params, held_out.inputs, config).mean
        pictures.latent_plane(folder / "plane.png", means, held_out.targets, decoded, REACH)


if __name__ == "__main__":
    cli.run(main)
