"""Epochs over a user's own batches, from a list, a loader or an iterator.

    run = make_epoch(model, config, optimizer, loader)
    run = make_epoch(model, config, optimizer, endless(), steps=100)
    state, history = run(state)

The batches may be larger than memory holds at once: each is looked at when its step comes.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnn.settings import check_integer
from jaxnn.train.steps import Gradient, History, State, make_step


class BatchError(ValueError):
    """Batches that ended before their epoch did, or one unlike those before it."""


def make_epoch(
    model: Any,
    config: Any,
    optimizer: optax.GradientTransformation,
    batches: Iterable[Any],
    *,
    steps: int | None = None,
    gradient: Gradient = "manual",
    evaluate: Callable[[Any], Any] | None = None,
) -> Callable[[State], tuple[State, History]]:
    """Return an epoch over batches that come one by one: a compiled step for each.

    What can be gone through again (a list, PyTorch's DataLoader) is gone through once an epoch,
    from its start. An iterator goes on where the last epoch left it; where the first state
    has taken steps already, as one that is resumed has, that many batches are passed over first: an
    iterator that gives the same batches each time it is made resumes to the same parameters.

    Args:
        model: a module with the model functions.
        config: its configuration, static.
        optimizer: any optax optimizer.
        batches: tuples (or the model's `Batch`) of NumPy or JAX arrays, all of the same shapes and
            dtypes.
        steps: batches in an epoch; may be left out for what can be gone through again.
        gradient: as in `make_step`.
        evaluate: `evaluate(params)` -> a scalar or a dict of them, compiled, after each epoch.

    Returns:
        `run(state) -> (state, history)`, one epoch each call, for `fit`.

    Raises:
        TypeError: `batches` cannot be gone through, or is an iterator and `steps` is missing; and
            as in `make_step`.
        ValueError: `steps` is below 1; from the run, as the model's loss refuses the first batch.
        BatchError: from the run, a ValueError: the batches end early, or one has other parts,
            shapes or dtypes than the first.
    """
    endless = isinstance(batches, Iterator)
    if not isinstance(batches, Iterable):
        raise TypeError(
            f"batches is {batches!r:.50}; it must be a list, a loader or an iterator of batches"
        )
    if steps is not None:
        steps = check_integer("steps", steps)
    elif endless:
        raise TypeError(
            "steps is None; an iterator does not say where an epoch ends: pass the number of "
            "batches in one"
        )
    step = make_step(model, config, optimizer, gradient)
    measure = None if evaluate is None else jax.jit(evaluate)
    form: list[Any] = []  # of the first batch: its parts, and the shapes and dtypes of these
    started = False

    def checked(batch: Any, number: int, params: Any) -> Any:
        batch = jax.tree.map(_as_array, batch)
        parts, tree = jax.tree.flatten(batch)
        this = tree, [f"{x.dtype}{list(x.shape)}" for x in parts]
        if not form:
            # As in make_run: only the parameters are abstract, the loss sees the batch's values.
            jax.eval_shape(lambda params: model.loss(params, batch, config), params)
            form.append(this)
        if this != form[0]:
            raise BatchError(
                f"batch {number} has {_words(this)}, the first {_words(form[0])}; all must be "
                "alike: drop a last batch that is smaller (drop_last=True), and cast what differs"
            )
        return jax.tree.map(jnp.asarray, batch)

    def run(state: State) -> tuple[State, History]:
        nonlocal started
        passed = int(state.step) if endless and not started else 0
        started = True
        source = iter(batches)
        skipped = sum(1 for _ in itertools.islice(source, passed))
        if skipped < passed:
            raise BatchError(
                f"the iterator ended after {skipped} batches, and the run that goes on had taken "
                f"{passed}: pass one that begins where that run's began"
            )
        losses: list[Any] = []
        for batch in itertools.islice(source, steps):
            state, loss = step(state, checked(batch, len(losses) + 1, state.params))
            losses.append(loss)
        if len(losses) < (steps or 1):
            raise BatchError(
                f"the batches ended after {len(losses)} of {steps or 1} in this epoch; pass an "
                "iterator that goes on, or fewer steps or epochs"
            )
        metrics = None if measure is None else measure(state.params)
        return state, History(
            jnp.stack(losses).mean()[None], jax.tree.map(lambda x: jnp.asarray(x)[None], metrics)
        )

    return run


def _as_array(leaf: Any) -> Any:
    """What is no array of JAX's as one of NumPy's, which PyTorch's tensors become too."""
    if isinstance(leaf, jax.Array):
        return leaf
    array = np.asarray(leaf)
    if array.dtype == object or not hasattr(leaf, "shape"):
        raise BatchError(
            f"a batch holds a {type(leaf).__name__}; it must be a tuple of arrays: convert it with "
            "np.asarray"
        )
    return array


def _words(form: tuple[Any, list[str]]) -> str:
    tree, parts = form
    return f"{', '.join(parts)} ({tree})"
