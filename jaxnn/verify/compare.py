"""Two gradients of one problem, compared: first what they are, then their numbers."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.verify.lift import EPSILON, Problem, Program, is_floating, path_name
from jaxnn.verify.report import Diagnosis, LeafReport, Precision

# Two correct float64 gradients agree to about 1e-15 of a leaf's scale; a wrong one does not come
# within 1e-10 of it by luck.
RELATIVE_TOLERANCE = 1e-10
# The hand-written error in the working dtype may be so many times autodiff's, plus so many times
# the dtype's epsilon at the leaf's scale: correct formulas differ by about 4 in either.
ERROR_RATIO = 8
ERROR_FLOOR = 8
# Where it is larger at the point given, luck is ruled out at so many more points nearby.
NEARBY = 4
# An explanation of a wrong gradient is exact if it leaves so much of its scale: rounding, no more.
EXACT = 1e-9
# A picture of a leaf's differences has at most so many rows and columns.
CELLS = 32


@dataclasses.dataclass(frozen=True)
class Values:
    """Both gradients at one point: autodiff's by position, the hand-written by path.

    `program` is what computed them, `out` the hand-written gradient as it was returned.
    """

    loss: float
    program: Program
    autodiff: list[np.ndarray[Any, Any]]
    manual: dict[str, np.ndarray[Any, Any]]
    out: Any

    @property
    def size(self) -> float:
        """The largest number that may have been rounded: the loss, or an entry of a gradient."""
        return max([abs(self.loss), *map(largest, self.autodiff)])


def both_gradients(problem: Problem) -> Callable[[list[Any], list[Any]], Any]:
    """The loss, autodiff's gradient and the hand-written one, as one function."""

    def both(floats: list[Any], rest: list[Any]) -> Any:
        value, autodiff = jax.value_and_grad(problem.loss)(floats, rest)
        return value, autodiff, problem.manual_grad(floats, rest)

    return both


def evaluate(program: Program, floats: list[Any], rest: list[Any]) -> Values:
    """Both gradients, from one program, in the dtype of what is given."""
    value, autodiff, manual = program.run(floats, rest)
    return Values(
        float(value),
        program,
        [np.asarray(leaf, np.float64) for leaf in autodiff],
        {
            path: np.asarray(leaf, np.float64)
            for path, leaf in by_path(manual).items()
            if is_floating(leaf)
        },
        manual,
    )


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by the names of their paths."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def structure(problem: Problem, out: Any) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """What is wrong with the hand-written gradient before any number: as a whole, and by path."""
    ours: Any = jax.tree.structure(problem.expected)
    pair = isinstance(out, tuple) and len(out) == 2
    if pair and getattr(out[0], "shape", 0) == () and jax.tree.structure(out[1]) == ours:
        problem_text = (
            "the hand-written gradient is a pair of a number and what is like the parameters: "
            "return the gradient without the value"
        )
        return (problem_text,), dict.fromkeys(problem.paths, ("not compared",))
    expected, got = dict(zip(problem.paths, problem.floats, strict=True)), by_path(out)
    faults: dict[str, tuple[str, ...]] = {}
    for path, leaf in expected.items():
        if path not in got:
            faults[path] = ("missing from the hand-written gradient",)
            continue
        faults[path] = tuple(
            f"the hand-written gradient has {what} {theirs}, the parameter {ours}"
            + (": it may be transposed" if theirs == leaf.shape[::-1] else "")
            for what, theirs, ours in (
                ("shape", got[path].shape, leaf.shape),
                ("dtype", got[path].dtype, leaf.dtype),
            )
            if theirs != ours
        )
    problems = [
        f"the hand-written gradient has a leaf {path} that the parameters lack"
        for path in got
        if path not in expected and path not in problem.not_floating
    ]
    misshapen = [p for p, leaf in expected.items() if p in got and got[p].shape != leaf.shape]
    if len(misshapen) > 1 and sorted(got[p].shape for p in misshapen) == sorted(
        expected[p].shape for p in misshapen
    ):
        problems.append(f"are the leaves {', '.join(misshapen)} swapped? their shapes would fit")
    if not problems and all(path in got for path in expected):
        floating_only = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if path_name(path) in expected else None, out
        )
        theirs: Any = jax.tree.structure(floating_only)
        if theirs != ours:
            problems.append(f"the hand-written gradient is a {theirs}, the parameters a {ours}")
    return tuple(problems), faults


def moved(leaves: list[Any], size: float, rng: np.random.Generator) -> list[Any]:
    """The floating arrays moved at random, by up to `size` of each entry (of 1 where it is 0)."""

    def move(x: Any) -> Any:
        if not is_floating(x):
            return x
        step = rng.uniform(size=x.shape) * np.where(np.asarray(x, np.float64) == 0, 1.0, x)
        return jax.device_put(np.asarray(x) + (size * step).astype(x.dtype))

    return [move(x) for x in leaves]


def rounding_of(problem: Problem, here: Values, floats: list[Any], rest: list[Any]) -> list[float]:
    """How far the gradients of each leaf move if every input moves in its last place.

    The larger of the two gradients' moves, and the smaller for two random moves in opposite
    directions: a kink on one side is not rounding. Times 64, for sums of many terms; bounded by the
    scale of the whole problem, so that a kink on both sides excuses nothing.
    """
    rng = np.random.default_rng(0)

    def moves(sign: int) -> list[float]:
        there = evaluate(
            here.program, *(moved(leaves, sign * 2.0**-51, rng) for leaves in (floats, rest))
        )
        autodiff = [
            largest(g - g_here) for g, g_here in zip(there.autodiff, here.autodiff, strict=True)
        ]
        manual = {path: largest(there.manual[path] - g) for path, g in here.manual.items()}
        return [max(a, manual.get(p, a)) for p, a in zip(problem.paths, autodiff, strict=True)]

    bound = 1e-12 * here.size
    with np.errstate(invalid="ignore"):  # infinity minus infinity is no move
        ups, downs = moves(1), moves(-1)
    return [min(64 * min(up, down), bound) for up, down in zip(ups, downs, strict=True)]


def epsilon_of(dtype: Any) -> float:
    """The spacing of a dtype's numbers at 1."""
    return float(jnp.finfo(dtype).eps)  # type: ignore[no-untyped-call]


