"""Several processes: they train as one device does, agree, and end together."""

import contextlib
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import processes_together
import pytest
from conftest import assert_leaves_close

from jaxnn import processes, train
from jaxnn.models import transformer


def started(number, *command, **environment):
    """Run a command in several processes of one run; what each said, and their statuses."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = os.environ | {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(number),
        "JAX_NUM_CPU_DEVICES": "1",
        **environment,
    }
    running = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=shared | {"JAX_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(number)
    ]
    said = [process.communicate(timeout=400) for process in running]
    return said, [process.returncode for process in running]


def test_four_processes_train_as_one_device_and_end_together(tmp_path, x64):
    number, script = 4, Path(processes_together.__file__)
    said, statuses = started(number, script, tmp_path)
    for i, (out, error) in enumerate(said):
        # Ctrl-C was heard by the last one alone.
        assert "fit interrupted 130 3\n" in out, said
        # Process 1 alone was started with other settings.
        assert "refused the processes disagree in their run: epochs is 51 in process 1" in out
        assert "key [0 7]\n" in out
        assert "refused the processes have other examples than each other" in out
        words = "RuntimeError: what nobody expected"
        assert error.count(words) == 1
        assert ("Traceback" in error) == (i == 1)
        assert i == 1 or f"process 1: {words}" in error
        # One prints what all do.
        assert ("epoch 3/50" in out) == (i == 0)
        assert ("interrupted: kept 3 finished epochs" in error) == (i == 0)
    assert statuses == [1] * number

    state, source = processes_together.begin(), processes_together.batches()
    step = train.make_step(transformer, processes_together.CONFIG, processes_together.OPTIMIZER)
    for _ in range(3):
        state, _ = step(state, next(source))
    with np.load(tmp_path / "params.npz") as saved:
        assert_leaves_close([*saved.values()], state.params, 1e-9, 1e-8)


def test_alone_all_is_agreed():
    assert not processes.several()
    assert processes.is_first()
    assert processes.agreed(3) == 3
    assert processes.met(1)
    processes.check_agree("run", {"a": 1})
    assert processes.lost_connection(ValueError("Gloo")) == ""
    with pytest.raises(SystemExit) as ended:
        processes.end("why", 2)
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("environment", "number"),
    [
        ({}, 1),
        ({"JAX_NUM_PROCESSES": "3"}, 3),
        ({"SLURM_NTASKS": "4"}, 1),  # the script of a batch, not one of its tasks
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "a[1-4]"}, 4),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, 2),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, 2),
    ],
)
def test_the_environment_says_how_many_there_are(environment, number, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes.asked() == number
    if number == 1:
        processes.check_started()
    else:
        with pytest.raises(ValueError, match=f"one of {number} processes"):
            processes.check_started()


def test_of_settings_within_settings_those_that_differ_are_named(monkeypatch):
    told = []
    meeting = SimpleNamespace(tell=lambda texts: told.append(texts) or told)
    monkeypatch.setattr(processes, "Meeting", lambda name: contextlib.nullcontext(meeting))

    def agree(rate, end):
        options = {"file": "text", "rate": rate, "none": {}}
        processes.check_agree("run", {"notes": {"options": options}, "long": "a" * 100 + end})

    agree(0.1, "b")
    with pytest.raises(ValueError, match="disagree") as refused:
        agree(0.3, "c")
    assert str(refused.value).startswith(
        f'the processes disagree in their run: long is ...{"a" * 20}c" in process 1, '
        f'...{"a" * 20}b" in process 0; notes.options.rate is 0.3 in process 1, 0.1 in process 0;'
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"processes": 2}, "without coordinator"),
        ({"coordinator": "localhost", "processes": 2, "process": 0}, "address of process 0"),
        ({"coordinator": "localhost:1", "processes": 2, "process": 2}, "process is 2 of 2"),
        ({"coordinator": "localhost:1", "processes": -1, "process": 0}, "processes is -1"),
        ({"coordinator": "localhost:1", "processes": "two", "process": 0}, "processes is 'two'"),
    ],
)
def test_what_names_no_process_is_refused(given, words):
    with pytest.raises((ValueError, TypeError), match=re.escape(words)):
        processes.start(**given)


def test_a_port_that_is_taken_is_said():
    opened = pytest.raises(ValueError, match="its port cannot be opened")
    with socket.create_server(("", 0)) as taken, opened:
        processes.start(f"localhost:{taken.getsockname()[1]}", 2, 0)


def test_one_that_waits_in_vain_says_so():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    code = f"from jaxnn import processes; processes.start('localhost:{port}', 2, 1, timeout=1)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 2
    assert f"not all 2 processes met at localhost:{port} within 1 s" in ended.stderr
