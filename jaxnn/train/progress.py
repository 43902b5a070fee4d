"""How far a run is, which of its epochs is the best, and whether its numbers are finite."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.checks import is_seen
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
        watched: by which column it is known: `{"minimize": NAME}` or `{"maximize": NAME}`; empty
            before any, where none was named.
        batches: how far they are, as JSON has it; None where they are not asked.
    """

    state: State
    columns: Columns
    ends: tuple[int, ...]
    best: Any
    best_epoch: int
    watched: dict[str, str]
    batches: Any = None

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


def with_best(progress: Progress, ends: Sequence[int]) -> Progress:
    """Find the best epoch: the one so far, or one of these that ended a call later.

    Of equal ones it is the first, and one without a number never. If it is the last of all, its
    parameters are kept.

    Raises:
        ValueError: the column it is known by is none of the log's.
    """
    columns, best = progress.columns, progress.best_epoch
    direction, name = column_kept(columns, progress.watched)
    # Compared as floats: of unsigned integers there is no negative.
    sign, values = -1.0 if direction == "maximize" else 1.0, columns[name]
    for end in ends:
        least = sign * float(values[best - 1]) if best else np.nan
        if not best or sign * float(values[end - 1]) < (np.inf if np.isnan(least) else least):
            best = end
    progress = progress._replace(best_epoch=best, watched={direction: name})
    return progress._replace(best=progress.state.params) if best == progress.epochs else progress


def is_sound(tree: Any) -> bool:
    """Whether there is no NaN in a tree and, in the parameters of a state, no infinity.

    Seen by NumPy: to compile this for every model would take longer than most epochs. Of arrays
    that are spread over several processes, which all call this, it is compiled.
    """
    if not all(map(is_seen, jax.tree.leaves(tree))):
        return bool(_is_sound(tree))
    params = tree.params if isinstance(tree, State) else tree
    finite = all(np.isfinite(leaf).all() for leaf in _floating(params))
    return finite and not any(np.isnan(leaf).any() for leaf in _floating(tree))


@jax.jit
def _is_sound(tree: Any) -> Any:
    params = tree.params if isinstance(tree, State) else tree
    finite = [jnp.isfinite(leaf).all() for leaf in _inexact(params)]
    numbers = [~jnp.isnan(leaf).any() for leaf in _inexact(tree)]
    return jnp.stack(finite + numbers).all()


def divergence(state: State, loss: np.ndarray[Any, Any], done: int) -> str:
    """What to say of a call, after so many epochs, that ended without finite numbers."""
    finite, epoch = np.isfinite(loss), done + len(loss)
    if not finite.all():
        what = f"the loss is {loss[~finite][0]} in epoch {done + 1 + int(np.argmin(finite))}"
    elif not is_sound(state.params):
        what = f"the parameters are not finite after epoch {epoch}"
    else:
        what = f"the optimizer's state holds NaN after epoch {epoch}, the parameters do not"
    kept = f"what was there after epoch {done} is kept" if done else "nothing is kept"
    return f"diverged: {what}; {kept}: try a smaller learning rate"


def _floating(tree: Any) -> Iterator[np.ndarray[Any, Any]]:
    return map(np.asarray, _inexact(tree))


def _inexact(tree: Any) -> list[Any]:
    leaves = jax.tree.leaves(tree)
    return [leaf for leaf in leaves if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]
