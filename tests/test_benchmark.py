"""The benchmark's command, with planted arms on a clock that only they move; and real cases."""

import dataclasses
import json
import math
import random
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import torch_peer
from experiments.benchmark import __main__ as benchmark
from experiments.benchmark import (
    decoders,
    machine,
    measure,
    models,
    ops,
    report,
    show,
)
from experiments.benchmark.arms import (
    Arm,
    Case,
    LeftOutError,
    compiled,
    cores,
    cotangent,
    precision,
    product,
)
from experiments.benchmark.cases import ACCELERATOR, Sizes, cases
from experiments.benchmark.results import Floors, Result
from jaxnn.models.transformer import gpt2, llama


@pytest.fixture
def planted(monkeypatch, planted_arm):
    """Cases whose arms take the seconds that they are told to, and no time at all."""

    def install(**cases):
        rates = {jnp.float32: 1e9, jnp.bfloat16: 4e9}
        monkeypatch.setattr(
            measure,
            "product",
            lambda size, dtype=jnp.float32: planted_arm(2 * size**3 / rates[dtype])(),
        )
        monkeypatch.setattr(measure, "copy", lambda size: planted_arm(8 * size / 1e9)())
        monkeypatch.setattr(benchmark, "cases", lambda sizes=None: cases)
        nobody = SimpleNamespace(about={}, pids=(), builds=lambda case: {})
        monkeypatch.setattr(benchmark, "working", lambda *_: nullcontext(nobody))
        return cases

    install.arm = planted_arm
    return install


def row_of(out, case):
    """The cells of a case's line in the table."""
    *_, line = (line for line in out.splitlines() if line.startswith(f"| {case} |"))
    return line.strip("| ").split(" | ")[1:]


def left_out():
    raise LeftOutError("it is not installed")


def test_an_arm_that_is_twice_as_slow_shows_the_ratio(planted, tmp_path, capsys):
    arm = planted.arm
    arms = {
        "by hand": arm(0.5, temporary=3_000_000, compile_seconds=0.25, moved=2e8),
        "jax.grad": arm(1.0, temporary=6_000_000, compile_seconds=0.5),
        "jax.grad, unrolled": arm(0.75),
        "PyTorch": arm(4.0),
        "PyTorch, one thread": arm(2.0),
        "PyTorch compiled": arm(0.1),
        "Flax NNX": arm(1.5, temporary=9_000_000),
        "Equinox": arm(1.25),
    }
    planted(
        step=Case("a model", lambda: arms, step=True, flops=1e8),
        op=Case("no model", lambda: {"by hand": arm(1.0), "jax.grad": arm(8.0)}),
    )
    files = {"out": tmp_path / "new", "plot": tmp_path / "b.png"}
    assert benchmark.main(rounds=3, seed=7, **files) == 0
    out = capsys.readouterr().out
    assert f"cores {cores()}, " in out
    assert f"jax {jax.__version__}" in out
    assert "one product of 2048x2048 matrices of float32: 1 GFLOP/s" in out
    assert "  jax.grad" in out
    assert "one copy of 268 MB: 1.0 GB/s" in out
    cells = ["500", "2.00", "1.50", "2.50", "4.00", "0.20", "3", "6", "0.25", "0.50", "20%", "40%"]
    assert row_of(out, "step") == cells
    assert "geometric mean against jax.grad: 2.00" in out
    assert "geometric mean against PyTorch: 4.00" in out

    figures = json.loads((tmp_path / "new" / "7.json").read_text())
    assert figures["about"]["jax"] == jax.__version__
    assert figures["about"]["sizes"] == "full"
    assert figures["geometric_means"] == {
        "jax.grad": 2.0,
        "strongest": 1.5,
        "frameworks": 2.5,
        "PyTorch": 4.0,
        "PyTorch compiled": pytest.approx(0.2),
    }
    step = figures["cases"]["step"]
    assert step["against"]["PyTorch"] == {"arm": "PyTorch, one thread", "ratio": [4.0] * 3}
    assert step["share_of_product_rate"] == pytest.approx(0.2)
    assert step["share_of_copy_rate"] == pytest.approx(0.4)
    assert step["arms"]["jax.grad"]["seconds"] == [1.0] * 3
    assert step["arms"]["by hand"]["temporary_bytes"] == 3_000_000
    assert figures["cases"]["op"]["against"]["jax.grad"]["ratio"] == [8.0] * 3
    assert files["plot"].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"gradient": (1.0, 2.01)}, "its gradient is not jax.grad's: off by 5.0e-03 of scale"),
        ({"result": 1.1}, "its result is not jax.grad's: off by 1.0e-01"),
        ({"gradient": (1.0, math.nan)}, "its gradient is not jax.grad's: off by nan"),
        ({"gradient": (1.0, 2.0, 0.0)}, "its gradient is not jax.grad's: off by inf"),
        ({"gradient": np.float32([1, 2])}, "its gradient is float32, jax.grad's float64"),
    ],
)
def test_an_arm_that_disagrees_is_named_and_not_timed(planted, capsys, other, said):
    arms = {
        "by hand": planted.arm(1),
        "jax.grad": planted.arm(2),
        "PyTorch": planted.arm(1, **other),
    }
    planted(case=Case("", lambda: arms))
    assert benchmark.main(rounds=1) == 1
    out = capsys.readouterr().out
    assert f"PyTorch: DISAGREES, {said}" in out
    assert "DISAGREE, and were not timed: case: PyTorch" in out
    assert row_of(out, "case")[4] == "-"


