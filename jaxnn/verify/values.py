"""Both gradients at one point, and how far rounding moves them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.verify.arguments import path_name
from jaxnn.verify.derivative import Way, derivative, measured, split
from jaxnn.verify.problem import Problem, is_floating
from jaxnn.verify.programs import Program, Programs, Trace
from jaxnn.verify.untraceable import on_numbers
from jaxnn.verify.width import EPSILON, epsilon_to, rounded_to

Leaf = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Values:
    """Both gradients at one point: autodiff's by position, the hand-written by path.

    Attributes:
        loss: its value.
        asked: what computed them.
        autodiff: the gradient of the loss.
        manual: the hand-written gradient.
        out: the same as it was returned.
        uncertainty: what each entry of `autodiff` may be off by, where finite differences measured
            it; else None.
    """

    loss: float
    asked: "Asked"
    autodiff: list[Leaf]
    manual: dict[str, Leaf]
    out: Any
    uncertainty: list[Leaf] | None = None

    @property
    def program(self) -> Program:
        """What computed the gradient of the loss."""
        return self.asked.program

    @property
    def width(self) -> float:
        """The spacing at 1 of the dtype that both are held to; 0 for float64."""
        return self.asked.width

    @property
    def size(self) -> float:
        """The largest number that may have been rounded: the loss, or an entry of a gradient."""
        return max([abs(self.loss), *map(largest, self.autodiff)])


def both_gradients(
    problem: Problem, way: Way = "reverse mode"
) -> Callable[[list[Any], list[Any]], Any]:
    """The loss, autodiff's gradient and, if it can be traced, the hand-written one."""
    of_loss = derivative(problem.loss, way)

    def both(floats: list[Any], rest: list[Any]) -> Any:
        return *of_loss(floats, rest), () if problem.as_it_is else problem.manual_grad(floats, rest)

    return both


class Asked(NamedTuple):
    """What is asked for both gradients, at any point.

    Attributes:
        program: `both_gradients`, compiled.
        way: how the loss is differentiated in it.
        by_hand: the hand-written gradient where it is no part of the program, but called as it is.
        width: the spacing at 1 of the dtype that the loss is rounded to inside, and the
            hand-written gradient may be; 0 where that is float64.
        as_narrow_as: what `by_hand` may be rounded to.
    """

    program: Program
    way: Way = "reverse mode"
    by_hand: Callable[[list[Any], list[Any]], Any] | None = None
    width: float = 0.0
    as_narrow_as: float = 0.0

    def at(self, floats: list[Any], rest: list[Any]) -> Values:
        """Both gradients, in the dtype of what is given."""
        value, found, out = self.program.run(floats, rest)
        uncertainty, asked = None, self
        if self.way == "forward mode":
            found = split(found, floats)
        elif self.way == "finite differences":
            found, uncertainty = measured(found, floats, self.program.epsilon)
        if self.by_hand is not None:
            out = self.by_hand(floats, rest)
        leaves = {path: leaf for path, leaf in by_path(out).items() if is_floating(leaf)}
        if self.by_hand is not None:
            # No trace says what it rounds to; what it returns does.
            returned = max((epsilon_to(str(leaf.dtype)) for leaf in leaves.values()), default=0.0)
            asked = self._replace(width=max(self.width, min(returned, self.as_narrow_as)))
        return Values(
            float(value),
            asked,
            [np.asarray(leaf, np.float64) for leaf in found],
            {path: np.asarray(leaf, np.float64) for path, leaf in leaves.items()},
            out,
            uncertainty,
        )


def ask(
    problem: Problem,
    programs: Programs,
    name: str,
    floats: list[Any],
    rest: list[Any],
    way: Way = "reverse mode",
    *,
    hastily: bool = True,
    trace: Trace | None = None,
    as_narrow_as: float = 0.0,
) -> Asked:
    """What is asked for both gradients of a problem, compiled under this name.

    Given its trace, the hand-written gradient is held to the width of the loss, or may be as narrow
    as said; else to that of both.
    """
    both = both_gradients(problem, way)
    program = programs.get(name, both, floats, rest, hastily=hastily, trace=trace)
    by_hand = functools.partial(on_numbers, problem) if problem.as_it_is else None
    width = epsilon_to(program.rounded_to)
    if trace is not None:
        outputs = 1 + {"reverse mode": len(floats), "forward mode": 1, "finite differences": 2}[way]
        of_loss = epsilon_to(rounded_to(trace.jaxpr, outputs))
        width = max(of_loss, min(width, as_narrow_as))
    return Asked(program, way, by_hand, width, as_narrow_as)


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
    """How far the gradients of each leaf move if every input moves in its last place, in float64.

    The larger of the two gradients' moves, and the smaller for two random moves in opposite
    directions: a kink on one side is not rounding. Times 64, for sums of many terms; bounded by the
    scale of the whole problem, so that a kink on both sides excuses nothing.
    """
    rng = np.random.default_rng(0)

    def moves(sign: int) -> list[float]:
        near = (moved(leaves, sign * 2.0**-51, rng) for leaves in (floats, rest))
        there = here.asked.at(*near)
        autodiff = [
            largest(g - g_here) for g, g_here in zip(there.autodiff, here.autodiff, strict=True)
        ]
        manual = {path: largest(there.manual[path] - g) for path, g in here.manual.items()}
        return [max(a, manual.get(p, a)) for p, a in zip(problem.paths, autodiff, strict=True)]

    bound = 1e-12 * here.size
    with np.errstate(invalid="ignore"):  # infinity minus infinity is no move
        ups, downs = moves(1), moves(-1)
    return [min(64 * min(up, down), bound) for up, down in zip(ups, downs, strict=True)]


