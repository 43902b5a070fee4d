"""The command line that every experiment shares."""

import sys
import tempfile
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path

import tyro

INTERRUPTED = 130  # what a shell expects after Ctrl-C


def run(main: Callable[..., int]) -> None:
    """Call `main` with its arguments from the command line and exit with its status.

    A mistake in the input is printed as one message and exits with 2; Ctrl-C outside training,
    where there is nothing to keep, exits with 130.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(
            line_buffering=True
        )  # a log that is followed shows lines as they come
    try:
        spec = sys.modules["__main__"].__spec__
        status = tyro.cli(main, prog=f"python -m {spec.name}" if spec else None)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = INTERRUPTED
    sys.exit(status)


def check_positive(**options: float) -> None:
    """Refuse options that must be finite and above 0, under their names on the command line.

    Raises:
        ValueError: one is not.
    """
    for name, value in options.items():
        if not 0 < value < float("inf"):
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} is {value}; it must be finite and above 0")


def folder(path: Path) -> Path:
    """The output folder, made if needed.

    Raises:
        ValueError: it cannot be made, or nothing can be written into it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise ValueError(
            f"--out {path} cannot be written to ({error.strerror}); name a folder that can"
        ) from error
    return path
