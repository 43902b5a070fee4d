"""The folder of a run: what is in it, who may write, and where an older run goes.

state/                the last two whole states: `load_state` reads the last
params.safetensors    the best parameters so far: `load_params` reads them
log.csv               a row for every epoch
tensorboard/          the same for `tensorboard --logdir`, if asked for
previous/             all of these of the run before this one
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxnn import files, together
from jaxnn.checks import parameter_shapes
from jaxnn.ending import is_first
from jaxnn.train import checkpoints, logs
from jaxnn.train.about import describe
from jaxnn.train.doors import check_model_functions
from jaxnn.train.moving import MOVING, PREVIOUS, move
from jaxnn.train.parameters import gathered, read_about, write_params
from jaxnn.train.progress import Progress
from jaxnn.train.states import begin_state, leaf_forms, load_state
from jaxnn.train.steps import State

PARAMS, STATE, LOG, BOARD = "params.safetensors", "state", "log.csv", "tensorboard"
NAMES = (PARAMS, STATE, LOG, BOARD)


class Folder:
    """A run's folder, open for one run, of one process or several, of which process 0 writes."""

    def __init__(
        self,
        path: str | Path,
        params: Any,
        whose: Mapping[str, Any],
        also: Sequence[str],
        tensorboard: bool,
    ) -> None:
        """Refuse what cannot be written, before anything is trained."""
        for module in ("safetensors", "orbax.checkpoint"):
            files.installed(module)
        if tensorboard:
            files.installed("tensorboardX")
        self.path = files.as_path(path)
        self._whose = dict(whose)
        check_model_functions(self._whose["model"], "init_params")
        if "best" in describe(**self._whose).notes:
            raise ValueError(
                "notes has 'best', under which the best row of the log is saved; name it otherwise"
            )
        _check_params(params, self._whose["model"], self._whose["config"])
        self._names = (*NAMES, *map(_plain_name, also))
        self._board: logs.TensorBoard | None = None
        self._tensorboard, self._ours = tensorboard, False
        self.said = ""  # of an older run, when it was moved

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out, and complete what a killed one was moving."""
        with contextlib.ExitStack() as stack:

            def lock() -> None:
                stack.enter_context(files.locked(files.writable(self.path)))
                stack.callback(self._close)
                previous = self.path / PREVIOUS
                if previous.exists() and not previous.is_dir():
                    raise ValueError(
                        f"{previous} is a file; it must be free for an older run, which is moved "
                        "into a folder of that name: rename it, or name another folder"
                    )
                if (self.path / MOVING).exists():
                    self._move()

            together.first(f"locking {self.path}", lock)
            yield

    def check_run(self) -> None:
        """Refuse a folder without a run to resume."""
        together.first(f"looking into {self.path}", self._check_run)

    def _check_run(self) -> None:
        if checkpoints.last_step(self.path / STATE) is None:
            older = f"; an older one is in {self.path / PREVIOUS}"
            raise ValueError(
                f"{self.path} holds no run to resume{older * (self.path / PREVIOUS).exists()}; "
                "name the folder of one, or leave out resume"
            )

    def resumed(self, like: State, watched: Mapping[str, str]) -> Progress:
        """Read how far the run in the folder is; the best of its epochs is not known yet."""
        self.check_run()
        state, about = load_state(self.path / STATE, like, **self._whose)
        if not about.ends:
            raise ValueError(
                f"{self.path / STATE} has no history beside its state; it must be of a run of fit: "
                "read it with load_state, and begin a run from it in another folder"
            )
        if watched and watched != about.watched:
            ours, theirs = (
                " and ".join(f"{name}={column!r}" for name, column in columns.items())
                for columns in (watched, about.watched)
            )
            raise ValueError(
                f"{self.path / STATE} is of a run whose best is known by {theirs}, not {ours}; its "
                "parameters are kept for no other column: leave it out, or begin a new run"
            )
        self._whose["notes"] = about.notes
        self._ours = True
        best = state.params if about.best is None else about.best
        return Progress(
            state, about.history, tuple(about.ends), best, 0, about.watched, about.batches
        )

    def mend(self, progress: Progress) -> None:
        """Write again what a killed process had not come to write, or what is gone since."""

        def is_older() -> bool:
            try:
                saved = int(read_about(self.path / PARAMS).notes["best"]["epoch"])
            except (ValueError, KeyError, TypeError):
                saved = 0
            # One of a later epoch is of a call that will be made again.
            return saved != progress.best_epoch and saved <= progress.epochs

        older = together.first(f"reading {self.path / PARAMS}", is_older)
        best = gathered(progress.best) if older else None
        together.first(f"mending {self.path}", lambda: self._write_rest(progress, best))

    def begin(self, progress: Progress, saved_best: int) -> Callable[[], None]:
        """Begin to write how far a run is; return a function that does the rest, in any thread.

        What is given to it may be given away when this returns. The best parameters are written if
        they are of another epoch than those that were before.
        """
        if not self._ours:
            self.said = together.first(f"saving in {self.path}", self._make_ours)
            self._ours = True
        # First: with nothing else there, what is not sealed is no run.
        finish = begin_state(
            self.path / STATE,
            progress.state,
            best=progress.best,
            history=progress.columns,
            ends=progress.ends,
            watched=progress.watched,
            batches=progress.batches,
            **self._whose,
        )
        best = gathered(progress.best) if progress.best_epoch != saved_best else None

        def write() -> None:
            finish()
            if is_first():
                self._write_rest(progress, best)

        return write

    def _write_rest(self, progress: Progress, best: Any) -> None:
        """Write what stands beside the states: the best parameters, where new, and the log."""
        if best is not None:
            self._save_best(progress, best)
        self._write_logs(progress)

    def _make_ours(self) -> str:
        """Move an older run away; return what is to be said of it."""
        if not self._has_run():
            return ""
        self._move()
        return f"the run that was in {self.path} is in {self.path / PREVIOUS} now"

    def _has_run(self) -> bool:
        """Whether a run is here, and not only what a first call left that could not be saved."""
        written = any((self.path / name).exists() for name in (PARAMS, LOG, BOARD))
        return written or checkpoints.last_step(self.path / STATE) is not None

    def _close(self) -> None:
        if self._board is not None:
            self._board.close()

    def _save_best(self, progress: Progress, best: Any) -> None:
        row = {"epoch": progress.best_epoch} | {
            name: values[progress.best_epoch - 1].item()
            for name, values in progress.columns.items()
        }
        notes = dict(self._whose["notes"] or {}) | {"best": row}
        write_params(self.path / PARAMS, best, **self._whose | {"notes": notes})

    def _write_logs(self, progress: Progress) -> None:
        with files.replaced(self.path / LOG) as new:
            new.write_text(logs.csv_of(progress.columns))
        if self._tensorboard:
            try:
                self._board = self._board or logs.TensorBoard(self.path / BOARD)
                self._board.write(progress.columns)
            except OSError as error:
                self._board = None  # to close it would try again
                raise ValueError(
                    f"{self.path / BOARD} cannot be written ({error.strerror}); make room, or "
                    "leave out tensorboard"
                ) from error

    def _move(self) -> None:
        move(self.path, self._names)


def _plain_name(name: Any) -> str:
    """A name of a file in the folder that is none of the folder's own."""
    plain = isinstance(name, str) and Path(name).name == name
    if not plain or name.startswith(".") or name in (*NAMES, PREVIOUS):
        raise ValueError(
            f"also has {name!r}; it must be the name of a file of yours in the run's folder, with "
            f"no other folder, not hidden, and none of {', '.join((*NAMES, PREVIOUS))}"
        )
    return str(name)


def _check_params(params: Any, model: Any, config: Any) -> None:
    """Refuse parameters that are not those that `model.init_params` makes."""
    ours, theirs = leaf_forms(params), leaf_forms(parameter_shapes(model.init_params, config))
    wrong = [
        f"{name} is {ours.get(name)}, needed {theirs.get(name)}"
        for name in theirs | ours
        if ours.get(name) != theirs.get(name)
    ]
    if wrong:
        raise ValueError(
            f"state.params does not fit the configuration: {files.listed(wrong)}; pass the "
            "model and configuration of init_state"
        )
