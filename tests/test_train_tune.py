"""Trials in lanes: each as if alone; searches: the same from the same seed, nothing lost."""

import dataclasses
import signal
import sys
import textwrap
import types
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from jaxnn import train
from jaxnn.data import Batch
from jaxnn.models import mlp
from jaxnn.train.study import Lane, Search, make_study

K_X, K_W = jax.random.split(jax.random.key(0))
X = jax.random.normal(K_X, (60, 4))
DATA = Batch(X, (X @ jax.random.normal(K_W, (4, 3))).argmax(-1))
TRAIN, HELD_OUT = (jax.tree.map(lambda x, s=s: x[s], DATA) for s in (slice(40), slice(40, None)))


def build(settings):
    config = mlp.Config(sizes=(4, 6, 3), l2=settings["l2"], dropout=settings["dropout"])
    schedule = optax.cosine_decay_schedule(settings["learning_rate"], 20)
    return config, optax.sgd(schedule, momentum=settings["momentum"])


def evaluate(params, config):
    config = dataclasses.replace(config, l2=0.0)
    return {
        "loss": mlp.loss(params, HELD_OUT, config),
        "accuracy": mlp.accuracy(params, HELD_OUT, config),
    }


RUN = {"epochs": 2, "batch_size": 8, "evaluate": evaluate}
SETTINGS = {
    "learning_rate": [0.1, 0.3, 0.05],
    "l2": [0.0, 1e-3, 1e-2],
    "dropout": [0.0, 0.3, 0.5],
    "momentum": [0.9, 0.5, 0.0],
}
SPACE = {
    "learning_rate": FloatDistribution(0.01, 1.0, log=True),
    "l2": FloatDistribution(0.0, 0.01),
    "dropout": FloatDistribution(0.0, 0.5),
    "momentum": FloatDistribution(0.0, 0.9),
}


@pytest.fixture(scope="module")
def trials():
    """What starts and trains lanes: compiled once for all tests."""
    return train.make_trials(mlp, build, TRAIN, **RUN)


def alone(key, settings, calls):
    """The run of one lane by `make_run`."""
    config, optimizer = build(settings)
    run = train.make_run(
        mlp, config, optimizer, TRAIN, **RUN | {"evaluate": lambda p: evaluate(p, config)}
    )
    state, histories = train.init_state(mlp, config, optimizer, key), []
    for _ in range(calls):
        state, history = run(state)
        histories.append(history)
    return state, jax.tree.map(lambda *x: jnp.concatenate(x), *histories)


def of_lane(settings, i):
    return {name: values[i] for name, values in settings.items()}


def test_a_lane_is_the_run_alone_also_after_it_is_given_another_trial(trials):
    start, advance = trials
    keys = jax.random.split(jax.random.key(3), 4)
    states = start(keys[:3], SETTINGS)
    states, first = advance(states, SETTINGS)
    # Lane 1 is given another trial, while the others go on.
    other = {name: [values[0], 0.5 * values[1], values[2]] for name, values in SETTINGS.items()}
    replaced = start(keys[jnp.array([0, 3, 2])], other)
    states = jax.tree.map(lambda new, old: old.at[1].set(new[1]), replaced, states)
    states, second = advance(states, other)
    history = jax.tree.map(lambda *x: jnp.concatenate(x, 1), first, second)
    assert states.step.tolist() == [20, 10, 20]
    for i, key, calls in ((0, keys[0], 2), (1, keys[3], 1), (2, keys[2], 2)):
        state, expected = alone(key, of_lane(other, i), calls)
        lane = jax.tree.map(lambda x: x[i], states.params)  # noqa: B023
        chex.assert_trees_all_close(lane, state.params, rtol=2e-5, atol=2e-6)
        got = jax.tree.map(lambda x: x[i, -2 * calls :], history)  # noqa: B023
        chex.assert_trees_all_close(got, expected, rtol=2e-5, atol=2e-6)


def test_a_lane_that_diverges_disturbs_no_other(trials):
    start, advance = trials
    keys = jax.random.split(jax.random.key(3), 3)
    wild = SETTINGS | {"learning_rate": [0.1, 1e30, 0.05]}
    (calm, calm_history), (states, history) = (
        advance(start(keys, given), given) for given in (SETTINGS, wild)
    )
    assert not np.isfinite(history.loss[1]).all()
    for i in (0, 2):
        chex.assert_trees_all_equal(
            *(jax.tree.map(lambda x: x[i], tree.params) for tree in (calm, states))  # noqa: B023
        )
        assert (history.loss[i] == calm_history.loss[i]).all()


