"""A choice of PyTorch's own samples for every op, in all dtypes; all of them by opinfo_run.py."""

import inspect
import sys

import pytest

pytest.importorskip("torch", reason="PyTorch is an optional peer: pip install -e '.[peers]'")
pytest.importorskip("expecttest", reason="PyTorch's samples need it: pip install -e '.[peers]'")

from opinfo.compare import DOCUMENTED, judge
from opinfo.report import README, counted_names, short
from opinfo.samples import NAMES, covering, families


@pytest.mark.filterwarnings("ignore")  # PyTorch's, of its own samples
@pytest.mark.parametrize("name", NAMES)
def test_pytorchs_samples_agree_or_are_refused_in_words(name):
    wrong = []
    for case, dtypes in covering(name, 8):
        for dtype in dtypes:
            outcome = judge(case, dtype)
            if outcome.kind in ("differs", "fault"):
                wrong.append(f"{dtype}: {case}: {outcome.kind}, {outcome.reason}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.filterwarnings("ignore")
def test_the_documentation_counts_what_the_table_has():
    """By `python tests/peers/opinfo_run.py --write`."""
    names = {short(name) for family in families().values() for name in family}
    assert counted_names(README.read_text()) == names


def test_where_an_op_is_less_exact_it_says_so():
    for name, (_, words) in DOCUMENTED.items():
        case, _ = covering(name, 8)[0]
        op = case.mapping(*case.args, **case.kwargs).op
        said = (sys.modules[op.plain.fwd.__module__].__doc__, *map(inspect.getdoc, op.plain))
        assert any(words in " ".join(each.split()) for each in said), name
