"""How the library is built, measured: what share of an op's file is arithmetic, who imports whom.

    python tests/house.py

prints a line for each file of `jaxnn/ops` and for each op's backward, and with `--write` brings the
lists of files in the READMEs up to date.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
# A door too long to stand beside its arithmetic has a file of its own.
OPS = sorted(
    path
    for path in (ROOT / "jaxnn" / "ops").glob("*.py")
    if path.name != "__init__.py" and not path.stem.endswith("_doors")
)


def parsed(path):
    return ast.parse(path.read_text())


def code_lines(path, node=None):
    """The numbers of the lines of a file, or of a node in it, that are code: no blank line, no
    comment, no docstring."""
    lines, tree = path.read_text().splitlines(), parsed(path)
    first, last = (1, len(lines)) if node is None else (first_line(node), node.end_lineno)
    docs = {
        number
        for part in ast.walk(tree)
        if isinstance(part, ast.Module | ast.ClassDef | ast.FunctionDef)
        and ast.get_docstring(part) is not None
        for number in range(part.body[0].lineno, part.body[0].end_lineno + 1)
    }
    blank = {n for n, line in enumerate(lines, 1) if not line.strip() or line.strip()[0] == "#"}
    return set(range(first, last + 1)) - docs - blank


def first_line(node):
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])


def is_arithmetic(node):
    """Whether a part of a module is arithmetic or its signature: the functions of a pair, what they
    call, the parameters and residuals. Doors, examples, imports and bindings are not."""
    if isinstance(node, ast.ClassDef):
        return True
    if not isinstance(node, ast.FunctionDef):
        return False
    return not (node.name.lstrip("_").startswith("check") or "example" in node.name)


class File(NamedTuple):
    """A file of ops: all its lines, those that are code, those of these that are arithmetic."""

    name: str
    lines: int
    code: int
    arithmetic: int


def measured(path):
    arithmetic = set()
    for node in parsed(path).body:
        if is_arithmetic(node):
            arithmetic |= code_lines(path, node)
    return File(
        path.name, len(path.read_text().splitlines()), len(code_lines(path)), len(arithmetic)
    )


class Backward(NamedTuple):
    """An op's backward: its lines of code with those of its file that it calls, what it calls in
    other files, and what stands between it and its forward."""

    op: str
    lines: int
    elsewhere: tuple[str, ...]
    between: tuple[str, ...]


# What a backward may call outside its file: shared numerics, over which axes of a mesh a value
# varies, the geometry of windows, other pairs.
SHARED = {"jaxnn.numerics", "jaxnn.varying", "jaxnn.ops.windows"}


def backwards(path):
    """The backward of every op that a file binds."""
    module = parsed(path)
    functions = {n.name: n for n in module.body if isinstance(n, ast.FunctionDef)}
    order = [n.name for n in module.body if isinstance(n, ast.FunctionDef)]
    outside = {
        alias.asname or alias.name: node.module
        for node in module.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxnn")
        for alias in node.names
    }
    for node in module.body:
        value = getattr(node, "value", None)
        if not (isinstance(value, ast.Call) and getattr(value.func, "id", "") == "Op"):
            continue
        fwd, bwd = (argument.id for argument in value.args[:2])
        reached, todo, elsewhere = set(), [bwd], set()
        while todo:
            name = todo.pop()
            if name in reached:
                continue
            reached.add(name)
            for call in ast.walk(functions[name]):
                called = getattr(getattr(call, "func", None), "id", "")
                if called in functions:
                    todo.append(called)
                elif called[:1].islower() and outside.get(called, "jaxnn.numerics") not in SHARED:
                    elsewhere |= {called} if not called.endswith(("_fwd", "_bwd")) else set()
        lines = sum(len(code_lines(path, functions[name])) for name in reached)
        between = order[order.index(fwd) + 1 : order.index(bwd)]
        between = tuple(n for n in between if n.endswith("_fwd"))
        yield Backward(node.targets[0].id, lines, tuple(sorted(elsewhere)), between)


def modules():
    """Every module of the library and the experiments, by name, with the file it is in."""
    found = {}
    for folder in ("jaxnn", "experiments"):
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports():
    """For each module the modules of ours that it imports, wherever in it."""
    known = modules()
    graph = {}
    for name, path in known.items():
        wanted = set()
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                wanted |= {one for one in inner if one in known}
                wanted |= {node.module} if not inner <= set(known) else set()
        graph[name] = {one for one in wanted if one in known} - {name}
    return graph


def circle(graph):
    """A circle in a graph of imports, as a list that ends where it begins; empty for none."""
    done = set()

    def walk(name, path):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for following in sorted(graph[name]):
            if found := walk(following, [*path, name]):
                return found
        done.add(name)
        return []

    for name in sorted(graph):
        if found := walk(name, []):
            return found
    return []


# The folders with a README that lists what is in them; each file is in the list nearest to it.
LISTED = (
    *("jaxnn", "jaxnn/learn", "jaxnn/train", "jaxnn/verify"),
    *("experiments", "experiments/benchmark", "tests"),
)


def tree(folder):
    """A line for each Python file of a folder: its name, and how its docstring begins."""
    tracked = subprocess.run(
        ["git", "ls-files", f"{folder}/*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    deeper = tuple(f"{other}/" for other in LISTED if other.startswith(f"{folder}/"))
    lines = []
    for name in sorted(tracked.stdout.split()):
        doc = ast.get_docstring(parsed(ROOT / name))
        if doc and not name.startswith(deeper):
            lines.append(f"{name.removeprefix(folder + '/'):28} {doc.splitlines()[0].rstrip('.')}")
    return "\n".join(lines)


def list_in(readme):
    """The list of files that a README has, and where it is in it."""
    return re.search(r"(?<=## What is where\n\n```\n).*?(?=\n```)", readme, re.DOTALL)


if __name__ == "__main__":
    if "--write" in sys.argv:
        for folder in LISTED:
            path = ROOT / folder / "README.md"
            text = path.read_text()
            start, end = list_in(text).span()
            path.write_text(text[:start] + tree(folder) + text[end:])
    print("file                      lines  code  arithmetic")
    for file in map(measured, OPS):
        print(f"{file.name:24} {file.lines:6} {file.code:5} {file.arithmetic / file.code:10.0%}")
    print("\nbackward                  lines")
    for backward in (b for path in OPS for b in backwards(path)):
        print(f"{backward.op:24} {backward.lines:6}  {' '.join(backward.elsewhere)}")
