"""Move numbers among the arguments that are 0, 1 or equal, which hide what is wrong there.

They are moved, in the call of both functions, and the gradients are compared again: in an argument,
wherever a configuration holds them, and in a default that was left as it is. So are the arrays in
configurations and defaults, which the second point does not reach.
"""

import inspect
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnn.verify.arguments import is_array
from jaxnn.verify.findings import first_line
from jaxnn.verify.problem import Problem
from jaxnn.verify.programs import Programs
from jaxnn.verify.second_point import MOVE, moved_off
from jaxnn.verify.slots import Slot, is_scalar, slots_in
from jaxnn.verify.values import in_float64, largest

# What differs by less of a leaf's scale does not.
SAME_GRADIENT = 1e-6
# So many numbers are tried one by one, and so many are looked for.
MOST, MOST_FOUND = 16, 256
# What a number becomes; the second where the first is not allowed.
MOVED = {0.0: (0.3, -0.3), 1.0: (1.3, 0.7), -1.0: (-1.3, -0.7)}
WHOLE = {0: 1, 1: 2, -1: -2}
ProblemOf = Callable[[tuple[Any, ...], dict[str, Any]], Problem]


class Place(NamedTuple):
    """Where in a call a number or an array is.

    Attributes:
        slot: its name, what it is, and how it is replaced in its argument.
        of: the argument's position, or its name.
        argument: the argument.
        why: why it cannot be moved; else empty.
    """

    slot: Slot
    of: int | str
    argument: Any
    why: str = ""


class _MovedCall(NamedTuple):
    """A call whose numbers are moved."""

    problem_of: ProblemOf
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def differ(self, moves: list[tuple[Place, Any]]) -> float | str:
        """Return how far the gradients differ with other values, of the scale; 0 where they do not.

        What is raised, in words, or that something is not finite, where nothing can be learned.
        """
        args, kwargs = list(self.args), dict(self.kwargs)
        try:
            for place, new in moves:
                if isinstance(place.of, int):
                    args[place.of] = place.slot.put(args[place.of], new)
                else:
                    argument = kwargs.get(place.of, place.argument)
                    kwargs[place.of] = place.slot.put(argument, new)
            return _difference(self.problem_of(tuple(args), kwargs))
        except Exception as error:  # whatever a class or function raises for what it is not given
            return f"{type(error).__name__}: {first_line(error):.100}"


