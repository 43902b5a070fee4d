"""When a run is saved, and by whom: here, or in a thread while the run goes on."""

import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import jax

from jaxnn import together
from jaxnn.ending import several
from jaxnn.train.arrays import as_here
from jaxnn.train.folder import Folder
from jaxnn.train.progress import Progress

# Between two saves passes so many times what the run waited for the first: that is a tenth of it at
# most. And as long as a thread wrote: half of the time, nothing is written.
PAUSE = 9
# A state of so many bytes or more is written in a thread, while the run goes on. To write a smaller
# one takes as long as to begin to.
LARGE = 2**24


class _Writing(NamedTuple):
    """What is being written: how far the run was, how long that takes, and how long to begin did.

    Both are in seconds, those of the thread and those that the run waited.
    """

    progress: Progress
    seconds: Future[float]
    waited: float


class Saving:
    """A run that is saved in its folder, from time to time and at its end."""

    def __init__(self, folder: Folder, progress: Progress) -> None:
        """Begin with how far it is, which is in the folder already."""
        self._folder, self._thread = folder, ThreadPoolExecutor(1)
        self._unsaved: Progress | None = None
        self._writing: _Writing | None = None
        self._next = 0.0
        self.saved, self._saved_best = progress.epochs, progress.best_epoch

    def keep(self, progress: Progress) -> tuple[int, str]:
        """Save how far the run is, if it is time.

        Where a call takes less time than to save it, not every one is: to the rest comes `left`.

        Returns:
            The last epoch that is saved; what is to be said, once, of an older run.
        """
        self._unsaved = progress
        writing = self._writing
        if writing is not None and together.first("saving", writing.seconds.done):
            self._end()
        if self._writing is None and together.first("saving", self._is_time):
            self._begin()
        said, self._folder.said = self._folder.said, ""
        return self.saved, said

    def left(self, error: type[BaseException] | None, *_: Any) -> None:
        """Save how far the run is when it ends; of several processes only if no error ends it.

        After one nobody knows where the others are.
        """
        try:
            if error is None or not several():
                try:
                    self._end()
                finally:  # what failed may go well now
                    self._begin()
                    self._end()
            elif self._writing is not None:
                wait([self._writing.seconds])
        finally:
            self._thread.shutdown(wait=False)

    def _is_time(self) -> bool:
        return time.monotonic() >= self._next

    def _begin(self) -> None:
        """Save what is not, or begin to: in a thread, if it takes long."""
        progress, self._unsaved = self._unsaved, None
        if progress is None:
            return
        started = time.monotonic()
        finish = self._folder.begin(progress, self._saved_best)

        def write() -> float:
            began = time.monotonic()
            finish()
            return time.monotonic() - began

        if sum(leaf.nbytes for leaf in jax.tree.leaves(progress.state)) < LARGE:
            together.each("saving", write)
            self._note(progress, time.monotonic() - started, 0.0)
        else:
            seconds = self._thread.submit(as_here(write))
            self._writing = _Writing(progress, seconds, time.monotonic() - started)

    def _end(self) -> None:
        """Wait until what was begun is saved."""
        writing, self._writing = self._writing, None
        if writing is not None:
            started = time.monotonic()
            seconds = together.each("saving", writing.seconds.result)
            self._note(writing.progress, writing.waited + time.monotonic() - started, seconds)

    def _note(self, progress: Progress, waited: float, written: float) -> None:
        """Note what is saved, how long the run waited for it, and how long a thread wrote."""
        self.saved, self._saved_best = progress.epochs, progress.best_epoch
        self._next = time.monotonic() + PAUSE * waited + written
