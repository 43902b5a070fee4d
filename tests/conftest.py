import functools
import gc
import os
import socket
import subprocess
import sys
from pathlib import Path

# What one process has compiled, the others need not; `pytest --cache-clear` forgets it.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "d" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# For tests on a mesh; all others run on the first.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

import hypothesis
import jax
import numpy as np
import pytest
from jax._src.interpreters import mlir

from jaxnn.verify import verdict
from jaxnn.verify.programs import compiled, quick_flags

# Programs here are small and run a few times: what takes long is to compile them well.
os.environ.setdefault("XLA_FLAGS", quick_flags())

hypothesis.settings.register_profile(
    "jaxnn", max_examples=10, deadline=None, derandomize=True, database=None
)
# The examples that are written down, none that are drawn: `pytest --hypothesis-profile=written`.
hypothesis.settings.register_profile(
    "written", hypothesis.settings.get_profile("jaxnn"), phases=[hypothesis.Phase.explicit]
)
hypothesis.settings.load_profile("jaxnn")
# Tracing makes many small objects that live long: looking for garbage among them takes its time.
gc.freeze()
gc.set_threshold(50_000, 50, 100)
# To make the context that a program is lowered in takes longer than to lower a small one: one for
# all. Where JAX names it otherwise, the tests only take longer.
if hasattr(mlir, "make_ir_context"):
    mlir.make_ir_context = functools.cache(mlir.make_ir_context)


@pytest.fixture
def strict_dtypes():
    """No silent promotion in our code: it would hide a dtype that a gradient got wrong."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def undiagnosed(monkeypatch):
    """Whether a gradient is wrong, without the long search for the reason."""
    monkeypatch.setattr(verdict, "find_causes", lambda point, report: report)


@pytest.fixture
def command(monkeypatch, capsys):
    """A script called from its command line: the exit status, and what was printed."""
    from experiments import cli

    def called(main, *words):
        monkeypatch.setattr("sys.argv", ["script", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.run(main)
        return ended.value.code, capsys.readouterr()

    return called


@pytest.fixture
def planted_arm(monkeypatch):
    """What builds arms that take the seconds they are told to, on a clock that only they move."""
    from experiments.benchmark import measure
    from experiments.benchmark.arms import Arm

    now = [0.0]

    def arm(seconds, result=1.0, gradient=(1.0, 2.0), **program):
        def run():
            now[0] += seconds
            return np.float32(result), [np.array(gradient)]

        return lambda: Arm(run, **program)

    monkeypatch.setattr(measure, "clock", lambda: now[0])
    return arm


def run(function, *arrays):
    """The result of a function, compiled as quickly as can be."""
    return compiled(function, *arrays).run(*arrays)


def assert_leaves_close(ours, theirs, rtol, floor=0.0):
    """Every entry within rtol of its leaf's largest (and no NaN equals another)."""
    ours, theirs = jax.tree.leaves(ours), jax.tree.leaves(theirs)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape
        assert np.isfinite(b).all()  # of an infinite scale every difference is a small part
        scale = np.abs(b).max(initial=0.0)
        difference = np.abs(a - b).max(initial=0.0)
        assert difference <= rtol * scale + floor, (difference, scale)


def of_two_processes(script):
    """What two processes of a script in this folder print, each `SCRIPT PORT NUMBER`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    path = Path(__file__).with_name(script)
    started = [
        subprocess.Popen(
            [sys.executable, path, str(port), str(i)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    said = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    return [out for out, _ in said]
