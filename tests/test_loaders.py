"""Windows of texts longer than memory: whole, in one order, and from where a run was."""

import jax
import numpy as np
import optax
import pytest
from conftest import assert_leaves_close

from jaxnn import loaders, mesh, text, token_files, train
from jaxnn.models import rnn, transformer

TOKENS = np.random.default_rng(0).integers(0, 11, 200).astype(np.uint16)


def windows(**other):
    return loaders.windows(TOKENS, **{"length": 6, "batch_size": 4, "seed": 3} | other)


def taken(batches, number):
    return [next(batches) for _ in range(number)]


def test_an_epoch_has_every_window_once_and_the_next_another_order():
    number = (len(TOKENS) - 1) // 6
    batches = taken(windows(batch_size=1), 2 * number)
    starts = [
        int(
            np.argmax(
                [np.array_equal(b.inputs[0], TOKENS[i * 6 : i * 6 + 6]) for i in range(number)]
            )
        )
        for b in batches
    ]
    assert sorted(starts[:number]) == sorted(starts[number:]) == list(range(number))
    assert starts[:number] != starts[number:]
    for batch, i in zip(batches, starts, strict=True):
        np.testing.assert_array_equal(batch.targets[0], TOKENS[i * 6 + 1 : i * 6 + 7])


CONFIG = transformer.gpt2(layers=1, width=4, heads=2, vocabulary=11, positions=8)


def lay_out(data, sequence):
    made = jax.make_mesh((data, sequence), ("data", "sequence"))
    return mesh.lay_out(transformer, CONFIG, made)


def test_on_a_mesh_the_batches_are_the_same_and_laid_as_mesh_lays_them():
    layout = lay_out(2, 2)
    spread, alone = (windows(length=8, layout=one) for one in (layout, None))
    for ours, theirs in zip(taken(spread, 3), taken(alone, 3), strict=True):
        for part, whole in zip(ours[:2], theirs[:2], strict=True):
            np.testing.assert_array_equal(part, whole)
            assert part.sharding == mesh.batch_shardings(layout, ours)[0]
        again, once = mesh.place(layout, ours), mesh.place(layout, theirs)  # spread, and not yet
        for part, whole in zip(again[:2], once[:2], strict=True):
            np.testing.assert_array_equal(part, whole)


def test_an_epoch_on_a_mesh_is_one_device_s(x64):
    layout, optimizer, ended = lay_out(2, 2), optax.sgd(0.1), []
    for over, devices in ((None, None), (layout, layout.mesh)):
        run = train.make_epoch(
            transformer, CONFIG, optimizer, windows(length=8, layout=over), steps=3, mesh=devices
        )
        start = train.init_state(transformer, CONFIG, optimizer, jax.random.key(0), mesh=devices)
        ended.append(run(start)[0].params)
    assert_leaves_close(*ended, 1e-9, 1e-12)


def test_two_halves_of_the_devices_read_the_rows_of_one(monkeypatch):
    layout, read = lay_out(2, 1), []
    kind = jax.sharding.NamedSharding
    whole = kind(layout.mesh, layout.batch).addressable_devices_indices_map((4, 6))
    for device in layout.mesh.devices.flat:  # as if each were a process's only one
        monkeypatch.setattr(
            kind, "addressable_devices_indices_map", lambda *_, d=device: {d: whole[d]}
        )
        half = windows(layout=layout)
        monkeypatch.setattr(half, "_laid", lambda rows: rows)
        read.append(taken(half, 3))
    for first, second, alone in zip(*read, taken(windows(), 3), strict=True):
        np.testing.assert_array_equal(np.concatenate([first.inputs, second.inputs]), alone.inputs)


def test_a_state_goes_on_where_it_was_and_refuses_other_windows():
    batches = windows()
    taken(batches, 13)
    later = windows()
    later.set_state(batches.get_state())
    np.testing.assert_array_equal(next(later).inputs, next(batches).inputs)
    with pytest.raises(ValueError, match="seed is 3 in the state, 4 here"):
        windows(seed=4).set_state(batches.get_state())
    with pytest.raises(ValueError, match="must be one of get_state"):
        later.set_state(None)


