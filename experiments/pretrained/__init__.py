"""Weight files as Hugging Face names them, for `jaxnn.models.transformer`: read and written.

    config = pretrained.config.load(Path("Qwen3-0.6B"))
    params = pretrained.load(Path("Qwen3-0.6B"), config)
    pretrained.save(Path("mine/model.safetensors"), params, config)

The configuration says what the tensors are called: with learned positions as GPT-2's, with rotary
ones as Llama's, as Mistral, Qwen2, Qwen3 and Gemma have them too, with biases and norms of heads
where there are such. Each layer's tensors are stacked into one array, and split again when saved. A
file may be in parts, by an index (`model.safetensors.index.json`).
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pretrained import config, parts
from experiments.pretrained.names import GPT2, LLAMA, OUTPUT, Names
from experiments.pretrained.parts import MOST_PARTS
from jaxnn import files
from jaxnn.calls import path_name
from jaxnn.checks import check_config, check_kind
from jaxnn.files import listed
from jaxnn.models.transformer import Config, Params, init_params
from jaxnn.settings import check_choice, check_number
from jaxnn.train.parameters import FLOATING, check_arrays_finite, named_leaves

__all__ = ["config", "load", "save"]


class Part(NamedTuple):
    """A parameter's place in a tensor: its path, its layer or None, whether it is transposed."""

    path: str
    layer: int | None
    transposed: bool


Leaves = dict[str, jax.ShapeDtypeStruct]


def load(path: str | Path, config: Config) -> Params:
    """Read the parameters of `config`, in the file's dtype.

    Buffers are passed over. A tied model's file may repeat its table as `lm_head.weight`.

    Args:
        path: a safetensors file; the index of one in parts, which lie beside it; or a folder with a
            `model.safetensors` or its index.
        config: of the model.

    Raises:
        TypeError: the path or the configuration is of another kind.
        ValueError: such files cannot hold this configuration; a file is missing or no safetensors,
            or the index says of a part what it does not hold (all such are listed); tensors are
            missing, too many or of other shapes (all are listed), of several dtypes or of none that
            JAX computes in; `lm_head.weight` is not the table; a number is not finite.
    """
    names = _names(config)
    leaves, tree = named_leaves(init_params, config)
    path = parts.found(files.as_path(path))
    with parts.opened(path) as held:
        headers = {name: file.get_slice(name) for name, file in held.items()}
        found = {name: tuple(header.get_shape()) for name, header in headers.items()}
        prefix = names.prefix if any(n.startswith(names.prefix) for n in found) else ""
        places = _parts(names, prefix, config, leaves)
        _check_tensors(path, found, places, leaves, names, prefix)
        read = [name for name in found if name in places or name == OUTPUT]
        dtypes = {name: headers[name].get_dtype() for name in read}
        dtype = _dtype(path, {name: FLOATING.get(d, d) for name, d in dtypes.items()})
        arrays = {where: np.empty(leaf.shape, dtype) for where, leaf in leaves.items()}
        for name, beside in places.items():
            _take_apart(held[name].get_tensor(name), beside, arrays)
        if config.tied and OUTPUT in found:
            _check_tied(path, held[OUTPUT].get_tensor(OUTPUT), arrays["tokens.table"])
    check_arrays_finite(str(path), arrays, "copy or download the file again")
    params: Params = jax.tree.unflatten(tree, [jnp.asarray(arrays[where]) for where in leaves])
    return params


