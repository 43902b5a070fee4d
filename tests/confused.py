"""Arguments confused: every argument of a public function given what belongs elsewhere.

    python tests/confused.py

makes every call and prints those that end in an error from inside JAX or Python. `fuzz.py` makes
one number, setting or field of an argument wrong; here a whole argument is of another kind.
"""

import atexit
import itertools
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import fuzz
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnn import data, text, train
from jaxnn.models import autoencoder, cnn, generate, mlp, rnn, sampling, transformer


class Tensor:
    """What another library's tensor looks like from here."""

    shape, dtype, ndim = (6, 3), "float32", 2

    def __len__(self):
        return 6


class Frame(Tensor):
    """What a table of another library looks like from here: it can be made an array of words."""

    dtype = np.dtype("float32")

    def __array__(self, dtype=None, copy=None):
        return np.array([["a", 1.0]], dtype=object)


class Pair(NamedTuple):
    """A NamedTuple that is none of the library's."""

    first: object
    second: object


MLP = mlp.Config(sizes=(3, 4, 2))
OPTIMIZER = optax.adam(1e-2)
PARAMS = mlp.init_params(jax.random.key(0), MLP)
X = np.random.default_rng(0).normal(size=(6, 3))
LABELS = np.arange(6) % 2
BATCH = mlp.Batch(jnp.asarray(X), jnp.asarray(LABELS))
STATE = train.init_state(mlp, MLP, OPTIMIZER, jax.random.key(0))
FOLDER = tempfile.mkdtemp()
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
MODELS = ("mlp", "cnn", "rnn", "autoencoder", "transformer", "generate")
# What a person has at hand when an argument is to be filled in.
KINDS = {
    "nothing": None,
    "text": "adam",
    "number": 0.5,
    "whole number as float": 2.0,
    "integer": 3,
    "negative": -1,
    "flag": True,
    "key": jax.random.key(0),
    "list": [0.1, 0.2],
    "list of lists": X.tolist(),
    "lists in a tuple": (X.tolist(), LABELS.tolist()),
    "words": np.array(["a", "b"]),
    "objects": np.array([None, 1.0], dtype=object),
    "masked": np.ma.masked_array(X, X > 0),
    "float128": X.astype(np.longdouble),
    "beyond float32": np.full((6, 3), 1e300),
    "beyond int32": (X, LABELS + 2**40),
    "tensor": Tensor(),
    "tensors": (Tensor(), Tensor()),
    "frame": Frame(),
    "frame and labels": (Frame(), LABELS),
    "generator": (x for x in ()),
    "set": {1, 2},
    "dict": {"x": X, "y": LABELS},
    "inputs alone": X,
    "labels alone": LABELS,
    "labels and inputs": (LABELS, X),
    "NamedTuple": Pair(X, LABELS),
    "class": mlp.Config,
    "config": MLP,
    "config of another model": rnn.EXAMPLE_CONFIGS[0],
    "module": mlp,
    "another module": np,
    "params": PARAMS,
    "batch": BATCH,
    "state": STATE,
    "class of states": train.State,
    "state and loss": (STATE, 0.5),
    "optimizer": OPTIMIZER,
    "maker of optimizers": optax.sgd,
    "another optimizer's state": STATE._replace(opt_state=optax.sgd(0.1, 0.9).init(PARAMS)),
    "state with a number for a key": STATE._replace(key=0),
    "state without params": STATE._replace(params=None),
    "function of none": lambda: 0.0,
    "function of two": lambda params, batch: 0.0,
    "function that returns arrays": lambda params: jnp.ones(3),
    "function that returns words": lambda params: "good",
    "function that returns nothing": lambda params: None,
    "function that looks": lambda params: float(jax.tree.leaves(params)[0].sum()),
    "function to NumPy": lambda params: np.asarray(jax.tree.leaves(params)[0]).sum(),
}


