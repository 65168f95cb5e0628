"""Which resources a run waits for, and what a node says about the storage; on a real Ray among the slow tests."""

from __future__ import annotations

from pathlib import Path

from orchestration.connect.cluster import describe_shortage, find_late, look_at_storage


def test_a_shortage_names_the_resource_and_the_amounts():
    told = describe_shortage(
        [{"CPU": 2.0, "GPU": 1.0}] * 2, {"CPU": 6.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 4.0}
    )
    assert told == (
        "2 workers have waited for 60 s: need 4 CPU (6 of 8 free), 2 GPU (1 of 4 free); short of GPU"
    )


def test_resources_that_are_free_only_across_several_nodes_are_reported_as_such():
    told = describe_shortage([{"CPU": 4.0}], {"CPU": 6.0}, {"CPU": 8.0})
    assert told.startswith("a worker has waited")
    assert told.endswith("not together on the nodes")


def test_each_waiting_group_is_reported_once_after_a_minute():
    a, b = {"a": {"state": "PENDING"}}, {"b": {"state": "RESCHEDULING"}}
    has_places = {"c": {"state": "CREATED"}, "d": {"state": "REMOVED"}}
    since: dict[str, float] = {}
    assert find_late(since, a | has_places, now=0.0) == []
    assert find_late(since, a | b | has_places, now=59.0) == []
    assert find_late(since, a | b | has_places, now=61.0) == ["a"]
    assert find_late(since, a | has_places, now=100.0) == []
    assert find_late(since, b | has_places, now=200.0) == [], "it had its places in between"


def test_a_node_copies_the_probe_or_says_why_not(tmp_path: Path):
    probe = tmp_path / ".seen-1"
    probe.write_text("1")
    assert look_at_storage(probe, "n") == "1"
    assert (tmp_path / ".seen-1-n").read_text() == "1"
    assert look_at_storage(tmp_path / ".seen-2", "n") == "has another folder there"
    assert look_at_storage(tmp_path / "none" / ".seen-1", "n") == "does not have it"
