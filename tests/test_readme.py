"""The README keeps its word: its code runs, its commands are CI's, its file list is complete."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_in_it_runs(capsys):
    names = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(block, "README.md", "exec"), names)
    assert "PASS         manual_grad" in capsys.readouterr().out
    assert (
        names["mlp"].accuracy(names["state"].params, names["digits"].held_out, names["config"])
        > 0.95
    )


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
    quoted = re.search(r'"softplus": Row\(.*?\)(?=`)', README, re.DOTALL)[0]
    rows = (ROOT / "tests" / "rows" / "activations.py").read_text()
    assert "".join(quoted.split()) in "".join(rows.split()).replace(",)", ")")


def test_its_tree_lists_every_file():
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = README[README.index("## What is where") :]
    missing = [
        name
        for name in done.stdout.split()
        if Path(name).name not in {"__init__.py", "py.typed", "README.md", ".gitignore"}
        and name.split("/", 1)[-1] not in listed
    ]
    assert not missing


def test_the_failure_it_shows_is_the_one_that_is_reported():
    import jax.numpy as jnp

    from jaxnn import verify

    def loss(params, x):
        return jnp.sin(x @ params["w"]).mean()

    def my_grad(params, x):
        return {"w": x.T @ jnp.cos(x @ params["w"])}

    report = verify.gradient(loss, my_grad, {"w": jnp.ones(3)}, jnp.eye(4, 3))
    page, *lines = (
        re.sub(r"\+- \S+", "", text) for text in (README, *str(report).splitlines()[1:])
    )
    for line in lines:
        assert line in page
