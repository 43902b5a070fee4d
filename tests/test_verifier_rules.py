"""The catalogue of rules, right and wrong, and the table of who tells them apart."""

from pathlib import Path

import numpy as np
import pytest

from experiments import faulty_checkers, verifier_benchmark
from experiments.rules import RULES, checkers, run
from experiments.rules.change import changes
from jaxnn import verify
from jaxnn.verify.findings import Diagnosis, LeafReport
from jaxnn.verify.report import Report

by_name = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
NAMED = {rule.name: rule for rule in RULES}
PEERS = {**checkers.PEERS, **checkers.FLOAT64_ONLY}


@by_name
def test_the_right_form_is_right_and_each_mistake_changes_it(rule):
    if rule.needs:
        pytest.importorskip(rule.needs)
    found = changes(rule)
    assert found.pop(None) <= rule.exact
    assert found.keys() == rule.wrong.keys()
    small = {mistake for mistake, change in found.items() if change <= max(1e-4, 10 * rule.exact)}
    assert not small


def test_the_catalogue_is_as_large_as_promised():
    assert len(NAMED) == len(RULES) >= 32
    assert all(len(rule.wrong) >= 2 for rule in RULES)
    assert {rule.door for rule in RULES} == {"rule", "against", "gradient"}


@by_name
def test_a_declared_exception_has_its_reason(rule):
    declared = rule.declared.get("tolerance", {}).values()
    for _, reason in [*declared, *filter(None, [rule.declared.get("surrogate")])]:
        assert reason


# One for each way in which a peer has to be handed what it is asked about.
ADAPTED = {
    "sigmoid, custom_jvp": "sign inside",
    "discounted returns": "time not reversed",
    "cross-entropy of integer labels": "mean left out",
    "least squares in NumPy": "mean left out",
    "Equinox MLP by hand": "the 2 of the square forgotten",
    "Flax module with a rule inside": "slope negative",
}


@pytest.mark.parametrize("name", ADAPTED)
def test_each_peer_tells_a_mistake_from_the_right_form(name, x64):
    rule = NAMED[name]
    if rule.needs:
        pytest.importorskip(rule.needs)
    inputs = rule.inputs(np.random.default_rng(0), "float64")
    for peer in PEERS:
        for mistake, verdict in ((None, "pass"), (ADAPTED[name], "fail")):
            made = rule.make(mistake)
            said = faulty_checkers.ask(checkers.answer, peer, rule, made, inputs)
            assert said.verdict == verdict, (peer, said.error)


def test_each_door_of_the_verifier_is_one_line_and_a_peer_needs_what_its_glue_has():
    assert {checkers.glue(checkers.OURS, rule) for rule in RULES} == {1}
    peer = "jax check_grads"
    assert checkers.glue(peer, NAMED["softmax"]) == 1
    by_hand = checkers.glue(peer, NAMED["least squares in NumPy"])
    assert 5 < by_hand < checkers.glue(peer, NAMED["Equinox MLP by hand"])


@pytest.fixture
def scripted(monkeypatch):
    """The verifier says these things of the mistakes of the catalogue's first rule, and no more."""
    rule = RULES[0]

    def install(**said):
        def answer(checker, entry, made, inputs):
            return faulty_checkers.Answer(*said[made or "right"])

        entry = rule._replace(make=lambda mistake: mistake and mistake.replace(" ", "_"))
        monkeypatch.setattr(run, "RULES", (entry,))
        monkeypatch.setattr(run, "changes", lambda rule, _: dict.fromkeys(rule.wrong, 1.0))
        monkeypatch.setattr(run, "answer", answer)

    return install


RIGHT = {
    "right": ("pass",),
    "mask_inverted": ("fail", frozenset({"mask"})),
    "slope_forgotten": ("fail", frozenset({"mask"})),
    "slope_negative": ("fail", frozenset({"sign"})),
}


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({}, 0, "promise kept: the cause named in 100.0%"),
        ({"mask_inverted": ("pass",)}, 1, "missed (pass)  leaky ReLU at its kink: mask inverted"),
        ({"mask_inverted": ("raised", frozenset(), "KeyError: 3")}, 1, "missed (KeyError: 3)"),
        ({"right": ("inconclusive",)}, 1, "right, refused (inconclusive)  leaky ReLU at its kink"),
        ({"mask_inverted": ("fail", frozenset())}, 1, "promise BROKEN: the cause named in 66.7%"),
        ({"mask_inverted": ("fail", frozenset({"mask", "sign"}))}, 1, "wrong cause (sign)"),
    ],
)
def test_a_broken_promise_is_named_and_is_the_exit_status(
    scripted, change, status, said, tmp_path, capsys
):
    scripted(**RIGHT | change)
    options = {"rules": True, "seeds": 1, "peers": False, "out": tmp_path}
    assert verifier_benchmark.main(**options) == status
    out = capsys.readouterr().out
    assert said in out
    assert "1 rules with 3 mistakes; 12 forms asked about" in out


def test_what_is_not_installed_is_missed_aloud(scripted, monkeypatch, capsys):
    scripted(**RIGHT)
    monkeypatch.setattr(run, "RULES", (*run.RULES, NAMED["Equinox MLP by hand"]))
    monkeypatch.setattr(run, "_installed", lambda package: not package)
    assert run.compare(0, 1, 1, peers=False)
    assert "Equinox MLP by hand is not asked about: equinox is not installed; pip install" in (
        capsys.readouterr().out
    )


def test_a_place_is_no_cause(monkeypatch):
    place = Diagnosis("location", "the cotangents differ from here on")
    leaf = LeafReport("x", (3,), "float32", "fail", diagnosis=place)
    report = Report("leaky", None, (leaf,), (), 0.1)
    monkeypatch.setattr(verify, "rule", lambda *_, **__: report, raising=False)
    assert checkers.ours(RULES[0], None, ()) == faulty_checkers.Answer("fail")


def test_every_cause_is_one_of_the_verifiers_words():
    sources = "".join(path.read_text() for path in Path(verify.__file__).parent.rglob("*.py"))
    causes = {
        cause for rule in RULES for words in rule.wrong.values() for cause in words.split(", ")
    }
    assert not {cause for cause in causes if f'"{cause}"' not in sources}
