"""The rooms of `jaxnn.verify`: the search for causes stands apart, and each can be read at once."""

import house

GRAPH = {name: used for name, used in house.imports().items() if name.startswith("jaxnn.verify")}
CAUSES = {name for name in GRAPH if name.startswith("jaxnn.verify.causes")}


def test_the_search_for_causes_has_one_entrance_and_only_the_verdict_uses_it():
    users = {(name, used) for name in {*GRAPH} - CAUSES for used in GRAPH[name] & CAUSES}
    assert users == {("jaxnn.verify.verdict", "jaxnn.verify.causes")}


def test_the_search_for_causes_decides_nothing():
    judgement = {f"jaxnn.verify.{name}" for name in ("verdict", "judge", "reference", "rules")}
    below, todo = set(), [*CAUSES]
    while todo:
        new = GRAPH[todo.pop()] - below
        below |= new
        todo += [name for name in new if name in GRAPH]
    assert len(below) > len(CAUSES)
    assert not below & judgement


def test_a_room_is_read_at_one_sitting():
    files = {name: house.modules()[name].read_text().splitlines() for name in GRAPH}
    assert {name: len(lines) for name, lines in files.items() if len(lines) > 250} == {}