def test_a_hand_written_gradient_that_disagrees_has_no_ratio(planted, capsys, tmp_path):
    arms = {"by hand": planted.arm(1, result=2.0), "jax.grad": planted.arm(2)}
    planted(case=Case("", lambda: arms, step=True))
    assert benchmark.main(rounds=1, plot=tmp_path / "b.png") == 1
    out = capsys.readouterr().out
    assert "by hand: DISAGREES, its result is not jax.grad's" in out
    assert "geometric mean" not in out


def test_an_arm_that_is_left_out_says_why(planted, capsys):
    arms = {"by hand": planted.arm(1), "jax.grad": planted.arm(1), "PyTorch": left_out}
    planted(case=Case("", lambda: arms))
    assert benchmark.main(rounds=1) == 0
    assert "PyTorch: left out, it is not installed" in capsys.readouterr().out


def test_a_rival_that_fails_is_left_out_and_the_base_is_not(planted, capsys):
    def fails():
        raise RuntimeError("out of memory\nwhile it tried")

    arms = {"by hand": planted.arm(1), "jax.grad": planted.arm(1), "PyTorch": lambda: Arm(fails)}
    known = planted(case=Case("", lambda: arms))
    assert benchmark.main(rounds=1) == 0
    assert "PyTorch: left out, RuntimeError: out of memory\n" in capsys.readouterr().out
    known["case"] = Case("", lambda: arms | {"by hand": lambda: Arm(fails)})
    assert benchmark.main(rounds=1) == 1
    assert "case: FAILED, RuntimeError: out of memory\n" in capsys.readouterr().out


@pytest.mark.parametrize("ended", [RuntimeError, KeyboardInterrupt])
def test_what_ends_one_case_loses_no_other(planted, capsys, tmp_path, ended):
    def fails():
        raise ended("it has ended")

    there = {"by hand": planted.arm(1), "jax.grad": planted.arm(2)}
    planted(
        first=Case("", lambda: there, step=True),
        case=Case("", lambda: there | {"by hand": fails}),
        last=Case("", lambda: there),
    )
    status = benchmark.main(rounds=1, out=tmp_path)
    out = capsys.readouterr().out
    cases = list(json.loads((tmp_path / "0.json").read_text())["cases"])
    if ended is RuntimeError:
        assert (status, cases) == (1, ["first", "last"])
        assert "case: FAILED, RuntimeError: it has ended" in out
        assert "FAILED: case" in out
    else:
        assert (status, cases) == (130, ["first"])
        assert "interrupted: the figures are of the first 1 cases" in out


