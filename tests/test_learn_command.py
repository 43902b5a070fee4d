"""python -m jaxnn.learn: files handed out, graded and remembered, whatever becomes of them."""

import json
import os
import re
import subprocess
import sys

import pytest

from jaxnn.learn import __main__ as command
from jaxnn.learn import exercise, progress, start, worker
from jaxnn.learn.site import __main__ as site

SOFTMAX = start.solution(exercise.find("softmax"), "fused", "softmax.py")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXNN_LEARN", str(tmp_path / "progress.json"))
    return tmp_path


def run(*words):
    return command.main(list(words))


def test_a_file_is_handed_out_graded_and_remembered(here, capsys):
    assert run("start", "softmax") == 0
    assert run("check", "softmax.py") == 1
    assert "not done yet" in capsys.readouterr().out
    assert run("start", "softmax") == 2
    assert "softmax.py" in capsys.readouterr().err
    (here / "softmax.py").write_text(SOFTMAX)
    assert run("check", "softmax.py") == 0
    assert run("hint", "softmax") == 0
    first = capsys.readouterr().out
    assert run("hint", "softmax") == 0
    assert capsys.readouterr().out not in first
    assert run() == 0
    assert "fused solved" in capsys.readouterr().out


def test_a_found_bug_is_explained_and_exercises_are_listed_by_lesson(here, capsys):
    assert run("start", "softmax", "--grade", "bug") == 0
    assert run("check", "softmax_bug.py") == 1
    said = exercise.find("softmax").module.BUGS[0][2]
    out = capsys.readouterr().out
    assert said not in " ".join(out.split())
    assert "as it was handed out" in out
    assert "dx" not in out  # nothing of the cause
    (here / "softmax_bug.py").write_text(
        start.solution(exercise.find("softmax"), "bug", "softmax_bug.py")
    )
    assert run("check", "softmax_bug.py") == 0
    assert said in " ".join(capsys.readouterr().out.split())
    assert run("list") == 0
    lines = capsys.readouterr().out.splitlines()
    title = next(i for i, line in enumerate(lines) if re.match(r"\d+\. Softmax", line))
    assert {lines[title + 1].split()[0], lines[title + 2].split()[0]} == {
        "softmax",
        "softmax_cross_entropy",
    }


def test_what_cannot_be_noted_is_said_and_all_else_done(here, capsys, monkeypatch):
    (here / "full").write_text("")
    monkeypatch.setenv("JAXNN_LEARN", str(here / "full" / "progress.json"))
    (here / "softmax.py").write_text(SOFTMAX)
    assert run("check", "softmax.py") == 0
    assert run("hint", "softmax") == 0
    said = capsys.readouterr()
    assert "Next: python -m jaxnn.learn start softmax --grade" in said.out
    assert "1 of " in said.out
    assert "progress is not kept" in said.err
    assert "JAXNN_LEARN" in said.err


def test_a_file_is_graded_again_whenever_it_is_saved(here, capsys, monkeypatch):
    file = here / "softmax.py"
    file.write_text(SOFTMAX.replace("(dp - inner)", "dp"))
    waits = []

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            file.write_text(SOFTMAX)

    monkeypatch.setattr(command.time, "sleep", wait)
    assert run("check", "softmax.py", "--watch") == 0
    assert len(waits) == 2
    said = capsys.readouterr().out
    assert said.index("0 of 1 right") < said.index("waiting") < said.index("right.")


def test_the_command_grades_in_a_process_of_its_own(here):
    (here / "softmax.py").write_text(f"{SOFTMAX}\nprint('once')\n")
    words = [sys.executable, "-m", "jaxnn.learn", "check", "softmax.py"]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "softmax (fused): right" in done.stdout
    assert done.stdout.count("once") == 1
    assert not done.stderr
    reader, writer = os.pipe()
    os.close(reader)
    listed = [sys.executable, "-m", "jaxnn.learn", "list"]
    cut = subprocess.run(listed, check=False, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert not cut.stderr


def test_a_file_that_ends_or_stops_its_process_is_told_and_the_next_is_graded(here, monkeypatch):
    monkeypatch.setattr(worker, "GRACE", 1.0)
    hard, endless, right = (here / f"{name}.py" for name in ("hard", "endless", "softmax"))
    hard.write_text(f"{SOFTMAX}\nimport os\nos._exit(3)\n")
    body = (
        "while True:\n        try:\n            dp = dp + 0\n        except BaseException: pass\n"
    )
    endless.write_text(SOFTMAX.replace("inner = (", f"{body}    inner = ("))
    right.write_text(SOFTMAX)
    with worker.Worker(3.0) as grader:
        grader.grade(str(right))
        assert "ended Python itself (status 3)" in grader.grade(str(hard)).fault
        grader.limit = 1.0
        assert "stopped after 1 s" in grader.grade(str(endless)).fault
        grader.limit = 20.0
        assert grader.grade(str(right))


def test_progress_is_whole_when_the_process_is_killed_while_it_writes(here):
    progress.note("linear", print, solved=["fused"])
    before = (here / "progress.json").read_text()
    code = (
        "import os\n"
        "from jaxnn.learn import progress\n"
        "write = progress.Path.write_text\n"
        "def half(path, text, **settings):\n"
        "    write(path, text[:9], **settings)\n"
        "    os.kill(os.getpid(), 9)\n"
        "progress.Path.write_text = half\n"
        "progress.note('softmax', print, solved=['fused'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -9
    assert (here / "progress.json").read_text() == before
    progress.note("softmax", print, begun=["easy"])
    assert set(progress.load(print)) == {"linear", "softmax"}


@pytest.mark.parametrize(
    "known",
    [
        {"layer_norm": {"solved": None}},
        {"matmul": {"begun": True}},
        {"matmul": {"solved": "fused"}},
        {"matmul": {"begun": [["fused"]]}},
        {"matmul": {"hints": "2"}},
        {"matmul": {"file": 3}},
        {"matmul": []},
    ],
)
def test_a_progress_of_another_form_is_damaged(here, capsys, known):
    (here / "progress.json").write_text(json.dumps(known))
    assert run("list") == 0
    said = capsys.readouterr()
    assert "damaged-1" in said.err
    assert re.search("^0 of .* solved", said.out, re.MULTILINE)


def test_the_file_to_go_on_with_is_named_from_any_folder(here, capsys, monkeypatch):
    first = exercise.in_order()[0].name
    assert run("start", first) == 0
    capsys.readouterr()
    assert run() == 0
    assert f"Next: python -m jaxnn.learn check {first}.py\n" in capsys.readouterr().out
    (here / "other").mkdir()
    monkeypatch.chdir(here / "other")
    assert run() == 0
    assert f"learn check {here.resolve() / first}.py\n" in capsys.readouterr().out
    (here / f"{first}.py").unlink()
    assert run() == 0
    assert f"Next: python -m jaxnn.learn start {first}\n" in capsys.readouterr().out


def test_the_site_is_built_by_the_same_command(here, monkeypatch):
    built = []
    monkeypatch.setattr(site, "build", lambda out: built.append(out) or 0)
    assert run("site", "--out", "pages") == 0
    assert [str(out) for out in built] == ["pages"]


def test_a_damaged_progress_is_kept_aside(here, capsys):
    (here / "progress.json").write_text("{not json")
    assert run("hint", "linear") == 0
    said = "".join(capsys.readouterr())
    assert "damaged-1" in said
    assert (here / "progress.json.damaged-1").read_text() == "{not json"
    assert json.loads((here / "progress.json").read_text())
