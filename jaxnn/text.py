"""Text as tokens: one integer per character, and windows of them for a language model to learn.

    text = documentation()
    characters = vocabulary(text)
    train, held_out = split(encode(text, characters), length=128)
    batch = random_windows(key, train, number=32, length=128)

Nothing is downloaded: the text is Python's own documentation, or a file of yours.
"""

import contextlib
import operator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnn import files
from jaxnn.checks import check_integers, check_key
from jaxnn.data import KeyedBatch, Split, check_share
from jaxnn.settings import check_integer, check_text

# A character may take 4 bytes, its token 4 in each of two copies: in all no more than 1 GB.
MOST_BYTES = 64 * 2**20
_AT_ONCE = 2**20
_CONVERT = "convert it first, for example with iconv -f ENCODING -t UTF-8"


def documentation() -> str:
    """Return the Python Language Reference as `help()` shows it: English and code.

    450,000 characters from this interpreter's `pydoc_data.topics`: another version of Python has
    another text.
    """
    from pydoc_data.topics import topics  # large, and no other function reads it

    return "\n\n".join(topics[name] for name in sorted(topics))


def read_text(path: str | Path, most: int = MOST_BYTES) -> str:
    """Read a text file in UTF-8, whole; a byte-order mark before it is left out.

    Args:
        path: the file.
        most: bytes that it may have; to encode and split so many takes up to 15 times as much.

    Raises:
        TypeError: the path is neither text nor a Path.
        ValueError: it is no file that can be read, is larger, empty, or not UTF-8 (then the message
            says from which byte on), or has a NUL, which no text has.
    """
    content = files.read_bytes(path, most, "take a part of it")
    try:
        # Not utf-8-sig: what is wrong after a byte-order mark it places three bytes before.
        page = content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte {error.start} is 0x{content[error.start]:02x} "
            f"({error.reason}); {_CONVERT}"
        ) from error
    if not page:
        raise ValueError(f"{path} is empty; there must be text to learn: check the path")
    if (at := page.find("\0")) >= 0:
        raise ValueError(
            f"{path} has a NUL at position {at}, as UTF-16 has and files that are no text; "
            f"{_CONVERT}"
        )
    return page


def vocabulary(text: str) -> str:
    """Return the characters of a text, each once, sorted; a character's place is its token.

    Raises:
        TypeError: it is no text.
    """
    check_text("text", text)
    return "".join(sorted(set(text)))


def encode(text: str, characters: str) -> Array:
    """Return tokens (n,), int32: the place of each character in the vocabulary.

    Args:
        text: any.
        characters: sorted, each once, as `vocabulary` makes them.

    Raises:
        TypeError: one of the two is no text.
        ValueError: the vocabulary is not sorted, or a character is not in it; the message names
            the first.
    """
    check_text("text", text)
    if check_text("characters", characters) != vocabulary(characters):
        raise ValueError(
            f"the vocabulary {characters!r:.80} is not sorted, or has a character twice; it must "
            "be as vocabulary() makes it: pass vocabulary(characters)"
        )
    known, tokens = _code_points(characters), _aligned(len(text))
    first, strange = -1, 0
    for start in range(0, len(text), _AT_ONCE):
        given = _code_points(text[start : start + _AT_ONCE])
        found = np.searchsorted(known, given)
        # No character has the last number.
        wrong = np.append(known, np.uint32(2**32 - 1))[found] != given
        if not strange and wrong.any():
            first = start + int(wrong.argmax())
        strange += int(np.count_nonzero(wrong))
        tokens[start : start + len(given)] = found
    if strange:
        raise ValueError(
            f"character {text[first]!r} at position {first} ({strange} such in all) is not among "
            f"the {len(characters)} of the vocabulary; every character must be: leave it out, or "
            "take the vocabulary of a text that has it"
        )
    placed: Array = jax.device_put(tokens, may_alias=True)
    return placed


