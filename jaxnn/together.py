"""What several processes do together: each learns what the others did, or why one could not.

    step = first("the last step", lambda: last_step(folder))     # process 0 looks, all know
    each("reading the state", read)                              # one fails: all do, with its words

Of one process, these are the functions alone. Processes tell each other through the service of
`jax.distributed` and not through their devices, which compute meanwhile: a thread may wait here.
"""

import contextlib
import itertools
import json
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

import jax

from jaxnn.ending import is_first, several, store

T = TypeVar("T")
# So many seconds a process waits for the others, and for those that one that failed calls.
WAIT, LAST_WAIT = 600, 60
_KINDS: dict[str, type[BaseException]] = {
    kind.__name__: kind
    for kind in (ValueError, TypeError, OSError, ModuleNotFoundError, KeyboardInterrupt)
}
_numbers = itertools.count()


def first(what: str, function: Callable[[], T]) -> T:
    """Return, on every process, what a function returns on process 0, which alone calls it.

    Args:
        what: what it does, for messages.
        function: it returns what JSON has.

    Raises:
        Exception: the function did.
        ValueError: the others did not come within 10 minutes.
    """
    if not several():
        return function()
    with Meeting(what) as meeting:
        value: T = meeting.tell(function() if is_first() else None)[0]
        return value


def each(what: str, function: Callable[[], T]) -> T:
    """Call a function on every process, and return what it returns here.

    Raises:
        Exception: the function did, here or on another process.
        ValueError: the others did not come within 10 minutes.
    """
    if not several():
        return function()
    with Meeting(what) as meeting:
        value = function()
        meeting.tell()
        return value


class Meeting:
    """Where all processes meet, once or several times, and each tells the others a value.

    One that leaves with an error tells it to the others at their next time: they raise it too.
    All processes must make their meetings in the same order.
    """

    def __init__(self, what: str) -> None:
        """Name what is done; the name is for messages."""
        self._what, self._place = what, f"jaxnn/{next(_numbers)}"
        self._times, self._over = 0, False

    def tell(self, value: Any = None) -> list[Any]:
        """Wait for all processes; return what each told, by their numbers.

        Raises:
            Exception: one failed.
            ValueError: one did not come.
        """
        if not several():
            return [value]
        try:
            told = self._told({"value": value}, WAIT)
        except BaseException:
            self._over = True
            raise
        for process, said in enumerate(told):
            if "error" in said:
                self._over = True
                kind, words = said["error"]
                where = f"process {process}: " if process else ""
                raise _KINDS.get(kind, RuntimeError)(f"{where}{words}")
        return [said["value"] for said in told]

    def __enter__(self) -> "Meeting":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tell the others of an error."""
        if error is not None and not self._over and several():
            self._over = True
            with contextlib.suppress(ValueError):  # they are gone: this one's error is what counts
                self._told({"error": [type(error).__name__, str(error)]}, LAST_WAIT)

    def _told(self, said: dict[str, Any], seconds: int) -> list[dict[str, Any]]:
        """What each process says at this time, when all have."""
        client = store()
        here = f"{self._place}/{self._times}"
        self._times += 1
        try:
            client.key_value_set(f"{here}/{jax.process_index()}", json.dumps(said))
            client.wait_at_barrier(here, seconds * 1000)
            pairs = dict(client.key_value_dir_get(f"{here}/"))
        except jax.errors.JaxRuntimeError as error:
            raise ValueError(
                f"{self._what}: not all of the {jax.process_count()} processes came within "
                f"{seconds} s, or one has ended; start all of them again "
                f"({str(error).splitlines()[0]:.200})"
            ) from None
        if self._times > 1 and is_first():  # all have read what was told the time before
            client.key_value_delete(f"{self._place}/{self._times - 2}/")
        return [json.loads(pairs[f"{here}/{i}"]) for i in range(jax.process_count())]