def apart_of(
    here: Values, floats: list[Any], rest: list[Any], paths: list[str], epsilon: float
) -> list[float]:
    """How far the two gradients of each leaf move apart if what was given moves in its last place.

    Rows that sum to 1 and unit vectors are so only to the last place of the dtype that they were
    given in, and a gradient that relies on it is off by as much in float64. A gradient that is
    wrong by a part of itself moves by that part of a last place only. Times 64, as in
    `rounding_of`, and no more than so many last places of the scale; for float32 alone, since of
    wider numbers nothing is left, and the last place of narrower ones is no small move.
    """
    if epsilon != EPSILON["float32"]:
        return [0.0] * len(paths)
    rng = np.random.default_rng(0)

    def apart(values: Values) -> list[Leaf]:
        by_hand = [values.manual.get(path) for path in paths]
        return [
            m - a if m is not None and m.shape == a.shape else np.zeros(a.shape)
            for m, a in zip(by_hand, values.autodiff, strict=True)
        ]

    with np.errstate(invalid="ignore"):  # infinity minus infinity is no move
        before, moves = apart(here), []
        for sign in (1, -1, 1, -1):
            near = (moved(leaves, sign * epsilon, rng) for leaves in (floats, rest))
            there = here.asked.at(*near)
            moves.append([largest(b - a) for a, b in zip(before, apart(there), strict=True)])
    scales = map(largest, here.autodiff)
    return [
        64 * min(float(move), epsilon * scale)
        for move, scale in zip(np.median(moves, axis=0), scales, strict=True)
    ]


# So many draws tell how far rounding moves a gradient; their median leaves out a kink close by.
DRAWS = 5
# What is a small part of the scale, and how much further a move goes to tell rounding from a kink.
SMALL, FURTHER = 1e-3, 64


def noise_of(here: Values, floats: list[Any], rest: list[Any], epsilon: float) -> list[float]:
    """How far autodiff's gradient of each leaf is off where it is rounded to `epsilon` at 1.

    Every input is moved in its last place of that width: the largest change of an entry, as the
    median of several draws. A change that is no small part of the scale is rounding only if it
    grows with the move: that at a kink does not.
    """
    rng = np.random.default_rng(0)

    def changes(size: float) -> list[float]:
        draws = []
        for k in range(DRAWS):
            near = (moved(leaves, (-1) ** k * size, rng) for leaves in (floats, rest))
            there = here.asked.at(*near)
            with np.errstate(invalid="ignore"):
                pairs = zip(there.autodiff, here.autodiff, strict=True)
                draws.append([largest(g - now) for g, now in pairs])
        return [float(x) for x in np.median(draws, axis=0)]

    found = changes(epsilon)
    small = [SMALL * largest(g) for g in here.autodiff]
    if epsilon > EPSILON["float32"] or not any(f > s for f, s in zip(found, small, strict=True)):
        return found
    wider = changes(FURTHER * epsilon)
    return [min(f, max(w / FURTHER, s)) for f, w, s in zip(found, wider, small, strict=True)]


def epsilon_of(dtype: Any) -> float:
    """The spacing of a dtype's numbers at 1."""
    return float(jnp.finfo(dtype).eps)  # type: ignore[no-untyped-call]


def largest(values: Leaf) -> float:
    """The largest finite absolute entry; 0 where there is none."""
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def plausible_rounding(loss: float) -> float:
    """What float64 may round away in numbers of the size of the loss, or of 1."""
    return 64 * 2.0**-52 * max(1.0, abs(loss))


def first_index(mask: np.ndarray[Any, Any]) -> tuple[int, ...]:
    """Where a mask is first true."""
    return tuple(int(i) for i in np.argwhere(mask)[0])
