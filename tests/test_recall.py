"""The options of an earlier run: taken from its files, of use or refused where given again."""

from pathlib import Path
from typing import Literal

import jax
import numpy as np
import optax
import pytest

from experiments import recall
from jaxnn import train
from jaxnn.models import mlp

SEEN = []


@recall.recalls(resume=("file",), predict=("file", "temperature"))
def main(
    epochs: int = 40,
    rate: float = 0.1,
    hidden: tuple[int, ...] = (3,),
    kind: Literal["a", "b"] = "a",
    fast: bool = False,
    file: Path | None = None,
    width: int | None = None,
    temperature: float = 1.0,
    verify: bool = True,
    resume: Path | None = None,
    predict: Path | None = None,
    out: Path = Path("out"),
) -> int:
    """Show the options that came."""
    SEEN.append(dict(locals()))
    return 0


OPTIONS = {
    "epochs": 5,
    "rate": 1.0,
    "hidden": (),
    "kind": "b",
    "fast": True,
    "file": Path("/data/page.txt"),
    "width": 7,
    "temperature": 0.5,
}
OPEN = {"verify": True, "resume": None, "predict": None, "out": Path("out")}
DATA = (np.arange(3.0), np.arange(2))


def save(folder, notes):
    config = mlp.Config(sizes=(2, 2))
    params = mlp.init_params(jax.random.key(0), config)
    path = folder / "params.safetensors"
    train.save_params(path, params, model=mlp, config=config, notes=notes)
    return path


def save_state(folder, notes, step=0):
    state = train.init_state(mlp, mlp.Config(sizes=(2, 2)), optax.sgd(1.0), jax.random.key(0))
    train.save_state(folder / "state", state._replace(step=state.step + step), notes=notes)


@pytest.fixture
def saved(tmp_path):
    return save(tmp_path, recall.notes(main, OPTIONS | OPEN, DATA, seed=3))


@pytest.fixture
def run(saved):
    """The folder of a run that can go on."""
    save_state(saved.parent, train.read_about(saved).notes)
    return saved.parent


@pytest.fixture
def asked(command):
    """The options that `main` had from a command line, or what was said of them."""

    def options(*words):
        SEEN.clear()
        status, printed = command(main, *words)
        assert (status, len(SEEN)) in {(0, 1), (2, 0)}
        return printed.err if status else SEEN[0]

    return options


def test_the_options_of_the_run_are_the_defaults(saved, run, asked):
    expected = OPTIONS | OPEN | {"predict": saved}
    assert asked("--predict", saved) == expected
    assert main(predict=saved) == 0
    assert SEEN[-1] == expected
    # Where a run goes on is its own folder, and it was verified.
    expected = OPTIONS | OPEN | {"resume": run, "out": run, "verify": False}
    assert asked("--resume", run) == expected
    assert main(resume=run) == 0
    assert SEEN[-1] == expected
    for damage in (lambda: saved.write_bytes(b"torn"), saved.unlink):  # the state is whole
        damage()
        assert asked("--resume", run) == expected


def test_the_options_of_a_run_are_read_once(saved, asked, monkeypatch):
    read = []
    whole = train.read_about
    monkeypatch.setattr(train, "read_about", lambda path: read.append(path) or whole(path))
    asked("--predict", saved)
    assert read == [saved]


def test_a_run_goes_on_in_its_own_folder_however_it_is_spelled(run, asked):
    (run / "inside").mkdir()
    (run / "link").symlink_to(run)
    for same in (run / "inside" / "..", run / "link"):
        assert asked("--resume", run, "--out", same)["out"] == same
    assert "--out is" in asked("--resume", run, "--out", run / "inside")


def test_data_may_have_moved_but_not_come(saved, run, asked):
    noted = recall.notes(main, OPTIONS | OPEN | {"file": None}, DATA)
    save(run, noted)
    save_state(run, noted, step=1)
    for use in (["--predict", saved], ["--resume", run]):
        said = asked(*use, "--file", "x")
        assert "--file is x, in the run none: leave out what the run has settled" in said


