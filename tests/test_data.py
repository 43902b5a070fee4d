"""Loaders: what they return, and what they refuse."""

import gzip
import struct
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import data


def idx(values, code=0x08, dtype=">u1"):
    values = np.asarray(values)
    header = bytes([0, 0, code, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(dtype).tobytes()


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name, n in (("train", 5), ("t10k", 3)):
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(idx(rng.integers(0, 256, (n, 4, 3))))
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.arange(n)))
    return tmp_path


def test_digits_are_real_and_split_by_class():
    split = data.digits(seed=3)
    assert split.train.inputs.shape == (1437, 64)
    assert split.held_out.inputs.shape == (360, 64)
    assert split.train.inputs.dtype == jnp.float32
    assert split.train.targets.dtype == jnp.int32
    assert 0 <= split.train.inputs.min() < split.train.inputs.max() == 1
    assert np.bincount(split.held_out.targets).min() >= 34
    images = {row.tobytes() for row in np.asarray(split.train.inputs)}
    assert not any(row.tobytes() in images for row in np.asarray(split.held_out.inputs))
    assert not np.array_equal(split.held_out.inputs, data.digits(seed=4).held_out.inputs)
    with pytest.raises(ValueError, match=r"held_out is 1.5.*between 0 and 1"):
        data.digits(held_out=1.5)


def test_moons_and_squares():
    moons = data.two_moons(50, noise=0.0)
    radius = np.hypot(*np.asarray(moons.inputs)[np.asarray(moons.targets) == 0].T)
    np.testing.assert_allclose(radius, 1, rtol=1e-6)
    square = data.square(9, seed=1)
    assert square.inputs.shape == square.targets.shape == (9, 1)
    np.testing.assert_allclose(square.targets, np.square(square.inputs), rtol=1e-6)
    for loader, n in ((data.two_moons, 1), (data.square, 0)):
        with pytest.raises(ValueError, match=f"n is {n}"):
            loader(n)


