"""Files: written whole in place of older ones, read in bounds, a folder locked."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxnn import files


def in_a_process(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=Path(files.__file__).parent,  # where it is imported without JAX
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def older(tmp_path):
    path = tmp_path / "older.txt"
    path.write_text("older")
    return path


def test_a_file_is_replaced_by_what_was_written(older, tmp_path):
    with older.open() as reader:
        with files.replaced(older) as new:
            new.write_text("newer")
            assert older.read_text() == "older"
            assert new.name == older.name
        assert older.read_text() == "newer"
        assert reader.read() == "older"  # who is reading it reads it to its end
    with files.replaced(str(tmp_path / "first")) as new:
        new.write_text("first")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["first", "older.txt"]


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_after_an_error_the_older_file_is_as_it_was(older, error):
    def write():
        with files.replaced(older) as new:
            new.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert older.read_text() == "older"
    assert list(older.parent.iterdir()) == [older]


def test_a_disk_that_is_full_is_said_in_words(older):
    def write():
        with files.replaced(older) as new:
            new.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ValueError, match=r"older.txt cannot be written \(No space .* as it was"):
        write()
    assert older.read_text() == "older"
    limited = """
import resource, sys
import files
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with files.replaced(sys.argv[1]) as new:
        new.write_bytes(bytes(2000))
except ValueError as error:
    print(error)
"""
    assert "cannot be written (File too large)" in in_a_process(limited, older).stdout
    assert older.read_text() == "older"
    assert list(older.parent.iterdir()) == [older]


def test_a_kill_leaves_the_older_file_and_a_write_on_another_day_what_it_left(older):
    killed = """
import os, signal, sys
import files
with files.replaced(sys.argv[1]) as new:
    new.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert in_a_process(killed, older).returncode == -signal.SIGKILL
    assert older.read_text() == "older"
    (left,) = older.parent.glob(".*")
    yesterday = time.time() - 25 * 60 * 60
    os.utime(left, (yesterday, yesterday))
    # Of what is being written nothing is removed, by whichever process it is.
    for text in ("first", "second"):
        with files.replaced(older) as new:
            new.write_text(text)
        assert older.read_text() == text
        assert (left / older.name).read_text() == "half"
    os.utime(left / older.name, (yesterday, yesterday))
    with files.replaced(older) as new:
        new.write_text("third")
    assert list(older.parent.iterdir()) == [older]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o600, 0o755])
def test_the_mode_of_the_older_file_stays(older, mode):
    older.chmod(mode)
    with files.replaced(older) as new:
        new.unlink()
        new.touch(0o600)  # as some libraries write
    assert stat.S_IMODE(older.stat().st_mode) == mode


def test_the_mode_of_a_new_file_is_that_of_any_new_file(tmp_path):
    (tmp_path / "other").touch()
    with files.replaced(tmp_path / "new") as new:
        new.unlink()
        new.touch(0o600)
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_link_stays_and_leads_to_what_was_written(older, tmp_path):
    (tmp_path / "folder").mkdir()
    link, again, dangling = (tmp_path / "folder" / name for name in ("link", "again", "dangling"))
    link.symlink_to(older)
    again.symlink_to("link")
    dangling.symlink_to(tmp_path / "absent")
    for path in (again, dangling):
        with files.replaced(path) as new:
            new.write_text("through")
        assert path.is_symlink()
    assert older.read_text() == (tmp_path / "absent").read_text() == "through"
    assert os.readlink(again) == "link"


def test_several_files_take_their_places_together(older, tmp_path):
    first, second, gone = (tmp_path / name for name in ("first", "second", "gone"))
    gone.touch()
    first.write_text("older")

    def write():
        with files.all_replaced([first, second], [gone]) as (new, _):
            new.write_text("newer")
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(ValueError, match="first cannot be written"):
        write()
    assert first.read_text() == "older"
    assert gone.exists()
    with files.all_replaced([first, second], [gone]) as made:
        for new in made:
            new.write_text("newer")
    assert first.read_text() == second.read_text() == "newer"
    assert not gone.exists()


def odd_paths(folder):
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    return {
        "pipe": "a named pipe",
        "loop": "it must be one that can be opened",
        ".": "is a folder|a folder",
        "/dev/zero": "a device",
        "nul\0": "null",
        "x" * 300: "too long",
        "older.txt/under": "none|not a folder",
        "absent/under": "none|not a folder",
    }


def test_what_is_no_ordinary_file_is_neither_read_nor_written(older, tmp_path):
    for name, words in odd_paths(tmp_path).items():
        with pytest.raises(ValueError, match=words):
            files.read_bytes(tmp_path / name, 100)
        with pytest.raises(ValueError, match=words), files.replaced(tmp_path / name):
            pytest.fail(name)
    for path in (None, 3, b"bytes", ["list"]):
        with pytest.raises(TypeError, match=r"must be text or a pathlib.Path"):
            files.read_bytes(path, 100)


def test_a_file_is_read_up_to_a_size(older, tmp_path):
    assert files.read_bytes(older, 5) == b"older"
    with pytest.raises(ValueError, match=r"has 5 bytes; it must have at most 4: take another"):
        files.read_bytes(older, 4, "take another")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**42)
    with pytest.raises(ValueError, match="at most 100"):
        files.read_bytes(tmp_path / "sparse", 100)
    with pytest.raises(ValueError, match="that nothing writes to while"):
        files.read_bytes("/proc/version", 100)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_is_read_in_its_encodings(tmp_path, encoding):
    (tmp_path / "json").write_text(json.dumps({"a": "é"}, ensure_ascii=False), encoding)
    assert files.read_json(tmp_path / "json", "name another") == {"a": "é"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 10**6, "too deep"),
        (b'{"a":' * 10**6, "too deep"),
        (b"1" * 10**6, "is not JSON"),
        (b" " * (files.MOST_JSON + 1), "at most"),
    ],
    ids=["empty", "torn", "bytes", "lists", "objects", "a long number", "large"],
)
def test_what_is_no_json_is_refused(tmp_path, content, words):
    (tmp_path / "json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"json .*{words}.*name another"):
        files.read_json(tmp_path / "json", "name another")


def test_a_folder_is_made_and_one_that_takes_no_file_is_refused(older, tmp_path):
    new = tmp_path / "new" / "folder"
    assert files.writable(new) == files.writable(new) == new
    assert not list(new.iterdir())
    for folder in (older, older / "inside", Path("/proc")):
        with pytest.raises(ValueError, match=r"cannot be written to \(.*\); name a folder"):
            files.writable(folder)


def test_a_folder_is_locked_to_other_processes(tmp_path):
    ask = """
import sys
import files
try:
    with files.locked(sys.argv[1]):
        print("free")
except ValueError as error:
    print(error)
"""
    with files.locked(tmp_path), files.locked(str(tmp_path)):
        said = in_a_process(ask, tmp_path).stdout
        assert "is in use by another run; wait for it, or name another folder" in said
    assert in_a_process(ask, tmp_path).stdout == "free\n"
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be locked"), files.locked(tmp_path / "file"):
        pytest.fail("it was")


def test_one_is_no_plural():
    assert [files.counted(n, "epoch") for n in (0, 1, 2)] == ["0 epochs", "1 epoch", "2 epochs"]
    assert files.counted(2, "axis", "axes") == "2 axes"


def test_what_is_not_installed_is_said_in_one_sentence():
    with pytest.raises(ModuleNotFoundError, match=r'nope is not installed: .*"jaxnn\[tune\]"'):
        files.installed("nope.inner", "tune")
    assert files.installed("json") is json
