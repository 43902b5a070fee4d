"""The benchmark's command for a GPU, with planted arms on a clock that only they move."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark import attention_check, decoders, gpu
from experiments.benchmark.arms import Case, LeftOutError
from experiments.benchmark.cases import ACCELERATOR, Sizes, cases
from experiments.benchmark.worker import Worker
from jaxnn.models.transformer import gpt2
from jaxnn.ops.fast import cudnn_attention

# Not to be had where the command is meant to run.
ABSENT = ("tyro", "sklearn", "matplotlib", "pytest", "filelock", "tensorboardX", "optuna", "grain")


@pytest.fixture
def planted(monkeypatch, planted_arm):
    """A plan of one case, whose arms take the seconds that they are told to."""

    def install(arms, wanted=(...,), **case):
        known = {"case": Case("what it is", lambda: arms, **case)}
        monkeypatch.setattr(gpu, "cases", lambda sizes: known)
        monkeypatch.setattr(gpu, "PLAN", (("case", wanted, 0.0),))
        monkeypatch.setattr(gpu, "check_attention", lambda small: [("it is right", True)])
        monkeypatch.setattr(gpu, "product", lambda size, dtype: planted_arm(2 * size**3 / 1e9)())
        monkeypatch.setattr(gpu, "copy", lambda size: planted_arm(8 * size / 1e9)())
        monkeypatch.setattr(gpu, "working", lambda *_: contextlib.nullcontext(Worker(None)))

    install.arm = planted_arm
    return install


@pytest.fixture
def called(tmp_path, monkeypatch, capsys):
    """Call it: its status, what it says, and its figures."""
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")

    def call(*words):
        status = gpu.main([*words, "--json", str(tmp_path / "new" / "gpu.json")])
        figures = json.loads((tmp_path / "new" / "gpu.json").read_text())
        return status, capsys.readouterr().out, figures

    return call


def none(*_):
    raise ValueError("--torch cannot be run")


def test_an_arm_has_its_tokens_its_share_and_its_ratio(planted, called, monkeypatch):
    arms = {
        "by hand": planted.arm(0.5, temporary=3_000_000, compile_seconds=2.0),
        "jax.grad": planted.arm(1.0),
    }
    planted(arms, flops=1e8, tokens=100)
    monkeypatch.setattr(gpu, "working", none)
    status, out, figures = called("--rounds", "2")
    assert status == 0
    assert "of bfloat16: 0.001 TFLOP/s; one copy: 0.001 TB/s" in out
    assert "PyTorch: ValueError: --torch cannot be run" in out
    line = "  by hand: 500 ms, 200 tokens/s, 20.0% of product, 3 MB, compiled in 2.0 s\n"
    assert out.count(line) == 2
    assert (
        "  jax.grad: 1000 ms, 100 tokens/s, 10.0% of product, 2.00 times as long as by hand" in out
    )
    assert "all agree" in out
    found = figures["cases"]["case"]["arms"]["jax.grad"]
    assert found["ratio"] == pytest.approx(2.0)
    by_hand = figures["cases"]["case"]["arms"]["by hand"]
    assert by_hand["tokens_per_second"] == pytest.approx(200.0)
    assert by_hand["share_of_product_rate"] == pytest.approx(0.2)
    assert len(found["seconds"]) == 2
    assert figures["about"]["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.5"
    assert figures["attention"] == ["it is right"]


def test_a_ratio_to_what_was_timed_before_says_so(planted, called, monkeypatch):
    arms = {"by hand": planted.arm(0.5), "jax.grad": planted.arm(1.0), "Equinox": planted.arm(1.5)}
    planted(arms)
    plan = [("case", ("by hand", "jax.grad"), 0.0), ("case", (..., "Equinox"), 0.0)]
    monkeypatch.setattr(gpu, "PLAN", plan)
    _, out, _ = called()
    first, second = (words.splitlines() for words in out.split("  in turns:\n")[1:])
    assert "  jax.grad: 1000 ms, 2.00 times as long as by hand" in first
    assert "  Equinox: 1500 ms, 3.00 times as long as by hand before" in second


def fails():
    raise MemoryError("there is no more")


def missing():
    raise LeftOutError("it is not installed")


def test_no_failure_ends_the_run(planted, called):
    arms = {
        "by hand": planted.arm(1.0),
        "jax.grad": fails,
        "Flax NNX": missing,
        "half": planted.arm(1.0, gradient=(1.0, 1.0)),
        "nothing": planted.arm(1.0, result=np.nan),
        "last": planted.arm(3.0),
    }
    planted(arms)
    status, out, figures = called()
    assert status == 1
    assert "  jax.grad: left out, MemoryError: there is no more" in out
    assert "  Flax NNX: left out, it is not installed" in out
    assert "its gradient is not that by hand: off by 5.0e-01 of scale" in out
    assert "  last: 3000 ms, 3.00 times as long as by hand" in out
    assert "PyTorch: left out" in out
    assert [words.partition(",")[0] for words in figures["wrong"]] == [
        "case: half",
        "case: nothing",
    ]
    assert {*figures["cases"]["case"]["arms"]} == {"by hand", "last"}


def test_what_is_by_hand_must_not_fail_and_nor_must_a_part(planted, called, monkeypatch):
    planted({"by hand": fails, "jax.grad": planted.arm(1.0)})
    monkeypatch.setattr(gpu, "check_attention", lambda small: fails())
    status, out, figures = called()
    assert status == 1
    assert "attention: FAILED, MemoryError: there is no more" in out
    assert figures["wrong"] == ["attention failed", "case: by hand failed"]
    assert "jax.grad: 1000 ms" in out


def test_an_attention_that_is_wrong_is_told(planted, called, monkeypatch):
    planted({"by hand": planted.arm(1.0)})
    monkeypatch.setattr(gpu, "check_attention", lambda small: [("WRONG", False)])
    assert called()[0] == 1


def test_what_there_is_no_time_for_is_named(planted, called, monkeypatch):
    planted({"by hand": planted.arm(1.0), "jax.grad": planted.arm(1.0)})
    later = iter(range(0, 1000, 25))
    monkeypatch.setattr(gpu.time, "monotonic", lambda: next(later))
    monkeypatch.setattr(gpu, "PLAN", (("case", (...,), 10.0), ("case", (...,), 10.0)))
    status, out, figures = called("--minutes", "1.2")
    assert status == 0
    assert "by hand: 1000 ms" in out
    assert "no time for: case: jax.grad, " in out
    assert figures["skipped"][0] == "case: jax.grad"


def test_arms_come_in_the_order_that_is_wanted_and_once():
    builds = dict.fromkeys(("a", "b", "c", "d"))
    into = {"arms": {"d": {}}, "left_out": {}}
    assert [*gpu._in_order(builds, ("c", "x", ..., "a"), into)] == ["c", "a", "b"]
    assert [*gpu._in_order(builds, ("b",), into)] == ["b"]


def test_the_plan_is_of_cases_that_exist():
    known = cases(Sizes(16))
    assert {name for name, *_ in gpu.PLAN} <= set(known)
    assert set(ACCELERATOR) <= {name for name, *_ in gpu.PLAN}
    assert all(known[name].tokens for name in known if name.startswith("gpt2-124m"))
    for name in ACCELERATOR:
        assert known[name].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("option", "word", "said"),
    [
        ("--small", "0", "0 must be a whole number above 0 and at most 16"),
        ("--small", "17", "17 must be a whole number above 0 and at most 16"),
        ("--minutes", "-1", "-1 must be a number above 0"),
        ("--rounds", "1.5", "1.5 must be a whole number above 0"),
        ("--json", "/", "/ is a folder; it must be a file's path"),
        ("--json", "/dev/null/file", "--json /dev/null/file cannot be written"),
    ],
)
def test_what_cannot_be_is_refused_in_words(option, word, said, capsys):
    with pytest.raises(SystemExit) as ended:
        gpu.main([option, word])
    assert ended.value.code == 2
    assert f"{option}" in (err := " ".join(capsys.readouterr().err.split()))
    assert said in err


def test_an_interrupted_run_has_what_was_measured_before(planted, called):
    def interrupted():
        raise KeyboardInterrupt

    planted({"by hand": planted.arm(1.0), "jax.grad": interrupted})
    status, out, figures = called()
    assert status == 130
    assert "interrupted" in out
    assert list(figures["cases"]["case"]["arms"]) == ["by hand"]


def test_it_runs_where_little_is_installed(tmp_path):
    """Nothing that is absent there is imported, the attention is right, and the rest is skipped."""
    program = f"""
