"""Trees of arrays on disk, by orbax: each step in a folder of its own, sealed when it is whole.

The seal is a file with a digest of every other file of the step. It is written last, and then the
step is given its name: until then it is in a hidden folder. A step of which a file was changed is
refused. Nothing else in the folder is touched.

Of several processes each writes, and reads, its own part of an array that is spread over them;
process 0 does all else, when each has written its part, and no step is named before.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax

from jaxnn import files, together
from jaxnn.ending import is_first
from jaxnn.train import arrays

FORMAT = 1
KEPT = 2
ABOUT, SEAL = "about.json", "seal.json"
MOST_ABOUT = 2**26  # bytes: of half a million epochs with five columns
_UNFINISHED = ".unfinished-jaxnn"  # what is being written or removed, and is nobody else's
_FIX = "remove it, to go on from the state before it"


def last_step(folder: Path) -> int | None:
    """The last step in a folder; None without one."""
    return max(_steps(folder), default=None)


def begin(folder: Path, step: int, trees: Any, about: Mapping[str, Any]) -> Callable[[], Path]:
    """Begin to write a tree of arrays, and what JSON can hold about it; keep the step before.

    All arrays are copied when this returns: they may be donated. The rest is for the function that
    is returned, in another thread if one likes: it waits until all is written, and names the step.

    Returns:
        A function that returns the folder of the step.

    Raises:
        ModuleNotFoundError: orbax is not installed.
        ValueError: the folder cannot be written, or holds under a number what is no step; as does
            the function, and both on every process.
    """
    text = json.dumps(about)
    if len(text) > MOST_ABOUT:
        raise ValueError(
            f"what is to stand beside the state has {len(text):,} characters; at most "
            f"{MOST_ABOUT:,} are read again: leave out notes, or log fewer epochs, each longer"
        )
    unfinished, where = folder / _UNFINISHED, folder / str(step)
    new = unfinished / str(step)
    in_words = partial(arrays.in_words, f"{folder} cannot be written", "make room, or name another")

    def start() -> arrays.Writing:
        if not new.is_dir():
            raise ValueError(
                f"{new} is not seen by all processes; the folder must be on a file system that "
                "they share: name another"
            )
        with in_words():
            return arrays.Writing(new, jax.tree.leaves(trees))

    def finish() -> Path:
        with _removed(unfinished), meeting:
            with in_words():
                writing.wait()
            meeting.tell()
            if is_first():
                with in_words():
                    writing.merge()
                    _named(new, where, text)
                    for old in sorted(_steps(folder))[:-KEPT]:
                        (folder / str(old)).rename(unfinished / str(old))
            meeting.tell()
        return where

    together.first(f"saving {where}", partial(_make_free, folder, new))
    try:
        writing = together.each(f"saving {where}", start)
    except BaseException:
        with _removed(unfinished):
            raise
    meeting = together.Meeting(f"saving {where}")
    return finish


def write(folder: Path, step: int, trees: Any, about: Mapping[str, Any]) -> Path:
    """Write a tree of arrays, as `begin` does, to the end; return the folder of the step."""
    return begin(folder, step, trees, about)()


def read_about(where: Path) -> dict[str, Any]:
    """What was written about the trees of a step, all of whose files are as they were.

    Raises:
        ValueError: one is not, or the step is of a newer format.
    """
    damaged = f"{where} is damaged: {_FIX}"
    together.first(f"reading {where}", partial(_check_sealed, where, damaged))

    def parsed() -> dict[str, Any]:
        content = files.read_bytes(where / ABOUT, MOST_ABOUT, damaged)
        return dict(files.parsed_json(str(where / ABOUT), content, damaged))

    return together.each(f"reading {where / ABOUT}", parsed)


def _check_sealed(where: Path, damaged: str) -> None:
    """Refuse a step of which a file is not what it was when it was sealed."""
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


def read(where: Path, like: Any) -> Any:
    """The tree of a step, whose structure, shapes and dtypes are those of `like`.

    Its arrays are laid as those of `like` are, whatever they were laid on when they were written.

    Raises:
        ModuleNotFoundError: orbax is not installed.
        ValueError: it cannot be read.
    """
    leaves, structure = jax.tree.flatten(like)
    read = together.each(f"reading {where}", partial(arrays.read, where, leaves))
    return jax.tree.unflatten(structure, read)


def _steps(folder: Path) -> list[int]:
    """The steps in a folder."""
    return [int(where.name) for where in _numbers(folder) if (where / SEAL).exists()]


def _numbers(folder: Path) -> list[Path]:
    """What is in a folder under a number."""
    found = [*folder.iterdir()] if folder.is_dir() else []
    return [where for where in found if where.name.isdecimal()]


def _make_free(folder: Path, new: Path) -> None:
    """Make a folder for a step that is unfinished, and remove what else is so.

    Raises:
        ValueError: it cannot be made, or what is no step has a number for a name, which a step will
            have one day.
    """
    others = [where.name for where in _numbers(folder) if not (where / SEAL).exists()]
    if others:
        raise ValueError(
            f"{folder} holds {files.listed(sorted(others), ', ')}, no state that was saved whole; "
            "what is named by a number there must be one: name another folder"
        )
    with arrays.in_words(f"{folder} cannot be written", "make room, or name another"):
        if new.parent.exists():
            shutil.rmtree(new.parent)
        new.mkdir(parents=True)


def _named(new: Path, where: Path, about: str) -> None:
    """Write beside a step what is about it, and last the seal, and give it its name."""
    (new / ABOUT).write_text(about)
    seal = json.dumps({"format": FORMAT, "files": _digests(new)})
    with files.replaced(new / SEAL) as file:
        file.write_text(seal)
    new.rename(where)


@contextlib.contextmanager
def _removed(unfinished: Path) -> Iterator[None]:
    """Remove, at the end, what is unfinished."""
    try:
        yield
    finally:
        if is_first():
            shutil.rmtree(unfinished, ignore_errors=True)


def _digests(where: Path) -> dict[str, str]:
    """A digest of each file of a step but the seal."""
    digests = {}
    for path in sorted(where.rglob("*")):
        if path.is_file() and path != where / SEAL:
            with files.opened(path) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
            digests[path.relative_to(where).as_posix()] = digest
    return digests
