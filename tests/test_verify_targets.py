"""`python -m jaxnn.verify` on whatever file: its name, and the rules and ops found in it."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxnn
from jaxnn.verify import find
from jaxnn.verify.__main__ import main
from jaxnn.verify.findings import LeafReport
from jaxnn.verify.report import Report

pytestmark = pytest.mark.usefixtures("undiagnosed")

OP = """
import jax
from jaxnn import Op

def square_fwd(x):
    return x * x, x

def square_bwd(x, dy):
    return (FACTOR * x * dy,)

square = Op(square_fwd, square_bwd, example=lambda key: (jax.random.normal(key, (3,)),))
"""
RIGHT, WRONG = OP.replace("FACTOR", "2"), OP.replace("FACTOR", "3")

LEAKY = """
import jax

@jax.custom_vjp
def leaky(x):
    return jax.numpy.where(x > 0, x, 0.1 * x)

def leaky_fwd(x):
    return leaky(x), x

def leaky_bwd(x, dy):
    return (dy * jax.numpy.where(x > 0, 1.0, 0.1),)

leaky.defvjp(leaky_fwd, leaky_bwd)
"""
EXAMPLE = """
def example_NAME(key):
    return (jax.random.normal(key, (3,)),)
"""


@pytest.fixture
def verify(tmp_path, capsys):
    """Write a file, verify it in this process, and return the status and all that was printed."""

    def verify(source, *options, name="layers.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
        status = main([str(path), *options])
        out = capsys.readouterr()
        return status, " ".join((out.out + out.err).split())

    return verify


@pytest.fixture
def judged(monkeypatch):
    """What `verify.rule` is asked, which passes everything."""
    asked = []

    def rule(f, *inputs, seed):
        asked.append((f, inputs, seed))
        return Report("rule", 1.0, (LeafReport("x", (3,), "float32", "pass"),), (), 0.1)

    monkeypatch.setattr(find, "verify_rule", rule)
    return asked


@pytest.mark.parametrize("name", ["jax.py", "numpy.py", "wave.py", "my layers-2.py", "no_suffix"])
def test_any_file_name_works_and_takes_the_place_of_no_module(name, verify, monkeypatch):
    stem = name.removesuffix(".py")
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    before, path = sys.modules.get(stem), [*sys.path]
    status, said = verify("import wave, numpy\nassert wave.open\n" + WRONG, name=name)
    assert status == 1
    assert "FAIL op square" in said
    assert "importing" not in said
    if stem != "wave":
        assert sys.modules.get(stem) is before
    assert sys.path == path


@pytest.mark.parametrize("name", ["jax.py", "numpy.py"])
def test_a_file_in_the_working_directory_takes_the_place_of_no_package(name, tmp_path):
    """`python -m` looks there first, before anything of ours runs."""
    (tmp_path / name).write_text(RIGHT)
    done = subprocess.run(
        [sys.executable, "-m", "jaxnn.verify", name, "--only", "nothing"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(jaxnn.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert "matches none of these; name one of them:\n  op square" in done.stderr


def test_a_file_may_import_what_it_is_called_like(verify, tmp_path, monkeypatch):
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "thing.py").write_text("FACTOR = 3")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    status, said = verify("from thing import FACTOR\n" + OP, name="mine/thing.py")
    assert status == 1
    assert "FAIL op square: 1 of 1 leaf" in said
    del sys.modules["thing"]


def test_a_sibling_takes_no_place_of_the_standard_library(verify, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    (tmp_path / "wave.py").write_text("")
    status, _ = verify("import wave\nassert wave.open\n" + RIGHT)
    assert status == 0


def test_two_files_of_one_name_each_with_its_own_siblings(tmp_path, capsys):
    for folder, factor in (("a", 2), ("b", 3)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "factors.py").write_text(f"FACTOR = {factor}")
        late = "def square_bwd(x, dy):\n    import factors\n    return (factors.FACTOR * x * dy,)"
        source = OP.replace("def square_bwd(x, dy):\n    return (FACTOR * x * dy,)", late)
        (tmp_path / folder / "layers.py").write_text(source + "\nfrom factors import FACTOR")
    files = [str(tmp_path / folder / "layers.py") for folder in "ab"]
    assert main(files) == 1
    assert "1 passed, 1 failed" in capsys.readouterr().out
    assert main(files[::-1]) == 1
    assert "1 passed, 1 failed" in capsys.readouterr().out
    assert not {"factors", "layers"} & set(sys.modules)


def test_an_op_of_a_sibling_is_not_verified_here(verify, tmp_path):
    (tmp_path / "parts.py").write_text(RIGHT.replace("square", "part"))
    status, said = verify("from parts import part\n" + RIGHT)
    assert status == 0
    assert "op part" not in said


def test_rules_and_whatever_has_an_example_are_verified(verify, judged):
    source = LEAKY + EXAMPLE.replace("NAME", "leaky") + EXAMPLE.replace("NAME", "twice")
    source += "def twice(x):\n    return leaky(leaky(x))\ndef unasked(x):\n    return x\n"
    status, said = verify(source, "--seed", "5")
    assert status == 0
    assert "PASS rule leaky" in said
    assert "PASS rule twice" in said
    assert "not verified" not in said
    assert [f.__name__ for f, *_ in judged] == ["leaky", "twice"]
    for _, inputs, seed in judged:
        assert seed == 5
        np.testing.assert_array_equal(*inputs, jax.random.normal(jax.random.key(5), (3,)))


def test_a_rule_takes_its_inputs_from_an_op_of_the_same_functions(verify, judged):
    op = "from jaxnn import Op\nop = Op(leaky_fwd, leaky_bwd, example=example_of_mine)\n"
    status, said = verify(LEAKY + EXAMPLE.replace("NAME", "of_mine") + op)
    assert status == 0
    assert "PASS op leaky" in said
    assert "PASS rule leaky" in said
    ((f, inputs, _),) = judged
    assert f.__name__ == "leaky"
    assert inputs[0].shape == (3,)


def test_a_forward_rule_is_found_too(verify, judged):
    source = "import jax\n@jax.custom_jvp\ndef soft(x):\n    return x\n"
    status, said = verify(source + EXAMPLE.replace("NAME", "soft"))
    assert (status, "PASS rule soft" in said) == (0, True)
    assert "not verified: rule soft: define example_soft(key)" in verify(source)[1]


def test_rules_and_ops_in_classes_are_found(verify, judged):
    inside = "".join(f"    {line}\n" for line in ["@staticmethod", *LEAKY.splitlines()[3:6]])
    source = f"import jax\nclass Layer:\n{inside}" + RIGHT.replace("square = ", "Layer.sq = ")
    status, text = verify(source)
    assert status == 0
    assert "PASS op square" in text
    assert "not verified: rule Layer.leaky: define example_Layer_leaky(key)" in text
    status, text = verify(source + EXAMPLE.replace("NAME", "Layer_leaky"))
    assert "2 passed" in text
    assert len(judged) == 1


def test_a_rule_without_inputs_is_named_never_ignored(verify, judged):
    line = "not verified: rule leaky: define example_leaky(key) that returns its inputs"
    status, said = verify(LEAKY)
    assert status == 2
    assert "holds nothing to verify" in said
    assert line in said
    status, said = verify(LEAKY + RIGHT)
    assert status == 0
    assert line in said
    assert "1 passed, 0 failed" in said
    _, said = verify(LEAKY + RIGHT, "--only", "square")
    assert "not verified" not in said
    status, said = verify("import jax\nrules = {'a': jax.custom_vjp(lambda x: x)}\n")
    assert status == 2
    assert "not verified: rule rules['a']: bind it to a name" in said
    assert judged == []


def test_rules_of_other_modules_are_verified_there(verify, judged, tmp_path):
    (tmp_path / "parts.py").write_text(LEAKY + EXAMPLE.replace("NAME", "leaky"))
    status, said = verify("from parts import leaky, example_leaky\n")
    assert status == 2
    assert "found ops or rules imported from elsewhere: name parts for leaky" in said
    status, said = verify(
        "import jax\nfrom parts import leaky\n" + EXAMPLE.replace("NAME", "leaky")
    )
    assert status == 0
    assert "PASS rule leaky" in said


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (
            "def example_leaky(key):\n    raise RuntimeError('no data')",
            "raised RuntimeError: no da",
        ),
        ("def example_leaky(key):\n    return jax.numpy.ones(3)", "returns an array; it must be a"),
        ("def example_leaky():\n    return ()", "cannot be called with a key"),
        ("example_leaky = 3", "is 3; it must be a function of a key"),
    ],
)
def test_an_example_that_gives_no_inputs_is_a_failure(example, words, verify, judged):
    status, said = verify(LEAKY + example + "\n" + RIGHT)
    assert status == 1
    assert f"example_leaky {words}" in said
    assert "1 passed, 1 failed" in said


def test_settings_that_are_none_are_refused_and_the_rest_goes_on(verify):
    bad = "bad = Op(square_fwd, square_bwd, square.example, SETTINGS)\n"
    for settings, words in (("({'gian': 2},)", "takes no setting gian"), ("()", "settings of op")):
        status, said = verify(RIGHT + bad.replace("SETTINGS", settings))
        assert status == 1
        assert words in said
        assert "1 passed, 1 failed" in said


def test_the_example_of_a_model_is_no_example_of_a_function(verify, judged):
    source = """
from typing import NamedTuple
import jax, jax.numpy as jnp
class Config(NamedTuple): ...
def batch(x): return x
def init_params(key, config): return {"w": jax.random.normal(key, (4,))}
def forward(params, inputs, config): return inputs @ params["w"]
def loss(params, batch, config): return forward(params, batch, config).sum()
def manual_grad(params, batch, config): return {"w": batch.sum(0)}
def manual_value_and_grad(params, batch, config):
    return loss(params, batch, config), manual_grad(params, batch, config)
def example_batch(key, config): return jax.random.normal(key, (2, 4))
"""
    status, said = verify(source)
    assert status == 0
    assert "PASS model layers, Config()" in said
    assert judged == []


def test_find_ops_lists_the_ops_alone(tmp_path):
    (tmp_path / "layers.py").write_text(LEAKY + RIGHT)
    assert [op.name for op in find.find_ops(str(tmp_path / "layers.py"))] == ["square"]
