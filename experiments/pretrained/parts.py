"""A safetensors file, whole or in parts by an index, as Hugging Face's: found, opened, written."""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from jaxnn import files
from jaxnn.files import listed
from jaxnn.train.parameters import opened_tensors

INDEX = ".index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
# Hugging Face's own loader refuses files that do not name a framework.
METADATA = {"format": "pt"}
# No model has as many layers, or files; a number beyond is a damaged file's, and would only take
# time and memory.
MOST_PARTS = 10_000


def found(path: Path) -> Path:
    """The file or index that a path names, or that is in the folder."""
    if path.is_dir():
        whole = [path / "model.safetensors", path / f"model.safetensors{INDEX}"]
        there = [one for one in whole if one.is_file()]
        if len(there) == 2:
            raise ValueError(
                f"{path} has both {whole[0].name} and {whole[1].name}; it must be one of them: "
                "name the file to read"
            )
        pickled = [one for one in sorted(path.iterdir()) if one.suffix in PICKLED]
        path = there[0] if there else (pickled or [whole[0]])[0]
    if _pickled(path):
        raise ValueError(
            f"{path} is pickled, and to read it is to run what it says; it must be safetensors: "
            "convert it, with `transformers` by save_pretrained, or take the model's safetensors"
        )
    if not path.is_file():
        raise ValueError(f"{path} is not a file; name a safetensors file of weights")
    return path


def check_name(path: Path) -> None:
    """Refuse to write what by its name would not be read as safetensors."""
    if _pickled(path) or path.name.endswith(INDEX):
        raise ValueError(
            f"{path} is not the name of a safetensors file; it must not end in "
            f"{', '.join((*PICKLED, INDEX))}: name it {path.stem.split('.')[0]}.safetensors"
        )


def _pickled(path: Path) -> bool:
    return path.name.removesuffix(INDEX).endswith(PICKLED)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[dict[str, Any]]:
    """For each tensor the open file that it is in: one for all or, by an index, its part."""
    index = _read_index(path) if path.name.endswith(INDEX) else None
    shards = [path] if index is None else [path.with_name(n) for n in sorted({*index.values()})]
    if len(shards) > MOST_PARTS:
        raise ValueError(
            f"{path} names {len(shards)} parts; there may be at most {MOST_PARTS}: name a model's "
            "index"
        )
    # Of a name that no file can have, `Path.is_file` raises.
    absent = [shard.name for shard in shards if not os.path.isfile(shard)]
    if absent:
        raise ValueError(
            f"{path} names parts that are not beside it: {listed(absent, ', ')}; all must be "
            "there: copy those that are missing"
        )
    with contextlib.ExitStack() as stack:
        where: dict[str, list[str]] = {}
        held = {}
        for shard in shards:
            fix = "it must be a safetensors file: check the path"
            file = stack.enter_context(opened_tensors(shard, fix))
            for name in file.keys():  # noqa: SIM118
                where.setdefault(name, []).append(shard.name)
                held[name] = file
        if index is not None:
            _check_index(path, index, where)
        yield held


def _read_index(path: Path) -> dict[str, str]:
    """Which part each tensor is in, as an index has it."""
    index = files.read_json(path, "name a model's index")
    held = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(held, dict) or not held:
        raise ValueError(
            f"{path} has weight_map {held!r:.50}; it must be an object of tensors and the parts "
            "that they are in: name a model's index"
        )
    strange = [part for part in held.values() if not isinstance(part, str) or _elsewhere(part)]
    if strange:
        raise ValueError(
            f"{path} has {strange[0]!r:.50} as a part; it must be the name of a safetensors file "
            "beside the index: put it there"
        )
    return held


def _elsewhere(part: str) -> bool:
    return not part or Path(part).name != part or Path(part).suffix in PICKLED


def _check_index(path: Path, index: dict[str, str], where: dict[str, list[str]]) -> None:
    """Refuse an index that says of tensors what the parts do not, all in one message."""
    wrong = [
        f"{name} is in {' and '.join(where.get(name, ['no part']))}, in the index in "
        f"{index.get(name, 'none')}"
        for name in index | where
        if where.get(name) != [index.get(name)]
    ]
    if wrong:
        raise ValueError(
            f"{path} does not tell where the tensors are: {listed(wrong)}; each must be in the "
            "one part that it names: copy index and parts of one model anew"
        )


def write(path: Path, tensors: dict[str, np.ndarray], max_bytes: float | None) -> None:
    """Write tensors to a file or, if they have more than `max_bytes`, to parts and their index.

    The parts of "model.safetensors" are "model-00001-of-00002.safetensors" and so on. Of an older
    model at the same path nothing is left.
    """
    shards, index = _shards(tensors, max_bytes), path.with_name(path.name + INDEX)
    number_of = re.compile(re.escape(path.stem) + r"-\d{5,}-of-\d{5,}" + re.escape(path.suffix))
    older = [one for one in path.parent.iterdir() if number_of.fullmatch(one.name)]
    written: dict[Path, Callable[[Path], object]] = {path: partial(_save, tensors)}
    if len(shards) > 1:
        where: dict[str, str] = {}
        written = {}
        for number, shard in enumerate(shards, 1):
            part = f"{path.stem}-{number:05}-of-{len(shards):05}{path.suffix}"
            written[path.with_name(part)] = partial(_save, shard)
            where |= dict.fromkeys(shard, part)
        total = sum(tensor.nbytes for tensor in tensors.values())
        contents = {"metadata": {"total_size": total}, "weight_map": where}
        written[index] = partial(_save_json, contents)
    # The index goes first and comes last: without it no part is read.
    gone = [index, path, *older] if len(shards) > 1 else [index, *older]
    with files.all_replaced(list(written), gone, path) as made:
        for new, write_one in zip(made, written.values(), strict=True):
            write_one(new)


def write_json(path: Path, contents: Any) -> None:
    """Write a JSON file in the place of an older one."""
    with files.replaced(path) as new:
        _save_json(contents, new)


def _save(tensors: dict[str, np.ndarray], path: Path) -> None:
    try:
        save_file(tensors, path, metadata=METADATA)
    except SafetensorError as error:  # as it names what the system says of a full disk
        raise OSError(str(error)) from error


def _save_json(contents: Any, path: Path) -> None:
    path.write_text(json.dumps(contents, indent=2) + "\n", "utf-8")


def _shards(tensors: dict[str, np.ndarray], max_bytes: float | None) -> list[dict[str, np.ndarray]]:
    """The tensors in their order, as many together as have at most so many bytes."""
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if max_bytes is not None and shards[-1] and size + tensor.nbytes > max_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards
