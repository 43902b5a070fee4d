"""One of several processes that train, disagree, are interrupted and fail together.

    processes_together.py FOLDER

JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say which.
"""

import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np
import optax
from jax.experimental.multihost_utils import process_allgather

from jaxnn import loaders, mesh, processes, train
from jaxnn.models import transformer

CONFIG = transformer.gpt2(layers=2, width=8, heads=2, vocabulary=11, positions=8)
TOKENS = np.random.default_rng(0).integers(0, 11, 300).astype(np.uint16)
OPTIMIZER = optax.adam(1e-2)


def begin():
    return train.init_state(transformer, CONFIG, OPTIMIZER, jax.random.key(0))


def batches(layout=None):
    return loaders.windows(TOKENS, 8, 4, seed=1, layout=layout)


def run_on(layout, state):
    """An epoch of one step on a mesh."""
    gradient = mesh.value_and_grad(transformer, layout)
    source = batches(layout)

    @jax.jit
    def step(state, batch):
        loss, grads = gradient(state.params, batch)
        updates, opt_state = OPTIMIZER.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return train.State(params, opt_state, state.step + 1, state.key), loss

    def run(state):
        state, loss = step(state, next(source))
        return state, train.History(loss[None], None)

    return run


def begin_on(layout):
    shapes = jax.eval_shape(begin)
    rest = jax.sharding.NamedSharding(layout.mesh, jax.sharding.PartitionSpec())
    moments = mesh.optimizer_shardings(layout, shapes.opt_state)
    return jax.jit(begin, out_shardings=train.State(mesh.shardings(layout), moments, rest, rest))()


def main(folder):
    jax.config.update("jax_num_cpu_devices", 1)
    jax.config.update("jax_enable_x64", True)
    processes.start(timeout=100)
    me, of = jax.process_index(), jax.process_count()
    layout = mesh.lay_out(transformer, CONFIG, jax.make_mesh((2, of // 2), ("data", "model")))
    state = begin_on(layout)
    run = run_on(layout, state)

    def interrupted(row, state):
        if row["epoch"] == 3 and me == of - 1:
            os.kill(os.getpid(), signal.SIGINT)

    fitted = train.fit(run, state, epochs=50, callbacks=[interrupted])
    params = process_allgather(fitted.state.params, tiled=True)
    if processes.is_first():
        np.savez(folder / "params.npz", *jax.tree.leaves(params))
    print("fit", fitted.ended, fitted.status, len(fitted.history.loss), flush=True)
    try:
        train.fit(run, state, epochs=50 + (me == 1), patience=3)
    except ValueError as error:
        print("refused", error, flush=True)
    try:
        batch = next(batches())
        key = mesh.place(layout, batch._replace(key=jax.random.key(7))).key
        print("key", jax.random.key_data(key), flush=True)
        mesh.place(layout, batch._replace(inputs=batch.inputs + me))
    except ValueError as error:
        print("refused", error, flush=True)
    if me == 1:
        raise RuntimeError("what nobody expected")
    run(state)  # waits for process 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
