"""Mutants of lessons: a sign changed, and the lesson must fail.

    python tests/mutate_lessons.py             all lessons
    python tests/mutate_lessons.py 12 attention  those with one of these words in their name

One at a time + becomes -, - becomes +, a minus before a term goes, * becomes / and / becomes *:
in the expressions of `derive`, in the cells that hold something to autodiff or derive it, and in
the functions that `show_source` shows. What follows runs until a cell fails, up to the end of
"In the library": a mutant which does not fail until then has survived, and the lesson is weak.
"""

import ast
import copy
import inspect
import io
import linecache
import os
import re
import sys
import textwrap
import types
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import jax

from jaxnn.learn.site import build, reference

LESSONS = Path(reference.__file__).parent / "lessons"
OTHER = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
# Where a mutant has to have failed, and the sections that work nothing out.
LAST = "In the library"
AFTER = ("Three mistakes", "Questions")
ELSEWHERE = ("", "A picture", LAST, *AFTER)
# Calls whose arguments choose a point or a way of showing: a sign in there decides nothing.
CHOICES = ("Lines", "flow", "memory", "ladder", "normal", "uniform", "split", "key", "print")
# What shows something, and fails for no reason but bad input.
SHOWS = ("show_source", "saved", "flow", "memory", "ladder", "verify")
STUB = MagicMock()
# Mutants that are equal to what they come from: by lesson, what is replaced by what, and why.
HIDDEN = "where a logit is -inf: no point of the lesson has one, tests/test_ops_labels.py has"
SIGN = "1 and -1 are their own inverses, and 0 does not occur"
POINT = "the point, which is chosen"
EQUIVALENT: dict[tuple[str, str], str] = {
    (
        "05_softmax_cross_entropy",
        "1e-15 * jnp.abs(dshifted).max() -> 1e-15 / jnp.abs(dshifted).max()",
    ): "how much rounding is allowed, of numbers near 1",
    ("05_softmax_cross_entropy", "-jnp.inf -> +jnp.inf"): HIDDEN,
    (
        "20_linear_cross_entropy",
        "((1 - label_smoothing) * w_label + label_smoothing * mean_w) * jnp.ones_like(counts) -> "
        "((1 - label_smoothing) * w_label + label_smoothing * mean_w) / jnp.ones_like(counts)",
    ): "a factor of ones, for its shape",
    ("20_linear_cross_entropy", "-jnp.inf -> +jnp.inf"): HIDDEN,
    ("04_losses", "delta * jnp.sign(d) -> delta / jnp.sign(d)"): SIGN,
    ("06_regularisation", "l1 * jnp.sign(w) -> l1 / jnp.sign(w)"): SIGN,
    ("04_losses", "x @ w - t -> x @ w + t"): "what a mean and a sum do, whatever the loss",
    ("06_regularisation", "-2.0 -> +2.0"): POINT,
    ("06_regularisation", "-1e-09 -> +1e-09"): POINT,
    (
        "07_initialisation",
        "s * jnp.asarray(list(itertools.product((-1.0, 1.0), repeat=4))).T -> "
        "s / jnp.asarray(list(itertools.product((-1.0, 1.0), repeat=4))).T",
    ): SIGN,
    ("07_initialisation", "-1 -> +1"): "the letter of an axis",
}


class Cell(NamedTuple):
    """A code cell: its section, the line of the lesson at which its code begins, its code."""

    section: str
    line: int
    code: str


class Mutant(NamedTuple):
    """A change: the line of the lesson (or its place in the library), and what became what."""

    where: str
    change: str


class Outcome(NamedTuple):
    """What became of a lesson's mutants."""

    lesson: str
    killed: list[Mutant]
    survived: list[Mutant]


def cells(text: str) -> list[Cell]:
    """Return the code cells of a lesson, in order."""
    found = []
    for block in re.finditer(
        r"^```\{code-cell\}[^\n]*\n((?::[^\n]*\n)*)(.*?)^```$", text, re.MULTILINE | re.DOTALL
    ):
        above = re.findall(r"^## (.*)$", text[: block.start()], re.MULTILINE)
        line = text[: block.start(2)].count("\n") + 1
        found.append(Cell(above[-1] if above else "", line, block[2]))
    return found


def run(code: str, scope: dict[str, Any], name: str) -> None:
    """Run a cell; its source can be read by `inspect`, as in a notebook."""
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    with redirect_stdout(io.StringIO()):
        exec(compile(code, name, "exec"), scope)


def mutated(tree: ast.AST, skip: tuple[str, ...] = ()) -> Iterator[tuple[int, str, ast.AST]]:
    """Give each mutant of a tree: its line, what became what, and the tree.

    Left out are signs of axes and indices, and the functions in `skip`.
    """
    for number, node in enumerate(_signs(tree, skip)):
        changed = copy.deepcopy(tree)
        twin = list(_signs(changed, skip))[number]
        before = ast.unparse(node)
        if isinstance(twin, ast.UnaryOp):
            twin.op = ast.UAdd()
        else:
            assert isinstance(twin, ast.BinOp | ast.AugAssign)
            twin.op = OTHER[type(twin.op)]()
        yield node.lineno, f"{before} -> {ast.unparse(twin)}", changed


def _signs(node: ast.AST, skip: tuple[str, ...]) -> Iterator[ast.expr | ast.stmt]:
    if isinstance(node, ast.FunctionDef) and node.name in skip:
        return
    if isinstance(node, ast.Call):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if (called or getattr(node.func, "id", "")) in (*CHOICES, "derive"):
            return
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in OTHER:
        yield node
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield node
    for child in ast.iter_child_nodes(node):
        of_axis = isinstance(node, ast.Call | ast.keyword | ast.Tuple | ast.Subscript | ast.Slice)
        if not (of_axis and _is_number(child)):
            yield from _signs(child, skip)


