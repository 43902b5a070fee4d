"""Trees of arrays on disk, by orbax: each step in a folder of its own, sealed when it is whole.

The seal is a file with a digest of every other file of the step. It is written last, and then the
step is given its name: until then it is in a hidden folder. A step of which a file was changed is
refused. Nothing else in the folder is touched.
"""

import contextlib
import gc
import hashlib
import json
import logging
import shutil
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import files

FORMAT = 1
KEPT = 2
ABOUT, SEAL = "about.json", "seal.json"
MOST_ABOUT = 2**26  # bytes: of half a million epochs with five columns
_UNFINISHED = ".unfinished-jaxnn"  # what is being written or removed, and is nobody else's
_FIX = "remove it, to go on from the state before it"


def last_step(folder: Path) -> int | None:
    """The last step in a folder; None without one."""
    return max(_steps(folder), default=None)


def write(folder: Path, step: int, trees: Any, about: Mapping[str, Any]) -> Path:
    """Write a tree of arrays, and what JSON can hold about it; keep the step before.

    Returns:
        The folder of the step.

    Raises:
        ModuleNotFoundError: orbax is not installed.
        ValueError: the folder cannot be written, or holds under a number what is no step.
    """
    text = json.dumps(about)
    if len(text) > MOST_ABOUT:
        raise ValueError(
            f"what is to stand beside the state has {len(text):,} characters; at most "
            f"{MOST_ABOUT:,} are read again: leave out notes, or log fewer epochs, each longer"
        )
    _check_free(folder)
    unfinished = folder / _UNFINISHED
    new, where = unfinished / str(step), folder / str(step)
    with _orbax(f"{folder} cannot be written", "make room, or name another") as ocp:
        if unfinished.exists():
            shutil.rmtree(unfinished)
        try:
            with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as writer:
                writer.save(new, args=ocp.args.StandardSave(_numbered(jax.tree.leaves(trees))))
            (new / ABOUT).write_text(text)
            seal = json.dumps({"format": FORMAT, "files": _digests(new)})
            with files.replaced(new / SEAL) as file:
                file.write_text(seal)
            new.rename(where)
            for old in sorted(_steps(folder))[:-KEPT]:
                (folder / str(old)).rename(unfinished / str(old))
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return where


def read_about(where: Path) -> dict[str, Any]:
    """What was written about the trees of a step, all of whose files are as they were.

    Raises:
        ValueError: one is not, or the step is of a newer format.
    """
    damaged = f"{where} is damaged: {_FIX}"
    seal = files.read_json(where / SEAL, damaged)
    sealed = seal.get("files") if isinstance(seal, dict) else None
    if not isinstance(sealed, dict) or not isinstance(seal.get("format"), int):
        raise ValueError(f"{where / SEAL} is no seal; {damaged}")
    if seal["format"] > FORMAT:
        raise ValueError(
            f"{where} is of format {seal['format']}, this jaxnn reads those up to {FORMAT}; "
            "install a newer jaxnn"
        )
    found = _digests(where)
    wrong = [name for name in {ABOUT: ""} | sealed if sealed.get(name) != found.get(name)]
    if wrong:
        raise ValueError(f"{damaged} ({files.listed(wrong, ', ')} is not what it was)")
    content = files.read_bytes(where / ABOUT, MOST_ABOUT, damaged)
    return dict(files.parsed_json(str(where / ABOUT), content, damaged))


def read(where: Path, like: Any) -> Any:
    """The tree of a step, whose structure, shapes and dtypes are those of `like`.

    Raises:
        ModuleNotFoundError: orbax is not installed.
        ValueError: it cannot be read.
    """
    leaves, structure = jax.tree.flatten(like)
    fix = "its files are those that were written: try again"
    with (
        _orbax(f"{where} cannot be read", fix) as ocp,
        ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader,
    ):
        numbered = _numbered(leaves)
        found = reader.restore(where, args=ocp.args.StandardRestore(numbered))
        for number, leaf in numbered.items():
            leaves[int(number)] = _like(found[number], leaf)
    return jax.tree.unflatten(structure, leaves)


def _numbered(leaves: list[Any]) -> dict[str, Any]:
    """The leaves under their numbers, which orbax keeps apart; it takes none without an element."""
    return {str(i): leaf for i, leaf in enumerate(leaves) if 0 not in jnp.shape(leaf)}


def _steps(folder: Path) -> list[int]:
    """The steps in a folder."""
    return [int(where.name) for where in _numbers(folder) if (where / SEAL).exists()]


def _numbers(folder: Path) -> list[Path]:
    """What is in a folder under a number."""
    found = [*folder.iterdir()] if folder.is_dir() else []
    return [where for where in found if where.name.isdecimal()]


def _check_free(folder: Path) -> None:
    """Refuse a folder with what is no step under a number, which a step will have one day."""
    others = [where.name for where in _numbers(folder) if not (where / SEAL).exists()]
    if others:
        raise ValueError(
            f"{folder} holds {files.listed(sorted(others), ', ')}, no state that was saved whole; "
            "what is named by a number there must be one: name another folder"
        )


def _digests(where: Path) -> dict[str, str]:
    """A digest of each file of a step but the seal."""
    digests = {}
    for path in sorted(where.rglob("*")):
        if path.is_file() and path != where / SEAL:
            with files.opened(path) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
            digests[path.relative_to(where).as_posix()] = digest
    return digests


def _like(read: Any, like: Any) -> Any:
    """An array as it was read, with all that makes the same program of it as of `like`."""
    if getattr(like, "weak_type", False):
        return like.at[...].set(np.asarray(read))
    if getattr(like, "committed", True):
        return read
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        data = jnp.asarray(np.asarray(jax.random.key_data(read)))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(read))
    return jnp.asarray(np.asarray(read))


@contextlib.contextmanager
def _orbax(what: str, fix: str) -> Iterator[Any]:
    """Orbax, silent; what it raises is said in words."""
    root = logging.getLogger()
    handlers, quiet = root.handlers[:], [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in quiet]
    try:
        for logger in quiet:
            logger.setLevel(logging.CRITICAL)
        yield files.installed("orbax.checkpoint")  # which gives the root logger a handler
    except ModuleNotFoundError:
        raise
    except Exception as error:  # orbax and tensorstore raise many kinds, each with a page of text
        _forget(error)
        raise ValueError(f"{what} ({_first_line(error)}); {fix}") from None
    finally:
        root.handlers[:] = handlers
        for logger, level in zip(quiet, levels, strict=True):
            logger.setLevel(level)


def _forget(error: BaseException | None) -> None:
    """Let what orbax was reading or writing when this was raised end, and say nothing of it."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__cause__ or error.__context__
        gc.collect()
    finally:
        sys.unraisablehook = hook


def _first_line(error: Exception) -> str:
    return f"{str(error).strip().splitlines()[0]:.200}" if str(error).strip() else repr(error)
