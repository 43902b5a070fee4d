"""Verify an implementation (a kernel, a callback, a solver) against a plain reference.

    values      f's outputs against the reference's
    gradients   what f's rule or a backward returns, against autodiff of the reference
    both        again where nothing is 0, 1 or equal to something else; twice, for the same bits

The reference in float64 is the truth, its own error in the dtypes given the scale: f may be off by
8 times that, plus 8 units in the last place of the largest entry.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxnn.verify.arguments import argument_names
from jaxnn.verify.comparison import NEARBY_POINTS
from jaxnn.verify.door import (
    Declared,
    check_options,
    check_signature,
    check_skip,
    check_tolerance,
    entrance,
)
from jaxnn.verify.findings import LeafReport, described
from jaxnn.verify.gradients import GradientMismatch
from jaxnn.verify.nearby import moved
from jaxnn.verify.point import Point
from jaxnn.verify.report import Report
from jaxnn.verify.second_point import MOVE, TRIES, moved_off
from jaxnn.verify.side_by_side import SideBySide
from jaxnn.verify.triples import Triple, compare_with_reference
from jaxnn.verify.values import epsilon_of
from jaxnn.verify.verdict import verdict


def assert_against(
    f: Callable[..., Any], reference: Callable[..., Any], /, *inputs: Any, **options: Any
) -> Report:
    """Assert that `against` passes, in a test.

    Raises:
        GradientMismatch: the status is not "pass".
        TypeError, ValueError: as `against`.
    """
    report = against(f, reference, *inputs, **options)
    if not report:
        raise GradientMismatch(report)
    return report


@entrance
def against(
    f: Callable[..., Any],
    reference: Callable[..., Any],
    /,
    *inputs: Any,
    backward: Callable[..., Any] | None = None,
    tolerance: Mapping[str, tuple[float, str]] | None = None,
    skip: Mapping[str, str] | None = None,
    seed: int = 0,
    **settings: Any,
) -> Report:
    """Compare an implementation with a plain reference: its values, then its gradients.

    In the dtypes given: f need not take float64, nor be traceable. Where f has no derivative and
    no backward is given, its values alone are compared, and the report says so.

    Args:
        f: `f(*inputs, **settings)` -> a pytree of arrays.
        reference: the same in plain JAX, which autodiff is asked about.
        *inputs: pytrees of arrays; floating ones are differentiated.
        backward: `backward(*inputs, dout, **settings)` -> a tuple of one cotangent per input, dout
            like the outputs: what to judge in place of f's own derivative.
        tolerance: inputs (`x`) and outputs (`out`) that may be off by a part of their scale:
            {name: (relative tolerance, reason)}.
        skip: inputs and outputs that are not judged, each with the reason.
        seed: of the cotangents.
        **settings: handed to both by name, as they are.

    Returns:
        A report, with a leaf for every output, then for every floating input.

    Raises:
        TypeError: f or the reference cannot be called so.
        ValueError: they return different things, there is no floating input or output, or the
            reference has no derivative.
    """
    started = time.perf_counter()
    check_options(seed)
    if not inputs:
        raise TypeError("no inputs are given; two functions are compared at some: against(f, g, x)")
    alike = "f and its reference must both take the inputs by position and the settings by name"
    for role, function in (("f", f), ("reference", reference)):
        check_signature(role, function, inputs, settings, alike)
    if backward is not None:
        alike = "it takes the inputs by position, and by name dout and the settings"
        check_signature("backward", backward, inputs, {"dout": None, **settings}, alike)
    names = argument_names(reference, len(inputs))
    both = SideBySide(f, reference, inputs, settings, names, backward, seed)
    here = both.at(both.floats, both.rest)
    judge = _Judge(
        both,
        check_skip(skip or {}, list(here)),
        check_tolerance(tolerance or {}, list(here)),
        both.noise() if both.narrow else dict.fromkeys(here, 0.0),
    )
    leaves, problems, coverage = judge.leaves(here, both.floats), [], list(both.limits)
    if again := both.differs_again():
        problems.append(again)
    if all(leaf.status in ("pass", "skipped") for leaf in leaves):
        second = _second_point(both)
        if second is None:
            coverage.append(
                "what values of 0 or 1 and equal ones hide: at a second point, moved off them, the "
                "reference is not finite"
            )
        else:
            there = judge.leaves(*second)
            if any(leaf.status == "fail" for leaf in there):
                leaves = there
                problems.append(
                    "right at the point given, but wrong where the inputs are moved off 0, 1 and "
                    "each other: this report is of that second point"
                )
    else:
        leaves = _explained(both, (f, reference), leaves, seed)
    words = "".join(f", {key}={value!r}" for key, value in settings.items())
    return Report(
        f"{both.name} against {getattr(reference, '__name__', 'its reference')}{words}",
        both.loss(),
        tuple(leaves),
        tuple(problems),
        time.perf_counter() - started,
        coverage=tuple(coverage),
        rules=both.rules,
        seed=seed,
    )


class _Judge(NamedTuple):
    """What is asked of every output and cotangent, wherever it is looked at."""

    both: SideBySide
    skip: Mapping[str, str]
    declared: Mapping[str, Declared]
    noise: Mapping[str, float]

    def leaves(self, here: dict[str, Triple], floats: list[Any]) -> list[LeafReport]:
        """Report on each, at a point."""
        near: list[dict[str, Triple]] = []

        def nearby(name: str) -> list[Triple]:
            if not near:
                rng = np.random.default_rng(0)
                epsilon = max(epsilon_of(x.dtype) for x in floats)
                for _ in range(NEARBY_POINTS):
                    near.append(self.both.at(moved(floats, 4 * epsilon, rng), self.both.rest))
            return [there[name] for there in near]

        found = []
        for name, triple in here.items():
            relative = self.declared[name].relative if name in self.declared else 0.0
            leaf = LeafReport(name, triple.got.shape, triple.dtype, "fail", declared=relative)
            if name in self.skip:
                reason = f"not judged: {self.skip[name]}"
                leaf = dataclasses.replace(leaf, status="skipped", messages=(reason,))
            else:
                leaf = compare_with_reference(
                    leaf,
                    triple,
                    self.both.epsilon_of(triple.dtype) if triple.floating else 0.0,
                    self.noise[name],
                    functools.partial(nearby, name),
                )
            if name in self.declared:
                said = str(self.declared[name])
                leaf = leaf.saying(said)
            found.append(leaf)
        return found


def _second_point(both: SideBySide) -> tuple[dict[str, Triple], list[Any]] | None:
    """Another point, where the reference is finite; None where there is none."""
    rng = np.random.default_rng(1)
    for size in TRIES:
        floats = [moved_off(x, size * MOVE, rng) for x in both.floats]
        there = both.at(floats, both.rest)
        if all(np.isfinite(triple.truth).all() for triple in there.values()):
            return there, floats
    return None


def _explained(
    both: SideBySide, functions: tuple[Any, ...], leaves: list[LeafReport], seed: int
) -> list[LeafReport]:
    """The wrong gradients with what the verdict on them by themselves says: who is wrong, and why.

    The kernel may not run in the other dtypes and ways that this takes: then nothing is said.
    """
    wrong = {leaf.path for leaf in leaves if leaf.status == "fail"} & {*both.problem.paths}
    if not wrong:
        return leaves
    try:
        report = verdict(Point(both.problem, functions), {}, seed)
    except Exception as error:
        said = f"the cause could not be looked for: {described(error)}"
        return [leaf.saying(said) if leaf.path in wrong else leaf for leaf in leaves]
    found = {leaf.path: leaf for leaf in report.leaves if leaf.status == "fail"}
    kept = ("wrong", "tolerance", "where", "worst", "diagnosis", "heat")
    return [
        dataclasses.replace(leaf, **{name: getattr(found[leaf.path], name) for name in kept})
        if leaf.path in wrong & {*found}
        else leaf
        for leaf in leaves
    ]
