"""The log of a run: its columns, what a terminal shows, CSV, and what TensorBoard reads."""

import csv
import io
import os
import re
import signal
import sys

import faults
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from faults import fit_into

from jaxnn import train
from jaxnn.train import logs

LOSS = np.array([0.1, 1e-9, 12345.678], np.float32)
METRICS = {"loss": np.array([1, np.nan, np.inf], np.float32), "right": np.array([1, 2, 3])}


def history(metrics=METRICS, loss=LOSS):
    return train.History(loss, metrics)


@pytest.mark.parametrize(
    ("metrics", "names"),
    [
        (None, []),
        (LOSS, ["val"]),
        (METRICS, ["val_loss", "val_right"]),
        ({"a": {"b": LOSS}}, ["val_a_b"]),
        (train.History(LOSS, None), ["val_loss"]),
    ],
)
def test_columns_are_named_after_the_metrics(metrics, names):
    columns = logs.columns(history(metrics))
    assert list(columns) == ["loss", *names]


@pytest.mark.parametrize("metrics", [None, LOSS, METRICS])
def test_columns_are_history_again(metrics):
    again = logs.history(logs.columns(history(metrics)))
    np.testing.assert_equal(again._asdict(), history(metrics)._asdict())


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"x": np.ones((3, 2))}, r"val_x has dtype float64 and shape \(2,\); each must be a real"),
        ({"x": np.ones(3, complex)}, "val_x has dtype complex128"),
        ({"x": np.array(["a", "b", "c"])}, "val_x has dtype <U1"),
        ({"a": {"b": LOSS}, "a_b": LOSS}, "val_a_b"),
    ],
)
def test_other_metrics_are_refused(metrics, words):
    with pytest.raises(TypeError, match=words):
        logs.columns(history(metrics))


def test_csv_holds_every_digit_of_every_dtype():
    columns = {
        "loss": LOSS,
        "half": LOSS.astype(ml_dtypes.bfloat16),
        "double": np.array([0.1, np.nan, -np.inf]),
        "count": np.array([1, 2, 2**53 + 1]),
    }
    read = [*csv.reader(io.StringIO(logs.csv_of(columns)))]
    assert read[0] == ["epoch", *columns]
    assert [row[0] for row in read[1:]] == ["1", "2", "3"]
    for i, (name, values) in enumerate(columns.items(), 1):
        column = np.array([values.dtype.type(row[i]) for row in read[1:]])
        np.testing.assert_array_equal(column, values, name)


def test_a_line_is_read_in_a_glance():
    row = {"epoch": 3, "loss": 0.1234567, "val_accuracy": 0.97, "val_right": 12}
    expected = "epoch 3/40  loss 0.1235  val_accuracy 0.97  val_right 12  0.2 s"
    assert logs.line(row, 40, 0.21) == expected


RUN = faults.make_run()


def test_a_run_shows_its_first_and_last_line_and_about_one_a_second(capsys):
    now = [0.0]

    def later(row, state):
        now[0] += 0.4

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs.time, "monotonic", lambda: now[0] + 10)
        train.fit(RUN, faults.init_state(), epochs=6, callbacks=[later])
    shown = capsys.readouterr()
    assert re.findall(r"^epoch (\d)/6  loss \S+  val_loss \S+  \S+ s$", shown.out, re.M) == [
        "1",
        "4",
        "6",
    ]
    assert shown.err == ""  # no bar where there is no terminal


