"""Settings searched for: many trials in one compiled program, proposed and pruned by optuna.

    def init_params(key, config):  # a model of your own, or a module of jaxnn.models
        return jnp.zeros(config.inputs)

    def loss(params, batch, config):
        x, y = batch
        return ((x @ params - y) ** 2).mean() + config.l2 * (params**2).sum()

    line = types.SimpleNamespace(init_params=init_params, loss=loss)

    class Config(NamedTuple):
        inputs: int
        l2: float

    def build(settings):
        optimizer = {"sgd": optax.sgd, "adam": optax.adam}[settings["optimizer"]]
        return Config(3, settings["l2"]), optimizer(settings["learning_rate"])

    def evaluate(params, config):
        return {"error": loss(params, (X[80:], y[80:]), Config(3, 0.0))}

    space = {
        "optimizer": CategoricalDistribution(["sgd", "adam"]),  # of optuna.distributions
        "learning_rate": FloatDistribution(1e-3, 1e-1, log=True),
        "l2": FloatDistribution(1e-6, 1e-1, log=True),
    }
    tuned = tune(
        line, build, (X[:80], y[:80]), space, trials=16, epochs=8, chunk=2, batch_size=16,
        evaluate=evaluate, minimize="val_error", gradient="autodiff",
    )
    config, optimizer = build(tuned.best.settings)  # to train again, on all of X and y

`build(settings)` makes a configuration and an optimizer, as for `jaxnn.train.make_trials`. Real
numbers are traced, so that one program serves all of them; for each combination of integers and
categories there is another, which is compiled when the study first proposes it.
"""

import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.settings import check_flag, check_integer
from jaxnn.train.doors import check_callbacks, check_function, check_kept, check_made, column_kept
from jaxnn.train.logs import columns
from jaxnn.train.signals import signals
from jaxnn.train.space import check_build, check_space
from jaxnn.train.steps import Augment, Gradient
from jaxnn.train.study import Lane, Search, Trial, columns_of, make_study, say
from jaxnn.train.trials import BUILD, IMPL, Build, Evaluate, make_trials

# Of one combination of integers and categories so many times the lanes are tried in a row: more
# would try fewer combinations, less would leave lanes idle while the last trials of it finish.
VISIT = 2


class Tuned(NamedTuple):
    """What a search found.

    Attributes:
        best: of the trials that finished, the one with the best value.
        trials: all that ended, in the order in which they did.
        study: optuna's, with all that its own functions can tell of it.
        seconds: the time it took, compilation included.
        ended: "finished", or "interrupted" by Ctrl-C or SIGTERM.
        status: the same for a shell: 0, or 130 or 143.
    """

    best: Trial
    trials: tuple[Trial, ...]
    study: Any
    seconds: float
    ended: Literal["finished", "interrupted"]
    status: int


