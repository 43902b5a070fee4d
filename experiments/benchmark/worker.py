"""PyTorch in a process and an interpreter of its own, whose arms take turns like any other.

PyTorch need not be installed beside the JAX that is measured, and often cannot be: the worker's
interpreter has PyTorch, jaxnn and any JAX, draws the same inputs, and times a turn by its own
clock while the benchmark's process waits. Questions and answers are pickled through a pipe.
"""

import contextlib
import importlib.metadata
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax

from experiments import torch_peer
from experiments.benchmark.arms import Arm, Builds, LeftOutError, answer, in_a_line
from experiments.benchmark.cases import Sizes, cases
from experiments.benchmark.measure import timed
from experiments.benchmark.peers import left_out

ROOT = Path(__file__).parents[2]
# Threads that wait in a busy loop would take the cores from the arm whose turn it is; and JAX there
# holds the inputs, for which it must not reserve a GPU's memory.
SETTINGS = {"OMP_WAIT_POLICY": "PASSIVE", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


class Worker:
    """PyTorch's arms in another process.

    Attributes:
        about: the versions there; empty where there is no PyTorch.
        pids: of the process, where there is one.
    """

    def __init__(self, connection: Connection | None, pid: int | None = None) -> None:
        """Ask the process at the other end of a connection who it is; None for no process."""
        self._connection = connection
        self.about: dict[str, str] = self._ask("about") if connection else {}
        self.pids = (pid,) if pid else ()

    def builds(self, case: str) -> Builds:
        """What builds PyTorch's arms of a case."""
        if self._connection is None:
            return left_out(torch_peer.MISSING)
        here, there = jax.default_backend(), self.about["backend"]
        if here != there:
            return left_out(f"it would run beside JAX's {there}, and is compared with JAX's {here}")
        try:
            names = self._ask("case", case)
        except (LeftOutError, RuntimeError) as error:  # its process may have ended
            return left_out(str(error))
        return {name: partial(self._build, name) for name in names}

    def _build(self, name: str) -> Arm:
        seconds: float | None = self._ask("build", name)
        result = partial(self._ask, "answer", name)
        turn = partial(self._ask, "seconds", name)
        return Arm(result, compile_seconds=seconds, seconds=turn)

    def _ask(self, *question: Any) -> Any:
        """The answer to a question.

        Raises:
            LeftOutError: an arm cannot run there.
            RuntimeError: something failed there, or the process has ended.
        """
        assert self._connection is not None
        try:
            self._connection.send(question)
            error, found = self._connection.recv()
        except (EOFError, OSError) as ended:
            raise RuntimeError(f"PyTorch's process ended when it was asked {question}") from ended
        if error is not None:
            raise {"LeftOutError": LeftOutError}.get(error, RuntimeError)(found)
        return found


@contextlib.contextmanager
def working(python: Path | None, sizes: Sizes) -> Iterator[Worker]:
    """A worker, in this interpreter unless another is given; one without arms if none has PyTorch.

    Raises:
        ValueError: the interpreter that is given cannot be run, or has no PyTorch or jaxnn.
    """
    if python is None and not torch_peer.installed:
        yield Worker(None)
        return
    ours, theirs = Pipe()
    with ours, theirs:
        command = [
            str(python.absolute() if python else sys.executable),  # it is run in another folder
            "-m",
            __name__,
            str(theirs.fileno()),
            *sizes.words,
        ]
        try:
            process = subprocess.Popen(
                command, cwd=ROOT, env=SETTINGS | os.environ, pass_fds=[theirs.fileno()]
            )
        except OSError as error:
            raise ValueError(
                f"--torch {python} cannot be run ({error.strerror}); name the Python of an "
                "environment with PyTorch and jaxnn"
            ) from error
        theirs.close()
        try:
            try:
                worker = Worker(ours, process.pid)
            except RuntimeError as error:
                raise ValueError(
                    f"{command[0]} does not say what it has ({error}); --torch names the Python of "
                    "an environment with PyTorch and jaxnn"
                ) from error
            yield worker
        finally:
            ours.close()  # which ends it
            process.wait()


def serve(connection: Connection, sizes: Sizes) -> None:
    """Answer until nobody asks any more."""
    known = cases(sizes)
    builds: Builds = {}
    arms: dict[str, Arm] = {}

    def answered(question: str, *given: Any) -> Any:
        nonlocal builds
        if question == "about":
            return about()
        if question == "case":
            arms.clear()
            builds = known[given[0]].peers()
            return list(builds)
        name, *turn = given
        if question == "build":
            arms[name] = builds[name]()
            return arms[name].compile_seconds
        return answer(arms[name]) if question == "answer" else timed(arms[name].run, *turn)

    while True:
        try:
            question = connection.recv()
        except EOFError:
            return
        reply: tuple[str | None, Any]
        try:
            reply = None, answered(*question)
        except LeftOutError as reason:
            reply = "LeftOutError", str(reason)
        except Exception as error:  # whatever it is, who asked says so
            reply = "RuntimeError", in_a_line(error)
        connection.send(reply)


def about() -> dict[str, str]:
    """The versions of what runs here, and where JAX does."""
    return {
        "torch": importlib.metadata.version("torch"),
        "Python": platform.python_version(),
        "backend": jax.default_backend(),
    }


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asks hears it, and ends this process
    if not torch_peer.installed:
        sys.exit(f"PyTorch in {sys.executable}: {torch_peer.MISSING}")
    fd, *words = sys.argv[1:]
    with Connection(int(fd)) as connection:
        serve(connection, Sizes.of(words))
