"""Parameters in a file that says what they are of: safetensors, with a header that is read alone.

save_params("mlp.safetensors", params, model=mlp, config=config, notes={"seed": 0})
params, model, config, notes = load_params("mlp.safetensors")
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from jaxnn import files, together
from jaxnn.calls import path_name
from jaxnn.checks import is_seen, parameter_shapes
from jaxnn.ending import is_first
from jaxnn.files import listed
from jaxnn.train.about import About, configuration, describe, named_model

# What is written; a file of a newer format is not read.
FORMAT = 1
MOST_HEADER = 2**24
MOST_TEXT = 2**22
FLOATING = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
DTYPES = FLOATING | {"BOOL": "bool", "C64": "complex64", "U8": "uint8", "I8": "int8"}
DTYPES |= {f"U{bits}": f"uint{bits}" for bits in (16, 32, 64)}
DTYPES |= {f"I{bits}": f"int{bits}" for bits in (16, 32, 64)}
_FIX = "it must be a file that save_params wrote: check the path"


class Loaded(NamedTuple):
    """What a file of parameters holds.

    Attributes:
        params: as the model's `init_params` makes them.
        model: its module.
        config: its configuration.
        notes: what was noted beside them.
    """

    params: Any
    model: Any
    config: Any
    notes: dict[str, Any]


class _Leaf(NamedTuple):
    shape: tuple[int, ...]
    dtype: str


def save_params(
    path: str | Path,
    params: Any,
    *,
    model: Any,
    config: Any,
    notes: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model's parameters, and what they are of, in the place of an older file.

    Until all is written the older file is as it was. `load_params` needs nothing else.

    Of several processes all call this; process 0 gathers the parameters, leaf by leaf, and writes.

    Args:
        path: the file, ".safetensors" by custom.
        params: as `model.init_params` makes them; floating numbers may be of another width.
        model: a module with the model functions.
        config: its configuration: a dataclass, a NamedTuple or a dict of what JSON has.
        notes: more to keep, of what JSON has: a seed, a vocabulary, options, metrics. NumPy's and
            JAX's numbers and arrays are saved as Python's, tuples as lists.

    Returns:
        The path.

    Raises:
        ModuleNotFoundError: safetensors is not installed.
        TypeError: a setting or a note is nothing that JSON has; a parameter is no array of numbers.
        ValueError: the parameters are not finite, as after a run that diverged, or not of this
            configuration; the settings and notes are too large; the file cannot be written.
    """
    arrays = gathered(params)
    written = partial(write_params, path, arrays, model=model, config=config, notes=notes)
    return Path(together.first(f"writing {path}", lambda: str(written())))


def gathered(params: Any) -> Any:
    """Return parameters as NumPy's arrays on process 0, and None on others; all call this.

    Raises:
        TypeError: one is no array of numbers, or traced.
    """
    leaves = []
    for where, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = _array(path_name(where), leaf)
        leaves.append(array if is_first() else None)
    return jax.tree.unflatten(jax.tree.structure(params), leaves) if is_first() else None


def write_params(
    path: str | Path, params: Any, *, model: Any, config: Any, notes: Mapping[str, Any] | None
) -> Path:
    """Write parameters as `save_params` does, in this process, and of what is in its reach."""
    to_bytes = files.installed("safetensors.numpy").save
    path = files.as_path(path)
    about = describe(model, config, notes)
    texts = {"format": str(FORMAT)}
    texts |= {name: json.dumps(value) for name, value in about._asdict().items()}
    if (size := sum(map(len, texts.values()))) > MOST_TEXT:
        raise ValueError(
            f"configuration and notes have {size:,} characters; at most {MOST_TEXT:,} are "
            "written into a file of parameters: keep the rest in a file of its own"
        )
    leaves, _ = named_leaves(model.init_params, config)
    arrays = {
        path_name(where): _array(path_name(where), leaf)
        for where, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    _check_fit(
        "params",
        {name: _Leaf(array.shape, array.dtype.name) for name, array in arrays.items()},
        leaves,
        "pass the configuration that the parameters came from",
    )
    check_arrays_finite(
        "params", arrays, "they are of a run that diverged: save those before it did"
    )
    with files.replaced(path) as new:
        new.write_bytes(to_bytes(arrays, metadata=texts))
    return path


def read_about(path: str | Path) -> About:
    """Return what a file of parameters says of itself; they are not read.

    Raises:
        ModuleNotFoundError: safetensors is not installed.
        ValueError: the file is missing, is none that `save_params` wrote, or of a newer format.
    """
    with _opened(files.as_path(path)) as (_, about):
        return about


def load_params(path: str | Path, model: Any = None, config: Any = None) -> Loaded:
    """Read what `save_params` wrote.

    Args:
        path: the file.
        model: the module that the parameters must be of; None for the one of `jaxnn.models` that
            the file names.
        config: the configuration that they must be of; None for the file's. A model without a
            `Config` needs it.

    Returns:
        The parameters in the file's dtype, the model, its configuration and the notes.

    Raises:
        ModuleNotFoundError: safetensors is not installed.
        ValueError: the file is missing, is none that `save_params` wrote, or of a newer format; it
            is of another model or configuration (every setting that differs is named); arrays are
            missing, too many, of other shapes or dtypes (all are listed), or not finite.
    """
    path = files.as_path(path)
    with _opened(path) as (file, about):
        model = named_model(path, about.model) if model is None else model
        config = configuration(path, about, model, config)
        try:
            leaves, tree = named_leaves(model.init_params, config)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"{path} has a configuration of which {about.model} makes no parameters "
                f"({error!s:.300}); {_FIX}"
            ) from error
        headers = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        found = {
            name: _Leaf(tuple(head.get_shape()), DTYPES.get(head.get_dtype(), head.get_dtype()))
            for name, head in headers.items()
        }
        _check_fit(str(path), found, leaves, "it is damaged: train and save again")
        arrays = {name: file.get_tensor(name) for name in leaves}
    check_arrays_finite(str(path), arrays, "it is damaged: train and save again")
    params = jax.tree.unflatten(tree, [jnp.asarray(array) for array in arrays.values()])
    return Loaded(params, model, config, about.notes)