def largest(values: np.ndarray[Any, Any]) -> float:
    """The largest finite absolute entry; 0 where there is none."""
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def plausible_rounding(loss: float) -> float:
    """What float64 may round away in numbers of the size of the loss, or of 1."""
    return 64 * 2.0**-52 * max(1.0, abs(loss))


def compare(
    leaf: LeafReport, values: Values, number: int, rounding: Callable[[], list[float]]
) -> LeafReport:
    """The two float64 gradients of one leaf, entry by entry.

    The status is "inconclusive" where rounding might explain the difference, and where autodiff
    is not finite but the hand-written gradient is.
    """
    manual, autodiff = values.manual[leaf.path], values.autodiff[number]
    if not np.isfinite(manual).all():
        at = first_index(~np.isfinite(manual))
        message = (
            f"the hand-written gradient is not finite in float64: {manual[at]} at {at}, "
            f"{(~np.isfinite(manual)).sum()} such entries"
        )
        text = f"{manual[at]} begins at {list(at)}: 0/0, or an overflow?"
        return dataclasses.replace(
            leaf,
            messages=(message,),
            diagnosis=Diagnosis("not finite", text),
            where=filled(~np.isfinite(manual)),
        )
    comparable = np.isfinite(autodiff)
    differences = np.abs(manual - np.where(comparable, autodiff, manual))
    difference, scale = largest(differences), largest(autodiff)
    plausible = plausible_rounding(values.loss)
    tolerance, doubt = RELATIVE_TOLERANCE * scale, 0.0
    if difference > tolerance:
        # Rounding that was measured and is small is allowed; what rounding might explain, but was
        # not seen to, is left in doubt.
        measured = rounding()[number]
        narrow = values.program.epsilon if values.program.rounded_to != "float64" else 0.0
        tolerance += min(measured, plausible)
        doubt = max(measured, plausible, 64 * narrow * values.size)
    mask = differences > tolerance
    wrong = int(mask.sum())
    messages = []
    if 0 < difference <= doubt and wrong:
        cause = (
            f"given float64, something inside still computes in {values.program.rounded_to}, or is "
            "cast to it; let the arrays' own dtype decide"
            if narrow
            else "float64 carries no more of numbers near 1 (or of the loss) that cancel here; "
            "verify at other parameters, or a larger loss, too"
        )
        messages.append(f"the difference of {difference:.1e} may be rounding: {cause}")
    if not comparable.all():
        at = first_index(~comparable)
        messages.append(
            f"autodiff gives {autodiff[at]} at {at} ({(~comparable).sum()} such entries), the "
            f"hand-written gradient {manual[at]:.6g}: has a masked branch no derivative there?"
        )
    return dataclasses.replace(
        leaf,
        status="fail" if wrong and difference > doubt else "inconclusive" if messages else "pass",
        scale=scale,
        difference=difference,
        tolerance=tolerance,
        sees=RELATIVE_TOLERANCE + plausible / scale if scale else None,
        wrong=wrong,
        where=filled(mask),
        heat=heat(differences / (scale or 1.0)) if wrong else (),
        messages=tuple(messages),
    )


def first_index(mask: np.ndarray[Any, Any]) -> tuple[int, ...]:
    """Where a mask is first true."""
    return tuple(int(i) for i in np.argwhere(mask)[0])


