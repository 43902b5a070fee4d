"""How a step grows: exponents of planted curves, what is counted, the command on small sizes."""

import json
import math
import random
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest

import jaxnn
from experiments import pictures
from experiments.benchmark.arms import AUTODIFF, BY_HAND, Arm, compiled
from experiments.benchmark.decoders import transformer_flops
from experiments.pictures import canvas
from experiments.scaling import __main__ as command
from experiments.scaling import axes, measured, paper, reasons, show
from experiments.scaling.axes import MODELS, Axis
from experiments.scaling.curves import Bend, bends, local_slopes, slope
from experiments.scaling.measured import Form, Measured
from jaxnn.models.transformer import gpt2
from jaxnn.ops.fast import convolution

SIZES = (64, 128, 256, 512, 1024)
SMALL = {"layers": 2, "width": 16, "sequence": 32, "vocabulary": 24, "batch": 2}


@pytest.mark.parametrize("power", [-0.5, 0.0, 1.0, 1.7, 2.0])
def test_a_pure_power_has_its_exponent_and_no_bend(power):
    values = [3e-7 * size**power for size in SIZES]
    assert slope(SIZES, values) == pytest.approx(power)
    assert local_slopes(SIZES, values) == pytest.approx([power] * 4)
    assert not bends(SIZES, values)


def test_an_exponent_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    values = np.exp(rng.normal(size=5)) * np.asarray(SIZES) ** 1.3
    expected = np.polyfit(np.log(SIZES), np.log(values), 1)[0]
    assert slope(SIZES, values) == pytest.approx(expected)


def test_a_bend_is_found_where_it_is():
    values = [max(size, 256) ** 2.0 * 5 for size in SIZES]
    assert bends(SIZES, values) == [pytest.approx(Bend(256, 0, 2, True))]
    values = [size * (1 + (size >= 512)) for size in SIZES]  # a step
    assert [(b.at, round(b.before), round(b.after)) for b in bends(SIZES, values)] == [
        (256, 1, 2),
        (512, 2, 1),
    ]


def test_turns_in_one_direction_are_one_bend():
    values = np.cumprod([1.0, 2**0.5, 2**0.9, 2**1.5, 2**1.6])
    assert bends(SIZES, values) == [pytest.approx(Bend(256, 0.5, 1.5, True))]
    (bend,) = bends(SIZES, np.cumprod([1.0, 1.0, 2**0.5, 2**0.8, 2**1.2]))
    assert (bend.at, bend.after) == (128, pytest.approx(1.2))  # its largest turn
    (bend,) = bends(SIZES, np.cumprod([1.0, 2**0.5, 2**1.2, 2**1.6, 2**1.6]))
    assert (bend.at, bend.after) == (128, pytest.approx(1.6))


def test_a_curve_that_bends_little_by_little_bends_slowly():
    values = np.cumprod([1.0, 2.0, 2**1.2, 2**1.4, 2**1.6])
    (bend,) = bends(SIZES, values)
    assert bend == pytest.approx(Bend(256, 1.0, 1.6, False))
    assert not bends(SIZES, np.cumprod([1.0, 2.0, 2**1.1, 2**1.15, 2**1.2]))


@pytest.mark.parametrize(
    ("sizes", "values", "words"),
    [
        ([1], [2], "1 sizes and 1 values.*two at least"),
        ([1, 2], [2], "2 sizes and 1 values"),
        ([1, 2], [2, 0], r"values are \[2.0, 0.0\].*above 0"),
        ([1, 2], [2, math.nan], "values are.*nan"),
        ([-1, 2], [2, 3], r"sizes are \[-1.0, 2.0\]"),
    ],
)
def test_what_has_no_exponent_is_refused(sizes, values, words):
    with pytest.raises(ValueError, match=words):
        slope(sizes, values)


def products(jaxpr):
    """Multiplications and additions of all products in a program, loops as often as they turn."""
    total = 0
    for equation in jaxpr.eqns:
        name, out = equation.primitive.name, equation.outvars[0].aval
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * out.size * math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            total += 2 * out.size * math.prod(equation.invars[1].aval.shape[:-1])
        times = equation.params["length"] if name == "scan" else 1
        for inner in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(inner, "jaxpr", inner)
            total += times * products(inner) if hasattr(inner, "eqns") else 0
    return total


@pytest.mark.parametrize("name", MODELS)
def test_operations_are_thrice_the_products_of_the_forward(name):
    model = MODELS[name]
    step = axes.program(model, SMALL, BY_HAND)
    params, batch = step.shapes()
    with jaxnn.plain_forms():
        jaxpr = jax.make_jaxpr(partial(model.module.loss, config=step.config))(params, batch)
    counted = paper.operations(step.config, SMALL)
    assert all(counted.values())
    first = counted.get("first convolution", 0)
    assert sum(counted.values()) + first / 2 == 3 * products(jaxpr.jaxpr)
    if name in ("gpt", "llama"):
        assert sum(counted.values()) == transformer_flops(step.config, 2, 32)


