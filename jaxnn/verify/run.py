"""Run one check for the command line: with its progress shown, whatever it does to end."""

import dataclasses
import logging
import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from jaxnn.verify.find import Check
from jaxnn.verify.findings import described
from jaxnn.verify.report import Report
from jaxnn.verify.targets import own_frames

# Seconds of one check before its progress is shown; then between lines, on a terminal and off it.
PATIENCE, REWRITE, REPEAT = 2.0, 0.5, 30.0
# What the verifier logs once it has its verdict.
VERDICT_KNOWN = "looking for the cause"


def run(check: Check, seed: int) -> Report:
    """Return a check's report; if what it verifies raises or exits, that is a failure.

    Raises:
        KeyboardInterrupt: the person at the terminal does not want to wait.
    """
    started = time.perf_counter()
    try:
        report = check.run()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an exit of theirs is none of ours, whatever its status
        frames = own_frames(error)
        at = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
        problem = f"it raised {described(error, at)}"
        report = Report(check.name, None, (), (problem,), time.perf_counter() - started)
    words = [
        "python",
        "-m",
        "jaxnn.verify",
        check.target,
        "--seed",
        str(seed),
        "--only",
        check.name,
    ]
    return dataclasses.replace(report, name=check.name, seed=seed, command=shlex.join(words))


@contextmanager
def no_exit() -> Iterator[None]:
    """Have `os._exit`, which ends a process at once, raise SystemExit in this process instead."""
    real, process = os._exit, os.getpid()

    def leave(status: int) -> NoReturn:
        if os.getpid() != process:  # in a fork it is how to end
            real(status)
        raise SystemExit(status)

    os._exit = leave
    try:
        yield
    finally:
        os._exit = real


class _Stage(logging.Handler):
    """Keeps the last message that the verifier logged."""

    text = "starting"

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()


@contextmanager
def progress(name: str) -> Iterator[None]:
    """Say on stderr how far a long check is: on a terminal in one changing line."""
    stage, done, began = _Stage(), threading.Event(), time.perf_counter()
    terminal = sys.stderr.isatty()
    logger = logging.getLogger("jaxnn.verify")
    before = logger.level, logger.propagate

    def show() -> None:
        pause = PATIENCE if terminal else REPEAT
        while not done.wait(pause):
            line = f"{stage.text}, {time.perf_counter() - began:.0f} s"
            if stage.text.startswith(VERDICT_KNOWN):  # what can be done comes before a long name
                line = f"FAIL (Ctrl-C: the report without a cause): {line}: {name}"
            else:
                line = f"{name}: {line}"
            if terminal:
                pause = REWRITE
                line = f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}"
            print(line, end="" if terminal else "\n", file=sys.stderr, flush=True)
        if terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    thread = threading.Thread(target=show, daemon=True)
    logger.addHandler(stage)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False  # a handler that a user's file gave the root would print every stage
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        logger.removeHandler(stage)
        logger.level, logger.propagate = before
