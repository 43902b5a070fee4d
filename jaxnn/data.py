"""Real inputs, checked at the door: every loader returns arrays that a model can take as they are.

Nothing is downloaded. The digits come with scikit-learn, MNIST from a folder of your own; moons
and squares are drawn from a seed. Real numbers get JAX's default floating dtype, labels int32.
"""

import gzip
import math
import zlib
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnn import files
from jaxnn.checks import as_jax, check_finite
from jaxnn.settings import check_integer, check_number, check_seed

Part = TypeVar("Part")
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


# As floats, which take four times as much, they have room in 1 GB; MNIST has a quarter of it.
MOST_PIXELS = 200_000_000
_AT_ONCE = 2**20
MOST_DIMENSIONS = 32  # of an array that every NumPy has


class Batch(NamedTuple):
    """Inputs (N, features) and targets: labels (N,) or real values (N, outputs)."""

    inputs: Array
    targets: Array


class KeyedBatch(NamedTuple):
    """A batch of a model that draws in training.

    Attributes:
        inputs: what the model reads, N examples of it: images, sequences of tokens (N, T).
        targets: labels (N,), or of sequences (N, T) each the token that comes next.
        key: what is drawn from; None to evaluate. `jaxnn.train` puts one in at each step.
    """

    inputs: Array
    targets: Array
    key: Array | None = None


class Split(NamedTuple, Generic[Part]):
    """Data to train on and data held out, batches or texts."""

    train: Part
    held_out: Part


def usable_batch(inputs: Any, targets: Any) -> Batch:
    """Return the two as a Batch of arrays, once they are known to be usable.

    Args:
        inputs: real numbers (N, features), N >= 1, all finite.
        targets: N of them, integers or finite real numbers.

    Raises:
        TypeError: inputs are not numbers, or targets neither integers nor real numbers.
        ValueError: there is no example, the lengths differ, a value is not finite, or an integer
            target is negative or too large.
    """
    x, t = _numbers("inputs", inputs), _numbers("targets", targets)
    for name, values in (("inputs", x), ("targets", t)):
        if values.dtype.kind not in "iuf":
            raise TypeError(
                f"{name} have dtype {values.dtype}; they must be numbers: "
                f"encode or cast the {name} first"
            )
        if values.ndim == 0 or values.size == 0:
            raise ValueError(
                f"{name} have shape {values.shape}, no example; there must be at least one: "
                "check the source of the data"
            )
        check_finite(name, values)
    if len(x) != len(t):
        raise ValueError(
            f"there are {len(x)} inputs and {len(t)} targets; there must be one target per "
            "input: check that both come from the same examples in the same order"
        )
    labels = t.dtype.kind in "iu"
    if labels and (t.min() < 0 or t.max() > np.iinfo(np.int32).max):
        raise ValueError(
            f"targets lie in [{t.min()}, {t.max()}]; integer targets are class labels, which must "
            "be at least 0 and fit 32 bits: relabel them from 0, or make them real numbers"
        )
    return Batch(
        _floats("inputs", x), jnp.asarray(t, jnp.int32) if labels else _floats("targets", t)
    )


def _numbers(name: str, values: Any) -> np.ndarray[Any, Any]:
    """Values as an array; refuse what cannot be one, or hides some of its values."""
    if isinstance(values, np.ma.MaskedArray):
        as_jax(name, values)  # which refuses it, in its words
    try:
        return np.asarray(values)
    except (TypeError, ValueError):
        raise TypeError(
            f"{name} is a {type(values).__name__} that is no array; it must be an array of "
            "numbers, or lists of them, all of one length"
        ) from None


def _floats(name: str, values: np.ndarray[Any, Any]) -> Array:
    """Values in JAX's default floating dtype; refuse those beyond it."""
    return jnp.asarray(as_jax(name, values if values.dtype.kind == "f" else values * 1.0), float)


def check_share(name: str, share: Any) -> None:
    """Refuse what is no share of the data to hold out.

    Raises:
        TypeError: it is no number.
        ValueError: it is not in (0, 1).
    """
    check_number(name, share, "a share strictly between 0 and 1", lambda share: 0 < share < 1)


