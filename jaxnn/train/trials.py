"""Many runs in one compiled program, each in a lane of its own with its own settings and key.

    def build(settings):
        config = mlp.Config(sizes=(64, 32, 10), l2=settings["l2"], dropout=settings["dropout"])
        return config, optax.adam(settings["learning_rate"])

    start, advance = make_trials(mlp, build, data, epochs=2, batch_size=32)
    settings = {"l2": [0.0, 1e-4], "dropout": [0.0, 0.3], "learning_rate": [1e-3, 2e-3]}
    states = start(jax.random.split(jax.random.key(0), 2), settings)
    states, history = advance(states, settings)  # history.loss (2 lanes, 2 epochs)

In training a setting is a number that JAX traces: `build` may hand it to whatever computes with
it, but cannot look at its value. Of the models that is `l2`, `dropout`, `beta` and `balance`; of
optax nearly all: learning rates, momentum, decay, schedules of them. What changes a shape is
another program.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxnn.train.doors import as_arrays, check_function, check_state
from jaxnn.train.runs import make_run
from jaxnn.train.steps import Augment, Gradient, History, State, init_state

Settings = Mapping[str, Any]
Build = Callable[[dict[str, Any]], tuple[Any, optax.GradientTransformation]]
Evaluate = Callable[[Any, Any], Any]
BUILD = "build(settings) -> (config, optimizer)"
IMPL = "threefry2x32"  # of keys, whose numbers under vmap are those of each alone
Start = Callable[[Any, Settings], State]
Advance = Callable[[State, Settings], tuple[State, History]]


def make_trials(
    model: Any,
    build: Build,
    data: Any,
    *,
    epochs: int,
    batch_size: int,
    gradient: Gradient = "manual",
    evaluate: Evaluate | None = None,
    augment: Augment | None = None,
) -> tuple[Start, Advance]:
    """Return what starts runs, one to a lane, and what trains all of them on for some epochs.

    The second is compiled once for a number of lanes. A lane is what `make_run` would do alone
    with the same settings and key, up to the order in which a machine adds up; none sees another,
    even if that diverges. A lane may be started anew while the others go on: choose, leaf by leaf,
    from the states and from those that `start` returns.

    Args:
        model: a module with the model functions.
        build: `build(settings) -> (config, optimizer)`, of a dict of numbers: Python's where a run
            starts, traced where it is trained.
        data: a batch of all examples, shared by all lanes.
        epochs: of one call of `advance`, at least 1.
        batch_size: from 1 to the number of examples.
        gradient: as in `make_step`.
        evaluate: `evaluate(params, config)` -> a pytree of scalars, taken after each epoch.
        augment: as in `make_step`.

    Returns:
        `start(keys, settings) -> states` and `advance(states, settings) -> (states, history)`, of
        keys (lanes,) and a dict of numbers (lanes,) each; what they return has lanes as its first
        axis, the history (lanes, epochs).

    Raises:
        TypeError, ValueError: from `start`, as `make_run`; the keys or settings are not of as many
            lanes, or the keys of "rbg", which draws other numbers in lanes than alone; `build`
            returns no pair or, from `advance`, looks at the value of a setting.
    """
    check_function("build", build, BUILD, 1)

    def made(settings: dict[str, Any], data: Any) -> Callable[[State], tuple[State, History]]:
        config, optimizer = built(build, settings)
        return make_run(
            model,
            config,
            optimizer,
            data,
            epochs=epochs,
            batch_size=batch_size,
            gradient=gradient,
            evaluate=None if evaluate is None else lambda params: evaluate(params, config),
            augment=augment,
        )

    @jax.jit
    def advanced(states: State, settings: dict[str, Any], data: Any) -> tuple[State, History]:
        def of_lane(state: State, own: dict[str, Any]) -> tuple[State, History]:
            trained: tuple[State, History] = made(own, data)(state)
            return trained

        trained: tuple[State, History] = jax.vmap(of_lane)(states, settings)
        return trained

    arrays = as_arrays("data", data)

    def start(keys: Any, settings: Settings) -> State:
        lanes = [
            {name: value.item() for name, value in zip(settings, own, strict=True)}
            for own in zip(*_in_lanes(settings, keys).values(), strict=True)
        ] or [{} for _ in keys]
        made(lanes[0], data)  # which refuses data that the model cannot take
        # One by one: compiled together, the draws would take as long as the training to compile.
        states = [
            init_state(model, *built(build, own), key) for own, key in zip(lanes, keys, strict=True)
        ]
        stacked: State = jax.tree.map(_stacked, *states)
        return stacked

    def advance(states: State, settings: Settings) -> tuple[State, History]:
        check_state(states, State)
        with _in_words():
            done: tuple[State, History] = advanced(states, _in_lanes(settings, states.key), arrays)
        return done

    return start, advance


def built(build: Build, settings: Any) -> tuple[Any, Any]:
    """Return the configuration and the optimizer that `build` makes of the settings.

    Raises:
        TypeError: it returns no pair.
    """
    made: Any = build(settings)
    if not (type(made) in (tuple, list) and len(made) == 2):
        raise TypeError(
            f"build returns {made!r:.50}; it must return a pair, (config, optimizer): "
            "return mlp.Config(...), optax.adam(...), say"
        )
    config, optimizer = made
    return config, optimizer


def _stacked(*leaves: Any) -> Array:
    """Arrays of one shape as one array, keys as one array of keys."""
    if jnp.issubdtype(leaves[0].dtype, jax.dtypes.prng_key):
        return jnp.stack(leaves)
    return jnp.asarray(np.stack(leaves))  # NumPy's has nothing to compile


def _in_lanes(settings: Settings, keys: Any) -> dict[str, Array]:
    """The settings as arrays, one number to a lane."""
    if not isinstance(settings, Mapping):
        raise TypeError(
            f"settings is {settings!r:.50}; it must be a dict of numbers, one to each lane"
        )
    if not (isinstance(keys, jax.Array) and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)):
        raise TypeError(
            f"keys is {keys!r:.50}; it must be keys, one to each lane: "
            "jax.random.split(jax.random.key(0), lanes)"
        )
    impl = str(jax.random.key_impl(keys))
    if "rbg" in impl:
        raise ValueError(
            f"keys are of {impl}, which draws other numbers in lanes than alone; they must be of "
            f"{IMPL}: jax.random.split(jax.random.key(0, impl={IMPL!r}), lanes)"
        )
    arrays = {}
    for name, values in settings.items():
        try:
            arrays[name] = jnp.asarray(values, float)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"settings[{name!r}] is {values!r:.50}; it must be numbers, one to each lane"
            ) from error
    shape = keys.shape
    shapes = {name: values.shape for name, values in arrays.items()}
    if len(shape) != 1 or not shape[0] or any(other != shape for other in shapes.values()):
        raise ValueError(
            f"keys have shape {shape}, the settings {shapes}; all must have one shape, (lanes,): "
            "make the keys with jax.random.split(key, lanes), and give a number to each lane"
        )
    return arrays


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    """What JAX raises where `build` looks at a value that is traced."""
    try:
        yield
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise TypeError(
            "build looks at the value of a setting, which JAX traces, for the program is the same "
            "whatever it is; it must only compute with it: use jnp.where, scale a schedule of peak "
            "1, or search for it as an integer or a category"
        ) from error
