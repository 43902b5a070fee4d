"""The end of a run of several processes: what one meets ends all, with one sentence and status.

The processes hear of each other through the key-value store of `jax.distributed`, into which each
looks once a second. Where process 0, which holds it, is killed, JAX itself ends the others at once.
"""

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NoReturn

import jax

# Seconds: between two looks at the others, without a sign of one until it counts as lost, for all
# to come to an end that one has come to.
LOOK, LOST, TOGETHER = 1.0, 30.0, 300
_ALIVE, _ENDED = "jaxnn/alive/", "jaxnn/ended/"
_ending = threading.Lock()
_meetings = 0


def several() -> bool:
    """Whether this run has several processes."""
    # Asked without waking the devices, which `start` must come before.
    return jax.distributed.is_initialized() and int(jax.process_count()) > 1


def is_first() -> bool:
    """Whether this is process 0, which prints and writes files; the only one is."""
    return not several() or int(jax.process_index()) == 0


def end(sentence: str, status: int, *, said: bool = False) -> NoReturn:
    """Print why the run ends, have every other process do so, and exit all with this status.

    Where several processes come to an end of their own, the first to say so gives the words to
    those that have said nothing.

    Args:
        sentence: for those who read the terminal.
        status: of the exit.
        said: whether this process has printed it.
    """
    if not several():
        if not said:
            say(sentence)
        sys.exit(status)
    if not _ending.acquire(blocking=False):  # the thread that looks at the others ends this one
        time.sleep(TOGETHER)
    first = {"sentence": sentence, "status": status, "process": jax.process_index()}
    # An error means that another was first, or that process 0 is gone.
    with contextlib.suppress(Exception):
        store().key_value_set(f"{_ENDED}first", json.dumps(first))
    with contextlib.suppress(Exception):
        first = json.loads(store().key_value_dir_get(_ENDED)[0][1])
    _leave(first, said)


def _leave(first: Mapping[str, Any], said: bool) -> NoReturn:
    """Say why the first ended and exit when all know; process 0 last: they hear it from there."""
    if not said:
        other = first["process"] != jax.process_index()
        say(f"process {first['process']}: {first['sentence']}" if other else first["sentence"])
    with contextlib.suppress(Exception):
        store().wait_at_barrier("jaxnn/leave", int(5 * LOOK * 1000))
    if is_first():
        time.sleep(LOOK / 4)
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(first["status"])  # an ordinary exit would wait for what the others compute


def look(stop: threading.Event) -> None:
    """Show the others that this process lives, and end with them."""
    kept = store()
    # So many a second is what one process can answer.
    pause = max(LOOK, jax.process_count() / 500)
    seen = {str(process): ("", time.monotonic()) for process in range(jax.process_count())}
    while not stop.wait(pause):
        with contextlib.suppress(Exception):  # where process 0 is gone, JAX ends the process
            ended = kept.key_value_dir_get(_ENDED)
            if ended and _ending.acquire(blocking=False):
                _leave(json.loads(ended[0][1]), said=False)
            sign = f"{time.monotonic()}"
            kept.key_value_set(f"{_ALIVE}{jax.process_index()}", sign, allow_overwrite=True)
            for name in _lost(kept.key_value_dir_get(_ALIVE), seen) if is_first() else ():
                end(f"error: process {name} has given no sign of life for {LOST:.0f} s", 1)


def _lost(signs: list[tuple[str, str]], seen: dict[str, tuple[str, float]]) -> list[str]:
    """The processes whose last sign of life is too old."""
    now = time.monotonic()
    for key, sign in signs:
        name = key.removeprefix(_ALIVE)
        if seen[name][0] != sign:
            seen[name] = sign, now
    return [name for name, (_, at) in seen.items() if now - at > LOST]


def finish(stop: threading.Event, looking: threading.Thread) -> None:
    """At an ordinary exit, wait for the others: one that fails still can tell this one."""
    try:
        store().wait_at_barrier("jaxnn/finish", TOGETHER * 1000)
    except Exception as error:
        end(f"the processes did not end together within {TOGETHER} s: {_line(error)}", 1)
    stop.set()
    looking.join()


def end_with_errors() -> None:
    """Let an error that nobody handles end all processes."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if lost := lost_connection(error):
            end(f"error: {lost}", 1)
        if issubclass(kind, KeyboardInterrupt):
            end("interrupted", 130)
        before(kind, error, trace)
        end(_line(error), 1, said=True)

    sys.excepthook = hook


def lost_connection(error: BaseException) -> str:
    """The sentence for an error that a collective gives where another process is gone, or ""."""
    text = str(error)
    if several() and any(word in text for word in _CONNECTIONS):
        return f"the connection to another process is lost ({text.splitlines()[0]:.200})"
    return ""


_CONNECTIONS = ("Gloo", "Connection reset by peer", "Connection closed by peer", "NCCL", "Socket")


def _line(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip().splitlines()[-1][:500]


def say(sentence: str) -> None:
    """Print a sentence where errors are read."""
    with contextlib.suppress(OSError, AttributeError):  # nobody may be there to read it
        print(sentence, file=sys.stderr, flush=True)


def met(seconds: float) -> bool:
    """Whether all processes call this within so many seconds."""
    global _meetings
    _meetings += 1
    try:
        if several():
            store().wait_at_barrier(f"jaxnn/met/{_meetings}", int(seconds * 1000))
    except Exception:  # of JAX's, without a type of its own: the time is over
        return False
    return True


def store() -> Any:
    """The key-value store of the processes, by which JAX itself starts them."""
    from jax._src.distributed import global_state  # no public name leads to it

    return global_state.client
