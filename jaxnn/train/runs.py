"""Whole training runs as one compiled program: epochs of shuffled mini-batches.

run = make_run(model, config, optimizer, data, epochs=20, batch_size=32)
state, history = run(state)
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnn import mesh as layouts
from jaxnn.checks import check_key
from jaxnn.mesh import Rules
from jaxnn.settings import check_integer
from jaxnn.train.doors import (
    as_arrays,
    check_evaluate,
    check_made,
    check_model_functions,
    check_state,
    count_examples,
)
from jaxnn.train.steps import (
    Augment,
    Gradient,
    History,
    State,
    as_batch,
    augmented,
    for_batches,
    layout_of,
    on_mesh,
    one_step,
    state_shardings,
)


def make_run(
    model: Any,
    config: Any,
    optimizer: optax.GradientTransformation,
    data: Any,
    *,
    epochs: int,
    batch_size: int,
    gradient: Gradient = "manual",
    evaluate: Callable[[Any], Any] | None = None,
    augment: Augment | None = None,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
) -> Callable[[State], tuple[State, History]]:
    """Return a whole run as one compiled program: epochs of shuffled mini-batches.

    Each epoch draws a new order from the state's key; the examples left over when `batch_size`
    does not divide their number sit that epoch out. A batch as large as the data is used in its
    order, unshuffled. The data is checked here, by tracing the model's loss on it, before
    anything is compiled.

    Args:
        model: a module with the model functions.
        config: its configuration, static.
        optimizer: any optax optimizer.
        data: a batch of all examples; every leaf's first dimension counts them.
        epochs: at least 1.
        batch_size: from 1 to the number of examples.
        gradient: as in `make_step`.
        evaluate: `evaluate(params)` -> a pytree of scalars, taken after each epoch.
        augment: as in `make_step`.
        mesh: as in `make_step`; every device holds all of the data.
        rules: as in `make_step`.

    Returns:
        `run(state) -> (state, history)`. Calling it again goes on for as many epochs.

    Raises:
        TypeError, ValueError: a number is out of its range, the model refuses the data, or
            `augment` returns other shapes or dtypes; and as in `make_step`.
    """
    check_made(model, config, optimizer, gradient, augment)
    check_model_functions(model, "loss")
    data = as_arrays("data", data)
    n = count_examples(data)
    epochs = check_integer("epochs", epochs)
    batch_size = check_integer("batch_size", batch_size)
    if batch_size > n:
        raise ValueError(
            f"batch_size is {batch_size}; it must be from 1 to the number of examples, {n}"
        )
    params = jax.eval_shape(lambda key: model.init_params(key, config), jax.random.key(0))
    # Only the parameters are abstract here, so the loss sees, and can refuse, the data's values.
    jax.eval_shape(lambda params: model.loss(params, data, config), params)
    if evaluate is not None:
        check_evaluate(evaluate, params)
    if augment is not None:
        first = jax.tree.map(lambda x: x[:batch_size], data)
        jax.eval_shape(partial(augmented, augment), jax.random.key(0), as_batch(model, first))
    layout = layout_of(model, config, mesh, rules)
    step = one_step(model, config, optimizer, gradient, augment, layout)
    placed: Any = None
    if layout is not None:
        placed, whole = state_shardings(layout, optimizer), NamedSharding(layout.mesh, P())
        some = jax.eval_shape(lambda data: jax.tree.map(lambda x: x[:batch_size], data), data)
        layouts.check_batch(for_batches(layout, gradient), as_batch(model, some))
        data = layouts.put(layouts.in_order(for_batches(layout, gradient), data), whole)

    def epoch(state: State, data: Any) -> tuple[State, History]:
        if batch_size == n:
            state, loss = step(state, data)
        else:
            order, key = epoch_order(state.key, n, batch_size)
            state, losses = lax.scan(
                lambda s, rows: step(s, jax.tree.map(lambda x: x[rows], data)),
                state._replace(key=key),
                order,
            )
            loss = losses.mean()
        return state, History(loss, None if evaluate is None else evaluate(state.params))

    @partial(jax.jit, out_shardings=placed and (placed, None))
    def compiled(state: State, data: Any) -> tuple[State, History]:
        return lax.scan(lambda s, _: epoch(s, data), state, length=epochs)

    def run(state: State) -> tuple[State, History]:
        check_state(state, State)
        with layouts.entered(layout):
            moved = state if layout is None else on_mesh(layout, state, placed)
            ran: tuple[State, History] = compiled(moved, data)
        return ran

    def traced(state: State) -> History:
        with layouts.entered(layout):
            history: History = jax.eval_shape(compiled, state, data)[1]
        return history

    return with_history(run, traced)


def with_history(
    run: Callable[[State], tuple[State, History]], traced: Callable[[State], History]
) -> Callable[[State], tuple[State, History]]:
    """Return a run from which `fit` learns, before a call, what shapes its history will have."""
    run.__dict__["traced"] = traced
    return run


def epoch_order(key: Array, n: int, batch_size: int) -> tuple[Array, Array]:
    """Draw which of n examples each batch of a shuffled epoch takes, and the next epoch's key.

    Returns:
        rows (n // batch_size, batch_size), key.

    Raises:
        TypeError: the key is none of `jax.random`, or a number no integer.
        ValueError: a number is below 1.
    """
    check_key("epoch_order: key", key)
    check_integer("epoch_order: n", n)
    check_integer("epoch_order: batch_size", batch_size)
    key, shuffle = jax.random.split(key)
    batches = n // batch_size
    order = jax.random.permutation(shuffle, n)[: batches * batch_size]
    return order.reshape(batches, batch_size), key