def test_trials_are_compiled_once_and_by_hand_as_by_autodiff(trials):
    seen = []

    def watched(settings):
        seen.append(isinstance(settings["l2"], jax.core.Tracer))
        return build(settings)

    start, advance = train.make_trials(mlp, watched, TRAIN, gradient="autodiff", **RUN)
    keys = jax.random.split(jax.random.key(3), 3)
    states = start(keys, SETTINGS)
    for _ in range(2):
        states, _ = advance(states, SETTINGS)
        start(keys, SETTINGS)
    assert sum(seen) == 1
    by_hand = trials[0](keys, SETTINGS)
    for _ in range(2):
        by_hand, _ = trials[1](by_hand, SETTINGS)
    chex.assert_trees_all_close(states.params, by_hand.params, rtol=1e-4, atol=1e-5)


def test_lanes_that_differ_in_number_and_settings_looked_at_are_refused(trials):
    keys = jax.random.split(jax.random.key(3), 2)
    with pytest.raises(ValueError, match=r"keys have shape \(2,\).*'l2': \(3,\).*\(lanes,\)"):
        trials[0](keys, SETTINGS)
    with pytest.raises(ValueError, match=r"keys have shape \(\)"):
        trials[0](keys[0], {name: values[0] for name, values in SETTINGS.items()})
    rbg = jax.random.split(jax.random.key(3, impl="rbg"), 3)
    with pytest.raises(ValueError, match=r"keys are of rbg, .*impl='threefry2x32'"):
        trials[0](rbg, SETTINGS)
    with pytest.raises(TypeError, match="settings is None; it must be a dict"):
        trials[0](keys, None)
    with pytest.raises(TypeError, match="keys is 3; it must be keys, one to each lane"):
        trials[0](3, SETTINGS)
    with pytest.raises(TypeError, match=r"settings\['l2'\] is 'x'; it must be numbers"):
        trials[0](keys, SETTINGS | {"l2": "x"})
    with pytest.raises(TypeError, match="state is "):
        trials[1](None, SETTINGS)
    start, advance = train.make_trials(
        mlp, lambda s: (mlp.Config(sizes=(4, 3), l2=float(s["l2"])), optax.sgd(0.1)), TRAIN, **RUN
    )
    states = start(keys, {"l2": [0.0, 0.1]})
    with pytest.raises(TypeError, match=r"build looks at the value of a setting.*jnp\.where"):
        advance(states, {"l2": [0.0, 0.1]})
    start, _ = train.make_trials(mlp, lambda s: mlp.Config(sizes=(4, 3)), TRAIN, **RUN)
    with pytest.raises(TypeError, match=r"build returns Config.*a pair, \(config, optimizer\)"):
        start(keys, {})
    bad = Batch(TRAIN.inputs, TRAIN.targets.at[3].set(7))
    start, _ = train.make_trials(mlp, build, bad, **RUN)
    with pytest.raises(ValueError, match=r"label 7 at index \(3,\)"):
        start(keys, {name: values[:2] for name, values in SETTINGS.items()})


SEARCH = {"trials": 7, "epochs": 4, "chunk": 2, "lanes": 3, "batch_size": 8, "evaluate": evaluate}


def search(build=build, space=SPACE, **changes):
    return train.tune(mlp, build, TRAIN, space, **SEARCH | {"show": False} | changes)


def told(tuned):
    return [(t.number, t.settings, t.ended, t.value) for t in tuned.trials]