def test_operations_of_another_configuration_are_refused():
    with pytest.raises(TypeError, match="config is a dict; operations are counted of"):
        paper.operations({}, SMALL)


def needed(sizes, form, heads=4):
    """What a step of GPT needs as the compiler says, and what is counted."""
    model = MODELS["gpt"]._replace(configure=axes._of_transformer(gpt2, heads=heads))
    step = axes.program(model, sizes, form)
    counted = paper.held(step, sizes, form)
    return compiled(step.step, *step.shapes()).temporary, sum(counted.values())


def test_by_hand_needs_no_more_than_autodiff_and_about_what_is_counted():
    (hand, of_hand), (autodiff, of_autodiff) = (needed(SMALL, form) for form in (BY_HAND, AUTODIFF))
    assert hand < autodiff
    assert of_hand < of_autodiff
    assert 0.7 < of_hand / hand < 1.3
    assert 0.7 < of_autodiff / autodiff < 1.3


def test_blocks_of_queries_make_memory_linear_in_the_sequence():
    sizes = [{**SMALL, "layers": 1, "batch": 1, "sequence": t} for t in (1024, 2048)]
    for form, low, high in ((BY_HAND, 1.7, 2.1), ("by hand, block 64", 0.8, 1.3)):
        pairs = [needed(each, form, heads=8) for each in sizes]
        for values in zip(*pairs, strict=True):  # the compiler's, and what is counted
            assert low < slope((1024, 2048), values) < high, form


def test_runs_of_queries_are_those_of_the_fast_form():
    assert paper.runs(64) == [(64, 64)]
    assert paper.runs(256) == [(128, 128), (128, 256)]
    assert paper.scores(gpt2(), 256) == 128 * 128 + 128 * 256
    assert paper.scores(gpt2(block=64), 256) == 64 * 256


def planted(seconds, temporary, terms, name="sequence", **more):
    """An axis as it would be measured, by hand alone."""
    axis = Axis(SIZES, {**SMALL, name: SIZES[0]})
    form = Form(temporary, terms, seconds, seconds and [[each] for each in seconds])
    notes = [{"runs": 1, "classes": 24}] * 5
    values = {"forms": {BY_HAND: form}, "operations": terms, "parameters": [100] * 5}
    return Measured("GPT", name, axis, **values | {"notes": notes} | more)


LINEAR = [{"weights": 10.0 * size} for size in SIZES]
SQUARE = [{"weights": 1e3 * size, "scores": 1.0 * size**2} for size in SIZES]
STEEP = [{"weights": 3e2 * size, "scores": 1.0 * size**2} for size in SIZES]
FLAT_FIRST = [1e-3 * max(size, 256) for size in SIZES]
FLAT_LAST = [1e-3 * min(size, 256) for size in SIZES]


def test_no_reason_is_given_where_nothing_bends():
    found = planted([1e-6 * size for size in SIZES], [10 * size for size in SIZES], LINEAR)
    assert not reasons.of_time(found)
    assert not reasons.of_memory(found)


def test_a_bend_of_what_is_counted_is_the_reason():
    values = [sum(terms.values()) for terms in STEEP]
    found = planted(values, values, STEEP)
    for reason in (*reasons.of_time(found), *reasons.of_memory(found)):
        assert not reason.bend.sudden
        assert "scores 18% of them at 64, 77% at 1024" in reason.causes[0]


def test_of_a_single_term_no_share_is_told():
    terms = [{"weights": 1e3 * value} for value in FLAT_FIRST]
    (reason,) = reasons.of_memory(planted(None, FLAT_FIRST, terms))
    assert reason.causes == ("so do the bytes counted, 0.00 to 1.00",)


def test_what_a_call_costs_anyway_is_the_reason():
    found = planted(FLAT_FIRST, [10] * 5, LINEAR, floor=0.128)
    (reason,) = reasons.of_time(found)
    assert reason.bend.at == 256
    assert "is 50% of the time at 128, 25% at 512" in str(reason)
    slow = planted(FLAT_FIRST, [10] * 5, LINEAR, floor=1e-3)
    flatter = planted(FLAT_LAST, [10] * 5, LINEAR, floor=0.064)  # it makes a curve only steeper
    for found in (slow, flatter):
        assert str(reasons.of_time(found)[0]).endswith(reasons.UNKNOWN)


