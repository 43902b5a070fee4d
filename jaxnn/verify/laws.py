"""Hold a gradient to what that of a mean or a sum over a batch obeys.

    g(batch) = sum_k w_k g(part_k)      w_k = n_k / N for a mean, 1 for a sum
    g(batch permuted) = g(batch)
    g(batch with rows that the mask hides) = g(batch)

The sizes n are counts of examples, or sums of the mask. Where autodiff of the loss breaks a law
too, the loss is not what it was said to be, and nobody else is accused.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnn.verify.batch import BatchLaws, arguments_in_words, replace_batch, visible_parts
from jaxnn.verify.findings import Gap, described, gaps, worst_gap
from jaxnn.verify.nearby import plausible_rounding
from jaxnn.verify.problem import Problem, is_floating
from jaxnn.verify.programs import Program, Programs
from jaxnn.verify.trace import EPSILON
from jaxnn.verify.values import in_float64, largest

# Rounding alone does not break a law by so much of a leaf's scale in float64.
LAW_TOLERANCE = 1e-9
PADDING = 2  # rows
Gradient = dict[str, np.ndarray[Any, Any]]
Change = Callable[[str, Any], Any]


def batch_laws(
    laws: BatchLaws,
    problem_of: Callable[[tuple[Any, ...], dict[str, Any]], Problem],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    seed: int,
) -> tuple[str, ...]:
    """List the laws that the hand-written gradient breaks, in words. Call under `enable_x64`.

    Args:
        laws: which arguments carry the batch.
        problem_of: `problem_of(args, kwargs)` is the problem of other arguments.
        args: those after the parameters.
        kwargs: those given by name.
        seed: of the permutation.

    Raises:
        ValueError: as `visible_parts`.
    """
    of_arguments = f"the examples of {arguments_in_words(laws.arguments)}"
    shown = visible_parts(laws, args, kwargs)
    size, seen = len(shown), np.flatnonzero(shown)
    programs = Programs()

    def gradients(index: np.ndarray[Any, Any], change: Change = lambda _, leaf: leaf) -> _Both:
        chosen = replace_batch(laws, args, kwargs, lambda name, leaf: change(name, leaf[index]))
        problem = problem_of(*chosen)
        try:
            values = in_float64(problem, programs, f"{len(index)} examples")
        except Exception as error:  # whatever the functions under verification raise
            raise _Refusal(
                f"on {len(index)} examples, given {size}, {_refuses(problem)} raises "
                f"{described(error)}; is the batch size a constant?"
            ) from error
        autodiff = dict(zip(problem.paths, values.autodiff, strict=True))
        manual = {path: leaf for path, leaf in values.manual.items() if path in autodiff}
        for path, leaf in manual.items():
            if leaf.shape != autodiff[path].shape:
                raise _Refusal(
                    f"on {len(index)} examples, given {size}, the hand-written gradient has shape "
                    f"{leaf.shape} at {path}, the parameter {autodiff[path].shape}"
                )
        floor = plausible_rounding(values.loss)
        return _Both(manual, autodiff, floor, values.program, problem.tolerances)

    def hidden(name: str, leaf: Any) -> Any:
        if name == laws.mask:
            leaf[size:] = 0
        return leaf

    def poisoned(name: str, leaf: Any) -> Any:
        if name != laws.mask and isinstance(leaf, np.ndarray):  # no PRNG key
            leaf[size:] = np.nan if is_floating(leaf) else 0
        return hidden(name, leaf)

    everything = np.arange(size)
    cut = int(np.clip(size // 3, seen[0] + 1, seen[-1]))  # either part shows something
    order = np.random.default_rng(seed).permutation(size)
    cycle = np.empty_like(order)  # every example moves
    cycle[order] = np.roll(order, 1)
    longer = np.append(everything, np.zeros(PADDING, everything.dtype))

    def additive() -> str:
        parts = [gradients(everything[:cut]), gradients(everything[cut:])]
        weights = {
            "sum": (1.0, 1.0),
            "mean": np.array([shown[:cut].sum(), shown[cut:].sum()]) / shown.sum(),
            "mean over rows": (cut / size, 1 - cut / size),
        }
        whole = gradients(everything)

        def instead(role: str) -> str:
            broken = {name: {*_broken(role, parts, w, whole)} for name, w in weights.items()}
            return next((n for n in broken if broken[laws.reduction] - broken[n]), "")

        return _judged(
            parts,
            weights[laws.reduction],
            whole,
            f"not additive over micro-batches of {cut} and {size - cut} examples, as a "
            f"{laws.reduction} over them is",
            _HINTS[instead("manual")],
            f"the loss is no {laws.reduction} over {of_arguments}"
            + (f" but, it seems, a {instead('autodiff')}" if instead("autodiff") else ""),
        )

    def unchanged(there: Any, here: Any, law: str, cause: str, blame: str) -> str:
        return _judged([gradients(*there)], [1.0], gradients(*here), law, cause, blame)

    rows = f"{PADDING} rows that the mask {laws.mask} hides"
    replace = "replace what is hidden, with jnp.where, before the operation"
    tests: list[Callable[[], str]] = [
        additive,
        lambda: unchanged(
            (cycle,),
            (everything,),
            "changed by permuting the batch",
            "does it single out an example, or take one array in another order?",
            "the loss treats its examples by their position (does it draw random numbers so?)",
        ),
        lambda: unchanged(
            (longer, hidden),
            (everything,),
            f"changed by {rows}",
            "does it count the rows instead of what the mask shows?",
            "the loss itself lets them in (does it count the rows?)",
        ),
        lambda: unchanged(
            (longer, poisoned),
            (longer, hidden),
            f"changed by NaN, and integers 0, in {rows}",
            f"0 * NaN is NaN: {replace}",
            f"the loss itself leaks: {replace}",
        ),
    ]
    found = []
    for test in tests if laws.mask is not None else tests[:2]:
        try:
            found.append(test())
        except _Refusal as refusal:
            found.append(str(refusal))
    return tuple(f"batch laws: {sentence}" for sentence in dict.fromkeys(found) if sentence)


class _Both(NamedTuple):
    """Both gradients by path; the rounding plausible in them, and the program they come from.

    `tolerances` are those declared, by path.
    """

    manual: Gradient
    autodiff: Gradient
    floor: float
    program: Program
    tolerances: Mapping[str, float]


class _Refusal(Exception):  # noqa: N818 (a finding in words, not an error of ours)
    """A function under verification that does not take a batch derived from the one given."""


_HINTS = {
    "": "are examples coupled, as by batch normalisation, or one of them singled out?",
    "sum": "it adds up as a sum does: is the batch size a constant, or a sum where a mean belongs?",
    "mean": "it averages as a mean does: is there a mean where a sum belongs?",
    "mean over rows": "it averages by rows: is there a mean over all rows where one over what the "
    "mask shows, or a sum, belongs?",
}


def _refuses(problem: Problem) -> str:
    """Which of the two functions cannot be traced."""
    try:
        jax.eval_shape(jax.grad(problem.loss), problem.floats, problem.rest)
    except Exception:  # it was seen already; only whose it is was not
        return "the loss"
    return "the hand-written gradient"


def _judged(
    parts: Sequence[_Both], weights: Any, whole: _Both, law: str, cause: str, blame: str
) -> str:
    """A law that the hand-written gradient breaks, in words; where the loss does too, its fault."""
    manual, autodiff = (_broken(role, parts, weights, whole) for role in ("manual", "autodiff"))
    if not manual:
        return ""
    values = f"the hand-written one is {worst_gap(manual)}"
    if autodiff:
        return f"{blame}: both gradients are {law}; {values}"
    return f"the hand-written gradient is {law}, autodiff's is not: {values}; {cause}"


def _broken(role: str, parts: Sequence[_Both], weights: Any, whole: _Both) -> dict[str, Gap]:
    """The leaves where the weighted sum of the parts' gradients is not that of the whole."""
    relative = relative_of(both.program for both in (whole, *parts))
    floor = max(both.floor for both in (whole, *parts))
    gradient: Gradient = getattr(whole, role)  # what is not finite has failed already
    expected = {path: leaf for path, leaf in gradient.items() if np.isfinite(leaf).all()}
    terms = {
        path: [w * getattr(part, role)[path] for w, part in zip(weights, parts, strict=True)]
        for path in expected
    }
    return gaps(
        {path: np.sum(several, axis=0) for path, several in terms.items()},
        expected,
        {
            path: (relative + whole.tolerances.get(path, 0.0))
            * max(map(largest, (*several, expected[path])))
            + floor
            for path, several in terms.items()
        },
    )


def relative_of(programs: Iterable[Program]) -> float:
    """Return what rounding may change, of a leaf's scale: where it is to a narrower dtype, more."""
    return max(LAW_TOLERANCE, *(64 * EPSILON[p.rounded_to] for p in programs))
