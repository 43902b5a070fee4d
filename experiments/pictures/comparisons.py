"""Pictures of comparisons: checkers of gradients, speeds, what is kept for the backward."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.pictures import canvas
from experiments.pictures.canvas import BLUE, COLORS, GREEN, GREY, ORANGE


@canvas.slide
def verifier(
    path: Path, rates: Mapping[str, Mapping[str, tuple[float, float]]], faults: int
) -> Path:
    """Gradient checkers compared: wrong gradients caught, right ones accused.

    Args:
        path: of the picture.
        rates: by checker and dtype, the shares of wrong gradients caught and of false alarms; the
            first checker is ours.
        faults: how many wrong gradients there are.
    """
    figure, grid = canvas.axes(2, whole=canvas.SLIDE)
    dtypes = list(next(iter(rates.values())))
    y = np.arange(len(rates))
    titles = ("wrong gradients caught (%)", "right gradients accused (%)")
    for column, (ax, title) in enumerate(zip(grid, titles, strict=True)):
        for i, (dtype, color) in enumerate(zip(dtypes, (BLUE, GREEN, ORANGE), strict=True)):
            shares = [100 * rate[dtype][column] for rate in rates.values()]
            bars = ax.barh(
                y + 0.27 * (i - 1), np.nan_to_num(shares), 0.25, color=color, label=dtype
            )
            labels = ["not taken" if np.isnan(s) else f"{s:.3g}" for s in shares]
            ax.bar_label(bars, labels, padding=3, fontsize=13)
        ax.set(title=title, xlim=(0, 120), yticks=y, xticks=(0, 50, 100))
        ax.set_yticklabels([name.replace(" ", "\n", 1) for name in rates] if not column else [])
        ax.invert_yaxis()
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower right", ncols=3,
                  frameon=False)  # fmt: skip
    ours = next(iter(rates.values()))
    caught = min(caught for caught, _ in ours.values())
    canvas.message(
        figure, f"Of {faults:,} wrong gradients, {caught:.3%} are caught".replace(".000%", "%")
    )
    return canvas.save(figure, path)


def causes(path: Path, diagnoses: Mapping[str, tuple[float, float, float]]) -> Path:
    """How ours explains each kind of fault: the shares named rightly, wrongly and not named."""
    figure, (ax,) = canvas.axes(size=(8.0, max(3.0, 1.2 + 0.19 * len(diagnoses))))
    names, left = list(diagnoses), np.zeros(len(diagnoses))
    for i, (label, color) in enumerate(
        (("its cause named", BLUE), ("only another", ORANGE), ("none", "#dddddd"))
    ):
        share = 100 * np.array([diagnoses[name][i] for name in names])
        ax.barh(names, share, left=left, color=color, label=label)
        left += share
    ax.invert_yaxis()
    ax.tick_params(axis="y", labelsize=8)
    ax.margins(y=0.01)
    ax.set(xlim=(0, 100), xlabel="% of the faults caught", title="Diagnosis by kind of fault")
    figure.legend(
        *ax.get_legend_handles_labels(), loc="outside lower right", frameon=False, ncols=3
    )
    return canvas.save(figure, path)


def _log_bars(
    ax: Any, ratios: Mapping[str, Mapping[str, tuple[float, float, float]]], size: float
) -> list[str]:
    """Bars of ratios from 1, with their quartiles and figures; the rivals' names."""
    rivals = list(dict.fromkeys(rival for case in ratios.values() for rival in case))
    height = 0.8 / max(len(rivals), 1)
    for number, (rival, color) in enumerate(zip(rivals, COLORS[: len(rivals)], strict=True)):
        rows = [(y, case[rival]) for y, case in enumerate(ratios.values()) if rival in case]
        y = [row + height * (number - (len(rivals) - 1) / 2) for row, _ in rows]
        low, middle, high = np.array([ratio for _, ratio in rows]).T
        spread = {"ecolor": "black", "elinewidth": 0.7}
        ax.barh(y, middle - 1, height, left=1, color=color, label=rival,
                xerr=(middle - low, high - middle), error_kw=spread)  # fmt: skip
        for at, ratio, end in zip(y, middle, high, strict=True):
            ax.text(1.03 * max(end, 1), at, f"{ratio:.2f}", va="center", fontsize=size)
    ax.axvline(1, color="black", lw=1)
    ends = [ratio for case in ratios.values() for spread in case.values() for ratio in spread]
    limits = 0.8 * min([1, *ends]), 1.3 * max([1, *ends])
    ticks = [t for t in (0.01, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 100) if limits[0] <= t <= limits[1]]
    ax.set(xscale="log", xlim=limits, yticks=range(len(ratios)), yticklabels=list(ratios),
           ylim=(len(ratios) - 0.4, -0.6))  # fmt: skip
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    return rivals


