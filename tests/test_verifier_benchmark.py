"""The benchmark of the verifier: its systems, its planted faults, and the script."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_leaves_close

from experiments import faulty_checkers, pictures, verifier_benchmark
from experiments.faulty_gradients import AWKWARD, SYSTEMS
from experiments.faulty_layers import CAUSES, HEAD

by_name = pytest.mark.parametrize("system", [*SYSTEMS, *AWKWARD], ids=lambda s: s.name)


@by_name
def test_each_gradient_is_right_and_each_fault_changes_it(system, x64, strict_dtypes):
    params, batch = system.make(0, 0, "float64")
    # The head is the same function everywhere: one of its faults shows that it hears of them.
    faults = [f for f in system.faults if system is SYSTEMS[0] or f not in HEAD[1:]]

    def gradients(params, batch):
        faulty = [system.manual_grad(params, batch, fault) for fault in faults]
        return jax.grad(system.loss)(params, batch), system.manual_grad(params, batch), faulty

    # Compiled without optimisation, which takes half the time.
    options = {"xla_backend_optimization_level": 0}
    program = jax.jit(gradients).lower(params, batch).compile(options)
    truth, ours, faulty = program(params, batch)
    assert_leaves_close(ours, truth, rtol=1e-12)
    for fault, wrong in zip(faults, faulty, strict=True):
        assert {k: v.shape for k, v in wrong.items()} == {k: v.shape for k, v in truth.items()}
        changes = (not np.allclose(wrong[k], v, rtol=0, atol=5e-5 * abs(v).max()) for k, v in
                   truth.items())  # fmt: skip
        assert any(changes), fault


def test_every_kind_of_fault_is_planted_somewhere():
    assert {fault for system in SYSTEMS for fault in system.faults} == set(CAUSES)
    assert len(CAUSES) >= 25


@by_name
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_systems_keep_the_dtype_they_are_given(system, dtype, strict_dtypes):
    shapes = jax.eval_shape(system.manual_grad, *system.make(0, 1, dtype))
    assert {leaf.dtype for leaf in shapes.values()} == {jnp.dtype(dtype)}
    assert jax.eval_shape(system.loss, *system.make(0, 1, dtype)).dtype == dtype


def test_the_awkward_systems_meet_relu_at_zero_and_dead_units():
    mlp, conv = AWKWARD
    params, (x, _) = mlp.make(0, 0, "float32")
    z = x @ params["w1"] + params["b1"]
    assert (z[:, 0] == 0).all()
    assert (z[:, 1] < 0).all()
    params, (x, _) = conv.make(0, 0, "float32")
    assert (x == 0).any((1, 2, 3)).all()
    assert (params["b1"] == 0).sum() == 2


PEERS = {**faulty_checkers.CHECKERS, **faulty_checkers.FLOAT64_ONLY}
del PEERS[faulty_checkers.OURS]


@pytest.mark.parametrize("name", PEERS)
def test_each_peer_tells_a_wrong_gradient_from_a_right_one(name, x64):
    system = SYSTEMS[1]
    point = system.make(0, 0, "float64")
    for fault, verdict in ((None, "pass"), ("sign flipped", "fail")):
        grad = partial(system.manual_grad, fault=fault)
        assert faulty_checkers.ask(PEERS[name], system.loss, grad, *point).verdict == verdict


def test_a_checker_that_breaks_down_has_caught_nothing():
    def check(*_):
        raise TypeError("grad requires real inputs\nand more")

    answer = faulty_checkers.ask(check, None, None, {}, ())
    assert answer == ("raised", frozenset(), "TypeError: grad requires real inputs")


@pytest.fixture
def scripted(monkeypatch):
    """Replaces our checker by one that is told what to answer to each fault."""

    def install(answers):
        def check(loss, manual_grad, params, batch):
            return answers.get(manual_grad.keywords["fault"], faulty_checkers.Answer("pass"))

        monkeypatch.setitem(faulty_checkers.CHECKERS, faulty_checkers.OURS, check)
        monkeypatch.setattr(pictures, "verifier", lambda *_: None)
        monkeypatch.setattr(verifier_benchmark, "_change", lambda *_: 1.0)

    return install


FAULTS = SYSTEMS[0].faults[::9]


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({}, 0, "promise kept: the cause named in 100.0%, none given in 0.0%"),
        ({FAULTS[1]: ("pass", frozenset())}, 1, f"missed (pass)  MLP, relu: {FAULTS[1]}, float64"),
        ({FAULTS[1]: ("inconclusive", frozenset())}, 1, "missed (inconclusive)"),
        ({FAULTS[1]: ("raised", frozenset(), "KeyError: 3")}, 1, "3 times KeyError: 3"),
        ({FAULTS[1]: ("fail", frozenset())}, 1, "none given in 25.0%"),
        ({FAULTS[1]: ("fail", CAUSES[FAULTS[1]] | {"flip"})}, 0, "wrong diagnosis (flip)"),
        ({FAULTS[1]: ("fail", CAUSES[FAULTS[1]] | {"sign"})}, 1, "promise BROKEN: 3 wrong"),
        ({None: ("fail", frozenset())}, 1, "false alarm  MLP, relu: right gradient, bfloat16"),
        ({None: ("inconclusive", frozenset())}, 0, "verify.gradient: 3 times inconclusive"),
    ],
)
def test_a_broken_promise_is_named_and_is_the_exit_status(
    scripted, change, status, said, tmp_path, capsys
):
    answers = {fault: ("fail", CAUSES[fault]) for fault in FAULTS} | change
    scripted({fault: faulty_checkers.Answer(*answer) for fault, answer in answers.items()})
    assert verifier_benchmark.main(quick=True, peers=False, out=tmp_path) == status
    assert said in capsys.readouterr().out


def test_a_fault_counts_by_its_size_in_float64():
    system = SYSTEMS[0]
    params, batch = system.make(0, 0, "bfloat16")

    def change(fault):
        case = verifier_benchmark.Case(system, fault, "bfloat16", 0, 0)
        return verifier_benchmark._change(case, params, batch)

    np.testing.assert_allclose(change("bias averaged"), 1 - 1 / 5, rtol=1e-9)
    np.testing.assert_allclose(change("mean left out"), 5 - 1, rtol=1e-9)
    assert change("0/0 for a class that never occurs") == np.inf
    assert 1e-4 < change("rounded to bfloat16") < 0.05


def test_the_script_prints_its_table_and_draws_its_picture(tmp_path, capsys):
    verifier_benchmark.main(quick=True, every=40, peers=False, out=tmp_path)
    out = capsys.readouterr().out
    assert "1 kinds of fault in 1 systems, 1 pairs; 3 wrong gradients" in out
    assert row(out, "verify.gradient")[:6] == ["100.00%"] * 3 + ["0.00%"] * 3
    assert (tmp_path / "verifier_benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_peers_are_asked_and_gradcheck_only_in_float64(scripted, monkeypatch, tmp_path, capsys):
    scripted({fault: faulty_checkers.Answer("fail") for fault in FAULTS})
    for name in ("jax check_grads", "chex assert_numerical_grads"):
        monkeypatch.setitem(
            faulty_checkers.CHECKERS, name, lambda *_: faulty_checkers.Answer("raised", error="no")
        )
    gradcheck = {"torch gradcheck": lambda *_: faulty_checkers.Answer("pass")}
    monkeypatch.setattr(verifier_benchmark, "FLOAT64_ONLY", gradcheck)
    verifier_benchmark.main(quick=True, out=tmp_path)
    out = capsys.readouterr().out
    assert row(out, "verify.gradient")[:6] == ["100.00%"] * 3 + ["0.00%"] * 3
    assert row(out, "jax check_grads")[:6] == ["0.00%"] * 3 + ["100.00%"] * 3
    assert row(out, "torch gradcheck")[:6] == ["0.00%", "-", "-", "0.00%", "-", "-"]
    assert f"jax check_grads: {3 * len(FAULTS) + 3} times no" in out


def test_without_pytorch_its_rows_are_missed_aloud(scripted, monkeypatch, tmp_path, capsys):
    scripted({fault: faulty_checkers.Answer("fail") for fault in FAULTS})
    monkeypatch.setattr(verifier_benchmark.torch_peer, "installed", False)
    for name in ("jax check_grads", "chex assert_numerical_grads"):
        monkeypatch.setitem(
            verifier_benchmark.CHECKERS, name, lambda *_: faulty_checkers.Answer("pass")
        )
    monkeypatch.setattr(verifier_benchmark, "FLOAT64_ONLY", {})
    verifier_benchmark.main(quick=True, out=tmp_path)
    assert "PyTorch has no rows: it is not installed; pip install" in capsys.readouterr().out


def row(out, checker):
    line = next(line for line in out.splitlines() if line.startswith(f"{checker}  "))
    return line.removeprefix(checker).split()


def test_the_script_refuses_to_do_nothing(tmp_path):
    with pytest.raises(ValueError, match="--every is 0"):
        verifier_benchmark.main(every=0, out=tmp_path)
