"""`python -m jaxnn.verify` on files of one's own: what it prints, writes, and how it exits."""

import json
import shlex
import textwrap

import pytest

from jaxnn.verify import __main__ as command
from jaxnn.verify.__main__ import main

GOOD = """
import jax, jax.numpy as jnp
from jaxnn import Op

def square_fwd(x):
    return x * x, x

def square_bwd(x, dy):
    return (FACTOR * x * dy,)

square = Op(square_fwd, square_bwd, example=lambda key: (jax.random.normal(key, (3,)),))
"""


def run(tmp_path, capsys, source, *options):
    path = tmp_path / "layers_of_mine.py"
    path.write_text(textwrap.dedent(source))
    status = main([str(path), *options])
    return status, capsys.readouterr()


def test_an_op_without_an_example_is_told_so(tmp_path, capsys):
    source = GOOD.replace("FACTOR", "2").replace(
        "lambda key: (jax.random.normal(key, (3,)),)", "None"
    )
    status, out = run(tmp_path, capsys, source)
    assert status == 1
    assert "example of op square is None" in " ".join(out.out.split())


def test_exit_status_0_1_and_the_reports(tmp_path, capsys):
    files = [f"--{kind}={tmp_path / f'report.{kind}'}" for kind in ("json", "html")]
    status, out = run(tmp_path, capsys, GOOD.replace("FACTOR", "2"), *files)
    assert status == 0
    assert "PASS         op square" in out.out
    assert "1 passed, 0 failed, 0 inconclusive" in out.out
    assert "op square" in (tmp_path / "report.html").read_text()
    status, out = run(tmp_path, capsys, GOOD.replace("FACTOR", "3"), *files)
    assert status == 1
    assert "hand-written gradient is wrong" in out.out
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["version"] == 3
    (report,) = content["reports"]
    assert report["status"] == "fail"
    assert report["leaves"][0]["worst"]["verdict"].startswith(
        "finite differences side with autodiff"
    )


def test_exit_status_3_when_nothing_fails_but_something_is_inconclusive(tmp_path, capsys):
    source = """
    import jax, jax.numpy as jnp
    from jaxnn import Op
    loss = Op(  # 1 / (1 + e^-x) - 1 leaves nothing but rounding of e^-36
        lambda x: (jnp.log1p(jnp.exp(-x)), x),
        lambda x, dy: (dy * (1 / (1 + jnp.exp(-x)) - 1),),
        example=lambda key: (jnp.array([36.0, 37.0]),),
    )
    """
    status, out = run(tmp_path, capsys, source)
    assert status == 3
    assert "0 failed, 1 inconclusive" in out.out


def test_an_op_that_raises_fails_and_the_others_are_still_verified(tmp_path, capsys):
    source = (
        GOOD.replace("FACTOR", "2")
        + """
def untied_bwd(x, dy):
    return 2 * x * dy

def raising_bwd(x, dy):
    return (not_defined * dy,)

untied = Op(square_fwd, untied_bwd, example=square.example)
raising = Op(square_fwd, raising_bwd, example=square.example)
"""
    )
    status, out = run(tmp_path, capsys, source, f"--json={tmp_path / 'r.json'}")
    assert status == 1
    assert "1 passed, 2 failed" in out.out
    said = " ".join(out.out.split())
    assert "bwd of op untied returns a bare array; it must return a tuple (dinput, ...)" in said
    assert "it raised TypeError: bwd of op untied" in said
    assert "it raised NameError (layers_of_mine.py, line 17)" in out.out
    assert len(json.loads((tmp_path / "r.json").read_text())["reports"]) == 3


def test_a_pass_that_finite_differences_did_not_witness_says_so(tmp_path, capsys):
    source = """
    import jax.numpy as jnp
    from jaxnn import Op
    faint = Op(
        lambda x: (1e-14 * x.sum(), x),
        lambda x, dy: (1e-14 * dy * jnp.ones_like(x),),
        example=lambda key: (36.0 * jnp.ones(3),),
    )
    """
    status, out = run(tmp_path, capsys, source)
    assert status == 0
    assert "could not tell" in out.out