def digits(seed: int = 0, held_out: float = 0.2) -> Split[Batch]:
    """Load 1,797 real handwritten digits of 8x8 pixels (64,), scaled to [0, 1]; labels 0 to 9.

    The set bundled with scikit-learn, from the UCI repository (Alpaydin and Kaynak, 1998).

    Args:
        seed: which examples are held out, the same share of every class.
        held_out: the share held out, in (0, 1).

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
        TypeError: the share is no number, or the seed no integer.
        ValueError: the share leaves a side without some class, or the seed is out of range.
    """
    datasets = _scikit_learn("datasets")
    check_seed("seed", seed)
    check_share("held_out", held_out)
    images, labels = datasets.load_digits(return_X_y=True)
    x, x_held_out, t, t_held_out = _scikit_learn("model_selection").train_test_split(
        images / 16.0, labels, test_size=held_out, stratify=labels, random_state=seed
    )
    return Split(usable_batch(x, t), usable_batch(x_held_out, t_held_out))


def two_moons(n: int = 100, noise: float = 0.1, seed: int = 0) -> Batch:
    """Draw N points (2,) on two interleaved half circles with normal noise; labels 0 and 1.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
        TypeError: n or the seed is no integer, or noise no number.
        ValueError: n is below 2, the seed out of range, or noise is negative or not finite.
    """
    check_integer("n", n, 2, hint=" points, one per moon")
    check_number("noise", noise, "finite and at least 0", lambda std: 0 <= std < math.inf)
    check_seed("seed", seed)
    return usable_batch(*_scikit_learn("datasets").make_moons(n, noise=noise, random_state=seed))


def square(n: int = 200, seed: int = 0) -> Batch:
    """Draw N standard-normal scalars x (1,), with their squares y = x^2 (1,).

    Raises:
        TypeError: n or the seed is no integer.
        ValueError: n is below 1, or the seed out of range.
    """
    check_integer("n", n, hint=" point")
    check_seed("seed", seed)
    x = jax.random.normal(jax.random.key(seed), (n, 1))
    return usable_batch(x, x**2)


def mnist(folder: str | Path) -> Split[Batch]:
    """Read MNIST, or any set in its format: pixels flattened and scaled to [0, 1], labels 0 to 9.

    Args:
        folder: holds the four IDX files under their usual names (`train-images-idx3-ubyte` and
            so on, or with a dot for the last dash but one), plain or compressed (`.gz`).

    Raises:
        ValueError: a file is missing, truncated, or not what its name says; there is no image, or
            a label above 9; the message names the file. Or the images of the two halves differ in
            size.
    """
    folder = files.as_path(folder, "folder")
    train, held_out = (_idx_pair(folder, name) for name in ("train", "t10k"))
    sizes = train[0].shape[1:], held_out[0].shape[1:]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{folder} holds train-images of {sizes[0]} pixels and t10k-images of {sizes[1]}; they "
            "must be of one size: check that both come from the same set"
        )
    return Split(_scaled(*train), _scaled(*held_out))


def read_idx(path: str | Path, most: int = 2**30) -> np.ndarray[Any, np.dtype[Any]]:
    """Read an IDX file, plain or gzip (told by its first bytes), as an array.

    Format (LeCun, Cortes and Burges): two zero bytes, a type code, the number of dimensions, each
    dimension as a big-endian 32-bit integer, then the values, big-endian, last index fastest.

    No more is read, or unpacked, than the header promises.

    Args:
        path: the file.
        most: bytes of values that the header may promise.

    Raises:
        TypeError: the path is neither text nor a Path.
        ValueError: the file is missing, is not IDX, is truncated, promises more than `most`, or is
            longer than it says.
    """
    with files.opened(path) as plain:
        try:
            compressed = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            with gzip.GzipFile(fileobj=plain) if compressed else plain as file:
                return _read_idx(path, file, most)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"{path} cannot be read ({error}); it must be an IDX file, plain or gzip: "
                "check the path and copy or download it again"
            ) from error


