"""Texts as files of tokens, which may be longer than memory.

characters = encode_file("war_and_peace.txt", "tokens.npy")
tokens = token_file("tokens.npy")               # read from the disk where it is looked at
"""

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxnn import files
from jaxnn.checks import check_integers

Tokens = np.ndarray[Any, Any]
# The header of llm.c's token files (Karpathy, 2024): 256 integers, of which three are used.
_MAGIC, _VERSION, _HEADER = 20240520, 1, 256
_AT_ONCE = 2**20


def token_file(path: str | Path) -> Tokens:
    """Open a file of tokens (n,), which are read from it where they are looked at.

    Args:
        path: a `.npy` file of integers, as `numpy.save` or `encode_file` writes it, or one of
            llm.c's `.bin`: a header of 256 int32 (20240520, 1, n, zeros), then n uint16.

    Raises:
        TypeError: the path is neither text nor a Path.
        ValueError: it is no such file, is shorter than it says, or is not of integers (n,).
    """
    path = files.as_path(path)
    with files.opened(path) as file:
        header = np.frombuffer(file.read(4 * _HEADER)[: 4 * _HEADER], np.uint8)
        size = file.seek(0, 2)
    if bytes(header[:6]) == b"\x93NUMPY":
        try:
            tokens: Tokens = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(
                f"{path} is no whole .npy file ({error!s:.200}); write it again, by encode_file"
            ) from error
    else:
        words = header.view("<i4") if len(header) == 4 * _HEADER else np.zeros(_HEADER, "<i4")
        count = int(words[2])
        if (int(words[0]), int(words[1])) != (_MAGIC, _VERSION):
            raise ValueError(
                f"{path} begins neither as a .npy file nor as one of llm.c's tokens; it must be "
                "one of these: save an array of tokens by numpy.save"
            )
        if count < 1 or size < 4 * _HEADER + 2 * count:
            raise ValueError(
                f"{path} has {size:,} bytes, and says that it holds {count:,} tokens of 2; it must "
                "be whole: write it again"
            )
        tokens = np.memmap(path, "<u2", "r", 4 * _HEADER, (count,))
    check_integers(f"the tokens in {path}", tokens, "save integers")
    if tokens.ndim != 1:
        raise ValueError(
            f"the tokens in {path} have shape {tokens.shape}; they must be (n,), those of one "
            "text: save tokens.ravel()"
        )
    return tokens


def encode_file(source: str | Path, target: str | Path) -> str:
    """Write the characters of a text of any length as tokens (n,), and return the vocabulary.

    A character's token is its place in the vocabulary, as in `jaxnn.text.encode`; each takes 2
    bytes in the file, or 4 where there are more than 65,536 different ones. The text is read twice,
    a megabyte at a time; a byte-order mark before it is left out.

    Raises:
        TypeError: a path is neither text nor a Path.
        ValueError: the text cannot be read, is empty or not UTF-8 (then the message says from which
            byte on), or the other file cannot be written.
    """
    source, target = files.as_path(source, "source"), files.as_path(target, "target")
    counts: set[int] = set()
    number = 0
    for points in _code_points(source):
        counts.update(np.unique(points).tolist())
        number += len(points)
    if not number:
        raise ValueError(f"{source} is empty; there must be text to learn: check the path")
    known = np.array(sorted(counts), np.uint32)
    dtype = np.uint16 if len(known) <= 2**16 else np.uint32
    with files.replaced(target) as new:
        tokens: Any = np.lib.format.open_memmap(new, "w+", dtype, (number,))
        at = 0
        for points in _code_points(source):
            tokens[at : at + len(points)] = np.searchsorted(known, points)
            at += len(points)
        tokens.flush()
    return "".join(map(chr, known.tolist()))


def _code_points(path: Path) -> Iterator[Tokens]:
    """The characters of a text in UTF-8 as numbers, a part at a time."""
    # Not utf-8-sig: what is wrong after a byte-order mark it places three bytes before.
    decoder, done, first = codecs.getincrementaldecoder("utf-8")(), 0, True
    with files.opened(path) as file:
        while True:
            read = file.read(_AT_ONCE)
            kept = len(decoder.getstate()[0])
            try:
                page = decoder.decode(read, final=not read)
            except UnicodeDecodeError as error:
                at = done - kept + error.start
                raise ValueError(
                    f"{path} is not UTF-8 ({error.reason} at byte {at}); convert it first, for "
                    "example with iconv -f ENCODING -t UTF-8"
                ) from error
            done += len(read)
            if first and page:
                page, first = page.removeprefix("\ufeff"), False
            yield np.frombuffer(page.encode("utf-32-le", "surrogatepass"), "<u4")
            if not read:
                return
