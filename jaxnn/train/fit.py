"""Training to the end, or to where one stops it: the best is kept, all of it can go on tomorrow.

run = make_run(model, config, optimizer, data, epochs=1, batch_size=32, evaluate=evaluate)
fitted = fit(run, state, epochs=40, patience=5, folder="out", model=model, config=config)
fitted.params, fitted.best_epoch, fitted.history.loss
"""

import contextlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxnn import files, processes
from jaxnn.calls import path_name
from jaxnn.settings import check_flag, check_integer
from jaxnn.train import logs
from jaxnn.train.about import describe
from jaxnn.train.batches import BatchError
from jaxnn.train.called import Run, called, check_epochs, check_traced
from jaxnn.train.doors import (
    check_callbacks,
    check_function,
    check_kept,
    check_several,
    check_state,
)
from jaxnn.train.folder import Folder
from jaxnn.train.progress import Progress, added, divergence, is_sound, with_best
from jaxnn.train.saving import Saving
from jaxnn.train.signals import signals
from jaxnn.train.states import check_laid
from jaxnn.train.steps import History, State

Ended = Literal["finished", "stopped early", "interrupted", "diverged", "batches"]
Callback = Callable[[logs.Row, State], bool | None]


class Fit(NamedTuple):
    """What a training run left.

    Attributes:
        params: the best.
        state: the last that is finite: `params` of the last epoch, to go on from.
        history: of every epoch up to this state, as NumPy arrays; metrics as a
            dict, or the bare one.
        best_epoch: that after which the parameters were the best; 0 if none finished.
        seconds: the time it took, compilation included.
        ended: by its last epoch, by patience or a callback, by a signal, because loss or parameters
            were no longer finite, or because the batches ended or changed.
        status: the same for a shell: 0, 0, 130 or 143, 1, 2.
    """

    params: Any
    state: State
    history: History
    best_epoch: int
    seconds: float
    ended: Ended
    status: int


def fit(
    run: Run,
    state: State,
    *,
    epochs: int,
    minimize: str | None = None,
    maximize: str | None = None,
    patience: int | None = None,
    folder: str | Path | None = None,
    model: Any = None,
    config: Any = None,
    notes: Mapping[str, Any] | None = None,
    resume: bool = False,
    also: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
    tensorboard: bool = False,
    show: bool = True,
) -> Fit:
    """Train until so many epochs are there; keep the best, log every epoch, save as it goes.

    Of several processes all call this with the same arguments and a state laid on a mesh of all;
    process 0 prints and writes. A signal that one hears, or a callback that ends the run on one,
    stops all after the same call. An error of one ends all (`jaxnn.processes`).

    A row of the log has the columns `epoch`, `loss` and, of what `evaluate` returned, `val_NAME`
    for each entry of a dict, `val` for a bare scalar. The best is looked for where a call of `run`
    ends. Ctrl-C or SIGTERM, heard in the main thread, stop after the call that runs; a second one
    stops at once, with the calls that ended.

    With a folder, the state, `params.safetensors` (the best) and `log.csv` are written in that
    order, each whole or not at all: after every call that takes ten times as long as this or more,
    else as often as a tenth of the time allows, and at the end, whatever the reason. No line is
    shown of what is not saved. A killed run that is resumed ends with the parameters of one that
    was not. An older run that was there goes to `folder/previous`
    when the first call has ended well.

    Args:
        run: of `make_run` or `make_epoch`, or any `run(state) -> (state, history)`; a call is as
            many epochs as its loss has entries.
        state: of `init_state`; when a run is resumed, of the same model and optimizer.
        epochs: in all, those before a resume included; calls must come to just as many.
        minimize: the column by whose least value the best is known; when both this and
            `maximize` are None, that of the run that is resumed or, of a new one, `val_loss` if
            there is one, else `loss`.
        maximize: the column by whose greatest value it is known.
        patience: stop after so many epochs without a better one; None for never.
        folder: where to save; for one run at a time.
        model: the model's module, whose name is saved; needed with a folder.
        config: its configuration, saved with the parameters.
        notes: what JSON can hold, by name, to save with them: a seed, options.
        resume: go on with the run that is in the folder.
        also: names of other files in the folder that go to `previous` with an older run.
        callbacks: each is called as `callback(row, state)` with the last row of a call; True
            ends the run.
        tensorboard: log to `folder/tensorboard` too.
        show: print progress: a bar on a terminal, a line for a call, about one a second at
            most.

    Returns:
        The best parameters, the last state, the history, and how it ended.

    Raises:
        ModuleNotFoundError: a package that saves, logs or shows is not installed.
        TypeError: the state is no `State`, `run` returned none and no `History`, or an argument is
            of another kind than above.
        ValueError: an argument is out of its range, the column is none of the log's, the folder is
            in use or cannot be written, there is no such run in it to resume, or the best of that
            one is known by another column.
        KeyboardInterrupt: a second signal came.
    """
    started = time.perf_counter()
    processes.check_started()
    check_function("run", run, "run(state) -> (state, history), as make_run makes", 1)
    check_callbacks(callbacks, "callback(row, state)", 2)
    check_state(state, State)
    epochs = check_integer("epochs", epochs)
    patience = None if patience is None else check_integer("patience", patience)
    watched = check_kept(minimize, maximize)
    check_several("also", also, "file names")
    for name, flag in {"resume": resume, "tensorboard": tensorboard, "show": show}.items():
        check_flag(name, flag)
    whose = {"model": model, "config": config, "notes": notes}
    settled = {"epochs": epochs, "patience": patience, "resume": resume, **watched}
    settled |= {"folder": None if folder is None else "one"}
    processes.check_agree("run", settled | _described(whose, state))
    place = _folder(state, folder, whose, resume, also, tensorboard)
    batches = getattr(run, "place", None)
    progress = Progress(state, {}, (), state.params, 0, watched)
    ended: Ended | None = None
    sentence, first = "", True
    with contextlib.ExitStack() as stack:
        if place is not None:
            stack.enter_context(place.locked())
            if resume:
                progress = place.resumed(state, watched)
                progress = with_best(progress, progress.ends)
                place.mend(progress)
                if batches is not None and progress.batches is not None:
                    batches.put_back(progress.batches, int(progress.state.step))
        if hasattr(run, "traced") and progress.epochs < epochs:
            check_traced(run.traced(progress.state), progress, epochs)
        saving = None if place is None else Saving(place, progress)
        heard = stack.enter_context(signals())
        shows = show and processes.is_first()
        terminal = logs.Terminal(epochs, progress.epochs) if shows else None
        if terminal is not None:
            stack.callback(lambda: terminal.close(None if saving is None else saving.saved))
        if saving is not None:
            stack.push(saving.left)
        signal, _ = _agreed(heard, False)
        while not (ended := ended or _ended(progress, epochs, patience, signal)):
            call_started = time.perf_counter()
            try:
                later, part = called(run, progress.state)
            except BatchError as error:
                if not (progress.ends and processes.met(_BATCHES)):
                    raise
                ended, sentence = "batches", f"the run stopped: {error}"
                continue
            if first:
                check_epochs(epochs, progress.epochs, len(part["loss"]))
            sound = np.isfinite(part["loss"]).all() and is_sound(later)
            if not sound:  # as all processes find
                ended, sentence = "diverged", divergence(later, part["loss"], progress.epochs)
                continue
            progress = added(progress, later, part)
            if batches is not None:
                progress = progress._replace(batches=batches.kept())
            progress = with_best(progress, progress.ends[-1:])
            saved, said = (None, "") if saving is None else saving.keep(progress)
            (row,) = logs.rows(progress.columns, progress.epochs)
            if terminal is not None:
                terminal.show(row, time.perf_counter() - call_started, saved, said)
            first = False
            stops = [callback(row, later) for callback in callbacks]
            signal, stop = _agreed(heard, any(stops))
            if stop:
                ended = "stopped early"
    if ended == "interrupted":
        sentence = "interrupted: kept " + files.counted(progress.epochs, "finished epoch")
    if sentence and processes.is_first():
        with contextlib.suppress(OSError):  # nobody may be there to read it
            print(sentence, file=sys.stderr)
    return Fit(
        progress.best,
        progress.state,
        logs.history(progress.columns),
        progress.best_epoch,
        time.perf_counter() - started,
        ended,
        128 + signal if ended == "interrupted" else _STATUS[ended],
    )


