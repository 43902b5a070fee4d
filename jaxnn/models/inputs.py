"""What every model refuses: parameters of another configuration, inputs it cannot take."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax import Array

from jaxnn.checks import check_array, check_finite, check_floating
from jaxnn.settings import check_number

Init = Callable[[Array, Any], Any]
Parts = TypeVar("Parts", bound=NamedTuple)

_ORDER = "pass the parameters, then the batch (or the inputs), then the configuration"


@cache
def parameter_shapes(init_params: Init, config: Any) -> Any:
    """The parameters that a model's `init_params` makes, as `jax.ShapeDtypeStruct`s."""
    return jax.eval_shape(lambda key: init_params(key, config), jax.random.key(0))


def check_dropout(rate: Any) -> float:
    """A configuration's dropout, as a float.

    Raises:
        TypeError: it is no number.
        ValueError: it is outside [0, 1).
    """
    return check_number("dropout", rate, "in [0, 1), the probability to drop", lambda r: 0 <= r < 1)


def check_params(params: Any, init_params: Init, config: Any) -> None:
    """Refuse parameters of another configuration.

    Raises:
        TypeError: they are not of the kind that `init_params` makes.
        ValueError: an array is missing, too many, or has another shape than `init_params` makes.
    """
    made = parameter_shapes(init_params, config)
    if not isinstance(params, type(made)):
        raise TypeError(
            f"params is a {type(params).__name__}; it must be the {type(made).__module__}."
            f"{type(made).__name__} that init_params makes: {_ORDER}"
        )
    found, needed = _shapes(params), _shapes(made)
    if found != needed:
        wrong = [path for path in needed | found if found.get(path) != needed.get(path)]
        raise ValueError(
            f"parameters{wrong[0]} ({len(wrong)} such in all) has shape {found.get(wrong[0])}, the "
            f"configuration needs {needed.get(wrong[0])}; they must fit: use the configuration "
            "that the parameters came from"
        )


def unpack(batch: Any, kind: type[Parts]) -> Parts:
    """The batch as this kind of NamedTuple, from its parts; the last may have defaults.

    Raises:
        TypeError: it is no tuple or list, or of too few or too many parts.
    """
    most = len(kind._fields)
    least = most - len(kind._field_defaults)
    if not (isinstance(batch, tuple | list) and least <= len(batch) <= most):
        parts = f" of {len(batch)}" if type(batch) in (tuple, list) else ""
        raise TypeError(
            f"batch is a {type(batch).__name__}{parts}; it must be "
            f"the {kind.__module__}.{kind.__name__} ({', '.join(kind._fields)}) or a tuple of the "
            f"same: {_ORDER}"
        )
    return kind(*batch)


def check_inputs(inputs: Any, dtype: Any, *shapes: tuple[int, ...]) -> None:
    """Refuse what are no examples of the parameters' dtype, each of one of these shapes.

    Raises:
        TypeError: the inputs are no floating array, or of another dtype.
        ValueError: their shape is another, there is none, or (outside jit) a value is not finite.
    """
    check_floating("inputs", inputs)
    if inputs.dtype != dtype:
        raise TypeError(
            f"inputs have dtype {inputs.dtype}, the parameters {dtype}; they must be the same "
            f"floating dtype: cast with inputs.astype({str(dtype)!r})"
        )
    if inputs.shape[1:] not in shapes or inputs.shape[:1] in ((), (0,)):
        allowed = " or ".join(f"(examples, {', '.join(map(str, shape))})" for shape in shapes)
        raise ValueError(
            f"inputs have shape {inputs.shape}; they must be {allowed} with at least one example: "
            "check the size, add a batch dimension with x[None], or configure the model for it"
        )
    if not isinstance(inputs, jax.core.Tracer):
        check_finite("inputs", inputs)


def check_tokens(tokens: Any) -> None:
    """Refuse what are no sequences; what a token is, `jaxnn.ops.linear` checks.

    Raises:
        TypeError: the tokens are no array.
        ValueError: their shape is not (N, T) with N and T at least 1.
    """
    check_array("tokens", tokens)
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise ValueError(
            f"tokens have shape {tokens.shape}; they must be (sequences, steps) with at least one "
            "of each: add the missing dimension with tokens[None]"
        )


def _shapes(params: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in leaves}
