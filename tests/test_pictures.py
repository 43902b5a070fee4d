"""Pictures say what they should: lines, labels, axes and titles, in ordinary and odd cases."""

import contextlib
import re
import warnings
from itertools import combinations

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from experiments import pictures
from experiments.pictures import canvas

NAN = float("nan")
EPOCHS = np.arange(1, 41)
FALLING = 2 * np.exp(-EPOCHS / 6) + 0.05
HELD_OUT = 2 * np.exp(-EPOCHS / 6) + 0.06
ACCURACY = 1 - np.exp(-EPOCHS / 4)
IMAGES = np.random.default_rng(0).random((40, 64))
LABELS = np.arange(40) % 10
WAYS = {
    "by hand": np.linspace(-1, 1, 9),
    "jax.grad": np.linspace(-1, 1, 9),
    "numerical": np.linspace(-1, 1, 9) + 3e-10,
    "PyTorch": np.linspace(-1, 1, 9) + 1e-16,
}
ENTRIES = ["w1"] * 6 + ["b1"] * 3
SCALES = {
    "linear, N(0, 1)": 10.0**EPOCHS,
    "linear, times 0.01": 10.0**-EPOCHS,
    "linear, times sqrt(1/100)": 1 + 0.01 * EPOCHS,
    "ReLU, times sqrt(1/100)": 0.7**EPOCHS,
    "ReLU, times sqrt(2/100)": 1 - 0.001 * EPOCHS,
}


TRIALS = [
    (FALLING[:3], {"optimizer": "adam", "learning_rate": 1e-3}, "pruned"),
    ([NAN], {"optimizer": "lion", "learning_rate": 1e-1}, "diverged"),
    (FALLING[:20], {"optimizer": "nadam", "learning_rate": 1e-2}, "finished"),
    (HELD_OUT[:20], {"optimizer": "sgd", "learning_rate": 2e-3}, "finished"),
]


@pytest.fixture
def figures(monkeypatch):
    """The figures that were drawn, each drawn once and not written."""
    drawn = []

    def keep(figure, path, dpi):
        FigureCanvasAgg(figure).draw()
        drawn.append(figure)

    monkeypatch.setattr(Figure, "savefig", keep)
    monkeypatch.setattr(canvas.files, "replaced", contextlib.nullcontext)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield drawn


def names_at_lines(ax):
    """The names beside an axis, by the colour they have in common with their line."""
    lines = {line.get_color(): line for line in ax.get_lines()}
    return {text.get_text(): lines[text.get_color()] for text in ax.texts}


def message(figure):
    return " ".join(figure.get_suptitle().split())


def read_by(labels, wrong):
    p = np.full((len(labels), 10), 0.02)
    p[np.arange(len(labels)), labels] = 0.8
    for i in range(wrong):
        p[i] = np.roll(p[i], 3)
    return p


def draw_moons(losses):
    x, y = np.meshgrid(np.linspace(-2, 2, 20), np.linspace(-2, 2, 20))
    p = 1 / (1 + np.exp(-x))
    return pictures.moons("", losses, np.eye(2).repeat(5, 0), np.arange(10) % 2, (x, y), p)


def rates(checkers):
    """A dtype that a checker does not take has no number."""
    return {
        name: {"float64": (1.0, 0.0), "float32": (0.9, 0.1), "bfloat16": (NAN, NAN)}
        for name in checkers
    }


SLIDES = {
    "curves": lambda: pictures.curves("", FALLING, HELD_OUT, ACCURACY),
    "curves of the best": lambda: pictures.curves("", FALLING, HELD_OUT, ACCURACY, 30),
    "trials": lambda: pictures.trials("", TRIALS, 2),
    "trials, one alone": lambda: pictures.trials("", TRIALS[2:3], 0),
    "curves of one epoch": lambda: pictures.curves("", [1.7], [1.7], [0.3]),
    "curves of a run that diverged": lambda: pictures.curves("", [2, NAN], [2, np.inf], [0.3, 0.1]),
    "curves of no number": lambda: pictures.curves("", [NAN], [NAN], [NAN]),
    "bits": lambda: pictures.bits("", 50 * EPOCHS, FALLING, HELD_OUT),
    "bits of two points": lambda: pictures.bits("", [50, 100], [4.1, 4.0], [4.1, 4.0]),
    "moons": lambda: draw_moons(FALLING),
    "moons that diverged": lambda: draw_moons([0.7, NAN]),
    "square": lambda: pictures.regression("", WAYS["by hand"], FALLING[:9], FALLING[:9], FALLING),
    "square that diverged": lambda: pictures.regression("", [1, 2], [1, 4], [NAN, NAN], [5, NAN]),
    "gradients": lambda: pictures.gradients("", ENTRIES, WAYS),
    "gradients alike": lambda: pictures.gradients("", ENTRIES, dict([*WAYS.items()][:2])),
    "scales": lambda: pictures.scales("", SCALES),
    "rebuilt": lambda: pictures.rebuilt("", IMAGES[:16], IMAGES[:16], "Digits, and rebuilt"),
    "verifier": lambda: pictures.verifier(
        "", rates(["jaxnn.verify", "jax.test_util.check_grads", "chex.assert_numerical_grads"]), 99
    ),
    "speeds": lambda: pictures.speeds(
        "",
        {"jax.grad": {"mlp": 0.9, "cnn": 1.6, "gpt-with-a-long-name": 1.5}, "PyTorch": {"mlp": 5}},
    ),
    "kept": lambda: pictures.kept("", {f"op_{i}, name={'long' * i}": (4, i) for i in range(20)}),
    "kept by one": lambda: pictures.kept("", {"relu": (1, 4)}),
}