def test_a_model_of_ones_own(tmp_path, capsys):
    source = """
    from typing import NamedTuple
    import jax, jax.numpy as jnp

    class Config(NamedTuple):
        power: int = 3

    def init_params(key, config): return {"w": jax.random.normal(key, (4,))}
    def forward(params, inputs, config): return inputs @ params["w"] ** config.power
    def loss(params, batch, config): return forward(params, batch, config).sum()
    def manual_grad(params, batch, config):
        return {"w": batch.sum(0) * config.power * params["w"] ** (config.power - 1)}
    def manual_value_and_grad(params, batch, config):
        return loss(params, batch, config), manual_grad(params, batch, config)
    def example_batch(key, config): return jax.random.normal(key, (2, 4))
    """
    status, out = run(tmp_path, capsys, source)
    assert status == 0
    assert "model layers_of_mine, Config(power=3)" in out.out


def test_ops_in_containers_are_found_and_imported_ones_are_not(tmp_path, capsys):
    source = (
        GOOD.replace("square", "cube_of").replace("FACTOR", "2")
        + """
from jaxnn.ops.activations import relu

def twice_fwd(x):
    return 2 * x, ()

def twice_bwd(residuals, dy):
    return (2 * dy,)

example = cube_of.example
layers = {"a": Op(twice_fwd, twice_bwd, example=example), "b": relu, 3: None}
more = [Op(twice_fwd, twice_bwd, example=example), layers["a"], cube_of]
pair = (Op(twice_fwd, twice_bwd, example=example), layers)
mine = Op(relu.fwd, relu.bwd, example=example)
"""
    )
    status, out = run(tmp_path, capsys, source)
    assert status == 0
    assert out.out.count("op cube_of") == 1
    assert out.out.count("op twice") == 3
    assert out.out.count("op mine") == 1  # made here of somebody else's functions
    assert "op relu" not in out.out


SEEDED = """
import jax, jax.numpy as jnp
from jaxnn import Op
seen = []

def example(key):
    seen.append(int(jax.random.randint(key, (), 0, 10**6)))
    return (jax.random.normal(key, (3,)),)

scale = Op(lambda x: (3 * x, ()), lambda _, dy: (4 * dy,), example=example)
def scaled_fwd(x, *, by=1):
    return by * x, ()
def scaled_bwd(_, dy, *, by=1):
    return (by * dy + (by == 5),)
scaled = Op(scaled_fwd, scaled_bwd, example=example, settings=({"by": 5}, {"by": 55}))
print(seen)
"""


def test_the_command_of_a_failure_runs_that_check_alone_with_its_seed(tmp_path, capsys):
    path = tmp_path / "r.json"
    status, out = run(tmp_path, capsys, SEEDED, "--seed", "7", "--json", str(path))
    assert status == 1
    assert "1 passed, 2 failed" in out.out
    reports = json.loads(path.read_text())["reports"]
    (again,) = [r["command"] for r in reports if r["name"] == "op scaled, by=5"]
    assert f"again: {again}\n" in out.out
    assert " --seed 7 " in again
    assert {r["seed"] for r in reports} == {7}
    words = shlex.split(again)
    assert words[:3] == ["python", "-m", "jaxnn.verify"]
    assert main(words[3:]) == 1
    assert "0 passed, 1 failed" in capsys.readouterr().out  # not by=55, whose name contains by=5


def test_the_seed_reaches_the_examples(tmp_path, capsys):
    source = (
        SEEDED.replace("print(seen)", "")
        + """
def told_bwd(x, dy):
    jax.debug.print("x0 = {}", x[0])
    return (dy,)
told = Op(lambda x: (x, x), told_bwd, example=example)
"""
    )
    values = set()
    for seed in ("0", "1", "1"):
        _, out = run(tmp_path, capsys, source, "--seed", seed, "--only", "told")
        assert "op told" in out.out
        values.add(out.out[out.out.index("x0 = ") :].split()[2])
    assert len(values) == 2


def test_only_takes_parts_of_names_and_names_what_there_is(tmp_path, capsys):
    status, out = run(tmp_path, capsys, SEEDED, "--only", "scaled", "--only", "by=55")
    assert status == 1
    assert "1 passed, 1 failed" in out.out
    status, out = run(tmp_path, capsys, SEEDED, "--only", "absent")
    assert status == 2
    assert "--only 'absent' matches none" in out.err
    assert "\n  op scaled, by=55\n" in out.err