def decode(tokens: Any, characters: str) -> str:
    """Return the text of tokens (n,): `encode` undone.

    Raises:
        TypeError: the tokens are no integers, or lists of them, or the vocabulary is no text.
        ValueError: an array is not (n,), or a token is no place in the vocabulary.
    """
    check_text("characters", characters)
    if isinstance(tokens, list):
        tokens = np.array([_token(token) for token in tokens], object)  # of any size
    else:
        _check_tokens(tokens)
        tokens = np.asarray(tokens)
    strange = tokens[(tokens < 0) | (tokens >= len(characters))]
    if strange.size:
        raise ValueError(
            f"token {strange[0]!s:.40} ({strange.size} such in all) is outside [0, "
            f"{len(characters)}), the places in the vocabulary; every token must be one: take the "
            "vocabulary that the tokens came from"
        )
    return "".join(characters[token] for token in tokens)


def split(tokens: Array, length: int, held_out: float = 0.1) -> Split[Array]:
    """Return the tokens to train on and, from the end, the share held out.

    By position, so that nothing held out stands between what was learned.

    Args:
        tokens: (n,).
        length: of the windows to come: both sides must have room for one and the token after it.
        held_out: the share, in (0, 1).

    Raises:
        TypeError: the tokens are no integers, the length is none, or the share no number.
        ValueError: the length is below 1, the share is not in (0, 1), or a side is too short.
    """
    _check_tokens(tokens)
    check_integer("the length of a window", length)
    check_share("held_out", held_out)
    end = len(tokens) - int(len(tokens) * held_out)
    parts = Split(tokens[:end], tokens[end:])
    for name, part in zip(("to train on", "held out"), parts, strict=True):
        if len(part) <= length:
            raise ValueError(
                f"the text has {len(tokens)} characters, {len(part)} of them {name}; there must "
                f"be at least {length + 1} of those, a window of {length} and the character after "
                "it: take a longer text or shorter windows"
            )
    return parts


def all_windows(tokens: Array, length: int) -> KeyedBatch:
    """Cut a text into windows (N, length) that predict each token but the first once, in order.

    What is left at the end, shorter than a window, is left out.

    Raises:
        TypeError: the length is no integer.
        ValueError: the length is below 1, or there is no window.
    """
    _check_length(tokens, length)
    end = (len(tokens) - 1) // length * length
    return KeyedBatch(tokens[:end].reshape(-1, length), tokens[1 : end + 1].reshape(-1, length))


def random_windows(key: Array, tokens: Array, number: int, length: int) -> KeyedBatch:
    """Draw so many windows (number, length), each starting anywhere; works under jit.

    The batch has no key; for dropout put one in: `batch._replace(key=...)`.

    Raises:
        TypeError: the number or the length is no integer, the tokens no array of integers, or the
            key none of `jax.random`.
        ValueError: the number or the length is below 1, or there is no window.
    """
    check_key("random_windows: key", key)
    check_integer("the number of windows", number)
    _check_length(tokens, length)
    starts = jax.random.randint(key, (number, 1), 0, len(tokens) - length)
    at = starts + jnp.arange(length)
    return KeyedBatch(tokens[at], tokens[at + 1])


def _token(given: Any) -> int:
    """An entry of a list of tokens."""
    with contextlib.suppress(TypeError):
        if not isinstance(given, bool):
            return operator.index(given)
    raise TypeError(
        f"a token is {given!r:.50}; each in a list must be an integer: encode the text first, and "
        "decode one at a time"
    )


def _check_tokens(tokens: Any) -> None:
    """Refuse what are no tokens of one text."""
    check_integers("tokens", tokens, "encode the text first")
    if len(tokens.shape) != 1:
        raise ValueError(
            f"tokens have shape {tokens.shape}; they must be (n,), those of one text: pass "
            "tokens.ravel()"
        )


def _check_length(tokens: Array, length: int) -> None:
    """Refuse what are no tokens, or without room for a window and the token after it."""
    _check_tokens(tokens)
    check_integer("the length of a window", length)
    if len(tokens) <= length:
        raise ValueError(
            f"there are {len(tokens)} tokens; a window of {length} and the token after it take "
            f"{length + 1}, and there must be so many: take a longer text or shorter windows"
        )


def _aligned(n: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """An array of n integers that begins where JAX can take it as it is, without a second copy."""
    raw = np.empty(4 * n + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + 4 * n].view(np.int32)


def _code_points(text: str) -> np.ndarray[Any, np.dtype[np.uint32]]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))