def visible_texts(figure):
    """All but the ticks' that lie outside the limits, which are not drawn."""
    ticks = {
        label: label in shown
        for ax in figure.axes
        for axis, shown in zip((ax.xaxis, ax.yaxis), shown_ticks(ax), strict=True)
        for label in axis.get_ticklabels(which="both")
    }
    found = figure.findobj(lambda artist: isinstance(artist, Text))
    found = [text for text in found if ticks.get(text, text.get_visible())]
    return [text for text in found if text.get_text().strip()]


@pytest.mark.parametrize("name", SLIDES)
def test_a_slide_is_read_from_the_back_of_a_room(name, figures):
    """16:9, one message, large type, nothing outside, no names or ticks over each other."""
    SLIDES[name]()
    (figure,) = figures
    width, height = figure.get_size_inches()
    assert width / height == pytest.approx(16 / 9)
    assert message(figure)
    page = figure.bbox.padded(4)
    for text in visible_texts(figure):
        assert text.get_fontsize() >= 12, text
        box = text.get_window_extent()
        assert page.x0 <= box.x0, text
        assert box.x1 <= page.x1, text
        assert page.y0 <= box.y0, text
        assert box.y1 <= page.y1, text
    for ax in figure.axes:
        for texts in (ax.texts if name != "speeds" else (), *shown_ticks(ax)):
            boxes = [text.get_window_extent() for text in texts if text.get_text().strip()]
            assert not any(one.overlaps(other) for one, other in combinations(boxes, 2)), texts


def shown_ticks(ax):
    for axis in (ax.xaxis, ax.yaxis):
        scale = axis.get_transform().transform
        low, high = sorted(scale(np.array(axis.get_view_interval())))
        margin = 1e-6 * (high - low)
        ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
        yield [
            label
            for at, label in ticks
            if label.get_visible() and low - margin <= scale(np.array([at]))[0] <= high + margin
        ]


def test_curves_are_named_at_their_lines_and_their_last_value_is_the_message(figures):
    pictures.curves("", FALLING, HELD_OUT, ACCURACY)
    left, right = figures[0].axes
    np.testing.assert_array_equal(names_at_lines(left)["held out"].get_ydata(), HELD_OUT)
    np.testing.assert_array_equal(names_at_lines(left)["training"].get_ydata(), FALLING)
    np.testing.assert_allclose(right.get_lines()[0].get_ydata(), 100 * ACCURACY)
    assert left.get_yscale() == "log"
    assert left.get_legend() is None
    assert f"{ACCURACY[-1]:.2%}" in message(figures[0])


def test_the_epoch_that_was_kept_is_ringed_and_is_the_message(figures):
    falling_then_rising = np.array([2.0, 0.5, 0.9])
    pictures.curves("", [2.0, 0.4, 0.1], falling_then_rising, [0.5, 1.0, 0.75], 2)
    left, right = figures[0].axes
    rings = [line.get_xydata()[0].tolist() for ax in (left, right) for line in ax.get_lines()[-1:]]
    assert rings == [[2, 0.5], [2, 100]]
    assert right.get_ylim()[1] == 100
    assert message(figures[0]).endswith("100.00%")
    pictures.bits("", [50, 100, 150], falling_then_rising, falling_then_rising, 2)
    (ax,) = figures[1].axes
    assert ax.get_lines()[-1].get_xydata().tolist() == [[100, 0.5]]
    assert "0.50 bits" in message(figures[1])


