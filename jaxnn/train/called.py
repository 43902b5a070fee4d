"""What a call of a run returns, looked at before it counts: a state, a history, so many epochs."""

from collections.abc import Callable

import jax
import numpy as np

from jaxnn.train import logs
from jaxnn.train.progress import Progress, added, with_best
from jaxnn.train.steps import History, State

Run = Callable[[State], tuple[State, History]]


def called(run: Run, state: State) -> tuple[State, logs.Columns]:
    """What a call of the run returns, when it is there, its history as columns."""
    returned = run(state)
    pair = isinstance(returned, tuple) and len(returned) == 2
    if not (pair and isinstance(returned[0], State) and isinstance(returned[1], History)):
        kinds = [type(part).__name__ for part in returned] if pair else type(returned).__name__
        raise TypeError(
            f"run returned {kinds}; it must return a State and a History: make it with make_run or "
            "make_epoch"
        )
    later, history = jax.block_until_ready(returned)  # which hears signals
    if len(shape := np.shape(history.loss)) != 1 or shape == (0,):
        raise ValueError(
            f"history.loss has shape {shape} after a call of run; it must be (epochs,), an entry "
            "for each epoch of the call: make it with loss[None] of one"
        )
    if int(later.step) <= int(state.step):
        raise ValueError(
            f"state.step is {later.step} after a call of run, {state.step} before; it must count "
            "the steps: return the state of make_step's step"
        )
    return later, logs.columns(history)


def check_traced(history: History, progress: Progress, epochs: int) -> None:
    """Refuse, before a call, what its history would be refused for."""
    part = logs.columns(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), history))
    check_epochs(epochs, progress.epochs, len(part["loss"]))
    after = added(progress, progress.state, part)
    with_best(after, after.ends[-1:])


def check_epochs(epochs: int, done: int, in_call: int) -> None:
    """Refuse a number of epochs that calls of so many do not come to."""
    if (epochs - done) % in_call:
        raise ValueError(
            f"epochs is {epochs}, {done} of them done; a call of run makes {in_call}, and the rest "
            "must be a multiple of it: make a run of fewer epochs"
        )
