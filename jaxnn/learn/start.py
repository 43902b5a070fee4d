"""Write the file that an exercise is begun with, and its solution."""

import ast
import inspect
from typing import Any

from jaxnn.learn.exercise import ABOUT, Exercise

HEAD = '''"""{title} ({grade}: {about}).

{doc}

Check it:       python -m jaxnn.learn check {file}
Open a hint:    python -m jaxnn.learn hint {name}
"""

{imports}

EXERCISE, GRADE = "{name}", "{grade}"
'''


def file_name(exercise: Exercise, grade: str) -> str:
    """Return the name of the file of a grade."""
    return f"{exercise.name}.py" if grade == "fused" else f"{exercise.name}_{grade}.py"


def text(exercise: Exercise, grade: str, file: str) -> str:
    """Return what the file of a grade begins with."""
    parts = {"easy": _easy, "fused": _fused, "memory": _memory, "bug": _bug}[grade](exercise)
    return _file(exercise, grade, file, parts)


def is_as_begun(exercise: Exercise, grade: str, code: str) -> bool:
    """Whether the code of a file is what it began with; its name and its comments are not asked."""
    begun = ast.parse(text(exercise, grade, ""))
    return [ast.dump(node) for node in ast.parse(code).body[1:]] == [
        ast.dump(node) for node in begun.body[1:]
    ]


def solution(exercise: Exercise, grade: str, file: str) -> str:
    """Return the file of a grade, solved."""
    roles = ("steps",) if grade == "easy" else ("fwd", "bwd")
    parts = [_source(exercise, role) for role in roles]
    return _file(exercise, grade, file, parts)


def _file(exercise: Exercise, grade: str, file: str, parts: list[str]) -> str:
    body = "\n\n".join(part.strip("\n") + "\n" for part in parts)
    imports, constants = _outside(exercise, body)
    head = HEAD.format(
        title=exercise.title,
        grade=grade,
        about=ABOUT[grade],
        doc=inspect.getdoc(exercise.module),
        file=file,
        name=exercise.name,
        imports=imports,
    )
    return "\n\n".join([head, *([constants] if constants else []), body])


def _outside(exercise: Exercise, body: str) -> tuple[str, str]:
    """The imports that a file's functions need, and the module's own constants and helpers."""
    source = inspect.getsource(exercise.module)
    tree = ast.parse(source)
    used = {n.id for n in ast.walk(ast.parse(body)) if isinstance(n, ast.Name)} | {"jnp"}
    own = {"forward", "steps", "library", "example", f"{exercise.name}_fwd", f"{exercise.name}_bwd"}
    helpers: list[str] = []
    taken: set[str] = set()
    for node in reversed(tree.body):
        name = getattr(node, "name", "")
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        if name and name in used and name not in own and name not in taken:
            helpers.insert(0, ast.get_source_segment(source, node) or "")
            used |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
            taken.add(name)
    lines = []
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxnn"):
                continue
            kept = [a for a in node.names if (a.asname or a.name).split(".")[0] in used]
            if kept:
                node.names = kept
                lines.append(ast.unparse(node))
    if not any("numpy as jnp" in line for line in lines):
        lines.append("import jax.numpy as jnp")
    lines.sort(key=lambda line: (not line.startswith("import"), line))
    return "\n".join(lines), "\n\n\n".join(helpers)


def _source(exercise: Exercise, role: str) -> str:
    source = inspect.getsource(exercise.function(role))
    return source.replace("def steps(", f"def {exercise.name}_steps(", 1)


def _forward(exercise: Exercise) -> str:
    return inspect.getsource(exercise.module.forward)


def _easy(exercise: Exercise) -> list[str]:
    steps = exercise.function("steps")
    names = list(inspect.signature(steps).parameters)
    blanks = exercise.blanks()
    body = [f"    d{name} = None" + (f"  # of: {line}" if line else "") for name, line in blanks]
    pairs = ", ".join(f'"{name}": d{name}' for name, _ in blanks)
    what = "Return the cotangent of every name, one line of the forward at a time, last to first."
    return [
        _forward(exercise),
        f"def {exercise.name}_steps({', '.join(names)}):\n"
        f'    """{what}"""\n' + "\n".join(body) + f"\n    return {{{pairs}}}\n",
    ]