def test_what_ends_the_run_leaves_the_figures_of_the_cases_before(planted, tmp_path):
    def fails():
        raise TypeError("a mistake in an arm")

    there = {"by hand": planted.arm(1), "jax.grad": planted.arm(2)}
    planted(first=Case("", lambda: there), case=Case("", lambda: there | {"by hand": fails}))
    with pytest.raises(TypeError, match="a mistake in an arm"):
        benchmark.main(rounds=1, out=tmp_path)
    assert list(json.loads((tmp_path / "0.json").read_text())["cases"]) == ["first"]


def test_a_run_that_a_signal_ends_is_no_success(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(benchmark.subprocess, "Popen", lambda command: None)
    monkeypatch.setattr(benchmark, "_waited", lambda process: -9)
    assert benchmark.main(repeat=3, out=tmp_path) == 137
    assert "the run of seed 0 ended with 137, and no other follows" in capsys.readouterr().out


def test_an_interrupted_run_is_waited_for_and_what_there_is_reported(
    planted, monkeypatch, capsys, tmp_path
):
    planted(case=Case("", lambda: {"by hand": planted.arm(1)}))
    replies = [KeyboardInterrupt(), 130]

    class Process:
        def __init__(self, command):
            assert command[-4:] == ["--repeat", "1", "--seed", "0"]
            there = {"by hand": planted.arm(1), "jax.grad": planted.arm(2)}
            planted(case=Case("", lambda: there, step=True))
            benchmark.main(rounds=1, out=tmp_path)

        def wait(self):
            reply = replies.pop(0)
            if isinstance(reply, int):
                return reply
            raise reply

    monkeypatch.setattr(benchmark.subprocess, "Popen", Process)
    assert benchmark.main(repeat=3, out=tmp_path) == 130
    assert not replies
    assert "at least 2.00 times as long by jax.grad" in capsys.readouterr().out


def test_repeated_runs_are_reported_without_older_ones_in_their_folder(
    planted, monkeypatch, capsys, tmp_path
):
    planted(case=Case("", lambda: {"by hand": planted.arm(1), "jax.grad": planted.arm(3)}))
    benchmark.main(rounds=1, seed=7, out=tmp_path)

    def ran(command):
        planted(case=Case("", lambda: {"by hand": planted.arm(1), "jax.grad": planted.arm(2)}))
        benchmark.main(rounds=1, seed=int(command[-1]), out=tmp_path)

    monkeypatch.setattr(benchmark.subprocess, "Popen", ran)
    monkeypatch.setattr(benchmark, "_waited", lambda process: 0)
    capsys.readouterr()
    assert benchmark.main(repeat=2, out=tmp_path) == 0
    out = capsys.readouterr().out
    assert "2 whole runs" in out
    assert "2.00 (2.00)" in out


def test_without_mnist_its_cases_are_left_out_and_the_others_are_not(planted, capsys, tmp_path):
    arms = {"by hand": planted.arm(1), "jax.grad": planted.arm(2)}
    planted(mnist=cases()["mnist-mlp"], case=Case("", lambda: arms))
    assert benchmark.main(rounds=1, out=tmp_path) == 0
    out = capsys.readouterr().out
    assert "by hand: left out, --mnist names no folder" in out
    assert row_of(out, "case")[1] == "2.00"
    assert set(report.read([tmp_path])[0]["cases"]) == {"case"}


def test_a_case_that_was_asked_for_and_not_measured_is_no_success(planted, capsys):
    arms = {"by hand": planted.arm(1), "jax.grad": planted.arm(2)}
    planted(mnist=cases()["mnist-mlp"], case=Case("", lambda: arms))
    assert benchmark.main(case=("case", "mnist"), rounds=1) == 1
    assert "NOTHING was measured of mnist; why is said above" in capsys.readouterr().out


def test_a_run_that_fails_leaves_no_empty_file(planted, tmp_path):
    def fails():
        raise RuntimeError("out of memory")

    planted(case=Case("", lambda: {"by hand": fails}))
    assert benchmark.main(rounds=1, out=tmp_path) == 1
    assert not [*tmp_path.iterdir()]


def test_a_share_is_of_a_product_in_the_same_dtype(planted, capsys, tmp_path):
    arms = {"by hand": planted.arm(1), "jax.grad": planted.arm(1)}
    narrow = Case("", lambda: arms, flops=1e9, dtype=jnp.bfloat16)
    planted(narrow=narrow, wide=narrow._replace(dtype=jnp.float32))
    assert benchmark.main(rounds=1, out=tmp_path) == 0
    out = capsys.readouterr().out
    assert "one product of 2048x2048 matrices of float32: 1 GFLOP/s" in out
    assert "one large product of bfloat16 in turn with them: 4 GFLOP/s" in out
    assert [row_of(out, name)[10] for name in ("narrow", "wide")] == ["25%", "100%"]
    figures = json.loads((tmp_path / "0.json").read_text())["cases"]["narrow"]
    assert figures["dtype"] == "bfloat16"
    assert figures["product_flops_per_second"] == pytest.approx(4e9)


SHORT, LONG = 2.0**-9, 1.0


def test_arms_take_turns_and_short_ones_are_called_more_often(monkeypatch):
    now, calls = [0.0], []

    def run(name, seconds):
        now[0] += seconds
        calls.append(name)

    monkeypatch.setattr(measure, "clock", lambda: now[0])
    runs = {
        "short": Arm(lambda: run("short", SHORT)),
        "long": Arm(lambda: run("long", LONG)),
    }
    seconds = measure.time_in_turns(runs, 4, random.Random(0))
    assert {name: len(values) for name, values in seconds.items()} == {"short": 4, "long": 4}
    assert seconds["short"] == [SHORT] * 4
    turns = "".join(name[0] for name in calls)
    assert turns.startswith("ssl")  # each alone; then short ones after a call that is not timed
    turns = turns.removeprefix("ssl").replace("s" * 27, "S").replace("l", "L")
    assert turns.count("S") == turns.count("L") == 4
    assert {"SL", "LS"} <= {turns[i : i + 2] for i in range(0, 8, 2)}


@pytest.mark.parametrize(
    ("each", "enough", "rounds"),
    [
        ((SHORT, LONG), 0.0, 4),
        ((SHORT, LONG), 4.0, 4),
        ((SHORT, LONG), 10.0, 10),  # of 1.053 seconds
        ((SHORT, SHORT), 10.0, 95),  # of 0.105
        ((0.0, 0.0), 10.0, 100),  # 5000 calls each, of which none counts as shorter than 1e-5
        ((), 10.0, 4),
    ],
)
def test_short_turns_have_more_rounds_than_asked_for(monkeypatch, each, enough, rounds):
    now = [0.0]

    def run(seconds):
        now[0] += seconds

    monkeypatch.setattr(measure, "clock", lambda: now[0])
    arms = {str(i): Arm(partial(run, seconds)) for i, seconds in enumerate(each)}
    found = measure.time_in_turns(arms, 4, random.Random(0), enough)
    assert [len(values) for values in found.values()] == [rounds] * len(each)


@pytest.mark.parametrize("paused", [0, 1, 2])
def test_a_pause_in_the_first_calls_does_not_say_how_often_an_arm_is_called(monkeypatch, paused):
    now, calls = [0.0], [0]

    def run():
        now[0] += SHORT + (LONG if calls[0] == paused else 0)
        calls[0] += 1

    monkeypatch.setattr(measure, "clock", lambda: now[0])
    (turns,) = measure.time_in_turns({"short": Arm(run)}, 3, random.Random(0), 10.0).values()
    assert calls[0] >= 4500  # of the 5120 that ten seconds are
    assert 180 <= len(turns) <= 200  # of 27 calls each
    assert sorted(turns)[len(turns) // 2] == pytest.approx(SHORT)


def test_a_whole_run_gives_a_case_enough_rounds_and_a_quick_one_three(planted, tmp_path):
    planted(short=Case("", lambda: {"by hand": planted.arm(0.5), "jax.grad": planted.arm(0.5)}))
    taken = []
    for options in ({"rounds": 2}, {"quick": True}):
        assert benchmark.main(case=("short",), out=tmp_path, **options) == 0
        arms = json.loads((tmp_path / "0.json").read_text())["cases"]["short"]["arms"]
        taken.append(len(arms["jax.grad"]["seconds"]))
    assert taken == [measure.ENOUGH_SECONDS, 3]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"case": ("gpt-large", "gtp")}, "--case gtp: there are only mlp-small, .*, ladder"),
        ({"case": ()}, "--case has no name; give one or more of mlp-small, .*, ladder"),
        ({"rounds": 0}, "--rounds is 0"),
        ({"out": "file"}, "--out .*file/0.json cannot be written .*; name a file"),
        ({"repeat": 0}, "--repeat is 0"),
        ({"repeat": 2}, "--repeat is for figures that are kept; name a folder"),
        ({"mnist": Path("no/folder")}, "no/folder is not a folder; it must be the one"),
        ({"torch": Path("no/python")}, "--torch no/python cannot be run .*; name the Python"),
    ],
)
def test_what_cannot_be_is_refused_in_words(options, words, tmp_path):
    (tmp_path / "file").touch()
    if "out" in options:
        options = {"out": tmp_path / "file"}
    with pytest.raises(ValueError, match=words):
        benchmark.main(**options)


