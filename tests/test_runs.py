"""The scripts that train: stopped and resumed, used, diverged, two in one folder, signals."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from experiments import autoencode, cli, digits, moons, square, text, two_layer
from experiments.pictures import canvas
from jaxnn import files, train
from jaxnn.models import mlp, rnn
from jaxnn.train import folder, signals

ROOT = Path(__file__).parents[1]

# Each run in three calls or more, of few numbers.
RUNS = {
    "digits": (digits, "--epochs 3 --hidden 8"),
    "digits, cnn": (digits, "--epochs 3 --model cnn --channels 4 --batch-size 256"),
    "autoencode": (autoencode, "--epochs 3 --hidden 8"),
    "moons": (moons, "--epochs 300 --points 20"),
    "square": (square, "--epochs 3000 --points 20 --hidden 4"),
    "two_layer": (two_layer, "--steps 300 --random"),
    "text": (
        text,
        "--steps 6 --steps-per-epoch 2 --batch-size 4 --sequence 16 --layers 1 --width 8 "
        "--embedding 4 --dropout 0.2 --length 30 --file page.txt",
    ),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to run in, with a text of six characters."""
    (tmp_path / "page.txt").write_text("abcde\n" * 200)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stop_after(calls, monkeypatch):
    """Let a run that is not told otherwise end after so many calls, as if it had been asked to."""
    whole, seen = train.fit, []

    def fit(*args, **settings):
        def stop(row, state):
            seen.append(row)
            return len(seen) == calls

        return whole(*args, **settings, callbacks=(stop,))

    monkeypatch.setattr(train, "fit", fit)


def kept(folder):
    """What a run is judged by: parameters bit for bit, what they say of themselves, and the log."""
    file = folder / "params.safetensors"
    params = {name: (x.dtype, x.tobytes()) for name, x in load_file(file).items()}
    return params, train.read_about(file), (folder / "log.csv").read_text()


@pytest.fixture
def sketched(monkeypatch):
    """Pictures are a word: what they show is looked at elsewhere, and drawing takes its time."""
    monkeypatch.setattr(canvas, "save", lambda figure, path: path.write_text("drawn"))


def drawn(folder):
    return {path.name: path.read_text() for path in folder.glob("*.png")}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_goes_on_ends_as_if_it_had_not_been_stopped(
    name, here, sketched, command, monkeypatch
):
    script, options = RUNS[name]
    words = [*options.split(), "--seed", "3", "--no-verify", "--out"]
    status, printed = command(script.main, *words, "whole")
    assert status == 0, printed
    pictured = drawn(here / "whole")
    assert pictured

    # A second run in the folder of an older one, interrupted while it draws, after one call.
    shutil.copytree("whole", "out")
    (here / "out/mine.txt").write_text("a file of no run")
    for other in cli.DRAWN:  # of another script's run, which was there before
        if not (here / "out" / other).exists():
            (here / "out" / other).write_text("older")

    def interrupted(figure, path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(canvas, "save", interrupted)
        stop_after(1, patched)
        status, printed = command(script.main, *words, "out")
    assert (status, printed.err.splitlines()[-1]) == (130, "interrupted")
    assert not drawn(here / "out")
    assert drawn(here / "out/previous").items() >= pictured.items()
    assert set(cli.DRAWN) == set(os.listdir(here / "out/previous")) - set(folder.NAMES)
    assert (here / "out/mine.txt").read_text() == "a file of no run"
    assert kept(here / "out/previous") == kept(here / "whole")
    assert kept(here / "out") != kept(here / "whole")

    for _ in range(2):  # the second time there is nothing left to do but to draw
        status, printed = command(script.main, "--resume", "out")
        assert status == 0, printed
        assert kept(here / "out") == kept(here / "whole")
        assert drawn(here / "out") == pictured
        for name in pictured:
            (here / "out" / name).unlink()


@pytest.fixture(params=["digits", "text"])
def used(request, here):
    """A script, how it uses a parameter file, and one that was saved without training."""
    if request.param == "digits":
        script, use, net, config = digits, "--predict", mlp, mlp.Config((64, 4, 10))
    else:
        script, use, net = text, "--sample", rnn
        config = rnn.Config(vocabulary=6, width=2, hidden=3, layers=1)
    (here / "out").mkdir()
    file = here / "out/params.safetensors"
    noted = {"vocabulary": "\nabcde", "beginning": "abc"}
    noted |= {"script": script.__name__, "options": {}}
    params = net.init_params(jax.random.key(0), config)
    train.save_params(file, params, model=net, config=config, notes=noted)
    return script, use, file


def diverging(call, monkeypatch):
    """Let every call of a run from this one on end with numbers that are none."""
    whole, calls = train.fit, []

    def fit(run, *args, **settings):
        def diverge(state):
            state, history = run(state)
            calls.append(state)
            if len(calls) >= call:
                state = state._replace(params=jax.tree.map(lambda x: x * jnp.nan, state.params))
            return state, history

        return whole(diverge, *args, **settings)

    monkeypatch.setattr(train, "fit", fit)


@pytest.mark.parametrize(
    ("name", "use"), [("digits, cnn", "--predict"), ("text", "--sample"), ("two_layer", None)]
)
def test_a_run_that_diverges_keeps_what_was_finite(name, use, here, sketched, command, monkeypatch):
    script, options = RUNS[name]
    words = [*options.split(), "--no-verify", "--out", "out"]
    diverging(3, monkeypatch)
    status, printed = command(script.main, *words)
    assert status == 1, printed
    assert "diverged" in printed.err
    assert drawn(here / "out")
    file = here / "out/params.safetensors"
    assert all(np.isfinite(x).all() for x in load_file(file).values())
    if use:
        assert command(script.main, use, file)[0] == 0
    # At once, there is nothing to keep in the place of what was there.
    before = kept(here / "out"), drawn(here / "out")
    diverging(1, monkeypatch)
    status, printed = command(script.main, *words)
    assert status == 1, printed
    assert (kept(here / "out"), drawn(here / "out")) == before
    assert not (here / "out/previous").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-3]), "cannot be read"),
        (lambda path: path.write_bytes(b"hello " * 99), "header"),
        (
            lambda path: path.write_bytes(
                path.read_bytes().replace(b'"format":"1"', b'"format":"9"')
            ),
            "is of format 9",
        ),
        (lambda path: path.write_bytes(path.read_bytes()[:-4] + b"\0\0\xc0\x7f"), "not finite"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "a named pipe"),
    ],
    ids=["empty", "torn", "text", "newer", "NaN", "pipe"],
)
def test_a_file_that_cannot_be_used_is_refused(change, message, used, command):
    """Nothing is read from it: no accuracy, no text."""
    script, use, file = used
    change(file)
    status, printed = command(script.main, use, file)
    assert status == 2
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out


