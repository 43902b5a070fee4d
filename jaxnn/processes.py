"""Several processes, one run: started together, of one mind, and ended together.

    processes.start()                     # before anything is computed; alone where nobody else is
    processes.check_agree("run", {"width": 64, "data": digest})
    if processes.is_first():
        print(...)

Each process holds its devices' part of every array that is laid on a mesh of all of them. What one
of them meets, an error or Ctrl-C, ends all: through the key-value store of `jax.distributed`, which
each looks into once a second.
"""

import atexit
import contextlib
import functools
import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from jaxnn.ending import (
    end,
    end_with_errors,
    finish,
    is_first,
    look,
    lost_connection,
    met,
    say,
    several,
)
from jaxnn.settings import check_integer
from jaxnn.together import Meeting

__all__ = [
    "agreed",
    "asked",
    "check_agree",
    "check_started",
    "end",
    "is_first",
    "lost_connection",
    "met",
    "several",
    "start",
]


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout: int = 60,
) -> None:
    """Join the processes of this run, before anything is computed.

    What is None comes from the environment: `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`, or what SLURM, Open MPI, Kubernetes and TPU pods set, which JAX reads. Where
    it says nothing of others, this process is alone and nothing is done.

    Args:
        coordinator: address and port of process 0, as `localhost:1234`; the same for all.
        processes: how many there are.
        process: which this one is, from 0.
        timeout: seconds to wait until all are there.

    Raises:
        TypeError: a number is none.
        ValueError: some of the three are given and not all, a number is out of its range, or the
            port is taken.
        RuntimeError: JAX has computed before.
    """
    given = _given(coordinator, processes, process)
    _check_given(given)
    # XLA's own handler of SIGTERM would take the place of Python's.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # for CPUs alone
    try:
        with _said_when_late(timeout, given):
            jax.distributed.initialize(
                given.get("coordinator"),
                given.get("processes"),
                given.get("process"),
                initialization_timeout=timeout + 60,  # then it would abort
            )
    except (ValueError, RuntimeError):
        if given or asked() > 1:
            raise
        return  # JAX knows of no others
    if several():
        stop = threading.Event()
        looking = threading.Thread(target=look, args=(stop,), daemon=True, name="jaxnn processes")
        looking.start()
        atexit.register(finish, stop, looking)
        end_with_errors()


def asked() -> int:
    """How many processes the environment says this one is of; 1 where it says nothing."""
    for names in _SEVERAL:
        counts = [os.environ.get(name, "") for name in names]
        if all(counts) and counts[0].isdecimal() and int(counts[0]) > 1:
            return int(counts[0])
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return hosts.count(",") + 1


# The first of each says how many; of SLURM's, the second tells a task from the script of a batch.
_SEVERAL = (
    ("JAX_NUM_PROCESSES",),
    ("SLURM_NTASKS", "SLURM_STEP_NODELIST"),
    ("OMPI_COMM_WORLD_SIZE",),
    ("PMI_SIZE",),
)


def check_started(
    fix: str = "call jaxnn.processes.start() before anything is computed, or start one process",
) -> None:
    """Refuse to go on alone where the environment says that there are others.

    Raises:
        ValueError: it does, and `start` was not called; `fix` ends the message.
    """
    if not jax.distributed.is_initialized() and (of := max(asked(), jax.process_count())) > 1:
        raise ValueError(
            f"this is one of {of} processes, as the environment says, and each would train alone; "
            f"they must be started together: {fix}"
        )


def check_agree(what: str, values: Mapping[str, Any]) -> None:
    """Refuse, on every process, to go on where one has other values than process 0.

    Args:
        what: they are of, for the message.
        values: by name, what JSON has; for others their text counts. Of arrays pass a digest.

    Raises:
        ValueError: one has; the message names the process and what differs.
    """
    texts = {name: json.dumps(value, default=str) for name, value in values.items()}
    with Meeting(f"agreeing on the {what}") as meeting:
        told = meeting.tell(texts)
    first = told[0]
    others = [process for process, theirs in enumerate(told) if theirs != first]
    if others:
        theirs = told[others[0]]
        differing = "; ".join(
            f"{name} is {theirs.get(name, 'not given'):.80} in process {others[0]}, "
            f"{first.get(name, 'not given'):.80} in process 0"
            for name in sorted({*theirs, *first})
            if theirs.get(name) != first.get(name)
        )
        more = f" ({len(others)} processes differ)" if len(others) > 1 else ""
        raise ValueError(
            f"the processes disagree in their {what}: {differing:.800}{more}; all must have the "
            "same: start them with the same command on the same files"
        )


def agreed(number: int) -> int:
    """Return the largest of the numbers that the processes come with; all must call it."""
    return int(max(_every_call().tell(number)))


@functools.cache
def _every_call() -> Meeting:
    """One meeting for all times, which forgets what was told before the last."""
    return Meeting("agreeing on how to go on")


def _given(coordinator: str | None, processes: int | None, process: int | None) -> dict[str, Any]:
    """The three, with what JAX's own variables say, those that are not None."""
    environment = os.environ
    named = {
        "coordinator": coordinator or environment.get("JAX_COORDINATOR_ADDRESS"),
        "processes": processes if processes is not None else environment.get("JAX_NUM_PROCESSES"),
        "process": process if process is not None else environment.get("JAX_PROCESS_ID"),
    }
    numbers = ("processes", "process")
    return {
        name: int(value) if name in numbers and str(value).isdecimal() else value
        for name, value in named.items()
        if value is not None
    }


def _check_given(given: Mapping[str, Any]) -> None:
    """Refuse what names no process of so many, or not all that is needed."""
    names = {"coordinator": "address:port", "processes": "a number", "process": "a number from 0"}
    for name in given.keys() & {"processes", "process"}:
        check_integer(name, given[name], 0)
    missing = [f"{name} ({form})" for name, form in names.items() if name not in given]
    if given and missing and asked() < 2:
        raise ValueError(
            f"{', '.join(given)} without {', '.join(missing)}; all three must be given where no "
            "SLURM, Open MPI, Kubernetes or TPU pod says them: pass them, or set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        )
    number, of = given.get("process", 0), given.get("processes", 2**31)
    if not 0 <= number < of:
        raise ValueError(
            f"process is {number} of {of}; it must be from 0 to {of - 1}: number them so"
        )
    if "coordinator" in given:
        _check_address(given["coordinator"], binds=given.get("process") == 0)


def _check_address(address: str, binds: bool) -> None:
    """Refuse what is no address with a port and, on process 0, a port that is taken."""
    host, _, port = str(address).rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(
            f"coordinator is {address!r:.80}; it must be the address of process 0 with a free port "
            "there: localhost:1234, say"
        )
    if binds:
        try:
            socket.create_server(("", int(port))).close()
        except OSError as error:
            raise ValueError(
                f"coordinator is {address}, and its port cannot be opened ({error.strerror}); it "
                "must be free where process 0 runs: take another, the same for all processes"
            ) from None


@contextlib.contextmanager
def _said_when_late(seconds: int, given: Mapping[str, Any]) -> Iterator[None]:
    """End in words where not all processes come; JAX would abort with a trace of its own."""

    def late() -> None:
        at = given.get("coordinator", "the coordinator")
        say(
            f"error: not all {given.get('processes', asked())} processes met at {at} within "
            f"{seconds} s; every one must be started, with the same address and number"
        )
        os._exit(2)

    timer = threading.Timer(seconds, late)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