def test_what_is_no_setting_of_the_run_may_be_given(saved, run, asked):
    words = ["--predict", saved, "--temperature", 2, "--file", "x", "--no-verify", "--out", "y"]
    given = {"temperature": 2.0, "file": Path("x"), "verify": False, "out": Path("y")}
    assert asked(*words) == OPTIONS | OPEN | {"predict": saved} | given
    same = ["--epochs", 5, "--hidden", "--kind", "b", "--fast"]
    assert asked("--predict", saved, *same)["epochs"] == 5
    assert asked("--resume", run, "--verify")["verify"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--epochs 40", "--epochs is 40, in the run 5: leave out what the run has settled"),
        ("--hidden 3 4", "--hidden is 3 4, in the run no number"),
        ("--no-fast", "--fast is False, in the run True"),
        ("--width 8 --rate 0.5", "--rate is 0.5, in the run 1.0; --width is 8, in the run 7"),
        ("--temperature 2", "--temperature is 2.0, in the run 0.5"),
        ("--out elsewhere", "--out is elsewhere, in the run"),
        ("--predict file", "--resume and --predict exclude each other; give one"),
    ],
)
def test_what_contradicts_the_run_is_refused_by_name(words, message, run, asked):
    said = asked("--resume", run, *words.split())
    assert message in said
    assert said.count("\n") == 1


def test_where_a_file_has_moved_is_no_other_run(saved, run):
    before, moved = train.read_about(saved).notes, OPTIONS | OPEN | {"file": Path("moved")}
    moved["resume"] = run
    save(run, recall.notes(main, moved, DATA, seed=3))
    assert train.read_about(saved).notes == before
    save_state(run, before | {"options": {"epochs": 5}}, step=1)  # from before there was a --file
    assert recall.notes(main, moved, DATA)["options"]["file"] == Path("moved").absolute()


def test_data_is_told_apart_by_dtype_shape_and_value():
    ones = np.ones((2, 3), np.float32)
    others = [ones.T, ones.astype(np.int32), 2 * ones, (ones, ones), ones[:, ::2]]
    assert len({recall.digest(data) for data in [ones, *others]}) == 1 + len(others)
    assert recall.digest(ones) == recall.digest((jax.numpy.ones((2, 3)),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"script": "experiments.digits"},
            "by experiments.digits; name what experiments.test_recall",
        ),
        ({"script": "experiments.tune", "options": None}, "jaxnn.train.load_params"),
        ({"script": None}, "names no script and options"),
        ({"options": [1]}, "names no script and options"),
        ({"options": {"epochs": "5"}}, "saved with --epochs '5', which is none of this script's"),
        ({"options": {"epochs": True}}, "--epochs True"),
        ({"options": {"epochs": 5.0}}, "--epochs 5.0"),
        ({"options": {"rate": None}}, "--rate None"),
        ({"options": {"hidden": [1, "2"]}}, "--hidden [1, '2']"),
        ({"options": {"hidden": 3}}, "--hidden 3"),
        ({"options": {"kind": "c"}}, "--kind 'c'"),
        ({"options": {"kind": ["a"]}}, "--kind ['a']"),
        ({"options": {"file": 3}}, "--file 3"),
        ({"options": {"fast": 1}}, "--fast 1"),
    ],
)
def test_a_file_that_is_none_of_the_scripts_is_refused(change, message, tmp_path, asked):
    noted = recall.notes(main, OPTIONS | OPEN, DATA) | change
    said = asked("--predict", save(tmp_path, noted))
    assert message in said


def test_an_option_that_the_file_has_not_is_the_scripts_own(tmp_path):
    """A file from before an option was there, or from after one has gone."""
    SEEN.clear()
    noted = recall.notes(main, OPTIONS | OPEN, DATA) | {"options": {"epochs": 6, "gone": 1}}
    main(predict=save(tmp_path, noted))
    assert SEEN[0]["epochs"] == 6
    assert SEEN[0]["rate"] == 0.1


def test_an_empty_word_is_no_path(asked):
    for option in ("--out", "--resume", "--predict", "--file"):
        assert "an empty word names no file or folder" in asked(option, "")
