"""What training refuses, in words: models, optimizers, states, data and functions that are none."""

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.checks import as_jax, check_array, check_key, is_array, is_iterator, parameter_shapes
from jaxnn.settings import check_choice

_NUMBERS = (bool, int, float, complex)


def check_made(model: Any, config: Any, optimizer: Any, gradient: Any, augment: Any = None) -> None:
    """Refuse what no step can be made of.

    Raises:
        ValueError: `gradient` is no known word.
        TypeError: the model lacks a function, the optimizer is none of optax's, the configuration
            none of the model's, or `augment` no function of a key and a batch.
    """
    if augment is not None:
        check_function("augment", augment, "augment(key, batch) -> batch", 2)
    check_choice("gradient", gradient, ("manual", "autodiff"))
    check_model_functions(model, "init_params", *(["loss"] if gradient == "autodiff" else []))
    if gradient == "manual" and not hasattr(model, "manual_value_and_grad"):
        raise TypeError(
            f"{getattr(model, '__name__', model)} has no manual_value_and_grad; write it one, or "
            "train with gradient='autodiff'"
        )
    check_optimizer(optimizer)
    parameter_shapes(model.init_params, config)  # which refuses a configuration that is none


def check_model_functions(model: Any, *names: str) -> None:
    """Refuse what is no model: what lacks one of these functions, as its configuration does.

    Raises:
        TypeError: it lacks one.
    """
    missing = [name for name in names if not callable(getattr(model, name, None))]
    if missing:
        raise TypeError(
            f"model is {getattr(model, '__name__', repr(model)):.50}, without {missing[0]}; it "
            "must be a module with the functions of a model: pass jaxnn.mlp, say"
        )


def check_optimizer(optimizer: Any) -> None:
    """Refuse what is no optimizer: its name, or the function that makes one.

    Raises:
        TypeError: it is none.
    """
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        raise TypeError(
            f"optimizer is {optimizer!r:.50}; it must have the functions init and update, as those "
            "of optax: pass optax.adam(1e-3), say"
        )