def test_a_resumed_run_reads_no_batch_again_and_ends_as_one_that_was_not(tmp_path):
    config = rnn.Config(vocabulary=11, width=3, hidden=4)
    optimizer = optax.adam(1e-2)
    start = train.init_state(rnn, config, optimizer, jax.random.key(0))
    given = {"model": rnn, "config": config, "show": False}

    def epoch(batches):
        return train.make_epoch(rnn, config, optimizer, batches, steps=3)

    whole = train.fit(epoch(windows()), start, epochs=4, **given)
    train.fit(epoch(windows()), start, epochs=2, folder=tmp_path, **given)

    class Counted(loaders.Windows):
        given = 0

        def __next__(self):
            self.given += 1
            return super().__next__()

    batches = windows()
    batches.__class__ = Counted
    resumed = train.fit(epoch(batches), start, epochs=4, folder=tmp_path, resume=True, **given)
    assert batches.given == 6
    for ours, theirs in zip(*map(jax.tree.leaves, (resumed.params, whole.params)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("mark", [False, True])
def test_a_text_becomes_the_tokens_of_its_characters(tmp_path, monkeypatch, mark):
    page = "häß\U0001f600lo\n" * 9
    (tmp_path / "page.txt").write_text(page, encoding="utf-8-sig" if mark else "utf-8")
    monkeypatch.setattr(token_files, "_AT_ONCE", 7)  # which cuts characters
    characters = token_files.encode_file(tmp_path / "page.txt", tmp_path / "tokens.npy")
    tokens = token_files.token_file(tmp_path / "tokens.npy")
    assert (characters, tokens.dtype) == (text.vocabulary(page), np.uint16)
    assert isinstance(tokens, np.memmap)
    np.testing.assert_array_equal(tokens, text.encode(page, characters))


def test_llm_c_s_token_files_are_read(tmp_path):
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, 5
    (tmp_path / "a.bin").write_bytes(header.tobytes() + np.arange(5, dtype="<u2").tobytes())
    np.testing.assert_array_equal(token_files.token_file(tmp_path / "a.bin"), np.arange(5))
    (tmp_path / "a.bin").write_bytes(header.tobytes() + np.arange(4, dtype="<u2").tobytes())
    with pytest.raises(ValueError, match="says that it holds 5 tokens"):
        token_files.token_file(tmp_path / "a.bin")


def _npy(path, array):
    np.save(path, array)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda path: b"some text", "begins neither"),
        (lambda path: _npy(path, np.arange(9))[:-3], "no whole .npy file"),
        (lambda path: _npy(path, np.arange(9.0)), "of integers"),
        (lambda path: _npy(path, np.ones((2, 3), int)), "must be \\(n,\\)"),
        (lambda path: b"", "begins neither"),
    ],
)
def test_other_files_are_refused(tmp_path, content, words):
    path = tmp_path / "a.npy"
    path.write_bytes(content(path))
    with pytest.raises((ValueError, TypeError), match=words):
        token_files.token_file(path)


def test_texts_that_are_none_are_refused(tmp_path):
    for content, words in ((b"", "is empty"), (b"\xef\xbb\xbfab\xff", "byte 5")):
        (tmp_path / "page.txt").write_bytes(content)
        with pytest.raises(ValueError, match=words):
            token_files.encode_file(tmp_path / "page.txt", tmp_path / "tokens.npy")


def test_bad_windows_are_refused():
    for given, words in (
        ({"length": 200}, "0 windows"),
        ({"length": 0}, "length is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 3, "layout": lay_out(2, 1)}, "cannot be laid out"),
    ):
        with pytest.raises(ValueError, match=words):
            windows(**given)
    with pytest.raises(ValueError, match=r"token 10 at position \d+ is outside \[0, 10\)"):
        taken(windows(vocabulary=10), 10)
    with pytest.raises(TypeError, match="tokens"):
        loaders.windows([1, 2, 3], 1, 1)
