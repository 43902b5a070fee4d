"""Verify a derivative rule as it stands: a custom_vjp, a custom_jvp, whatever holds one."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import jax

from jaxnn.verify.arguments import Call, argument_names
from jaxnn.verify.cotangents import cotangents_by_rule
from jaxnn.verify.door import check_options, check_signature, check_surrogate, entrance
from jaxnn.verify.gradients import GradientMismatch
from jaxnn.verify.judge import judge
from jaxnn.verify.oracle import rules_in
from jaxnn.verify.report import Report
from jaxnn.verify.rule_laws import (
    each_output_alone,
    forward_rules,
    value_disagreement,
    wrong_by_themselves,
)
from jaxnn.verify.weighted import Weighted, check_same_outputs


def assert_rule(f: Callable[..., Any], /, *inputs: Any, **options: Any) -> Report:
    """Assert that `rule` passes, in a test.

    Raises:
        GradientMismatch: the status is not "pass".
        TypeError, ValueError: as `rule`.
    """
    report = rule(f, *inputs, **options)
    if not report:
        raise GradientMismatch(report)
    return report


@entrance
def rule(
    f: Callable[..., Any],
    /,
    *inputs: Any,
    reference: Callable[..., Any] | None = None,
    surrogate: tuple[Callable[..., Any], str] | None = None,
    tolerance: Mapping[str, tuple[float, str]] | None = None,
    skip: Mapping[str, str] | None = None,
    seed: int = 0,
    **settings: Any,
) -> Report:
    """Verify the derivative rule of a function against autodiff of the function it decorates.

    A random cotangent is handed to every output, and to each output alone; what comes back for
    every input is compared, as `gradient` compares, in float64 and in the dtype given. Rules of
    forward mode (`custom_jvp`) are asked for their tangents too. Several rules inside are each
    judged by themselves.

    Args:
        f: a `jax.custom_vjp`, `jax.custom_jvp` or `jax.custom_gradient` function, or any function
            with such rules inside, at whatever depth; what is differentiated are floating inputs.
        *inputs: what it is called with, pytrees of arrays; other leaves are handed over as they
            are.
        reference: a plain function of the same inputs and outputs, in place of the one decorated.
        surrogate: (function, reason): where the rule is on purpose not the derivative of its
            function (straight-through, clipped, reversed), the function whose derivative it is.
        tolerance: inputs whose cotangents may be off by a part of their scale, as solvers are:
            {input: (relative tolerance, reason)}.
        skip: inputs that are not judged, each with the reason.
        seed: of the cotangents and directions.
        **settings: handed to f by name, as they are.

    Returns:
        A report, with a leaf for every floating input, by its name.

    Raises:
        TypeError: f cannot be called so, or its rule has not the form that JAX asks for.
        ValueError: there is no rule to verify, no floating input or output, or the reference
            returns something else.
    """
    started = time.perf_counter()
    check_options(seed)
    name = getattr(f, "__name__", type(f).__name__)
    _check(f, inputs, settings)
    base, because = f, ""
    if reference is not None and surrogate is not None:
        raise ValueError("both reference and surrogate are given; give the one that f is to follow")
    if surrogate is not None:
        base, because = check_surrogate(surrogate)
    elif reference is not None:
        base = reference
    if base is not f:
        alike = "it must take what f takes"
        role = "surrogate" if surrogate else "reference"
        check_signature(role, base, inputs, settings, alike)
    else:
        base = _decorated(f, name, inputs, settings)
    of_rule = Weighted(f, inputs, settings)
    of_base = Weighted(base, inputs, settings)
    of_rule.check_outputs(name)
    if base is not f:
        check_same_outputs(of_rule.outputs, of_base.outputs, name)
    douts = of_rule.cotangents(seed)
    names = argument_names(f, len(inputs))
    call = Call(
        of_base.loss,
        functools.partial(cotangents_by_rule, of_rule, name=name),
        inputs,
        (douts, SimpleNamespace(**settings)),
        names,
    )
    report, point = judge(call, {}, skip=skip, tolerance=tolerance, seed=seed)
    problems = list(report.problems)
    if not because:
        problems += value_disagreement(
            point, of_rule, of_base, name, "reference" if reference else ""
        )
    if report.status == "pass":
        problems += each_output_alone(point, call, report, of_rule, of_base, name)
        problems += forward_rules(point, of_rule, of_base, seed)
        problems += wrong_by_themselves(report.rules)
    coverage = report.coverage
    if because:
        function = getattr(base, "__qualname__", repr(base))
        said = f"f's own derivative: judged against the surrogate {function}: {because}"
        coverage = (said, *coverage)
    words = "".join(f", {key}={value!r}" for key, value in settings.items())
    return dataclasses.replace(
        report,
        name=f"rule {name}{words}",
        problems=tuple(problems),
        coverage=coverage,
        seconds=time.perf_counter() - started,
    )


def _check(f: Any, inputs: tuple[Any, ...], settings: dict[str, Any]) -> None:
    """Refuse what cannot be called so.

    Raises:
        TypeError: f is no function, it cannot take the inputs, or there are none.
    """
    if not callable(f):
        raise TypeError(
            f"f is {f!r}; it must be a function with a derivative rule, as jax.custom_vjp makes one"
        )
    if not inputs:
        raise TypeError(
            "no inputs are given; a rule is verified at some: verify.rule(f, x, ...)"
            + (f", not by name ({', '.join(settings)})" if settings else "")
        )
    check_signature("f", f, inputs, settings, "give its inputs by position, settings by name")


def _decorated(
    f: Callable[..., Any], name: str, inputs: tuple[Any, ...], settings: dict[str, Any]
) -> Callable[..., Any]:
    """What autodiff is asked about: f without its rules, which is f to the oracle.

    The rule of a function of JAX's own (of `jax.nn.relu`, say) is on trial where that is f itself.

    Raises:
        ValueError: it holds no rule.
    """
    weighted = Weighted(f, inputs, settings)
    if rules_in(weighted.trace()):
        return f
    if isinstance(f, jax.custom_vjp | jax.custom_jvp):
        decorated: Callable[..., Any] = f.fun
        return decorated
    raise ValueError(
        f"{name} holds no derivative rule that a person wrote: its derivative is JAX's own; give "
        "what has one, or reference=, or compare two functions with verify.against"
    )