# Seconds for all processes to find that the batches have ended.
_BATCHES = 10
_STATUS = {"finished": 0, "stopped early": 0, "diverged": 1, "batches": 2}


def _folder(
    state: State,
    folder: str | Path | None,
    whose: Mapping[str, Any],
    resume: bool,
    also: Sequence[str],
    tensorboard: bool,
) -> Folder | None:
    """The run's folder; refuse what needs one where there is none."""
    if folder is None:
        for name, value in {"resume": resume, "also": also, "tensorboard": tensorboard}.items():
            if value:
                raise ValueError(
                    f"{name} is {value!r:.50} without a folder; it must have one: pass folder=..."
                )
        return None
    place = Folder(folder, state.params, whose, also, tensorboard)
    if resume:
        place.check_run()
    return place


def _ended(progress: Progress, epochs: int, patience: int | None, signal: int) -> Ended | None:
    """Why a run ends before its next call; None where it goes on."""
    if progress.epochs >= epochs:
        return "finished"
    if patience is not None and progress.epochs >= max(progress.best_epoch, 1) + patience:
        return "stopped early"
    return "interrupted" if signal else None


def _agreed(heard: list[int], stop: bool) -> tuple[int, bool]:
    """The signal that a process heard, 0 for none, and whether a callback stops: the same for all.

    In one number, for to agree takes as long as a short call.
    """
    number = processes.agreed(2 * (heard[0] if heard else 0) + stop)
    return number // 2, bool(number % 2)


def _described(whose: Mapping[str, Any], state: State) -> dict[str, Any]:
    """Whose the run is, a name for each setting and array, for processes to agree on."""
    if not processes.several():
        return {}
    check_laid({"state": state})
    laid = {
        f"state.{path_name(path)}": f"{leaf.dtype}{[*leaf.shape]} over {leaf.sharding}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    if whose["model"] is None:
        return laid
    about = describe(**whose)._asdict()
    nested = {
        f"{part}.{name}": x
        for part in ("config", "notes", "versions")
        for name, x in about[part].items()
    }
    return {"model": about["model"]} | nested | laid
