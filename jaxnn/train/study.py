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
    """A trial that is trained, what its epochs gave so far, and whether the pruner gave it up."""

    trial: Any
    parts: list[dict[str, Any]] = field(default_factory=list)
    worse: bool = False


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
        if not all(np.isfinite(columns[name]).all() for name in ("loss", self.column)):
            ended, value = "diverged", np.nan
            _spoil(lane.trial, self.larger)
        else:
            lane.trial.report(value, epochs)
            if epochs == self.epochs:
                ended = "finished"
            # Before one has finished, those that seem better may all diverge yet. Judged once, a
            # trial is not judged again: the pruner would count it among those that it let pass.
            else:
                lane.worse = lane.worse or lane.trial.should_prune()
                if lane.worse and self.finished():
                    ended = "pruned"
        if ended is None:
            return False
        settings = dict(lane.trial.params)
        trial = Trial(lane.trial.number, settings, value, epochs, ended, columns)
        self.done.append(trial)
        state = installed("optuna", "tune").trial.TrialState
        # What diverged is told as pruned, so that the sampler keeps away from there.
        told = {"values": value} if ended == "finished" else {"state": state.PRUNED}
        self.study.tell(self.asked.pop(trial.number), **told)
        for callback in self.callbacks:
            callback(trial)
        return True

    def give_up(self) -> None:
        """Tell the study that the trials which are trained will not end."""
        for trial in self.asked.values():
            self.study.tell(trial, state=installed("optuna", "tune").trial.TrialState.FAIL)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever is raised inside carries the trials that ended, and the study."""
        try:
            yield
        except BaseException as error:
            vars(error).update(trials=tuple(self.done), study=self.study)
            error.add_note(
                f"the search's trials that ended, {len(self.done)}, are this error's attribute "
                "`trials`, optuna's study is `study`"
            )
            raise

    def finished(self) -> list[Trial]:
        """The trials that finished."""
        return [trial for trial in self.done if trial.ended == "finished"]

    def best(self) -> Trial:
        """The best of them, the first if they are alike."""
        return (max if self.larger else min)(self.finished(), key=lambda trial: trial.value)


def _spoil(trial: Any, larger: bool) -> None:
    """Make all that a trial reported the worst there is: it diverged, and is no measure of others.

    Pruners by successive halving compare with what they noted of every trial, whatever its end.
    """
    worst, storage, number = -np.inf if larger else np.inf, trial.storage, trial._trial_id
    told = storage.get_trial(number)
    for step in told.intermediate_values:
        storage.set_trial_intermediate_value(number, step, worst)
    for name in told.system_attrs:
        if name.startswith("completed_rung_"):
            storage.set_trial_system_attr(number, name, worst)


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
    if isinstance(sampler, package.samplers.GridSampler | package.samplers.BruteForceSampler):
        raise TypeError(
            f"sampler is a {type(sampler).__name__}, which must choose every setting itself and "
            "ends the study; it must be one that goes on, such as optuna.samplers.RandomSampler() "
            "or QMCSampler(): the points of a grid are lanes of make_trials"
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
