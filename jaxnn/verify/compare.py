"""Two gradients of one problem, compared: first what they are, then their numbers."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.verify.arguments import path_name
from jaxnn.verify.extent import filled, heat
from jaxnn.verify.problem import Problem, is_floating
from jaxnn.verify.programs import Program, Programs
from jaxnn.verify.report import Diagnosis, LeafReport
from jaxnn.verify.untraceable import on_numbers

# Two correct float64 gradients agree to about 1e-15 of a leaf's scale; a wrong one does not come
# within 1e-10 of it by luck.
RELATIVE_TOLERANCE = 1e-10
# An explanation of a wrong gradient is exact if it leaves so much of its scale: rounding, no more.
EXACT = 1e-9


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
    """The loss, autodiff's gradient and, if it can be traced, the hand-written one."""

    def both(floats: list[Any], rest: list[Any]) -> Any:
        value, autodiff = jax.value_and_grad(problem.loss)(floats, rest)
        return value, autodiff, () if problem.as_it_is else problem.manual_grad(floats, rest)

    return both


def program_of_both(
    problem: Problem,
    programs: Programs,
    name: str,
    floats: list[Any],
    rest: list[Any],
    hastily: bool = True,
) -> Program:
    """The program of both gradients; it calls a hand-written one that cannot be traced."""
    program = programs.get(name, both_gradients(problem), floats, rest, hastily=hastily)
    if not problem.as_it_is:
        return program

    def run(floats: list[Any], rest: list[Any]) -> Any:
        value, autodiff, _ = program.run(floats, rest)
        return value, autodiff, on_numbers(problem, floats, rest)

    return program._replace(run=run)


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
    relative = RELATIVE_TOLERANCE + leaf.declared
    tolerance, doubt = relative * scale, 0.0
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
        sees=relative + plausible / scale if scale else None,
        wrong=wrong,
        where=filled(mask),
        heat=heat(differences / (scale or 1.0)) if wrong else (),
        messages=tuple(messages),
    )


def first_index(mask: np.ndarray[Any, Any]) -> tuple[int, ...]:
    """Where a mask is first true."""
    return tuple(int(i) for i in np.argwhere(mask)[0])