def named_leaves(init_params: Any, config: Any) -> tuple[dict[str, jax.ShapeDtypeStruct], Any]:
    """The shape of every parameter that `init_params` makes, by its path, and their structure."""
    shapes = parameter_shapes(init_params, config)
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    return {path_name(where): leaf for where, leaf in leaves}, tree


@contextlib.contextmanager
def opened_tensors(path: Path, fix: str) -> Iterator[Any]:
    """Open a safetensors file whose header is of a sane size.

    Raises:
        ModuleNotFoundError: safetensors is not installed.
        ValueError: it is none; `fix` ends the message.
    """
    safetensors = files.installed("safetensors")
    try:
        with files.opened(path) as start:
            size = int.from_bytes(start.read(8), "little")
        if size > MOST_HEADER:
            raise ValueError(
                f"{path} cannot be read (by its first bytes its header has {size:,}, and there are "
                f"at most {MOST_HEADER:,}); {fix}"
            )
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error!s:.200}); {fix}") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, About]]:
    """The open file, and what it says of itself."""
    with opened_tensors(path, _FIX) as file:
        yield file, _about(path, file.metadata() or {})


def _about(path: Path, texts: dict[str, str]) -> About:
    """What the texts of a header say."""
    form = texts.get("format", "")
    if not form.isdecimal() or not {*About._fields} <= texts.keys():
        raise ValueError(f"{path} has no model and configuration in its header; {_FIX}")
    if form != str(FORMAT):
        raise ValueError(
            f"{path} is of format {form:.20}; this version of jaxnn reads format {FORMAT}: use the "
            f"version that wrote it, {texts['versions']:.100}"
        )
    parts = {}
    for name in About._fields:
        if len(texts[name]) > MOST_TEXT:
            raise ValueError(
                f"{path} has {name} of {len(texts[name]):,} characters in its header; there are at "
                f"most {MOST_TEXT:,}: {_FIX}"
            )
        parts[name] = files.parsed_json(f"{path}, {name} in its header,", texts[name], _FIX)
        if not isinstance(parts[name], str if name == "model" else dict):
            raise ValueError(f"{path} has {name} {parts[name]!r:.50} in its header; {_FIX}")
    return About(**parts)


def _array(name: str, leaf: Any) -> np.ndarray:
    """A parameter as an array that can be written."""
    if isinstance(leaf, jax.core.Tracer):
        raise TypeError(
            f"{name} is traced by JAX; it must be a value to be written: save outside of jit"
        )
    leaf = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
    if not is_seen(leaf):
        leaf = process_allgather(leaf, tiled=True)
    if str(leaf.dtype) not in DTYPES.values():
        raise TypeError(f"{name} has dtype {leaf.dtype}; a parameter must be of numbers: cast it")
    return np.asarray(leaf, order="C")


def _check_fit(
    where: str, found: Mapping[str, _Leaf], leaves: Mapping[str, jax.ShapeDtypeStruct], fix: str
) -> None:
    """Refuse arrays that are not those of `init_params`, all in one message.

    Of floating numbers the width may be another, the same of all that `init_params` has in one.
    """
    wrong = []
    widths: dict[str, dict[str, str]] = {}
    for name in {**leaves, **found}:
        got, needed = found.get(name), leaves.get(name)
        if needed is None:
            wrong.append(f"{name!r:.80} is none of the model's")
        elif got is None:
            wrong.append(f"{name} is missing, needed {needed.shape}")
        elif got.shape != needed.shape:
            wrong.append(f"{name} has shape {got.shape}, needed {needed.shape}")
        elif {got.dtype, needed.dtype.name} <= {*FLOATING.values()}:
            widths.setdefault(needed.dtype.name, {}).setdefault(got.dtype, name)
        elif got.dtype != needed.dtype.name:
            wrong.append(f"{name} has dtype {got.dtype}, needed {needed.dtype.name}")
    for kinds in widths.values():
        if len(kinds) > 1:
            each = [f"{name} has dtype {kind}" for kind, name in kinds.items()]
            wrong.append(f"{' but '.join(each)}, needed one for all")
        wrong += [
            f"{name} has dtype {kind}, which JAX rounds unless jax_enable_x64 is on"
            for kind, name in kinds.items()
            if jax.dtypes.canonicalize_dtype(kind) != kind
        ]
    if wrong:
        raise ValueError(f"{where} does not fit its configuration: {listed(wrong)}; {fix}")


def check_arrays_finite(where: str, arrays: Mapping[str, np.ndarray], fix: str) -> None:
    """Refuse arrays with NaN or an infinity.

    Raises:
        ValueError: there are such; all are named, and `fix` ends the message.
    """
    wrong = [
        f"{name} in {count} of {array.size}"
        for name, array in arrays.items()
        if array.dtype.kind not in "biu" and (count := np.count_nonzero(~np.isfinite(array)))
    ]
    if wrong:
        raise ValueError(f"{where} has numbers that are not finite: {listed(wrong)}; {fix}")
