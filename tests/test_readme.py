"""The READMEs keep their word: their code runs, their commands are CI's, their lists complete."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import house
import pytest

import jaxnn.ops
from jaxnn.op import Op

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
OPS = (ROOT / "jaxnn" / "ops" / "README.md").read_text()
TRAINING = (ROOT / "jaxnn" / "train" / "README.md").read_text()
VERIFIER = (ROOT / "jaxnn" / "verify" / "README.md").read_text()


# Ops that PyTorch, Flax and users have no other word for.
UNNAMED = ("l2_penalty", "weighted_mean")


def run_python_in(page, apart=False):
    """The names that the blocks of a page make, each going on from the last, or each by itself."""
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        own = {} if apart else names
        exec(compile(block, "README.md", "exec"), own)
        names |= own
    return names


def test_the_python_in_it_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_python_in(README, apart=True)
    assert "PASS         manual_grad" in capsys.readouterr().out
    assert names["fitted"].ended in ("finished", "stopped early")
    assert (
        names["mlp"].accuracy(names["params"], names["held_out"], names["small"])
        == names["mlp"].accuracy(names["fitted"].params, names["held_out"], names["small"])
        > 0.9
    )
    assert (
        names["mlp"].accuracy(names["state"].params, names["digits"].held_out, names["config"])
        > 0.95
    )


def test_the_layer_it_shows_is_the_librarys():
    import jax
    import numpy as np

    from jaxnn.ops.linear import linear

    shown = run_python_in(README[: README.index("## Use")])
    params, x = linear.example(jax.random.key(0))
    y, residuals = shown["linear_fwd"](params, x)
    np.testing.assert_array_equal(y, linear(params, x))
    theirs = linear.bwd(linear.fwd(params, x)[1], y)
    jax.tree.map(
        np.testing.assert_array_equal,
        shown["linear_bwd"](residuals, y),
        (tuple(theirs[0]), theirs[1]),
    )


def test_the_python_of_the_verifiers_page_runs():
    run_python_in(VERIFIER)


def test_the_python_of_trainings_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_python_in(TRAINING)
    assert names["fitted"].ended == names["tuned"].ended == "finished"
    assert (tmp_path / "out" / "reader" / "params.safetensors").exists()


def test_the_table_of_features_names_every_op_and_no_other_setting():
    """The last column has `op`, or `op(inputs and settings)`."""
    table = OPS[: OPS.index("## How many")]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| ")]
    named = [name for row in rows[1:] for name in re.findall(r"`(.*?)`", row[-2])]
    ops = {
        name: value
        for module in pkgutil.iter_modules(jaxnn.ops.__path__)
        for name, value in vars(importlib.import_module(f"jaxnn.ops.{module.name}")).items()
        if isinstance(value, Op)
    }
    for name in named:
        op, _, settings = name.rstrip(")").partition("(")
        known = {*inspect.signature(ops[op]).parameters}
        assert known >= {each for each in settings.split(", ") if each}, name
    lacking = ops.keys() - {name.partition("(")[0] for name in named}
    assert {name for name in lacking if not re.match(r"conv[13]d", name)} <= {*UNNAMED}


def test_it_is_a_page_and_not_a_book():
    assert len(README.split()) <= 1633


def test_a_script_beside_a_clone_finds_the_package(tmp_path):
    (tmp_path / "jaxnn").mkdir()  # as a clone: no package itself, but of the same name
    run = [sys.executable, "-c", "import jaxnn; print(jaxnn.__file__)"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).samefile(ROOT / "jaxnn" / "__init__.py")


def test_its_test_command_is_what_ci_runs():
    commands = re.findall(r"```bash\n(.*?)\n```", README, re.DOTALL)
    (tests,) = [c for c in commands if c.endswith("pytest")]
    assert f"\n{tests}\n" in (ROOT / ".ci" / "run").read_text()


def test_the_row_it_quotes_is_the_one_in_the_table():
    quoted = re.search(r'"softplus": Row\(.*?\)(?=`)', CONTRIBUTING, re.DOTALL)[0]
    rows = (ROOT / "tests" / "rows" / "activations.py").read_text()
    assert "".join(quoted.split()) in "".join(rows.split()).replace(",)", ")")


@pytest.mark.parametrize("folder", house.LISTED)
def test_every_file_is_listed_by_its_own_first_line(folder):
    readme = (ROOT / folder / "README.md").read_text()
    assert house.list_in(readme)[0] == house.tree(folder), "run python tests/house.py --write"


def test_the_failure_it_shows_is_the_one_that_is_reported():
    import jax.numpy as jnp

    from jaxnn import verify

    def loss(params, x):
        return jnp.sin(x @ params["w"]).mean()

    def my_grad(params, x):
        return {"w": x.T @ jnp.cos(x @ params["w"])}

    report = verify.gradient(loss, my_grad, {"w": jnp.ones(3)}, jnp.eye(4, 3))
    page, *lines = (
        re.sub(r"\+- \S+", "", text) for text in (VERIFIER, *str(report).splitlines()[1:])
    )
    for line in lines:
        assert line in page
