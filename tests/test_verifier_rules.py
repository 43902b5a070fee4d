"""The catalogue of rules: each right form is right, each mistake makes it wrong."""

import pytest

from experiments.rules import RULES
from experiments.rules.change import changed, gradients

by_name = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)


@by_name
def test_the_right_form_is_right_and_each_mistake_changes_it(rule, x64):
    if rule.needs:
        pytest.importorskip(rule.needs)
    truth = gradients(rule, None, plain=True)
    assert changed(gradients(rule, None), truth) <= rule.exact
    for mistake in rule.wrong:
        assert changed(gradients(rule, mistake), truth) > max(1e-4, 10 * rule.exact), mistake
