"""Numbers that a cotangent is wrongly multiplied by, and digits that it lacks, in words."""

import ast
import inspect
import itertools
import textwrap
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnn.learn.case import Case, Cause
from jaxnn.learn.points import apart, close


def numbers_of(function: Any) -> tuple[float, ...]:
    """Return the factors and exponents in a function; a root has a 2."""
    found = set()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div | ast.Pow):
            for side in (node.left, node.right):
                if isinstance(side, ast.Constant) and isinstance(side.value, int | float):
                    found.add(float(side.value))
        elif isinstance(node, ast.Attribute) and node.attr in ("sqrt", "rsqrt", "square"):
            found.add(2.0)
    return tuple(sorted(found))


def number_in_words(c: float, case: Case, other: float | None = None) -> Cause | None:
    """Say which number a cotangent is wrongly multiplied by; None where it is not one number."""
    if other is not None and abs(other - c) > 1e-9 * abs(c):
        return None
    if abs(c + 1) < 1e-9:
        return Cause("sign", "has the wrong sign", "Which line of the forward has a minus in it?")
    minus = "minus " if c < 0 else ""
    size = float(abs(c))
    sizes = case.sizes
    found: list[tuple[float, str]] = []
    for number in (1, 2, 3):
        for letters in itertools.combinations(sizes, number):
            product = float(np.prod([sizes[s] for s in letters]))
            if product > 1:
                found.append((product, " ".join(letters)))
    of_square = min(abs(size - 2), abs(size - 0.5)) < 1e-9
    of_forward = [n for n in case.numbers if n not in (0, 1, 2) and _is_power(n, size)]
    or_number = " Or is it the 2 of a square, or the 1/2 of a root?" if of_square else ""
    if of_forward:
        or_number = f" Or is it the {of_forward[0]:.6g} that the forward has in it?"
    for product, named in found:
        if abs(size * product - 1) < 1e-9:
            return Cause(
                "factor",
                f"is {minus}1/{product:g} of the right one, and {named} = {product:g}",
                f"Is there a mean over {named} where there must be a sum, or a 1/{named} too much?"
                + or_number,
            )
        if abs(size / product - 1) < 1e-9:
            return Cause(
                "factor",
                f"is {minus}{product:g} times the right one, and {named} = {product:g}",
                f"Is a 1/{named} forgotten: a mean in the forward, a sum without it here?"
                + or_number,
            )
    if of_square:
        return Cause(
            "factor",
            f"is {minus}{'twice' if size > 1 else 'half'} the right one",
            "A factor of 2 comes from a square, one of 1/2 from a square root or a mean of two: "
            "which line has one?",
        )
    if of_forward:
        n = of_forward[0]
        times = f"{n:.6g} times" if abs(size - n) < 1e-6 * n else f"1/{n:.6g} of"
        return Cause(
            "factor",
            f"is {minus}{times} the right one, and the forward has {n:.6g} in it",
            "Differentiate that line by itself: does its number stay, and how often?",
        )
    return Cause(
        "factor",
        f"is the right one times {apart(c, 1.0)[0]}, in every entry",
        "One number is left out or too much: look for the constants of the forward.",
    )


def _is_power(number: float, size: float) -> bool:
    """Whether a factor is a number of the forward, or one divided by it."""
    return min(abs(size / number - 1), abs(size * number - 1)) < 1e-9


def few_digits(case: Case) -> Iterator[Cause]:
    """What is right to some digits: rounded to another dtype, or with a number cut short."""
    name, right = case.name, case.right
    has = np.asarray(case.returned[0].get(name, 0.0)).dtype
    for dtype, exact in (("float32", 2e-6), ("float16", 2e-3), ("bfloat16", 2e-2)):
        near = all(close(m, a, exact) for m, a in zip(case.given, right, strict=True))
        rounded = case.fits(np.asarray(jnp.asarray(r).astype(dtype), np.float64) for r in right)
        if near and (has == dtype or rounded):
            yield Cause(
                "dtype",
                f"{name} has only the digits of {dtype}",
                f"Compute in the dtype of what comes in: look for {dtype} in your code.",
            )
            return
    gap = max(
        float(np.abs(m - a).max() / np.abs(a).max())
        for m, a in zip(case.given, right, strict=True)
        if a.any()
    )
    if gap < 2e-5:
        yield Cause(
            "digits",
            f"{name} is right to {int(-np.log10(gap))} digits, and no more",
            "What does so little? A constant of the forward with too few digits, a small number "
            "such as eps in another place, or float32 within your code.",
        )
