"""How far a run is, which of its epochs is the best, and whether its numbers are finite."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.train.doors import column_kept
from jaxnn.train.logs import Columns
from jaxnn.train.steps import State


class Progress(NamedTuple):
    """How far a run is.

    Attributes:
        state: after the last call that finished.
        columns: of the log, each (epochs,).
        ends: the epochs with which calls ended.
        best: the parameters after the best of these.
        best_epoch: which it was; 0 before any.
    """

    state: State
    columns: Columns
    ends: tuple[int, ...]
    best: Any
    best_epoch: int

    @property
    def epochs(self) -> int:
        """How many have finished."""
        return self.ends[-1] if self.ends else 0


def added(progress: Progress, state: State, part: Columns) -> Progress:
    """Add what a call of the run returned; the best is not known yet.

    Raises:
        ValueError: its columns are others than those before.
    """
    before = progress.columns or {name: values[:0] for name, values in part.items()}
    if part.keys() != before.keys():
        raise ValueError(
            f"the columns are {', '.join(part)}, and were {', '.join(before)}; they must stay the "
            "same in a run: evaluate as before"
        )
    columns = {name: np.concatenate([before[name], part[name]]) for name in before}
    ends = (*progress.ends, len(columns["loss"]))
    return progress._replace(state=state, columns=columns, ends=ends)


def with_best(progress: Progress, minimize: str | None, maximize: str | None) -> Progress:
    """Find the best epoch among those that ended a call; if it is the last, keep its parameters."""
    columns, ends = progress.columns, progress.ends
    name = column_kept(columns, minimize, maximize)
    values = columns[name][[end - 1 for end in ends]].astype(float) * (-1 if maximize else 1)
    best = ends[int(np.argmin(np.where(np.isnan(values), np.inf, values)))]
    if best != ends[-1]:
        return progress._replace(best_epoch=best)
    return progress._replace(best_epoch=best, best=progress.state.params)


def is_sound(tree: Any) -> bool:
    """Whether there is no NaN in a tree and, in the parameters of a state, no infinity.

    Seen by NumPy: to compile this for every model would take longer than most epochs.
    """
    params = tree.params if isinstance(tree, State) else tree
    finite = all(np.isfinite(leaf).all() for leaf in _floating(params))
    return finite and not any(np.isnan(leaf).any() for leaf in _floating(tree))


def _floating(tree: Any) -> Iterator[np.ndarray[Any, Any]]:
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            yield np.asarray(leaf)