def _read_idx(path: str | Path, file: Any, most: int) -> np.ndarray[Any, np.dtype[Any]]:
    """Read an IDX file that is open and unpacked as it is read."""
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in _IDX_TYPES:
        raise ValueError(
            f"{path} begins with bytes {start.hex(' ') or '(none)'}; an IDX file begins "
            f"with 00 00 and a type code ({', '.join(f'{code:02x}' for code in _IDX_TYPES)}): "
            "check that it is the right file"
        )
    if start[3] > MOST_DIMENSIONS:
        raise ValueError(
            f"{path} has {start[3]} dimensions; it may have at most {MOST_DIMENSIONS}: check that "
            "it is the right file"
        )
    dtype, sizes = np.dtype(_IDX_TYPES[start[2]]), file.read(4 * start[3])
    if len(sizes) < 4 * start[3]:
        raise ValueError(
            f"{path} ends inside its header, which is incomplete; it must have {start[3]} sizes: "
            "copy or download it again"
        )
    shape = np.frombuffer(sizes, ">u4").tolist()
    promised = math.prod(shape) * dtype.itemsize
    if promised > most:
        raise ValueError(
            f"{path} promises values of shape {shape!s:.80}; they may have at most {most:,} bytes: "
            "check that it is the right file"
        )
    values, held = np.empty(promised, np.uint8), 0
    while held < promised and (part := file.read(min(promised - held, _AT_ONCE))):
        values[held : held + len(part)] = np.frombuffer(part, np.uint8)
        held += len(part)
    more = bool(file.read(1))
    if more or held < promised:
        raise ValueError(
            f"{path} holds {'more' if more else held} bytes of values but its header "
            f"{shape!s:.80} promises {promised}; the two must agree: the file is truncated or "
            "damaged, copy or download it again"
        )
    return values.view(dtype).reshape(shape)


_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def _idx_pair(folder: Path, name: str) -> tuple[Bytes, Bytes]:
    """The images (N, H, W) and labels of one half of an MNIST folder."""
    images_path = _find_idx(folder, f"{name}-images", 3)
    labels_path = _find_idx(folder, f"{name}-labels", 1)
    images, labels = read_idx(images_path, MOST_PIXELS), read_idx(labels_path, MOST_PIXELS)
    for path, values, dimensions in ((images_path, images, 3), (labels_path, labels, 1)):
        if values.ndim != dimensions or values.dtype != np.uint8:
            raise ValueError(
                f"{path} holds {values.ndim}-dimensional {values.dtype}; its name promises "
                f"{dimensions}-dimensional uint8: check that the files are not swapped"
            )
    if len(images) != len(labels):
        raise ValueError(
            f"{images_path} holds {len(images)} images and {labels_path} {len(labels)} labels; "
            "there must be as many: check that both come from the same set"
        )
    if not images.size:
        raise ValueError(
            f"{images_path} holds images of shape {images.shape}, no pixel; there must be at least "
            "one image: copy or download it again"
        )
    if labels.max() > 9:
        raise ValueError(
            f"{labels_path} holds label {labels.max()}; labels must be from 0 to 9: relabel the "
            "classes, or leave out those beyond ten"
        )
    return images, labels


def _scaled(images: Bytes, labels: Bytes) -> Batch:
    """The images flattened and in [0, 1], by JAX: NumPy would make float64 of them first."""
    return usable_batch(jnp.asarray(images.reshape(len(images), -1)) / 255, labels)


def _find_idx(folder: Path, stem: str, dimensions: int) -> Path:
    """The first of a file's usual names that exists."""
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is not a folder; it must be the one that holds MNIST's IDX files"
        )
    names = [
        f"{stem}{joint}idx{dimensions}-ubyte{ending}" for joint in "-." for ending in ("", ".gz")
    ]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(
        f"{folder} holds none of {', '.join(names)}; it must hold one: "
        "check the folder or download the file into it"
    )


def _scikit_learn(module: str) -> Any:
    """A module of scikit-learn, which only some loaders need."""
    try:
        return __import__(f"sklearn.{module}", fromlist=[module])
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "this data comes with scikit-learn, which is not installed: pip install scikit-learn"
        ) from error
