"""Settings checked: numbers, integers, flags and words, each returned as plain Python has it.

Every message has the name and the value, the rule, and the fix.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxnn.numerics import is_traced

MOST = 2**31  # what JAX counts the positions along an axis to
# Layers that are written out in a program one after another: to look at more takes a minute.
MOST_LAYERS = 500


def check_number(
    name: str, value: Any, rule: str = "finite", holds: Callable[[float], bool] = math.isfinite
) -> float:
    """A real number for which `holds` is true, as a float.

    Args:
        name: of the setting, with its owner's before it, as in "dropout: rate".
        value: what was given.
        rule: what must hold, in words that follow "must be", and the fix.
        holds: the same as a function; NaN should fail it.

    Raises:
        TypeError: it is no number, or traced by JAX.
        ValueError: the rule does not hold.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} is {value!r}; it must be a number of Python's, {rule}")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond every float
        number = math.inf
    if not holds(number):
        raise ValueError(f"{name} is {value!s:.50}; it must be {rule}")
    return number


def check_normal(name: str, value: Any, dtype: Any, hint: str) -> float:
    """A positive number that is normal in this dtype, or in float32 if that is wider, as a float.

    What is no normal number, a processor may take for 0.

    Raises:
        TypeError: it is no number.
        ValueError: it is not positive, too small or too large; `hint` ends the message.
    """
    limits = np.finfo(np.promote_types(dtype, np.float32))
    least, most = float(limits.tiny), float(limits.max)
    rule = f"finite and positive in {limits.dtype}{hint}"
    return check_number(name, value, rule, lambda number: least <= number <= most)


def check_integer(name: str, value: Any, least: int = 1, hint: str = "") -> int:
    """An integer of at least `least`, as an int; True and False are none.

    Raises:
        TypeError: it is no integer.
        ValueError: it is smaller, or beyond 32 bits, which is what JAX counts in.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r}; it must be an integer of at least {least}{hint}")
    if value < least:
        raise ValueError(f"{name} is {value!s:.50}; it must be at least {least}{hint}")
    if value >= MOST:
        raise ValueError(f"{name} is {value!s:.50}; it must be below {MOST}: choose less")
    return int(value)


def check_flag(name: str, value: Any) -> bool:
    """True or False.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {value!r}; it must be True or False")
    return bool(value)


def check_choice(name: str, value: Any, choices: Any) -> str:
    """One of these words.

    Raises:
        ValueError: it is none of them.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, choices))}")
    return value


def check_sizes(name: str, sizes: Any) -> tuple[int, ...]:
    """A sequence of integers of at least 1, as a tuple.

    Raises:
        TypeError: they are no sequence of integers.
        ValueError: one is below 1, or there are more than 500.
    """
    if not isinstance(sizes, Sequence) or isinstance(sizes, str):
        raise TypeError(f"{name} is {sizes!r}; it must be a tuple of integers: (8, 8), say")
    check_depth(name, len(sizes))
    return tuple(check_integer(f"each of {name} {sizes!s:.80}", size) for size in sizes)


def check_depth(name: str, layers: int) -> None:
    """Refuse more layers than a program can have one after another.

    Raises:
        ValueError: there are more than 500.
    """
    if layers > MOST_LAYERS:
        raise ValueError(
            f"{name} asks for {layers} layers; there may be at most {MOST_LAYERS}, for each is "
            "written out in the program: choose fewer"
        )


def check_factor(name: str, value: Any, rule: str, holds: Callable[[float], bool]) -> Any:
    """A number as `check_number` has it or, as it is, one that JAX traces.

    For what multiplies a term, or drops elements: a program is the same whatever its value, and
    many runs, each of its own, can be one program.

    Raises:
        TypeError, ValueError: as `check_number`.
    """
    return value if is_traced(value) else check_number(name, value, rule, holds)


def check_rate(name: str, rate: Any) -> Any:
    """The probability to drop an element, in [0, 1), as a float, or traced.

    Raises:
        TypeError: it is no number.
        ValueError: it is outside [0, 1).
    """
    rule = "in [0, 1), the probability to drop an element: to keep a share p pass 1 - p"
    return check_factor(name, rate, rule, lambda r: 0 <= r < 1)


def check_coefficient(name: str, value: Any) -> Any:
    """The weight of a term of the loss, as a float, or traced.

    Raises:
        TypeError: it is no number.
        ValueError: it is negative or not finite.
    """
    return check_factor(name, value, "finite and at least 0", lambda c: 0 <= c < math.inf)


def check_per_axis(name: str, value: Any, axes: int, least: int = 1, hint: str = "") -> None:
    """Refuse what is no integer for all axes, and no integer for each.

    Raises:
        TypeError: an entry is no integer.
        ValueError: it has another number of entries, or one is below `least` or beyond 32 bits.
    """
    hint = hint or f", or {axes} of them, one per axis"
    entries = value if isinstance(value, tuple | list) else (value,) * axes
    if len(entries) != axes:
        raise ValueError(f"{name} is {value!r}; it must be an integer of at least {least}{hint}")
    for entry in entries:
        check_integer(name, entry, least, hint)


def check_windows(name: str, axes: int, padding: Any, **others: Any) -> None:
    """Refuse settings of windows that have no meaning: a padding, and others for each axis.

    A padding is a known word, an integer, or (before, after) for each axis.

    Raises:
        TypeError, ValueError: as `check_per_axis`, with the name of an op before the setting's.
    """
    for what, value in others.items():
        check_per_axis(f"{name}: {what}", value, axes)
    words = ("same", "valid", "causal")[: 3 if axes == 1 else 2]
    if isinstance(padding, str) and padding in words:
        return
    hint = f", {' or '.join(map(repr, words))}, or {axes} pair(s) (before, after), one per axis"
    pairs = padding if isinstance(padding, tuple | list) else ((padding, padding),) * axes
    formed = [pair for pair in pairs if isinstance(pair, tuple | list) and len(pair) == 2]
    if isinstance(padding, str) or not len(formed) == len(pairs) == axes:
        raise ValueError(
            f"{name}: padding is {padding!r}; it must be an integer of at least 0{hint}"
        )
    for pair in pairs:
        check_per_axis(f"{name}: padding", pair, 2, 0, hint)


def check_seed(name: str, value: Any) -> int:
    """The seed of a random draw, an integer from 0 to 2^32 - 1, as an int.

    Raises:
        TypeError: it is no integer.
        ValueError: it is outside that range.
    """
    rule = "an integer of at least 0 and below 2^32: 0, say"
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r:.50}; it must be {rule}")
    if not 0 <= value < 2**32:
        raise ValueError(f"{name} is {value!s:.50}; it must be {rule}")
    return int(value)


def check_text(name: str, value: Any) -> str:
    """A text.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} is a {type(value).__name__}; it must be a str: decode bytes first")
    return value