def test_the_help_says_how_it_is_called_and_names_every_case():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmark", "--help"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    words = done.stdout.replace("│", " ").split()
    assert words[:5] == ["usage:", "python", "-m", "experiments.benchmark", "[-h]"]
    assert set(cases()) <= {word.rstrip(",.") for word in words}


def test_operations_are_counted_as_the_formula_says():
    config = gpt2(vocabulary=256, positions=256, width=256)
    assert decoders.transformer_flops(config, 8, 256) == pytest.approx(46e9, rel=0.01)
    shared = llama(vocabulary=5, positions=3, layers=1, width=4, heads=2, kv_heads=1, hidden=7)
    weights = 4 * 4 + 2 * 4 * 2 + 4 * 4 + 3 * 4 * 7 + 4 * 5
    assert decoders.transformer_flops(shared, 2, 3) == 6 * 2 * 3 * (weights + 2 * 3 * 4)


def test_the_quick_mode_has_cases_that_exist():
    assert {*benchmark.QUICK, *ACCELERATOR} < set(cases())


@pytest.mark.parametrize("quick", [False, True])
def test_what_is_too_large_for_a_cpu_is_run_where_it_is_not_or_asked_for(monkeypatch, quick):
    known = cases(Sizes(16))
    assert not set(ACCELERATOR) & set(benchmark._chosen(known, None, quick))
    assert tuple(benchmark._chosen(known, ACCELERATOR, quick)) == ACCELERATOR
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert set(ACCELERATOR) < set(benchmark._chosen(known, None, quick))


