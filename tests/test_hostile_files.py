"""Files that are none, or not what they seem: every reader ends in a sentence, soon and small.

Each reader's own file has more of its kind: `test_train_parameters`, `test_data`, `test_text`,
`test_pretrained`.
"""

import json
import os
import struct
import tracemalloc

import jax
import pytest

from experiments import pretrained
from jaxnn import data, text, train
from jaxnn.models import mlp, transformer
from jaxnn.models.transformer import gpt2

GPT2 = gpt2(vocabulary=7, positions=6, layers=1, width=4, heads=2)
READERS = {
    "load_params": train.load_params,
    "read_about": train.read_about,
    "read_idx": data.read_idx,
    "mnist": data.mnist,
    "read_text": text.read_text,
    "config": pretrained.config.load,
    "weights": lambda path: pretrained.load(path, GPT2),
}
PATHS = {
    "pipe": os.mkfifo,
    "loop": lambda path: path.symlink_to(path),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "folder": os.mkdir,
    "empty": lambda path: path.touch(),
    "zeros": lambda path: path.write_bytes(bytes(100)),
    "a word": lambda path: path.write_bytes(b"\xff\xfeword"),
    "a terabyte": lambda path: path.touch() or os.truncate(path, 2**40),
}
NAMES = ("/dev/zero", "/dev/null", "/proc/self/mem", "nul\0", "x" * 300, "\udcff", "absent", "a/b")


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", [*PATHS, *NAMES], ids=lambda kind: repr(kind)[:20])
def test_what_is_no_file_to_read_is_refused_in_a_sentence(name, kind, tmp_path):
    if kind in PATHS:
        PATHS[kind](tmp_path / "it")
    tracemalloc.start()
    with pytest.raises(ValueError, match=r".") as refused:
        READERS[name](tmp_path / ("it" if kind in PATHS else kind))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**23
    assert "\n" not in str(refused.value)
    assert any(word in str(refused.value) for word in ("must", "name ", "check", "convert"))


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("path", [None, 3, b"bytes", ["a"]], ids=repr)
def test_what_is_no_path_is_refused_by_its_kind(name, path):
    with pytest.raises(TypeError, match=r"must be text or a pathlib.Path: name one"):
        READERS[name](path)


WRITERS = {
    "save_params": lambda path: train.save_params(
        path,
        mlp.init_params(jax.random.key(0), mlp.Config(sizes=(2, 2))),
        model=mlp,
        config=mlp.Config(sizes=(2, 2)),
    ),
    "weights": lambda path: pretrained.save(
        path, transformer.init_params(jax.random.key(0), GPT2), GPT2
    ),
    "config": lambda path: pretrained.config.save(path, GPT2),
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_keeps_links_and_modes_and_spares_what_is_no_file(name, tmp_path):
    older, link = tmp_path / "older", tmp_path / "link"
    older.touch()
    older.chmod(0o640)
    link.symlink_to("older")
    WRITERS[name](link)
    assert link.is_symlink()
    assert older.stat().st_size
    assert older.stat().st_mode & 0o777 == 0o640
    os.mkfifo(tmp_path / "pipe")
    for place in ("pipe", "/dev/full", "absent/it", "older/it", "x" * 300):
        with pytest.raises(ValueError, match=r"must be|is not a folder"):
            WRITERS[name](tmp_path / place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "older", "pipe"]


def test_a_header_of_weights_is_held_to_a_size(tmp_path):
    header = json.dumps({"__metadata__": {"a": "x" * 2**24}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    for read in (READERS["weights"], READERS["load_params"]):
        with pytest.raises(ValueError, match=r"its header has 16,777,\d+, and there are at most"):
            read(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a":' * 10**5, "too deep"),
        (b"\xef\xbb\xbf{}", "has model_type None"),
        (json.dumps({"model_type": "gpt2"}).encode("utf-16"), "vocab_size is missing"),
        (b"[" + b"[]," * 2**19 + b"[]]", "at most 1,048,576"),
        (b'{"model_type": "gpt2", "vocab_size": %s}' % (b"9" * 5000), "is not JSON"),
    ],
    ids=["deep", "mark", "utf-16", "large", "a long number"],
)
def test_a_configuration_that_is_none_is_refused(content, words, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        pretrained.config.load(tmp_path)


def test_an_index_of_too_many_parts_is_refused_before_they_are_looked_for(tmp_path):
    parts = {str(i): f"{i}.safetensors" for i in range(10_001)}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": parts}))
    with pytest.raises(ValueError, match="names 10001 parts; there may be at most 10000"):
        READERS["weights"](index)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    params = transformer.init_params(jax.random.key(0), GPT2)
    pretrained.save(tmp_path / "w", params, GPT2)
    whole = (tmp_path / "w").read_bytes()
    (tmp_path / "w").write_bytes(whole[:-4] + struct.pack("<f", float("nan")))
    with pytest.raises(ValueError, match=r"numbers that are not finite: .* in 1 of "):
        pretrained.load(tmp_path / "w", GPT2)
    broken = jax.tree.map(lambda leaf: leaf / 0, params)
    with pytest.raises(ValueError, match=r"not finite: tokens.table in 28 of 28; "):
        pretrained.save(tmp_path / "w", broken, GPT2)
