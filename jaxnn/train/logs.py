"""What a run has seen, as rows: to the terminal, to a CSV file, to TensorBoard.

A row has the columns `epoch`, `loss` and, of what `evaluate` returned, `val_NAME` for each entry
of a dict, `val` for a bare scalar.
"""

import contextlib
import csv
import io
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import files
from jaxnn.train.steps import History

Columns = dict[str, np.ndarray[Any, Any]]
Row = dict[str, float]


def columns(history: History) -> Columns:
    """Return the loss and the metrics of a history by the names of their columns.

    Raises:
        TypeError: a metric is no real number for each epoch, or two would share a name.
    """
    loss = np.asarray(history.loss)
    named = {"loss": loss}
    for path, leaf in jax.tree_util.tree_leaves_with_path(history.metrics):
        name = "_".join(
            ["val", jax.tree_util.keystr(path, simple=True, separator="_")][: 1 + len(path)]
        )
        values = np.asarray(leaf)
        real = jnp.issubdtype(values.dtype, jnp.number) or values.dtype == bool
        if values.shape != loss.shape or not real or np.iscomplexobj(values) or name in named:
            raise TypeError(
                f"the metric {name} has dtype {values.dtype} and shape {values.shape[1:]}; each "
                "must be a real scalar with a name of its own: return a dict of them from evaluate"
            )
        named[name] = values
    return named


def history(columns: Columns) -> History:
    """Return columns as the history that they were of: metrics as a dict, or the bare one."""
    metrics = {name.removeprefix("val_"): x for name, x in columns.items() if name != "loss"}
    bare = columns.get("val") if list(columns) == ["loss", "val"] else metrics or None
    loss: Any = columns.get("loss", np.zeros(0))
    return History(loss, bare)


def rows(columns: Columns, first: int = 1) -> Iterator[Row]:
    """Each epoch as a row of Python's numbers, from the epoch `first` on."""
    for i in range(first - 1, len(columns["loss"])):
        yield {"epoch": i + 1} | {name: values[i].item() for name, values in columns.items()}


def line(row: Row, epochs: int, seconds: float) -> str:
    """Return a row as a line to read: its epoch of how many, its numbers, the time it took."""
    numbers = (f"{name} {value:.4g}" for name, value in row.items() if name != "epoch")
    return "  ".join([f"epoch {row['epoch']}/{epochs}", *numbers, f"{seconds:.1f} s"])


def csv_of(columns: Columns) -> str:
    """Return columns as a table in CSV, each number with as many digits as its dtype needs."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["epoch", *columns])
    writer.writerows(zip(range(1, len(columns["loss"]) + 1), *columns.values(), strict=True))
    return text.getvalue()


class Terminal:
    """A bar where there is a terminal, and a line for a call, at most about one a second.

    Where what reads them is gone (`| head`, `| tee` after Ctrl-C), no more is shown.
    """

    def __init__(self, epochs: int, done: int) -> None:
        """Begin a bar of so many epochs, some of them done."""
        self._bar = files.installed("tqdm").tqdm(
            total=epochs,
            initial=done,
            leave=False,
            disable=None if sys.stderr else True,  # closed by `2>&-`
            unit=" epochs",
        )
        self._epochs, self._shown = epochs, 0.0
        self._waiting: dict[int, str] = {}
        self._gone = sys.stdout is None  # closed by `>&-`

    def show(self, row: Row, seconds: float, saved: int | None = None, said: str = "") -> None:
        """Show a call's last row, after what else is to be said.

        One that is not saved waits for the call after which `saved`, the last epoch that is, has
        come to it; None is said where nothing is saved.
        """
        if self._gone:
            return
        self._waiting[int(row["epoch"])] = line(row, self._epochs, seconds)
        try:
            if said:
                self._bar.write(said)
            self._bar.update(row["epoch"] - self._bar.n)
            if time.monotonic() - self._shown >= 1:
                self._write(saved)
        except OSError:
            self._gone = True

    def close(self, saved: int | None = None) -> None:
        """Show the last row if it was not, and is saved, and end the bar."""
        with contextlib.suppress(OSError):
            if not self._gone:
                self._write(saved)
        with contextlib.suppress(OSError):
            self._bar.close()

    def _write(self, saved: int | None) -> None:
        """Show the last row that may be, in the place of all before it."""
        ready = [epoch for epoch in self._waiting if saved is None or epoch <= saved]
        if ready:
            self._bar.write(self._waiting[ready[-1]])
            self._shown = time.monotonic()
        for epoch in ready:
            del self._waiting[epoch]


class TensorBoard:
    """A run's columns in a folder that `tensorboard --logdir` reads, written anew from row one."""

    def __init__(self, folder: Path) -> None:
        """Begin an event file in place of those that an earlier part of the run left."""
        folder.mkdir(exist_ok=True)
        older = [*folder.glob("events.out.tfevents.*")]
        # Written here and not by its SummaryWriter: that has a thread, which a full disk ends
        # without a word.
        writer = files.installed("tensorboardX.event_file_writer").EventsWriter
        self._writer = writer(str(folder / "events"), f".{time.monotonic_ns()}")
        for file in older:
            file.unlink()
        self._written = 0

    def write(self, columns: Columns) -> None:
        """Write the rows that are new."""
        event_of = files.installed("tensorboardX.proto.event_pb2").Event
        scalar = files.installed("tensorboardX.summary").scalar
        for row in rows(columns, self._written + 1):
            for name in columns:
                event = event_of(wall_time=time.time(), step=row["epoch"])
                event.summary.CopyFrom(scalar(name, row[name]))
                self._writer.write_event(event)
        self._written = len(columns["loss"])
        self._writer.flush()

    def close(self) -> None:
        """End the file."""
        self._writer.close()
