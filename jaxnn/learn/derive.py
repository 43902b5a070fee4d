"""Derivations: equations that are typeset from the very expressions whose numbers are compared."""

import ast
import sys
from collections.abc import Mapping
from typing import NamedTuple

from jaxnn.learn.compare import WrongStep, same
from jaxnn.learn.latex import Symbols


class Step(NamedTuple):
    """One side of an equation: as code, as LaTeX, and why it is equal to the one before."""

    code: str
    latex: str
    why: str


class Derivation(NamedTuple):
    """A chain of equal expressions; in a notebook and on a page shown as equations."""

    steps: tuple[Step, ...]

    def __repr__(self) -> str:
        first, *others = self.steps
        lines = [f"{first.code} = {others[0].code}    {others[0].why}"]
        lines += [f"{'':{len(first.code)}} = {step.code}    {step.why}" for step in others[1:]]
        return "\n".join(line.rstrip() for line in lines)

    def _repr_markdown_(self) -> str:
        first, *others = self.steps
        parts = []
        for number, step in enumerate(others):
            left = f"{first.latex} = " if number == 0 else "= "
            parts += [*([f"{step.why}:"] if step.why else []), f"$$\n{left}{step.latex}\n$$"]
        return "\n\n".join(parts) + "\n"


def derive(
    start: str,
    *steps: tuple[str, str] | str,
    names: Mapping[str, str] | None = None,
    axes: Mapping[int, str] | None = None,
) -> Derivation:
    """Show a chain of equations, after all its expressions were found to be equal by number.

    Args:
        start: the left side, a Python expression in the caller's names: usually one name.
        *steps: what it is equal to, from step to step: expressions, or (expression, why). The
            why of a step stands above it and says what is done to the step before.
        names: LaTeX for names; others are read as names usually are: `dx_hat` is the cotangent of
            x with a hat, `W_xh` has a subscript.
        axes: letters for axes that sums and means are over, as in {-1: "c"}.

    Returns:
        What shows itself as equations, typeset from the expressions.

    Raises:
        WrongStep: two are not equal: values to float64 rounding, shapes and dtypes.
        ValueError: there is no step, or an expression cannot be typeset.
    """
    if not steps:
        raise ValueError(f"derive({start!r}) has no step; give what it is equal to")
    caller = sys._getframe(1)
    scope = {**caller.f_globals, **caller.f_locals}
    pairs = [(step, "") if isinstance(step, str) else step for step in steps]
    expressions = [(start, ""), *pairs]
    trees = [ast.parse(code.strip(), mode="eval").body for code, _ in expressions]
    products = any(isinstance(node, ast.MatMult) for tree in trees for node in ast.walk(tree))
    symbols = Symbols(scope, names or {}, axes or {}, products)
    before = eval(start, scope)
    for code, _ in pairs:
        after = eval(code.strip(), scope)
        try:
            same(after, before, code)
        except WrongStep as error:
            raise WrongStep(f"in the derivation of {start}: {error}") from None
    return Derivation(
        tuple(
            Step(code, symbols.latex(tree), why)
            for (code, why), tree in zip(expressions, trees, strict=True)
        )
    )
