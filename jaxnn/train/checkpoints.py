"""Trees of arrays on disk, by orbax: each step in a folder of its own, sealed when it is whole.

The seal is a file with a digest of every other file of the step. It is written last: a step without
one was not written to its end, and does not count; a step of which a file was changed is refused.
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
_DELETED = "deleted"  # where orbax moves an older step first: it is whole, or gone
_FIX = "remove it, to go on from the state before it"


def last_step(folder: Path) -> int | None:
    """The last step in a folder that is sealed; None without one."""
    return max((step for step, where in _steps(folder) if (where / SEAL).exists()), default=None)


def write(folder: Path, step: int, trees: Mapping[str, Any], about: Mapping[str, Any]) -> Path:
    """Write trees, by name, and what JSON can hold about them; keep the step before.

    Returns:
        The folder of the step.

    Raises:
        ModuleNotFoundError: orbax is not installed.
        ValueError: the folder cannot be written.
    """
    where, text = folder / str(step), json.dumps(about)
    if len(text) > MOST_ABOUT:
        raise ValueError(
            f"what is to stand beside the state has {len(text):,} characters; at most "
            f"{MOST_ABOUT:,} are read again: leave out notes, or log fewer epochs, each longer"
        )
    with _manager(folder, f"{folder} cannot be written", "make room, or name another") as (
        ocp,
        manager,
    ):
        shutil.rmtree(folder / _DELETED, ignore_errors=True)
        for _, left in _steps(folder):
            if not (left / SEAL).exists():
                shutil.rmtree(left)
        manager.reload()
        saves = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        manager.save(step, args=ocp.args.Composite(**saves))
        (where / ABOUT).write_text(text)
        seal = json.dumps({"format": FORMAT, "files": _digests(where)})
        with files.replaced(where / SEAL) as new:
            new.write_text(seal)
        shutil.rmtree(folder / _DELETED, ignore_errors=True)
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


def read(where: Path, likes: Mapping[str, Any]) -> dict[str, Any]:
    """The trees of a step, by name; each like one whose names, shapes and dtypes are the same.

    Raises:
        ModuleNotFoundError: orbax is not installed.
        ValueError: they cannot be read.
    """
    with _manager(where.parent, f"{where} cannot be read", _FIX, read_only=True) as (ocp, manager):
        restores = {name: ocp.args.StandardRestore(tree) for name, tree in likes.items()}
        found = manager.restore(int(where.name), args=ocp.args.Composite(**restores))
        return {name: jax.tree.map(_like, found[name], tree) for name, tree in likes.items()}


def _steps(folder: Path) -> list[tuple[int, Path]]:
    """The steps in a folder, sealed or not, and where they are."""
    found = [*folder.iterdir()] if folder.is_dir() else []
    return [(int(where.name), where) for where in found if where.name.isdecimal()]


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
def _manager(
    folder: Path, what: str, fix: str, read_only: bool = False
) -> Iterator[tuple[Any, Any]]:
    """Orbax, and its manager of a folder, both silent; what they raise is said in words."""
    root = logging.getLogger()
    handlers, quiet = root.handlers[:], [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in quiet]
    try:
        for logger in quiet:
            logger.setLevel(logging.CRITICAL)
        ocp = files.installed("orbax.checkpoint")  # which gives the root logger a handler
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=not read_only,
            todelete_subdir=None if read_only else _DELETED,
            read_only=read_only,
        )
        with contextlib.closing(ocp.CheckpointManager(folder, options=options)) as manager:
            yield ocp, manager
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
