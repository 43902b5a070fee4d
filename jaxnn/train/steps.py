"""A run's state and its training steps, compiled, for any module with the model functions.

    optimizer = optax.adam(1e-3)
    state = init_state(model, config, optimizer, jax.random.key(0))
    step = make_step(model, config, optimizer)
    state, loss = step(state, batch)

Optimizers, schedules and clipping are optax's. With a mesh the state is spread over its devices;
the gradient by hand says what they send each other, and the compiler the rest.

A model that draws in training (dropout, a latent sample) has a batch with a field `key`, None in
evaluation: every step hands it a fresh one, so leave it None in the data.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnn import mesh as layouts
from jaxnn.calls import path_name
from jaxnn.checks import check_batch, check_key
from jaxnn.mesh import Layout, Rules, lay_out
from jaxnn.settings import check_flag
from jaxnn.train.doors import (
    as_arrays,
    check_made,
    check_model_functions,
    check_optimizer,
    check_parts,
    check_state,
)

Gradient = Literal["manual", "autodiff"]
Augment = Callable[[Array, Any], Any]


class State(NamedTuple):
    """All that a training run carries: save it and the run can go on.

    Attributes:
        params: the model's parameters.
        opt_state: the optimizer's own state.
        step: how many optimizer steps were taken, int32.
        key: the PRNG key that the next epoch's shuffle and, with `step`, each step's draws are of.
    """

    params: Any
    opt_state: Any
    step: Array
    key: Array


class History(NamedTuple):
    """What a run saw, epoch by epoch.

    Attributes:
        loss: (epochs,) mean over the epoch's batches, each before its own step.
        metrics: what `evaluate` returned after each epoch, stacked; None without it.
    """

    loss: Array
    metrics: Any


def init_state(
    model: Any,
    config: Any,
    optimizer: optax.GradientTransformation,
    key: Array,
    *,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
) -> State:
    """Return a state with fresh parameters and no step taken.

    Args:
        model: a module with the model functions.
        config: its configuration.
        optimizer: any optax optimizer.
        key: of `jax.random`.
        mesh: spread the state over the devices of this mesh; no device holds all of it.
        rules: of the mesh, as `jaxnn.mesh.lay_out` takes them.

    Raises:
        TypeError: the key is none of `jax.random`, the optimizer none of optax's, or the
            configuration none of the model's; and as `jaxnn.mesh.lay_out`.
        ValueError: as `jaxnn.mesh.lay_out`.
    """
    check_key("init_state: key", key)
    check_model_functions(model, "init_params")
    check_optimizer(optimizer)

    def fresh(key: Array) -> State:
        k_params, k_run = jax.random.split(key)
        params = model.init_params(k_params, config)
        return State(params, optimizer.init(params), jnp.zeros((), jnp.int32), k_run)

    layout = layout_of(model, config, mesh, rules)
    if layout is None:
        return fresh(key)
    placed = state_shardings(layout, optimizer)
    explicit = jax.sharding.get_abstract_mesh().explicit_axes  # a key made there is of that mesh
    with layouts.entered(layout):
        key = jax.device_put(key, placed.key) if explicit else key
        drawn: State = jax.jit(fresh, out_shardings=placed)(key)
    return drawn


def state_shardings(layout: Layout, optimizer: optax.GradientTransformation) -> State:
    """Return where each array of a state is on a mesh; of each what `jax.device_put` takes."""
    opt_state = jax.eval_shape(optimizer.init, layout.shapes)
    all_devices: Any = NamedSharding(layout.mesh, P())
    of_optimizer = layouts.optimizer_shardings(layout, opt_state)
    return State(layouts.shardings(layout), of_optimizer, all_devices, all_devices)


def layout_of(model: Any, config: Any, mesh: Any, rules: Rules | None) -> Layout | None:
    """Return where a model is on a mesh; None without one.

    Raises:
        TypeError, ValueError: as `jaxnn.mesh.lay_out`; there are rules and no mesh, or no devices.
    """
    if mesh is None:
        if rules is not None:
            raise ValueError(
                f"rules is {rules!r:.50} without a mesh; they must be of one: pass mesh=..."
            )
        return None
    if isinstance(mesh, AbstractMesh):
        raise TypeError(
            "mesh is a jax.sharding.AbstractMesh, which has no devices; it must be a "
            "jax.sharding.Mesh: make one with jax.make_mesh"
        )
    return lay_out(model, config, mesh, rules)


def make_step(
    model: Any,
    config: Any,
    optimizer: optax.GradientTransformation,
    gradient: Gradient = "manual",
    augment: Augment | None = None,
    *,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    donate: bool = False,
) -> Callable[[State, Any], tuple[State, Array]]:
    """Return one optimizer step, compiled once per batch shape.

    Compiled, it sees the batch's shapes and dtypes only, never its values: a label out of range
    gives NaN. `make_run` looks at the values too, as does the model's loss outside `jax.jit`.

    Args:
        model: a module with `init_params`, `loss` and, for "manual", `manual_value_and_grad`.
        config: its configuration, static.
        optimizer: any optax optimizer.
        gradient: "manual" for the hand-written backward, "autodiff" for `jax.grad` of the loss.
        augment: `augment(key, batch)` -> a batch of the same shapes and dtypes to train on in its
            place, drawn anew at every step from a key of its own (see `jaxnn.augment`).
        mesh: run on the devices of this mesh, with a state of `init_state` on it. "manual" is then
            `jaxnn.mesh.value_and_grad`, with "autodiff" the compiler spreads the loss. A batch
            spread there already must be of `jaxnn.mesh.place`, for on a ring tokens have an order.
        rules: of the mesh, as `jaxnn.mesh.lay_out` takes them.
        donate: whether the step may write the new state where the old one is, which is used up: one
            that is looked at afterwards raises RuntimeError. `fit` looks at it: no.

    Returns:
        `step(state, batch) -> (state, loss)`, the loss before the step.

    Raises:
        ValueError: `gradient` is another word, or, from the step, `augment` returned other shapes
            or dtypes; and as `jaxnn.mesh.lay_out` and `place`.
        TypeError: the model has no `manual_value_and_grad`, the optimizer is none of optax's, the
            configuration none of the model's, `augment` is no function, or, from the step, its
            first argument no `State` or its second no tuple of as many parts as the model's
            `Batch`.
        AssertionError: from the step's first call, if the hand-written gradient's leaves have not
            the shapes and dtypes of the parameters.
    """
    check_made(model, config, optimizer, gradient, augment)
    check_flag("donate", donate)
    layout = layout_of(model, config, mesh, rules)
    taken = one_step(model, config, optimizer, gradient, augment, layout)
    donated = (0,) if donate else ()
    if layout is None:
        compiled = jax.jit(taken, donate_argnums=donated)
    else:
        placed = state_shardings(layout, optimizer)
        compiled = jax.jit(taken, donate_argnums=donated, out_shardings=(placed, None))

    def step(state: State, batch: Any) -> tuple[State, Array]:
        check_state(state, State)
        batch = as_arrays("batch", batch)
        with layouts.entered(layout):
            if layout is not None:
                state = on_mesh(layout, state, placed)
                batch = layouts.place(for_batches(layout, gradient), as_batch(model, batch))
            stepped: tuple[State, Array] = compiled(state, batch)
        return stepped

    return step


def one_step(
    model: Any,
    config: Any,
    optimizer: optax.GradientTransformation,
    gradient: str,
    augment: Augment | None,
    layout: Layout | None = None,
) -> Callable[[State, Any], tuple[State, Array]]:
    """Return one optimizer step, not yet compiled."""
    by_hand = gradient == "manual"
    of_batch = model.manual_value_and_grad if by_hand else jax.value_and_grad(model.loss)
    over_devices = layouts.value_and_grad(model, layout) if layout and by_hand else None

    def value_and_grad(params: Any, batch: Any) -> tuple[Array, Any]:
        if layout is not None:
            batch = lax.with_sharding_constraint(batch, layouts.batch_shardings(layout, batch))
        found: tuple[Array, Any] = (
            of_batch(params, batch, config) if over_devices is None else over_devices(params, batch)
        )
        return found

    def step(state: State, batch: Any) -> tuple[State, Array]:
        check_parts(state, optimizer)
        batch = as_batch(model, batch)
        # Of the key and the step's number, and no link in a chain of keys: what nothing draws from
        # is not computed.
        k_augment, k_draw = jax.random.split(_step_key(state))
        if augment is not None:
            text = layout and for_batches(layout, gradient)
            batch = layouts.in_order(text, batch, back=True) if text else batch
            batch = augmented(augment, k_augment, batch)
            batch = layouts.in_order(text, batch) if text else batch
        if hasattr(batch, "key"):
            batch = batch._replace(key=k_draw)
        loss, grads = value_and_grad(state.params, batch)
        chex.assert_trees_all_equal_shapes_and_dtypes(grads, state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(params, opt_state, state.step + 1, state.key), loss

    return step


def for_batches(layout: Layout, gradient: str) -> Layout:
    """Return the layout of batches: by autodiff tokens stay in the order of the text."""
    by_hand = gradient == "manual"
    return layout if by_hand else layout._replace(axes=layout.axes._replace(sequence=()))


def on_mesh(layout: Layout, state: State, placed: State) -> State:
    """Return a state spread over a mesh, as it mostly is already.

    Raises:
        ValueError: a parameter has another shape than the configuration's.
    """
    given: Any = jax.tree.structure(state)
    if given != jax.tree.structure(placed):
        return state  # the step says what it has not
    shapes = jax.tree.leaves(layout.shapes)
    for (path, leaf), made in zip(
        jax.tree_util.tree_leaves_with_path(state.params), shapes, strict=True
    ):
        if jnp.shape(leaf) != made.shape:
            raise ValueError(
                f"state.params has {path_name(path)} of shape {jnp.shape(leaf)}, the configuration "
                f"makes it of {made.shape}: take the state that init_state made with it"
            )
    moved: State = jax.device_put(state, placed)
    return moved


def _step_key(state: State) -> Array:
    """Return the key of the step that is next; none that splitting the state's key would give."""
    # Splitting counts from 0 up, steps are below 2^31.
    return jax.random.fold_in(state.key, state.step.astype(jnp.uint32) + jnp.uint32(2**31))


def augmented(augment: Augment, key: Array, batch: Any) -> Any:
    """Return the batch to train on in place of this one, which is of the same shapes and dtypes."""
    drawn = augment(key, batch)
    given, returned = (_described(tree) for tree in (batch, drawn))
    if given != returned:
        raise ValueError(
            f"augment returned {returned}; it must return what it was given, {given}: a batch of "
            "the same structure, shapes and dtypes"
        )
    return drawn


def _described(tree: Any) -> str:
    """Return what arrays a tree holds, and where, in a line."""
    return str(jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", tree))


def as_batch(model: Any, batch: Any) -> Any:
    """Return a plain tuple, or a batch that lacks only the key, as the model's own `Batch`."""
    kind = getattr(model, "Batch", None)
    fields = _fields(kind)
    without_key = tuple(name for name in fields if name != "key")
    if kind is None or not fields:
        return batch
    if type(batch) in (tuple, list):
        check_batch(batch, kind)
        return kind(*batch)
    if "key" in fields and _fields(batch) == without_key:
        return kind(**batch._asdict())
    return batch


def _fields(value: Any) -> tuple[str, ...]:
    """Return the names of the fields of a NamedTuple, or of its class; () for anything else."""
    return getattr(value, "_fields", ())
