"""A language model over characters, trained with its hand-written gradient, that writes.

    python -m experiments.text                       an LSTM on Python's own documentation
    python -m experiments.text --model gpt           or rnn, gru, llama
    python -m experiments.text --file FILE           any text in UTF-8
    python -m experiments.text --gradient autodiff   the same curve from jax.grad
    python -m experiments.text --resume out/text     go on with a run that was stopped
    python -m experiments.text --sample out/text/params.safetensors --prompt "The "

Verifies the gradient of the very network it is about to train, trains it on random windows of the
text but its last tenth, reports the bits per character of that tenth, and writes to `--out` the
parameters that had the fewest, what `--resume` needs, a log, curves and a sample.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
from jax import Array, lax

from experiments import cli, meshes, pictures, recall
from jaxnn import files, text, train
from jaxnn.data import KeyedBatch, Split
from jaxnn.models import generate, rnn, transformer
from jaxnn.models.transformer import gpt2, llama
from jaxnn.train import parameters

Model = Literal["lstm", "gru", "rnn", "gpt", "llama"]
# Layers and width of each model, unless others are asked for.
SIZES = {"lstm": (1, 256), "gru": (1, 256), "rnn": (1, 256), "gpt": (4, 128), "llama": (4, 128)}
# More windows of a long text would take longer to evaluate than to learn from.
WINDOWS = 512
# What says how to write, not how to train.
WRITING = ("prompt", "length", "temperature")


@recall.recalls(resume=("file", *WRITING), sample=("file", "seed", *WRITING))
def main(
    model: Model = "lstm",
    file: Path | None = None,
    seed: int = 0,
    steps: int = 1000,
    steps_per_epoch: int = 50,
    batch_size: int = 32,
    sequence: int = 128,
    layers: int | None = None,
    width: int | None = None,
    embedding: int = 64,
    heads: int = 4,
    dropout: float = 0.0,
    learning_rate: float = 3e-3,
    gradient: train.Gradient = "manual",
    prompt: str | None = None,
    length: int = 500,
    temperature: float = 0.7,
    verify: bool = True,
    resume: Path | None = None,
    sample: Path | None = None,
    mesh: str | None = None,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    out: Path = Path("out/text"),
) -> int:
    """Train a language model over characters with its hand-written gradient, or let one write.

    Args:
        model: The recurrent cell, or the kind of transformer.
        file: A text in UTF-8, to use instead of Python's documentation.
        seed: Of the initial parameters, the windows, dropout and the sample.
        steps: Of the optimizer, in all; a multiple of --steps-per-epoch where there are more.
        steps_per_epoch: After so many the held-out text is evaluated.
        batch_size: Windows per step.
        sequence: Characters in a window.
        layers: How many; by default 1, or 4 in a transformer.
        width: Units of a recurrent layer, or features of a transformer; by default 256 or 128.
        embedding: Of a recurrent model: features of a character.
        heads: Of a transformer: attention heads.
        dropout: Share of the features dropped in training.
        learning_rate: Adam's highest: it rises over the first tenth of the steps and then falls
            to 0 as a cosine.
        gradient: By hand, or by jax.grad.
        prompt: What the sample begins with; by default, the beginning of the held-out text, with
            --sample that of training.
        length: Characters to write; a transformer stops when it has no position left.
        temperature: Of the sample: below 1 likely characters become likelier, at 0 only the
            likeliest is written.
        verify: Prove the gradient before training with it; a run that goes on was proven before.
        resume: The folder of a run that was stopped: go on with it, with the options that it has,
            to where it would have ended; if it has ended, write and draw again.
        sample: A saved parameter file: write with it instead of training, with its own characters
            and options; --file is not read.
        mesh: Axes and sizes of a mesh of devices, as data=2,model=2: data splits the batch, fsdp
            the batch and the parameters, model the heads, hidden units and characters, sequence
            the windows.
        coordinator: Of several processes, the address and port of process 0; what is left out of
            these three comes from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or
            from SLURM, Open MPI, Kubernetes or a TPU pod.
        processes: How many there are.
        process: Which this one is, from 0.
        out: Folder for parameters, log, picture and sample. A run that it has moves to "previous"
            in it.
    """
    default_layers, default_width = SIZES[model]
    layers = default_layers if layers is None else layers
    width = default_width if width is None else width
    cli.check_positive(
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        batch_size=batch_size,
        sequence=sequence,
        learning_rate=learning_rate,
        length=length,
        layers=layers,
        width=width,
        embedding=embedding,
        heads=heads,
    )
    if not 0 <= temperature < math.inf:
        raise ValueError(f"--temperature is {temperature}; it must be finite and at least 0")
    per_epoch = min(steps, steps_per_epoch)
    if steps % per_epoch:
        raise ValueError(
            f"--steps is {steps}, --steps-per-epoch {per_epoch}; the steps must be whole epochs: "
            f"take {steps - steps % per_epoch} steps, or {math.gcd(steps, per_epoch)} per epoch"
        )
    options = dict(locals())
    axes = meshes.sizes(mesh) if mesh else {}
    if sample:
        params, net, config, notes = train.load_params(sample)
        characters = notes["vocabulary"]
        begin = _beginning(prompt, notes["beginning"], characters, config)
        print(_written(net, params, config, begin, characters, length, temperature, seed))
        return 0

    page = text.read_text(file) if file else text.documentation()
    characters = text.vocabulary(page)
    split = text.split(text.encode(page, characters), sequence)
    if batch_size > (windows := len(split.train) - sequence):
        raise ValueError(
            f"--batch-size is {batch_size}; the text has {windows} windows to learn from: take as "
            "many, or fewer"
        )
    beginning = text.decode(split.held_out[: min(16, max(sequence // 2, 1))], characters)
    net, config = _network(
        model,
        layers=layers,
        width=width,
        vocabulary=len(characters),
        sequence=sequence,
        embedding=embedding,
        heads=heads,
        dropout=dropout,
    )
    begin = _beginning(prompt, beginning, characters, config)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.warmup_cosine_decay_schedule(0.0, learning_rate, steps // 10, steps)),
    )
    key = jax.random.key(seed)
    devices = meshes.make(axes) if axes else None
    state = train.init_state(net, config, optimizer, key, mesh=devices)
    step = train.make_step(net, config, optimizer, gradient, mesh=devices)
    laid = jax.tree.map(lambda leaf: leaf.sharding, state) if axes else None
    run = _make_epoch(net, config, step, split, per_epoch, batch_size, sequence, laid)
    with cli.run_folder(out) as folder:
        print(
            f"{len(split.train)} characters to learn, {len(split.held_out)} held out, "
            f"{len(characters)} different"
        )
        print(config)
        few = text.random_windows(key, split.train, 4, min(sequence, 16))
        if dropout:
            few = few._replace(key=key)  # as in training
        if verify and not cli.holds(net, net.init_params(key, config), few, config):
            return 1
        result = train.fit(
            run,
            state,
            epochs=steps // per_epoch,
            minimize="val_loss",
            folder=folder,
            model=net,
            config=config,
            notes=recall.notes(
                main, options, split, seed=seed, vocabulary=characters, beginning=beginning
            ),
            resume=resume is not None,
            also=cli.DRAWN,
        )
        params = parameters.gathered(result.params)
        if not result.best_epoch or params is None:  # process 0 writes for all
            return result.status
        training, held_out = (
            nats / math.log(2) for nats in (result.history.loss, result.history.metrics["loss"])
        )
        taken = per_epoch * np.arange(1, len(training) + 1)
        pictures.bits(folder / "curves.png", taken, training, held_out, result.best_epoch)
        written = _written(net, params, config, begin, characters, length, temperature, seed)
        with files.replaced(folder / "sample.txt") as file:
            file.write_text(written, encoding="utf-8")
        print(f"wrote {folder / 'sample.txt'}\n\n{written}\n")
    best = result.best_epoch - 1
    print(
        f"held-out bits per character {held_out[best]:.3f} after "
        f"{files.counted(taken[best], 'step')}, the best of "
        f"{taken[-1]} and those saved; {held_out[-1]:.3f} after the last\n"
        f"training {training[-1]:.3f} at the end, "
        f"{cli.took(result, gradient, resume)}"
    )
    return result.status


def _beginning(prompt: str | None, default: str, characters: str, config: Any) -> Array:
    """The tokens that a sample begins with, some, and fewer than a transformer has positions."""
    begin = text.encode(default if prompt is None else prompt, characters)
    positions = getattr(config, "positions", None)
    if not len(begin) or (positions and len(begin) >= positions):
        most = f", and fewer than --sequence, {positions}" if positions else ""
        raise ValueError(
            f"{'what the sample begins with' if prompt is None else '--prompt'} has {len(begin)} "
            f"characters; it must have at least 1{most}: take another --prompt"
        )
    return begin


def _written(
    net: Any,
    params: Any,
    config: Any,
    begin: Array,
    characters: str,
    length: int,
    temperature: float,
    seed: int,
) -> str:
    """What a network writes after its beginning, until a transformer has no position left."""
    write = rnn.generate if net is rnn else generate.generate
    if net is transformer:
        length = min(length, config.positions - len(begin))
    tokens = write(
        params, begin[None], config, jax.random.key(seed), length=length, temperature=temperature
    )
    return text.decode(tokens[0], characters)


def _network(
    model: Model,
    *,
    layers: int,
    width: int,
    vocabulary: int,
    sequence: int,
    embedding: int,
    heads: int,
    dropout: float,
) -> tuple[Any, Any]:
    """The module of the model and its configuration."""
    if model in ("gpt", "llama"):
        kind: Callable[..., Any] = gpt2 if model == "gpt" else partial(llama, kv_heads=1)
        config: Any = kind(
            vocabulary=vocabulary,
            positions=sequence,
            layers=layers,
            width=width,
            heads=heads,
            dropout=dropout,
        )
        return transformer, config
    config = rnn.Config(
        vocabulary=vocabulary,
        width=embedding,
        hidden=width,
        layers=layers,
        cell=model,
        dropout=dropout,
    )
    return rnn, config


def _make_epoch(
    net: Any,
    config: Any,
    step: Callable[[train.State, Any], tuple[train.State, Array]],
    split: Split[Array],
    steps: int,
    batch_size: int,
    sequence: int,
    laid: train.State | None = None,
) -> Callable[[train.State], tuple[train.State, train.History]]:
    """So many steps, each on new random windows, then the held-out loss: one compiled program.

    The state that it returns is laid out over the devices as `laid` says.
    """
    held_out = text.all_windows(split.held_out, sequence)
    held_out = jax.tree.map(lambda x: x[:: -(-len(x) // WINDOWS)], held_out)

    @partial(jax.jit, out_shardings=(laid, None))
    def epoch(
        state: train.State, tokens: Array, held_out: KeyedBatch
    ) -> tuple[train.State, train.History]:
        def one(state: train.State, _: None) -> tuple[train.State, Array]:
            key, k_windows = jax.random.split(state.key)
            batch = text.random_windows(k_windows, tokens, batch_size, sequence)
            return step(state._replace(key=key), batch)

        def loss(window: KeyedBatch) -> Array:
            value: Array = net.loss(state.params, jax.tree.map(lambda x: x[None], window), config)
            return value

        state, losses = lax.scan(one, state, length=steps)
        evaluated = lax.map(loss, held_out, batch_size=batch_size)
        return state, train.History(losses.mean()[None], {"loss": evaluated.mean()[None]})

    # As NumPy's, which every process has, they go to all devices.
    tokens, held_out = jax.tree.map(np.asarray, (split.train, held_out))
    return partial(epoch, tokens=tokens, held_out=held_out)


if __name__ == "__main__":
    cli.run(main)