@pytest.mark.parametrize(
    ("backend", "dtype", "asked"),
    [("gpu", "float32", True), ("gpu", "bfloat16", False), ("cpu", "float32", False)],
)
def test_products_of_float32_are_full_ones_on_any_device(monkeypatch, backend, dtype, asked):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    with precision(jnp.dtype(dtype)):
        program = jax.make_jaxpr(lambda x: x @ x)(jnp.ones(2, dtype))
    assert ("HIGHEST" in str(program)) == asked


def test_inputs_are_of_the_dtype_asked_for():
    result, _ = product(4, jnp.bfloat16).run()
    assert result.dtype == jnp.bfloat16
    drawn = cotangent(jax.ShapeDtypeStruct((3,), jnp.bfloat16))
    assert drawn.dtype == jnp.bfloat16


def test_the_machine_is_named():
    about = show.about()
    assert {"device", "platform", "jax", "float32 products"} < set(about)
    assert "\n" not in about["platform"]


@pytest.mark.parametrize(
    "name",
    [
        "mlp-small", "autoencoder-small", "lm-head-256", "attention-t256", "gru-b4",
        "conv-stride2", "max-pool", "average-pool", "rms-norm", "batch-norm", "embedding-256",
    ],
)  # fmt: skip
def test_the_arms_in_jax_have_the_same_shapes(name, monkeypatch):
    monkeypatch.setattr(torch_peer, "installed", False)
    monkeypatch.setattr(models, "frameworks", lambda *_: {})
    shapes = {}

    def traced(function, *inputs):
        out = jax.eval_shape(function, *inputs)
        return Arm(lambda: out)

    for module in (models, ops):
        monkeypatch.setattr(module, "compiled", traced)
    builds = cases(Sizes(16))[name].make()
    (missing,) = cases(Sizes(16))[name].peers().values()
    with pytest.raises(LeftOutError, match="pip install"):
        missing()
    for arm, build in builds.items():
        result, gradients = build().run()
        shapes[arm] = [leaf.shape for leaf in jax.tree.leaves((result, gradients))]
    assert len(shapes) >= 3
    assert all(shape == shapes["by hand"] for shape in shapes.values()), shapes