def test_products_that_get_faster_are_the_reason():
    for seconds, rates, said in (
        (FLAT_FIRST, [1e9, 2e9, 4e9, 4e9, 4e9], "2 GFLOP/s at 128, 4 at 512"),
        (FLAT_LAST, [1e9, 1e9, 1e9, 2e9, 4e9], "1 GFLOP/s at 128, 2 at 512"),
    ):
        (reason,) = reasons.of_time(planted(seconds, [10] * 5, LINEAR, products=rates))
        assert f"product alone makes {said}" in str(reason)
        other = FLAT_LAST if seconds is FLAT_FIRST else FLAT_FIRST
        (reason,) = reasons.of_time(planted(other, [10] * 5, LINEAR, products=rates))
        assert not reason.causes  # the other way round it would bend


def test_thresholds_of_the_fast_forms_are_the_reason():
    notes = [{"runs": runs, "classes": 24} for runs in (1, 1, 1, 2, 2)]
    (reason,) = reasons.of_memory(planted(None, FLAT_FIRST, LINEAR, notes=notes))
    assert reason.causes == ("queries in 2 runs at 512, in one before",)
    notes = [{"runs": 1, "classes": min(256, size)} for size in SIZES]
    stops = [min(size, 256) for size in SIZES]
    (reason,) = reasons.of_memory(planted(None, stops, LINEAR, "vocabulary", notes=notes))
    assert reason.causes == ("logits of 256 classes at a time, not of all any more",)
    notes = [{"examples": min(256, size)} for size in SIZES]
    (reason,) = reasons.of_memory(planted(None, stops, LINEAR, "batch", notes=notes))
    words = "copies of 256 at a time for a kernel's gradient, not of all examples any more"
    assert reason.causes == (words,)
    all_of_them = [{"examples": size} for size in SIZES]
    (reason,) = reasons.of_memory(planted(None, stops, LINEAR, "batch", notes=all_of_them))
    assert not reason.causes
    notes = [{"examples": 8}] * 5
    (reason,) = reasons.of_memory(planted(None, stops, LINEAR, "batch", notes=notes))
    assert not reason.causes


def test_a_cnns_copies_are_those_of_the_fast_form(monkeypatch):
    """96 numbers of 16 channels at each of 256 places, for 3x3 taps: 2^18 are ten examples'."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    seen = []
    sizes = {"layers": 1, "width": 16, "sequence": 16, "batch": 16}
    step = axes.program(MODELS["cnn"], sizes, BY_HAND)
    assert measured._thresholds(step.config, sizes) == {"examples": 8}
    of = convolution.examples_at_once
    spy = lambda *given: seen.append(of(*given)) or seen[-1]  # noqa: E731
    monkeypatch.setattr(convolution, "examples_at_once", spy)
    jax.eval_shape(step.step, *step.shapes())
    assert 8 in seen


def test_caches_that_are_too_small_are_the_reason(monkeypatch, tmp_path):
    for index, (level, size) in enumerate(((1, "32K"), (2, "512K"), (3, "x"))):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        (folder / "level").write_text(f"{level}\n")
        (folder / "size").write_text(f"{size}\n")
    assert reasons.caches(tmp_path) == {"L2 cache": 2**19}
    monkeypatch.setattr(reasons, "caches", partial(reasons.caches, tmp_path))
    found = planted(FLAT_FIRST, [2**10 * size for size in SIZES], LINEAR)
    assert "0.5 MiB" not in str(reasons.of_time(found)[0])  # 512 KiB at 512 fit
    found = planted(FLAT_FIRST, [2**11 * size for size in SIZES], LINEAR)
    assert "1 MiB at 512 do not fit in the L2 cache of 0.5 MiB" in str(reasons.of_time(found)[0])
    found = planted(FLAT_LAST, [2**11 * size for size in SIZES], LINEAR)
    assert not reasons.of_time(found)[0].causes  # there it would get steeper
    found = planted(FLAT_LAST, [2**12 * size for size in SIZES], LINEAR)
    assert "1 MiB at 256 do not fit in the L2 cache" in str(reasons.of_time(found)[0])


def test_an_axis_that_was_measured_beside_others_says_so():
    found = planted(FLAT_FIRST, [10 * size for size in SIZES], LINEAR)
    for busy, said in ((None, False), (0.1, False), (0.12, True)):
        text = show.report([found._replace(busy=busy)])
        assert ("warning: others had 12% of the cores' time; measure again" in text) is said


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would have been written."""
    figures = []
    monkeypatch.setattr(canvas, "save", lambda figure, path: figures.append(figure) or path)
    return figures


