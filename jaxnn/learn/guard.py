"""Run a student's code: within a time, what it prints kept, whatever it raises said in words."""

import bdb
import builtins
import contextlib
import io
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

LIMIT = 20.0  # seconds of computing
PATIENCE = 3  # times that many may go by, for a machine that does other things too
MOST_PRINTED = 4000


class Fault(Exception):  # noqa: N818
    """What a student must repair before anything can be graded: one sentence."""

    kind = "fault"


class TimeUp(BaseException):
    """The time is over: so many seconds."""


class _Printed(io.StringIO):
    """What was printed, up to a length."""

    def write(self, text: str) -> int:
        if self.tell() <= MOST_PRINTED:
            super().write(text[: MOST_PRINTED + 1])
        return len(text)


@contextlib.contextmanager
def printing() -> Iterator[io.StringIO]:
    """Catch what is printed inside, and let nothing be asked for."""
    printed, kept, asked = _Printed(), sys.stdin, builtins.input
    sys.stdin = io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield printed
    finally:
        sys.stdin, builtins.input = kept, asked


def shown(printed: io.StringIO) -> str:
    """What was printed, cut."""
    text = printed.getvalue()
    return text if len(text) <= MOST_PRINTED else text[:MOST_PRINTED] + "\n... (and more)"


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeUp inside once the time is over, where the system has such timers.

    Time is that of this process, so that a busy machine stops nobody's right answer; what only
    waits is stopped after `PATIENCE` times as many seconds of the clock.
    """
    usable = hasattr(signal, "setitimer") and (
        threading.current_thread() is threading.main_thread()
    )
    if not usable:
        yield
        return

    def over(number: int, frame: Any) -> None:
        raise TimeUp(seconds)

    timers = (
        (signal.ITIMER_PROF, signal.SIGPROF, seconds),
        (signal.ITIMER_REAL, signal.SIGALRM, PATIENCE * seconds),
    )
    before = [signal.signal(number, over) for _, number, _ in timers]
    for timer, _, limit in timers:
        signal.setitimer(timer, limit, 0.5)
    try:
        yield
    finally:
        for (timer, number, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


@contextlib.contextmanager
def said(path: str) -> Iterator[None]:
    """Say whatever a student's code raises inside, with their line.

    Raises:
        Fault: it raised.
    """
    try:
        yield
    except Fault:
        raise
    except TimeUp as error:
        raise Fault(
            f"{where(path, error)}: stopped after {error.args[0]:g} s, while this line was "
            "running; does a loop never end?"
        ) from None
    except SystemExit as error:
        raise Fault(f"{where(path, error)}: the code ends Python (exit); take that out") from None
    except KeyboardInterrupt as error:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # it may be Ctrl-C
            raise
        raise Fault(
            f"{where(path, error)}: the code raises KeyboardInterrupt; take that out"
        ) from None
    except BaseException as error:
        raise Fault(f"{where(path, error)}: {in_words(error)}") from None


def where(path: str, error: BaseException) -> str:
    """The student's own last line that an error came through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    if not frames:
        return path or "your code"
    text = f" `{frames[-1].line}`" if frames[-1].line else ""
    return f"{path}, line {frames[-1].lineno}{text}"


def in_words(error: BaseException) -> str:
    """An error in a student's words."""
    try:
        text = " ".join(str(error).split())
    except Exception as second:
        return f"{type(error).__name__}, whose text cannot be had ({type(second).__name__})"
    if isinstance(error, NotImplementedError):
        return "it is not written yet"
    if isinstance(error, ModuleNotFoundError):
        return f"there is no module {error.name!r} here; jax and numpy are all that is needed"
    if isinstance(error, bdb.BdbQuit):
        return "a debugger was asked for here, or just above; take breakpoint() or set_trace() out"
    if isinstance(error, RecursionError):
        return "a function calls itself without end"
    if isinstance(error, NameError):
        name = getattr(error, "name", None) or text
        near = text.split("Did you mean: ")
        more = f"; did you mean {near[1]}" if len(near) > 1 else ""
        return f"the name {name!r} has no value there{more}"
    if "immutable" in text and "item assignment" in text:
        return "JAX arrays cannot be assigned to in place; use x = x.at[...].set(...) or .add(...)"
    if "read-only" in text:
        return "this array may not be written to: copy it first (np.array(x)), or use x.at[...].set"
    if isinstance(error, AttributeError) and getattr(error, "name", None):
        return f"{type(error.obj).__name__} has no {error.name!r}"
    if any(
        word in text
        for word in (
            "ncompatible shapes",
            "could not be broadcast",
            "dot_general",
            "not broadcast",
            "mismatch in its core dimension",
        )
    ):
        return f"the shapes do not fit: {text:.200}"
    if isinstance(error, (OSError, PermissionError)):
        return f"it reads or writes a file that is not there ({text:.100}); nothing here needs one"
    if "Tracer" in text or "traced array" in text:
        return "a Python decision on an array's values; use jnp.where"
    if isinstance(error, MemoryError):
        return "there is not enough memory for it"
    return f"{type(error).__name__}: {text:.200}" if text else type(error).__name__