def functions():
    """Every public function, with arguments that it takes: (name, function, arguments)."""
    make = {"model": mlp, "config": MLP, "optimizer": OPTIMIZER}
    yield "train.init_state", train.init_state, {**make, "key": jax.random.key(0)}
    yield "train.make_step", train.make_step, {**make, "gradient": "manual", "augment": None}
    step = train.make_step(*make.values())
    yield "train.step", step, {"state": STATE, "batch": BATCH}
    whole = {"data": BATCH, "epochs": 1, "batch_size": 2, "gradient": "manual"}
    whole |= {"evaluate": None, "augment": None}
    yield "train.make_run", train.make_run, {**make, **whole}
    run = train.make_run(*make.values(), BATCH, epochs=1, batch_size=2)
    yield "train.run", run, {"state": STATE}
    epoch = train.make_epoch(*make.values(), [BATCH])
    steps = {"batches": [BATCH], "steps": None, "gradient": "manual"}
    steps |= {"evaluate": None, "augment": None}
    yield "train.make_epoch", train.make_epoch, {**make, **steps}
    yield "train.epoch", epoch, {"state": STATE}
    fitted = {"run": run, "state": STATE, "epochs": 1, "minimize": None, "maximize": None}
    fitted |= {"patience": None, "folder": None, "model": None, "config": None, "notes": None}
    fitted |= {"resume": False, "also": (), "callbacks": (), "tensorboard": False, "show": False}
    yield "train.fit", train.fit, fitted
    yield "train.in_parts", train.in_parts, {"function": lambda x: x, "batch": BATCH, "size": 2}
    whose = {"model": mlp, "config": MLP}
    path = Path(FOLDER) / "params.safetensors"
    if not path.exists():
        train.save_params(path, PARAMS, **whose)
        train.save_state(FOLDER, STATE, **whose)
    yield "train.load_params", train.load_params, {"path": path, **whose}
    yield "train.read_about", train.read_about, {"path": path}
    saved = {"folder": FOLDER, "like": STATE, **whose}
    yield "train.load_state", train.load_state, saved
    order = {"key": jax.random.key(0), "n": 6, "batch_size": 2}
    yield "train.epoch_order", train.epoch_order, order
    yield "data.usable_batch", data.usable_batch, {"inputs": X, "targets": LABELS}
    yield "data.square", data.square, {"n": 5, "seed": 0}
    yield "data.two_moons", data.two_moons, {"n": 6, "noise": 0.1, "seed": 0}
    yield "data.digits", data.digits, {"seed": 0, "held_out": 0.2}
    yield "data.mnist", data.mnist, {"folder": "absent"}
    yield "data.read_idx", data.read_idx, {"path": "absent"}
    tokens = jnp.arange(30) % 5
    yield "text.read_text", text.read_text, {"path": __file__}
    yield "text.vocabulary", text.vocabulary, {"text": "abc"}
    yield "text.encode", text.encode, {"text": "abc", "characters": "abc"}
    yield "text.decode", text.decode, {"tokens": jnp.arange(3), "characters": "abc"}
    yield "text.split", text.split, {"tokens": tokens, "length": 2, "held_out": 0.2}
    yield "text.all_windows", text.all_windows, {"tokens": tokens, "length": 2}
    windows = {"key": jax.random.key(0), "tokens": tokens, "number": 2, "length": 3}
    yield "text.random_windows", text.random_windows, windows
    logits = {"logits": jnp.ones((2, 3)), "key": jax.random.key(0), "temperature": 1.0}
    yield "sampling.sample", sampling.sample, {**logits, "top_k": None, "top_p": None}
    for model in fuzz.MODELS:
        yield from of_model(model)


def of_model(model):
    """The functions of a model that a person calls."""
    name = model.__name__.split(".")[-1]
    config = model.EXAMPLE_CONFIGS[0]
    if model is mlp:
        config = MLP
    key = jax.random.key(0)
    params, batch = model.init_params(key, config), model.example_batch(key, config)
    good = {"params": params, "batch": batch, "config": config}
    named = "tokens" if model in (rnn, transformer) else "inputs"
    inputs = {"params": params, named: batch[0], "config": config}
    yield f"{name}.init_params", model.init_params, {"key": key, "config": config}
    yield f"{name}.example_batch", model.example_batch, {"key": key, "config": config}
    for function in ("loss", "loss_fwd", "manual_value_and_grad", "manual_grad"):
        yield f"{name}.{function}", getattr(model, function), good
    saved = model.loss_fwd(*good.values())[1]
    backward = {"saved": saved, "dloss": jnp.ones(()), "config": config}
    yield f"{name}.loss_bwd", model.loss_bwd, backward
    yield f"{name}.forward", model.forward, inputs
    if hasattr(model, "accuracy"):
        yield f"{name}.accuracy", model.accuracy, good
        yield f"{name}.probabilities", model.probabilities, inputs
    if model is cnn:
        yield f"{name}.update_running", cnn.update_running, inputs
    if model is autoencoder:
        yield f"{name}.encode", model.encode, inputs
        z = {"params": params, "z": jnp.ones((2, config.sizes[-1])), "config": config}
        yield f"{name}.decode", model.decode, z
        drawn = {"params": params, "key": key, "config": config, "n": 2}
        yield f"{name}.sample", model.sample, drawn
    if model in (rnn, transformer):
        writes = rnn.generate if model is rnn else generate.generate
        drawn = {"params": params, "prompt": batch[0][:, :2], "config": config, "key": key}
        drawn |= {"length": 2, "temperature": 1.0, "top_k": None, "top_p": None}
        yield f"{name}.generate", writes, drawn
    if model is transformer:
        room = {"params": params, "n": 3, "length": 4, "config": config}
        yield "generate.init_cache", generate.init_cache, room
        cache = generate.init_cache(*room.values())
        reads = {"params": params, "cache": cache, "tokens": batch[0][:, :2], "start": 0}
        yield "generate.cached_forward", generate.cached_forward, {**reads, "config": config}


def calls():
    """Every argument of every function given every kind, and every two of them exchanged."""
    for name, function, good in functions():
        if "absent" not in map(str, good.values()):
            yield f"{name}: as it should be", partial(function, **good)
        for argument, (kind, value) in itertools.product(good, KINDS.items()):
            yield f"{name}: {argument} {kind}", partial(function, **{**good, argument: value})
        for one, other in itertools.combinations(good, 2):
            swapped = {**good, one: good[other], other: good[one]}
            yield f"{name}: {one} and {other} exchanged", partial(function, **swapped)


if __name__ == "__main__":
    seen = wrong = 0
    for name, call in calls():
        seen += 1
        if said := fuzz.fault(call):
            wrong += 1
            print(name, "->", said)
    print(f"{wrong} of {seen} calls end otherwise than they should")
