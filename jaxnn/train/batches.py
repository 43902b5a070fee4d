"""Epochs over a user's own batches, from a list, a loader or an iterator.

    run = make_epoch(model, config, optimizer, loader)
    run = make_epoch(model, config, optimizer, endless(), steps=100)
    state, history = run(state)

The batches may be larger than memory holds at once: each is looked at when its step comes.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxnn.checks import check_finite, is_array, is_iterator
from jaxnn.mesh import Rules
from jaxnn.settings import check_integer
from jaxnn.train.doors import (
    as_arrays,
    check_evaluate,
    check_function,
    check_model_functions,
    check_state,
)
from jaxnn.train.runs import with_history
from jaxnn.train.states import leaf_forms
from jaxnn.train.steps import Augment, Gradient, History, State, as_batch, make_step


class BatchError(ValueError):
    """Batches that ended before their epoch did, or one unlike those before it."""


class Place(NamedTuple):
    """How far a run's batches are: what reads it, as JSON has it, and what sets it, and the steps.

    `fit` finds it as a run's attribute `place`.
    """

    kept: Callable[[], Any]
    put_back: Callable[[Any, int], None]


# Some of grain's iterators have bytes for a state.
_BYTES = "bytes, as Latin-1"


def make_epoch(
    model: Any,
    config: Any,
    optimizer: optax.GradientTransformation,
    batches: Iterable[Any],
    *,
    steps: int | None = None,
    gradient: Gradient = "manual",
    evaluate: Callable[[Any], Any] | None = None,
    augment: Augment | None = None,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
) -> Callable[[State], tuple[State, History]]:
    """Return an epoch over batches that come one by one: a compiled step for each.

    What can be gone through again (a list, PyTorch's DataLoader) is gone through once an epoch,
    from its start; one that shuffles itself gives a resumed run other batches. An iterator goes on
    where the last epoch left it; where a state has taken more steps, as one that is resumed has, as
    many batches are passed over first: an iterator that gives the same batches each time it is made
    resumes to the same parameters. A state that has taken fewer is refused. An iterator that has
    `get_state` and `set_state`, as grain's and `jaxnn.loaders` have, is set to where it was: `fit`
    saves its state, the same in every process, and nothing is passed over.

    Args:
        model: a module with the model functions.
        config: its configuration, static.
        optimizer: any optax optimizer.
        batches: tuples (or the model's `Batch`) of NumPy or JAX arrays, all of the same shapes and
            dtypes.
        steps: batches in an epoch; may be left out for what can be gone through again.
        gradient: as in `make_step`.
        evaluate: `evaluate(params)` -> a scalar or a dict of them, compiled, after each epoch.
        augment: as in `make_step`.
        mesh: as in `make_step`; every process gives the whole batches, or arrays that are laid on
            the mesh as `jaxnn.loaders` lays them.
        rules: as in `make_step`.

    Returns:
        `run(state) -> (state, history)`, one epoch each call, for `fit`.

    Raises:
        TypeError: `batches` cannot be gone through, or is an iterator and `steps` is missing; and
            as in `make_step`.
        ValueError: `steps` is below 1; from the run, as the model's loss refuses the first batch.
        BatchError: from the run, a ValueError: the batches end early, the iterator is ahead of the
            state, or a batch has other parts, shapes or dtypes than the first, or makes the loss
            NaN by a value that the model's loss refuses or that is not finite.
    """
    endless = is_iterator(batches)
    if not isinstance(batches, Iterable) or isinstance(batches, Mapping | str):
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
    if evaluate is not None:
        check_function("evaluate", evaluate, "evaluate(params) -> a scalar, or a dict of them", 1)
    step = make_step(model, config, optimizer, gradient, augment, mesh=mesh, rules=rules)
    check_model_functions(model, "loss")
    measure = None if evaluate is None else jax.jit(evaluate)
    forms: list[dict[str, str]] = []  # of the first batch: dtypes and shapes, by name
    started, taken = False, 0  # of an iterator, how many batches

    def looked_at(batch: Any, params: Any) -> None:
        # As in make_run: only the parameters are abstract, the loss sees the batch's values.
        whole = as_batch(model, batch)
        jax.eval_shape(lambda params: model.loss(params, whole, config), params)

    def is_finite(losses: list[Any], batch: Any, params: Any) -> bool:
        """Whether the last loss is; refuse its batch if that has a value that is the cause."""
        if not losses or np.isfinite(losses[-1]):
            return True
        try:
            looked_at(batch, params)
            for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
                if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
                    check_finite("batch" + jax.tree_util.keystr(path), leaf)
        except ValueError as error:
            raise BatchError(f"batch {len(losses)} of the epoch: {error}") from error
        return False

    def checked(batch: Any, number: int, params: Any) -> Any:
        try:
            batch = as_arrays("batch", jax.tree.map(_to_numpy, batch))
        except (TypeError, ValueError) as error:
            raise BatchError(f"batch {number}: {error}") from error
        form = leaf_forms(batch)
        if not forms:
            looked_at(batch, params)
            forms.append(form)
        if form != forms[0]:
            raise BatchError(
                f"batch {number} of the epoch is {_words(form)}, the first was {_words(forms[0])}; "
                "all must be alike: leave out a last one that is smaller (drop_last=True), cast "
                "what differs"
            )
        return batch

    def history_of(losses: list[Any], params: Any) -> History:
        metrics = None if measure is None else measure(params)
        return History(
            jnp.stack(losses).mean()[None], jax.tree.map(lambda x: jnp.asarray(x)[None], metrics)
        )

    def run(state: State) -> tuple[State, History]:
        nonlocal started, taken
        check_state(state, State)
        if evaluate is not None and not started:
            check_evaluate(evaluate, state.params)
        started = True
        source = iter(batches)
        if endless:
            done = int(state.step)
            if done < taken:
                raise BatchError(
                    f"the iterator is ahead: it gave {taken} batches, and the state has taken "
                    f"{done} steps: pass make_epoch one that begins where that run's began"
                )
            taken += sum(1 for _ in itertools.islice(source, done - taken))
            if taken < done:
                raise BatchError(
                    f"the iterator ended after {taken} batches, and the run that goes on had taken "
                    f"{done}: pass one that begins where that run's began"
                )
        losses: list[Any] = []
        batch, finite = None, True
        for following in itertools.islice(source, steps):
            taken += 1
            # Of the step before, which is computed while this batch comes.
            finite = finite and is_finite(losses, batch, state.params)
            batch = checked(following, len(losses) + 1, state.params)
            state, loss = step(state, batch)
            losses.append(loss)
        if finite:
            is_finite(losses, batch, state.params)
        if len(losses) < (steps or 1):
            raise BatchError(
                f"the batches ended after {len(losses)} of {steps or 1} in this epoch; pass an "
                "iterator that goes on, or fewer steps or epochs"
            )
        return state, history_of(losses, state.params)

    def traced(state: State) -> History:
        if evaluate is not None:
            check_evaluate(evaluate, state.params)
        shapes: History = jax.eval_shape(history_of, [jnp.zeros(())], state.params)
        return shapes

    def kept() -> Any:
        state = batches.get_state()  # type: ignore[attr-defined]
        return {_BYTES: state.decode("latin-1")} if isinstance(state, bytes) else state

    def put_back(state: Any, steps: int) -> None:
        nonlocal taken
        bare = (
            state[_BYTES].encode("latin-1")
            if isinstance(state, dict) and _BYTES in state
            else state
        )
        batches.set_state(bare)  # type: ignore[attr-defined]
        taken = steps

    if endless and hasattr(batches, "get_state") and hasattr(batches, "set_state"):
        run.__dict__["place"] = Place(kept, put_back)
    return with_history(run, traced)


def _to_numpy(leaf: Any) -> Any:
    """Another library's array on the CPU, as PyTorch's loader gives them, as one of NumPy's."""
    return leaf if is_array(leaf) or not hasattr(leaf, "__array__") else np.asarray(leaf)


def _words(form: dict[str, str]) -> str:
    return ", ".join(f"{name} {leaf}" for name, leaf in form.items())