def save(
    path: str | Path,
    params: Params,
    config: Config,
    prefix: str | None = None,
    max_bytes: float | None = None,
) -> None:
    """Write what `load` reads: of a loaded file, every parameter's tensor to the same bytes.

    Args:
        path: the file, overwritten, as are the parts and the index of an older model that was
            saved there. All is written under other names first: a save that fails for want of room
            changes nothing, and one that is interrupted later leaves what `load` refuses.
        params: of `config`.
        config: of a kind that such files hold.
        prefix: before every tensor's name but `lm_head.weight`; None for "transformer." or
            "model.", or "".
        max_bytes: of the tensors in one file. If there are more they are written in parts beside
            `path`, "model-00001-of-00002.safetensors", and to "model.safetensors.index.json" which
            tensor is in which; a tensor that is larger by itself has a part of its own. None for
            no limit.

    Raises:
        TypeError: the path, the parameters or the configuration are of another kind; `max_bytes` is
            no number; the parameters are traced by JAX.
        ValueError: such files cannot hold this configuration; the parameters are of another (all
            that differ are listed), of several dtypes, or not finite; the folder is missing, or
            the path is one, or ends as those that `load` takes for an index or pickled; the prefix
            is another; `max_bytes` is below 1; the files cannot be written.
    """
    names = _names(config)
    path = files.as_path(path)
    files.target(path)
    parts.check_name(path)
    prefix = names.prefix if prefix is None else prefix
    check_choice("prefix", prefix, (names.prefix, ""))
    check_kind("params", params, Params)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(params)):
        raise TypeError(
            "params are traced by JAX; they must be values to be written: save outside of jit"
        )
    leaves, _ = named_leaves(init_params, config)
    if max_bytes is not None:
        rule = "at least 1, or None for one file"
        check_number("max_bytes", max_bytes, rule, lambda size: size >= 1)
    arrays = {
        path_name(where): np.asarray(leaf)
        for where, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    wrong = [
        f"{where} has shape {arrays[where].shape if where in arrays else None}, needed "
        f"{leaves[where].shape if where in leaves else None}"
        for where in leaves | arrays
        if where not in arrays or where not in leaves or arrays[where].shape != leaves[where].shape
    ]
    if wrong:
        raise ValueError(
            f"the parameters are not of this configuration: {listed(wrong)}; they must fit: use "
            "the configuration that the parameters came from"
        )
    _dtype("params", {where: str(array.dtype) for where, array in arrays.items()})
    check_arrays_finite("params", arrays, "save those of a run that did not diverge")
    tensors = {
        name: _put_together(beside, arrays)
        for name, beside in _parts(names, prefix, config, leaves).items()
    }
    parts.write(path, tensors, max_bytes)


def _names(config: Config) -> Names:
    """The kind of file by the positions; refuse a configuration that it cannot hold."""
    check_config(config, Config)
    names = GPT2 if config.position == "learned" else LLAMA
    wrong = [
        f"{setting} is {getattr(config, setting)!r}, not {' or '.join(map(repr, allowed))}"
        for setting, allowed in names.settings.items()
        if getattr(config, setting) not in allowed
    ]
    if config.layers > MOST_PARTS:
        wrong.append(f"layers is {config.layers}, not at most {MOST_PARTS}")
    if names is GPT2 and config.kv_heads not in (None, config.heads):
        wrong.append(f"kv_heads is {config.kv_heads}, not {config.heads} as the heads")
    if names is GPT2 and config.heads * config.per_head != config.width:
        wrong.append(f"head_size is {config.head_size}, not width / heads")
    if wrong:
        raise ValueError(
            f"with {config.position!r} positions the file is one of {names.kind}, which cannot hold"
            f" this configuration: {listed(wrong)}; use the settings of gpt2() or llama()"
        )
    return names


def _parts(names: Names, prefix: str, config: Config, leaves: Leaves) -> dict[str, list[Part]]:
    """Every tensor's full name, and the parameters side by side in it."""
    parts = {}
    for name, paths in names.tensors.items():
        if paths[0].removesuffix(".T") not in leaves:
            continue
        for layer in range(config.layers) if "{}" in name else (None,):
            full = name if name == OUTPUT else prefix + name.format(layer)
            parts[full] = [Part(p.removesuffix(".T"), layer, p.endswith(".T")) for p in paths]
    return parts


def _needed_shape(beside: list[Part], leaves: Leaves) -> tuple[int, ...]:
    shapes = []
    for path, layer, transposed in beside:
        shape = leaves[path].shape if layer is None else leaves[path].shape[1:]
        shapes.append(shape[::-1] if transposed else shape)
    return (*shapes[0][:-1], sum(shape[-1] for shape in shapes))


def _put_together(beside: list[Part], arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The tensor of a file, of its parts."""
    found = []
    for path, layer, transposed in beside:
        array = arrays[path] if layer is None else arrays[path][layer]
        found.append(array.T if transposed else array)
    return np.ascontiguousarray(np.concatenate(found, -1))


def _take_apart(tensor: np.ndarray, beside: list[Part], arrays: dict[str, np.ndarray]) -> None:
    """The same way back: fill the parts with a tensor of a file."""
    start = 0
    for path, layer, transposed in beside:
        array = arrays[path] if layer is None else arrays[path][layer]
        array = array.T if transposed else array
        stop = start + array.shape[-1]
        array[...] = tensor[..., start:stop]
        start = stop


def _check_tensors(
    path: Path,
    found: dict[str, tuple[int, ...]],
    parts: dict[str, list[Part]],
    leaves: Leaves,
    names: Names,
    prefix: str,
) -> None:
    """Refuse tensors that are missing, too many or misshapen, all in one message."""
    needed = {name: _needed_shape(beside, leaves) for name, beside in parts.items()}
    allowed = {OUTPUT: leaves["tokens.table"].shape} | needed
    buffer = re.compile(re.escape(prefix) + names.buffers)
    wrong = [f"{name} is missing, needed {needed[name]}" for name in needed if name not in found]
    for name, shape in found.items():
        if name in allowed and shape != allowed[name]:
            wrong.append(f"{name} has shape {shape}, needed {allowed[name]}")
        elif name not in allowed and not buffer.fullmatch(name):
            wrong.append(f"{name} {shape} is not a tensor of this configuration")
    if wrong:
        raise ValueError(
            f"{path} does not hold this configuration's {names.kind} tensors: {listed(wrong)}; "
            "change the configuration to the file's, or name another file"
        )


def _dtype(where: Path | str, dtypes: dict[str, str]) -> np.dtype[Any]:
    """The one dtype of all; refuse others than JAX computes in here."""
    kinds = {kind: [n for n in dtypes if dtypes[n] == kind] for kind in dtypes.values()}
    if len(kinds) > 1:
        each = listed([f"{kind}: {listed(names, ', ')}" for kind, names in kinds.items()])
        raise ValueError(
            f"{where} has tensors of several dtypes ({each}); they must be one: cast them to one"
        )
    (kind,) = kinds
    if kind not in FLOATING.values():
        raise ValueError(
            f"{where} has tensors of dtype {kind}; it must be one of "
            f"{', '.join(FLOATING.values())}: cast them"
        )
    if isinstance(where, Path) and jax.dtypes.canonicalize_dtype(kind) != kind:
        raise ValueError(
            f"{where} has tensors of dtype {kind}, which JAX would round: turn it on with "
            "jax.enable_x64(True)"
        )
    return jnp.dtype(kind)


def _check_tied(path: Path, output: np.ndarray, table: np.ndarray) -> None:
    """Refuse a model that is not tied; bytes are compared, so that -0 is not 0."""
    if output.dtype != table.dtype or output.tobytes() != table.tobytes():
        raise ValueError(
            f"{path} has {OUTPUT} with other values than the embedding table; in a tied model they "
            "must be equal: set tied=False"
        )
