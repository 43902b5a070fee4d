"""PyTorch's process: who is asked, what it answers, and what is said where it cannot."""

import random
import sys
import threading
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmark import __main__ as benchmark
from experiments.benchmark import measure, worker
from experiments.benchmark.arms import Case, LeftOutError
from experiments.benchmark.cases import Sizes


def left_out():
    raise LeftOutError("it is not installed")


@pytest.fixture
def asked(monkeypatch):
    """What asks a worker in a thread, whose arms are planted, and whose JAX is on `backend`."""
    ends = []

    def ask(backend, **builds):
        case = Case("", dict, peers=lambda: builds)
        monkeypatch.setattr(worker, "cases", lambda sizes: {"case": case})
        monkeypatch.setattr(worker, "about", lambda: {"backend": backend, "torch": "2"})
        ours, theirs = Pipe()
        ends.append((ours, threading.Thread(target=worker.serve, args=(theirs, Sizes()))))
        ends[-1][1].start()
        return worker.Worker(ours)

    yield ask
    for connection, thread in ends:
        connection.close()
        thread.join()


def test_a_turn_there_takes_what_its_calls_take_by_the_clock_there(planted_arm, asked):
    there = asked("cpu", PyTorch=planted_arm(0.25, compile_seconds=3.0))
    arm = there.builds("case")["PyTorch"]()
    assert arm.compile_seconds == 3.0
    result, gradient = arm.run()
    assert result == 1.0
    np.testing.assert_array_equal(gradient, [1.0, 2.0])
    assert arm.seconds(4, True) == 1.0
    seconds = measure.time_in_turns({"PyTorch": arm}, 3, random.Random(0))
    assert seconds == {"PyTorch": [0.25] * 3}


def test_pytorch_beside_jax_on_another_device_is_left_out(planted_arm, asked):
    builds = asked("gpu", PyTorch=planted_arm(0.25)).builds("case")
    with pytest.raises(LeftOutError, match=r"it would run beside JAX's gpu, .* JAX's cpu"):
        builds["PyTorch"]()


def test_what_is_left_out_or_fails_there_is_so_here(planted_arm, asked):
    def fails():
        raise KeyError("no kernel")

    builds = asked("cpu", PyTorch=left_out, other=fails).builds("case")
    with pytest.raises(LeftOutError, match="it is not installed"):
        builds["PyTorch"]()
    with pytest.raises(RuntimeError, match="KeyError: 'no kernel'"):
        builds["other"]()


def test_a_process_that_has_ended_leaves_pytorch_out(asked):
    there = asked("cpu", PyTorch=left_out)
    there._connection.close()
    with pytest.raises(LeftOutError, match="PyTorch's process ended when it was asked"):
        there.builds("case")["PyTorch"]()


def test_an_interpreter_is_named_from_where_one_is(tmp_path, monkeypatch):
    (tmp_path / "python").symlink_to("/bin/false")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"python does not say .*PyTorch's process ended"):
        benchmark.main(case=("ladder",), torch=Path("python"))


def test_an_interpreter_that_answers_with_an_error_is_no_endless_wait(tmp_path):
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "from multiprocessing.connection import Connection\n"
        "with Connection(int(sys.argv[3])) as asked:\n"
        "    asked.recv()\n"
        "    asked.send(('RuntimeError', 'it has no such backend'))\n"
        "    try:\n"
        "        asked.recv()\n"
        "    except EOFError:\n"
        "        pass\n"
    )
    python.chmod(0o755)
    with (
        pytest.raises(ValueError, match=r"it has no such backend\); --torch names the Python"),
        worker.working(python, Sizes()),
    ):
        pass


def test_pytorchs_process_waits_in_no_busy_loop_and_leaves_a_gpu_s_memory(monkeypatch):
    def started(command, env, **_):
        given.append({name: env.get(name) for name in worker.SETTINGS})
        raise OSError(2, "it is not there")

    given = []
    monkeypatch.setattr(worker.subprocess, "Popen", started)
    for policy in (None, "ACTIVE"):
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        if policy:
            monkeypatch.setenv("OMP_WAIT_POLICY", policy)
        with (
            pytest.raises(ValueError, match=r"python cannot be run \(it is not there\)"),
            worker.working(Path("python"), Sizes()),
        ):
            pass
    asleep, theirs = given
    assert asleep == {"OMP_WAIT_POLICY": "PASSIVE", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    assert theirs["OMP_WAIT_POLICY"] == "ACTIVE"  # what the user says
