"""Files: written whole in the place of older ones, read in bounds; and a lock on a folder.

    with files.replaced(path) as new:
        new.write_text(...)                    # `path` is as it was until all of it is there

A path that is no ordinary file (a folder, a named pipe, a device) is refused before it is opened.
"""

import contextlib
import importlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
# Of one byte of JSON some 20 of Python's objects are made, at worst.
MOST_JSON = 2**24
_UNFINISHED = ".unfinished-jaxnn-"
_OLD = 24 * 60 * 60  # seconds


def listed(faults: Sequence[str], separator: str = "; ") -> str:
    """The first ten, each cut to what can be read, and how many more there are."""
    more = [f"and {len(faults) - 10} more"] if len(faults) > 10 else []
    return separator.join([f"{one:.300}" for one in faults[:10]] + more)


def counted(number: int, one: str, more: str = "") -> str:
    """A number of things in words: "1 epoch", "2 epochs", or in the plural `more`."""
    return f"{number} {one if number == 1 else more or f'{one}s'}"


def installed(module: str, extra: str = "train") -> Any:
    """Import a module of a package that only an extra of jaxnn's installs.

    Raises:
        ModuleNotFoundError: it is not installed; the message is the command that does.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # It, or a package that it is in; a namespace may be there without it.
        if not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ModuleNotFoundError(
            f'{error.name} is not installed: pip install "jaxnn[{extra}]"', name=error.name
        ) from error


def as_path(path: Any, name: str = "path") -> Path:
    """Return a path that is text or a `pathlib.Path` as the second; there need not be a file.

    `name` is what messages call it.

    Raises:
        TypeError: it is neither.
        ValueError: no file can have it, or none that may be looked at.
    """
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str):
        raise TypeError(f"{name} is {path!r:.50}; it must be text or a pathlib.Path: name one")
    try:
        Path(text).stat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # it may be written
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{name} is {text!r:.50}; it must be one that can be opened ({why}): name another"
        ) from error
    return Path(text)


def opened(path: str | Path) -> BinaryIO:
    """Open an ordinary file, to read its bytes.

    Raises:
        TypeError: the path is neither text nor a Path.
        ValueError: there is no such file, it is not an ordinary one, or it may not be read.
    """
    path = as_path(path)
    try:
        kind = _kind(path)
        if kind == "a file":
            return path.open("rb")
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}); it must be a file that may be: check it"
        ) from error
    raise ValueError(
        f"{path} is not a file ({kind or 'there is none'}); it must be an ordinary one: check the "
        "path"
    )


def read_bytes(path: str | Path, most: int, fix: str = "check that it is the right file") -> bytes:
    """Return what an ordinary file of at most so many bytes holds.

    Raises:
        TypeError, ValueError: as `opened`; it is larger, or grows; `fix` ends the message.
    """
    with opened(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            content = b"" if size > most else file.read(size + 1)
        except OSError as error:
            raise ValueError(
                f"{path} cannot be read ({error.strerror}); check that it is the right file"
            ) from error
    if size > most:
        raise ValueError(f"{path} has {size:,} bytes; it must have at most {most:,}: {fix}")
    if len(content) != size:
        raise ValueError(
            f"{path} has not the {size} bytes that it was said to have; it must be an ordinary "
            "file that nothing writes to while it is read: check the path"
        )
    return content


def read_json(path: str | Path, fix: str, most: int = MOST_JSON) -> Any:
    """Return what a JSON file of at most so many bytes holds, in UTF-8, 16 or 32.

    Raises:
        TypeError, ValueError: as `read_bytes`, or it is not JSON, or goes too deep; `fix` ends the
            message.
    """
    return parsed_json(str(path), read_bytes(path, most, fix), fix)


def parsed_json(where: str, content: str | bytes, fix: str) -> Any:
    """Return what a text holds that is JSON.

    Raises:
        ValueError: it is not JSON, or goes too deep; `where` begins the message and `fix` ends it.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError(
            f"{where} has lists or objects too deep inside each other; no such file has: {fix}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{where} is not JSON ({error!s:.200}); {fix}") from error


@contextlib.contextmanager
def replaced(path: str | Path) -> Iterator[Path]:
    """Give the path of a file to write, which then takes the place of the one at `path`.

    Until all is written, and on the disk, the older file is as it was, and so it stays after an
    error or a kill. The new one has its mode, and is where its link leads to if it is one.

    Raises:
        TypeError: the path is neither text nor a Path.
        ValueError: the file cannot be written: no such folder, not an ordinary file, no room.
    """
    with all_replaced([as_path(path)]) as (new,):
        yield new


