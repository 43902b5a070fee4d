"""The command line that every experiment shares."""

import functools
import inspect
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import tyro

from experiments import meshes, recall
from jaxnn import files, processes, train, verify
from jaxnn.settings import check_seed
from jaxnn.train import folder as runs
from jaxnn.train import moving
from jaxnn.verify.targets import UsageError

# What a shell expects after Ctrl-C, and after SIGTERM.
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
# What scripts write into their folder, beside what fit does: with an older run, of whatever script,
# it goes where that goes.
DRAWN = (
    *("curves.png", "confusion.png", "misread.png", "loss.png", "reconstructions.png"),
    *("samples.png", "plane.png", "moons.png", "relu.png", "square.png", "gradients.png"),
    *("ladder.png", "initialisation.png", "relu_op.png", "residuals.png", "trials.png"),
    *("verifier_benchmark.png", "causes.png", "table.txt", "sample.txt", "trials.csv"),
)
_REGISTRY = tyro.constructors.ConstructorRegistry()


def _path(word: str) -> Path:
    if not word:  # which Path takes for the folder that one is in
        raise ValueError("an empty word names no file or folder")
    return Path(word)


# How --help names what is read from one word, and what reads it.
_WORDS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    Path: ("PATH", _path),
    Path | None: ("PATH", _path),
    int | None: ("INT", int),
    float | None: ("FLOAT", float),
    str | None: ("STR", str),
}


@_REGISTRY.primitive_rule
def _one_word(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """An option that may be left out is INT in --help, not {None}|INT; no path is an empty word."""
    if info.type not in _WORDS:
        return None
    metavar, read = _WORDS[info.type]
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: isinstance(value, info.type),
        str_from_instance=lambda value: [str(value)],
    )


class Terminated(KeyboardInterrupt):
    """SIGTERM, which asks for the same as Ctrl-C."""


def run(main: Callable[..., int]) -> None:
    """Call `main` with its arguments from the command line and exit with its status.

    A script with the options --coordinator, --processes and --process joins the others that they,
    or the environment, name: what ends one ends all, and process 0 alone prints. One without them
    refuses to run beside others.

    A mistake in the input, or a file that cannot be read or written, is printed as one message and
    exits with 2; Ctrl-C outside training, where there is nothing to keep, exits with 130, SIGTERM
    with 143. A --seed is checked here, for every script. Options that name an earlier run, as
    `experiments.recall` has them, bring that run's other options as the defaults.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        # A log that is followed shows lines as they come, and a character that a terminal does not
        # have is shown by its number.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        with _terminable():
            options = recall.completed(main, functools.partial(_joined, main))
            check_seed("--seed", options.get("seed", 0))
            status = recall.settled(main)(**options)
    except (ValueError, OSError, UsageError) as error:
        status = _ended(f"error: {error}", 2, error)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        status = _ended("error: this takes more memory than there is; make it smaller", 2)
    except KeyboardInterrupt as error:
        status = TERMINATED if isinstance(error, Terminated) else INTERRUPTED
        _ended("interrupted", status)
        if vars(sys.modules["__main__"]).get("main") is main:
            # XLA may still compile in threads of its own: an ordinary exit is often a fault then.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    sys.exit(status)


def _joined(main: Callable[..., int], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the command line, when the processes that they name have been joined.

    That must come before a run is read, for which JAX wakes the devices.
    """
    options = _parsed(main, defaults)
    meshes.join(options)
    return options


def _ended(sentence: str, status: int, error: BaseException | None = None) -> int:
    """Print why the script ends, and return its status; of several processes end all."""
    if processes.several():
        lost = error and processes.lost_connection(error)
        processes.end(f"error: {lost}" if lost else sentence, 1 if lost else status)
    print(sentence, file=sys.stderr)
    return status


def _parsed(main: Callable[..., int], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the command line, by the names of `main`'s parameters."""

    @functools.wraps(main)
    def asked(**options: Any) -> dict[str, Any]:
        return options

    signature = inspect.signature(main)
    asked.__dict__["__signature__"] = signature.replace(
        parameters=[
            one.replace(default=defaults.get(name, one.default))
            for name, one in signature.parameters.items()
        ]
    )
    spec = sys.modules["__main__"].__spec__
    # A package is called by its own name, not its __main__'s.
    prog = f"python -m {spec.name.removesuffix('.__main__')}" if spec else None
    options: dict[str, Any] = tyro.cli(asked, prog=prog, registry=_REGISTRY)
    return options


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM be heard as Ctrl-C is, wherever the script is."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check_positive(**options: float) -> None:
    """Refuse options that must be finite and above 0, under their names on the command line.

    Raises:
        ValueError: one is not, or it is an integer beyond 32 bits, which is what JAX counts in.
    """
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        if not 0 < value < float("inf"):
            raise ValueError(f"{option} is {value}; it must be finite and above 0")
        if isinstance(value, int) and value >= 2**31:
            raise ValueError(f"{option} is {value}; it must be below 2^31: choose less")


def steps_in(epochs: int, examples: int, batch_size: int) -> int:
    """Return how many optimizer steps so many epochs are.

    Raises:
        ValueError: more than JAX can count.
    """
    steps = epochs * max(examples // batch_size, 1)
    if steps >= 2**31:
        raise ValueError(
            f"--epochs is {epochs}, which is {steps} steps; they must be below 2^31: choose fewer"
        )
    return steps


def split(epochs: int, at_once: int) -> int:
    """Return how many epochs one call of a program makes: a divisor, at most `at_once`.

    Raises:
        ValueError: `epochs` is below 1.
    """
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}; it must be at least 1")
    return max(n for n in range(1, min(at_once, epochs) + 1) if epochs % n == 0)


def holds(model: Any, params: Any, batch: Any, config: Any) -> bool:
    """Verify a model's gradient, print the report, and return whether to train with it."""
    report = verify.gradient(model.loss, model.manual_grad, params, batch, config)
    print(f"\n{report}\n")
    return report.status != "fail"  # a kink under the data is no reason not to train


def took(result: train.Fit, gradient: str, resume: Path | None) -> str:
    """How long a run trained, in words; of one that went on, only since then."""
    since = ", since it went on" if resume else ""
    return f"{result.seconds:.1f} s with gradient {gradient!r}, compilation included{since}"


def folder(path: Path, *names: str) -> Path:
    """The output folder, made if needed.

    Args:
        path: the folder.
        names: files in it that will be written when what they hold took long to compute.

    Raises:
        ValueError: it cannot be made, nothing can be written into it, or one of the files not.
    """
    files.writable(path)
    for file in (path / name for name in names):
        if file.exists() and not (file.is_file() and os.access(file, os.W_OK)):
            raise ValueError(
                f"--out has {file}, which cannot be overwritten; remove it, or name another folder"
            )
    return path


def set_aside(run: Path) -> None:
    """Move an older run, of whatever script, to `previous` in its folder, as fit does by itself."""
    names = (*runs.NAMES, *DRAWN)
    if any((run / name).exists() for name in names):
        moving.move(run, names)
        print(f"the run that was in {run} is in {run / moving.PREVIOUS} now")


@contextmanager
def run_folder(path: Path) -> Iterator[Path]:
    """The output folder of a run, made if needed, and locked until what it writes is written.

    Of several processes the first makes and locks it.

    Raises:
        ValueError: as `folder`, or another run is using it.
    """
    first = processes.is_first()
    with files.locked(folder(path, "params.safetensors")) if first else nullcontext():
        yield path