def filled(mask: np.ndarray[Any, Any]) -> str:
    """The slice that a mask's true entries fill, in words; empty if they fill none, or one entry.

    A slice is a product of index sets, one per axis, as in `[:, 3]`; of a square matrix also its
    diagonal, or one side of it.
    """
    if mask.sum() <= 1 or mask.ndim == 0:
        return ""
    if mask.all():
        return "every entry"
    axes = range(mask.ndim)
    sets = [np.flatnonzero(mask.any(axis=tuple(a for a in axes if a != axis))) for axis in axes]
    if mask[np.ix_(*sets)].all():
        names = (
            ("row", "column") if mask.ndim == 2 else tuple(f"axis {axis}, index" for axis in axes)
        )
        index = ", ".join(_indices(s, n) for s, n in zip(sets, mask.shape, strict=True))
        fixed = [
            f"{names[axis]} {s[0]}" for axis, s in enumerate(sets) if len(s) == 1 < mask.shape[axis]
        ]
        return f"[{index}]" + (f" ({'; '.join(fixed)})" if fixed and mask.ndim > 1 else "")
    if mask.ndim == 2 and mask.shape[0] == mask.shape[1]:
        square = np.ones(mask.shape, bool)
        for shape, name in (
            (np.eye(len(mask), dtype=bool), "the diagonal"),
            (~np.eye(len(mask), dtype=bool), "everything off the diagonal"),
            (np.triu(square), "the upper triangle"),
            (np.triu(square, 1), "the strict upper triangle"),
            (np.tril(square), "the lower triangle"),
            (np.tril(square, -1), "the strict lower triangle"),
        ):
            if (mask == shape).all():
                return name
    return ""


def _indices(found: np.ndarray[Any, Any], size: int) -> str:
    """One axis of a slice, as Python would index it."""
    if len(found) == size:
        return ":"
    if len(found) == 1:
        return str(found[0])
    step = int(found[1] - found[0])
    if (np.diff(found) == step).all():
        return f"{found[0]}:{found[-1] + 1}" + (f":{step}" if step > 1 else "")
    return str(found.tolist()) if len(found) <= 6 else f"{len(found)} of {size}"


def heat(values: np.ndarray[Any, Any]) -> tuple[tuple[float, ...], ...]:
    """A coarse picture of an array as a matrix: the largest value of each cell."""
    matrix = values.reshape(-1, values.shape[-1]) if values.ndim else values.reshape(1, 1)
    for axis in (0, 1):
        starts = np.unique(np.linspace(0, matrix.shape[axis], CELLS, endpoint=False).astype(int))
        matrix = np.maximum.reduceat(matrix, starts, axis=axis)
    return tuple(tuple(row) for row in matrix.tolist())


def check_precision(
    leaf: LeafReport,
    number: int,
    here: tuple[Values, Values],
    nearby: Callable[[], list[tuple[Values, Values]]],
) -> LeafReport:
    """Whether the hand-written gradient is as exact in the working dtype as autodiff's there.

        error <= 8 (autodiff's error + epsilon scale),   errors against float64

    One point decides that it is. That it is not takes the median of the hand-written errors at
    several points, against the largest of autodiff's: one gradient may be exact by luck.

    Args:
        leaf: compared in float64 already.
        number: its position among the parameters.
        here: both gradients in the working dtype, and in float64.
        nearby: gives the same pairs at other points.
    """
    working, lifted = here
    values = working.manual[leaf.path]
    if not np.isfinite(values).all():
        at = first_index(~np.isfinite(values))
        message = f"the hand-written gradient is not finite in {leaf.dtype}: {values[at]} at {at}"
        return dataclasses.replace(
            leaf,
            status="fail",
            diagnosis=leaf.diagnosis
            or Diagnosis("not finite", f"{values[at]} begins at {list(at)}, in {leaf.dtype} only"),
            messages=(*leaf.messages, message),
        )
    if leaf.dtype == "float64" or leaf.wrong or not np.isfinite(lifted.autodiff[number]).all():
        return leaf

    epsilon = epsilon_of(leaf.dtype)

    def errors(pair: tuple[Values, Values]) -> tuple[float, float]:
        low, high = pair
        truth = high.autodiff[number]
        by_autodiff = np.abs(low.autodiff[number] - truth)
        finite = np.isfinite(by_autodiff).all()
        return (
            float(np.abs(low.manual[leaf.path] - truth).max(initial=0.0)),
            float(by_autodiff.max(initial=0.0)) if finite else np.inf,
        )

    def judged(manual: float, autodiff: float) -> Precision:
        return Precision(
            manual, autodiff, ERROR_RATIO * autodiff + ERROR_FLOOR * epsilon * leaf.scale
        )

    found = judged(*errors(here))
    if found.manual > found.allowed:
        manuals, autodiffs = zip(*[errors(pair) for pair in [here, *nearby()]], strict=True)
        found = judged(float(np.median(manuals)), max(autodiffs))
    if found.manual <= found.allowed:
        return dataclasses.replace(leaf, precision=found)
    message = (
        f"right in float64, but in {leaf.dtype} off by {found.manual:.1e}, autodiff by "
        f"{found.autodiff:.1e}: a narrower dtype inside, or numbers that cancel?"
    )
    relative = found.manual / leaf.scale if leaf.scale else np.inf
    narrower = [n for n, e in EPSILON.items() if epsilon < e and e / 64 <= relative <= 4 * e]
    cause = f"rounded to {narrower[0]} inside?" if narrower else "a formula that loses digits"
    return dataclasses.replace(
        leaf,
        status="fail",
        precision=found,
        diagnosis=Diagnosis("rounding", cause),
        messages=(*leaf.messages, message),
    )
