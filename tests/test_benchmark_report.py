"""The report over whole runs, with planted figures; and the page and the claims that it keeps."""

import json
from pathlib import Path

import pytest

from experiments.benchmark import report
from experiments.benchmark.results import AGAINST, in_digits

ROOT = Path(__file__).parents[1]
HAND = "by hand"


def run(jax="0.10.1", processor="P", sizes="full", busy=0.01, share=0.5, megabytes=4, **ratios):
    """A run's figures: of each case the ratio by jax.grad and by PyTorch."""
    cases = {}
    for name, (autodiff, torch) in ratios.items():
        arms = {
            HAND: {"quartiles": [1, 2e-3, 3], "temporary_bytes": 1_000_000},
            "jax.grad": {"quartiles": [1, 1, 1], "temporary_bytes": megabytes * 10**6},
            "PyTorch": {"quartiles": [1, 1, 1], "temporary_bytes": None},
        }
        against = {
            "jax.grad": {"arm": "jax.grad", "ratio": [0, autodiff, 9]},
            "PyTorch": {"arm": "PyTorch", "ratio": [0, torch, 9]},
        }
        cases[name.replace("_", "-")] = {
            "model_step": name != "an_op", "arms": arms, "against": against,
            "share_of_product_rate": share, "busy": busy,
        }  # fmt: skip
    about = {"jax": jax, "processor": processor, "cores": "2", "sizes": sizes, "torch": "2.13.0"}
    return {"about": about, "cases": cases}


@pytest.fixture
def folder(tmp_path):
    for seed, ratio in enumerate((1.0, 2.0, 3.0, 4.0, 5.0)):
        figures = run(step=(ratio, 0.5), other=(ratio, 2.0), an_op=(0.1, 0.1))
        (tmp_path / f"{seed}.json").write_text(json.dumps(figures))
    return tmp_path


def test_a_cell_is_the_median_of_the_runs_and_their_lower_quartile(folder):
    text = report.report(report.read([folder]))
    assert "5 whole runs: jax 0.10.1, processor P, cores 2, sizes full, jaxlib unknown" in text
    (row,) = (line for line in text.splitlines() if line.startswith("| step |"))
    cells = row.strip("| ").split(" | ")
    assert cells == ["step", "2", "3.00 (2.00)", "-", "-", "0.50 (0.50)", "-", "1", "4", "-", "50%"]


def test_a_claim_holds_in_every_group_and_is_of_models_alone(folder):
    runs = report.read([folder])
    assert report.claims(runs) == {"jax.grad": 2.0, "PyTorch": 1.0}
    assert report.slower(runs, "PyTorch") == {"step": 0.5}
    elsewhere = report.slim(run(jax="0.12", step=(1.499, 3), other=(1.499, 3)))
    assert report.claims([*runs, elsewhere]) == {"jax.grad": 1.49, "PyTorch": 1.0}
    assert report.claims([elsewhere]) == {"jax.grad": 1.49, "PyTorch": 3.0}
    assert report.leaner(runs, "jax.grad", 2) == [4.0] * 5
    assert "at least 1.49 times as long by jax.grad, 1.00 by PyTorch, eager, in the geometric" in (
        report.sentence([*runs, elsewhere])
    )
    assert "geometric mean: 4.00 times by jax.grad." in report.report(runs)
    assert "(jax 0.10.1 and 0.12)" in report.sentence([*runs, elsewhere])


@pytest.mark.parametrize(("busy", "named"), [(0.101, True), (0.1, False), (None, False)])
def test_a_busy_run_is_named(busy, named):
    said = report.report([report.slim(run(busy=busy, step=(1, 1)))])
    assert ("Others used the cores in some run of step." in said) == named


def test_a_run_that_lacks_a_step_is_in_no_mean():
    whole = [report.slim(run(step=(2.0, 1.0), other=(8.0, 1.0))) for _ in range(3)]
    part = [report.slim(run(step=(2.0, 1.0))) for _ in range(3)]
    assert report.means([*part, *whole], "jax.grad", 2) == pytest.approx([4.0] * 3)
    assert report.claims([*part, *whole])["jax.grad"] == 4.0
    text = report.report([*part, *whole])
    assert "3 whole runs and 3 with fewer steps: jax 0.10.1" in text
    quick = report.slim(run(sizes="quick", step=(1.0, 1.0)))
    text = report.report([*whole, quick])
    assert (
        "0 whole runs and 1 with fewer steps: jax 0.10.1, processor P, cores 2, sizes quick" in text
    )


def test_a_group_of_few_steps_claims_nothing_beside_whole_runs():
    whole = report.slim(run(step=(2.0, 3.0), other=(2.0, 3.0)))
    few = report.slim(run(jax="0.12", step=(1.0, 4.0)))
    few["cases"]["step"]["against"]["PyTorch compiled"] = few["cases"]["step"]["against"]["PyTorch"]
    assert report.claims([few]) == {"jax.grad": 1.0, "PyTorch": 4.0, "PyTorch compiled": 4.0}
    assert report.claims([whole, few]) == {"jax.grad": 2.0, "PyTorch": 3.0}


