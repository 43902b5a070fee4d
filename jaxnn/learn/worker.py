"""Grade files in a process of their own, which can be stopped whatever a student's code does."""

import contextlib
import multiprocessing
import os
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

from jaxnn.learn.guard import LIMIT, PATIENCE
from jaxnn.learn.result import Result

GRACE = 10.0  # seconds of the clock beyond all, for what cannot be stopped from inside


class Worker:
    """The process, started when first needed and again after it was stopped."""

    def __init__(self, limit: float = LIMIT, *, fresh: bool = False) -> None:
        """Grade with a time limit in seconds.

        Args:
            limit: of one file, in seconds of computing.
            fresh: nothing was computed with JAX in this process yet, so that on Linux it can be
                split in two; else, and elsewhere, another is started, which imports all again.
        """
        self.limit = limit
        self._kind = "fork" if fresh and sys.platform == "linux" else "spawn"
        self._process: Any = None
        self._ours: Connection | None = None

    def grade(self, path: str) -> Result:
        """Grade a file."""
        ours = self._started()
        ours.send((path, self.limit))
        late = not ours.poll(PATIENCE * self.limit + GRACE)
        if not late:
            with contextlib.suppress(EOFError, OSError):
                answer: Result = ours.recv()
                return answer
            self._process.join()
        status = self._process.exitcode
        self.close()
        if late:
            fault = f"{path}: stopped after {self.limit:g} s; does a loop never end?"
        else:
            fault = f"{path}: the code ended Python itself (status {status})"
        return Result("", "", fault=fault, kind="fault")

    def _started(self) -> Connection:
        if self._ours is None:
            context: Any = multiprocessing.get_context(self._kind)
            self._ours, theirs = context.Pipe()
            self._process = context.Process(target=serve, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
        assert self._ours is not None
        return self._ours

    def close(self) -> None:
        """End the process."""
        if self._ours is not None:
            self._process.kill()
            self._process.join()
            self._ours.close()
            self._ours = None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def serve(connection: Connection) -> None:
    """Answer, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it ends it
    nothing = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1, 2):
        os.dup2(nothing, handle)
    with contextlib.suppress(EOFError):
        while True:
            connection.send(answer(*connection.recv()))


def answer(path: str, limit: float = LIMIT) -> Result:
    """Grade a file in this process."""
    from jaxnn.learn import grade, guard, student

    try:
        with guard.limited(limit), guard.said(path):
            work = student.read(path)
    except guard.Fault as fault:
        return Result("", "", fault=str(fault), kind="fault")
    return grade.graded(work, limit)