def benchmark(path: Path, ratios: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> Path:
    """How much longer everybody else takes than the hand-written gradient, case by case.

    Args:
        path: of the picture.
        ratios: by case and rival, the quartiles of its time over ours.
    """
    bars = sum(map(len, ratios.values()))
    figure, (ax,) = canvas.axes(size=(9.0, 1.6 + 0.15 * bars))
    rivals = _log_bars(ax, ratios, size=7)
    ax.set(
        xlabel="times as long as by hand; left of the line by hand is slower",
        title="The hand-written gradient against its rivals",
    )
    if rivals:
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return canvas.save(figure, path)


@canvas.slide
def speeds(path: Path, times: Mapping[str, Mapping[str, float]]) -> Path:
    """How much longer a training step of each rival takes, a dot for each model, with the mean.

    Args:
        path: of the picture.
        times: by rival and model, its time over ours.
    """
    figure, (ax,) = canvas.axes(whole=canvas.SLIDE)
    means = {
        rival: float(np.exp(np.mean(np.log([*cases.values()])))) for rival, cases in times.items()
    }
    every = [ratio for cases in times.values() for ratio in cases.values()]
    for row, (rival, cases) in enumerate(times.items()):
        ratios = np.array([*cases.values()])
        ax.plot(ratios, np.full(len(ratios), row), "o", color=BLUE, alpha=0.5, ms=14, mew=0)
        ax.plot([means[rival]] * 2, [row - 0.3, row + 0.3], color=ORANGE, lw=4)
        ax.text(
            means[rival],
            row - 0.34,
            f"mean {means[rival]:.2f}",
            color=ORANGE,
            ha="center",
            va="bottom",
        )
        for name, at, ha in (
            (min(cases, key=cases.__getitem__), ratios.min(), "left"),
            (max(cases, key=cases.__getitem__), ratios.max(), "right"),
        ):
            if len(cases) > 1:
                ax.text(at, row + 0.2, name, color=GREY, ha=ha, va="top", fontsize=15)
    ax.axvline(1, color="black", lw=1.5)
    limits = 0.8 * min([1, *every]), 1.3 * max([1, *every])
    ticks = [
        t for t in (0.01, 0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 100) if limits[0] <= t <= limits[1]
    ]
    ax.set(xscale="log", xlim=limits, ylim=(len(times) - 0.4, -0.7), yticks=range(len(times)),
           yticklabels=list(times), xlabel="times as long as by hand")  # fmt: skip
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    first, mean = next(iter(means.items()))
    canvas.message(figure, f"By {first} a training step takes {mean:.2f} times as long")
    return canvas.save(figure, path)


@canvas.slide
def kept(path: Path, bytes_kept: Mapping[str, tuple[float, float]], most: int = 10) -> Path:
    """What ops keep for their backward: those with the largest difference, by hand and by autodiff.

    Args:
        path: of the picture.
        bytes_kept: by op, the bytes per input element by hand, and by jax.vjp.
        most: so many ops at most.
    """
    figure, (ax,) = canvas.axes(whole=canvas.SLIDE)
    saved = {name: autodiff - by_hand for name, (by_hand, autodiff) in bytes_kept.items()}
    names = sorted(saved, key=lambda name: -abs(saved[name]))[:most]
    y, height = np.arange(len(names)), 0.38
    for i, (label, color) in enumerate((("by hand", BLUE), ("jax.vjp", ORANGE))):
        values = [bytes_kept[name][i] for name in names]
        bars = ax.barh(y + height * (i - 0.5), values, height, color=color, label=label)
        ax.bar_label(bars, [f"{value:.3g}" for value in values], padding=4, fontsize=14)
    ax.set_yticks(y, [name if len(name) < 31 else f"{name[:27]} ..." for name in names])
    ax.invert_yaxis()
    ax.set(xlabel="bytes kept for the backward, per element of the inputs")
    ax.margins(x=0.12)
    figure.legend(frameon=False, loc="outside lower right", ncols=2)
    less = sum(gap > 0 for gap in saved.values())
    canvas.message(figure, f"By hand, {less} of {len(saved)} cases keep less for the backward")
    return canvas.save(figure, path)