def test_memory_and_the_share_of_a_product_are_medians_over_the_runs():
    each = [(2, 0.1), (4, 0.5), (40, 0.9)]
    runs = [report.slim(run(megabytes=m, share=s, step=(1.0, 1.0))) for m, s in each]
    text = report.report(runs)
    assert "geometric mean: 4.00 times by jax.grad" in text
    assert "| 50% |" in text


@pytest.mark.parametrize(
    ("number", "words"),
    [(0.09078, "0.0908"), (0.5, "0.5"), (99.96, "100"), (999.6, "1000"), (1183.2, "1180")],
)
def test_a_number_has_three_digits_and_no_power_of_ten(number, words):
    assert in_digits(number) == words
    text = report.report([report.slim(run(megabytes=4321, step=(1.0, 1.0)))])
    assert "| 4320 |" in text


def test_runs_without_a_model_s_step_claim_nothing():
    assert "A training step" not in report.report([report.slim(run(an_op=(2.0, 1.0)))])


def test_a_step_that_does_not_hold_in_three_of_four_runs_is_named():
    runs = [report.slim(run(step=(ratio, 1.0))) for ratio in (0.8, 0.9, 1.2, 1.2, 1.2)]
    assert report.slower(runs, "jax.grad") == {"step": 0.9}  # though their median is 1.2


@pytest.mark.parametrize(("ratio", "named"), [(0.994, {"step": 0.994}), (0.996, {})])
def test_a_step_that_takes_as_long_in_two_digits_is_not_named(ratio, named):
    assert report.slower([report.slim(run(step=(ratio, 1.0)))], "jax.grad") == named


def test_the_picture_has_the_quartiles_of_the_newest_jax(monkeypatch):
    shown = []
    monkeypatch.setattr("experiments.pictures.benchmark", lambda path, bars: shown.append(bars))
    newest = [report.slim(run(jax="0.10.1", step=(r, 1.0))) for r in (1.0, 2.0, 3.0, 4.0, 5.0)]
    report.draw([report.slim(run(jax="0.9.2", step=(9.0, 1.0))), *newest])
    report.draw([*newest, report.slim(run(jax="0.9.2", step=(9.0, 1.0)))])
    assert [bars["step"]["jax.grad"] for bars in shown] == [(2.0, 3.0, 4.0)] * 2


def test_runs_are_kept_and_put_into_the_page_between_its_marks(
    folder, tmp_path, monkeypatch, capsys
):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    monkeypatch.setattr(report, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "PICTURE", tmp_path / "bars.png")
    assert report.main([str(folder), "--keep", "here", "--write"]) == 0
    shown = capsys.readouterr().out
    assert report.main([]) == 0
    assert shown == f"wrote {tmp_path / 'bars.png'}\n{capsys.readouterr().out}"
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
    text = page.read_text()
    assert "| step | 2 | 3.00 (2.00)" in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    with pytest.raises(ValueError, match="has no <!-- figures -->"):
        report.written("no marks", "")


def test_what_are_no_figures_is_refused_in_words(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.json").write_text('{"a": 1}')
    (tmp_path / "numbers.json").write_text("[1]")
    (tmp_path / "lists.json").write_text('{"about": [], "cases": []}')
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    (tmp_path / "quick.json").write_text(json.dumps(run(sizes="quick", step=(1.0, 1.0))))
    for path, words in (
        ("absent.json", "FileNotFoundError"),
        ("other.json", "cases"),
        ("numbers.json", "numbers.json cannot be read as figures"),
        ("lists.json", "lists.json cannot be read as figures"),
        ("bytes.json", "bytes.json cannot be read as figures"),
        ("empty", f"there are no figures in {tmp_path / 'empty'}; name a folder"),
        ("quick.json --keep it", "would keep sizes ['quick']; claims are of full ones"),
        ("other.json --keep a/b", "--keep a/b names a file beside the others"),
        ("--keep", "--keep it keeps the runs of files or folders; name them"),
    ):
        first, *more = path.split()
        asked = ["--keep", "it"] if first == "--keep" else [str(tmp_path / first), *more]
        with pytest.raises(SystemExit) as ended:
            report.main(asked)
        assert ended.value.code == 2
        assert words in " ".join(capsys.readouterr().err.split())


def test_the_page_and_the_claims_are_those_of_the_kept_runs():
    runs = report.read([report.KEPT])
    assert report.PAGE.read_text() == report.written(report.PAGE.read_text(), report.report(runs))
    assert report.sentence(runs) in " ".join((ROOT / "README.md").read_text().split())
    assert {"jax.grad", "frameworks", "PyTorch"} <= set(report.claims(runs)) <= set(AGAINST)