def check_state(state: Any, kind: type[NamedTuple]) -> None:
    """Refuse what is no state: parameters alone, the pair that a step returned, or the class.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(state, tuple) or getattr(state, "_fields", ()) != kind._fields:
        raise TypeError(
            f"state is {type(state).__name__}; it must be the State that init_state, or the last "
            "step, returned"
        )


def check_parts(state: Any, optimizer: Any) -> None:
    """Refuse a state whose parts are not those of a state of this optimizer; for a trace.

    Raises:
        TypeError: the optimizer's state is another's, the key is none, or the count no array.
    """
    check_key("state.key", state.key)
    check_array("state.step", state.step)
    given: Any = jax.tree.structure(state.opt_state)
    made: Any = jax.tree.structure(jax.eval_shape(optimizer.init, state.params))
    if given != made:
        raise TypeError(
            f"state.opt_state is {given!s:.200}, which is another optimizer's; this one's is "
            f"{made!s:.200}: it must be the state that init_state made with the same optimizer"
        )


def check_function(name: str, function: Any, form: str, arguments: int) -> None:
    """Refuse what cannot be called with so many arguments.

    Args:
        name: of the argument.
        function: what was given.
        form: what it must be, as in "evaluate(params) -> scalars".
        arguments: how many.

    Raises:
        TypeError: it cannot.
    """
    if not callable(function):
        raise TypeError(f"{name} is {function!r:.50}; it must be a function {form}")
    try:
        takes = inspect.signature(function)
    except (TypeError, ValueError):  # it cannot be looked at
        return
    try:
        takes.bind(*range(arguments))
    except TypeError:
        raise TypeError(f"{name} takes {takes}; it must be a function {form}") from None


def check_kept(minimize: Any, maximize: Any) -> dict[str, str]:
    """Return the column that the best is known by, under its direction; none if none is given.

    Raises:
        TypeError: one is no text.
        ValueError: both are given.
    """
    named = {"minimize": minimize, "maximize": maximize}
    watched = {name: column for name, column in named.items() if column is not None}
    for name, column in watched.items():
        if not isinstance(column, str):
            raise TypeError(f"{name} is {column!r:.50}; it must be a column of the log: 'val_loss'")
    if len(watched) > 1:
        raise ValueError(
            f"minimize is {minimize!r} and maximize {maximize!r}; it must be one column that the "
            "best is known by: leave out the other"
        )
    return watched


def column_kept(columns: Iterable[str], watched: Mapping[str, str]) -> tuple[str, str]:
    """Return "minimize" or "maximize", and the column: as `check_kept` has it, else a loss.

    Raises:
        ValueError: it is none of these columns.
    """
    columns = list(columns)
    default = {"minimize": "val_loss" if "val_loss" in columns else "loss"}
    ((direction, name),) = (watched or default).items()
    if name not in columns:
        raise ValueError(
            f"{direction} is {name!r}; it must be a column of the log: {', '.join(columns)}"
        )
    return direction, name


def check_callbacks(callbacks: Any, form: str, arguments: int) -> None:
    """Refuse what is no tuple or list of functions that can be called with so many arguments.

    Raises:
        TypeError: it is none.
    """
    check_several("callbacks", callbacks, "functions")
    for callback in callbacks:
        check_function("each of callbacks", callback, form, arguments)


def check_several(name: str, values: Any, what: str) -> None:
    """Refuse what is no tuple or list.

    Raises:
        TypeError: it is none; `what` must be in it ends the message.
    """
    if not isinstance(values, tuple | list):
        raise TypeError(f"{name} is {values!r:.50}; it must be a tuple or list of {what}")


def check_evaluate(evaluate: Callable[[Any], Any], params: Any) -> None:
    """Refuse an `evaluate` that does not return a scalar, or several by name; traces it once.

    Raises:
        TypeError: it takes other arguments, cannot be traced, or returns what is no number.
        ValueError: it returns nothing, or an array with axes.
    """
    form = "evaluate(params) -> a scalar, or a dict of them"
    check_function("evaluate", evaluate, form, 1)

    def traced(params: Any) -> None:
        returned = evaluate(params)
        leaves = jax.tree_util.tree_leaves_with_path(returned)
        if not leaves:
            raise ValueError(f"evaluate returned {returned!r}; it must be a function {form}")
        for path, leaf in leaves:
            what = f"evaluate(params){jax.tree_util.keystr(path)}"
            if not isinstance(leaf, _NUMBERS):
                check_array(what, leaf)
            if jnp.shape(leaf):
                raise ValueError(
                    f"{what} has shape {jnp.shape(leaf)}; it must be a scalar: take its mean()"
                )

    with traced_in_words("evaluate"):
        jax.eval_shape(traced, params)


@contextlib.contextmanager
def traced_in_words(name: str) -> Iterator[None]:
    """Say in words that a function, which JAX traces inside, looks at an array's value.

    Raises:
        TypeError: it does.
    """
    try:
        yield
    except jax.errors.JAXTypeError as error:
        raise TypeError(
            f"{name} looks at the value of a traced array; it is compiled, so that it must be "
            "written in jax.numpy, without float(), if or NumPy on what depends on its arguments"
        ) from error


def as_arrays(name: str, batch: Any) -> Any:
    """Return a batch with NumPy's arrays as JAX's.

    Raises:
        TypeError: it holds what is neither an array nor a number.
        ValueError: a value does not fit JAX's dtype for it.
    """
    if all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(batch, is_leaf=is_iterator)):
        return batch

    def converted(path: Any, leaf: Any) -> Any:
        where = name + jax.tree_util.keystr(path)
        if isinstance(leaf, _NUMBERS):
            return leaf
        if not is_array(leaf) and not path:
            raise TypeError(
                f"{name} is a {type(leaf).__name__}; it must be a batch of arrays, as "
                "jaxnn.data.Batch(inputs, targets): wrap each part in jnp.asarray"
            )
        leaf = as_jax(where, leaf)
        check_array(where, leaf)
        return leaf

    return jax.tree_util.tree_map_with_path(converted, batch, is_leaf=_is_no_container)


def _is_no_container(value: Any) -> bool:
    """Whether this is an iterator, or a list of numbers, or of lists of them: an array to be."""
    if is_iterator(value):
        return True
    while isinstance(value, list) and value:
        value = value[0]
        if isinstance(value, _NUMBERS):
            return True
    return False


def count_examples(data: Any) -> int:
    """Return the first dimension that all leaves of the data share.

    Raises:
        ValueError: there is none.
    """
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(data)]
    counts = {shape[0] if shape else None for shape in shapes}
    if len(counts) != 1 or counts & {None, 0}:
        raise ValueError(
            f"the data's arrays have shapes {', '.join(map(str, shapes[:8])) or '(none)'}; all "
            "must share a first dimension, the number of examples, of at least 1"
        )
    (count,) = counts
    return int(count or 0)
