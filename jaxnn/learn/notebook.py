"""Grade functions as they stand, in a notebook or a session: no file, no progress."""

from collections.abc import Callable
from typing import Any

from jaxnn.learn import exercise as exercises
from jaxnn.learn.grade import graded
from jaxnn.learn.guard import LIMIT
from jaxnn.learn.result import Result
from jaxnn.learn.student import Work

ROLES = ("_bwd", "_fwd", "_steps")


def check(*functions: Callable[..., Any], exercise: str | None = None) -> Result:
    """Grade a backward by hand, or a forward and its backward, of an exercise.

    Args:
        *functions: named as in the exercise: `layer_norm_bwd`, with `layer_norm_fwd` if it is of
            one's own, or `layer_norm_steps`. Of any other name with `exercise` given: the
            backward alone, or the forward and the backward in this order.
        exercise: its name; None to tell it from the functions' names.

    Returns:
        What is right and what is wrong; true in a condition if all of it is right.

    Raises:
        TypeError: what is given is no function, or there are none or too many.
        ValueError: there is no such exercise, or the names do not tell which it is, or the
            backward is missing.
    """
    if not functions or len(functions) > 2 or not all(map(callable, functions)):
        raise TypeError(
            f"check is given {functions!r}; give it your backward, or your forward and backward, "
            "and the exercise by its name if need be: check(my_bwd, exercise='layer_norm')"
        )
    names = [getattr(function, "__name__", "") for function in functions]
    if exercise is None:
        told = {n.removesuffix(r) for n in names for r in ROLES if n.endswith(r)}
        if len(told) != 1:
            raise ValueError(
                f"the names {', '.join(names)} do not tell the exercise; name the function as in "
                "layer_norm_bwd, or say exercise='layer_norm'"
            )
        exercise = told.pop()
    found = exercises.find(exercise)
    easy = names[0].endswith("_steps")
    roles = ("_steps",) if easy else ROLES[:2][::-1][-len(functions) :]
    if all(name in [f"{exercise}{role}" for role in ROLES] for name in names):
        wanted = dict(zip(names, functions, strict=True))
    else:
        wanted = {f"{exercise}{role}": f for role, f in zip(roles, functions, strict=True)}
    if not {f"{exercise}_bwd", f"{exercise}_steps"} & set(wanted):
        raise ValueError(
            f"check is given {', '.join(names)} alone; give it {exercise}_bwd too: it is the "
            "backward that is graded"
        )
    return graded(Work("", found, "easy" if easy else "fused", wanted, ""), LIMIT)
