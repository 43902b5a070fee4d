"""`python -m experiments.pretrained`: what a folder holds, its tokens continued, written again."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import cli, pretrained
from experiments.pretrained.__main__ import main
from jaxnn.models import generate, transformer
from jaxnn.models.transformer import gpt2


@pytest.fixture
def folder(tmp_path):
    config = gpt2(vocabulary=7, positions=9, layers=2, width=4, heads=2)
    params = transformer.init_params(jax.random.key(0), config)
    pretrained.save(tmp_path / "model.safetensors", params, config)
    pretrained.config.save(tmp_path, config)
    return tmp_path, params, config


def test_a_folder_is_described_and_its_tokens_continued(folder, capsys):
    path, params, config = folder
    assert main(path, tokens=(1, 2, 3), length=4) == 0
    name, settings, size, tokens = capsys.readouterr().out.splitlines()
    assert name == f"{path}: gpt2"
    assert settings == str(config)
    leaves = jax.tree.leaves(params)
    count = sum(leaf.size for leaf in leaves)
    assert size == f"{count:,} parameters of float32, {4 * count:,} bytes"
    start = jnp.asarray([[1, 2, 3]])
    written = generate.generate(params, start, config, jax.random.key(1), length=4, temperature=0.0)
    assert tokens == " ".join(map(str, np.asarray(written[0])))


def test_a_folder_is_written_again(folder, capsys):
    path, _, config = folder
    for _ in range(2):  # in place of itself, too
        assert main(path, to=path / "new" / "copy") == 0
    assert "wrote " in capsys.readouterr().out
    assert pretrained.config.load(path / "new" / "copy") == config
    whole = (path / "model.safetensors").read_bytes()
    assert (path / "new" / "copy" / "model.safetensors").read_bytes() == whole
    assert main(path, to=path) == 0
    assert (path / "model.safetensors").read_bytes() == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--folder", "absent"], "absent is not a file"),
        (["--tokens", "7"], "token 7"),
        (["--tokens", "99999999999999999999"], "--tokens are"),
        (["--tokens", "1", "--length", "9"], "9"),
        (["--length", "0"], "--length is 0"),
        (["--to", "model.safetensors"], "cannot be written to (File exists)"),
    ],
)
def test_a_mistake_gets_a_message_and_exit_status_2(options, message, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder[0])
    monkeypatch.setattr(sys, "argv", ["pretrained", "--folder", ".", *options])
    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_nothing_is_written_where_one_of_the_two_files_cannot_be(folder, command):
    path = folder[0]
    (path / "new" / "config.json").mkdir(parents=True)
    status, printed = command(main, "--folder", path, "--to", path / "new")
    assert status == 2
    assert "config.json is a folder" in printed.err
    assert [file.name for file in (path / "new").iterdir()] == ["config.json"]


def test_help_helps(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pretrained", "--help"])
    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert all(option in printed for option in ("--folder", "--tokens", "--length", "--to"))
