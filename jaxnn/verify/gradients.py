"""Verify a hand-written gradient of a loss: any JAX function of any pytree."""

import dataclasses
import inspect
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxnn.verify import laws
from jaxnn.verify.batch import BatchLaws
from jaxnn.verify.coverage import argument_names, warnings
from jaxnn.verify.generic import second_point
from jaxnn.verify.point import Point
from jaxnn.verify.problem import bind
from jaxnn.verify.report import Report
from jaxnn.verify.settings import neutral_settings
from jaxnn.verify.verdict import verdict

log = logging.getLogger("jaxnn.verify")


class GradientMismatch(AssertionError):  # noqa: N818 (an assertion that failed, not an error)
    """A hand-written gradient that did not pass; the message is its report."""

    def __init__(self, report: Report):
        """Keep the report beside its text."""
        super().__init__(f"\n{report}")
        self.report = report


def assert_gradient(
    loss: Callable[..., Any],
    manual_grad: Callable[..., Any],
    params: Any,
    /,
    *args: Any,
    **kwargs: Any,
) -> Report:
    """As `gradient`, for tests.

    Raises:
        GradientMismatch: the status is not "pass".
        TypeError, ValueError: as `gradient`.
    """
    report = gradient(loss, manual_grad, params, *args, **kwargs)
    if not report:
        raise GradientMismatch(report)
    return report


def gradient(
    loss: Callable[..., Any],
    manual_grad: Callable[..., Any],
    params: Any,
    /,
    *args: Any,
    skip: Mapping[str, str] | None = None,
    batch_laws: BatchLaws | None = None,
    second_order: bool = False,
    seed: int = 0,
    **kwargs: Any,
) -> Report:
    """Compare a hand-written gradient with `jax.grad`, in float64, and both with the function.

    Floating arrays in `params`, `args` and `kwargs` are lifted to float64; integer arrays and
    PRNG keys are passed on; everything else (a configuration, a string, a Python number) is
    handed over untouched. Nothing is assumed about the model: any JAX function of any pytree.
    (A random draw without a dtype is another draw in float64: give it the dtype of its operand.)

    Two gradients of a leaf agree if every entry differs by at most 1e-10 of the leaf's largest,
    plus autodiff's own rounding, measured by moving every input in its last place. Finite
    differences testify for every leaf, and for the entries that differ most. In the dtype given,
    the hand-written gradient may be off by 8 times autodiff's error there, plus 8 units in the
    last place of the leaf's largest. Where the formula is wrong, its likely cause is looked for.

    Args:
        loss: `loss(params, *args, **kwargs)` -> one floating scalar.
        manual_grad: `manual_grad(params, *args, **kwargs)` -> its gradient, shaped like `params`;
            leaves that are not floating are not looked at.
        params: a pytree with at least one floating leaf; what is differentiated.
        *args: whatever else both functions take.
        skip: leaves that are not judged, by path, each with the reason.
        batch_laws: which arguments carry a batch, to hold the gradient to what a mean or a sum
            over it must obey.
        second_order: whether the hand-written gradient is to be differentiated itself, against
            autodiff's Hessian-vector product.
        seed: of the random lines, directions and permutations.
        **kwargs: the same as `args`, by name. An argument of your functions that is called like
            one of ours (skip, batch_laws, second_order, seed) must be given by position.

    Returns:
        A report; in a condition it is true only if the gradient passed.

    Raises:
        TypeError: a function cannot be called with these arguments, or a parameter is complex.
        ValueError: the loss is not a scalar, no parameter is floating, or `skip` names a leaf
            that is not there or gives no reason.
    """
    started = time.perf_counter()
    _check_options(seed, batch_laws)
    for role, function in (("loss", loss), ("manual_grad", manual_grad)):
        _check_signature(role, function, (params, *args), kwargs)
    problem = bind(loss, manual_grad, params, args, kwargs)
    skip = _check_skip(skip or {}, problem.paths)
    log.debug("both gradients")
    point = Point(problem, (loss, manual_grad))
    report = verdict(point, skip, seed)
    seen, said = False, tuple[str, ...]()
    if report.status == "pass":
        log.debug("a second point")
        report, said, seen = second_point(
            point,
            report,
            argument_names(loss, params, args, kwargs, problem.rest),
            lambda there: verdict(there, skip, seed),
            (loss, manual_grad),
        )
        said += neutral_settings(loss, manual_grad, params, args, kwargs)
    problems = list(report.problems)
    with point.precisely():
        if batch_laws:
            log.debug("batch laws")
            problems += laws.batch_laws(batch_laws, loss, manual_grad, params, args, kwargs, seed)
        if second_order:
            log.debug("second order")
            problems += laws.second_order(problem, point.floats, point.rest, seed)
    autodiff = dict(zip(problem.paths, point.here.autodiff, strict=True))
    coverage = (*said, *warnings(loss, params, args, kwargs, report.leaves, autodiff, seen))
    return dataclasses.replace(
        report,
        name=getattr(manual_grad, "__qualname__", repr(manual_grad)),
        problems=tuple(problems),
        coverage=(*report.coverage, *coverage, *([point.too_long] if point.too_long else [])),
        seconds=time.perf_counter() - started,
    )


def _check_options(seed: Any, batch_laws: Any) -> None:
    """Refuse options of ours that are not what they must be; they may be meant for the functions.

    Raises:
        TypeError: one has another type.
        ValueError: the seed is negative.
    """
    theirs = "; to hand an argument of this name to your functions, give it by position"
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"seed is {seed!r}; it must be an integer{theirs}")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be 0 or more")
    if batch_laws is not None and not isinstance(batch_laws, BatchLaws):
        raise TypeError(f"batch_laws is {batch_laws!r}; it must be a verify.BatchLaws{theirs}")


def _check_skip(skip: Any, paths: list[str]) -> Mapping[str, str]:
    """Refuse leaves to skip that are not there, or have no reason.

    Raises:
        TypeError: it is no mapping.
        ValueError: a path is not a parameter's, or a reason is empty.
    """
    if not isinstance(skip, Mapping):
        raise TypeError(
            f"skip is {skip!r}; it must map paths to reasons, as in {{'{paths[0]}': 'frozen'}}"
        )
    for path, reason in skip.items():
        if path not in paths:
            raise ValueError(
                f"skip names {path!r}, which is no floating leaf of the parameters; they are "
                f"{', '.join(paths)}"
            )
        if not isinstance(reason, str) or not reason.strip():
            raise ValueError(
                f"skip gives {reason!r} for {path}; a leaf that is not judged needs a reason in "
                "words"
            )
    return skip


def _check_signature(
    role: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Refuse a function that cannot take the arguments."""
    if not callable(function):
        raise TypeError(f"{role} is {function!r}; it must be a function of the parameters")
    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-in callables have none to look at
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        given = f"{len(args)} positional arguments" + "".join(f", {name}=..." for name in kwargs)
        raise TypeError(
            f"{role}{signature} cannot take {given} ({error}); loss and manual_grad must both "
            "take the parameters first and then the same arguments"
        ) from None
