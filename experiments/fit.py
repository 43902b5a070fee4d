"""Training with a progress bar that Ctrl-C can stop without losing the epochs it finished."""

import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from experiments.cli import INTERRUPTED
from jaxnn import train

_BAR = "training {percentage:3.0f}% |{bar}| {elapsed} gone, {remaining} left{postfix}"


class Fit(NamedTuple):
    """What a training run left.

    Attributes:
        params: after the last epoch that finished.
        history: the loss and metrics of the epochs that finished, as NumPy arrays.
        seconds: the time it took, compilation included.
        interrupted: whether Ctrl-C ended it before its last epoch.
    """

    params: Any
    history: train.History
    seconds: float
    interrupted: bool

    @property
    def diverged(self) -> bool:
        """Whether the loss ended as no number."""
        return not np.isfinite(self.history.loss[-1])

    @property
    def status(self) -> int:
        """The exit status that tells the shell."""
        return INTERRUPTED if self.interrupted else int(self.diverged)


def split(epochs: int, at_once: int) -> tuple[int, int]:
    """`epochs` as calls of one program times epochs per call, at most `at_once` of them.

    Raises:
        ValueError: `epochs` is below 1.
    """
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}; it must be at least 1")
    # A divisor, so that every call runs the same program.
    per_call = max(n for n in range(1, min(at_once, epochs) + 1) if epochs % n == 0)
    return epochs // per_call, per_call


def fit(run: Callable[[Any], tuple[Any, train.History]], state: train.State, calls: int) -> Fit:
    """Call `run`, from `jaxnn.train.make_run`, so many times; between calls Ctrl-C is heard.

    Raises:
        SystemExit: Ctrl-C came before any call had finished.
    """
    started = time.perf_counter()
    parts: list[train.History] = []
    finished, interrupted = (state, 0), False
    with tqdm(total=calls, leave=False, bar_format=_BAR, disable=None) as bar:
        try:
            for _ in range(calls):
                later, part = jax.block_until_ready(run(finished[0]))
                parts.append(part)
                # One assignment: Ctrl-C finds either all of this call or none of it.
                finished = (later, len(parts))
                bar.set_postfix(loss=f"{float(part.loss[-1]):.4f}", refresh=False)
                bar.update()
        except KeyboardInterrupt:
            interrupted = True
    state, calls_finished = finished
    if not calls_finished:
        print("interrupted before anything finished: nothing to keep", file=sys.stderr)
        raise SystemExit(INTERRUPTED)
    history = jax.tree.map(lambda *x: np.concatenate(x), *parts[:calls_finished])
    if interrupted:
        print(f"interrupted: keeping the {len(history.loss)} finished epochs", file=sys.stderr)
    fit = Fit(state.params, history, time.perf_counter() - started, interrupted)
    if fit.diverged:
        epoch = int(np.argmin(np.isfinite(history.loss))) + 1
        print(
            f"diverged: the loss is {history.loss[epoch - 1]} from epoch {epoch} on; "
            "try a smaller --learning-rate",
            file=sys.stderr,
        )
    return fit
