"""Text as tokens: files that cannot be read, characters that are not known, windows that fit."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import text

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def test_the_documentation_is_english_that_can_be_encoded():
    page = text.documentation()
    characters = text.vocabulary(page)
    assert len(page) > 300_000
    assert page.count(" the ") > 3000
    assert len(characters) < 200
    assert text.decode(text.encode(page, characters), characters) == page


@hypothesis.given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_decoding_undoes_encoding(page):
    characters = text.vocabulary(page)
    tokens = text.encode(page, characters)
    assert tokens.dtype == jnp.int32
    assert list(characters) == sorted(set(page))
    np.testing.assert_array_equal(tokens, [characters.index(c) for c in page])
    assert text.decode(tokens, characters) == page


def test_a_character_outside_the_vocabulary_is_named():
    for page in ("cab€€", "ab-€€", "€"):  # past the end, between, alone
        with pytest.raises(ValueError, match=r"character '[€-]' at position \d .* the 3 of the"):
            text.encode(page, "abc")
    assert text.encode("", "abc").shape == text.encode("", "").shape == (0,)
    with pytest.raises(ValueError, match=r"character 'a' at position 0 .* the 0 of the"):
        text.encode("a", "")
    for characters in ("ba", "aa"):
        with pytest.raises(ValueError, match="not sorted, or has a character twice"):
            text.encode("a", characters)


@pytest.mark.parametrize("token", [-1, 3, 2**70, 2**63])
def test_a_token_outside_the_vocabulary_is_named(token):
    with pytest.raises(ValueError, match=rf"token {token} .* outside \[0, 3\)"):
        text.decode([0, token, 1], "abc")


@pytest.mark.parametrize("tokens", [[[1], [1, 2]], [[1]], [0, [1]], [1.5], ["a"], [True], [None]])
def test_a_list_of_anything_but_tokens_is_refused(tokens):
    with pytest.raises(TypeError, match=r"a token is .*; each in a list must be an integer: "):
        text.decode(tokens, "abc")
    assert text.decode([np.uint8(1), jnp.int32(2), 0], "abc") == "bca"
    assert text.decode([], "abc") == ""


def test_a_file_is_read_as_it_is(tmp_path):
    path = tmp_path / "page.txt"
    path.write_bytes("naïve\r\n☃".encode())
    assert text.read_text(path) == "naïve\r\n☃"
    path.write_text("naïve\ufeff☃", "utf-8-sig")
    assert text.read_text(str(path)) == "naïve\ufeff☃"  # the mark before it is no letter


def test_a_file_too_large_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "page.txt").open("wb") as file:
        file.truncate(text.MOST_BYTES + 1)
    with pytest.raises(ValueError, match="has 67,108,865 bytes; it must have at most 67,108,864"):
        text.read_text(tmp_path / "page.txt")


def test_a_long_text_is_encoded_as_a_short_one(monkeypatch):
    page = "abcabd" * 5
    whole = text.encode(page, "abcd")
    monkeypatch.setattr(text, "_AT_ONCE", 7)
    np.testing.assert_array_equal(text.encode(page, "abcd"), whole)
    with pytest.raises(ValueError, match=r"character 'd' at position 9 \(5 such in all\)"):
        text.encode("aabb" + page, "abc")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"page.txt is empty"),
        (b"fine so far \xff", r"page.txt is not UTF-8: byte 12 is 0xff .*iconv"),
        ("naïve".encode("latin1"), r"byte 2 is 0xef"),
        (None, r"page.txt is not a file \(there is none\)"),
        (b"\xef\xbb\xbf", r"page.txt is empty"),
        ("UTF-16".encode("utf-16"), r"byte 0 is 0xff"),
        ("UTF-16".encode("utf-16-le"), r"has a NUL at position 1, as UTF-16 has"),
        ("UTF-32".encode("utf-32-be"), r"has a NUL at position 0"),
    ],
)
def test_a_file_that_is_no_text_is_refused(content, message, tmp_path):
    path = tmp_path / "page.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        text.read_text(path)
    with pytest.raises(ValueError, match=r"is not a file \(a folder\)"):
        text.read_text(tmp_path)


def test_the_end_is_held_out():
    train, held_out = text.split(jnp.arange(109), length=9)
    np.testing.assert_array_equal(train, np.arange(99))
    np.testing.assert_array_equal(held_out, np.arange(99, 109))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((jnp.arange(109), 10), "has 109 characters, 10 of them held out; .* at least 11"),
        ((jnp.arange(20), 10, 0.6), "8 of them to train on; .* at least 11"),
        ((jnp.arange(20), 0), "window is 0"),
        ((jnp.arange(20), 1.5, 0.5), "window is 1.5; it must be an integer"),
        ((jnp.arange(20), 3, 1.0), "held_out is 1.0"),
    ],
)
def test_a_text_too_short_is_refused(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        text.split(*arguments)


@pytest.mark.parametrize("n", [4, 10, 12, 13])
def test_windows_predict_every_token_but_the_first_once(n):
    batch = text.all_windows(jnp.arange(n), 3)
    assert batch.key is None
    np.testing.assert_array_equal(batch.inputs.ravel(), np.arange((n - 1) // 3 * 3))
    np.testing.assert_array_equal(batch.targets, batch.inputs + 1)


@pytest.mark.parametrize(
    ("length", "message"),
    [(3, r"3 tokens; a window of 3 .* take 4"), (0, "window is 0"), (-1, "window is -1")],
)
def test_no_window_is_refused(length, message):
    with pytest.raises(ValueError, match=message):
        text.all_windows(jnp.arange(3), length)
    with pytest.raises(ValueError, match=message):
        text.random_windows(jax.random.key(0), jnp.arange(3), 2, length)
    with pytest.raises(ValueError, match="number of windows is 0"):
        text.random_windows(jax.random.key(0), jnp.arange(3), 0, 2)


def test_random_windows_start_anywhere():
    draw = jax.jit(text.random_windows, static_argnums=(2, 3))
    batch = draw(jax.random.key(0), jnp.arange(10), 200, 4)
    np.testing.assert_array_equal(batch.targets, batch.inputs + 1)
    np.testing.assert_array_equal(batch.inputs, batch.inputs[:, :1] + np.arange(4))
    assert set(np.asarray(batch.inputs[:, 0])) == set(range(6))  # the last target is the last token


def test_a_byte_that_is_no_utf_8_is_named_by_its_place_in_the_file(tmp_path):
    (tmp_path / "page.txt").write_bytes(b"\xef\xbb\xbfab\xff")
    with pytest.raises(ValueError, match="byte 5 is 0xff"):
        text.read_text(tmp_path / "page.txt")
