"""python -m jaxnn.learn: files handed out and graded, and what a student may hand in by mistake."""

import json
import re

import pytest

from jaxnn.learn import __main__ as command
from jaxnn.learn import exercise, grade, start, student
from jaxnn.learn.site import __main__ as site
from jaxnn.learn.student import Fault, read

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


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("def softmax_bwd(", "def softmax_bwd((", "line"),
        ("softmax_bwd", "softmax_backward", "softmax_bwd"),
        ("import jax", "import jaxx\nimport jax", "jaxx"),
    ],
)
def test_a_file_that_cannot_be_graded_is_refused_in_a_sentence(tmp_path, old, new, said):
    file = tmp_path / "softmax.py"
    assert old in SOFTMAX
    file.write_text(SOFTMAX.replace(old, new))
    with pytest.raises(Fault, match=said):
        read(str(file))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("while True: pass", "stopped"),
        ("return dp, dp", "cotangent"),
        ("return (jax.grad(lambda x: (jax.nn.softmax(x) * dp).sum())(p),)", "jax.grad"),
        ("from jax import vjp as v\n    return v(jax.nn.softmax, p)[1](dp)", "jax.vjp"),
        ("p[0] = 0\n    return (dp,)", "in place"),
        ("print('here')\n    raise SystemExit(3)", "exit"),
        ("return (p * float('nan'),)", "NaN|nan"),
    ],
)
def test_a_backward_that_does_something_else_is_told(tmp_path, body, said):
    file = tmp_path / "softmax.py"
    head = 'import jax\nimport jax.numpy as jnp\nEXERCISE, GRADE = "softmax", "fused"\n'
    forward = "def softmax_fwd(x):\n    p = jax.nn.softmax(x)\n    return p, p\n"
    file.write_text(f"{head}{forward}def softmax_bwd(p, dp):\n    {body}\n")
    with student.limited(20):
        result = grade.graded(read(str(file)), 2.0)
    assert not result
    assert re.search(said, str(result)), str(result)