def test_a_search_says_which_trial_is_the_best(figures):
    pictures.trials("", TRIALS, 2)
    assert message(figures[0]) == "The best of 4 trials: nadam, learning rate 0.01"
    left, right = figures[0].axes
    legend = [text.get_text() for text in left.get_legend().get_texts()]
    assert legend == ["given up early: 1", "to the end: 2", "the best"]
    colors = [h.get_facecolor()[0].tolist() for h in right.get_legend().legend_handles]
    assert len(np.unique(colors, axis=0)) == 4


def test_no_difference_has_no_bar(figures):
    pictures.gradients("", ENTRIES, WAYS)
    widths = [bar.get_width() for bar in figures[0].axes[1].patches]
    assert widths[0] == 0 < widths[1]


def test_what_is_no_number_is_said_and_not_drawn(figures):
    pictures.curves("", [2.0, 1.0, NAN], [2.0, np.inf, NAN], [0.2, 0.3, 0.1])
    assert message(figures[0]) == "Diverged: no number after epoch 2"
    drawn = names_at_lines(figures[0].axes[0])["held out"].get_ydata()
    assert np.isnan(drawn[1:]).all()


@pytest.mark.parametrize("points", [1, 2, 12, 13, 40])
def test_few_points_are_marked_and_many_are_a_line(points, figures):
    pictures.loss("", FALLING[:points])
    (line,) = figures[0].axes[0].get_lines()
    assert len(line.get_markevery()) == (points if points <= 12 else 0)


def test_a_lone_point_between_gaps_is_marked(figures):
    values = np.where(np.arange(40) == 20, FALLING, np.where(abs(EPOCHS - 21) < 3, NAN, FALLING))
    pictures.loss("", values)
    assert figures[0].axes[0].get_lines()[0].get_markevery() == [20]


def test_a_held_out_curve_is_drawn_where_it_is_known(figures):
    pictures.loss("", FALLING, "epoch")
    pictures.loss("", FALLING, "epoch", HELD_OUT)
    alone, both = (figure.axes[0] for figure in figures)
    assert len(alone.get_lines()) == 1
    np.testing.assert_array_equal(names_at_lines(both)["held out"].get_ydata(), HELD_OUT)
    assert both.get_title() == f"Held-out loss: {HELD_OUT[-1]:.4g}"


def test_moons_loss_is_on_a_logarithmic_axis_in_plain_figures(figures):
    draw_moons(FALLING)
    left = figures[0].axes[0]
    assert left.get_yscale() == "log"
    shown = {label.get_text() for label in [*shown_ticks(left)][1]}
    assert shown <= {"0.05", "0.1", "0.2", "0.5", "1", "2"}
    assert len(shown) > 3


@pytest.mark.parametrize(("chosen", "hollow"), [(0.0, {1.0}), (1.0, {0.0}), (0.5, {0.0, 1.0})])
def test_relu_is_marked_at_0_with_the_slope_that_was_chosen(chosen, hollow, figures):
    x = np.arange(-200, 201) / 200
    slope = np.where(x == 0, chosen, x > 0)
    pictures.function_and_slope("", x, np.maximum(x, 0), slope, "ReLU")
    ax = figures[0].axes[0]
    points = [line for line in ax.get_lines() if len(line.get_xdata()) == 1]
    assert all(point.get_xdata()[0] == 0 for point in points)
    filled = [p for p in points if p.get_markerfacecolor() == p.get_color()]
    assert [p.get_ydata()[0] for p in filled] == [chosen]
    left_out = [p for p in points if p.get_markerfacecolor() == "white"]
    assert {p.get_ydata()[0] for p in left_out} == hollow
    assert f"at 0: f = 0, slope {chosen:g}" in [text.get_text() for text in ax.texts]
    curve = next(line for line in ax.get_lines() if line.get_color() == filled[0].get_color())
    steps = np.abs(np.diff(curve.get_ydata()))
    assert np.nanmax(steps) == 0  # a jump is a gap


def test_initialisations_are_named_at_their_lines(figures):
    pictures.scales("", SCALES)
    ax = figures[0].axes[0]
    assert ax.get_legend() is None
    assert names_at_lines(ax).keys() == SCALES.keys()
    for name, line in names_at_lines(ax).items():
        np.testing.assert_array_equal(line.get_ydata(), SCALES[name])
    assert ax.get_yscale() == "log"


