"""Runs that are killed: a small model is trained in a process that is killed at random moments.

    python tests/faults.py --moments 100

trains by `fit` into a folder, kills the process (SIGKILL), looks at every file in the folder,
resumes, and so on. What ends must be, bit by bit, what an uninterrupted run ends with. Each run
moves an older one away first, and saving takes most of the time: many kills fall into both.
"""

import argparse
import contextlib
import csv
import functools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint  # noqa: F401  (that a kill falls into training, and not into this)

from jaxnn import train
from jaxnn.ops.activations import dropout
from jaxnn.train import checkpoints, saving

EPOCHS = 6
FEATURES = 3


@dataclass(frozen=True)
class Config:
    """Of the small model: how much of the features is dropped."""

    rate: float = 0.25
    features: int = FEATURES


class Params(NamedTuple):
    w: Any
    b: Any


class Batch(NamedTuple):
    inputs: Any
    targets: Any
    key: Any = None


def init_params(key, config):
    return Params(jax.random.normal(key, (config.features,)), jnp.zeros(()))


def loss(params, batch, config):
    x = batch.inputs
    if batch.key is not None:
        x = dropout(x, batch.key, rate=config.rate)
    return jnp.mean((x @ params.w + params.b - batch.targets) ** 2)


MODEL = sys.modules[__name__]
CONFIG = Config()
OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(0.5), optax.adam(optax.cosine_decay_schedule(0.4, 10 * EPOCHS))
)


def examples(n=10, seed=0):
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, FEATURES)).astype(np.float32)
    return Batch(x, (x @ np.array([-1.0, 1.0, 2.0]) + 0.1).astype(np.float32))


HELD_OUT = examples(6, seed=1)


def evaluate(params):
    return {"loss": loss(params, HELD_OUT, CONFIG)}


def make_run(epochs=1, optimizer=OPTIMIZER):
    """Shuffled, with dropout, a schedule and clipping."""
    return train.make_run(
        MODEL,
        CONFIG,
        optimizer,
        examples(),
        epochs=epochs,
        batch_size=2,
        gradient="autodiff",
        evaluate=evaluate,
    )


def init_state(optimizer=OPTIMIZER, seed=0):
    return train.init_state(MODEL, CONFIG, optimizer, jax.random.key(seed))


# After every call, though here it takes longer than the call: to be killed in the middle of it.
saving.PAUSE = 0


def fit_into(folder, run=None, state=None, **settings):
    settings = {
        "epochs": EPOCHS,
        "minimize": "loss",
        "notes": {"seed": 0},
        "show": False,
    } | settings
    return train.fit(
        make_run() if run is None else run,
        init_state() if state is None else state,
        folder=folder,
        model=MODEL,
        config=CONFIG,
        **settings,
    )


class Seen(NamedTuple):
    """What is in a run's folder."""

    logged: int
    saved: int
    state: Any


def look(folder):
    """Read every file of a run, after any kill: how many epochs are logged, and saved."""
    logged = saved = 0
    state = None
    if (folder / "log.csv").exists():
        rows = list(csv.DictReader((folder / "log.csv").read_text().splitlines()))
        assert [int(row["epoch"]) for row in rows] == list(range(1, len(rows) + 1))
        assert all(np.isfinite(float(value)) for row in rows for value in row.values())
        logged = len(rows)
    if (folder / "params.safetensors").exists():
        loaded = train.load_params(folder / "params.safetensors", MODEL)
        assert loaded.notes["seed"] == 0
    if checkpoints.last_step(folder / "state") is not None:
        state, about = train.load_state(
            folder / "state", init_state(), model=MODEL, config=CONFIG, notes={"seed": 0}
        )
        saved = about.ends[-1]
        assert len(about.history["loss"]) == saved
    return Seen(logged, saved, state)


@functools.cache
def trajectory():
    """The run that is killed, without `fit`: its parameters and loss after each epoch."""
    run, state, epochs = make_run(), init_state(), []
    for _ in range(EPOCHS):
        state, history = run(state)
        epochs.append((state.params, float(history.loss[0])))
    return epochs


