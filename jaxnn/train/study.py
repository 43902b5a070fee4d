"""A study of optuna's, told of trials that are trained side by side."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.checks import parameter_shapes
from jaxnn.files import counted, installed
from jaxnn.train.doors import check_evaluate, check_function
from jaxnn.train.logs import columns
from jaxnn.train.steps import History
from jaxnn.train.trials import Evaluate


class Trial(NamedTuple):
    """One run.

    Attributes:
        number: of the trial in the study.
        settings: its values, by name, as Python's.
        value: of the column that is searched by, after its last epoch; NaN if it diverged.
        epochs: how many it was trained for.
        ended: "finished", "pruned" when others were better so far, or "diverged".
        columns: by name, what each epoch gave, (epochs,): `loss` and, of each metric, `val_NAME`.
    """

    number: int
    settings: dict[str, Any]
    value: float
    epochs: int
    ended: Literal["finished", "pruned", "diverged"]
    columns: dict[str, np.ndarray[Any, np.dtype[Any]]]


@dataclass
class Lane:
    """A trial that is trained, and what its epochs gave so far."""

    trial: Any
    parts: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Search:
    """The study, and what was told to it."""

    study: Any
    space: Mapping[str, Any]
    traced: tuple[str, ...]
    column: str
    larger: bool
    epochs: int
    left: int
    callbacks: tuple[Callable[[Trial], Any], ...]
    asked: dict[int, Any] = field(default_factory=dict)
    done: list[Trial] = field(default_factory=list)

    def ask(self, static: Mapping[str, Any]) -> Any:
        """The next trial, of these integers and categories if any are given."""
        if static:
            self.study.enqueue_trial(dict(static))
        trial = self.study.ask(self.space)
        self.asked[trial.number] = trial
        self.left -= 1
        return trial

    def report(self, lane: Lane) -> bool:
        """Tell the study of the lane's last chunk; whether the trial has ended."""
        columns = {
            name: np.concatenate([part[name] for part in lane.parts]) for name in lane.parts[0]
        }
        value, epochs = float(columns[self.column][-1]), len(columns["loss"])
        ended: Literal["finished", "pruned", "diverged"] | None = None
        if not all(np.isfinite(values).all() for values in columns.values()):
            ended, value = "diverged", np.nan
        else:
            lane.trial.report(value, epochs)
            if epochs == self.epochs:
                ended = "finished"
            elif lane.trial.should_prune():
                ended = "pruned"
        if ended is None:
            return False
        settings = dict(lane.trial.params)
        trial = Trial(lane.trial.number, settings, value, epochs, ended, columns)
        self.done.append(trial)
        state = installed("optuna", "tune").trial.TrialState
        # Told as pruned, so that the sampler keeps away from where it diverged.
        told = {"values": value} if ended == "finished" else {"state": state.PRUNED}
        self.study.tell(self.asked.pop(trial.number), **told)
        for callback in self.callbacks:
            callback(trial)
        return True

    def give_up(self) -> None:
        """Tell the study that the trials which are trained will not end."""
        for trial in self.asked.values():
            self.study.tell(trial, state=installed("optuna", "tune").trial.TrialState.FAIL)

    def finished(self) -> list[Trial]:
        """The trials that finished."""
        return [trial for trial in self.done if trial.ended == "finished"]

    def best(self) -> Trial:
        """The best of them, the first if they are alike."""
        return (max if self.larger else min)(self.finished(), key=lambda trial: trial.value)


def columns_of(model: Any, config: Any, evaluate: Evaluate | None) -> list[str]:
    """The names of the columns.

    Raises:
        TypeError, ValueError: `evaluate` is no function of two arguments, or returns something else
            than scalars.
    """
    metrics = None
    if evaluate is not None:
        form = "evaluate(params, config) -> a scalar, or a dict of them"
        check_function("evaluate", evaluate, form, 2)
        params = parameter_shapes(model.init_params, config)
        check_evaluate(lambda params: evaluate(params, config), params)
        shapes = jax.eval_shape(lambda params: evaluate(params, config), params)
        metrics = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    return list(columns(History(jnp.zeros(()), metrics)))


def objective(minimize: Any, maximize: Any) -> tuple[str | None, bool]:
    """The column to search by, None for the default, and whether it should be large."""
    if minimize is not None and maximize is not None:
        raise ValueError(
            f"minimize is {minimize!r} and maximize {maximize!r}; a search has one objective: "
            "leave one out"
        )
    column = maximize if minimize is None else minimize
    if not isinstance(column, str | None):
        raise TypeError(
            f"the column to search by is {column!r}; it must be a name: 'val_loss', say"
        )
    return column, maximize is not None


def make_study(sampler: Any, pruner: Any, larger: bool, seed: int, chunk: int) -> Any:
    """A study of optuna's, in memory, without a word on the terminal."""
    package = installed("optuna", "tune")
    if sampler is None:
        sampler = package.samplers.TPESampler(seed=seed)
    if pruner is None:
        pruner = package.pruners.SuccessiveHalvingPruner(min_resource=chunk, reduction_factor=3)
    for name, value, kind in (
        ("sampler", sampler, package.samplers.BaseSampler),
        ("pruner", pruner, package.pruners.BasePruner),
    ):
        if not isinstance(value, kind):
            raise TypeError(
                f"{name} is {value!r:.50}; it must be one of optuna.{name}s, or None: "
                f"pass an instance, such as optuna.{name}s.{type(kind).__name__}()"
            )
    with _quiet(package.logging):
        direction = "maximize" if larger else "minimize"
        return package.create_study(direction=direction, sampler=sampler, pruner=pruner)


@contextlib.contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def say(column: str, trial: Trial) -> None:
    """Print a line for a trial that ended."""
    settings = ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in trial.settings.items()
    )
    print(f"trial {trial.number}: {column} {trial.value:.4f}, {trial.ended} after "
          f"{counted(trial.epochs, 'epoch')}, {settings}")  # fmt: skip
