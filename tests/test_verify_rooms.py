"""The rooms of `jaxnn.verify`: who imports whom."""

import ast
import graphlib
from pathlib import Path

import jaxnn.verify

HOME = Path(jaxnn.verify.__file__).parent
ROOMS = {
    ".".join(("jaxnn.verify", *path.relative_to(HOME).with_suffix("").parts)): path
    for path in HOME.rglob("*.py")
    if path.name != "__init__.py"
} | {"jaxnn.verify.causes": HOME / "causes" / "__init__.py"}


def imported(path):
    """The modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            whole = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in ROOMS else node.module for name in whole)


GRAPH = {name: {*imported(path)} for name, path in ROOMS.items()}


def test_no_room_imports_itself_by_others():
    tuple(graphlib.TopologicalSorter(GRAPH).static_order())  # raises of a circle


def test_of_the_library_it_knows_the_op_and_its_calls_alone():
    theirs = {name for names in GRAPH.values() for name in names if name.startswith("jaxnn")}
    assert theirs - {*ROOMS} == {"jaxnn.op", "jaxnn.calls"}
    others = {name.partition(".")[0] for names in GRAPH.values() for name in names} - {"jaxnn"}
    assert others & {"chex", "optax", "rich", "jinja2", "matplotlib", "cachetools"} == set()


def test_the_search_for_causes_has_one_entrance_and_only_the_verdict_uses_it():
    causes = {name for name in ROOMS if name.startswith("jaxnn.verify.causes")}
    users = {(name, used) for name in {*ROOMS} - causes for used in GRAPH[name] & causes}
    assert users == {("jaxnn.verify.verdict", "jaxnn.verify.causes")}
    judgement = {f"jaxnn.verify.{name}" for name in ("verdict", "judge", "reference", "rules")}
    assert not any(GRAPH[name] & judgement for name in causes)


def test_a_room_is_read_at_one_sitting():
    assert {name: n for name, n in lengths() if n > 250} == {}


def lengths():
    return [(name, len(path.read_text().splitlines())) for name, path in ROOMS.items()]
