"""With how many workers trials continue when nodes come and go; each node has one CPU core."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from orchestration.config.spec import ResourcesConfig
from orchestration.connect.shares import Share, Shares


def make_shares(nodes: str, *, workers: int = 2, least: int = 1, open_: int = 2, left: int = 0):
    """Shares of trials 0, 1 … on nodes that have a letter each; letters are taken away and added later."""
    alive = {node: {"CPU": 1.0} for node in nodes}
    resources = ResourcesConfig(workers=workers, min_workers=least)
    shares = Shares(resources, open_, lambda: alive)
    shares.update(range(open_), left)
    return shares, alive


def test_a_trial_continues_with_its_remaining_workers_and_takes_none_of_another():
    shares, alive = make_shares("abcd")
    assert [shares.start(0, []), shares.start(1, [])] == [2, 2]
    del alive["b"]  # of trial 0, which began first
    assert shares.start(0, ["a", "b"]) == 1
    assert [shares.grow(0), shares.grow(1)] == [1, 2], "three nodes for them"
    alive["e"] = {"CPU": 1.0}
    assert shares.grow(0) == 2, "its place is there again"


def test_a_lost_process_alone_changes_nothing():
    shares, _ = make_shares("abcd")
    assert [shares.start(0, []), shares.start(1, [])] == [2, 2]
    assert shares.start(1, ["c", "d"]) == 2


def test_of_two_trials_that_want_to_grow_the_first_one_grows_first():
    shares, alive = make_shares("abcd")
    assert [shares.start(0, []), shares.start(1, [])] == [2, 2]
    del alive["b"], alive["d"]
    assert [shares.start(1, ["c", "d"]), shares.start(0, ["a", "b"])] == [1, 1]
    alive["e"] = {"CPU": 1.0}
    assert shares.grow(1) == 1, "whoever asks first"
    assert shares.grow(0) == 2
    alive["f"] = {"CPU": 1.0}
    assert shares.grow(1) == 2


def test_trials_do_not_grow_into_places_that_another_waits_for():
    shares, alive = make_shares("abcd", least=1)
    assert [shares.start(0, []), shares.start(1, [])] == [2, 2]
    del alive["b"], alive["c"], alive["d"]
    assert shares.start(0, ["a", "b"]) == 1
    assert shares.start(1, ["c", "d"]) == 0, "no place"
    alive["e"] = {"CPU": 1.0}
    assert shares.grow(0) == 1
    assert shares.start(1, []) == 1


def test_trials_that_wait_with_too_few_places_release_them():
    # four workers, at least three: two of each live, and either trial could go on with the other's
    shares, alive = make_shares("abcdefgh", workers=4, least=3)
    assert [shares.start(0, []), shares.start(1, [])] == [4, 4]
    for lost in "abef":
        del alive[lost]
    assert shares.start(0, list("abcd")) == 0, (
        "two live, and trial 1 is not known to have lost any"
    )
    assert shares.start(1, list("efgh")) == 0, "trial 0 comes first"
    assert shares.start(0, []) == 4
    shares.update([1], left=0)  # trial 0 has ended
    assert shares.start(1, []) == 4


@pytest.mark.parametrize(("left", "workers"), [(1, 1), (0, 2)])
def test_the_place_of_a_trial_that_ended_is_for_the_next_one(left: int, workers: int):
    shares, alive = make_shares("abcd", left=left)
    assert [shares.start(0, []), shares.start(1, [])] == [2, 2]
    del alive["b"]
    assert shares.start(0, ["a", "b"]) == 1
    shares.update([0], left)
    assert shares.grow(0) == workers
    shares.update([0, 2], 0)
    assert shares.start(2, []) == 3 - workers, "what is left for one that came too late"


def test_an_ended_trial_gets_no_more_places():
    shares, _ = make_shares("abcd")
    assert shares.start(0, []) == 2
    shares.update([1], left=0)
    assert [shares.start(0, ["a", "b"]), shares.grow(0)] == [0, 0]
    shares.note(0, 2)
    assert shares.start(1, []) == 2


def running_on(nodes: str) -> SimpleNamespace:
    """What Ray Train reports to its policy about workers on nodes."""
    workers = [SimpleNamespace(metadata=SimpleNamespace(node_id=node)) for node in nodes]
    return SimpleNamespace(workers=workers)


class Told:
    """Shares that answer from a list, and keep what they were asked."""

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers)
        self.asked: list[object] = []

    def start(self, number: int, homes: list[str]) -> int:
        self.asked.append(["start", *homes])
        return self.answers.pop(0)

    def grow(self, number: int) -> int:
        self.asked.append("grow")
        return self.answers.pop(0)

    def note(self, number: int, workers: int) -> None:
        self.asked.append(workers)


def make_policy(monkeypatch: pytest.MonkeyPatch, shares: Told, *, free: float) -> Any:
    # Not at the top: whoever reads this file would load Ray, which takes its settings then.
    from ray.train import ScalingConfig

    from orchestration.connect import scaling
    from orchestration.connect.scaling import SharesPolicy

    monkeypatch.setattr(SharesPolicy, "_maybe_send_resource_request", lambda policy: None)
    monkeypatch.setattr(scaling, "WAIT_S", 0.0)
    monkeypatch.setattr(scaling.ray, "available_resources", lambda: {"CPU": free})
    monkeypatch.setattr(scaling, "LOOK_S", 0.0)
    config = ScalingConfig(num_workers=(2, 4), resources_per_worker={"CPU": 1})
    return SharesPolicy(config, Share(shares, 0))


def test_the_policy_waits_starts_and_grows_as_instructed(monkeypatch):
    from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision

    shares = Told(0, 3, 3, 4)
    policy = make_policy(monkeypatch, shares, free=1.0)
    start, look = (
        policy.make_decision_for_non_running_worker_group,
        lambda nodes: policy.make_decision_for_running_worker_group(running_on(nodes), None),
    )
    assert isinstance(start(), NoopDecision)
    assert start() == ResizeDecision(3, {"CPU": 1})
    assert isinstance(look("abc"), NoopDecision)
    assert look("abc") == ResizeDecision(4, {"CPU": 1})
    assert isinstance(look("abcd"), NoopDecision)
    assert shares.asked == [["start"], ["start"], 3, "grow", "grow", 4]


def test_the_policy_releases_places_that_are_too_few(monkeypatch):
    from ray.train.v2._internal.execution.scaling_policy import NoopDecision

    shares = Told(4, 4, 0, 0)
    policy = make_policy(monkeypatch, shares, free=0.0)
    assert policy.make_decision_for_non_running_worker_group().num_workers == 4
    decision = policy.make_decision_for_running_worker_group(running_on("a"), None)
    assert isinstance(decision, NoopDecision), "another user has the places"
    assert shares.asked[-2:] == ["grow", 1]
    # Ray ends the old workers only with a new start
    assert policy.make_decision_for_non_running_worker_group().num_workers == 2
    assert shares.asked[-1] == ["start", "a"]
    assert isinstance(policy.make_decision_for_non_running_worker_group(), NoopDecision)
    assert shares.asked[-1] == ["start"]
