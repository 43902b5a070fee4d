"""How the library is built: arithmetic that one reads, no circle of imports, no arrow upward."""

import house
import pytest

GRAPH = house.imports()


@pytest.mark.parametrize("path", house.OPS, ids=lambda path: path.stem)
def test_half_of_an_ops_file_is_arithmetic(path):
    file = house.measured(path)
    assert 2 * file.arithmetic >= file.code, file


def test_no_file_of_ops_is_long():
    folder = house.ROOT / "jaxnn" / "ops"
    lines = {path.name: len(path.read_text().splitlines()) for path in folder.rglob("*.py")}
    assert not {name: count for name, count in lines.items() if count > 250}


@pytest.mark.parametrize("path", house.OPS, ids=lambda path: path.stem)
def test_a_backward_is_read_in_its_file_on_one_screen_below_its_forward(path):
    for backward in house.backwards(path):
        assert backward.lines <= 50, backward
        assert not backward.elsewhere, backward
        assert not backward.between, backward


def test_nothing_is_imported_in_a_circle():
    assert not house.circle(GRAPH)
    assert house.circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]


# From the bottom up: what is in a row may import what is in the rows above it, and its own.
ROWS = (
    ("jaxnn.varying", "jaxnn.explicit"),
    ("jaxnn.settings", "jaxnn.checks", "jaxnn.calls", "jaxnn.numerics", "jaxnn.files"),
    ("jaxnn.ending", "jaxnn.together", "jaxnn.processes"),
    ("jaxnn.op",),
    ("jaxnn.ops",),
    ("jaxnn.ops.fast",),
    ("jaxnn.data", "jaxnn.text", "jaxnn.token_files", "jaxnn.augment"),
    ("jaxnn.models",),
    ("jaxnn.rules", "jaxnn.mesh", "jaxnn.loaders"),
    ("jaxnn.train", "jaxnn.verify"),
    ("jaxnn",),
    ("jaxnn.learn", "jaxnn.ledger"),
    ("experiments",),
)
MAY_IMPORT = {
    "jaxnn.verify": ("jaxnn.verify", "jaxnn.op", "jaxnn.calls"),
    "jaxnn.train": (
        "jaxnn.train",
        "jaxnn.mesh",
        "jaxnn.calls",
        "jaxnn.checks",
        "jaxnn.settings",
        "jaxnn.files",
        "jaxnn.ending",
        "jaxnn.together",
        "jaxnn.processes",
    ),
    "jaxnn.data": ("jaxnn.checks", "jaxnn.settings", "jaxnn.files"),
    "jaxnn.text": ("jaxnn.checks", "jaxnn.settings", "jaxnn.files", "jaxnn.data"),
}


def place(module):
    """The row of a module, and the longest name there that it is under."""
    under = [
        (len(name), i, name)
        for i, row in enumerate(ROWS)
        for name in row
        if module == name or module.startswith(f"{name}.")
    ]
    return max(under)[1:]


def test_nothing_is_imported_upward():
    upward = [
        f"{module} imports {imported}"
        for module, wanted in GRAPH.items()
        for imported in wanted
        if place(imported)[0] > place(module)[0]
    ]
    assert not upward


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_the_verifier_and_training_know_no_model(room):
    own = [m for m in GRAPH if m == room or m.startswith(f"{room}.")]
    for module in own:
        beyond = {m for m in GRAPH[module] if not m.startswith(MAY_IMPORT[room])}
        assert not beyond, f"{module} imports {beyond}"


def test_the_measure_sees_what_it_should():
    (linear,) = [path for path in house.OPS if path.stem == "linear"]
    ops = {backward.op: backward for backward in house.backwards(linear)}
    assert set(ops) == {"linear", "embedding", "unembed"}
    assert 4 <= ops["linear"].lines <= 8