@pytest.mark.parametrize("timed", [True, False])
def test_exponents_stand_at_the_curves(timed, drawn):
    seconds = FLAT_FIRST if timed else None
    found = planted(seconds, [10 * size**2 for size in SIZES], SQUARE)
    pictures.scaling("", "GPT", show.columns([found, found]))
    (figure,) = drawn
    figure.draw_without_rendering()
    assert len(figure.axes) == (4 if timed else 2)
    memory = {text.get_text(): text.get_color() for text in figure.axes[-1].texts}
    counted = slope(SIZES, [sum(terms.values()) for terms in SQUARE])
    assert memory == {"$T^{2.00}$": canvas.BLUE, f"$T^{{{counted:.2f}}}$": canvas.GREY}
    rings = [line for line in figure.axes[0].get_lines() if line.get_markersize() == 12]
    assert [line.get_xdata()[0] for line in rings] == ([256] if timed else [])
    if timed:
        assert f"$T^{{{slope(SIZES, seconds):.2f}}}$" in {
            t.get_text() for t in figure.axes[0].texts
        }
        assert "bends at 256" in " ".join(figure.axes[0].get_xlabel().split())


def test_sizes_and_forms_of_an_axis_are_timed_together(monkeypatch):
    """Planted programs, whose times are powers: seconds and rates end up where they belong."""
    axis = Axis((8, 16, 32), {**SMALL, "sequence": 8}, ("recompute",))

    def arm(function, *inputs):
        return Arm(lambda: ((), ()), temporary=sum(leaf.size for leaf in jax.tree.leaves(inputs)))

    def turns(arms, rounds, order):
        assert rounds == 3
        times = {"floor": 1e-4, "product (16, 16, 64)": 1e-3}
        times |= {"product (32, 16, 64)": 1e-3, "product (64, 16, 64)": 1e-3}
        of = {BY_HAND: 2.0, AUTODIFF: 1.0, "by hand, recompute": 0.5}
        times |= {f"{form} {t}": t**power for form, power in of.items() for t in axis.sizes}
        assert set(arms) == set(times)
        return {name: [times[name]] * rounds for name in arms}

    monkeypatch.setattr(measured, "compiled", arm)
    monkeypatch.setattr(measured, "time_in_turns", turns)
    found = measured.measure(MODELS["gpt"], "sequence", axis, 3, random.Random(0))
    of = {name: slope(axis.sizes, form.seconds) for name, form in found.forms.items()}
    assert of == pytest.approx({BY_HAND: 2.0, AUTODIFF: 1.0, "by hand, recompute": 0.5})
    assert found.floor == 1e-4
    assert found.products == pytest.approx([2 * n * 16 * 64 / 1e-3 for n in (16, 32, 64)])
    rows = show.table([found]).splitlines()
    assert rows[2].startswith("| GPT | sequence 8 to 32 | by hand | 2.00 | 2.00 2.00 | 1.")
    assert "rate" in show.report([found])
    json.dumps(show.figures([found]))


def test_the_command_writes_a_table_a_picture_and_json(monkeypatch, tmp_path, capsys):
    tiny = Axis((8, 16), {**SMALL, "sequence": 8})
    monkeypatch.setitem(MODELS, "gpt", MODELS["gpt"]._replace(axes={"sequence": tiny}))
    out, file = tmp_path / "out", tmp_path / "figures.json"
    assert command.main(model=("gpt",), memory_only=True, json=file, out=out) == 0
    assert (out / "gpt.png").read_bytes()[1:4] == b"PNG"
    assert (out / "scaling.md").read_text() in capsys.readouterr().out + "\n"
    (axis,) = json.loads(file.read_text())["axes"]
    form = axis["forms"][BY_HAND]
    assert form["seconds"] is None
    assert form["memory_slope"] == pytest.approx(slope((8, 16), form["temporary_bytes"]))
    assert 0 < form["memory_slope"] < 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "bert"], "--model bert: there are only gpt, llama, lstm, cnn"),
        (["--axis", "depth"], "--axis depth: there are only layers, width, sequence"),
        (["--axis"], "--axis has no name; give one or more of layers"),
        (["--model", "cnn", "--axis", "vocabulary"], "cnn has no such axis; name another"),
        (["--rounds", "0"], "--rounds is 0; it must be finite and above 0"),
        (["--json", "/dev/null/all.json"], "--json /dev/null/all.json cannot be written"),
    ],
)
def test_mistakes_on_the_command_line_are_said(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scaling", *words])
    with pytest.raises(SystemExit) as ended:
        command.cli.run(command.main)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_help_names_what_there_is():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.scaling", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "python -m experiments.scaling" in done.stdout
    assert all(name in done.stdout for name in (*MODELS, *command.NAMES, "--memory-only"))


def test_quickly_gpt_alone_is_measured_at_three_sizes():
    chosen = command._chosen(None, None, quick=True)
    assert list(chosen) == ["gpt"]
    assert all(len(axis.sizes) == 3 for axis in chosen["gpt"].values())
    whole = command._chosen(None, ("vocabulary", "layers"), quick=False)
    assert {name: list(of) for name, of in whole.items()} == {
        "gpt": ["layers", "vocabulary"],
        "lstm": ["layers"],
        "cnn": ["layers"],
    }