def _is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant)


def of_cell(cell: Cell, forwards: tuple[str, ...]) -> Iterator[tuple[Mutant, str]]:
    """Give each mutant of a cell, with its code: of its expressions in `derive`, of its lines."""
    tree = ast.parse(cell.code)
    for number, text in enumerate(_derived(tree)):
        expression = ast.parse(text.value.strip(), mode="eval")
        for _, change, wrong in mutated(expression):
            other = copy.deepcopy(tree)
            list(_derived(other))[number].value = ast.unparse(wrong)
            yield Mutant(f"line {cell.line + text.lineno - 1}", change), ast.unparse(other)
    held = any(f"{word}(" in cell.code for word in ("same", "derive"))
    if ".check(" in cell.code or (held and cell.section not in ELSEWHERE):
        for line, change, wrong in mutated(tree, forwards):
            yield Mutant(f"line {cell.line + line - 1}", change), ast.unparse(wrong)


def _derived(tree: ast.AST) -> Iterator[Any]:
    """Give the expressions of `derive` in a cell, as nodes of text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "derive":
            for step in node.args:
                text = step.elts[0] if isinstance(step, ast.Tuple) else step
                if isinstance(text, ast.Constant):
                    yield text


def _shown(cell: Cell, scope: dict[str, Any]) -> Iterator[types.FunctionType]:
    """Give the functions that a cell shows."""
    for node in ast.walk(ast.parse(cell.code)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "show_source":
            for thing in node.args:
                value = inspect.unwrap(eval(ast.unparse(thing), scope))
                if isinstance(value, types.FunctionType):
                    yield value


def of_function(function: types.FunctionType) -> Iterator[tuple[Mutant, types.CodeType]]:
    """Give each mutant of a function of the library, as code to be put into it.

    The first is the function itself, compiled anew: it must pass where the others must fail.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    tree.body[0].decorator_list = []  # type: ignore[attr-defined]
    place = f"{function.__module__}.{function.__name__}"
    for line, change, form in [(0, "", tree), *mutated(tree)]:
        text, name = ast.unparse(form), f"<{function.__name__}: {change}>"
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        module = compile(text, name, "exec")
        (code,) = (each for each in module.co_consts if isinstance(each, types.CodeType))
        yield Mutant(f"{place}, line {line}", change), code


def tried(path: Path, sample: int = 1) -> Outcome:
    """Try the mutants of a lesson, or every so many of them, one at a time."""
    parts = cells(path.read_text(encoding="utf-8"))
    forwards = tuple(re.findall(r"\bLines\(\s*(\w+)", "\n".join(cell.code for cell in parts)))
    outcome = Outcome(path.stem, [], [])
    scope: dict[str, Any] = {"__name__": "__main__"}
    seen = 0

    def fails(number: int, code: str | None = None) -> bool:
        """Whether what follows from a cell on fails; what only shows something is left out."""
        own = {} if number == 0 else scope | {name: STUB for name in SHOWS if name in scope}
        ends = [i + 1 for i, cell in enumerate(parts) if cell.section == LAST]
        end = ends[-1] if ends and ends[-1] > number else len(parts)
        try:
            for i in range(number, end):
                text = code if i == number and code is not None else parts[i].code
                run(text, own, f"<mutant, cell {i}>")
        except Exception:
            return True
        return False

    def note(mutant: Mutant, killed: bool) -> None:
        if killed:
            outcome.killed.append(mutant)
        elif (path.stem, mutant.change) not in EQUIVALENT:
            outcome.survived.append(mutant)

    own_mutants = [list(of_cell(cell, forwards)) for cell in parts]
    last = max(i for i, cell in enumerate(parts) if own_mutants[i] or cell.section == LAST)
    for number, cell in enumerate(parts[: last + 1]):
        if own_mutants[number] and not any(own_mutants[:number]) and fails(number):
            raise AssertionError(f"{path.stem} fails as it is, from line {cell.line}")
        for mutant, code in own_mutants[number]:
            seen += 1
            if seen % sample == 0:
                note(mutant, fails(number, code))
        functions = [] if cell.section in AFTER else list(_shown(cell, scope))
        for function in functions:
            own = function.__code__
            # What is shown further up has been used before.
            start = number if cell.section == LAST else 0
            for mutant, code in of_function(function):
                seen += 1
                if mutant.change and seen % sample:
                    continue
                function.__code__ = code
                try:
                    failed = fails(start)
                finally:
                    function.__code__ = own
                    jax.clear_caches()
                if mutant.change:
                    note(mutant, failed)
                elif failed:
                    raise AssertionError(f"{path.stem} fails with {mutant.where} as it is")
        # As a mutant's: printed from its tree. It must pass.
        run(ast.unparse(ast.parse(cell.code)), scope, f"<{path.stem}, cell {number}>")
    return outcome


def main(words: list[str]) -> int:
    """Try the lessons asked for; return 1 if a mutant survived."""
    os.environ.setdefault("XLA_FLAGS", build.KERNEL["XLA_FLAGS"])
    jax.config.update("jax_num_cpu_devices", 4)  # before the first lesson; the last asks for them
    status = 0
    for path in sorted(LESSONS.glob("*.md")):
        if words and not any(word in path.stem for word in words):
            continue
        _, killed, survived = tried(path)
        print(f"{path.stem}: {len(killed) + len(survived)} mutants, {len(killed)} killed")
        for mutant in survived:
            print(f"  survived, {mutant.where}: {mutant.change}")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
