"""Fit: the best is kept, signals and divergence end it well, and a resumed run is the same run."""

import functools
import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import faults
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from faults import EPOCHS, contents, fit_into

from jaxnn import files, train
from jaxnn.train import checkpoints, progress, saving
from jaxnn.train import folder as train_folder

run_of = functools.cache(faults.make_run)


def fitted(run=None, **settings):
    settings = {"epochs": 3, "show": False} | settings
    return train.fit(run or run_of(), faults.init_state(), **settings)


def leaves(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def scripted(values, name="loss", params_of=lambda i: float(i)):
    """A run of one epoch each call, whose losses or metrics are these; its parameters count."""

    def run(state):
        i = int(state.step)
        state = state._replace(step=state.step + 1, params={"w": jnp.float32(params_of(i + 1))})
        value = jnp.asarray([values[i]], jnp.float32)
        if name == "loss":
            return state, train.History(value, None)
        return state, train.History(jnp.ones(1), {name: value})

    return run


def scripted_fit(values, name="loss", params_of=lambda i: float(i), **settings):
    start = train.State({"w": jnp.float32(0)}, (), jnp.int32(0), jax.random.key(0))
    settings = {"epochs": len(values), "show": False} | settings
    return train.fit(scripted(values, name, params_of), start, **settings)


@pytest.mark.parametrize("call", [0.5, 20.0])
def test_short_calls_are_saved_as_often_as_a_tenth_of_the_time_allows(
    call, tmp_path, monkeypatch, capsys
):
    """By a clock of its own, on which a save takes a second: no line is shown of what is not."""
    now, saved = [0.0], []
    monkeypatch.setattr(saving, "PAUSE", 9)
    monkeypatch.setattr(saving.time, "monotonic", lambda: now[0])

    def save(path, state, **settings):
        now[0] += 1
        saved.append(int(state.step) // 5)
        return begin_state(path, state, **settings)

    def run(state):
        now[0] += call
        return run_of()(state)

    begin_state = train_folder.begin_state
    monkeypatch.setattr(train_folder, "begin_state", save)
    ours = fit_into(tmp_path, run, epochs=10, show=True)
    lines = [int(n) for n in re.findall(r"epoch (\d+)/10 ", capsys.readouterr().out)]
    assert saved == ([1, 10] if call < 1 else [*range(1, 11)])
    assert set(lines) <= {*saved}
    assert lines[-1] == 10
    assert faults.look(tmp_path).logged == 10
    assert leaves(train.load_params(tmp_path / "params.safetensors", faults.MODEL).params) == (
        leaves(ours.params)
    )


def test_what_ended_is_saved_when_another_thing_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "PAUSE", 10**9)

    def fail(row, state):
        if row["epoch"] == 4:
            raise RuntimeError("of the user's own")

    with pytest.raises(RuntimeError, match="own"):
        fit_into(tmp_path, callbacks=[fail])
    assert faults.look(tmp_path).saved == 4


def test_a_file_where_an_older_run_would_go_is_refused_before_training(tmp_path):
    fit_into(tmp_path, epochs=1)
    (tmp_path / "previous").write_text("mine")
    with pytest.raises(ValueError, match="previous is a file; it must be free"):
        fit_into(tmp_path, lambda state: pytest.fail("trained"), epochs=1)
    assert faults.look(tmp_path).saved == 1


# What is kept.


def test_it_is_the_loop_of_its_calls():
    state, losses = faults.init_state(), []
    for _ in range(3):
        state, history = run_of()(state)
        losses.append(history.loss[0])
    ours = fitted()
    assert leaves(ours.state.params) == leaves(state.params)
    np.testing.assert_array_equal(ours.history.loss, losses)
    assert isinstance(ours.history.loss, np.ndarray)
    assert set(ours.history.metrics) == {"loss"}
    assert (ours.ended, ours.status) == ("finished", 0)
    assert ours.seconds > 0


@pytest.mark.parametrize(
    ("values", "settings", "best"),
    [
        ((3, 1, 2), {}, 2),
        ((3, 1, 2), {"maximize": "loss"}, 1),
        ((3, 1, 1), {"minimize": "loss"}, 2),
        ((1, 1, 1), {}, 1),
    ],
)
def test_the_best_parameters_are_kept(values, settings, best):
    ours = scripted_fit(values, **settings)
    assert ours.best_epoch == best
    assert float(ours.params["w"]) == best
    assert float(ours.state.params["w"]) == 3


@pytest.mark.parametrize(
    ("name", "settings", "best"),
    [
        ("loss", {}, 2),
        ("accuracy", {"maximize": "val_accuracy"}, 3),
        ("accuracy", {}, 1),  # of equal losses the first
    ],
)
def test_a_held_out_loss_goes_before_the_training_loss(name, settings, best):
    assert scripted_fit((3, 1, 4), name, **settings).best_epoch == best


def test_a_call_is_compared_with_the_best_and_with_no_other():
    """So that the ten thousandth takes no longer than the first."""

    class Column(list):
        looked_at = 0

        def __getitem__(self, i):
            Column.looked_at += 1
            return super().__getitem__(i)

    state, ends = faults.init_state(), tuple(range(1, 1001))
    columns = {"loss": Column(float(i) for i in ends)}
    before = progress.Progress(state, columns, ends, None, 7, {"maximize": "loss"})
    after = progress.with_best(before, ends[-1:])
    assert (after.best_epoch, after.best) == (1000, state.params)
    assert Column.looked_at == 2


def test_a_metric_that_is_no_number_is_never_better():
    assert scripted_fit((np.nan, 2, np.nan, 3), "x", minimize="val_x").best_epoch == 2
    assert scripted_fit((2, np.nan, 1), "x", maximize="val_x").best_epoch == 1
    assert scripted_fit((np.nan, np.nan), "x", maximize="val_x").best_epoch == 1


def test_the_best_is_looked_for_where_calls_end():
    """The second of two epochs has parameters to keep, the first has not."""
    losses = iter([(9.0, 5.0), (0.0, 1.0), (0.0, 3.0)])

    def run(state):
        state = state._replace(step=state.step + 2, params={"w": state.step})
        return state, train.History(jnp.asarray(next(losses)), None)

    start = train.State({"w": jnp.int32(0)}, (), jnp.int32(0), jax.random.key(0))
    ours = train.fit(run, start, epochs=6, show=False)
    assert (ours.best_epoch, int(ours.params["w"]), len(ours.history.loss)) == (4, 2, 6)


@pytest.mark.parametrize(("patience", "epochs"), [(1, 3), (2, 4), (3, 5), (4, 6)])
def test_patience_ends_it(patience, epochs):
    ours = scripted_fit((3, 2, 5, 4, 3, 1), patience=patience)
    assert len(ours.history.loss) == epochs
    assert ours.ended == ("stopped early" if patience < 4 else "finished")
    assert ours.status == 0
    assert ours.best_epoch == (2 if patience < 4 else 6)


def test_callbacks_see_each_row_and_end_it():
    rows = []

    def callback(row, state):
        rows.append((row, int(state.step)))
        return row["epoch"] == 2

    ours = fitted(callbacks=[callback, lambda row, state: None])
    assert ours.ended == "stopped early"
    assert [step for _, step in rows] == [5, 10]
    assert rows[1][0] == {
        "epoch": 2,
        "loss": float(ours.history.loss[1]),
        "val_loss": float(ours.history.metrics["loss"][1]),
    }


# Divergence.


@pytest.mark.parametrize("where", ["loss", "parameters"])
def test_what_diverges_keeps_what_was_finite(where, tmp_path, capsys):
    bad = 3
    values = [np.inf if where == "loss" and i == bad else 5.0 - i for i in range(5)]
    params = lambda i: np.nan if where == "parameters" and i == bad + 1 else i  # noqa: E731
    ours = scripted_fit(values, params_of=params)
    assert (ours.ended, ours.status) == ("diverged", 1)
    assert float(ours.state.params["w"]) == float(ours.params["w"]) == ours.best_epoch == bad
    np.testing.assert_array_equal(ours.history.loss, values[:bad])
    words = capsys.readouterr().err
    what = "the loss is inf in epoch 4" if where == "loss" else "not finite after epoch 4"
    assert what in words
    assert "after epoch 3 is kept: try a smaller learning rate" in words


def test_the_part_that_diverged_is_named(capsys):
    def run(state):
        later, history = run_of()(state)
        spoilt = jax.tree.map(
            lambda x: x * jnp.nan if x.dtype == jnp.float32 else x, later.opt_state
        )
        return later._replace(opt_state=spoilt), history

    assert fitted(run).ended == "diverged"
    words = "diverged: the optimizer's state holds NaN after epoch 1, the parameters do not"
    assert words in capsys.readouterr().err


def test_a_first_call_that_diverges_leaves_an_older_run_where_it_is(tmp_path):
    fit_into(tmp_path, run_of(), epochs=1)
    before = contents(tmp_path)
    wild = optax.sgd(1e30)
    ours = fit_into(tmp_path, run_of(1, wild), faults.init_state(wild))
    assert (ours.ended, ours.best_epoch, len(ours.history.loss)) == ("diverged", 0, 0)
    assert leaves(ours.params) == leaves(faults.init_state(wild).params)
    assert contents(tmp_path) == before
    assert not (tmp_path / "previous").exists()


def test_a_later_call_that_diverges_leaves_the_last_finite_state_in_the_folder(tmp_path):
    def run(state):
        later, history = run_of()(state)
        if int(state.step) == 10:
            later = later._replace(params=later.params._replace(b=jnp.float32(jnp.nan)))
        return later, history

    ours = fit_into(tmp_path, run)
    assert ours.ended == "diverged"
    seen = faults.look(tmp_path)
    assert (seen.logged, seen.saved) == (2, 2)
    assert leaves(seen.state.params) == leaves(ours.state.params)


# Signals.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_after_the_call_that_runs(number, capfd):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def run(state):
        if int(state.step) == 5:
            os.kill(os.getpid(), number)
        return run_of()(state)

    ours = fitted(run, epochs=5)
    assert (ours.ended, ours.status) == ("interrupted", 128 + number)
    assert len(ours.history.loss) == 2
    words = capfd.readouterr().err
    assert "stopping when this call of the run has ended; once more to stop at once" in words
    assert "interrupted: kept 2 finished epochs" in words
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_second_signal_ends_it_at_once(tmp_path):
    def run(state):
        if int(state.step) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
        return run_of()(state)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit_into(tmp_path, run)
    assert signal.getsignal(signal.SIGINT) == before
    assert faults.look(tmp_path).saved == 1
    fit_into(tmp_path, run_of(), resume=True)  # the lock is free again


def test_a_signal_in_the_last_call_is_none_that_ended_it():
    def run(state):
        os.kill(os.getpid(), signal.SIGINT)
        return run_of()(state)

    assert fitted(run, epochs=1).ended == "finished"


def test_signals_that_are_ignored_stay_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:

        def run(state):
            os.kill(os.getpid(), signal.SIGINT)
            return run_of()(state)

        assert fitted(run).ended == "finished"
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_no_handler_is_set():
    ended = []
    thread = threading.Thread(target=lambda: ended.append(fitted().ended))
    thread.start()
    thread.join()
    assert ended == ["finished"]


def test_a_signal_is_answered_while_a_call_computes():
    """And not when it has ended; the second ends the process."""
    script = """
import jax, jax.numpy as jnp, signal
from jaxnn import train

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it

@jax.jit
def long(w):
    return jax.lax.fori_loop(0, 10**9, lambda i, w: jnp.sin(w + i), w)

def run(state):
    print("runs", flush=True)
    return state._replace(params=long(state.params), step=state.step + 1), train.History(
        jnp.ones(1), None)

state = train.State(jnp.ones(1000), (), jnp.int32(0), jax.random.key(0))
jax.block_until_ready(jax.jit(lambda x: x + 1)(1))
try:
    train.fit(run, state, epochs=1, show=False)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    import os
    os._exit(7)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(train.__file__).parents[2],
    )
    assert process.stdout.readline() == "runs\n"
    process.send_signal(signal.SIGINT)
    line = process.stderr.readline() or "x"
    while line != "\n" and "stopping" not in line:
        line = process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (7, "interrupted\n")


# The folder.


def test_what_is_in_the_folder(tmp_path):
    ours = fit_into(tmp_path, run_of(), epochs=4, tensorboard=True)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {".lock", "params.safetensors", "state", "log.csv", "tensorboard"}
    loaded = train.load_params(tmp_path / "params.safetensors", faults)
    assert leaves(loaded.params) == leaves(ours.params)
    assert loaded.config == faults.CONFIG
    best = loaded.notes.pop("best")
    assert loaded.notes == {"seed": 0}
    assert best == {
        "epoch": ours.best_epoch,
        "loss": float(ours.history.loss[ours.best_epoch - 1]),
        "val_loss": float(ours.history.metrics["loss"][ours.best_epoch - 1]),
    }
    state, about = train.load_state(tmp_path / "state", faults.init_state())
    assert leaves(faults.bits(state)) == leaves(faults.bits(ours.state))
    assert leaves(about.best) == leaves(ours.params)
    assert about.model == "faults"
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["15", "20"]


@pytest.mark.parametrize("before", [1, 3, EPOCHS])
def test_a_run_that_is_resumed_is_the_run_that_was_not_interrupted(before, tmp_path, whole):
    """With shuffling, dropout, a schedule and clipping."""
    fit_into(tmp_path, run_of(), callbacks=[lambda row, state: row["epoch"] == before])
    ours = fit_into(tmp_path, run_of(), faults.init_state(seed=1), resume=True)
    assert contents(tmp_path) == contents(whole.folder)
    assert leaves(faults.bits(ours.state)) == leaves(faults.bits(whole.fit.state))
    assert leaves(ours.params) == leaves(whole.fit.params)
    np.testing.assert_array_equal(ours.history.loss, whole.fit.history.loss)
    np.testing.assert_array_equal(ours.history.metrics["loss"], whole.fit.history.metrics["loss"])
    assert ours.best_epoch == whole.fit.best_epoch


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    class Whole:
        folder = tmp_path_factory.mktemp("whole")
        fit = fit_into(folder, run_of())

    return Whole


def test_a_finished_run_is_resumed_without_a_step(whole):
    def none(state):
        raise AssertionError

    ours = fit_into(whole.folder, none, resume=True)
    assert ours.ended == "finished"
    assert ours.best_epoch == whole.fit.best_epoch
    np.testing.assert_array_equal(ours.history.loss, whole.fit.history.loss)


@pytest.mark.parametrize("first", [{"maximize": "val_x"}, {"minimize": "loss"}])
@pytest.mark.parametrize("named", [True, False])
def test_the_best_is_known_by_the_same_column_after_a_resume(first, named, tmp_path):
    """Also where it is not named again, and a larger epoch count follows."""
    values, best = (3, 5, 1, 4, 9, 2), 5 if "maximize" in first else 1
    folder = {"folder": tmp_path, "model": Counting, "config": None, "name": "x"}
    scripted_fit(values, epochs=4, **folder, **first)
    for epochs in (4, 6):
        ours = scripted_fit(
            values, epochs=epochs, resume=True, **folder, **(first if named else {})
        )
    loaded = train.load_params(tmp_path / "params.safetensors", Counting)
    assert loaded.notes["best"]["epoch"] == ours.best_epoch == best
    assert float(loaded.params["w"]) == float(ours.params["w"]) == best


@pytest.mark.parametrize("other", [{"minimize": "val_x"}, {"maximize": "loss"}, {"minimize": "y"}])
def test_a_run_is_not_resumed_with_another_column(other, tmp_path):
    folder = {"folder": tmp_path, "model": Counting, "config": None, "name": "x"}
    scripted_fit((3, 1, 2), **folder, maximize="val_x")
    before = (tmp_path / "params.safetensors").read_bytes()
    words = "whose best is known by maximize='val_x', not m.*: leave it out, or begin a new run"
    with pytest.raises(ValueError, match=words):
        scripted_fit((3, 1, 2, 4), **folder, resume=True, **other)
    assert (tmp_path / "params.safetensors").read_bytes() == before


def test_patience_counts_the_epochs_before_a_resume(tmp_path):
    values = (3, 2, 5, 4, 3, 1)
    folder = {"folder": tmp_path, "model": Counting, "config": None}
    scripted_fit(values, patience=3, callbacks=[lambda row, _: row["epoch"] == 4], **folder)
    ours = scripted_fit(values, patience=3, resume=True, **folder)
    assert (ours.ended, ours.best_epoch, len(ours.history.loss)) == ("stopped early", 2, 5)
    assert float(ours.params["w"]) == 2


class Counting:
    """A model of one parameter."""

    @staticmethod
    def init_params(key, config):
        return {"w": jnp.zeros(())}


STEPS = ("_named", "_save_best", "_write_logs")


@pytest.mark.parametrize("after", STEPS)
@pytest.mark.parametrize("epoch", [1, 3])
def test_killed_between_two_files_it_is_resumed_alike(after, epoch, tmp_path, whole, monkeypatch):
    """An exception stands for the kill: nothing of `fit` writes after one."""
    owner = checkpoints if after == "_named" else train_folder.Folder
    written, calls = getattr(owner, after), []

    def killed(*args, **settings):
        done = written(*args, **settings)
        calls.append(1)
        if len(calls) == epoch:
            raise SystemExit
        return done

    with monkeypatch.context() as patch:
        patch.setattr(owner, after, killed)
        with pytest.raises(SystemExit):
            fit_into(tmp_path, run_of())
    seen = faults.look(tmp_path)
    assert seen.saved == epoch
    assert seen.logged == epoch - (after != "_write_logs")
    fit_into(tmp_path, run_of(), resume=True)
    assert contents(tmp_path) == contents(whole.folder)


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt("killed")])
def test_runs_that_save_nothing_leave_an_older_one_where_it_went(error, tmp_path, monkeypatch):
    """The first save fails, or is killed, and so is the next run's: what they left is no run."""
    fit_into(tmp_path, run_of(), epochs=1)
    (tmp_path / "curve.png").write_text("older")
    older, replaced = contents(tmp_path), files.replaced

    def run(state):
        if (tmp_path / "previous").exists():
            (tmp_path / "curve.png").write_text("drawn")
        return run_of()(state)

    def failing(path):
        if "state" in Path(path).parts:
            raise error
        return replaced(path)

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(files, "replaced", failing)
            with pytest.raises(BaseException, match=error.args[-1]):
                fit_into(tmp_path, run, epochs=1, also=["curve.png"])
        assert contents(tmp_path / "previous") == older
        assert (tmp_path / "previous" / "curve.png").read_text() == "older"
        with pytest.raises(ValueError, match="holds no run to resume; an older one is in"):
            fit_into(tmp_path, unused, resume=True)
    fit_into(tmp_path, run_of(), epochs=1)
    assert contents(tmp_path) == contents(tmp_path / "previous") == older


@pytest.mark.parametrize("kept", ["params.safetensors", "log.csv", "state"])
def test_what_is_left_of_an_older_run_is_moved_too(kept, tmp_path):
    fit_into(tmp_path, run_of(), epochs=1)
    for name in {"params.safetensors", "log.csv", "state"} - {kept}:
        (tmp_path / name).rename(tmp_path / f"away {name}")
    fit_into(tmp_path, run_of(), epochs=1)
    assert [path.name for path in (tmp_path / "previous").iterdir()] == [kept]


@pytest.mark.parametrize("gone", ["params.safetensors", "log.csv"])
def test_a_file_that_is_gone_is_written_again(gone, tmp_path, whole):
    fit_into(tmp_path, run_of())
    (tmp_path / gone).unlink()
    fit_into(tmp_path, run_of(), resume=True)
    assert contents(tmp_path) == contents(whole.folder)


def test_a_damaged_file_of_parameters_is_written_again(tmp_path, whole):
    fit_into(tmp_path, run_of())
    (tmp_path / "params.safetensors").write_bytes(b"torn")
    fit_into(tmp_path, run_of(), resume=True)
    assert contents(tmp_path) == contents(whole.folder)


def test_an_older_run_is_moved_and_other_files_are_not(tmp_path, capsys):
    for name in ("mine.txt", "curve.png", "previous/mine.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("first")
    fit_into(tmp_path, run_of(), epochs=2, tensorboard=True, also=["curve.png"])
    assert (tmp_path / "curve.png").read_text() == "first"  # of no run
    (tmp_path / "curve.png").write_text("second")
    older = contents(tmp_path)
    fit_into(tmp_path, run_of(), epochs=1, also=["curve.png"], show=True)
    said = capsys.readouterr().out
    assert f"the run that was in {tmp_path} is in {tmp_path / 'previous'} now\n" in said
    assert contents(tmp_path / "previous") == older
    assert (tmp_path / "previous" / "tensorboard").is_dir()
    assert (tmp_path / "previous" / "curve.png").read_text() == "second"
    assert not (tmp_path / "curve.png").exists()
    fit_into(tmp_path, run_of(), epochs=1, also=["curve.png"])
    # That of the second run, not those of the first beside it.
    names = {path.name for path in (tmp_path / "previous").iterdir()}
    assert names == {"params.safetensors", "state", "log.csv", "mine.txt"}
    assert (tmp_path / "mine.txt").read_text() == "first"
    assert (tmp_path / "previous" / "mine.txt").read_text() == "first"


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", range(1, 18))
def test_a_move_that_is_killed_is_completed_at_the_next_start(at, tmp_path, monkeypatch):
    """At each call that changes what is on the disk, one after the other."""
    for seed in (1, 2):
        start = faults.init_state(seed=seed)
        fit_into(tmp_path, run_of(), start, epochs=1)
    calls = []

    def counted(change):
        def changing(self, *args, **settings):
            if self.is_relative_to(tmp_path) and ".unfinished" not in str(self):
                calls.append(self)
                if len(calls) == at:
                    raise Killed
            return change(self, *args, **settings)

        return changing

    with monkeypatch.context() as patch:
        for name in ("mkdir", "rename", "unlink", "rmdir"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        try:
            fit_into(tmp_path, run_of(), epochs=1)
            killed = False
        except Killed:
            killed = True
    assert killed, f"the move has only {len(calls)} changes: lower the range"
    fit_into(tmp_path, run_of(), epochs=1)
    assert not (tmp_path / ".moving").exists()
    for place, seed in ((tmp_path, 0), (tmp_path / "previous", 2)):
        expected = faults.init_state(seed=seed)
        expected, _ = run_of()(expected)
        seen = faults.look(place)
        assert (seen.saved, seen.logged) == (1, 1)
        assert leaves(seen.state.params) == leaves(expected.params)


def test_a_folder_in_use_is_refused(tmp_path):
    fit_into(tmp_path, run_of(), epochs=1)
    script = (
        "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire();"
        "print('locked', flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / ".lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "locked\n"
    for resume in (False, True):
        with pytest.raises(ValueError, match="is in use by another run; wait for it, or name"):
            fit_into(tmp_path, unused, resume=resume)
    other.communicate("\n")
    assert fit_into(tmp_path, run_of(), epochs=2, resume=True).ended == "finished"


def unused(state):
    raise AssertionError("trained before what was wrong was refused")


@pytest.mark.parametrize("saved", [0, 2])
def test_a_full_disk_ends_it_in_words_and_what_was_saved_is_whole(saved, tmp_path, whole):
    """A limit on the size of files, from then on, stands for the disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def run(state):
        later = jax.block_until_ready(run_of()(state))
        if int(state.step) == 5 * saved:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
        return later

    try:
        with pytest.raises(ValueError, match="cannot be written") as refused:
            fit_into(tmp_path, run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(tmp_path) in str(refused.value)
    assert faults.look(tmp_path).saved == saved
    fit_into(tmp_path, run_of(), resume=saved > 0)
    assert contents(tmp_path) == contents(whole.folder)


# What is refused, before anything is trained.


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"epochs": 0}, ValueError, "epochs is 0; it must be at least 1"),
        ({"epochs": 2.5}, TypeError, "epochs is 2.5; it must be an integer"),
        ({"patience": 0}, ValueError, "patience is 0; it must be at least 1"),
        ({"minimize": "loss", "maximize": "loss"}, ValueError, "leave out the other"),
        ({"resume": True}, ValueError, "resume is True without a folder"),
        ({"tensorboard": True}, ValueError, "tensorboard is True without a folder"),
        ({"also": ["x"]}, ValueError, "also is .'x'. without a folder"),
        ({"folder": "x"}, TypeError, "model is None, without init_params; it must be a module"),
        ({"run": None}, TypeError, "run is None; it must be a function"),
        ({"callbacks": [3]}, TypeError, "each of callbacks is 3; it must be a function"),
    ],
)
def test_arguments_are_refused(settings, error, words):
    with pytest.raises(error, match=words):
        train.fit(**{"run": unused, "state": faults.init_state(), "epochs": 3} | settings)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"also": ["a/b"]}, ValueError, "also has 'a/b'; it must be the name of a file of yours"),
        ({"also": [".."]}, ValueError, "also has '..'"),
        ({"also": ["state"]}, ValueError, "also has 'state'"),
        ({"notes": {"best": 1}}, ValueError, "notes has 'best'"),
        ({"notes": {"seed": {1}}}, TypeError, "must be what JSON has"),
        ({"model": train}, TypeError, "model is .*train.*; it must be a module with the"),
        ({"config": {1: 2}}, TypeError, "config is"),
        (
            {"config": faults.Config(features=4)},
            ValueError,
            r"w is float32\[3\], needed float32\[4\]",
        ),
        ({"state": 3}, TypeError, "state is int; it must be the State that init_state"),
        ({"resume": True}, ValueError, "holds no run to resume; name the folder of one, or leave"),
    ],
)
def test_arguments_are_refused_before_the_folder_has_anything(settings, error, words, tmp_path):
    given = {
        "run": unused,
        "state": faults.init_state(),
        "epochs": 3,
        "folder": tmp_path / "out",
        "model": faults,
        "config": faults.CONFIG,
    }
    with pytest.raises(error, match=words):
        train.fit(**given | settings)
    assert not (tmp_path / "out").exists() or [*(tmp_path / "out").iterdir()] == []


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(ValueError, match=r"file.* cannot be written to \("):
            fit_into(folder, unused)


def test_a_folder_that_cannot_be_written_to_is_refused():
    for folder in ("/proc/here", "/proc"):
        with pytest.raises(ValueError, match=r"/proc.* cannot be written to"):
            fit_into(Path(folder), unused)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"notes": {"seed": 1}}, "seed is 0 in the file, 1 here"),
        ({"config": faults.Config(rate=0.5)}, "rate is 0.25 in the file, 0.5 here"),
        ({"model": "other"}, "model is 'faults' in the file, 'other' here"),
        ({"state": faults.init_state(optax.sgd(0.1))}, "of another model or optimizer"),
    ],
)
def test_a_run_of_another_kind_is_not_resumed(settings, words, whole):
    before = contents(whole.folder)
    if "model" in settings:
        settings = {"model": type("other", (), vars(faults))}
    given = {
        "run": unused,
        "state": faults.init_state(),
        "epochs": 20,
        "folder": whole.folder,
        "model": faults,
        "config": faults.CONFIG,
        "notes": {"seed": 0},
        "resume": True,
    }
    with pytest.raises(ValueError, match=words):
        train.fit(**given | settings)
    assert contents(whole.folder) == before


def test_a_state_that_no_fit_saved_is_not_resumed(tmp_path):
    state = faults.init_state()
    train.save_state(tmp_path / "state", state, model=faults, config=faults.CONFIG)
    with pytest.raises(ValueError, match="has no history beside its state; it must be of a run"):
        fit_into(tmp_path, unused, notes=None, resume=True)


def test_notes_that_are_left_out_at_a_resume_stay(tmp_path):
    fit_into(tmp_path, run_of(), epochs=1)
    fit_into(tmp_path, run_of(), epochs=3, notes=None, resume=True)
    loaded = train.load_params(tmp_path / "params.safetensors", faults)
    assert loaded.notes["seed"] == 0
    assert loaded.notes["best"]["epoch"] > 1


def test_an_unknown_column_is_refused_with_the_known_ones(tmp_path):
    words = "maximize is 'val_accuracy'; it must be a column of the log: loss, val_loss"
    with pytest.raises(ValueError, match=words):
        fit_into(tmp_path, run_of(), minimize=None, maximize="val_accuracy")
    assert {path.name for path in tmp_path.iterdir()} <= {".lock"}


@pytest.mark.parametrize("many", [False, True])
def test_what_a_run_that_was_made_here_says_of_itself_is_looked_at_before_it_runs(many, tmp_path):
    traces = []

    def evaluate(params):
        traces.append(params)
        return faults.evaluate(params)

    made = faults.MODEL, faults.CONFIG, faults.OPTIMIZER
    settings = {"gradient": "autodiff", "evaluate": evaluate}
    if many:
        run = train.make_run(*made, faults.examples(), epochs=2, batch_size=2, **settings)
    else:
        run = train.make_epoch(*made, [faults.examples(2)], **settings)

    def unused_run(state):
        raise AssertionError("computed before what was wrong was refused")

    unused_run.__dict__.update(vars(run))
    with pytest.raises(ValueError, match="minimize is 'val_los'; it must be a column of the log"):
        fit_into(tmp_path, unused_run, epochs=2, minimize="val_los")
    if many:
        with pytest.raises(ValueError, match="epochs is 3, 0 of them done; a call of run makes 2"):
            fit_into(tmp_path, unused_run, epochs=3)
        traces.clear()
        train.fit(run, faults.init_state(), epochs=2, show=False)
        assert len(traces) == 0  # it was traced once, and no more


def test_epochs_that_calls_do_not_come_to_are_refused(tmp_path):
    words = "epochs is 5, 0 of them done; a call of run makes 2, and the rest must be a multiple"
    with pytest.raises(ValueError, match=words):
        fit_into(tmp_path, run_of(2), epochs=5)
    assert {path.name for path in tmp_path.iterdir()} <= {".lock"}


@pytest.mark.parametrize(
    ("run", "error", "words"),
    [
        (lambda state: state, TypeError, "run returned State; it must return a State and a Hist"),
        (lambda state: (state, 1.0), TypeError, r"run returned \['State', 'float'\]"),
        (
            lambda state: (state._replace(step=state.step + 1), train.History(jnp.ones(()), None)),
            ValueError,
            r"history.loss has shape \(\) after a call of run; it must be \(epochs,\), an entry",
        ),
        (
            lambda state: (state._replace(step=state.step + 1), train.History(jnp.ones(0), None)),
            ValueError,
            r"history.loss has shape \(0,\)",
        ),
        (
            lambda state: (state, train.History(jnp.ones(1), None)),
            ValueError,
            "state.step is 0 after a call of run, 0 before; it must count the steps",
        ),
        (
            lambda state: (
                state._replace(step=state.step + 1),
                train.History(jnp.ones(1), {"x": jnp.ones((1, 2))}),
            ),
            TypeError,
            r"the metric val_x has dtype float32 and shape \(2,\); each must be a real scalar",
        ),
    ],
)
def test_what_a_run_returns_is_looked_at(run, error, words):
    with pytest.raises(error, match=words):
        fitted(run)


def test_columns_that_change_are_refused():
    def run(state):
        name = "a" if int(state.step) == 0 else "b"
        metrics = {name: jnp.ones(1)}
        return state._replace(step=state.step + 1), train.History(jnp.ones(1), metrics)

    with pytest.raises(ValueError, match="the columns are loss, val_b, and were loss, val_a"):
        fitted(run)


def test_logging_is_as_it_was_and_nothing_is_said(tmp_path, capfd):
    root, absl = logging.getLogger(), logging.getLogger("absl")
    before = root.handlers[:], root.level, absl.handlers[:], absl.level
    fit_into(tmp_path, run_of(), epochs=2)
    fit_into(tmp_path, run_of(), epochs=4, resume=True)
    assert (root.handlers[:], root.level, absl.handlers[:], absl.level) == before
    assert capfd.readouterr() == ("", "")


def test_killed_at_random_moments_it_ends_as_the_whole_run(tmp_path, whole):
    """`python tests/faults.py --moments 100` is the long form."""
    assert faults.kill_at(2, tmp_path, contents(whole.folder)) >= 1


def test_json_of_a_note_is_what_is_read(tmp_path):
    notes = {"seed": 0, "vocabulary": "ab\\n", "options": {"out": Path("x"), "sizes": (1, 2)}}
    fit_into(tmp_path, run_of(), epochs=1, notes=notes)
    loaded = train.load_params(tmp_path / "params.safetensors", faults)
    assert json.dumps(loaded.notes["options"]) == '{"out": "x", "sizes": [1, 2]}'