def check_best(folder, saved):
    """Whether the parameters are those after the epoch they name: the best, or that before it."""
    loaded = train.load_params(folder / "params.safetensors", MODEL)
    best, losses = loaded.notes["best"], [loss for _, loss in trajectory()]
    # They are written after the state: a kill between the two leaves those of a call before.
    assert best["epoch"] in {1 + int(np.argmin(losses[:i])) for i in (saved, saved - 1) if i}
    params, loss = trajectory()[best["epoch"] - 1]
    assert best["loss"] == loss
    for ours, theirs in zip(loaded.params, params, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def contents(folder):
    """What a run ended with: the best parameters, the log, and the last state, bit by bit."""
    loaded = train.load_params(folder / "params.safetensors", MODEL)
    trees = loaded.params, bits(look(folder).state)
    leaves = [np.asarray(x).tobytes() for x in jax.tree.leaves(trees)]
    return leaves, loaded.notes, (folder / "log.csv").read_text()


def bits(state):
    return state._replace(key=jax.random.key_data(state.key))


class Processes:
    """Processes that train: each a fork of one that has imported all there is to import."""

    def __init__(self):
        self.server = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.communicate()

    def start(self, folder, resume):
        """Begin one; a handle that is of no other process, even when it has ended."""
        self.server.stdin.write(json.dumps([str(folder), resume]) + "\n")
        self.server.stdin.flush()
        return os.pidfd_open(int(self.line()))

    def line(self):
        return self.server.stdout.readline().strip()


def serve():
    """Fork a process for each line of a folder, and say how it ended."""
    for line in sys.stdin:
        folder, resume = json.loads(line)
        number = os.fork()
        if number == 0:
            run, state = make_run(), init_state()
            jax.block_until_ready(run(state))
            print("begins", flush=True)
            os._exit(fit_into(folder, run, state, resume=resume).status)
        print(number, flush=True)
        _, status = os.waitpid(number, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def kill_at(moments, folder, expected, seed=0, say=lambda words: None):
    """Kill so many times, resume each time, and compare every run that ends; how many did."""
    draw = random.Random(seed)
    place = folder / "killed"
    kills = runs = 0
    resume, before, longest = False, Seen(0, 0, None), 3.0
    with Processes() as processes:
        while kills < moments or resume or not runs:
            process = processes.start(place, resume)
            begun = processes.line()
            began = time.monotonic()
            if begun == "begins":
                if kills < moments:
                    time.sleep(draw.uniform(0, longest))
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(process, signal.SIGKILL)
                ended = int(processes.line())
            else:
                ended = int(begun)
            os.close(process)
            if ended == 0:
                runs += 1
                longest = 0.8 * longest + 0.2 * (time.monotonic() - began)
                assert contents(place) == expected, f"run {runs} ends otherwise than the whole one"
                resume, before = False, Seen(0, 0, None)
                continue
            assert ended == -signal.SIGKILL, ended
            kills += 1
            seen = look(place)
            moving = (place / ".moving").exists()
            if not moving and (place / "params.safetensors").exists():
                check_best(place, seen.saved)
            if not moving and (place / "previous").exists():
                assert contents(place / "previous") == expected, "a run that ended is not previous"
            if resume:
                assert seen.saved >= max(before.saved, before.logged), (before, seen)
            # What the log reports is saved, but while both are moved away one by one.
            assert seen.saved >= seen.logged or moving, seen
            say(f"kill {kills}: {seen.saved} saved, {seen.logged} logged{', moving' * moving}")
            # A run that ended may be moved away, or resumed: both ways must go well.
            ended = seen.logged == EPOCHS and draw.random() < 0.5
            goes_on = seen.saved > 0 and not ended
            resume, before = goes_on and not moving, seen
    return runs


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", action="store_true", help="for itself")
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    with tempfile.TemporaryDirectory() as folder:
        fit_into(Path(folder) / "whole")
        expected = contents(Path(folder) / "whole")
        runs = kill_at(options.moments, Path(folder), expected, options.seed, print)
    print(f"{options.moments} kills, {runs} runs ended, each as the whole one, bit by bit")


if __name__ == "__main__":
    main()