@pytest.mark.parametrize("seed", ["-1", "1.5", "x", str(2**32)])
def test_a_seed_that_is_none_is_refused(seed, capsys):
    with pytest.raises(SystemExit) as error:
        main(["--seed", seed])
    assert error.value.code == 2
    assert "must be an integer from 0 to 4294967295" in capsys.readouterr().err


def test_exit_status_2_with_words(tmp_path, capsys):
    same = str(tmp_path / "same")
    cases = {
        ("x = 1",): "nothing to verify; there must be, at its top level, an `Op",
        ("def net_grad(p): return p",): "found net_grad: call verify.assert_gradient",
        ("def net_bwd(r, d): return d",): "found net_bwd: bind each with its forward",
        ("from jaxnn.ops.activations import relu",): "name jaxnn.ops.activations for relu",
        ("import not_there",): "No module named 'not_there'",
        (GOOD, "--json", str(tmp_path / "no" / "r.json")): "cannot be written",
        (GOOD, "--html", str(tmp_path)): "cannot be written (Is a directory)",
        (GOOD, "--json", same, "--html", same): "name two files",
        (GOOD, "--json", str(tmp_path / "layers_of_mine.py")): "would be overwritten",
        ("raise SystemExit(0)",): "importing",
        ("def manual_grad(params, batch, config): return params",): "lacks Config, init_params",
    }
    for (source, *options), message in cases.items():
        status, out = run(tmp_path, capsys, source, *options)
        assert status == 2
        assert message in out.err, message
        assert out.out == ""
    assert not (tmp_path / "same").exists()
    assert main([str(tmp_path / "absent.py")]) == 2
    assert main(["jaxnn.no_such_module"]) == 2
    assert "there is no module jaxnn.no_such_module" in capsys.readouterr().err
    with pytest.raises(SystemExit) as error:
        main(["--no-such-option"])
    assert error.value.code == 2


def test_a_target_that_does_not_import_shows_its_own_traceback_kept_short(tmp_path, capsys):
    (tmp_path / "deeper_of_mine.py").write_text(
        "import jax, jax.numpy as jnp\ndef f(n):\n"
        "    return f(n - 1) if n else jnp.ones(3) @ jnp.ones(4)\n"
        "jax.jit(f, static_argnums=0)(9)\n"
    )
    status, out = run(tmp_path, capsys, "import deeper_of_mine")
    assert status == 2
    assert 'deeper_of_mine.py", line 3, in f' in out.err
    assert out.err.count("  File ") == 3
    assert "TypeError: dot_general requires" in out.err
    assert "importlib" not in out.err
    assert "site-packages/jax/" not in out.err
    status, out = run(tmp_path, capsys, "def f(:\n    pass")
    assert status == 2
    assert 'layers_of_mine.py", line 1' in out.err
    assert "SyntaxError" in out.err


def test_a_report_that_cannot_be_written_loses_nothing_else(tmp_path, capsys, monkeypatch):
    def crash(reports):
        raise RuntimeError("out of ink")

    monkeypatch.setattr(command, "to_json", crash)
    json_path, html_path = tmp_path / "r.json", tmp_path / "r.html"
    json_path.write_text("yesterday's")
    options = ("--json", str(json_path), "--html", str(html_path))
    status, out = run(tmp_path, capsys, GOOD.replace("FACTOR", "2"), *options)
    assert status == 2
    assert "1 passed" in out.out
    assert "r.json was not written: RuntimeError: out of ink" in out.err
    assert json_path.read_text() == "yesterday's"
    assert "op square" in html_path.read_text()
    status, _ = run(tmp_path, capsys, GOOD.replace("FACTOR", "3"), *options)
    assert status == 1


def test_without_a_target_it_is_the_whole_library(capsys):
    """What is found; each passes in the tests of its own module."""
    assert main(["--only", "softmax, axis=0", "--only", "mlp, Config(sizes=(1, 2)"]) == 0
    out = capsys.readouterr().out
    softmaxes = [f"op {name}, axis=0" for name in ("softmax", "log_softmax", "masked_log_softmax")]
    for name in (*softmaxes, "model jaxnn.models.mlp"):
        assert f"PASS         {name}" in out
    assert "5 passed" in out
