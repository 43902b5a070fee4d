"""Runs over several processes that are killed: one of them or all, at random moments.

    python tests/kill_mesh.py 100

trains by `fit` with the parameters spread over four devices of two processes, into one folder,
saving in the background after every call; kills (SIGKILL) a process or both, waits for what is left
to end, reads the folder, resumes, and so on. What ends must be, bit by bit, what an uninterrupted
run ends with.
"""

import argparse
import contextlib
import multiprocessing
import random
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import conftest  # noqa: F401  (that programs are compiled as in other tests)
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint  # noqa: F401  (that a kill falls into training, and not into this)

from jaxnn import data, mlp, together, train
from jaxnn.train import checkpoints, saving

DEVICES, EPOCHS, STEPS = 4, 6, 3
CONFIG = mlp.Config(sizes=(8, 16, 4))
OPTIMIZER = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.05))
WHOSE: dict[str, Any] = {"model": mlp, "config": CONFIG, "notes": {"seed": 0}}
LONGEST = 200  # seconds in which a process must have done its task, or ended without its other one


def mesh_of(devices=None):
    """A mesh of one axis, along which examples and rows of matrices are spread."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("fsdp",), devices=devices)


def init_state(mesh=None, optimizer=OPTIMIZER):
    """A state on these devices, of every process each its part."""
    return train.init_state(mlp, CONFIG, optimizer, jax.random.key(0), mesh=mesh)


def make_run(mesh, seconds=0.0):
    """A call is an epoch of shuffled batches; it takes so long at least."""
    draw = np.random.default_rng(0)
    inputs = draw.normal(size=(8 * STEPS, 8)).astype(np.float32)
    examples = data.Batch(inputs, np.arange(8 * STEPS, dtype=np.int32) % 4)
    run = train.make_run(mlp, CONFIG, OPTIMIZER, examples, epochs=1, batch_size=8, mesh=mesh)

    def slowly(state):
        time.sleep(seconds)
        return run(state)

    return slowly


def fit_into(folder, mesh, run=None, state=None, **settings):
    """Train into a folder, from a state that is made anew where none is given."""
    settings = {"epochs": EPOCHS, "minimize": "loss", "show": False} | WHOSE | settings
    run = make_run(mesh) if run is None else run
    state = init_state(mesh) if state is None else state
    return train.fit(run, state, folder=folder, **settings)


class Seen(NamedTuple):
    """What a run ended with: parameters, the state's arrays, notes and log."""

    params: list[Any]
    state: list[Any]
    notes: dict[str, Any]
    log: str


def contents(folder, mesh):
    """What is in a run's folder, read onto these devices."""
    loaded = train.load_params(folder / "params.safetensors", mlp)
    state, _ = train.load_state(folder / "state", init_state(mesh), **WHOSE)
    return Seen(
        values(loaded.params), values(state), loaded.notes, (folder / "log.csv").read_text()
    )


def values(tree):
    """The arrays of a tree, their keys as numbers."""
    leaves = [
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in jax.tree.leaves(tree)
    ]
    return [(np.asarray(x).tobytes(), str(x.dtype), x.shape) for x in leaves]


def joined(task, process, processes, port, sender, *arguments):
    """One of several processes: it joins the others, does a task, and says how that ended."""
    jax.config.update("jax_num_cpu_devices", DEVICES // processes)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if processes > 1:
        jax.distributed.initialize(
            f"localhost:{port}",
            processes,
            process,
            heartbeat_timeout_seconds=10,
            shutdown_timeout_seconds=LONGEST,
        )
    try:
        sender.send(task(sender, *arguments))
    except (ValueError, TypeError, KeyboardInterrupt) as error:
        sender.send(error)
    if processes > 1:
        jax.distributed.shutdown()


class Processes:
    """Processes that do a task together: each a fork of one that has imported all there is."""

    def __init__(self):
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["kill_mesh"])

    @contextlib.contextmanager
    def started(self, task, *arguments, processes=2):
        """Begin them; none outlives this."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        both = []
        for i in range(processes):
            ours, theirs = self._context.Pipe(duplex=False)
            work = self._context.Process(
                target=joined, args=(task, i, processes, port, theirs, *arguments)
            )
            work.start()
            theirs.close()
            both.append((work, ours))
        try:
            yield both
        finally:
            for work, _ in both:
                work.kill()
                work.join()

    def done(self, task, *arguments, processes=2):
        """What each returned, or the error that it raised."""
        with self.started(task, *arguments, processes=processes) as both:
            told = [heard(ours) for _, ours in both]
            for work, _ in both:
                work.join(LONGEST)
                assert work.exitcode == 0, work.exitcode
        return told


def heard(ours):
    """What a process says next; an error where it does not in time, or has ended."""
    assert ours.poll(LONGEST), "a process hangs"
    return ours.recv()


def trained(sender, folder, resume):
    """The run that is killed: it says when it begins."""
    saving.PAUSE, saving.LARGE = 0, 0
    mesh = mesh_of()
    run = make_run(mesh, seconds=0.05)
    jax.block_until_ready(run(init_state(mesh)))
    together.first("beginning", lambda: None)
    sender.send("begins")
    return fit_into(folder, mesh, run, resume=resume).status


def kill_at(moments, folder, seed=0, say=lambda words: None):
    """Kill so many times, resume each time, and compare every run that ends; how many did."""
    draw, processes = random.Random(seed), Processes()
    with processes.started(trained, folder / "whole", False) as both:
        assert [heard(ours) for _, ours in both] == ["begins"] * 2
        began = time.monotonic()
        assert [heard(ours) for _, ours in both] == [0] * 2
        longest = time.monotonic() - began
        for work, _ in both:
            work.join(LONGEST)
    expected, place = contents(folder / "whole", mesh_of()), folder / "killed"
    kills = runs = 0
    resume = False
    while kills < moments or resume or not runs:
        with processes.started(trained, place, resume) as both:
            for _, ours in both:
                assert heard(ours) == "begins"
            began = time.monotonic()
            if kills < moments:
                time.sleep(draw.uniform(0, longest))
                victims = draw.choice([[0], [1], [0, 1]])
                for i in victims:
                    both[i][0].kill()
                killed = time.monotonic()
            for work, _ in both:
                work.join(LONGEST)
                assert work.exitcode is not None, "a process waits for one that was killed"
            ended = [work.exitcode for work, _ in both]
        if ended == [0, 0]:
            runs, resume = runs + 1, False
            longest = 0.8 * longest + 0.2 * (time.monotonic() - began)
            assert contents(place, mesh_of()) == expected, f"run {runs} ends otherwise"
            continue
        kills += 1
        step, log = checkpoints.last_step(place / "state"), place / "log.csv"
        moving = (place / ".moving").exists()
        logged = len(log.read_text().splitlines()) - 1 if log.exists() else 0
        assert moving or logged * STEPS <= (step or 0), "more is logged than saved"
        resume = step is not None and not moving
        took = time.monotonic() - killed
        say(f"kill {kills} of {victims}: {ended} after {took:.1f} s, {step} steps saved")
    return runs


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("moments", type=int, nargs="?", default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", DEVICES)
    with tempfile.TemporaryDirectory() as folder:
        runs = kill_at(options.moments, Path(folder), options.seed, print)
    print(f"{options.moments} kills, {runs} runs ended, each as the whole one, bit by bit")


if __name__ == "__main__":
    import kill_mesh  # so that its functions are those of the processes' own

    kill_mesh.main()
    sys.exit()
