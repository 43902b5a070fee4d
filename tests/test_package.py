"""What one has who installed the package alone: its modules, its words, its ops elsewhere."""

import ast
import copy
import multiprocessing
import pickle
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import fuzz
import house
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnn
from jaxnn.op import Op

PACKAGES = ("jaxnn.ops", "jaxnn.models")
PROJECT = tomllib.loads((house.ROOT / "pyproject.toml").read_text())["project"]


def square_fwd(x):
    return x**2, x


def square_bwd(x, dy):
    return (2 * x * dy,)


# A name that tells nothing: it is found beside its forward all the same.
op = Op(square_fwd, square_bwd)


@pytest.mark.parametrize("package", PACKAGES)
def test_import_gives_every_module(package):
    folder = house.ROOT.joinpath(*package.split("."))
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    told = "import jaxnn; print(*dir(eval(sys.argv[1])), *eval(sys.argv[1]).__all__)"
    run = [sys.executable, "-c", f"import sys; {told}", package]
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=house.ROOT)
    assert modules <= {*done.stdout.split()}
    assert {*sys.modules[package].__all__} == modules


def test_import_gives_what_the_entrance_lists():
    assert {*jaxnn.__all__} >= {"data", "models", "ops", "text", "train", "verify"}
    assert all(hasattr(jaxnn, name) for name in jaxnn.__all__)


def test_import_does_not_read_the_text_that_is_python_s_documentation():
    told = "import sys, jaxnn; print('pydoc_data.topics' in sys.modules)"
    run = [sys.executable, "-c", told]
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=house.ROOT)
    assert done.stdout == "False\n"


def library_strings():
    for path in sorted((house.ROOT / "jaxnn").rglob("*.py")):
        for node in ast.walk(house.parsed(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{path.name}:{node.lineno}", node.value


def test_no_words_of_the_library_advise_what_only_a_clone_can_do():
    only_a_clone = re.compile(r"\bexperiments\b|pip install -e|pip install \"?\.|\bclone\b")
    assert not {at: text for at, text in library_strings() if only_a_clone.search(text)}
    assert only_a_clone.search('pip install -e ".[experiments]"')


def test_extras_that_the_library_names_exist():
    named = {
        extra.strip()
        for _, text in library_strings()
        for extras in re.findall(r"jaxnn\[([\w, ]+)\]", text)
        for extra in extras.split(",")
    }
    assert named <= PROJECT["optional-dependencies"].keys()


def test_the_classifiers_name_the_pythons_that_are_supported():
    least = re.fullmatch(r">=3\.(\d+)", PROJECT["requires-python"])[1]
    named = re.findall(r":: 3\.(\d+)'", str(PROJECT["classifiers"]))
    assert named[0] == least
    assert str(sys.version_info.minor) in named


def test_an_op_is_copied_and_pickled_as_a_function_is():
    for each in [*fuzz.ops().values(), op]:
        held = {"op": each, "bound": [each.fwd]}
        assert copy.deepcopy(held)["op"] is each
        assert pickle.loads(pickle.dumps(each)) is each
    nameless = Op(square_fwd, lambda x, dy: (dy,))
    assert copy.deepcopy(nameless) is nameless
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(nameless)


def test_an_op_goes_to_another_process():
    """By spawn: the child begins with nothing, as on Windows and macOS."""
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(1) as pool:
        results = pool.map_async(op, [np.float32(3.0), np.float32(-2.0)])
        np.testing.assert_array_equal(results.get(timeout=120), [9.0, 4.0])


def test_an_op_bound_in_a_script_goes_to_another_process(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing\n"
        "from jaxnn import Op\n"
        "def f(x): return 3 * x, ()\n"
        "def f_bwd(saved, dy): return (3 * dy,)\n"
        "f_op = Op(f, f_bwd)\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.map_async(f_op, [1.0]).get(timeout=120))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(Path(jaxnn.__file__).parents[1])},
    )
    assert "3." in done.stdout, done.stderr
    assert jnp.isfinite(op(2.0))
