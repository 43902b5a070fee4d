"""Pictures of training runs, and of what they learned: curves, fits, boundaries, gradients."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from numpy.typing import ArrayLike

from experiments.pictures import canvas
from experiments.pictures.canvas import BLUE, COLORS, GREY, ORANGE


def _said(text: str, values: Any, losses: Any = None, best: int = 0) -> str:
    """A text with the value of the best epoch put in, or the last; or that the run diverged."""
    losses = canvas.finite(values if losses is None else losses)
    if np.isnan(canvas.last(losses)):
        known = np.flatnonzero(~np.isnan(losses))
        return f"Diverged: no number after epoch {known[-1] + 1 if len(known) else 0}"
    return text.format(canvas.last(values[:best] if best else values))


def _kept(ax: Axes, values: Any, best: int, x: Any = None, name: str = "kept") -> None:
    """A ring around the epoch whose parameters were kept, with its name."""
    if best:
        at = (best if x is None else x[best - 1], values[best - 1])
        ax.plot(*at, "o", color="black", ms=14, mfc="none", mew=2, zorder=5)
        ax.annotate(name, at, (0, 12), textcoords="offset points", ha="center")


@canvas.slide
def curves(
    path: Path, training_loss: Any, held_out_loss: Any, held_out_accuracy: Any, best: int = 0
) -> Path:
    """Loss and held-out accuracy over the epochs, the best of them ringed."""
    figure, (left, right) = canvas.axes(2, whole=canvas.SLIDE, widths=(5, 4))
    canvas.line(left, training_loss)
    canvas.line(left, held_out_loss, color=ORANGE)
    canvas.logarithmic(left, training_loss, held_out_loss)
    left.set(xlabel="epoch", title="loss (nats)")
    canvas.name_lines(left, ("training", "held out"))
    _kept(left, held_out_loss, best)
    percent = 100 * np.asarray(held_out_accuracy)
    canvas.line(right, percent, color=ORANGE, clip_on=False)
    _kept(right, percent, best, name="")
    right.set(xlabel="epoch", title="held-out accuracy (%)")
    right.set_ylim(top=min(right.get_ylim()[1], 100))
    said = "Digits never seen before, read rightly: {:.2%}"
    said = _said(said, held_out_accuracy, training_loss, best)
    canvas.message(figure, said)
    return canvas.save(figure, path)


def loss(
    path: Path, losses: Any, xlabel: str = "step", held_out: Any = None, best: int = 0
) -> Path:
    """A loss curve over steps, or what else there is a loss for, with that of held-out data."""
    figure, (ax,) = canvas.axes(size=(6.4, 3.8))
    both = {"training": losses} if held_out is None else {"training": losses, "held out": held_out}
    for values, color in zip(both.values(), (BLUE, ORANGE), strict=False):
        canvas.line(ax, values, color=color)
    canvas.logarithmic(ax, *both.values(), ratio=10)
    values = list(both.values())[-1]
    name = "Loss" if held_out is None else "Held-out loss"
    ax.set(xlabel=xlabel, ylabel="loss (nats)", title=_said(name + ": {:.4g}", values, best=best))
    if held_out is not None:
        canvas.name_lines(ax, list(both))
    _kept(ax, values, best)
    return canvas.save(figure, path)


@canvas.slide
def bits(path: Path, steps: Any, training: Any, held_out: Any, best: int = 0) -> Path:
    """Bits per character of training and held-out text over the optimizer steps."""
    figure, (ax,) = canvas.axes(whole=canvas.SLIDE)
    canvas.line(ax, training, steps)
    canvas.line(ax, held_out, steps, color=ORANGE)
    ax.set(xlabel="optimizer step", title="bits per character")
    canvas.name_lines(ax, ("training", "held out"))
    _kept(ax, held_out, best, steps)
    said = _said("Text never seen before: {:.2f} bits a character", held_out, best=best)
    canvas.message(figure, said)
    return canvas.save(figure, path)


@canvas.slide
def moons(path: Path, losses: Any, points: Any, labels: Any, grid: Any, p: Any) -> Path:
    """The loss curve beside the decision boundary; `grid` is (x, y), `p` the probability of 1."""
    figure, (left, right) = canvas.axes(2, whole=canvas.SLIDE, widths=(4, 5))
    canvas.line(left, losses)
    canvas.logarithmic(left, losses, ratio=1.5)
    left.set(xlabel="epoch", title="loss (nats)")
    field = LinearSegmentedColormap.from_list("moons", [BLUE, "white", ORANGE])
    bands = right.contourf(*grid, p, levels=np.linspace(0, 1, 11), cmap=field, alpha=0.5)
    figure.colorbar(bands, ax=right, label="probability of orange", ticks=(0, 0.5, 1))
    right.contour(*grid, p, levels=[0.5], colors="black", linewidths=2.5)
    colors = ListedColormap([BLUE, ORANGE])
    right.scatter(
        *np.asarray(points).T, c=labels, cmap=colors, vmin=0, vmax=1, s=60, edgecolors="white"
    )
    right.set(title="line: one half", xlabel="$x_1$", ylabel="$x_2$")
    canvas.message(figure, _said("A small network tells two moons apart: loss {:.3f}", losses))
    return canvas.save(figure, path)


def function_and_slope(path: Path, x: Any, y: Any, slope: Any, name: str) -> Path:
    """A scalar function and its derivative, both marked at 0, where a rule may have to choose."""
    figure, (ax,) = canvas.axes(size=(6.4, 3.8))
    x, y, slope = (np.asarray(values, float) for values in (x, y, slope))
    canvas.line(ax, y, x)
    jumps = np.flatnonzero(np.abs(np.diff(slope)) > 0.4) + 1
    canvas.line(  # a jump is a gap, not a line
        ax, np.insert(slope, jumps, np.nan), np.insert(x, jumps, x[jumps]), color=ORANGE
    )
    top = 1.3 * max(np.max(y), np.max(slope))
    ax.set(
        title=f"f = {name}, and df/dx by its hand-written rule",
        xlabel="x",
        ylim=(min(y.min(), slope.min()) - 0.08 * top, top),
    )
    canvas.name_lines(ax, ("f(x)", "df/dx"))
    at = int(np.abs(x).argmin())
    if x[at] == 0:
        for i in jumps[np.abs(jumps - at - 0.5) < 1]:  # the side that was not chosen
            other = slope[i] if i > at else slope[i - 1]
            ax.plot(0, other, "o", color=ORANGE, mfc="white", zorder=3)
        ax.plot(0, slope[at], "o", color=ORANGE, zorder=4)
        ax.plot(0, y[at], "o", color=BLUE, ms=11, mfc="none", mew=2, zorder=3)
        ax.annotate(
            f"at 0: f = {y[at]:g}, slope {slope[at]:g}",
            (0, slope[at]),
            (-0.95 * x.max(), 0.45 * top),
            arrowprops={"arrowstyle": "-", "color": GREY, "shrinkB": 6},
        )
    return canvas.save(figure, path)


@canvas.slide
def regression(path: Path, x: Any, y: Any, fitted: Any, losses: Any) -> Path:
    """The fit over the points, its residuals, and the loss curve."""
    x, y, fitted = (np.ravel(a) for a in (x, y, fitted))
    order = np.argsort(x)
    figure, grid = canvas.axes(2, 2, whole=canvas.SLIDE, widths=(5, 4))
    left, residuals, _, right = grid
    grid[2].remove()
    left.set_subplotspec(left.get_gridspec()[:, 0])
    left.scatter(x, y, s=70, color=GREY, alpha=0.4, linewidths=0, label="data")
    left.plot(x[order], canvas.finite(fitted[order]), color=ORANGE, label="network")
    left.set(xlabel="x", ylabel="y")
    left.legend(frameon=False)
    residuals.axhline(0, color=GREY, lw=1)
    residuals.scatter(x, canvas.finite(fitted - y), s=14, color=BLUE)
    if np.isnan(canvas.finite(fitted)).all():
        residuals.set_ylim(-1, 1)
    residuals.set(title="network - data", xlabel="x", xlim=left.get_xlim())
    canvas.line(right, losses)
    canvas.logarithmic(right, losses)
    right.set(title="mean squared error", xlabel="epoch")
    canvas.message(figure, _said("A network draws $y = x^2$; mean squared error {:.1e}", losses))
    return canvas.save(figure, path)


@canvas.slide
def gradients(path: Path, entries: Any, ways: Mapping[str, ArrayLike]) -> Path:
    """Entries of one gradient as several ways give them, and how far each is from the first.

    Args:
        path: of the picture.
        entries: names of groups of entries, one for each entry, in their order.
        ways: the entries (n,) by each way to get them; the first is what the others differ from.
    """
    figure, (left, right) = canvas.axes(2, whole=canvas.SLIDE, widths=(7, 4))
    names, (first, *others) = list(ways), [np.asarray(values, float) for values in ways.values()]
    markers = (("s", 17), ("o", 13), ("D", 8), ("o", 4))
    styles = list(zip(names, (first, *others), COLORS, markers, strict=False))
    for way, values, color, (marker, size) in styles:
        left.plot(values, marker, color=color, ms=size, mfc="none", mew=2.5, label=way)
    groups = list(dict.fromkeys(entries))
    starts = [list(entries).index(group) for group in groups]
    middles = [
        start + list(entries).count(group) / 2 - 0.5
        for start, group in zip(starts, groups, strict=True)
    ]
    for start in starts[1:]:
        left.axvline(start - 0.5, color=GREY, lw=0.8, ls=":")
    left.set_xticks(middles, groups)
    left.set(title="every entry of the gradient")
    left.tick_params(axis="x", length=0)
    figure.legend(frameon=False, loc="outside lower left", ncols=len(names), handletextpad=0.2)
    gaps = [np.abs(values - first).max() for values in others]
    least = 1e-17
    right.barh(
        names[1:],
        gaps,
        left=least,
        color=COLORS[1 : len(names)],
        height=0.5,
    )
    for row, gap in enumerate(gaps):
        right.text(max(gap, least) * 2, row, f"{gap:.0e}" if gap else "0", va="center")
    right.set(
        xscale="log",
        xlim=(least, max(1e-6, *gaps) * 1e4),
        title=f"largest difference\nfrom {names[0]}",
    )
    right.set_xticks([])
    right.minorticks_off()
    right.invert_yaxis()
    right.spines["bottom"].set_visible(False)
    count = {2: "Two", 3: "Three", 4: "Four"}.get(len(names), str(len(names)))
    to = f"to {max(gaps):.0e}" if max(gaps, default=0) else "exactly"
    canvas.message(figure, f"{count} ways, one gradient: they agree {to}")
    return canvas.save(figure, path)


def ladder(path: Path, seconds: Mapping[str, float]) -> Path:
    """Time of each way to multiply two matrices, on a logarithmic axis."""
    figure, (ax,) = canvas.axes(size=(6.4, 3.2))
    names = list(seconds)
    micro = [1e6 * seconds[name] for name in names]
    bars = ax.barh(names, micro, color=BLUE)
    ax.bar_label(bars, [f" {m:,.0f} µs" for m in micro], padding=3)
    ax.invert_yaxis()
    ax.set(xscale="log", xlabel="time (µs)", title="5x784 by 784x10, five ways",
           xlim=(min(1, *micro), max(micro) * 8))  # fmt: skip
    return canvas.save(figure, path)


@canvas.slide
def scales(path: Path, curves: Mapping[str, ArrayLike]) -> Path:
    """How the size of activations develops with depth, one curve per initialisation."""
    figure, (ax,) = canvas.axes(whole=canvas.SLIDE)
    for values, color in zip(curves.values(), COLORS, strict=True):
        canvas.line(ax, values, color=color)
    canvas.logarithmic(ax, *curves.values())
    ax.set(xlabel="layer", title="standard deviation of activations")
    canvas.name_lines(ax, list(curves))
    canvas.message(figure, "Through 50 layers, numbers explode, vanish or stay")
    return canvas.save(figure, path)


def training(path: Path, losses: Mapping[str, Any]) -> Path:
    """Loss curves of runs that ought to coincide."""
    figure, (ax,) = canvas.axes(size=(6.4, 3.8))
    styles = ({"lw": 5, "alpha": 0.4}, {"lw": 1.5})
    for (name, values), color, style in zip(losses.items(), (ORANGE, BLUE), styles, strict=True):
        canvas.line(ax, values, color=color, label=name, **style)
    canvas.logarithmic(ax, *losses.values())
    ax.set(xlabel="step", ylabel="mean squared error", title="Two routes, one gradient")
    ax.legend(frameon=False)
    return canvas.save(figure, path)