def test_two_layer_shows_every_entry_by_every_way_and_how_far_they_are_apart(figures):
    pictures.gradients("", ENTRIES, WAYS)
    left, right = figures[0].axes
    drawn = {
        line.get_label(): line.get_ydata()
        for line in left.get_lines()
        if len(line.get_ydata()) == 9
    }
    assert drawn.keys() == WAYS.keys()
    for way, values in WAYS.items():
        np.testing.assert_array_equal(drawn[way], values)
    assert [text.get_text() for text in right.texts] == ["0", "3e-10", "1e-16"]
    assert right.get_xscale() == "log"
    assert message(figures[0]) == "Four ways, one gradient: they agree to 3e-10"
    assert [label.get_text() for label in left.get_xticklabels()] == ["w1", "b1"]


def test_rows_of_rebuilt_digits_are_labelled(figures):
    pictures.rebuilt("", IMAGES[:16], IMAGES[:16] / 2, "Digits, and rebuilt")
    assert len(figures[0].axes) == 2
    for ax in figures[0].axes:
        assert [label.get_text() for label in ax.get_yticklabels()] == ["held out", "rebuilt"]
        (image,) = ax.get_images()
        rows = image.get_array()
        assert rows[: len(rows) // 2].max() > 1.8 * rows[len(rows) // 2 :].max()


@pytest.mark.parametrize("wrong", [0, 1, 7, 30])
def test_misread_digits_are_shown_with_what_they_were_read_as(wrong, figures):
    pictures.misread("", IMAGES, LABELS, read_by(LABELS, wrong))
    shown = [ax for ax in figures[0].axes if ax.get_images()]
    assert len(shown) == min(wrong, 24)
    for ax in shown:
        written, read = map(int, re.match(r"(\d) read as (\d)", ax.get_title()).groups())
        assert read == (written + 3) % 10
    assert ("None of 40" if not wrong else f"of {wrong} misread") in message(figures[0])


def test_images_that_are_not_square_are_shown_as_rows(figures):
    wide = np.random.default_rng(0).random((40, 600))
    pictures.misread("", wide, LABELS, read_by(LABELS, 2))
    (image,) = figures[0].axes[0].get_images()
    assert image.get_array().shape == (1, 600)


def test_confusion_counts_what_is_off_the_diagonal(figures):
    counts = np.diag([36] * 10)
    counts[3, 8] = 2
    pictures.confusion("", counts)
    ax = figures[0].axes[0]
    assert ax.get_title().startswith("2 of 362 digits misread")
    assert [text.get_position() for text in ax.texts if text.get_weight() == "bold"] == [(8, 3)]


def test_digits_in_the_plane_are_told_apart_by_their_shape(figures):
    pictures.latent_plane("", IMAGES[:, :2], LABELS, IMAGES[:9].reshape(3, 3, 64), 2.5)
    assert len(figures[0].axes[0].collections) == 10


def test_speeds_give_the_geometric_mean(figures):
    pictures.speeds("", {"jax.grad": {"mlp": 1.0, "cnn": 4.0}})
    assert message(figures[0]) == "By jax.grad a training step takes 2.00 times as long"


def test_kept_shows_the_largest_differences(figures):
    pictures.kept("", {f"op{i}": (4.0, 4.0 + i) for i in range(14)}, most=3)
    ax = figures[0].axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["op13", "op12", "op11"]
    assert message(figures[0]).startswith("By hand, 13 of 14 cases keep less")


# Machado, Oliveira and Fernandes (2009): how a deuteranope and a protanope see linear RGB.
BLIND = (
    [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
)


@pytest.mark.parametrize("seen", BLIND, ids=["deuteranopia", "protanopia"])
def test_colours_are_told_apart_by_the_colour_blind(seen):
    linear = [np.array(to_rgb(color)) ** 2.2 for color in canvas.COLORS]
    shown = [np.clip(np.array(seen) @ color, 0, 1) ** (1 / 2.2) for color in linear]
    for one, other in combinations(shown, 2):
        assert np.abs(one - other).max() > 0.2


def test_a_picture_is_written_and_leaves_the_settings_alone(tmp_path, capsys):
    before = dict(matplotlib.rcParams)
    path = pictures.curves(tmp_path / "a.png", FALLING, HELD_OUT, ACCURACY)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"wrote {path}\n"
    assert dict(matplotlib.rcParams) == before


def test_every_rival_of_the_benchmark_is_drawn(figures, tmp_path):
    rivals = ["jax.grad", "strongest", "Flax", "PyTorch", "compiled"]
    pictures.benchmark(tmp_path / "b.png", {"case": dict.fromkeys(rivals, (1.0, 1.5, 2.0))})
    (ax,) = figures[0].axes
    assert [text.get_text() for text in ax.get_legend().get_texts()] == rivals
    assert len({to_rgb(patch.get_facecolor()) for patch in ax.patches}) == 5
