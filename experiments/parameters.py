"""Parameters in a file: safetensors, with the configuration in its header."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as tensors_to_bytes

from jaxnn.checks import parameter_shapes
from jaxnn.verify.arguments import path_name


def save(path: Path, params: Any, config: Any, seed: int, **more: str) -> None:
    """Write a model's parameters, its configuration, the seed that split its data, and more texts.

    Raises:
        ValueError: the file cannot be written.
    """
    tensors = {
        path_name(where): np.ascontiguousarray(leaf)
        for where, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    settings = {"config": json.dumps(dataclasses.asdict(config)), "seed": str(seed)}
    try:
        path.write_bytes(tensors_to_bytes(tensors, metadata=settings | more))
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror}); make room, or name another folder"
        ) from error


def header(path: Path) -> dict[str, str]:
    """The texts that `save` wrote beside the parameters, by their names.

    Raises:
        ValueError: the file is missing or is no parameter file.
    """
    return _read(path)[0]


def load(path: Path, model: Any, config: Any) -> tuple[Any, int]:
    """Read what `save` wrote, into the parameters of `model` under `config`, and the seed.

    Raises:
        ValueError: the file is missing, is no parameter file, is of another model or of another
            configuration; the message lists every setting that differs.
    """
    texts, tensors = _read(path)
    try:
        theirs, seed = dict(json.loads(texts["config"])), int(texts["seed"])
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path} has a header that cannot be read ({error}); train and save again"
        ) from error
    ours = json.loads(json.dumps(dataclasses.asdict(config)))
    if theirs.keys() != ours.keys():
        raise ValueError(
            f"{path} is of another model: its settings are {', '.join(theirs)}, this one's are "
            f"{', '.join(ours)}; pass the --model that it was trained with"
        )
    different = [
        f"{name} is {theirs[name]!r} in the file, {ours[name]!r} here"
        for name in sorted(ours)
        if theirs[name] != ours[name]
    ]
    if different:
        raise ValueError(
            f"{path} is of another configuration: {'; '.join(different)}; they must be equal: "
            "pass the settings that it was trained with"
        )
    leaves, tree = named_leaves(model.init_params, config)
    expected = {name: leaf.shape for name, leaf in leaves.items()}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if expected != found:
        raise ValueError(
            f"{path} holds tensors {found}; its configuration needs {expected}: it is damaged, "
            "train and save again"
        )
    return jax.tree.unflatten(tree, [jnp.asarray(tensors[name]) for name in expected]), seed


def named_leaves(init_params: Any, config: Any) -> tuple[dict[str, jax.ShapeDtypeStruct], Any]:
    """The shape of every parameter that `init_params` makes, by its path, and their structure."""
    shapes = parameter_shapes(init_params, config)
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    return {path_name(where): leaf for where, leaf in leaves}, tree


def _read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    if not path.is_file():
        raise ValueError(f"{path} is not a file; name one that an earlier run saved")
    try:
        with safe_open(path, framework="numpy") as file:
            texts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); it must be a file that an earlier run saved: "
            "check the path"
        ) from error
    if not {"config", "seed"} <= texts.keys():
        raise ValueError(
            f"{path} has no configuration in its header; it must be a file that an earlier run "
            "saved: check the path"
        )
    return texts, tensors
