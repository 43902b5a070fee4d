"""Windows of a text of any length, read from disk as they come, by grain.

    characters = token_files.encode_file("war_and_peace.txt", "tokens.npy")     # once
    tokens = token_files.token_file("tokens.npy")
    learnt, held_out = text.split(tokens, length=128)
    batches = loaders.windows(learnt, length=128, batch_size=32, seed=0)
    run = train.make_epoch(model, config, optimizer, batches, steps=100)

The file is never read whole. Of several processes each reads its devices' rows of a batch, and the
batches are the same, whatever the number of processes. A run that `fit` saves and resumes goes on
with the batch that is next, without reading those before it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, Sharding

from jaxnn import files
from jaxnn.checks import check_integers
from jaxnn.data import KeyedBatch
from jaxnn.mesh import Layout
from jaxnn.settings import check_integer
from jaxnn.token_files import Tokens

_ENDLESS = 2**40  # batches
_MOST = 2**32  # windows that grain can shuffle


def windows(
    tokens: Tokens,
    length: int,
    batch_size: int,
    *,
    seed: int = 0,
    vocabulary: int | None = None,
    layout: Layout | None = None,
    threads: int = 8,
) -> "Windows":
    """Return batches without end: windows of the tokens, each once an epoch, in a shuffled order.

    Window i is tokens[i length : (i + 1) length], its targets those one further. Every epoch has
    an order of its own. What is left at the end of the tokens, shorter than a window, is left out;
    a batch may hold the end of one epoch and the beginning of the next.

    Args:
        tokens: (n,) integers: `token_file`, or an array.
        length: of a window.
        batch_size: windows in a batch, of all processes together.
        seed: of the orders.
        vocabulary: how many tokens there are, to refuse others; None not to look.
        layout: of `jaxnn.mesh.lay_out`: where the parts of a batch are, over a mesh of all
            processes' devices; None for NumPy's arrays.
        threads: that read ahead.

    Raises:
        ModuleNotFoundError: grain is not installed.
        TypeError: a number is no integer, or the tokens are no array of them.
        ValueError: a number is out of its range, there is no window, or the devices do not
            divide a batch.
    """
    check_integers("tokens", tokens, "pass token_file(path)")
    if len(tokens.shape) != 1:
        raise ValueError(
            f"tokens have shape {tokens.shape}; they must be (n,), those of one text: pass "
            "tokens.ravel()"
        )
    check_integer("length", length)
    check_integer("batch_size", batch_size)
    check_integer("seed", seed, 0)
    check_integer("threads", threads, 0)
    number = (len(tokens) - 1) // length
    if not 0 < number < _MOST:
        raise ValueError(
            f"there are {len(tokens)} tokens, {max(number, 0)} windows of {length} and the token "
            f"after each; there must be some, and fewer than {_MOST}: take other windows"
        )
    if vocabulary is not None:
        check_integer("vocabulary", vocabulary)
    return Windows(tokens, length, batch_size, seed, vocabulary, layout, threads)


class Windows(Iterator[KeyedBatch]):
    """Batches (batch_size, length) of windows without end; `get_state` says how far they are."""

    def __init__(
        self,
        tokens: Tokens,
        length: int,
        batch_size: int,
        seed: int,
        vocabulary: int | None,
        layout: Layout | None,
        threads: int,
    ) -> None:
        """Begin with the first batch; `windows` says what the arguments are."""
        grain = files.installed("grain", "data")
        self._tokens, self._length, self._vocabulary = tokens, length, vocabulary
        self._shape = (batch_size, length)
        self._sharding = None if layout is None else NamedSharding(layout.mesh, layout.batch)
        self._first, stop = _rows(self._sharding, self._shape)
        number = (len(tokens) - 1) // length
        order = grain.MapDataset.range(number).shuffle(seed=seed).repeat()

        def batch(i: int) -> Tokens:
            places = range(i * batch_size + self._first, i * batch_size + stop)
            return self._read([int(order[place]) for place in places])

        batches = grain.MapDataset.range(_ENDLESS).map(batch)
        ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        self._batches = iter(batches.to_iter_dataset(ahead))
        self._settled = {
            "tokens": len(tokens),
            "length": length,
            "batch_size": batch_size,
            "seed": seed,
        }

    def __next__(self) -> KeyedBatch:
        """Return the next batch, global where it is laid out over a mesh."""
        read = next(self._batches)
        return KeyedBatch(self._laid(read[:, :-1]), self._laid(read[:, 1:]))

    def get_state(self) -> dict[str, Any]:
        """Return, as JSON has it, which batch is next and of what; the same in every process."""
        return {"batches": self._batches.get_state()} | self._settled

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there: with the batch that was next.

        Raises:
            ValueError: it is no state of `get_state`, or of other tokens, windows or another seed.
        """
        given = dict(state) if isinstance(state, Mapping) else {}
        before = given.pop("batches", None)
        different = [
            f"{name} is {given.get(name)!r:.50} in the state, {value} here"
            for name, value in self._settled.items()
            if given.get(name) != value
        ]
        if different or not isinstance(before, dict):
            raise ValueError(
                f"the state of the batches is {state!r:.200}; it must be one of get_state of the "
                f"same windows ({files.listed(different)}): pass those of the run that goes on"
            )
        self._batches.set_state(before)

    def _read(self, rows: list[int]) -> Tokens:
        """Windows (rows, length + 1), each with the token after it, from the disk."""
        starts = [row * self._length for row in rows]
        parts = [self._tokens[start : start + self._length + 1] for start in starts]
        read = np.stack(parts).astype(np.int64)
        most = 2**31 if self._vocabulary is None else self._vocabulary
        if len(wrong := np.argwhere((read < 0) | (read >= most))):
            row, at = wrong[0]
            raise ValueError(
                f"token {read[row, at]} at position {starts[row] + at} is outside [0, {most}); "
                "every token must be in the vocabulary: take the one that the tokens are of"
            )
        return read.astype(np.int32)

    def _laid(self, rows: Tokens) -> Any:
        """A process's rows of a batch as its part of the whole."""
        if self._sharding is None:
            return rows

        def part(index: Any) -> Tokens:  # of a device
            start, stop, _ = index[0].indices(self._shape[0])
            return rows[start - self._first : stop - self._first, index[1]]

        return jax.make_array_from_callback(self._shape, self._sharding, part)


def _rows(sharding: Sharding | None, shape: tuple[int, int]) -> tuple[int, int]:
    """From which to which row of a batch the devices of this process have parts."""
    if sharding is None:
        return 0, shape[0]
    try:
        places = sharding.addressable_devices_indices_map(shape)
    except ValueError as error:
        raise ValueError(
            f"a batch of {shape[0]} windows of {shape[1]} cannot be laid out as {sharding!s:.200} "
            f"({error!s:.200}); its devices must divide both: take other sizes"
        ) from error
    spans = [index[0].indices(shape[0]) for index in places.values() if index]
    return min(start for start, _, _ in spans), max(stop for _, stop, _ in spans)
