"""Verify a hand-written gradient of a loss: any JAX function of any pytree."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxnn.verify.batch import BatchLaws
from jaxnn.verify.judge import judge
from jaxnn.verify.options import (
    check_options,
    check_signature,
    check_surrogate,
)
from jaxnn.verify.outside import outside
from jaxnn.verify.positions import parameters_first
from jaxnn.verify.problem import bind
from jaxnn.verify.programs import compiled
from jaxnn.verify.report import Report


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


@outside
def gradient(
    loss: Callable[..., Any],
    manual_grad: Callable[..., Any],
    params: Any,
    /,
    *args: Any,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    skip: Mapping[str, str] | None = None,
    tolerance: Mapping[str, tuple[float, str]] | None = None,
    surrogate: tuple[Callable[..., Any], str] | None = None,
    batch_laws: BatchLaws | None = None,
    second_order: bool = False,
    seed: int = 0,
    **kwargs: Any,
) -> Report:
    """Compare a hand-written gradient with `jax.grad`, in float64, and both with the function.

    Floating arrays in `params`, `args` and `kwargs` are lifted to float64; integer arrays and
    PRNG keys are passed on; everything else (a configuration, a string, a Python number) is
    handed over untouched, inside the parameters too. Nothing is assumed about the model: any JAX
    function of any pytree. (A random draw without a dtype is another draw in float64: give it the
    dtype of its operand.) A gradient that cannot be traced, as one in NumPy, is called with
    numbers. Arrays of the caller's are never changed or deleted.

    Two gradients of a leaf agree if every entry differs by at most 1e-10 of the leaf's largest,
    plus autodiff's own rounding, measured by moving every input in its last place. Finite
    differences testify for every leaf, and for the entries that differ most. In the dtype given,
    the hand-written gradient may be off by 8 times autodiff's error there, plus 8 units in the
    last place of the leaf's largest. Where the formula is wrong, its likely cause is looked for.

    Args:
        loss: `loss(params, *args, **kwargs)` -> one floating scalar.
        manual_grad: `manual_grad(params, *args, **kwargs)` -> its gradient, shaped like `params`;
            leaves that are not floating are not looked at. From (value, gradient),
            ((value, extra), gradient) and (gradient, extra) the gradient is taken.
        params: a pytree with at least one floating leaf; what is differentiated.
        *args: whatever else both functions take.
        argnums: the positions of the arguments that are differentiated, as in `jax.grad`: for
            several, the gradient is a tuple, and leaves are named by argument. Positions of
            `batch_laws` are then among the other arguments.
        has_aux: whether the loss returns (value, extra), as in `jax.grad`.
        skip: leaves that are not judged, by path, each with the reason.
        tolerance: leaves of which so much of the largest entry may be wrong, for solvers and the
            like: (relative tolerance, reason), by path.
        surrogate: (function, reason): where the gradient is on purpose not the loss's (straight-
            through, clipped, reversed), the function whose gradient it is; it takes what the loss
            takes, and returns what it returns.
        batch_laws: which arguments carry a batch, to hold the gradient to what a mean or a sum
            over it must obey.
        second_order: whether the hand-written gradient is to be differentiated itself, against
            autodiff's Hessian-vector product.
        seed: of the random lines, directions and permutations.
        **kwargs: the same as `args`, by name. An argument of your functions that is called like
            one of ours (argnums, has_aux, skip, tolerance, surrogate, batch_laws, second_order,
            seed) must be given by position.

    Returns:
        A report; in a condition it is true only if the gradient passed.

    Raises:
        TypeError: a function cannot be called with these arguments, the loss cannot be traced, a
            parameter is complex, or the call is inside `jax.jit`.
        ValueError: the loss is not a scalar, no parameter is floating, it cannot be told what the
            gradient is in what is returned, or an option names a leaf that is not there or gives
            no reason.
    """
    check_options(seed, batch_laws, has_aux)
    functions = {"loss": loss, "manual_grad": manual_grad}
    reference, because = loss, ""
    if surrogate is not None:
        reference, because = check_surrogate(surrogate)
        functions["surrogate"] = reference
    for role, function in functions.items():
        check_signature(role, function, (params, *args), kwargs)
    call = parameters_first(reference, manual_grad, (params, *args), argnums)
    report, _ = judge(
        call,
        kwargs,
        has_aux=has_aux,
        skip=skip,
        tolerance=tolerance,
        batch_laws=batch_laws,
        second_order=second_order,
        seed=seed,
    )
    if because:
        name = getattr(reference, "__qualname__", repr(reference))
        line = f"the loss's own derivative: judged against the surrogate {name}: {because}"
        own = bind(loss, manual_grad, params, args, kwargs, has_aux=has_aux)
        value = float(compiled(own.loss, own.floats, own.rest).run(own.floats, own.rest))
        report = dataclasses.replace(report, loss=value, coverage=(line, *report.coverage))
    return report