def test_data_comes_in_the_default_float_dtype():
    with jax.enable_x64(True):
        assert data.square(3).inputs.dtype == jnp.float64


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("joint", ["-", "."])
def test_mnist_plain_or_compressed(folder, compressed, joint):
    plain = data.mnist(folder)
    assert plain.train.inputs.shape == (5, 12)
    np.testing.assert_array_equal(plain.held_out.targets, [0, 1, 2])
    raw = data.read_idx(folder / "t10k-images-idx3-ubyte")
    np.testing.assert_allclose(plain.held_out.inputs, raw.reshape(3, 12) / 255, rtol=1e-6)
    for path in list(folder.iterdir()):
        name = path.name.replace("-idx", f"{joint}idx") + (".gz" if compressed else "")
        content = path.read_bytes()
        path.unlink()
        (folder / name).write_bytes(gzip.compress(content) if compressed else content)
    again = data.mnist(folder)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_mnist_is_read_in_little_memory(tmp_path):
    """In NumPy's: the file, and a byte for each value while they are checked; no float64."""
    images = idx(np.zeros((2000, 28, 28)))
    for name in ("train", "t10k"):
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(images)
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.zeros(2000)))
    data.mnist(tmp_path)  # compiles, which takes memory of its own
    tracemalloc.start()
    data.mnist(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * len(images)


@pytest.mark.parametrize(
    ("code", "dtype"),
    [(0x08, ">u1"), (0x09, ">i1"), (0x0B, ">i2"), (0x0C, ">i4"), (0x0D, ">f4"), (0x0E, ">f8")],
)
def test_every_idx_type(tmp_path, code, dtype):
    values = np.array([[1, 2, 3], [100, 5, 6]])
    (tmp_path / "a").write_bytes(idx(values, code, dtype))
    np.testing.assert_array_equal(data.read_idx(tmp_path / "a"), values)


BROKEN = {
    "absent": (None, r"is not a file \(there is none\).*check the path"),
    "empty": (b"", r"begins with bytes \(none\)"),
    "another format": (b"\x89PNG....", "begins with bytes 89 50 4e 47.*right file"),
    "truncated": (idx(np.ones((2, 2, 2)))[:-1], "7 bytes.*promises 8.*truncated"),
    "too long": (idx(np.ones((2, 2, 2))) + b"x", "more bytes.*promises 8"),
    "header alone": (idx(np.ones((2, 2, 2)))[:7], "its header, which is incomplete"),
    "header and no more": (idx(np.ones((2, 2, 2)))[:16], "holds 0 bytes.*promises 8"),
    "damaged gzip": (gzip.compress(idx(np.ones((2, 2, 2))))[:-8] + bytes(8), "CRC check failed"),
    "huge": (
        b"\0\0\x08\x03" + b"\xff" * 12,
        r"promises values of shape \[429.* at most 200,000,000 bytes",
    ),
    "many sizes": (b"\0\0\x0e\xff" + b"\xff" * 1020, "has 255 dimensions; it may have at most 32"),
    "gzip of gzip": (gzip.compress(gzip.compress(idx(np.ones((2, 2))))), "begins with bytes 1f 8b"),
    "truncated gzip": (gzip.compress(idx(np.ones((2, 2, 2))))[:-9], "cannot be read.*gzip"),
    "labels as images": (idx(np.ones((2, 2))), "2-dimensional uint8.*3-dimensional.*swapped"),
    "floats": (idx(np.ones((5, 2, 2)), 0x0D, ">f4"), "3-dimensional >f4.*uint8"),
    "too few images": (idx(np.ones((4, 2, 2))), "4 images and .* 5 labels"),
    "no pixel": (idx(np.ones((5, 0, 2))), r"\(5, 0, 2\), no pixel"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_idx_file_is_named(folder, content, message):
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(content or b"")
    with pytest.raises(ValueError, match=message) as error:
        data.read_idx(folder / "absent") if content is None else data.mnist(folder)
    assert str(folder / ("absent" if content is None else path.name)) in str(error.value)


@pytest.mark.parametrize("promised", [(100, 100, 100), (2**31, 2, 2)])
def test_no_more_is_unpacked_than_the_header_promises(folder, promised):
    header = b"\0\0\x08\x03" + struct.pack(">3I", *promised)
    path = folder / "train-images-idx3-ubyte"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header)
        for _ in range(64):
            file.write(bytes(2**20))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"holds more bytes|promises values of"):
        data.mnist(folder)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 2**20


def test_labels_are_digits_and_both_halves_of_one_size(folder):
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx(np.ones((3, 2, 6))))
    with pytest.raises(ValueError, match=r"train-images of .* t10k-images of \(2, 6\)"):
        data.mnist(folder)
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.array([0, 1, 10, 2, 3])))
    with pytest.raises(ValueError, match="train-labels-idx1-ubyte holds label 10"):
        data.mnist(folder)


def test_a_missing_idx_file_is_named_with_all_its_names(folder):
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte, t10k-labels-idx1-ubyte\.gz"):
        data.mnist(folder)


@pytest.mark.parametrize(
    ("inputs", "targets", "error", "message"),
    [
        ([[1.0], [np.nan]], [0, 1], ValueError, r"inputs\[1, 0\] is nan \(1 such"),
        ([[1.0]], [np.inf], ValueError, r"targets\[0\] is inf"),
        ([[1.0], [2.0]], [0], ValueError, "2 inputs and 1 targets"),
        ([[1.0]], [2**40], ValueError, "fit 32 bits"),
        ([[1.0]], [-1], ValueError, r"\[-1, -1\].*at least 0"),
        (np.zeros((0, 2)), np.zeros(0), ValueError, r"\(0, 2\), no example"),
        ([["a"]], [0], TypeError, "must be numbers"),
        ([[1.0]], ["b"], TypeError, "targets have dtype"),
    ],
)
def test_unusable_data_is_refused(inputs, targets, error, message):
    with pytest.raises(error, match=message):
        data.usable_batch(inputs, targets)


def test_without_scikit_learn_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match="pip install scikit-learn"):
        data.digits()
