"""Every picture the experiments draw, each a function from numbers to a PNG file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

BLUE, ORANGE, GREEN, GREY = "#2b6cb0", "#dd6b20", "#2f855a", "#718096"


def _axes(
    columns: int = 1, rows: int = 1, size: tuple[float, float] = (5.2, 3.8)
) -> tuple[Any, Any]:
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes.ravel()


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=130)
    print(f"wrote {path}")
    return path


def _loss(ax: Axes, losses: Any, label: str | None = None, color: str = BLUE) -> None:
    epochs = np.arange(1, len(losses) + 1)
    ax.plot(epochs, losses, color=color, label=label, marker="." if len(losses) == 1 else None)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("epoch")


def curves(path: Path, training_loss: Any, held_out_loss: Any, held_out_accuracy: Any) -> Path:
    """Loss and held-out accuracy over the epochs."""
    figure, (left, right) = _axes(2)
    _loss(left, training_loss, "training, mean while the epoch ran")
    _loss(left, held_out_loss, "held out, after the epoch", ORANGE)
    left.set(yscale="log", ylabel="loss (nats)", title="Cross-entropy")
    left.legend(frameon=False)
    _loss(right, 100 * np.asarray(held_out_accuracy), color=ORANGE)
    right.set(
        ylabel="held-out accuracy (%)", title=f"Accuracy: {held_out_accuracy[-1]:.2%} at the end"
    )
    return _save(figure, path)


def loss(path: Path, losses: Any, xlabel: str = "step") -> Path:
    """A loss curve over steps, or what else there is a loss for."""
    figure, (ax,) = _axes()
    _loss(ax, losses)
    scale = "log" if np.max(losses) > 10 * np.min(losses) > 0 else "linear"
    ax.set(yscale=scale, xlabel=xlabel, ylabel="loss (nats)", title=f"Final loss {losses[-1]:.4f}")
    return _save(figure, path)


def bits(path: Path, steps: Any, training: Any, held_out: Any) -> Path:
    """Bits per character of training and held-out text over the optimizer steps."""
    figure, (ax,) = _axes()
    marker = "." if len(steps) == 1 else None
    ax.plot(steps, training, color=BLUE, label="training, mean since the last point", marker=marker)
    ax.plot(steps, held_out, color=ORANGE, label="held out", marker=marker)
    ax.set(
        xlabel="step",
        ylabel="bits per character",
        title=f"Held out: {held_out[-1]:.3f} bits at the end",
    )
    ax.legend(frameon=False)
    return _save(figure, path)


def confusion(path: Path, counts: Any) -> Path:
    """Who is taken for whom; the diagonal is muted so that the mistakes show."""
    counts = np.asarray(counts)
    figure, (ax,) = _axes(size=(5.6, 5.2))
    mistakes = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    ax.imshow(mistakes, cmap="Oranges", vmin=0, vmax=max(mistakes.max(), 1) * 1.4)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            ax.text(column, row, str(count), ha="center", va="center",
                    color=GREY if row == column else "black",
                    weight="normal" if row == column else "bold")  # fmt: skip
    ticks = np.arange(len(counts))
    ax.set(xticks=ticks, yticks=ticks, xlabel="read as", ylabel="written",
           title=f"{mistakes.sum()} of {counts.sum()} digits misread (in colour)")  # fmt: skip
    ax.spines[:].set_visible(False)
    return _save(figure, path)


def misread(path: Path, images: Any, labels: Any, probabilities: Any, most: int = 24) -> Path:
    """The misread digits, most confidently wrong first."""
    probabilities = np.asarray(probabilities)
    read, labels = probabilities.argmax(1), np.asarray(labels)
    wrong = np.flatnonzero(read != labels)
    shown = f"{min(most, len(wrong))} of {len(wrong)} misread digits, the surest first"
    wrong = wrong[np.argsort(-probabilities[wrong, read[wrong]])][:most]
    columns = max(min(6, len(wrong)), 3)
    rows = max(-(-len(wrong) // columns), 1)
    figure, axes = _axes(columns, rows, size=(1.6, 1.9))
    pixels = np.shape(images)[1]
    side = round(np.sqrt(pixels))
    shape = (side, side) if side * side == pixels else (1, pixels)
    for ax in axes:
        ax.axis("off")
    for ax, i in zip(axes, wrong, strict=False):
        ax.imshow(np.reshape(images[i], shape), cmap="Greys")
        p = probabilities[i, read[i]]
        sure = ">99%" if p > 0.99 else f"{p:.0%}"
        ax.set_title(f"{labels[i]} read as {read[i]}\n{sure} sure", fontsize=9)
    figure.suptitle(shown, fontsize=11)
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    if not len(wrong):
        axes[len(axes) // 2].text(0.5, 0.5, "none misread", ha="center")
    return _save(figure, path)


def moons(path: Path, losses: Any, points: Any, labels: Any, grid: Any, p: Any) -> Path:
    """The loss curve beside the decision boundary; `grid` is (x, y), `p` the probability of 1."""
    figure, (left, right) = _axes(2)
    _loss(left, losses)
    left.set(ylabel="loss (nats)", title=f"Final loss {losses[-1]:.4f}", ylim=(0, None))
    field = LinearSegmentedColormap.from_list("moons", [BLUE, "white", ORANGE])
    bands = right.contourf(*grid, p, levels=np.linspace(0, 1, 11), cmap=field, alpha=0.5)
    figure.colorbar(bands, ax=right, label="probability")
    right.contour(*grid, p, levels=[0.5], colors="black", linewidths=1)
    colors = ListedColormap([BLUE, ORANGE])
    right.scatter(*np.asarray(points).T, c=labels, cmap=colors, s=18, edgecolors="white", lw=0.4)
    right.set(
        title="Probability of the orange moon; line at one half", xlabel="$x_1$", ylabel="$x_2$"
    )
    return _save(figure, path)


def function_and_slope(path: Path, x: Any, y: Any, slope: Any, name: str) -> Path:
    """A scalar function and its derivative."""
    figure, (ax,) = _axes()
    ax.plot(x, y, color=BLUE, label="f(x)")
    x, slope = np.asarray(x), np.array(slope)
    jumps = np.flatnonzero(np.abs(np.diff(slope)) > 0.5) + 1
    ax.plot(  # a jump is a gap, not a line
        np.insert(x, jumps, np.nan),
        np.insert(slope, jumps, np.nan),
        color=ORANGE,
        label="df/dx, by its hand-written rule",
    )
    ax.set(title=f"f = {name}", xlabel="x", ylim=(-0.05, 1.3 * max(np.max(y), np.max(slope))))
    ax.legend(frameon=False, loc="upper left")
    return _save(figure, path)


def regression(path: Path, x: Any, y: Any, fitted: Any, losses: Any) -> Path:
    """The fit over the points, its residuals, and the loss curve."""
    x, y, fitted = (np.ravel(a) for a in (x, y, fitted))
    order = np.argsort(x)
    figure, (left, middle, right) = _axes(3)
    left.scatter(x, y, s=14, color=GREY, alpha=0.6, label="data")
    left.plot(x[order], fitted[order], color=ORANGE, label="network")
    left.set(xlabel="x", ylabel="y", title="$y = x^2$ and its fit")
    left.legend(frameon=False)
    middle.axhline(0, color=GREY, lw=0.8)
    middle.scatter(x, fitted - y, s=14, color=BLUE)
    middle.set(xlabel="x", ylabel="network - data", title="Residuals")
    _loss(right, losses)
    right.set(yscale="log", ylabel="mean squared error", title=f"Final loss {losses[-1]:.2e}")
    return _save(figure, path)


def ladder(path: Path, seconds: Mapping[str, float]) -> Path:
    """Time of each way to multiply two matrices, on a logarithmic axis."""
    figure, (ax,) = _axes(size=(6.4, 3.2))
    names = list(seconds)
    micro = [1e6 * seconds[name] for name in names]
    bars = ax.barh(names, micro, color=BLUE)
    ax.bar_label(bars, [f" {m:,.0f} µs" for m in micro], padding=3)
    ax.invert_yaxis()
    ax.set(xscale="log", xlabel="time (µs)", title="5x784 by 784x10, five ways",
           xlim=(1, max(micro) * 8))  # fmt: skip
    return _save(figure, path)


def scales(path: Path, curves: Mapping[str, ArrayLike]) -> Path:
    """How the size of activations develops with depth, one curve per initialisation."""
    figure, (ax,) = _axes(size=(6.6, 4.4))
    colors: Sequence[str] = (ORANGE, GREY, BLUE, "#b83280", GREEN)
    for (name, values), color in zip(curves.items(), colors, strict=True):
        ax.plot(np.arange(1, len(np.asarray(values)) + 1), values, color=color, label=name)
    ax.set(yscale="log", xlabel="layer", ylabel="standard deviation of activations",
           title="Fifty layers of width 100: explode, vanish or stay")  # fmt: skip
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return _save(figure, path)


def training(path: Path, losses: Mapping[str, Any]) -> Path:
    """Loss curves of runs that ought to coincide."""
    figure, (ax,) = _axes()
    styles = ({"lw": 4, "alpha": 0.4}, {"lw": 1.2})
    for (name, values), color, style in zip(losses.items(), (ORANGE, BLUE), styles, strict=True):
        ax.plot(np.arange(1, len(values) + 1), values, color=color, label=name, **style)
    ax.set(
        yscale="log", xlabel="step", ylabel="mean squared error", title="Two routes, one gradient"
    )
    ax.legend(frameon=False)
    return _save(figure, path)


def verifier(
    path: Path,
    rates: Mapping[str, Mapping[str, tuple[float, float]]],
    diagnoses: Mapping[str, tuple[float, float, float]],
) -> Path:
    """Gradient checkers compared, and how ours explains each kind of fault.

    Args:
        path: of the picture.
        rates: by checker and dtype, the shares of wrong gradients caught and of false alarms.
        diagnoses: by kind of fault, the shares named rightly, named wrongly and not named.
    """
    figure = Figure(figsize=(12.5, max(5.5, 1.2 + 0.19 * len(diagnoses))), layout="constrained")
    axes = figure.subplot_mosaic([["caught", "kinds"], ["alarms", "kinds"]])
    dtypes = list(next(iter(rates.values())))
    y = np.arange(len(rates))
    for column, (name, title) in enumerate(
        (("caught", "Wrong gradients caught (%)"), ("alarms", "Right gradients accused (%)"))
    ):
        ax = axes[name]
        for i, (dtype, color) in enumerate(zip(dtypes, (BLUE, GREEN, ORANGE), strict=True)):
            shares = [100 * rate[dtype][column] for rate in rates.values()]
            bars = ax.barh(
                y + 0.27 * (i - 1), np.nan_to_num(shares), 0.25, color=color, label=dtype
            )
            labels = ["not taken" if np.isnan(s) else f"{s:.3g}" for s in shares]
            ax.bar_label(bars, labels, padding=3, fontsize=8)
        ax.set(
            title=title, xlim=(0, 115), yticks=y, yticklabels=list(rates), xticks=range(0, 101, 25)
        )
        ax.invert_yaxis()
    axes["caught"].legend(frameon=False, loc="upper center", bbox_to_anchor=(0.4, -0.08), ncols=3)
    ax = axes["kinds"]
    names, left = list(diagnoses), np.zeros(len(diagnoses))
    for i, (label, color) in enumerate(
        (("its cause named", BLUE), ("only another", ORANGE), ("none", "#e2e8f0"))
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
    for ax in axes.values():
        ax.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def images(path: Path, rows: Any, title: str) -> Path:
    """Square images of flat pixels, rows (R, C, pixels), as a grid."""
    rows = np.asarray(rows)
    side = round(np.sqrt(rows.shape[-1]))
    grid = rows.reshape(*rows.shape[:2], side, side)
    grid = np.pad(grid, ((0, 0), (0, 0), (1, 0), (1, 0)))  # white lines between
    figure, (ax,) = _axes(size=(0.6 * rows.shape[1], 0.6 * rows.shape[0] + 0.4))
    ax.imshow(np.concatenate(np.concatenate(grid, 1), 1), cmap="Greys", vmin=0, vmax=1)
    ax.axis("off")
    ax.set_title(title, fontsize=10)
    return _save(figure, path)


def latent_plane(path: Path, means: Any, labels: Any, decoded: Any, reach: float) -> Path:
    """Where each input lies in the first two latent dimensions, beside what is decoded there.

    Args:
        path: of the picture.
        means: (N, 2).
        labels: (N,) digits.
        decoded: (R, R, pixels) images, first row at the top of the plane.
        reach: the decoded images span [-reach, reach] both ways.
    """
    means, labels, decoded = np.asarray(means), np.asarray(labels), np.asarray(decoded)
    figure, (left, right) = _axes(2, size=(5.6, 5.2))
    points = left.scatter(*means.T, c=labels, cmap="tab10", vmin=-0.5, vmax=9.5, s=14)
    figure.colorbar(points, ax=left, ticks=range(10), label="digit written")
    decoded_there = Rectangle((-reach, -reach), 2 * reach, 2 * reach, fill=False, linestyle=":")
    decoded_there.set_label("drawn beside")
    left.add_patch(decoded_there)
    left.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.06))
    left.set(xlabel="$z_1$", ylabel="$z_2$", title="Means that the encoder gives", aspect="equal")
    side = round(np.sqrt(decoded.shape[-1]))
    grid = np.pad(decoded.reshape(*decoded.shape[:2], side, side), [(0, 0)] * 2 + [(1, 1)] * 2)
    right.imshow(
        np.concatenate(np.concatenate(grid, 1), 1),
        cmap="Greys",
        vmin=0,
        vmax=1,
        extent=(-reach, reach, -reach, reach),
    )
    right.set(xlabel="$z_1$", ylabel="$z_2$", title="What the decoder makes of the plane")
    return _save(figure, path)


def benchmark(path: Path, ratios: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> Path:
    """How much longer everybody else takes than the hand-written gradient, case by case.

    Args:
        path: of the picture.
        ratios: by case and rival, the quartiles of its time over ours.
    """
    figure, (ax,) = _axes(size=(9.0, 1.6 + 0.42 * len(ratios)))
    rivals = list(dict.fromkeys(rival for case in ratios.values() for rival in case))
    height = 0.8 / max(len(rivals), 1)
    for number, (rival, color) in enumerate(zip(rivals, (BLUE, GREEN, ORANGE), strict=False)):
        rows = [(y, case[rival]) for y, case in enumerate(ratios.values()) if rival in case]
        y = [row + height * (number - (len(rivals) - 1) / 2) for row, _ in rows]
        low, middle, high = np.array([ratio for _, ratio in rows]).T
        spread = {"ecolor": "black", "elinewidth": 0.7}
        ax.barh(y, middle - 1, height, left=1, color=color, label=rival,
                xerr=(middle - low, high - middle), error_kw=spread)  # fmt: skip
        for at, ratio, end in zip(y, middle, high, strict=True):
            ax.text(1.03 * max(end, 1), at, f"{ratio:.2f}", va="center", fontsize=7)
    ax.axvline(1, color="black", lw=1)
    ends = [ratio for case in ratios.values() for spread in case.values() for ratio in spread]
    limits = 0.8 * min([1, *ends]), 1.3 * max([1, *ends])
    ticks = [t for t in (0.01, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 100) if limits[0] <= t <= limits[1]]
    ax.set(
        xscale="log", xlim=limits, yticks=range(len(ratios)), yticklabels=list(ratios),
        ylim=(len(ratios) - 0.4, -0.6),
        xlabel="times as long as by hand; left of the line by hand is slower",
        title="The hand-written gradient against its rivals",
    )  # fmt: skip
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    if rivals:
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return _save(figure, path)


def trials(path: Path, runs: Sequence[tuple[Any, Mapping[str, Any], str]], best: int) -> Path:
    """How the loss of each trial fell, and where its learning rate and optimizer put it.

    Args:
        path: of the picture.
        runs: of each trial the loss after each epoch, its settings, and how it ended.
        best: which of them is the best.
    """
    figure, (left, right) = _axes(2, size=(6.0, 4.2))
    colors = {"pruned": GREY, "finished": BLUE}
    for number, (losses, _, ended) in enumerate(runs):
        if ended in colors and number != best:
            epochs = np.arange(1, len(losses) + 1)
            style = {"lw": 0.8, "alpha": 0.5} if ended == "pruned" else {"lw": 1.2}
            left.plot(epochs, losses, color=colors[ended], **style)
            left.plot(epochs[-1], losses[-1], ".", color=colors[ended], ms=4)
    left.plot(np.arange(1, len(runs[best][0]) + 1), runs[best][0], color=ORANGE, lw=2.5)
    counts = {word: sum(ended == word for *_, ended in runs) for word in (*colors, "diverged")}
    for label, color in (
        (f"given up early ({counts['pruned']})", GREY),
        (f"trained to the end ({counts['finished']})", BLUE),
        ("the best", ORANGE),
    ):
        left.plot([], [], color=color, label=label)
    left.set(yscale="log", xlabel="epoch", ylabel="loss on the images to choose by (nats)",
             title="Poor trials end early")  # fmt: skip
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend(frameon=False)
    names = list(dict.fromkeys(settings["optimizer"] for _, settings, _ in runs))
    for name, color in zip(sorted(names), (BLUE, GREEN, GREY, "#b83280", "#2c7a7b"), strict=False):
        for word, size, alpha in (("pruned", 8, 0.4), ("finished", 36, 0.9)):
            points = [
                (settings["learning_rate"], min(losses))
                for losses, settings, ended in runs
                if settings["optimizer"] == name and ended == word
            ]
            right.scatter(*np.reshape(points, (-1, 2)).T, s=size, color=color, alpha=alpha, lw=0)
        right.scatter([], [], s=36, color=color, lw=0, label=name)
    losses, settings, _ = runs[best]
    at = (settings["learning_rate"], min(losses))
    right.scatter(*at, s=220, marker="*", color=ORANGE, edgecolors="white", zorder=3,
                  label=f"the best: {settings['optimizer']}")  # fmt: skip
    right.set(xscale="log", yscale="log", xlabel="learning rate (as for Adam)",
              ylabel="least loss of the trial (nats)",
              title="Where the good ones are (small: given up early)")  # fmt: skip
    right.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return _save(figure, path)
