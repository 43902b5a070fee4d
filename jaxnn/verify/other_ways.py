"""Run a gradient in other ways: eagerly, again, under vmap; an op also in scan and checkpoint.

A difference is no verdict on the formula, which float64 decides. No two ways round alike, so
`precise_enough(path, values)`, given by the caller, says whether a leaf's values are as precise as
they must be. Only the same program, run again, must give the same bits.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.op import Op
from jaxnn.verify.findings import Leaf, LeafReport, described, gaps, worst_gap
from jaxnn.verify.nearby import plausible_rounding
from jaxnn.verify.point import Point
from jaxnn.verify.problem import Problem, bind, is_floating
from jaxnn.verify.programs import Programs
from jaxnn.verify.trace import EPSILON
from jaxnn.verify.values import Values, by_path, largest

PreciseEnough = Callable[[str, Leaf], bool]
# Eagerly every operation is compiled by itself: a gradient of more than so many is not run so.
MOST_EAGER = 100
# Of leaves known to differ, an entry that differs by less of their scale does not.
TINY = 2.0**-60


def run_in_other_ways(
    problem: Problem, first: Values, programs: Programs, precise_enough: PreciseEnough
) -> tuple[str, ...]:
    """Say how the hand-written gradient differs where it is run in another way, a sentence each.

    Args:
        problem: the two functions, and the arrays as they were given.
        first: both gradients there, as they were computed first; its program is run again.
        programs: where what is compiled here is kept.
        precise_enough: whether a leaf's values, as float64, are as precise as they must be.
    """
    floats, rest = problem.floats, problem.rest
    expected = _floating(by_path(first.out), problem.paths)

    def again() -> dict[str, Any]:
        return by_path(first.evaluator.at(floats, rest).out)

    def eagerly() -> dict[str, Any]:
        return by_path(problem.manual_grad(floats, rest))

    def both(floats: list[Any], rest: list[Any], row: Any) -> Any:
        return _row(jax.vmap(problem.manual_grad, (0, None))(_pair(floats, row), rest), row)

    def mapped(row: int) -> dict[str, Any]:
        number = np.int32(row)
        program = programs.get("vmap", both, floats, rest, number)
        return by_path(program.run(floats, rest, number))

    alike = _alike(precise_enough, expected)
    if problem.as_it_is or programs.long:
        return _differs("run again, it", again, expected, _same_numbers)
    few = programs.operations <= MOST_EAGER
    return (
        *_differs("the same program, run again,", again, expected, _same_numbers),
        *(_differs("run eagerly, it", eagerly, expected, alike) if few else ()),
        *_both_rows("under vmap, it", mapped, expected, alike),
    )


def run_op_in_other_ways(
    op: Op[..., Any],
    inputs: tuple[Any, ...],
    dout: Any,
    static: Mapping[str, Any],
    expected: Any,
    programs: Programs,
    precise_enough: PreciseEnough,
    names: tuple[str, ...] | None = None,
) -> tuple[str, ...]:
    """Say how `jax.grad` through a called op differs inside scan and under checkpoint.

    Args:
        op: called as a function, in `sum(op(*inputs) * dout)`.
        inputs: its inputs, in the dtypes given.
        dout: the cotangent of its result.
        static: its static settings.
        expected: what `op.bwd` returned for these, compiled.
        programs: where what is compiled here is kept.
        precise_enough: as for `run_in_other_ways`.
        names: what the inputs are called in `expected`; by position if it is not given.
    """

    def loss(inputs: Any, dout: Any) -> Any:
        out = op(*inputs, **static)
        return sum(jax.tree.leaves(jax.tree.map(lambda o, d: (o * d).sum(), out, dout)))

    problem = bind(loss, loss, inputs, (dout,), {}, names=names)
    floats, rest = problem.floats, problem.rest

    def scan(pair: list[Any], rest: list[Any]) -> Any:
        def body(total: Any, floats: list[Any]) -> Any:
            return total, problem.loss(floats, rest)

        _, losses = jax.lax.scan(body, None, pair)
        return losses.sum()

    def both(floats: list[Any], rest: list[Any], row: Any) -> Any:
        return _row(jax.grad(scan)(_pair(floats, row), rest), row)

    def scanned(row: int) -> dict[str, Any]:
        number = np.int32(row)
        program = programs.get("scan", both, floats, rest, number)
        return named(program.run(floats, rest, number))

    def rematerialised() -> dict[str, Any]:
        gradient = jax.grad(jax.checkpoint(problem.loss))
        program = programs.get("checkpoint", gradient, floats, rest)
        return named(program.run(floats, rest))

    def named(leaves: list[Any]) -> dict[str, Any]:
        return dict(zip(problem.paths, leaves, strict=True))

    wanted = _floating(by_path(expected), problem.paths)
    alike = _alike(precise_enough, wanted)
    return (
        *_both_rows("called inside lax.scan, it", scanned, wanted, alike),
        *_differs("called under jax.checkpoint, it", rematerialised, wanted, alike),
    )


def precise_enough_at(point: Point, leaves: Sequence[LeafReport]) -> PreciseEnough:
    """Return what tells whether values of a leaf, however computed, are precise enough."""
    by_path = {leaf.path: (leaf, point.here.autodiff[i]) for i, leaf in enumerate(leaves)}

    def precise_enough(path: str, values: Leaf) -> bool:
        leaf, truth = by_path[path]
        # Another order of the same sums is off by as much again.
        allowed = 4 * max(
            leaf.precision.allowed if leaf.precision else 0.0,
            leaf.tolerance,
            plausible_rounding(point.here.loss),
        )
        return values.shape == truth.shape and bool((np.abs(values - truth) <= allowed).all())

    return precise_enough


Alike = Callable[[str, Leaf, Leaf], bool]


def _pair(floats: list[Any], row: Any) -> list[Any]:
    """The point as this row of two, and half of it as the other."""
    return [jnp.where(row == 0, jnp.stack([x, x / 2]), jnp.stack([x / 2, x])) for x in floats]


def _row(tree: Any, row: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[row], tree)


def _floating(leaves: dict[str, Any], paths: Container[str]) -> dict[str, Any]:
    """The floating leaves of these paths, as arrays."""
    arrays = {path: jnp.asarray(leaf) for path, leaf in leaves.items() if path in paths}
    return {path: leaf for path, leaf in arrays.items() if is_floating(leaf)}


def _same_numbers(_: str, got: Leaf, wanted: Leaf) -> bool:
    return np.array_equal(got, wanted)


def _alike(precise_enough: PreciseEnough, leaves: dict[str, Any]) -> Alike:
    """Whether a leaf is as precise as the first one was; if that was not, whether they are near."""

    def alike(path: str, got: Leaf, wanted: Leaf) -> bool:
        if precise_enough(path, wanted):
            return precise_enough(path, got)
        # Half the digits.
        allowed = EPSILON[str(leaves[path].dtype)] ** 0.5 * largest(wanted)
        return np.allclose(got, wanted, rtol=0, atol=allowed, equal_nan=True)

    return alike


def _both_rows(
    way: str, run: Callable[[int], dict[str, Any]], wanted: dict[str, Any], alike: Alike
) -> tuple[str, ...]:
    """What differs with the point in the first of two rows, or in the second."""
    return _differs(way, lambda: run(0), wanted, alike) or _differs(
        way, lambda: run(1), wanted, alike
    )


def _differs(
    way: str, run: Callable[[], dict[str, Any]], wanted: dict[str, Any], alike: Alike
) -> tuple[str, ...]:
    """What differs, as one sentence about the leaf that differs most; nothing if none does."""
    try:
        got = jax.block_until_ready(_floating(run(), wanted))
    except Exception as error:  # whatever the function under verification raises
        return (f"{way} raises {described(error)}",)
    changed = [p for p in wanted if p not in got or _kind(got[p]) != _kind(wanted[p])]
    if changed:
        path = changed[0]
        kind = _kind(got[path]) if path in got else "nothing"
        return (f"{way} gives {kind} for {path}, compiled {_kind(wanted[path])}",)
    now: dict[str, Leaf] = {}
    first: dict[str, Leaf] = {}
    for path in wanted:
        ours, theirs = (np.asarray(leaf, np.float64) for leaf in (got[path], wanted[path]))
        if not alike(path, ours, theirs):
            # What is NaN in both has failed already: here it only has to stay so.
            both_nan = np.isnan(ours) & np.isnan(theirs)
            now[path], first[path] = (np.where(both_nan, 0.0, x) for x in (ours, theirs))
    tiny = {path: TINY * (largest(leaf) or 1.0) for path, leaf in first.items()}
    found = gaps(now, first, tiny)
    return (f"{way} gives {worst_gap(found)} as compiled",) if found else ()


def _kind(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"