def neutral_settings(
    functions: tuple[Callable[..., Any], Callable[..., Any]],
    problem_of: ProblemOf,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[str, ...]:
    """List the numbers that are neutral and with which the gradients differ if they are moved.

    Floats are moved together at first; whole numbers, which may choose an axis or a count, one by
    one, to another whole number where a fraction is not allowed.

    Args:
        functions: the loss and the hand-written gradient, whose defaults are looked at.
        problem_of: the same problem with other arguments.
        args: those given by position, after the parameters.
        kwargs: those given by name.
    """
    call = _MovedCall(problem_of, args, kwargs)
    places = list(itertools.islice(_places(*functions, args, kwargs), MOST_FOUND))
    found = [
        f"{p.slot.name} is {p.slot.value:g}{p.why}: what it multiplies or adds would not show"
        for p in places
        if p.why
    ]
    free = [p for p in places if not p.why]
    whole = [p for p in free if _is_whole(p.slot.value)]
    floats = [p for p in free if not _is_whole(p.slot.value)]
    if floats:
        together = call.differ([(p, _ways(p.slot.value, k)[0]) for k, p in enumerate(floats)])
        if together:
            one_by_one = _each(call, floats[:MOST])
            found += one_by_one
            if not one_by_one and not isinstance(together, str):
                names = ", ".join(p.slot.name for p in floats)
                found.append(
                    f"{names}: where they are moved together, the two gradients differ by "
                    f"{together:.1e} of the scale: is one left out?"
                )
    return (*found, *_each(call, whole[:MOST]))


def _each(call: _MovedCall, places: list[Place]) -> list[str]:
    """What is seen where numbers and arrays are moved one by one."""
    found = []
    for place in places:
        name, value = place.slot[:2]
        differs: float | str = 0.0
        for new in _ways(value):
            differs = call.differ([(place, new)])
            if not isinstance(differs, str):
                break
        is_what = f" is {value:g}" if is_scalar(value) else ""
        if isinstance(differs, str):
            if is_scalar(value) and not _is_whole(value):
                found.append(
                    f"{name}{is_what} and cannot be moved ({differs}): what it multiplies or adds "
                    "would not show"
                )
        elif differs:
            at = f"at {new:g}" if is_scalar(value) else "where it is moved,"
            found.append(
                f"{name}{is_what}: {at} the two gradients differ by {differs:.1e} of the scale: is "
                "it left out, or relied on?"
            )
    return found


def _ways(value: Any, k: int = 0) -> list[Any]:
    """What a number or an array is moved to, the best first; one of several by its number."""
    if not is_scalar(value):
        rng = np.random.default_rng(k)
        return [moved_off(value, size, rng) for size in (MOVE, -MOVE)]
    ways = MOVED.get(float(value), (1.3 * value, 0.7 * value))
    # Numbers that are moved alike could make up for each other.
    moved = [type(value)(w * (1 + 0.03 * k)) if not _is_whole(value) else w for w in ways]
    return [*moved, WHOLE[int(value)]] if _is_whole(value) else moved


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer)


def _difference(problem: Problem) -> float | str:
    """How far the gradients differ, of the scale; 0 where they do not, words where not finite."""
    with jax.enable_x64(True):
        values = in_float64(problem, Programs(), "moved")
    worst = 0.0
    for path, autodiff in zip(problem.paths, values.autodiff, strict=True):
        manual = values.manual.get(path)
        if manual is None or manual.shape != autodiff.shape:
            continue
        if not (np.isfinite(autodiff).all() and np.isfinite(manual).all()):
            return "a gradient is not finite there"
        scale = max(largest(autodiff), largest(manual)) or 1.0
        allowed = max(SAME_GRADIENT, 64 * values.width)
        difference = largest(manual - autodiff) / scale
        worst = max(worst, difference if difference > allowed else 0.0)
    return worst


def _places(
    loss: Callable[..., Any],
    manual_grad: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Iterator[Place]:
    """The numbers of a call that are 0, 1 or equal to another, and arrays in configurations."""
    names, theirs = _names(loss), _defaults(manual_grad)
    leaves = {id(leaf) for leaf in jax.tree.leaves((args, kwargs)) if is_array(leaf)}
    given = {*names[: 1 + len(args)], *kwargs}
    arguments: list[tuple[int | str, str, Any, str]] = [
        (i, names[i + 1] if i + 1 < len(names) else f"argument {i + 2}", argument, "")
        for i, argument in enumerate(args)
    ]
    arguments += [(name, name, argument, "") for name, argument in kwargs.items()]
    for name, default in _defaults(loss).items():
        if name not in given and name != "**":
            taken = name in theirs or "**" in theirs
            why = "" if taken else " by default, and the hand-written gradient does not take it"
            arguments.append((name, name, default, why))
    places = [
        Place(inner, of, argument, why)
        for of, name, argument, why in arguments
        for inner in slots_in(name, argument)
        if id(inner.value) not in leaves
    ]
    values = Counter(float(p.slot.value) for p in places if _is_float(p.slot.value))
    for place in places:
        value = place.slot.value
        neutral = is_scalar(value) and float(value) in MOVED
        equal = _is_float(value) and values[float(value)] > 1 and not place.why
        if neutral or equal or (not is_scalar(value) and not place.why):
            yield place


def _is_float(value: Any) -> bool:
    return is_scalar(value) and not _is_whole(value)


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