def tune(
    model: Any,
    build: Build,
    data: Any,
    space: Mapping[str, Any],
    *,
    trials: int,
    epochs: int,
    batch_size: int,
    lanes: int = 8,
    chunk: int = 1,
    evaluate: Evaluate | None = None,
    minimize: str | None = None,
    maximize: str | None = None,
    gradient: Gradient = "manual",
    augment: Augment | None = None,
    sampler: Any = None,
    pruner: Any = None,
    seed: int = 0,
    callbacks: Sequence[Callable[[Trial], Any]] = (),
    show: bool = True,
) -> Tuned:
    """Search for settings: ask the study for trials, train them side by side, and tell it.

    After every chunk of epochs each lane reports; once a trial has finished, those that are not
    worth going on with are pruned, and their lanes are given the next. Where the space has integers
    or categories, trials of one combination come in a row, twice as many as there are lanes. The
    same seed gives the same study. Ctrl-C or SIGTERM, heard in the main thread, stop after the
    chunk that runs; the trials that ended are kept.

    Args:
        model: a module with the model functions.
        build: `build(settings) -> (config, optimizer)`, of a dict with a value for each name of
            the space; real numbers are traced by JAX in training (see `make_trials`).
        data: a batch of all examples to train on.
        space: by name one of `optuna.distributions`.
        trials: how many.
        epochs: of a trial that is not pruned.
        batch_size: from 1 to the number of examples.
        lanes: how many trials are trained at a time; no more than there are.
        chunk: epochs between two reports, a divisor of `epochs`.
        evaluate: `evaluate(params, config)` -> a dict of scalars, or one; on data that is neither
            trained on nor to be judged by at the end. Without l2, if that differs from trial to
            trial: `dataclasses.replace(config, l2=0.0)`.
        minimize: the column to search by: "loss", or `val_NAME` for a metric NAME ("val" for a
            bare scalar); "val_loss" if there is one, else "loss".
        maximize: the same, of what should be large.
        gradient: as in `make_step`.
        augment: as in `make_step`.
        sampler: of optuna, but for those that go through a grid (`GridSampler` and
            `BruteForceSampler`); by default `TPESampler`.
        pruner: of optuna; by default `SuccessiveHalvingPruner`, from the first chunk on.
        seed: of the sampler, and of every trial's parameters and order of examples.
        callbacks: each is called with every `Trial` that ended.
        show: whether to print a line for each trial that ended.

    Raises:
        ModuleNotFoundError: optuna is not installed.
        TypeError, ValueError: an argument is none of the above; the space is empty, or names what
            `build` does not read; the model refuses the data or the settings at an end of the
            space; every trial diverged.
        KeyboardInterrupt: Ctrl-C before any trial had finished.

    Whatever is raised once trials are trained, a callback's errors included, has the attributes
    `trials`, those that ended, and `study`.
    """
    started = time.perf_counter()
    check_function("build", build, BUILD, 1)
    check_callbacks(callbacks, "callback(trial)", 1)
    traced = check_space(space)
    for name, value in (("trials", trials), ("lanes", lanes), ("epochs", epochs), ("chunk", chunk)):
        check_integer(name, value)
    check_integer("seed", seed, 0)
    lanes = min(lanes, trials)
    if epochs % chunk:
        raise ValueError(
            f"chunk is {chunk}, epochs {epochs}; it must divide them, so that every trial is of "
            "whole chunks: change one"
        )
    watched = check_kept(minimize, maximize)
    known: set[str] = set()

    def admit(config: Any, optimizer: Any) -> None:
        check_made(model, config, optimizer, gradient, augment)
        known.update(columns_of(model, config, evaluate))

    check_build(build, space, admit)
    direction, column = column_kept(sorted(known), watched)
    larger = direction == "maximize"
    search = Search(
        study=make_study(sampler, pruner, larger, seed, chunk),
        space=space,
        traced=traced,
        column=column,
        larger=larger,
        epochs=epochs,
        left=trials,
        callbacks=(*callbacks, *([partial(say, column)] if check_flag("show", show) else [])),
    )
    train = partial(
        make_trials,
        model,
        data=data,
        epochs=chunk,
        batch_size=batch_size,
        gradient=gradient,
        evaluate=evaluate,
        augment=augment,
    )
    programs: dict[tuple[Any, ...], Any] = {}
    key = jax.random.key(seed, impl=IMPL)
    # Asked when it knows one combination only, the sampler would hardly propose another: the first
    # half of the visits are drawn before any trial is told.
    visits = 1 if len(traced) == len(space) else -(-trials // (VISIT * lanes))
    ahead = [search.ask({}) for _ in range((visits + 1) // 2)]
    with search.kept():
        with signals() as heard:
            try:
                while (ahead or search.left) and not heard:
                    first = ahead.pop(0) if ahead else search.ask({})
                    static = {name: first.params[name] for name in space if name not in traced}
                    at = tuple(static.values())
                    if at not in programs:
                        programs[at] = train(partial(_with, build, static))
                    _visit(search, programs[at], first, static, lanes, key, heard)
            except KeyboardInterrupt:  # the second, or one of a callback's
                heard.append(signal.SIGINT)
        if heard:
            search.give_up()
        if not search.finished():
            if heard:
                raise KeyboardInterrupt
            raise ValueError(f"all of {trials} trials diverged; try smaller learning rates")
    if heard:
        print(f"interrupted: the {len(search.done)} trials that ended are kept", file=sys.stderr)
    seconds = time.perf_counter() - started
    ended: Literal["finished", "interrupted"] = "interrupted" if heard else "finished"
    status = 128 + heard[0] if heard else 0
    return Tuned(search.best(), tuple(search.done), search.study, seconds, ended, status)


def _with(build: Build, static: Mapping[str, Any], traced: dict[str, Any]) -> Any:
    """What `build` makes of all settings: those that are the program's, and those of a lane."""
    return build({**static, **traced})


def _visit(
    search: Search,
    program: Any,
    first: Any,
    static: Mapping[str, Any],
    lanes: int,
    key: Any,
    heard: list[int],
) -> None:
    """Try trials of one program: `first`, and others of the same integers and categories."""
    start, advance = program
    share = min(VISIT * lanes, 1 + search.left) if static else 1 + search.left
    waiting, states = [first], None
    running: list[Lane | None] = [None] * lanes
    while not heard:
        fresh = [i for i, lane in enumerate(running) if lane is None][:share]
        for i in fresh:
            running[i] = Lane(waiting.pop() if waiting else search.ask(static))
        share -= len(fresh)
        in_use = [lane for lane in running if lane is not None]
        if not in_use:
            return
        # A lane that has nothing to do repeats another.
        trials = [(lane or in_use[0]).trial for lane in running]
        settings = {name: [trial.params[name] for trial in trials] for name in search.traced}
        if fresh:
            numbers = jnp.array([trial.number for trial in trials])
            keys = jax.vmap(partial(jax.random.fold_in, key))(numbers)
            new = start(keys, settings)
            is_new = np.isin(np.arange(lanes), fresh)
            states = new if states is None else _chosen(is_new, new, states)
        states, history = advance(states, settings)
        jax.block_until_ready((states, history))
        seen = columns(history)
        for i, lane in enumerate(running):
            if lane is not None:
                lane.parts.append({name: values[i] for name, values in seen.items()})
                if search.report(lane):
                    running[i] = None


@jax.jit
def _chosen(is_new: Any, new: Any, old: Any) -> Any:
    """The states of `new` in the lanes that are, of `old` in the others."""

    def choose(a: Any, b: Any) -> Any:
        return jnp.where(is_new.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, new, old)