def test_a_search_is_the_same_from_the_same_seed_and_keeps_the_best(capsys):
    seen = []
    tuned = search(maximize="val_accuracy", callbacks=[seen.append], show=True)
    assert capsys.readouterr().out.count("val_accuracy") == len(tuned.trials)
    assert tuned.ended == "finished"
    assert [t.number for t in seen] == [t.number for t in tuned.trials]
    assert sorted(t.number for t in seen) == list(range(7))
    finished = [t for t in tuned.trials if t.ended == "finished"]
    assert tuned.best.value == max(t.value for t in finished)
    assert tuned.best.value == tuned.best.columns["val_accuracy"][-1]
    for trial in tuned.trials:
        of_study = tuned.study.trials[trial.number]
        assert of_study.params == trial.settings
        assert of_study.state.name == ("COMPLETE" if trial.ended == "finished" else "PRUNED")
        assert trial.epochs == len(trial.columns["loss"]) == len(trial.columns["val_loss"])
        assert trial.ended != "finished" or trial.epochs == 4
    assert any(t.ended == "pruned" for t in tuned.trials)
    assert told(search(maximize="val_accuracy")) == told(tuned)
    assert told(search(maximize="val_accuracy", seed=1)) != told(tuned)


def test_a_trial_is_the_run_of_its_settings_alone():
    tuned = search(minimize="val_loss", pruner=optuna.pruners.NopPruner())
    assert all(t.ended == "finished" for t in tuned.trials)
    last = max(tuned.trials, key=lambda t: t.number)  # in a lane that had another before
    key = jax.random.fold_in(jax.random.key(0), last.number)
    _, history = alone(key, last.settings, 2)
    np.testing.assert_allclose(last.columns["loss"], history.loss, rtol=2e-5)
    np.testing.assert_allclose(last.columns["val_loss"], history.metrics["loss"], rtol=2e-5)
    assert tuned.best == min(tuned.trials, key=lambda t: t.value)


def test_integers_and_categories_are_programs_of_their_own():
    def build(settings):
        hidden = (settings["width"],) * settings["depth"]
        make = {"sgd": optax.sgd, "adam": optax.adam}[settings["optimizer"]]
        return mlp.Config(sizes=(4, *hidden, 3)), make(settings["learning_rate"])

    space = {
        "learning_rate": SPACE["learning_rate"],
        "width": CategoricalDistribution([2, 5]),
        "depth": IntDistribution(0, 1),
        "optimizer": CategoricalDistribution(["sgd", "adam"]),
    }
    tuned = search(build, space, trials=12, lanes=2, epochs=2, evaluate=None)
    static = [tuple(t.settings[name] for name in list(space)[1:]) for t in tuned.trials]
    assert len(static) == 12
    assert 2 <= len(set(static)) <= 3
    assert tuned.best.value == tuned.best.columns["loss"][-1]


def test_lanes_of_one_program_are_never_idle():
    tuned = search(trials=8, lanes=2, pruner=optuna.pruners.NopPruner())
    assert [t.number for t in tuned.trials] == list(range(8))  # two by two, to the end


def test_trials_that_diverge_are_told_and_never_the_best():
    def wild(settings, above=0.5):
        rate = settings["learning_rate"]
        return build(settings | {"learning_rate": jnp.where(rate > above, 1e30, rate)})

    space = SPACE | {"learning_rate": FloatDistribution(0.1, 1.0)}
    tuned = search(wild, space, minimize="loss")
    diverged = {t.number for t in tuned.trials if t.ended == "diverged"}
    assert 0 < len(diverged) < 7
    assert diverged == {t.number for t in tuned.trials if t.settings["learning_rate"] > 0.5}
    assert all(np.isnan(t.value) == (t.ended == "diverged") for t in tuned.trials)
    assert tuned.best.number not in diverged
    with pytest.raises(ValueError, match="all of 3 trials diverged") as raised:
        search(lambda settings: wild(settings, 0.0), space, trials=3)
    assert [t.ended for t in raised.value.trials] == ["diverged"] * 3
    assert len(raised.value.study.trials) == 3


def tell(search, *losses):
    """Return how trials end that report these losses, one after each epoch, side by side."""
    running = [(Lane(search.ask({})), iter(values)) for values in losses]
    first = running[0][0].trial.number
    while running:
        for lane, values in list(running):
            lane.parts.append({"loss": np.array([next(values)])})
            if search.report(lane):
                running = [other for other in running if other[0] is not lane]
    ended = {trial.number: trial.ended for trial in search.done}
    return [ended[first + i] for i in range(len(losses))]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_diverges_later_prunes_no_other(sign):
    wild, sound, better = (sign * np.array(xs) for xs in ([1, 1, np.nan], [5] * 6, [4] * 6))
    study = make_study(None, None, sign < 0, 0, 1)
    told = Search(study, SPACE, tuple(SPACE), "loss", sign < 0, 6, 9, ())
    # Before one has finished, nothing is pruned; after, only by what did not diverge.
    assert tell(told, wild, sound, wild) == ["diverged", "finished", "diverged"]
    assert tell(told, wild) == ["diverged"]
    assert tell(told, better) == ["finished"]
    assert tell(told, sound) == ["pruned"]
    assert [trial.value for trial in study.trials if trial.number in (0, 2, 3)] == 3 * [
        sign * np.inf
    ]


