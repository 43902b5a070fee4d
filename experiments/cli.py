"""The command line that every experiment shares."""

import functools
import inspect
import os
import sys
import tempfile
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import tyro

from jaxnn.verify.targets import UsageError

INTERRUPTED = 130  # what a shell expects after Ctrl-C
_REGISTRY = tyro.constructors.ConstructorRegistry()


@_REGISTRY.primitive_rule
def _optional_path(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Path | None] | None:
    """A path that may be left out is a PATH in --help, not {None}|PATH."""
    if info.type != Path | None:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: Path(words[0]),
        is_instance=lambda value: value is None or isinstance(value, Path),
        str_from_instance=lambda value: [str(value)],
    )


def run(main: Callable[..., int]) -> None:
    """Call `main` with its arguments from the command line and exit with its status.

    A mistake in the input, or a file that cannot be read or written, is printed as one message and
    exits with 2; Ctrl-C outside training, where there is nothing to keep, exits with 130.
    A --seed is checked here, for every script.
    """

    @functools.wraps(main)
    def checked(*args: Any, **options: Any) -> int:
        seed = inspect.signature(main).bind(*args, **options).arguments.get("seed", 0)
        if not 0 <= seed < 2**32:
            raise ValueError(f"--seed is {seed}; it must be at least 0 and below 2^32")
        return main(*args, **options)

    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(
            line_buffering=True
        )  # a log that is followed shows lines as they come
    try:
        spec = sys.modules["__main__"].__spec__
        # A package is called by its own name, not its __main__'s.
        prog = f"python -m {spec.name.removesuffix('.__main__')}" if spec else None
        status = tyro.cli(checked, prog=prog, registry=_REGISTRY)
    except (ValueError, OSError, UsageError) as error:
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


def folder(path: Path, *files: str) -> Path:
    """The output folder, made if needed.

    Args:
        path: the folder.
        files: names in it that will be written when what they hold took long to compute.

    Raises:
        ValueError: it cannot be made, nothing can be written into it, or one of the files not.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise ValueError(
            f"--out {path} cannot be written to ({error.strerror}); name a folder that can"
        ) from error
    for file in (path / name for name in files):
        if file.exists() and not (file.is_file() and os.access(file, os.W_OK)):
            raise ValueError(
                f"--out has {file}, which cannot be overwritten; remove it, or name another folder"
            )
    return path
