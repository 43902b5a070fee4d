"""What a student may hand in by mistake: each is told in a sentence, with the line."""

import re
import signal
import sys

import jax
import pytest

from jaxnn.learn import exercise, grade, guard, start
from jaxnn.learn.guard import Fault
from jaxnn.learn.student import read

SOFTMAX = start.solution(exercise.find("softmax"), "fused", "softmax.py")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("def softmax_bwd(", "def softmax_bwd((", "softmax.py, line .* is no Python"),
        ("def softmax_bwd(", "def other(", "has no function softmax_bwd; write def"),
        (
            "softmax_bwd",
            "softmax_backward",
            "no function softmax_bwd; did you mean softmax_backward",
        ),
        ("import jax", "import jaxx\nimport jax", "line .*there is no module 'jaxx'"),
    ],
)
def test_a_file_that_cannot_be_graded_is_refused_in_a_sentence(tmp_path, old, new, said):
    file = tmp_path / "softmax.py"
    assert old in SOFTMAX
    file.write_text(SOFTMAX.replace(old, new))
    with pytest.raises(Fault, match=said):
        read(str(file))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("while True: pass", "stopped"),
        ("return dp, dp", "cotangent"),
        ("return (jax.grad(lambda x: (jax.nn.softmax(x) * dp).sum())(p),)", "jax.grad"),
        ("from jax import vjp as v\n    return v(jax.nn.softmax, p)[1](dp)", "jax.vjp"),
        ("p[0] = 0\n    return (dp,)", "in place"),
        ("print('here')\n    raise SystemExit(3)", "exit"),
        ("return (p * float('nan'),)", "NaN|nan"),
        ("import sys\n    sys.stderr.write('mine')\n    return (p * dp,)", r"printed:\n  \| mine"),
        ("from sys import stderr\n    print(1, file=stderr)\n    return (p * dp,)", "0 of 1 right"),
        ("raise KeyboardInterrupt", "line 8 .*the code raises KeyboardInterrupt; take that out"),
        (
            "class E(Exception):\n        __str__ = None\n    raise E",
            "line 10 .*: E, whose text cannot be had",
        ),
        ("import bdb\n    raise bdb.BdbQuit", r"line 9.*take breakpoint\(\) .* out"),
        ("import torch\n    return (torch.tensor(p),)", "asks torch for the derivative"),
        ("import jax as j\n    return j.vjp(j.nn.softmax, p)[1](dp)", "asks jax.vjp"),
        ("import numpy as np\n    p[0] = 0\n    return (dp,)", "in place"),
        ("return (p * dp_typo,)", "line 8.*'dp_typo' has no value"),
        ("return (p[:, :2] * dp,)", "line 8.*shapes do not fit"),
        ("print('mine')\n    return (p * dp,)", r"your code printed:\n  \| mine"),
    ],
)
def test_a_backward_that_does_something_else_is_told(tmp_path, body, said):
    ctrl_c = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the worker
    file = tmp_path / "softmax.py"
    head = 'import jax\nimport jax.numpy as jnp\nEXERCISE, GRADE = "softmax", "fused"\n'
    forward = "def softmax_fwd(x):\n    p = jax.nn.softmax(x)\n    return p, p\n"
    file.write_text(f"{head}{forward}def softmax_bwd(p, dp):\n    {body}\n")
    try:
        with guard.limited(20):
            result = grade.graded(read(str(file)), 2.0)
    finally:
        signal.signal(signal.SIGINT, ctrl_c)
    assert not result
    assert re.search(said, str(result)) or re.search(said, result.fault), str(result)


@pytest.mark.parametrize(
    ("above", "asked"),
    [
        ("asks = jax.grad(loss)", "asks(x, p)"),
        ("asks = jax.vmap(jax.grad(lambda x, d: (jax.nn.softmax(x) * d).sum()))", "asks(x, p)"),
        ("from helper import asks", "asks(x, p)"),
        ('table = {"g": jax.vjp}', 'table["g"](jax.nn.softmax, x)[1](p)[0]'),
        ('table = {"g": jax.grad(loss)}', 'table["g"](x, p)'),
        (
            "class Own:\n    def asks(self, *given):\n        return jax.grad(loss)(*given)",
            "Own().asks(x, p)",
        ),
    ],
)
def test_what_gives_derivatives_is_found_wherever_it_was_put(tmp_path, monkeypatch, above, asked):
    loss = "import jax\ndef loss(x, d):\n    return (jax.nn.softmax(x) * d).sum()\n"
    (tmp_path / "helper.py").write_text(f"{loss}def asks(x, d):\n    return jax.grad(loss)(x, d)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "helper", raising=False)
    file = tmp_path / "softmax.py"
    forward = "def softmax_fwd(x):\n    return jax.nn.softmax(x), x\n"
    backward = f"def softmax_bwd(x, p):\n    return ({asked},)\n"
    file.write_text(f"{loss}{above}\n{forward}{backward}")
    before = jax.grad
    result = grade.graded(read(str(file)))
    assert result.kind == "autodiff"
    assert re.match(r"softmax_bwd asks jax\.(grad|vjp) for the derivative", result.fault)
    assert jax.grad is before


def test_one_s_own_test_beside_the_functions_may_ask_jax(tmp_path):
    file = tmp_path / "softmax.py"
    own = "jax.grad(lambda x: (jax.nn.softmax(x) ** 2).sum())(jnp.ones((2, 3)))"
    file.write_text(f"{SOFTMAX}\nimport jax\n{own}\n")
    assert grade.graded(read(str(file)))


def test_a_loop_without_end_is_stopped_after_the_limit_that_was_given(tmp_path):
    file = tmp_path / "softmax.py"
    file.write_text(f"{SOFTMAX}\nwhile True:\n    pass\n")
    limited = guard.limited(0.2)
    with pytest.raises(Fault, match=r"stopped after 0\.2 s"), guard.said(str(file)), limited:
        read(str(file))
