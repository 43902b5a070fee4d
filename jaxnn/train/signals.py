"""Ctrl-C and SIGTERM heard while a run computes, so that it can end well."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """Hear Ctrl-C and SIGTERM in the main thread, and put back what heard them before.

    The first is put into the list, for the run to end at its next call. A second one calls the
    function that heard it before, if there was one, which may raise an error of its own; if it did
    not, or SIGTERM would have ended the process, it raises.

    Raises:
        KeyboardInterrupt: from inside, at the second.
    """
    heard: list[int] = []

    def hear(number: int, frame: Any) -> None:
        if heard:
            if callable(older := before.get(signal.Signals(number))):
                older(number, frame)  # which may raise what a shell tells from Ctrl-C
            raise KeyboardInterrupt
        heard.append(number)
        # Not print: what it interrupts may be printing. Nobody may be there to read it.
        with contextlib.suppress(OSError):
            os.write(
                2, b"\nstopping when this call of the run has ended; once more to stop at once\n"
            )

    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            # One that is ignored, as under nohup, stays so; one that Python did not set cannot be
            # put back.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, hear)
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