def test_real_cases_agree_and_are_timed(monkeypatch, capsys):
    monkeypatch.setattr(torch_peer, "installed", False)
    monkeypatch.setattr(measure, "QUICK_PRODUCT_SIZE", 16)
    monkeypatch.setattr(benchmark, "QUICK_SMALL", 16)
    assert benchmark.main(case=("layer-norm", "digits", "ladder"), quick=True) == 0
    out = capsys.readouterr().out
    assert f"PyTorch: left out, {torch_peer.MISSING}" in out
    assert "jax.grad, checkpointed" in out
    assert row_of(out, "layer-norm")


def test_gpt2_in_bfloat16_agrees_and_a_wrong_gradient_of_it_does_not(monkeypatch):
    monkeypatch.setattr(measure, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(models, "frameworks", lambda *_: {})
    products = []

    def recorded(size, dtype):
        products.append(dtype)
        return product(size, dtype)

    monkeypatch.setattr(measure, "product", recorded)
    case = cases(Sizes(16))["gpt2-124m"]

    def make():
        builds = case.make()
        by_hand, params, batch = builds["by hand"].args
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
        half = dataclasses.replace(by_hand.keywords["config"], window=32)
        builds["half seen"] = lambda: compiled(partial(by_hand, config=half), params, batch)
        return builds

    skip = ("jax.grad, only products saved", "PyTorch compiled")
    result = measure.measure(case._replace(make=make), 1, random.Random(0), 16, skip)
    expected = {"by hand", "by hand, recompute", "by hand, block 16", "jax.grad"}
    assert expected <= set(result.seconds)
    assert result.disagree == ("half seen",)
    for form in ("cuDNN attention", "cuDNN attention, checkpointed"):
        assert result.left_out[f"jax.grad, {form}"].startswith("cuDNN is for GPUs, JAX is on")
    assert products == [jnp.bfloat16]
    assert result.share > 0


def test_what_takes_many_seconds_has_fewer_rounds(planted):
    planted(long=Case("", lambda: {"by hand": planted.arm(1)}, most_rounds=2))
    result = measure.measure(benchmark.cases()["long"], 5, random.Random(0), enough=10.0)
    assert len(result.seconds["by hand"]) == 2


def test_a_ratio_is_of_each_round_and_all_are_medians_with_quartiles():
    rounds = {
        "by hand": [1.0, 2.0, 4.0],
        "jax.grad": [4.0, 6.0, 4.0],
        "PyTorch": [3.0, 3.0, 30.0],
        "PyTorch, one thread": [4.0, 4.0, 4.0],
    }
    arms = dict.fromkeys(rounds, Arm(lambda: None, moved=8.0))
    result = Result(Case("", dict, flops=8.0), arms, rounds, {}, (), rate=16.0, busy=None)
    assert result.time("by hand") == (1.5, 2.0, 3.0)
    assert result.ratio("jax.grad") == (2.0, 3.0, 3.5)  # of 4, 3 and 1; of the medians it is 2
    # By ratios of 4, 2 and 1, as it is reported; the other's are 3, 1.5 and 7.5, its time is less.
    assert result.rival("PyTorch") == "PyTorch, one thread"
    assert result.share == 0.25
    assert result.copy_share(Floors(1.0, 16.0)) == 0.25


@pytest.mark.parametrize(
    ("shares", "tries", "kept"),
    [([0.01], 1, 0.01), ([0.4, 0.1], 2, 0.1), ([0.4, 0.2, 0.3], 3, 0.2), ([None], 1, None)],
)
def test_a_busy_machine_is_measured_again_and_said(
    planted, monkeypatch, capsys, shares, tries, kept
):
    planted(case=Case("", lambda: {"by hand": planted.arm(1), "jax.grad": planted.arm(1)}))
    left = list(shares)
    monkeypatch.setattr(machine, "others", lambda before, after: left.pop(0))
    assert benchmark.main(rounds=1) == 0
    assert len(shares) - len(left) == tries
    warned = "warning: others had 20% of the cores' time in the calmest of 3 tries"
    assert (warned in capsys.readouterr().out) == (kept == 0.2)


def stat_of(folder, core, own, beside=100):
    """A folder like /proc of a machine with two cores, of which this process may use the first.

    What a guest uses, the number after the eighth, is among the first's again.
    """
    of_cores = f"cpu0 {' '.join(map(str, core))} {core[0]} 7\ncpu1 {beside} 0 0 0 0 0 0 0 0 0\n"
    (folder / "stat").write_text(f"cpu  9 9 9 9 9 9 9 9 9 9\n{of_cores}intr 5\n")
    for pid, (user, system) in own.items():
        (folder / str(pid)).mkdir(exist_ok=True)
        numbers = f"S 1 {'0 ' * 9}{user} {system} 0"
        (folder / str(pid) / "stat").write_text(f"{pid} (py (thon) x) {numbers}")


def test_what_others_took_of_the_cores_is_what_is_busy_less_our_own(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "PROC", tmp_path)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: {0})
    monkeypatch.setattr(machine.os, "getpid", lambda: 11)
    assert machine.use() is None
    stat_of(tmp_path, [0] * 8, {11: (5, 5), 12: (0, 0)})
    before = machine.use([12])
    # user, nice, system, idle, waiting for a disk, interrupts twice, and stolen by other machines
    stat_of(tmp_path, [50, 0, 10, 20, 5, 0, 5, 10], {11: (35, 10), 12: (10, 5)}, beside=900)
    assert machine.others(before, machine.use([12])) == pytest.approx((75 - 50) / 100)
    assert machine.others(before, before) is None
    # A clock of whole ticks may have given us more than passed.
    stat_of(tmp_path, [1] + 7 * [0], {11: (9, 9), 12: (0, 0)})
    assert machine.others(before, machine.use([12])) == 0
