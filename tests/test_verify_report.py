"""Reports made by hand: their text, JSON and page say what is in them, and stay readable."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from jaxnn.verify import report
from jaxnn.verify.findings import Diagnosis, Disagreement, LeafReport, Precision
from jaxnn.verify.report import UNTRIED, Report, to_html, to_json

LADDER = tuple((10.0**-k, 0.25 + 100.0**-k) for k in range(2, 8))
WORST = Disagreement(
    (1, 3), 1.0, 0.25, 0.2500001, 0.25, 3e-9, 0.1, 0.4, False, LADDER, "autodiff is right: verdict"
)
FACTOR = Diagnosis("factor", "4 times too large: the batch size")
HEAT = ((0.0, 0.0, 0.0, 3.0), (0.0, 0.0, 0.0, 0.3), (0.0, 0.0, 0.0, 0.03))
GOOD = LeafReport(
    "layers[0].b", (3, 4), "bfloat16", "pass", scale=2.0, difference=2e-15, tolerance=2e-10,
    sees=1.5e-10, directions=2, precision=Precision(2e-3, 1e-3, 4e-2),
)  # fmt: skip
BAD = replace(
    GOOD, path="layers[0].w", status="fail", difference=6.0, wrong=3, where="[:, 3]", worst=WORST,
    diagnosis=FACTOR, heat=HEAT, sees=2.5e-10, messages=("a message about w",),
)  # fmt: skip
SKIPPED = LeafReport("scale", (), "float32", "skipped", messages=("skipped: frozen by design",))
REPORT = Report(
    "model net, Config()", 0.5, (GOOD, BAD, SKIPPED), (), 1.25,
    chain="the rule of op conv is wrong",
    coverage=("class 3 never occurs", "b is all zero", "batch equals", "no mask", "five", "six"),
    elsewhere=("vmap differs by 1e-3",), seed=7,
    rules=("custom_vjp f (x.py:1): replaced",), command="python -m jaxnn.verify x.py --seed 7",
)  # fmt: skip


def line_with(report, words):
    (line,) = [line for line in str(report).splitlines() if words in line]
    return line


def test_the_text_of_a_failure():
    assert str(REPORT).splitlines() == [
        "FAIL         model net, Config(): 1 of 3 leaves, 1 skipped, largest difference "
        "3.0e+00 of the scale, 1.25 s",
        "  likely cause: 4 times too large: the batch size",
        "  loss 0.5 in float64, seed 7",
        "  leaf         shape          status   scale     diff/scale  sees     error (autodiff)",
        "  layers[0].w  bfloat16[3,4]  fail     2.00e+00  3.0e+00     2.5e-10  2e-03 (1e-03)",
        "  scale        float32[]      skipped  -         -           -        -",
        "  layers[0].b  bfloat16[3,4]  pass     2.00e+00  1.0e-15     1.5e-10  2e-03 (1e-03)",
        "  layers[0].w: a message about w",
        "  layers[0].w: 3 of 12 entries differ by more than 2.0e-10; they fill [:, 3]",
        "      at [1, 3]: hand-written        1",
        "                 autodiff            0.25",
        "                 forward mode        0.2500001",
        "                 finite differences  0.25 +- 3e-09",
        "      autodiff is right: verdict",
        "  scale: skipped: frozen by design",
        "  chain: the rule of op conv is wrong",
        "  rule: custom_vjp f (x.py:1): replaced",
        "  cannot see: class 3 never occurs; b is all zero; batch equals; no mask; and 2 more",
        "  elsewhere: vmap differs by 1e-3",
        "  again: python -m jaxnn.verify x.py --seed 7",
    ]


def test_a_pass_is_short_and_says_what_it_could_not_see():
    report = replace(REPORT, leaves=(GOOD, SKIPPED), chain="", elsewhere=())
    assert report
    text = str(report)
    assert text.startswith("PASS         model net, Config(): 2 leaves, 1 skipped, largest")
    assert "cannot see: class 3" in text
    assert "again:" not in text
    assert len(text.splitlines()) == 8
    alone = replace(report, leaves=(SKIPPED,))
    assert "nothing compared" in str(alone)
    assert not alone
    assert alone.status == "inconclusive"
    bare = replace(GOOD, dtype="float64", precision=None, sees=None)
    assert "error" not in str(replace(report, leaves=(bare,)))  # no column of dashes alone


def test_a_cause_that_is_shared_is_said_once():
    other = replace(BAD, path="v")
    assert str(replace(REPORT, leaves=(BAD, other))).count("4 times too large") == 1
    differs = replace(other, diagnosis=Diagnosis("sign", "the sign is flipped"))
    text = str(replace(REPORT, leaves=(BAD, differs)))
    assert "layers[0].w: likely cause: 4 times too large" in text
    assert "v: likely cause: the sign is flipped" in text
    text = str(replace(REPORT, leaves=(BAD, replace(other, diagnosis=None))))
    assert "layers[0].w: likely cause: 4 times" in text
    doubtful = replace(differs, status="inconclusive")
    text = str(replace(REPORT, leaves=(BAD, doubtful)))
    assert "  likely cause: 4 times" in text
    assert "v: likely cause: the sign" in text


@pytest.mark.parametrize("leaves", [(BAD,), (replace(BAD, shape=(), path="p"),), (BAD,) * 60])
def test_lines_fit_a_terminal(leaves):
    long = "words and more words of a message that somebody else thought of " * 4
    leaves = tuple(replace(leaf, messages=(long,)) for leaf in leaves)
    report = replace(
        REPORT, leaves=leaves, problems=(long,), chain=long, coverage=(long,) * 6, elsewhere=(long,)
    )
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) < 300
    assert " ".join(str(report).split()).count(long.strip()) >= 7
    hidden = f"and {len(leaves) - 16} more leaves: {len(leaves) - 16} fail"
    assert (hidden in str(report)) == (len(leaves) > 16)


def test_the_worst_of_many_leaves_are_shown_first():
    many = tuple(replace(GOOD, path=f"p{i}") for i in range(40))
    text = str(replace(REPORT, leaves=(*many, BAD)))
    assert "layers[0].w: 3 of 12" in text
    assert "and 25 more leaves: 25 pass" in text


def test_values_that_differ_late_are_printed_with_digits_enough():
    close = replace(WORST, manual=0.25 + 2.0**-40)
    lines = str(replace(REPORT, leaves=(replace(BAD, worst=close),)))
    assert "0.25000000000090949" in lines
    kink = replace(REPORT, leaves=(replace(BAD, worst=replace(WORST, kink=True, forward=None)),))
    assert "(a kink: left 0.1, right 0.4)" in line_with(kink, "finite differences")
    assert "forward mode" not in str(kink)


def test_odd_leaves_have_a_summary():
    silent = replace(BAD, difference=None, messages=(), worst=None, where="[0]")
    text = str(replace(REPORT, leaves=(silent,)))
    assert "layers[0].w: where: [0]" in text
    assert "1 of 1 leaf" in text
    scalar = replace(BAD, shape=(), wrong=1, worst=replace(WORST, index=()))
    assert "      hand-written        1" in str(replace(REPORT, leaves=(scalar,)))
    every = replace(BAD, wrong=12, where="every entry")
    assert "they fill" not in str(replace(REPORT, leaves=(every,)))
    empty = Report("f", None, (), ("it raised",), 0.0)
    assert str(empty).splitlines()[1:] == ["  problem: it raised"]


def test_json_holds_every_field_and_what_json_cannot():
    heat = ((math.nan, math.inf, -math.inf),)
    content = json.loads(to_json([replace(REPORT, leaves=(replace(BAD, heat=heat),))]))
    assert content["version"] == 3
    (report,) = content["reports"]
    assert (report["status"], report["seed"]) == ("fail", 7)
    (leaf,) = report["leaves"]
    assert leaf["heat"] == [["nan", "inf", "-inf"]]
    assert leaf["diagnosis"] == {"cause": "factor", "text": FACTOR.text}
    assert leaf["worst"]["ladder"] == [list(step) for step in LADDER]
    assert leaf["precision"]["allowed"] == 4e-2


class Balanced(HTMLParser):
    """Fails on a tag that is not closed in order; keeps what is said and used."""

    def __init__(self, page):
        super().__init__()
        self.open, self.text, self.tags, self.attributes = [], "", [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def pictures(page):
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def test_the_page_says_all_that_the_text_says():
    page = Balanced(to_html([REPORT]))
    for words in (
        "1 failed", "FAIL".lower(), "4 times too large", "the rule of op conv", "six", "frozen by",
        "vmap differs", "--seed 7", "they fill [:, 3]", "0.2500001", "autodiff is right: verdict",
        "a message about w", "2e-03 (1e-03)", "7.5e-01", "custom_vjp f (x.py:1): replaced",
    ):  # fmt: skip
        assert words in page.text, words
    assert ("class", "report") in page.attributes
    assert ("open", None) in page.attributes
    assert ("open", None) not in Balanced(to_html([replace(REPORT, leaves=(GOOD,))])).attributes


def test_the_page_needs_nothing_from_elsewhere_and_escapes_what_it_is_given():
    evil = "<script>alert('x')</script>\"&"
    leaf = replace(
        BAD, path=evil, where=evil, messages=(evil,), dtype=evil, diagnosis=Diagnosis(evil, evil),
        worst=replace(WORST, verdict=evil),
    )  # fmt: skip
    report = Report(
        evil, 0.5, (leaf, replace(leaf, diagnosis=None)), (evil,), 1.0, evil, (evil,), (evil,),
        command=evil,
    )  # fmt: skip
    page = Balanced(to_html([report, report]))
    assert page.text.count(evil) >= 2 * 14
    assert "script" not in page.tags
    assert not {"link", "img", "iframe", "object"} & set(page.tags)
    assert not [value for name, value in page.attributes if name in ("src", "href")]
    assert "url(" not in to_html([report])
    assert "@import" not in to_html([report])


def test_a_notebook_shows_what_the_page_does_and_nothing_around_it_changes():
    cell, page = REPORT._repr_html_(), to_html([REPORT])
    assert cell[cell.index("<details") : cell.index("</details>")] in page
    assert not {"html", "head", "body", "main", "h1"} & set(Balanced(cell).tags)
    (style,) = re.findall(r"<style>(.*?)</style>", cell, re.DOTALL)
    assert style.strip().startswith(".jaxnn-verify {")
    depth = 0  # every rule lies inside the first one
    for at, letter in enumerate(style.strip(), 1):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        assert depth or at <= len(".jaxnn-verify ") or at == len(style.strip())
    assert 'class="jaxnn-verify"' in page
    passed = replace(REPORT, leaves=(GOOD,))._repr_html_()
    assert ("open", None) not in Balanced(passed).attributes


@pytest.mark.parametrize("untried", UNTRIED)
def test_in_what_ways_it_was_not_run_comes_last(untried):
    late = (f"gain=2.0: {untried}: of 700 operations", "x is all one", "y is all one")
    assert "cannot see: x is all one; y is all one; gain=" in str(replace(REPORT, coverage=late))
    page = Balanced(to_html([replace(REPORT, coverage=late)])).text
    assert page.index("y is all one") < page.index(untried)
    source = (Path(report.__file__).parent / "coverage.py").read_text()
    assert untried in source  # where they are written


def test_the_heat_map_is_where_the_leaf_is_wrong():
    heat, _ = pictures(to_html([REPORT]))
    cells = heat.findall("rect")[:12]
    looks = np.array([cell.get("class") for cell in cells]).reshape(3, 4)
    assert (looks[:, 3] == "hot").all()
    assert (looks[:, :3] == "same").all()
    places = np.array([[float(cell.get(at)) for at in "yx"] for cell in cells]).reshape(3, 4, 2)
    assert (np.diff(places[:, :, 0], axis=0) > 0).all()  # rows go down, columns to the right
    assert (np.diff(places[:, :, 1], axis=1) > 0).all()
    depths = [float(cell.get("style").removeprefix("fill-opacity:")) for cell in cells[3::4]]
    assert depths[0] > depths[1] > depths[2]
    assert [cell.find("title").text for cell in cells[3::4]] == ["3.0e+00", "3.0e-01", "3.0e-02"]
    labels = [text.text for text in heat.findall("text")]
    assert labels == [
        "0",
        "3",
        "axis 1",
        "0",
        "2",
        "axis 0",
        "agrees",
        "1e-2",
        "1e-1",
        "1e0",
        "1e1",
    ]


def test_the_convergence_plot_falls_for_the_side_that_is_right():
    _, plot = pictures(to_html([REPORT]))
    circles = plot.findall("circle")[: len(LADDER)]
    squares = [rect for rect in plot.findall("rect") if rect.get("class") == "autodiff"]
    manual = [float(circle.get("cy")) for circle in circles]
    autodiff = [float(square.get("y")) for square in squares[: len(LADDER)]]
    assert max(manual) - min(manual) < 2  # SVG's y grows downward
    assert autodiff == sorted(autodiff)
    assert autodiff[-1] - autodiff[0] > 100
    labels = [text.text for text in plot.findall("text")]
    for label in ("step h", "distance", "1e-7", "1e-2", "to hand-written", "to autodiff"):
        assert label in labels


@pytest.mark.parametrize(
    "values",
    [(0.0, 0.0), (math.nan, 1.0), (math.inf, 0.0), (1e308, -1e308), (5e-324, 0.0), (1e300, 1e-300)],
)
@pytest.mark.parametrize("shape", [(), (1,), (2, 1, 3)])
def test_pictures_of_odd_numbers_stay_inside_their_frames(values, shape):
    manual, autodiff = values
    ladder = tuple((0.03 * 10.0**-k, autodiff) for k in range(6))
    worst = replace(WORST, manual=manual, autodiff=autodiff, ladder=ladder)
    leaf = replace(
        BAD, shape=shape, scale=abs(autodiff), worst=worst, heat=((*values, 1.0, 1e-30),)
    )
    page = to_html([replace(REPORT, leaves=(leaf,))])
    Balanced(page)
    for svg in pictures(page):
        width, height = map(float, svg.get("viewBox").split()[2:])
        for item in svg.iter():
            x, y = (item.get("cx", item.get("x")), item.get("cy", item.get("y")))
            if x is not None:
                assert 0 <= float(x) <= width
                assert 0 <= float(y) <= height