@contextlib.contextmanager
def all_replaced(
    paths: Sequence[Path], older: Sequence[Path] = (), name: Path | None = None
) -> Iterator[list[Path]]:
    """Give paths of files to write, which then take the places of those at `paths`, as `replaced`.

    None takes its place before all are written. Then `older` are removed in their order, and the
    new are named in theirs.

    Raises:
        ValueError: they cannot be written; the message calls them by `name`, or by the first path.
    """
    kept = "all that was there is as it was: make room, or name another place"
    try:
        with contextlib.ExitStack() as stack:
            places = [target(path) for path in paths]
            made = [_made_beside(place, stack) for place in places]
            pairs = list(zip(made, places, strict=True))
            modes = [stat.S_IMODE((t if t.exists() else new).stat().st_mode) for new, t in pairs]
            yield made
            for new, mode in zip(made, modes, strict=True):
                _to_disk(new, os.O_RDWR)
                new.chmod(mode)
            if older or len(made) > 1:
                kept = "some of what was there may be gone, and is not read: save again"
            for file in older:
                file.unlink(missing_ok=True)
            for new, place in pairs:
                new.replace(place)
            # The files are there; not every file system can wait for a folder.
            with contextlib.suppress(OSError):
                for folder in {place.parent for place in places}:
                    _to_disk(folder, os.O_RDONLY)
    except OSError as error:
        why = error.strerror or error
        raise ValueError(f"{name or paths[0]} cannot be written ({why}); {kept}") from error


def writable(folder: Path) -> Path:
    """Return a folder in which files can be made; it is made if there is none.

    Raises:
        ValueError: it cannot be made, or nothing can be written into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written to ({error.strerror}); name a folder that can"
        ) from error
    return folder


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Keep every other process that asks for the same folder out of it.

    It is made if there is none. In one thread it may be asked for again inside.

    Raises:
        ModuleNotFoundError: filelock is not installed.
        TypeError: the folder is neither text nor a Path.
        ValueError: another process has it, or it cannot be locked.
    """
    filelock = installed("filelock")
    folder = as_path(folder)
    try:
        lock = filelock.FileLock(folder / ".lock", timeout=0, is_singleton=True)
        lock.acquire()
    except filelock.Timeout:
        raise ValueError(
            f"{folder} is in use by another run; wait for it, or name another folder"
        ) from None
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be locked ({error.strerror or error}); it must be a folder that may "
            "be written to: name another"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _kind(path: Path) -> str:
    """What a path leads to, in words; none if there is nothing."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return "a file" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "something else")


def target(path: Path) -> Path:
    """Return where a link leads to, or the path itself.

    Raises:
        ValueError: no file can be written there.
    """
    kind = _kind(path)
    if kind == "a folder":
        raise ValueError(f"{path} is a folder; it must be a file's path: add a name")
    if kind not in ("a file", ""):
        raise ValueError(f"{path} is {kind}; it must be an ordinary file: name another")
    place = path.resolve()
    if not place.parent.is_dir():
        raise ValueError(f"{path.parent} is not a folder; make it, or name another for {path.name}")
    if kind and not os.access(place, os.W_OK):
        raise ValueError(
            f"{path} cannot be written (it is read-only); make it writable, or name another place"
        )
    return place


def _made_beside(place: Path, stack: contextlib.ExitStack) -> Path:
    """Make an empty file of the same name in a folder of its own beside, gone with the stack.

    What killed processes left of that kind is removed when it is old: whether one lives cannot be
    known, for it may be another container's or machine's.
    """
    for left in place.parent.glob(f"{_UNFINISHED}*"):
        if _is_old(left):
            shutil.rmtree(left, ignore_errors=True)
    folder = tempfile.TemporaryDirectory(
        prefix=_UNFINISHED, dir=place.parent, ignore_cleanup_errors=True
    )
    new = Path(stack.enter_context(folder)) / place.name
    new.touch()
    return new


def _is_old(folder: Path) -> bool:
    """Whether nothing was written into a folder for a day."""
    try:
        last = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    except OSError:  # it is gone meanwhile, or another user's
        return False
    return time.time() - last > _OLD


def _to_disk(path: Path, how: int) -> None:
    """Wait until a file, or the names in a folder, opened so, are on the disk."""
    handle = os.open(path, how)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
