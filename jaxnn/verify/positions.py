"""`argnums`: which arguments of a loss are the parameters, as `jax.grad` has it."""

import inspect
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxnn.verify.arguments import argument_names


class Call(NamedTuple):
    """A call with its parameters first.

    Attributes:
        loss: `loss(params, *args, **kwargs)`.
        manual_grad: of the same arguments.
        params: what is differentiated: an argument, or a tuple of several.
        args: the other arguments given by position.
        names: what each of several is called; None for one.
    """

    loss: Callable[..., Any]
    manual_grad: Callable[..., Any]
    params: Any
    args: tuple[Any, ...]
    names: tuple[str, ...] | None


def parameters_first(
    loss: Callable[..., Any],
    manual_grad: Callable[..., Any],
    arguments: tuple[Any, ...],
    argnums: Any,
) -> Call:
    """A call of two functions as one with the arguments at `argnums` in front, together.

    Raises:
        TypeError: `argnums` is neither an integer nor a sequence of them.
        ValueError: there is no such argument, or one is named twice.
    """
    several = isinstance(argnums, tuple | list)
    try:
        numbers = [operator.index(n) for n in (argnums if several else (argnums,))]
    except TypeError:
        numbers = []
    if not numbers or any(isinstance(n, bool) for n in (argnums if several else (argnums,))):
        raise TypeError(
            f"argnums is {argnums!r}; it must be a position, or a tuple of positions, among the "
            "arguments: argnums=0, argnums=(0, 1)"
        )
    if any(not 0 <= n < len(arguments) for n in numbers) or len({*numbers}) < len(numbers):
        raise ValueError(
            f"argnums is {argnums!r}; it must name positions among 0 to {len(arguments) - 1}, each "
            "once: give what is to be differentiated by position"
        )
    if not several and numbers == [0]:
        return Call(loss, manual_grad, arguments[0], arguments[1:], None)
    others = [i for i in range(len(arguments)) if i not in numbers]

    def rearranged(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(params: Any, /, *args: Any, **kwargs: Any) -> Any:
            own = params if several else (params,)
            placed = dict(zip((*numbers, *others), (*own, *args), strict=True))
            return function(*(placed[i] for i in range(len(placed))), **kwargs)

        call.__qualname__ = getattr(function, "__qualname__", repr(function))
        if signature := _rearranged_signature(function, numbers, others):
            call.__signature__ = signature  # type: ignore[attr-defined]
        return call

    chosen = tuple(arguments[n] for n in numbers)
    names = argument_names(loss, len(arguments))
    return Call(
        rearranged(loss),
        rearranged(manual_grad),
        chosen if several else chosen[0],
        tuple(arguments[i] for i in others),
        tuple(names[n] for n in numbers) if several else None,
    )


def _rearranged_signature(
    function: Callable[..., Any], numbers: list[int], others: list[int]
) -> inspect.Signature | None:
    """The signature with the parameters in front; None where it has no place for each argument."""
    try:
        own = list(inspect.signature(function).parameters.values())
    except ValueError:  # a built-in callable
        return None
    count = len(numbers) + len(others)
    if any(p.kind not in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in own[:count]):
        return None
    first = inspect.Parameter(own[numbers[0]].name, inspect.Parameter.POSITIONAL_ONLY)
    rest = [own[i].replace(default=inspect.Parameter.empty) for i in others]
    return inspect.Signature([first, *rest, *own[count:]])
