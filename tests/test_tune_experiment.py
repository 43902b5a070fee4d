"""The search as a script: what it writes, that the choice sees no held-out image, its table."""

import csv
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution

from experiments import cli, throughput, tune
from jaxnn import data, train
from jaxnn.models import mlp

SMALL = {
    "optimizer": CategoricalDistribution(("adamw",)),
    "schedule": CategoricalDistribution(("one-cycle",)),
    "width": IntDistribution(8, 8),
    "depth": IntDistribution(1, 1),
}


@pytest.fixture
def few_images(monkeypatch):
    """Digits enough to learn from, in a space of one program."""
    some = data.digits()
    split = data.Split(*(data.Batch(x[:160], labels[:160]) for x, labels in some))
    monkeypatch.setattr(data, "digits", lambda seed: split)
    monkeypatch.setattr(tune, "SPACE", tune.SPACE | SMALL)
    return split


def test_it_tries_chooses_trains_the_best_again_and_writes_it_down(few_images, tmp_path, capsys):
    options = {"trials": 5, "lanes": 2, "epochs": 4, "chunk": 2, "batch_size": 16}
    assert tune.main(**options, out=tmp_path) == 0
    said = capsys.readouterr().out
    assert "128 images to learn, 32 to choose by, 160 held out" in said
    assert "5 trials of 1 network and optimizer in" in said
    assert "pass" in said  # the gradient of the best, verified
    assert not (tmp_path / tune.SEARCHING).exists()
    with (tmp_path / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == list("01234")
    finished = [row for row in rows if row["ended"] == "finished"]
    best = min(finished, key=lambda row: float(row["val_loss"]))
    params, model, config, notes = train.load_params(tmp_path / "params.safetensors")
    assert model is mlp
    assert notes["settings"]["dropout"] == float(best["dropout"]) == config.dropout
    assert f"the best is trial {best['trial']}" in said
    accuracy = mlp.accuracy(params, few_images.held_out, config)
    assert re.search(r"held-out accuracy ([\d.]+)%", said)[1] == f"{100 * accuracy:.2f}"
    assert (tmp_path / "trials.png").stat().st_size > 10_000
    lines = said[said.index("trial  optimizer") :].splitlines()
    assert len({len(line.rstrip()) for line in lines[1:4]}) <= 3
    assert lines[1].split()[0] == best["trial"]


@pytest.fixture
def older(tmp_path):
    """The folder of an older run, with a file of every name that scripts write."""
    for name in (*cli.DRAWN, "params.safetensors", "mine.txt"):
        (tmp_path / name).write_text("older")
    return tmp_path


def check_older_run_kept(folder):
    for name in (*cli.DRAWN, "params.safetensors"):
        assert (folder / "previous" / name).read_text() == "older"
    assert (folder / "mine.txt").read_text() == "older"


def test_ctrl_c_in_the_search_writes_its_table_and_keeps_an_older_run(
    few_images, older, monkeypatch, capsys
):
    tuned = train.tune

    def interrupted(*args, **options):
        def stop(trial):
            if trial.ended == "finished":
                raise KeyboardInterrupt

        return tuned(*args, **options | {"callbacks": [*options["callbacks"], stop]})

    monkeypatch.setattr(train, "tune", interrupted)
    assert tune.main(trials=3, lanes=1, epochs=1, chunk=1, batch_size=64, out=older) == 130
    check_older_run_kept(older)
    assert len((older / "trials.csv").read_text().splitlines()) == 2
    assert not (older / "params.safetensors").exists()
    said = capsys.readouterr().out
    assert f"the run that was in {older} is in {older / 'previous'} now" in said
    assert "1 trial of 1 network and optimizer in" in said
    assert "the work of 1 whole run;" in said


@pytest.mark.parametrize("stop", [KeyboardInterrupt, False])
def test_the_search_is_kept_whatever_comes_after_it(stop, few_images, older, monkeypatch, capsys):
    def holds(*args):
        if stop:
            raise stop
        return False

    monkeypatch.setattr(cli, "holds", holds)
    options = {"trials": 2, "lanes": 1, "epochs": 1, "chunk": 1, "batch_size": 64}
    if stop:
        with pytest.raises(stop):
            tune.main(**options, out=older)
    else:
        assert tune.main(**options, out=older) == 1
    check_older_run_kept(older)
    assert len((older / "trials.csv").read_text().splitlines()) == 3
    assert "finished after 1 epoch, " in capsys.readouterr().out
    assert not (older / "params.safetensors").exists()


def test_an_error_in_the_search_leaves_the_table_of_trials(few_images, older, monkeypatch):
    tuned = train.tune

    def fails(trial):
        raise MemoryError

    def searched(*args, **options):
        return tuned(*args, **options | {"callbacks": [*options["callbacks"], fails]})

    monkeypatch.setattr(train, "tune", searched)
    with pytest.raises(MemoryError):
        tune.main(trials=2, lanes=1, epochs=1, batch_size=64, chunk=1, out=older)
    assert len((older / tune.SEARCHING).read_text().splitlines()) == 2
    assert (older / "trials.csv").read_text() == "older"


def test_what_chooses_is_not_learnt_from_and_what_is_held_out_is_neither():
    split = data.digits()
    learnt, chosen_by = tune.parted(split.train, 0)
    rows = {
        name: {row.tobytes() for row in np.asarray(part.inputs)}
        for name, part in (("learnt", learnt), ("by", chosen_by), ("held", split.held_out))
    }
    assert len(learnt.inputs) + len(chosen_by.inputs) == len(split.train.inputs)
    assert len(chosen_by.inputs) == len(split.train.inputs) // 5
    assert not rows["learnt"] & rows["by"]
    assert not (rows["learnt"] | rows["by"]) & rows["held"]


@pytest.mark.parametrize("optimizer", tune.OPTIMIZERS)
@pytest.mark.parametrize("schedule", tune.SCHEDULES)
def test_every_optimizer_and_schedule_is_traced_through(optimizer, schedule):
    static = {"optimizer": optimizer, "schedule": schedule, "width": 3, "depth": 2}

    def step(rate, momentum, l2, dropout):
        own = {"learning_rate": rate, "momentum": momentum, "l2": l2, "dropout": dropout}
        config, made = tune.built(static | own, images=64, epochs=2, batch_size=8, pixels=4)
        params = mlp.init_params(jax.random.key(0), config)
        updates, _ = made.update(params, made.init(params), params)
        return optax.apply_updates(params, updates)

    stepped = jax.eval_shape(jax.vmap(step), *(jnp.full(3, x) for x in (1e-3, 0.9, 1e-3, 0.2)))
    assert {leaf.dtype for leaf in jax.tree.leaves(stepped)} == {jnp.dtype("float32")}
    assert len(stepped.layers) == 3


def test_the_measure_names_every_way_and_its_ratio(few_images, monkeypatch, capsys):
    monkeypatch.setattr(throughput, "ROUNDS", 1)
    monkeypatch.setattr(throughput, "ALONE", 1)
    monkeypatch.setattr(throughput, "TRIALS", 4)
    assert tune.main(measure=True, lanes=2, epochs=1, batch_size=64) == 0
    said = capsys.readouterr().out
    ratio = r" +[\d.]+ +[\d.]+ times as many in 2 lanes"
    assert re.search("a run each, compiled for each" + ratio, said)
    assert re.search("one program, trial by trial" + ratio, said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"trials": 0}, "--trials is 0"),
        ({"chunk": 3}, "chunk is 3, epochs 20"),
        ({"batch_size": 5000}, "batch_size is 5000"),
    ],
)
def test_bad_options_are_refused(options, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        tune.main(**options, out=tmp_path)
    assert not (tmp_path / "params.safetensors").exists()