def _blank_bwd(exercise: Exercise) -> str:
    bwd = exercise.function("bwd")
    parameters = list(inspect.signature(bwd).parameters.values())
    wanted = _cotangents(exercise)
    first = _unpacking(bwd, parameters[0].name)
    lines = [f"    {first}"] if first else []
    lines += [f"    {name} = None  # shape {shape}" for name, shape in wanted if name != "None"]
    returned = ", ".join(name for name, _ in wanted) + ("," if len(wanted) == 1 else "")
    given = ", ".join(_parameter(p) for p in _with_star(parameters))
    return (
        f"def {exercise.name}_bwd({given}):\n"
        '    """Return one cotangent for each input of the forward, in order."""\n'
        + "\n".join(lines)
        + f"\n    return {returned if len(wanted) > 1 else f'({returned})'}\n"
    )


def _with_star(parameters: list[inspect.Parameter]) -> list[Any]:
    found: list[Any] = []
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and "*" not in found:
            found.append("*")
        found.append(p)
    return found


def _parameter(p: Any) -> str:
    return p if isinstance(p, str) else str(p.replace(annotation=inspect.Parameter.empty))


def _cotangents(exercise: Exercise) -> list[tuple[str, str]]:
    from jaxnn.learn.points import drawn, floats

    return [
        (f"d{name}", shape) if floats(x) else ("None", "")
        for (name, shape), x in zip(exercise.module.INPUTS.items(), drawn(exercise, 0), strict=True)
    ]


def _unpacking(bwd: Any, saved: str) -> str:
    """The line of a solution that takes what was saved apart."""
    source = inspect.getsource(bwd)
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    for node in function.body:
        match node:
            case ast.Assign(value=ast.Name(id=name)) if name == saved:
                return ast.get_source_segment(source, node) or ""
    return ""


def _fused(exercise: Exercise) -> list[str]:
    lines = _forward(exercise).rstrip().split("\n")
    told = "# The forward, line by line:\n" + "\n".join(f"#{' ' * bool(s)}{s}" for s in lines)
    return [told, _source(exercise, "fwd"), _blank_bwd(exercise)]


def _memory(exercise: Exercise) -> list[str]:
    output, shape = next(iter(exercise.module.OUTPUT.items()))
    fwd = exercise.function("fwd")
    given = ", ".join(
        _parameter(p) for p in _with_star(list(inspect.signature(fwd).parameters.values()))
    )
    wanted = _cotangents(exercise)
    returned = ", ".join(name for name, _ in wanted) + ("," if len(wanted) == 1 else "")
    blanks = "\n".join(f"    {name} = None  # shape {s}" for name, s in wanted if name != "None")
    return [
        f"def {exercise.name}_fwd({given}):\n"
        f'    """Return {output} {shape}, and what the backward needs."""\n'
        f"    {output} = None\n    saved = ()\n    return {output}, saved\n",
        f"def {exercise.name}_bwd(saved, d{output}):\n"
        '    """Return one cotangent for each input of the forward, in order."""\n'
        f"{blanks}\n    return {returned if len(wanted) > 1 else f'({returned})'}\n",
    ]


def planted(exercise: Exercise, number: int = 0) -> str:
    """Return the source of the backward with a mistake of BUGS planted.

    Raises:
        ValueError: the text to replace is not in it.
    """
    old, new, _ = exercise.module.BUGS[number]
    source = inspect.getsource(exercise.function("bwd"))
    if old not in source:
        raise ValueError(f"BUGS of {exercise.name}: {old!r} is not in {exercise.name}_bwd")
    return source.replace(old, new)


def _bug(exercise: Exercise) -> list[str]:
    return [_source(exercise, "fwd"), planted(exercise)]
