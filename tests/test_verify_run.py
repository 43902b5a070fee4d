"""One check of the command line: its progress, and that nothing in it ends the run."""

import io
import logging
import os
import time

import pytest

from jaxnn.verify import run as running
from jaxnn.verify.__main__ import main

RIGHT = """
import jax
from jaxnn import Op

def square_fwd(x):
    return x * x, x

def square_bwd(x, dy):
    return (2 * x * dy,)

square = Op(square_fwd, square_bwd, example=lambda key: (jax.random.normal(key, (3,)),))
"""


@pytest.fixture
def verify(tmp_path, capsys):
    """Write a file, verify it in this process, and return the status and all that was printed."""

    def verify(source, *options, name="layers.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
        status = main([str(path), *options])
        out = capsys.readouterr()
        return status, " ".join((out.out + out.err).split())

    return verify


@pytest.mark.parametrize("leave", ["sys.exit(0)", "os._exit(0)", "raise SystemExit", "exit()"])
def test_an_exit_inside_is_a_failure_by_name_and_the_rest_goes_on(leave, verify, monkeypatch):
    monkeypatch.setattr(os, "_exit", lambda status: pytest.fail("this would end the tests"))
    leaving = f"def leaving_bwd(x, dy):\n    {leave}\n"
    leaving += "leaving = Op(square_fwd, leaving_bwd, example=square.example)\n"
    before = os._exit
    status, said = verify("import os, sys\n" + RIGHT + leaving)
    assert os._exit is before
    assert status == 1
    assert "FAIL op leaving: 0 leaves, it raised " in said
    assert "the hand-written gradient called sys.exit(" in said
    assert "1 passed, 1 failed" in said


def test_an_exit_while_a_file_is_imported_is_no_pass(verify, monkeypatch):
    monkeypatch.setattr(os, "_exit", lambda status: pytest.fail("this would end the tests"))
    for leave in ("import os; os._exit(0)", "import sys; sys.exit(0)"):
        status, said = verify(leave + RIGHT)
        assert status == 2
        assert "importing" in said
        assert "SystemExit: 0" in said


def test_a_custom_end_is_a_failure_too(verify):
    bwd = "class Stop(BaseException): ...\ndef end_bwd(x, dy):\n    raise Stop('enough')\n"
    _, said = verify(RIGHT + bwd + "end = Op(square_fwd, end_bwd, example=square.example)\n")
    assert "it raised Stop (layers.py, line 14): enough" in said
    assert "1 passed, 1 failed" in said


def test_an_error_is_placed_in_the_file_though_an_op_says_it_in_its_own_words(verify):
    fwd = "import numpy\ndef in_numpy_fwd(x):\n    return numpy.sin(x), x\n"
    source = RIGHT + fwd + "in_numpy = Op(in_numpy_fwd, square_bwd, example=square.example)\n"
    line = source.splitlines().index("    return numpy.sin(x), x") + 1
    _, said = verify(source)
    assert f"it raised TypeError (layers.py, line {line}): fwd of op in_numpy hands a" in said


def test_an_interrupt_ends_the_run_with_what_was_found(verify, tmp_path):
    source = RIGHT + (
        "def slow_bwd(x, dy):\n    raise KeyboardInterrupt\n"
        "slow = Op(square_fwd, slow_bwd, example=square.example)\n"
        "never = Op(square_fwd, square_bwd, example=square.example)\n"
    )
    status, said = verify(source, "--json", str(tmp_path / "r.json"))
    assert status == 130
    assert "PASS op square" in said
    assert "1 passed, 0 failed, 0 inconclusive" in said
    assert "interrupted at 2/3 op slow" in said
    assert "op square" in (tmp_path / "r.json").read_text()


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_a_long_check_says_how_far_it_is(stream, monkeypatch):
    err = stream()
    monkeypatch.setattr(running.sys, "stderr", err)
    monkeypatch.setattr(running, "PATIENCE", 0.1)
    monkeypatch.setattr(running, "REWRITE", 0.1)
    monkeypatch.setattr(running, "REPEAT", 0.3)
    logger = logging.getLogger("jaxnn.verify")
    before = logger.level, logger.propagate, list(logger.handlers)
    with running.progress("3/17 op softmax"):
        logger.getChild("checks").debug("autodiff in %s", "float64")
        time.sleep(0.5)
    assert (logger.level, logger.propagate, list(logger.handlers)) == before
    lines = err.getvalue().replace("\r\x1b[K", "\n").split("\n")
    assert "3/17 op softmax: autodiff in float64, 0 s" in lines
    if stream is Terminal:
        assert len(lines) > 3
        assert err.getvalue().endswith("\r\x1b[K")  # the line is cleared
    else:
        assert "\r" not in err.getvalue()
        assert len(lines) == 2
    with running.progress("3/17 op softmax"):
        logger.debug("looking for the cause")
        time.sleep(0.5)
    lines = err.getvalue().replace("\r\x1b[K", "\n").split("\n")
    told = "FAIL (Ctrl-C: the report without a cause): looking for the cause, 0 s"
    assert any(line.startswith(told) for line in lines)
    quick = stream()
    monkeypatch.setattr(running.sys, "stderr", quick)
    with running.progress("1/1 op relu"):
        pass
    assert "relu" not in quick.getvalue()
