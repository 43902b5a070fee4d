"""Bad input for every op and model: one argument, setting or field at a time is made wrong.

    python tests/fuzz.py

makes every call and prints those that end in an error from inside JAX or Python, and how many of
each kind there were. A call may give a result, or a TypeError or ValueError raised in jaxnn.
"""

import importlib
import pkgutil
import random
import re
import traceback
from collections import Counter
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxnn.ops
from jaxnn.models import autoencoder, cnn, mlp, rnn, transformer
from jaxnn.op import Op

LIBRARY = str(Path(jaxnn.ops.__file__).parents[1])
MODELS = (mlp, cnn, rnn, autoencoder, transformer)
VALUES = {
    "None": None,
    "text": "x",
    "object": object(),
    "list": [1.0, 2.0],
    "tuple": (1.0, 2.0),
    "dict": {"a": 1.0},
    "huge": 10**400,
    "nan": float("nan"),
    "negative": -1,
    "zero": 0,
    "half": 0.5,
    "true": True,
    "complex": 1j,
    "numbers": np.arange(3),
    "objects": np.array([None, "a"], dtype=object),
    "words": np.array(["a", "b"]),
    "complex array": jnp.ones((2, 3), jnp.complex64),
    "scalar array": jnp.ones(()),
    "empty array": jnp.zeros((0, 3)),
    "no array": jnp.zeros((2, 0)),
    "many axes": jnp.ones((1, 2, 1, 2, 1, 2)),
    "half precision": jnp.ones((2, 3), jnp.bfloat16),
    "booleans": jnp.ones((2, 3), bool),
    "a key": jax.random.key(0),
    "keys": jax.random.split(jax.random.key(0), 3),
    "a long key": jnp.zeros(3, jnp.uint32),
}
CHANGES = {
    "an axis more": lambda x: x[None],
    "an axis less": lambda x: x[0],
    "a row more": lambda x: jnp.concatenate([x, x[:1]]),
    "no row": lambda x: x[:0],
    "no column": lambda x: x[..., :0],
    "turned": lambda x: x.T,
    "of integers": lambda x: x.astype(jnp.int32),
    "of bfloat16": lambda x: x.astype(jnp.bfloat16),
    "complex": lambda x: x.astype(jnp.complex64),
    "as a list": lambda x: x.tolist(),
    "of NumPy": np.asarray,
}


def ops():
    """Every op of the library."""
    found = {}
    for info in pkgutil.walk_packages(jaxnn.ops.__path__, "jaxnn.ops."):
        for value in vars(importlib.import_module(info.name)).values():
            if isinstance(value, Op):
                found[value.name] = value
    return found


def wrong(tree):
    """The ways to make one leaf or part of an argument wrong: (what, the argument)."""
    yield from VALUES.items()
    leaves, structure = jax.tree.flatten(tree)
    if isinstance(tree, tuple):
        yield "plain tuple", tuple(tree)
        yield "a part less", tuple(tree)[:-1]
    for i, leaf in enumerate(leaves):
        if not isinstance(leaf, jax.Array) or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            continue
        for what, change in {**CHANGES, **{k: lambda _, v=v: v for k, v in VALUES.items()}}.items():
            try:
                changed = change(leaf)
            except (TypeError, ValueError, IndexError):
                continue  # there is no such change of this leaf
            others = [*leaves[:i], changed, *leaves[i + 1 :]]
            yield f"leaf {i} {what}", jax.tree.unflatten(structure, others)


def calls_of_ops():
    for name, op in ops().items():
        inputs = op.example(jax.random.key(0))
        for settings in op.settings:
            for i in range(len(inputs)):
                for what, value in wrong(inputs[i]):
                    changed = (*inputs[:i], value, *inputs[i + 1 :])
                    yield f"{name}: input {i} {what}", partial(op, *changed, **settings)
                    yield f"{name}.fwd: input {i} {what}", partial(op.fwd, *changed, **settings)
            yield f"{name}: no input", partial(op, **settings)
            yield f"{name}: one input less", partial(op, *inputs[:-1], **settings)
            yield f"{name}: one input more", partial(op, *inputs, inputs[0], **settings)
            yield f"{name}: a setting more", partial(op, *inputs, **settings, colour="red")
            known = {n: p for n, p in op.__signature__.parameters.items() if n not in op.inputs}
            for setting in known:
                for what, value in VALUES.items():
                    changed = {**settings, setting: value}
                    yield f"{name}: {setting} {what}", partial(op, *inputs, **changed)


def calls_of_models():
    for model in MODELS:
        name = model.__name__.split(".")[-1]
        config = model.EXAMPLE_CONFIGS[0]
        params = model.init_params(jax.random.key(0), config)
        batch = model.example_batch(jax.random.key(1), config)
        good = {"params": params, "batch": batch, "config": config}
        others = [other.EXAMPLE_CONFIGS[0] for other in MODELS if other is not model]
        for part, value in good.items():
            ways = [*wrong(value)] if part != "config" else [*VALUES.items()]
            ways += [(f"another model's {i}", other) for i, other in enumerate(others)]
            for what, changed in ways:
                arguments = {**good, part: changed}
                for function in ("loss", "manual_value_and_grad"):
                    call = partial(getattr(model, function), *arguments.values())
                    yield f"{name}.{function}: {part} {what}", call
                inputs = changed if part == "batch" else batch[0]
                forward = partial(model.forward, arguments["params"], inputs, arguments["config"])
                yield f"{name}.forward: {part} {what}", forward
        for what, value in VALUES.items():
            yield f"{name}.init_params: key {what}", partial(model.init_params, value, config)
            for field in fields(config):
                change = partial(replace, config, **{field.name: value})
                yield f"{name}.Config: {field.name} {what}", change


def fault(call):
    """What went wrong in a call that should not go wrong so; empty if nothing did."""
    try:
        with jax.numpy_dtype_promotion("standard"):
            jax.block_until_ready(call())
    except (TypeError, ValueError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        words = str(error)
        if frames[-1].filename.startswith(LIBRARY) and re.search(r"must|takes|pass ", words):
            return ""
        return f"{type(error).__name__} in {frames[-1].filename}: {words.splitlines()[0]:.90}"
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]:.90}"
    return ""


def sampled(calls, count, seed=0):
    """So many of the calls, drawn."""
    calls = list(calls)
    return random.Random(seed).sample(calls, min(count, len(calls)))


if __name__ == "__main__":
    seen, kinds = 0, Counter()
    for name, call in [*calls_of_ops(), *calls_of_models()]:
        seen += 1
        if said := fault(call):
            print(name, "->", said)
            kinds[name.split(":")[0]] += 1
    print(f"{sum(kinds.values())} of {seen} calls end otherwise than they should")
    for name, count in kinds.most_common():
        print(count, name)
