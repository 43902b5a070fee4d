"""`python -m jaxnn.verify` on files of one's own: what it prints, writes, and how it exits."""

import json
import textwrap

import pytest

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
    assert content["version"] == 1
    (report,) = content["reports"]
    assert report["status"] == "fail"
    assert report["leaves"][0]["worst"]["verdict"].startswith(
        "finite differences side with autodiff"
    )


def test_exit_status_3_when_nothing_fails_but_something_is_inconclusive(tmp_path, capsys):
    source = """
    import jax, jax.numpy as jnp
    from jaxnn import Op
    relu = Op(
        lambda x: (jax.nn.relu(x), x),
        lambda x, dy: (jnp.where(x >= 0, dy, 0),),
        example=lambda key: (jnp.array([0.0, 1.0, -1.0]),),
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
    assert "must return a tuple (dinput, ...), one per input" in out.out
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
    assert "could not testify" in out.out


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


def test_exit_status_2_with_words(tmp_path, capsys):
    cases = {
        ("x = 1",): "nothing to verify; there must be an `Op(fwd, bwd, example=...)`",
        ("import not_there",): "No module named 'not_there'",
        (GOOD, "--json", str(tmp_path / "no" / "r.json")): "cannot be written",
        ("raise SystemExit(0)",): "importing",
        ("def manual_grad(params, batch, config): return params",): "lacks Config, init_params",
    }
    for (source, *options), message in cases.items():
        status, out = run(tmp_path, capsys, source, *options)
        assert status == 2
        assert message in out.err
    assert main([str(tmp_path / "absent.py")]) == 2
    assert main(["jaxnn.no_such_module"]) == 2
    with pytest.raises(SystemExit) as error:
        main(["--no-such-option"])
    assert error.value.code == 2


def test_the_whole_library_passes(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    for name in ("op relu", "op linear", "op softmax, axis=0", "model jaxnn.models.mlp"):
        assert name in out