def test_where_nobody_reads_it_goes_on(tmp_path, monkeypatch):
    """The other end of both pipes is gone, as of `2>&1 | tee` after Ctrl-C."""
    reading, writing = os.pipe()
    os.close(reading)
    mine = os.dup(2)

    def interrupted(row, state):
        if row["epoch"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        for name in ("stdout", "stderr"):
            # Each line is written at once: at the end there is nothing left to write.
            raw = open(writing, "wb", buffering=0, closefd=False)  # noqa: SIM115
            patch.setattr(sys, name, io.TextIOWrapper(raw, write_through=True))
        os.dup2(writing, 2)
        try:
            ours = fit_into(tmp_path, RUN, show=True, callbacks=[interrupted])
        finally:
            os.dup2(mine, 2)
    os.close(mine)
    assert (ours.ended, ours.status) == ("interrupted", 130)
    assert faults.look(tmp_path).logged == 2


def test_where_nobody_reads_no_more_is_shown(monkeypatch):
    terminal, calls = logs.Terminal(3, 0), []

    def gone(*_):
        calls.append(1)
        raise BrokenPipeError

    monkeypatch.setattr(terminal._bar, "write", gone)
    for epoch in (1, 2):
        terminal._shown = 0.0
        terminal.show({"epoch": epoch, "loss": 1.0}, 0.1)
    terminal.close()
    assert calls == [1]


def test_a_quiet_run_says_nothing(capfd):
    train.fit(RUN, faults.init_state(), epochs=2, show=False)
    assert capfd.readouterr() == ("", "")


def test_a_bar_shows_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    bars = []
    terminal = logs.Terminal(6, 2)
    bars.append(terminal._bar.n)
    terminal.show({"epoch": 3, "loss": 1.0}, 0.1)
    bars.append(terminal._bar.n)
    terminal.close()
    assert bars == [2, 3]
    assert "epoch 3/6  loss 1  0.1 s" in capsys.readouterr().out


def events(folder):
    """Every number in the event files: {column: {epoch: value}}."""
    from tensorboardX.proto.event_pb2 import Event

    read = {}
    for file in folder.glob("events.out.tfevents.*"):
        content = file.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]
            for value in event.summary.value:
                assert event.step not in read.get(value.tag, {})
                read.setdefault(value.tag, {})[event.step] = value.simple_value
    return read


def test_tensorboard_has_every_number_once_after_a_resume_too(tmp_path):
    fit_into(tmp_path, RUN, epochs=2, tensorboard=True)
    ours = fit_into(tmp_path, RUN, epochs=3, resume=True, tensorboard=True)
    expected = {"loss": ours.history.loss, "val_loss": ours.history.metrics["loss"]}
    assert events(tmp_path / "tensorboard") == {
        name: {i: float(value) for i, value in enumerate(values, 1)}
        for name, values in expected.items()
    }


def test_tensorboard_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "tensorboard").mkdir()

    def run(state):
        later = RUN(state)
        if int(state.step) == 0:
            return later
        # A file where its folder was.
        for file in (tmp_path / "tensorboard").iterdir():
            file.unlink()
        (tmp_path / "tensorboard").rmdir()
        (tmp_path / "tensorboard").write_text("")
        return later

    fit_into(tmp_path, RUN, epochs=1)
    (tmp_path / "tensorboard").write_text("")
    with pytest.raises(ValueError, match="tensorboard cannot be written"):
        fit_into(tmp_path, RUN, epochs=2, resume=True, tensorboard=True)
    assert faults.look(tmp_path).saved == 1


def test_log_csv_is_what_the_history_has(tmp_path):
    ours = fit_into(tmp_path, RUN, epochs=2)
    text = (tmp_path / "log.csv").read_text()
    assert text == logs.csv_of(
        {"loss": ours.history.loss, "val_loss": ours.history.metrics["loss"]}
    )
    assert text.startswith("epoch,loss,val_loss\n1,")


@pytest.mark.parametrize(
    ("module", "settings"),
    [
        ("tqdm", {"show": True}),
        ("tensorboardX", {"tensorboard": True}),
        ("orbax", {}),
        ("safetensors", {}),
        ("filelock", {}),
    ],
)
def test_a_package_that_is_missing_is_named_before_training(
    module, settings, tmp_path, monkeypatch
):
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)

    def unused(state):
        raise AssertionError

    words = rf'{module}\S* is not installed: pip install "jaxnn\[train\]"'
    with pytest.raises(ModuleNotFoundError, match=words):
        fit_into(tmp_path, unused, **settings)


def test_without_a_folder_and_a_terminal_no_package_is_needed(monkeypatch):
    for module in ("tqdm", "tensorboardX", "orbax", "safetensors", "filelock"):
        monkeypatch.setitem(sys.modules, module, None)
    assert train.fit(RUN, faults.init_state(), epochs=1, show=False).ended == "finished"


def test_rows_are_pythons_numbers():
    (row,) = logs.rows({"loss": jnp.ones(3), "val_right": np.arange(3)}, 3)
    assert row == {"epoch": 3, "loss": 1.0, "val_right": 2}
    assert [type(value) for value in row.values()] == [int, float, int]
