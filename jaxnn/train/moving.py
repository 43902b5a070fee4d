"""An older run is moved away, whole, whenever the process that moves it is killed."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

MOVING, PREVIOUS = ".moving", "previous"
_LIST = ".names"


def move(path: Path, names: Sequence[str]) -> None:
    """Move files of these names to `previous` in their folder, in the place of those before them.

    A kill at any point leaves `.moving`, from which the same is done again to its end.
    """
    moving, previous = path / MOVING, path / PREVIOUS
    listed = moving / _LIST
    try:
        if not moving.exists():
            new = path / f"{MOVING}.new"
            _remove(new)
            new.mkdir()
            (new / _LIST).write_text(json.dumps(list(names)))
            new.rename(moving)
        if listed.exists():
            names = json.loads(listed.read_text())
            for name in names:
                if (path / name).exists():
                    (path / name).rename(moving / name)
            previous.mkdir(exist_ok=True)
            for name in names:
                _remove(previous / name)
            listed.unlink()
        for entry in moving.iterdir():
            entry.rename(previous / entry.name)
        moving.rmdir()
    except OSError as error:
        raise ValueError(
            f"the older run in {path} cannot be moved to {previous} ({error.strerror}); what was "
            f"moved is in {moving}, and the next run goes on with it: name another folder till then"
        ) from error


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
