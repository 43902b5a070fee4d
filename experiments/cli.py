"""The command line that every experiment shares."""

import sys
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
        status = tyro.cli(main)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = INTERRUPTED
    sys.exit(status)


def folder(path: Path) -> Path:
    """The output folder, made if needed.

    Raises:
        ValueError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--out {path} cannot be made a folder ({error.strerror}); name one that can be"
        ) from error
    return path
