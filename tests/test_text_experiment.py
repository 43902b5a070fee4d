"""The script that learns to write: its result, its files, its errors."""

import csv
import math
import re
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import cli, text

SMALL = {"steps": 6, "steps_per_epoch": 3, "batch_size": 4, "sequence": 16, "length": 30}
SIZES = {"layers": 1, "width": 8, "embedding": 4, "heads": 2}


@pytest.fixture
def page(tmp_path):
    """A text of six characters that is easy to learn."""
    path = tmp_path / "page.txt"
    path.write_text("abcde\n" * 200)
    return path


@pytest.fixture
def unverified(monkeypatch):
    """What these tests look at comes after the verification, which takes its time."""
    report = types.SimpleNamespace(status="inconclusive")
    monkeypatch.setattr(cli.verify, "gradient", lambda *a: report)
    return report


def test_the_parameters_saved_are_the_best_and_write_the_sample(page, tmp_path, capsys, unverified):
    """Letters by chance, of which it learns those of training by heart: it gets worse at others."""
    page.write_text("".join(np.random.default_rng(0).choice([*"abcde\n"], 1200)))
    options = {"file": page, **SMALL, **SIZES} | {"steps": 60, "steps_per_epoch": 6, "width": 32}
    assert text.main(**options, learning_rate=0.05, out=tmp_path) == 0
    said = re.search(
        r"character ([\d.]+) after (\d+) steps, the best of 60 .*; ([\d.]+) after the last",
        capsys.readouterr().out,
    )
    best, steps, last = map(float, said.groups())
    with (tmp_path / "log.csv").open() as file:
        losses = [float(row["val_loss"]) for row in csv.DictReader(file)]
    assert best == pytest.approx(min(losses) / math.log(2), abs=1e-3)
    assert last == pytest.approx(losses[-1] / math.log(2), abs=1e-3)
    assert steps == 6 * (1 + losses.index(min(losses)))
    assert best < last
    written = (tmp_path / "sample.txt").read_text()
    assert text.main(sample=tmp_path / "params.safetensors") == 0
    assert capsys.readouterr().out == written + "\n"


def test_a_text_is_verified_learned_written_and_kept(page, tmp_path, capsys):
    options = {"file": page, **SMALL, **SIZES, "width": 16, "dropout": 0.1}
    long = options | {"steps": 150, "steps_per_epoch": 50}
    assert text.main(**long, learning_rate=0.02, out=tmp_path) == 0
    out = capsys.readouterr().out
    assert "PASS         manual_grad" in out
    assert "1080 characters to learn, 120 held out, 6 different" in out
    bits = float(re.search(r"held-out bits per character ([\d.]+) after 150 steps", out)[1])
    assert bits < 0.5
    written = (tmp_path / "sample.txt").read_text()
    assert written in out
    assert len(written) == 8 + 30
    assert written.startswith("abcde\nab")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    # Options and characters are those of training, whatever text is at hand, or none.
    saved = {"sample": tmp_path / "params.safetensors"}
    page.write_text("uvwxyz" * 200)
    for file in ({"file": page}, {"file": None}, {}):
        assert text.main(**saved, **file) == 0
        assert capsys.readouterr().out == written + "\n"
    hot = {text.main(**saved, temperature=9, seed=n) or capsys.readouterr().out for n in (1, 2)}
    assert len(hot) == 2
    assert text.main(**saved, prompt="ab", temperature=0, length=9) == 0
    short = capsys.readouterr().out
    assert len(short) == 2 + 9 + 1
    assert set(short) <= set("\nabcde")
    with pytest.raises(ValueError, match=r"--width is 8, in the run 16: leave out"):
        text.main(**saved, width=8)


def test_by_autodiff_it_learns_the_same_curve(page, tmp_path, capsys, unverified):
    bits = []
    for gradient in ("manual", "autodiff"):
        assert text.main("gru", page, gradient=gradient, **SMALL, **SIZES, out=tmp_path) == 0
        out = capsys.readouterr().out
        bits.append(
            re.search(r"character ([\d.]+) after \d steps.*\ntraining ([\d.]+)", out).groups()
        )
    assert bits[0] == bits[1]


@pytest.mark.parametrize("model", ["gpt", "llama"])
def test_a_transformer_trains_and_writes_as_far_as_it_sees(model, page, tmp_path, unverified):
    assert text.main(model, page, **SMALL, **SIZES, prompt="de", out=tmp_path) == 0
    written = (tmp_path / "sample.txt").read_text()
    assert written.startswith("de")
    assert len(written) == SMALL["sequence"]


def test_a_wrong_gradient_is_not_trained_with(page, tmp_path, unverified):
    unverified.status = "fail"
    assert text.main(file=page, **SMALL, **SIZES, out=tmp_path / "out") == 1
    assert not list((tmp_path / "out").glob("[!.]*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--file absent.txt", "absent.txt is not a file"),
        ("--sequence 120", "120 of them held out; there must be at least 121"),
        ("--steps 75", "--steps is 75, --steps-per-epoch 50; .* take 50 steps, or 25 per epoch"),
        ("--batch-size 0", "--batch-size is 0; it must be finite and above 0"),
        ("--sequence 32 --prompt abcX", "character 'X' at position 3"),
        ("--sequence 4 --model gpt --prompt abcd", "--prompt has 4 characters; .* --sequence, 4"),
        ("--sequence 8 --sample absent", "absent is not a file"),
        ("--sequence 8 --dropout 1", "dropout is 1.0"),
        ("--sequence 8 --batch-size 1073", "--batch-size is 1073; the text has 1072 windows"),
        ("--sequence 8 --prompt \ud800", r"character '\\ud800' at position 0"),
        ("--sequence 8 --length 2147483648", r"--length is 2147483648; .* below 2\^31"),
        ("--sequence 8 --layers -1", "--layers is -1"),
        ("--sequence 8 --layers 0", "--layers is 0"),
        ("--sequence 8 --width 0", "--width is 0"),
        ("--sequence 8 --embedding 0", "--embedding is 0"),
        ("--sequence 8 --temperature -1", "--temperature is -1.0; .* at least 0"),
        ("--sequence 1 --model gpt", "what the sample begins with has 1 .* --sequence, 1"),
        ("--sequence 8 --seed -1", r"--seed is -1; .* below 2\^32"),
        ("--sequence 8 --seed 4294967296", "--seed is 4294967296"),
        ("--sequence 8 --out taken", "params.safetensors, which cannot be overwritten"),
    ],
)
def test_a_mistake_gets_a_message_and_exit_status_2(options, message, page, command, monkeypatch):
    monkeypatch.chdir(page.parent)
    Path("taken/params.safetensors").mkdir(parents=True)
    given = options if "--file" in options else f"--file {page} {options}"
    status, printed = command(text.main, *given.split())
    assert status == 2
    assert re.search(message, printed.err)


def test_held_out_loss_is_that_of_all_windows(page):
    """The evaluation goes window by window; the mean must be that of them all at once."""
    tokens = text.text.encode(page.read_text(), "\nabcde")
    split = text.text.split(tokens, 16)
    net, config = text._network("lstm", vocabulary=6, sequence=16, dropout=0.2, **SIZES)
    optimizer = text.optax.sgd(0.1)
    state = text.train.init_state(net, config, optimizer, jax.random.key(0))
    step = text.train.make_step(net, config, optimizer)
    state, history = text._make_epoch(net, config, step, split, 2, 4, 16)(state)
    expected = net.loss(state.params, text.text.all_windows(split.held_out, 16), config)
    assert history.metrics["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert int(state.step) == 2