def test_keys_of_a_search_are_of_the_kind_that_lanes_need():
    with jax.default_prng_impl("rbg"):
        tuned = search(trials=1, lanes=1)
    assert told(tuned) == told(search(trials=1, lanes=1))


def test_the_first_is_never_pruned_and_none_is_judged_twice():
    class Always(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            judged.append(trial.number)
            return True

    judged = []
    study = make_study(None, Always(), False, 0, 1)
    told = Search(study, SPACE, tuple(SPACE), "loss", False, 3, 9, ())
    assert tell(told, [1, 1, 1]) == ["finished"]
    assert tell(told, [0, 0, 0]) == ["pruned"]
    assert judged == [0, 1]


def test_fewer_trials_than_lanes_need_no_other_lanes():
    tuned = search(trials=2, lanes=8)
    assert sorted(trial.number for trial in tuned.trials) == [0, 1]


def test_a_metric_beside_the_one_searched_by_may_be_nan():
    def with_nan(params, config):
        return evaluate(params, config) | {"f1": jnp.nan * params.layers[0].b[0]}

    tuned = search(evaluate=with_nan, trials=1, lanes=1, pruner=optuna.pruners.NopPruner())
    assert tuned.best.ended == "finished"
    assert np.isnan(tuned.best.columns["val_f1"]).all()
    with pytest.raises(ValueError, match="all of 1 trials diverged"):
        search(evaluate=with_nan, trials=1, minimize="val_f1")


def test_an_error_in_the_search_carries_the_trials_that_ended():
    def raises(trial):
        if len(seen) == 2:
            raise RuntimeError("no room")
        seen.append(trial)

    seen = []
    with pytest.raises(RuntimeError, match="no room") as raised:
        search(trials=3, lanes=1, callbacks=[raises], pruner=optuna.pruners.NopPruner())
    assert raised.value.trials[:2] == tuple(seen)
    assert len(raised.value.trials) == len(raised.value.study.trials) == 3
    assert "trials that ended, 3" in raised.value.__notes__[0]


def test_a_signal_keeps_the_trials_that_ended(capsys):
    def stop(trial):
        signal.raise_signal(signal.SIGTERM)

    tuned = search(callbacks=[stop], lanes=1, trials=3, pruner=optuna.pruners.NopPruner())
    assert (tuned.ended, tuned.status) == ("interrupted", 143)
    assert "the 1 trials that ended are kept" in capsys.readouterr().err

    def raises(trial):
        raise KeyboardInterrupt

    tuned = search(callbacks=[raises], pruner=optuna.pruners.NopPruner())
    assert (tuned.ended, tuned.status) == ("interrupted", 130)
    assert [t.ended for t in tuned.trials] == ["finished"]
    states = [t.state.name for t in tuned.study.trials]
    assert sorted(states) == ["COMPLETE", "FAIL", "FAIL"]
    space = SPACE | {"learning_rate": FloatDistribution(1e30, 1e30)}
    with pytest.raises(KeyboardInterrupt) as raised:  # before any has finished
        search(space=space, callbacks=[stop], lanes=1, trials=1)
    assert [t.ended for t in raised.value.trials] == ["diverged"]


BAD = {
    "a space of nothing": ({"space": {}}, ValueError, "space is empty.*at least one setting"),
    "a space that is none": ({"space": [1]}, TypeError, r"space is \[1\]; it must be a dict"),
    "no distribution": (
        {"space": SPACE | {"l2": (0, 1)}}, TypeError, r"space\['l2'\] is \(0, 1\).*Float"
    ),
    "a name that build does not read": (
        {"space": SPACE | {"lr": FloatDistribution(0, 1)}},
        ValueError,
        "space names 'lr', which build does not read; it reads 'dropout', 'l2', 'learning_rate'",
    ),
    "a name that the space has not": (
        {"build": lambda s: build(dict(s) | {"l2": s["decay"]})},
        ValueError,
        "build reads the setting 'decay', and space names learning_rate, l2",
    ),
    "an end that the model refuses": (
        {"space": SPACE | {"dropout": FloatDistribution(0.0, 1.0)}},
        ValueError,
        r"space: with .*'dropout': 1.0.*dropout is 1.0; it must be in \[0, 1\)",
    ),
    "no optimizer": (
        {"build": lambda s: (build(s)[0], 0.1)}, TypeError, "space: with .*optimizer is 0.1"
    ),
    "no pair": ({"build": lambda s: build(s)[0]}, TypeError, "build returns Config.*pair"),
    "chunks that do not divide": ({"chunk": 3}, ValueError, "chunk is 3, epochs 4.*divide"),
    "no trial": ({"trials": 0}, ValueError, "trials is 0; it must be at least 1"),
    "a column that is none": (
        {"minimize": "val_los"}, ValueError, "minimize is 'val_los'.*loss, val_accuracy, val_loss"
    ),
    "a column of no letters": ({"minimize": ""}, ValueError, "minimize is ''; it must be a column"),
    "both ways": ({"minimize": "loss", "maximize": "loss"}, ValueError, "leave out the other"),
    "a column that is no name": ({"maximize": 1}, TypeError, "maximize is 1; it must be a column"),
    "no scalars": (
        {"evaluate": lambda p, c: {"all": jnp.ones(3)}},
        ValueError,
        r"evaluate.*\(3,\).*must be a scalar",
    ),
    "no function": ({"evaluate": 3}, TypeError, r"evaluate is 3; .*evaluate\(params, config\)"),
    "no sampler": ({"sampler": 3}, TypeError, "sampler is 3; it must be one of optuna.samplers"),
    "a sampler that ends the study": (
        {"sampler": optuna.samplers.GridSampler({"l2": [0.0]})},
        TypeError,
        r"sampler is a GridSampler, which .*RandomSampler\(\)",
    ),
    "no pruner": ({"pruner": "x"}, TypeError, "pruner is 'x'; it must be one of optuna.pruners"),
    "no build": ({"build": 3}, TypeError, r"build is 3; .*build\(settings\) -> \(config"),
    "no callbacks": ({"callbacks": 3}, TypeError, "callbacks is 3; it must be a tuple or list"),
    "no callback": ({"callbacks": [3]}, TypeError, "each of callbacks is 3; it must be a function"),
    "no flag": ({"show": 2}, TypeError, "show is 2; it must be True or False"),
    "a batch larger than all": ({"batch_size": 99}, ValueError, "batch_size is 99.*examples, 40"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case):
    changes, error, said = BAD[case]
    with pytest.raises(error, match=said):
        search(**changes)


def test_without_optuna_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "jaxnn\[tune\]"'):
        search()


def test_settings_may_be_unpacked_and_merged():
    config = mlp.Config(sizes=(4, 3))
    space = {"l2": SPACE["l2"], "learning_rate": SPACE["learning_rate"]}

    def unpacked(settings):
        given = {"momentum": 0.5} | settings
        l2 = given.pop("l2")
        return dataclasses.replace(config, l2=l2), optax.sgd(**given)

    tuned = search(unpacked, space, trials=2, lanes=2, chunk=4)
    assert len(tuned.trials) == 2


def test_the_example_in_the_docstring_runs_on_ones_own_data_and_model(capsys):
    said = sys.modules["jaxnn.train.tune"].__doc__
    code = [line for line in said.splitlines() if line.startswith("    ") or not line]
    example = textwrap.dedent("\n".join(code))
    assert "tuned = tune(" in example
    rng = np.random.default_rng(0)
    x = np.float32(rng.normal(size=(100, 3)))
    names = {
        "X": x,
        "y": x @ np.float32([1, -2, 3]),
        "tune": train.tune,
        "CategoricalDistribution": CategoricalDistribution,
        "FloatDistribution": FloatDistribution,
        "types": types,
        "optax": optax,
        "jnp": jnp,
        "NamedTuple": NamedTuple,
    }
    exec(example, names)
    assert len(names["tuned"].trials) == 16
    assert names["tuned"].best.value < 3.0
    assert isinstance(names["config"], names["Config"])
    assert capsys.readouterr().out.count("val_error") == 16
