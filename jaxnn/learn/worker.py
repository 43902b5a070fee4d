"""Grade files in a process of their own, which can be stopped whatever a student's code does.

The process reads a path a line, and answers with a line of JSON each.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from typing import Any

from jaxnn.learn.result import Result

LIMIT = 20.0
GRACE = 10.0  # seconds beyond the limit, for what cannot be stopped from inside


class Worker:
    """The process, started when first needed and again after it was stopped."""

    def __init__(self, limit: float = LIMIT) -> None:
        """Grade with a time limit in seconds."""
        self.limit = limit
        self._process: subprocess.Popen[str] | None = None

    def grade(self, path: str) -> Result:
        """Grade a file."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([path, self.limit]) + "\n")
        process.stdin.flush()
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(self.limit + GRACE, stop)
        timer.start()
        try:
            answer = process.stdout.readline()
        finally:
            timer.cancel()
        if answer:
            return Result.from_json(json.loads(answer))
        self.close()
        if late.is_set():
            fault = f"{path}: stopped after {self.limit:g} s; does a loop never end?"
        else:
            fault = f"{path}: the code ended Python itself (status {process.returncode})"
        return Result("", "", fault=fault, kind="fault")

    def _started(self) -> "subprocess.Popen[str]":
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from jaxnn.learn import worker; worker.serve()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
            )
        return self._process

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def serve() -> None:
    """Answer, until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it ends it
    questions, answers = (
        os.fdopen(os.dup(0), encoding="utf-8"),
        os.fdopen(os.dup(1), "w", encoding="utf-8"),
    )
    nothing = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1, 2):
        os.dup2(nothing, handle)
    for line in questions:
        path, limit = json.loads(line)
        answers.write(json.dumps(answer(path, limit).to_json()) + "\n")
        answers.flush()


def answer(path: str, limit: float = LIMIT) -> Result:
    """Grade a file in this process."""
    from jaxnn.learn import grade, student

    try:
        with student.limited(limit), student.said(path, limit):
            work = student.read(path)
    except student.Fault as fault:
        return Result("", "", fault=str(fault), kind="fault")
    return grade.graded(work, limit)