def test_a_file_of_another_script_is_refused(used, command):
    script, _, file = used
    other, other_use = {digits: (text, "--sample"), text: (digits, "--predict")}[script]
    state = train.init_state(mlp, mlp.Config((2, 2)), optax.sgd(1.0), jax.random.key(0))
    train.save_state(file.parent / "state", state, notes=train.read_about(file).notes)
    for words in ([other_use, file], ["--resume", file.parent]):
        status, printed = command(other.main, *words)
        assert status == 2
        assert f"was saved by {script.__name__}; name what {other.__name__} saved" in printed.err


def test_a_run_does_not_go_on_with_other_data(here, sketched, command):
    """The letters and their number are the same, and so all shapes; the file has moved."""
    script, options = RUNS["text"]
    assert command(script.main, *options.split(), "--no-verify", "--out", "out")[0] == 0
    page = here / "page.txt"
    (here / "other.txt").write_text(page.read_text()[::-1])
    page.rename(here / "moved.txt")
    before = kept(here / "out")
    for name, message in (("page", "page.txt is not a file"), ("other", "data is ")):
        words = ["--file", here / f"{name}.txt"]
        status, printed = command(script.main, "--resume", "out", *words)
        assert status == 2
        assert message in printed.err
        assert kept(here / "out") == before
    assert command(script.main, "--resume", "out", "--file", "moved.txt")[0] == 0
    assert kept(here / "out") == before


def test_a_learning_rate_at_which_a_run_diverges_is_said(tmp_path, capsys):
    assert square.main(epochs=20, learning_rate=1e30, verify=False, out=tmp_path) == 1
    said = capsys.readouterr().err
    assert re.search(r"the loss is (nan|inf) in epoch \d+; .* try a smaller learning rate", said)


@pytest.mark.parametrize(
    ("numbers", "status"),
    [
        ((signal.SIGINT, signal.SIGTERM), 143),
        ((signal.SIGTERM, signal.SIGTERM), 143),
        ((signal.SIGTERM, signal.SIGINT), 130),
    ],
)
def test_a_second_sigterm_is_told_from_ctrl_c(numbers, status, command):
    def main() -> int:
        with signals.signals():
            for number in numbers:
                os.kill(os.getpid(), number)
        return 0

    assert command(main)[0] == status


@pytest.mark.parametrize("script", [autoencode, digits, moons, square, text, two_layer])
def test_a_folder_in_use_is_refused_before_anything_takes_time(script, here, command, monkeypatch):
    def took_time(*args):
        raise AssertionError

    monkeypatch.setattr(cli, "holds", took_time)
    monkeypatch.setattr(moons, "_check_gradient", took_time)
    held, free = threading.Event(), threading.Event()

    def hold():
        with files.locked(here / "out"):
            held.set()
            free.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(60)
    try:
        status, printed = command(script.main, "--out", "out")
    finally:
        free.set()
        other.join()
    assert status == 2
    assert (
        printed.err == "error: out is in use by another run; wait for it, or name another folder\n"
    )


# Real signals to a script, when its third epoch is done, whatever the machine's speed, or while it
# verifies, before there is anything to keep.
SIGNALLED = """
import os, signal, sys
from experiments import cli, digits
from jaxnn import train

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
number, place = getattr(signal, sys.argv.pop(1)), sys.argv.pop(1)
make_run, calls = train.make_run, []

def signalled(*args, **settings):
    run = make_run(*args, **settings)
    def once(state):
        calls.append(state)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return run(state)
    return once

def holds(*args):
    if place == "verifying":
        os.kill(os.getpid(), number)
    return True

train.make_run, cli.holds = signalled, holds
cli.run(digits.main)
"""


@pytest.mark.parametrize(
    ("name", "place", "status"),
    [("SIGINT", "training", 130), ("SIGTERM", "verifying", 143)],
)
def test_a_signal_keeps_the_epochs_that_finished(name, place, status, tmp_path):
    options = ["--epochs", "1000", "--hidden", "8", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, name, place, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    if place == "verifying":
        assert done.stderr.endswith("interrupted\n")
        assert not (tmp_path / "out/params.safetensors").exists()
        return
    assert "of 3 epochs" in done.stdout
    assert (tmp_path / "out/curves.png").read_bytes().startswith(b"\x89PNG")
    assert digits.main(predict=tmp_path / "out/params.safetensors") == 0
    assert (tmp_path / "out/log.csv").read_text().count("\n") == 1 + 3
