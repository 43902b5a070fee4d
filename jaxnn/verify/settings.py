"""Numbers among the arguments that are 0 or 1, where what they multiply or add cannot be seen.

Each is moved, in the call of both functions, and the gradients are compared again: in an argument,
in a field of a configuration, and in a default that was left as it is.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnn.verify.oracle import stripped
from jaxnn.verify.problem import Problem, to_float64
from jaxnn.verify.programs import Programs
from jaxnn.verify.values import ask, largest

# What differs by less of a leaf's scale does not.
SAME = 1e-6
# So many numbers are tried.
MOST = 8
MOVED = {0.0: 0.3, 1.0: 1.3, -1.0: -1.3}


class Neutral(NamedTuple):
    """A number that is 0 or 1, and the call with another in its place.

    Attributes:
        name: what it is called.
        value: what it is.
        args: the arguments with it moved; None where it cannot be, for the reason `why`.
        kwargs: those by name, likewise.
        why: see above.
    """

    name: str
    value: float
    args: tuple[Any, ...] | None
    kwargs: dict[str, Any]
    why: str = ""


def neutral_settings(
    functions: tuple[Callable[..., Any], Callable[..., Any]],
    problem_of: Callable[[tuple[Any, ...], dict[str, Any]], Problem],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[str, ...]:
    """The numbers that are 0 or 1 and with which the two gradients differ where they are moved.

    Args:
        functions: the loss and the hand-written gradient, whose defaults are looked at.
        problem_of: the same problem with other arguments.
        args: those given by position, after the parameters.
        kwargs: those given by name.
    """
    found = []
    for neutral in list(_neutral(*functions, args, kwargs))[:MOST]:
        what = f"{neutral.name} is {neutral.value:g}"
        if neutral.args is None:
            found.append(f"{what}{neutral.why}: what it multiplies or adds would not show")
            continue
        differs = _differ(problem_of(neutral.args, neutral.kwargs))
        if differs:
            found.append(
                f"{what}: at {MOVED[neutral.value]:g} the two gradients differ by {differs:.1e} of "
                "the scale: is it left out?"
            )
    return tuple(found)


def _differ(problem: Problem) -> float:
    """How far the gradients differ, of the scale; 0 where they do not or cannot be computed.

    A whole number may choose an axis, and a number may have only one value that is allowed: then
    the functions raise, and nothing is to be learned.
    """
    problem = problem._replace(loss=stripped(problem.loss))
    with jax.enable_x64(True):
        floats, rest = to_float64(problem.floats), to_float64(problem.rest)
        try:
            asked = ask(problem, Programs(), "moved", floats, rest)
            values = asked.at(floats, rest)
        except Exception:  # whatever the functions raise for a value they were not given
            return 0.0
    worst = 0.0
    for path, autodiff in zip(problem.paths, values.autodiff, strict=True):
        manual = values.manual.get(path)
        comparable = manual is not None and manual.shape == autodiff.shape
        if manual is None or not comparable or not np.isfinite(autodiff).all():
            continue
        scale = max(largest(autodiff), largest(manual)) or 1.0
        allowed = max(SAME, 64 * asked.width)
        difference = largest(manual - autodiff) / scale
        worst = max(worst, difference if difference > allowed else 0.0)
    return worst


def _neutral(
    loss: Callable[..., Any],
    manual_grad: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Iterator[Neutral]:
    """Every number that is 0 or 1 in a call, in its configurations, and among the defaults."""
    names = _names(loss)
    leaves, tree = jax.tree_util.tree_flatten_with_path((args, kwargs))
    values = [leaf for _, leaf in leaves]

    def replaced(i: int, value: Any) -> tuple[Any, ...]:
        both: tuple[Any, ...] = jax.tree.unflatten(tree, [*values[:i], value, *values[i + 1 :]])
        return both

    for i, (path, leaf) in enumerate(leaves):
        name = _name(path, names)
        if _is_neutral(leaf):
            yield Neutral(name, leaf, *replaced(i, MOVED[float(leaf)]))
        for field, value in _fields(leaf):
            if not _is_neutral(value):
                continue
            try:
                other = _with_field(leaf, field, MOVED[float(value)])
            except Exception as error:  # a configuration may check what it is given
                if isinstance(value, float):
                    why = f" and cannot be moved ({type(error).__name__}: {error})"
                    yield Neutral(field, value, None, {}, why)
                continue
            yield Neutral(field, value, *replaced(i, other))
    theirs = _defaults(manual_grad)
    given = {*names[: 1 + len(args)], *kwargs}
    for name, value in _defaults(loss).items():
        if name in given or not _is_neutral(value):
            continue
        if name in theirs or theirs.get("**"):
            yield Neutral(name, value, args, {**kwargs, name: MOVED[float(value)]})
        elif isinstance(value, float):
            why = " by default, and the hand-written gradient does not take it"
            yield Neutral(name, value, None, {}, why)


def _is_neutral(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and float(value) in MOVED


def _fields(leaf: Any) -> list[tuple[str, Any]]:
    """The fields of a configuration; none of anything else."""
    if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
        return [(field.name, getattr(leaf, field.name)) for field in dataclasses.fields(leaf)]
    return list(vars(leaf).items()) if isinstance(leaf, SimpleNamespace) else []


def _with_field(leaf: Any, name: str, value: Any) -> Any:
    if isinstance(leaf, SimpleNamespace):
        return SimpleNamespace(**{**vars(leaf), name: value})
    return dataclasses.replace(leaf, **{name: value})


def _names(function: Callable[..., Any]) -> list[str]:
    """The names of the positional arguments."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some built-in callables have none to look at
        return []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """The defaults of a function's arguments, None where there is none; "**" where it takes all."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return {}
    found = {p.name: None if p.default is p.empty else p.default for p in parameters}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        found["**"] = True
    return found


def _name(path: tuple[Any, ...], names: list[str]) -> str:
    """An argument by the name that the loss has for it, with the path inside it."""
    if path[0].idx == 1:
        return str(path[1].key) + jax.tree_util.keystr(path[2:])
    number = path[1].idx + 1
    name = names[number] if number < len(names) else f"argument {number + 1}"
    return name + jax.tree_util.keystr(path[2:])
