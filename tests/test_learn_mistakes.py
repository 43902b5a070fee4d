"""The grader on a catalogue of students' mistakes and of right answers of other algebra."""

import mistakes_of_students as catalogue
import pytest

from jaxnn.learn import exercise

NAMES = sorted({case.exercise for case in (*catalogue.MISTAKES, *catalogue.VARIANTS)})
FOUND = {}


@pytest.mark.parametrize("name", NAMES)
def test_every_mistake_is_caught_and_none_is_named_wrongly(name):
    for case in catalogue.MISTAKES:
        if case.exercise == name:
            result, _ = catalogue.graded(case)
            assert not result, case
            found = FOUND[case] = catalogue.verdict(case, result)
            assert found.caught, (case, str(result))
            assert not found.wrongly, (case, str(result))


@pytest.mark.parametrize("case", catalogue.VARIANTS, ids=lambda v: f"{v.exercise}: {v.what}")
def test_right_answers_of_other_algebra_are_accepted(case):
    result, _ = catalogue.graded(case)
    assert result, str(result)


def test_of_the_causes_85_in_100_are_named():
    for case in catalogue.MISTAKES:
        if case not in FOUND:  # in a run of this test alone, or in another process
            FOUND[case] = catalogue.verdict(case, catalogue.graded(case)[0])
    named = sum(found.named for found in FOUND.values())
    assert named >= 0.85 * len(catalogue.MISTAKES)


def test_the_catalogue_is_large_and_has_mistakes_of_every_exercise():
    assert len(catalogue.MISTAKES) >= 80
    assert len(catalogue.VARIANTS) >= 20
    assert set(exercise.names()) <= {case.exercise for case in catalogue.MISTAKES}


def test_what_is_no_mistake_is_not_counted_as_caught():
    """The catalogue's own verdicts: a right answer, and a cause that was not planted."""
    case = catalogue.MISTAKES[0]
    right, _ = catalogue.graded(case._replace(new=case.old))
    assert not catalogue.verdict(case, right).caught
    wrong, _ = catalogue.graded(case)
    other = catalogue.verdict(case._replace(kinds="sign"), wrong)
    assert other.caught
    assert other.wrongly
    assert not other.named


def test_what_is_said_beside_a_cause_is_true():
    """Counts are of one point; different numbers are written differently; a shape comes first."""
    found = {(case.exercise, case.what): case for case in catalogue.MISTAKES}
    dropped = str(catalogue.graded(found["dropout", "the mask forgotten"])[0])
    assert dropped.count("8 of 24 entries") == dropped.count("8 entries have") == 1
    almost = found["linear", "mean for sum"]._replace(new="dy.sum(0) * (1 + 3e-7)")
    (row,) = [row for row in catalogue.graded(almost)[0].rows if row.status == "wrong"]
    given, must = row.where.split(": ")[-1].split(", where it must be ")
    assert given != must
    lost = catalogue.graded(found["linear", "a finite difference"])[0].rows
    assert [(row.name, row.status) for row in lost] == [
        ("dx", "wrong"),
        ("dw", "right"),
        ("db", "right"),
    ]
    rows = catalogue.graded(found["layer_norm", "a sum forgotten, line by line"])[0].rows
    assert [row.name for row in rows if row.status == "wrong"] == ["drstd"]
