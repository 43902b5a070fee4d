"""A mesh from a command line, of the devices of one process or several."""

import numpy as np
import pytest
from conftest import assert_leaves_close
from test_processes import started

from experiments import meshes, square, text
from jaxnn import train

SMALL = (
    *("--model", "gpt", "--steps", 4, "--steps-per-epoch", 2, "--batch-size", 4, "--sequence", 8),
    *("--layers", 1, "--width", 8, "--heads", 2, "--length", 3, "--no-verify"),
)


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.txt"
    path.write_text("the quick brown fox jumps over the lazy dog\n" * 8)
    return path


def test_a_text_is_learnt_on_a_mesh_as_on_one_device(page, tmp_path, command):
    said = []
    for name, more in (("one", ()), ("mesh", ("--mesh", "data=2,model=2"))):
        status, printed = command(
            text.main, "--file", page, *SMALL, *more, "--out", tmp_path / name
        )
        assert status == 0, printed.err
        said.append(np.loadtxt(tmp_path / name / "log.csv", delimiter=",", skiprows=1))
        options = train.read_about(tmp_path / name / "params.safetensors").notes["options"]
        assert "mesh" not in options
    np.testing.assert_allclose(*said, 1e-5)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("data", "must be names and sizes"),
        ("data=2,data=2", "each name once"),
        ("data=0", "at least 1"),
        ("width=2", "has the axis 'width'; it must be one of data, fsdp, model, sequence"),
        ("data=16", "needs 16 devices, and there are 8: set JAX_NUM_CPU_DEVICES=16"),
        ("data=3", "they must divide it"),
        ("model=8", "heads is 2 for 8 devices"),
    ],
)
def test_other_meshes_are_refused_in_a_sentence(words, why, page, tmp_path, command):
    given = ("--file", page, *SMALL, "--mesh", words, "--out", tmp_path / "out")
    status, printed = command(text.main, *given)
    assert status == 2
    assert why in printed.err
    assert printed.err.count("\n") == 1
    assert not list(tmp_path.glob("out/[!.]*"))


def test_two_processes_train_one_network_and_one_goes_on_with_it(page, tmp_path, command):
    out = tmp_path / "out"
    given = ("-m", "experiments.text", "--file", page, *SMALL, "--mesh", "data=2", "--out", out)
    said, statuses = started(2, *given)
    assert statuses == [0, 0], said
    assert "wrote" in said[0][0]
    assert "epoch" not in said[1][0]
    before = train.load_params(out / "params.safetensors").params
    assert {path.name for path in out.iterdir()} >= {"sample.txt", "curves.png", "log.csv"}
    status, printed = command(text.main, "--resume", out)
    assert status == 0, printed.err
    assert_leaves_close(train.load_params(out / "params.safetensors").params, before, 0.0)


def test_a_script_without_a_mesh_refuses_to_run_beside_others(tmp_path, command, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    status, printed = command(square.main, "--out", tmp_path / "out")
    assert status == 2
    assert "one of 2 processes" in printed.err
    assert "this script has no --mesh" in printed.err


def test_sizes_are_read():
    assert meshes.sizes("data=2, model=4") == {"data": 2, "model": 4}
