"""Say what a verification could not have seen: faults planted in the gradient at hand, warnings."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.verify.comparison import compare_in_float64
from jaxnn.verify.findings import LeafReport
from jaxnn.verify.nearby import plausible_rounding
from jaxnn.verify.other_ways import MOST_EAGER
from jaxnn.verify.point import Point
from jaxnn.verify.trace import EPSILON
from jaxnn.verify.values import Values, largest

# A planted fault must change some entry by so much of its leaf's scale to be one.
FAULT = 1e-6
# Integers are taken for classes where they stay below some dimension of the parameters.
MOST_COUNTED = 1000


def undetected_faults(
    leaf: LeafReport, values: Values, number: int, rounding: Callable[[], list[float]]
) -> tuple[str, ...]:
    """Say that the check itself fails, if a fault planted in this leaf's gradient passes it.

    Zeroed, doubled, negated, its largest entry or row zeroed, transposed. The gradient at hand is
    spoilt and compared again, with all the rounding allowed that may ever be. A fault that hardly
    changes the leaf, or is lost in rounding, is not held against the check.
    """
    given = values.manual[leaf.path]
    least = max(FAULT * largest(given), 4 * plausible_rounding(values.loss))
    coarse = values.width or values.uncertainty is not None or leaf.declared
    if coarse and leaf.sees is not None:
        least = max(least, 2 * leaf.sees * leaf.scale)
    allowed = (lambda: [np.inf] * (number + 1)) if not values.width else rounding

    def passes(planted: np.ndarray[Any, Any]) -> bool:
        if largest(planted - given) <= least:
            return False
        spoilt = dataclasses.replace(values, manual={**values.manual, leaf.path: planted})
        again = LeafReport(leaf.path, leaf.shape, leaf.dtype, "fail", declared=leaf.declared)
        return compare_in_float64(again, spoilt, number, allowed).status == "pass"

    passed = [name for name, planted in _faults(given) if passes(planted)]
    what = f"planted in {leaf.path}, these faults pass it: {', '.join(passed)}"
    return (f"the check itself fails: {what}",) if passed else ()


def _faults(g: np.ndarray[Any, Any]) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """A gradient spoilt in the usual ways."""
    yield "zero", np.zeros_like(g)
    yield "doubled", 2 * g
    yield "sign", -g
    if g.size > 1:
        yield "one element", _without(g, np.unravel_index(np.abs(g).argmax(), g.shape))
    if g.ndim > 1 and g.size:
        norms = np.abs(g).sum(axis=tuple(range(1, g.ndim)))
        yield "one row", _without(g, norms.argmax())
        yield "transpose", np.swapaxes(g, -1, -2).reshape(g.shape)


def _without(g: np.ndarray[Any, Any], index: Any) -> np.ndarray[Any, Any]:
    spoilt = g.copy()
    spoilt[index] = 0.0
    return spoilt


def warnings(point: Point, leaves: Iterable[LeafReport], moved: bool = False) -> tuple[str, ...]:
    """Say what the parameters and arguments at a point cannot show, one sentence each.

    Where the gradients were compared at a second point too, whose arrays were `moved`, values of 0
    or 1 hide nothing.
    """
    problem = point.problem
    autodiff = dict(zip(problem.paths, point.here.autodiff, strict=True))
    given = {p: np.asarray(x) for p, x in zip(problem.paths, problem.floats, strict=True)}
    arguments = list(zip(problem.others, problem.rest, strict=True))[problem.own :]
    arrays = {
        name: np.asarray(x)
        for name, x in arguments
        if x.size > 0 and not jnp.issubdtype(x.dtype, jax.dtypes.extended)
    }
    found = [*_of_gradients(leaves, autodiff), *([] if moved else _of_parameters(given))]
    batches = {path: x.shape[0] for path, x in arrays.items() if x.ndim}
    sizes = {size for p in given.values() for size in p.shape}
    if batches:
        path, batch = next(iter(batches.items()))
        alike = {p.shape for p in given.values() if batch in p.shape}
        # An op's cotangent has its leading axis from an input: one such shape is no coincidence.
        own = path.startswith(("dout", "cotangents"))
        own = own and not any(batch in shape[1:] for shape in alike)
        own = own and len(alike - {arrays[path].shape}) <= 1
        if batch == 1:
            found.append(f"{path} holds one example: a sum cannot be told from a mean")
        elif alike and not own:
            found.append(
                f"the leading size {batch} of {path} is a dimension of the parameters too: axes "
                "taken for each other may not show"
            )
    for path, x in arrays.items():
        found += _of_argument(path, x, sizes)
    return tuple(found)


def _of_gradients(
    leaves: Iterable[LeafReport], autodiff: dict[str, np.ndarray[Any, Any]]
) -> Iterator[str]:
    for leaf in leaves:
        if leaf.difference is None or not autodiff[leaf.path].size:
            continue
        g = autodiff[leaf.path]
        if leaf.sees is None or leaf.sees >= 1:
            yield f"the gradient of {leaf.path} is zero here: a wrong factor or sign would not show"
        elif g.ndim > 1:
            for axis in range(g.ndim):
                dead = np.asarray(~g.any(axis=tuple(i for i in range(g.ndim) if i != axis)))
                if dead.any():
                    yield (
                        f"the gradient of {leaf.path} is zero in {dead.sum()} of {len(dead)} "
                        f"slices along axis {axis}: what is wrong there would not show"
                    )
                    break


def _of_parameters(given: dict[str, np.ndarray[Any, Any]]) -> Iterator[str]:
    for value, word in ((0.0, "zero"), (1.0, "one")):
        paths = [path for path, p in given.items() if p.size and (p == value).all()]
        if paths:
            verb = "is all" if len(paths) == 1 else "are all"
            what = "what multiplies it" if value == 0 else "a factor of it that is left out"
            yield f"{', '.join(paths)} {verb} {word}: {what} would not show"


def _of_argument(path: str, x: np.ndarray[Any, Any], sizes: set[int]) -> Iterator[str]:
    zero_or_one = x.dtype == bool or ("mask" in path.lower() and bool(np.isin(x, (0, 1)).all()))
    if zero_or_one and x.size > 1 and (x == x.flat[0]).all():
        yield f"{path} is {x.flat[0]} everywhere: what it should hide or keep would not show"
    if x.dtype.kind in "iu" and x.ndim and x.min() >= 0:
        counts = [size for size in sizes if x.max() < size <= MOST_COUNTED and size > 1]
        missing = sorted(set(range(min(counts, default=0))) - set(np.unique(x).tolist()))
        if missing:
            values = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
            yield (
                f"of the values 0 to {min(counts) - 1}, {len(missing)} never occur in {path} "
                f"({values}): what is wrong with those classes would not show"
            )


def limits_at(point: Point) -> tuple[str, ...]:
    """Return what these numbers cannot show, in words."""
    found = []
    if point.obstacle:
        found.append(
            f"the functions do not take float64 ({point.obstacle}): what is smaller than the "
            "rounding of the dtypes given would not show"
        )
    elif point.here.width:
        narrow = next(name for name, e in EPSILON.items() if e == point.here.width)
        found.append(
            f"given float64, something inside computes in {narrow}, or is cast to it: "
            "errors smaller than its rounding would not show"
        )
    if point.way != "reverse mode":
        alone = ", which alone judged it" if point.way == "finite differences" else ""
        found.append(
            f"the loss has no derivative in reverse mode ({point.said}): {point.way}{alone}"
        )
    if point.draws_differ:
        found.append(
            "random numbers are drawn without a dtype, others in float64 than in the dtypes "
            "given: the precision was judged in these alone"
        )
    if point.problem.on_mesh and point.problem.on_mesh.refused:
        found.append(
            "whether devices agree where they must, by JAX's types: it runs with check_vma=False "
            f"only ({point.problem.on_mesh.refused:.200})"
        )
    return tuple(found)


def too_long(point: Point) -> str:
    """Say what of the other ways to run it was not looked at, and why; empty where all were."""
    if point.problem.on_mesh:
        return "how it does under vmap or without jit: on the mesh it was compiled"
    if point.problem.as_it_is:
        return (
            "how it does under jit or vmap: the hand-written gradient cannot be traced and was "
            "run as it is"
        )
    if point.programs.long:
        return (
            f"how it does under jit and vmap: its {point.programs.operations} operations were "
            "run one by one, which takes less time than to compile them"
        )
    if point.programs.operations <= MOST_EAGER:
        return ""
    return (
        f"whether it gives the same without jit: of {point.programs.operations} operations "
        f"(more than {MOST_EAGER}) each would be compiled by itself"
    )
