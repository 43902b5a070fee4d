"""What was begun, solved and hinted: one JSON file, in the folder for a user's data."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxnn import files


def place() -> Path:
    """Return the file of the progress: $JAXNN_LEARN, or learn.json in the user's data folder."""
    if told := os.environ.get("JAXNN_LEARN"):
        return Path(told).expanduser()
    if sys.platform == "win32" and (folder := os.environ.get("LOCALAPPDATA")):
        return Path(folder) / "jaxnn" / "learn.json"
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "jaxnn" / "learn.json"


def load(say: Callable[[str], Any]) -> dict[str, dict[str, Any]]:
    """Return what is known of each exercise; a damaged file is moved aside, and that is said.

    Raises:
        ValueError: it cannot be read, or not moved.
    """
    path = place()
    if not path.exists():
        return {}
    try:
        known = files.read_json(path, "")
    except (TypeError, ValueError):
        known = None
        if path.is_dir():
            raise ValueError(
                f"{path} is a folder; the progress is kept in a file: name one in JAXNN_LEARN"
            ) from None
    if isinstance(known, dict) and all(map(_whole, known.values())):
        return known
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    try:
        path.rename(aside)
    except OSError as error:
        raise ValueError(f"{path} is damaged and cannot be moved ({error.strerror})") from error
    say(f"The progress in {path} could not be read; it was moved to {aside}, and a new one begun.")
    return {}


def _whole(mine: Any) -> bool:
    """Whether what is known of an exercise has the form in which `note` writes it."""
    if not isinstance(mine, dict):
        return False
    lists = [mine.get(key, []) for key in ("begun", "solved", "seen")]
    return (
        all(isinstance(v, list) and all(isinstance(g, str) for g in v) for v in lists)
        and isinstance(mine.get("hints", 0), int)
        and isinstance(mine.get("file", ""), str)
    )


def note(name: str, say: Callable[[str], Any], **changes: Any) -> dict[str, Any]:
    """Change what is known of an exercise, and return it.

    A grade once solved stays solved: lists grow, numbers never shrink.

    Raises:
        ValueError: the file cannot be written.
    """
    path = place()
    files.writable(path.parent)
    with _alone(path.parent):
        known = load(say)
        mine = known.setdefault(name, {})
        for key, value in changes.items():
            if isinstance(value, list):
                old = mine.get(key, [])
                value = [*old, *(item for item in value if item not in old)]
            elif isinstance(value, int):
                value = max(value, mine.get(key, 0))
            mine[key] = value
        with files.replaced(path) as new:
            new.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return mine


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes out while the file is read and written, where filelock is installed."""
    try:
        filelock = files.installed("filelock")
    except ModuleNotFoundError:
        yield
        return
    try:
        with filelock.FileLock(folder / "learn.lock", timeout=5):
            yield
    except filelock.Timeout:
        raise ValueError(f"{folder} is in use by another process; try again") from None
