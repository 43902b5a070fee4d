"""Whole arguments of another kind, and arguments exchanged: each is refused in our words."""

import confused
import fuzz
import pytest

# A function of the person's own, which is called as it should be and then fails itself.
THEIRS = "train.make_run: augment maker of optimizers"
ALL = [call for call in confused.calls() if call[0] != THEIRS]


def some(*rooms, count):
    """So many of the calls of these rooms; `python tests/confused.py` makes all."""
    return fuzz.sampled([call for call in ALL if call[0].split(".")[0] in rooms], count)


PARTS = {
    "training": some("train", count=800),
    "data": some("data", "text", "sampling", count=400),
    "models": some(*confused.MODELS, count=400),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_confused_argument_is_refused_in_words(part):
    faults = [f"{name} -> {said}" for name, call in PARTS[part] if (said := fuzz.fault(call))]
    assert not faults, "\n".join(faults)


def test_every_kind_is_tried_on_every_argument():
    tried = {name for name, _ in ALL}
    for name, _, good in confused.functions():
        assert f"{name}: {next(iter(good))} generator" in tried
    assert len(ALL) > 9000


def test_what_is_right_gives_a_result():
    for name, call in ALL:
        if name.endswith("as it should be"):
            call()