import sys
class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError("No module named " + name, name=name)
sys.meta_path.insert(0, Absent())
from experiments.benchmark import attention_check, gpu
attention_check.ASKED = attention_check.ASKED[:1]
sys.exit(gpu.main(["--small", "16", "--minutes", "0.0001", "--rounds", "1"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    assert done.stdout.count("no cuDNN: off by") == 1
    assert "no time for: gpt2-124m, " in done.stdout


def test_the_check_of_attention_sees_a_wrong_one(monkeypatch):
    monkeypatch.setattr(attention_check, "ASKED", attention_check.ASKED[1:2])
    ((line, right),) = attention_check.check_attention(32)
    assert right
    assert "T 32, S 32" in line
    true = cudnn_attention.attention_bwd

    def scaled(residuals, dy, **static):
        dq, *others = true(residuals, dy, **static)
        return (1.05 * dq).astype(dq.dtype), *others

    monkeypatch.setattr(cudnn_attention, "attention_bwd", scaled)
    monkeypatch.delitem(vars(attention_check.attention), "fast", raising=False)
    ((line, right),) = attention_check.check_attention(32)
    assert not right
    assert line.startswith("WRONG, T 32")


def test_a_whole_step_moves_its_weights():
    config = gpt2(vocabulary=32, positions=8, layers=1, width=4, heads=2)
    builds = decoders.gpt2_whole_step(2, 8, config).make()
    arm = builds["by hand"]()
    first, _ = arm.run()
    again, _ = arm.run()  # of the first step, whatever came after: it is compared
    assert first.dtype == jnp.bfloat16
    assert float(first) == float(again) == pytest.approx(np.log(32), rel=0.1)
    assert arm.compile_seconds > 0
    with pytest.raises(LeftOutError, match="cuDNN is for GPUs"):
        builds["jax.grad, cuDNN attention"]()
