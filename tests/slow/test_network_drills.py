"""What a cluster of machines survives: each drill ends with the numbers of an undisturbed run, to the last digit.

Takes a quarter of an hour: `make cluster-test`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from host_cluster import HostCluster, host_cluster
from host_runs import Outcome, homes_of, outcome, step_of, tiny_sweep, wait_for_job
from local_cluster import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.cluster, pytest.mark.timeout(900)]

STEPS, PERIOD = 60, 10
"""A run is long enough to be disturbed in its middle, and has six checkpoints."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostCluster]:
    with host_cluster(tmp_path_factory.mktemp("logs")) as running:
        yield running


def settings(workers: int = 1) -> dict[str, Any]:
    """One worker trains in the trial's own process, two on both nodes."""
    sweep = tiny_sweep(0.01, workers=workers, steps=STEPS, period=PERIOD)
    if workers == 1:
        sweep["resources"]["runner"] = "inline"
    return sweep


@pytest.fixture(scope="module")
def calm(cluster: HostCluster) -> Outcome:
    """Of the run that nobody disturbs."""
    return undisturbed(cluster, "calm", settings())


@pytest.fixture(scope="module")
def calm_pair(cluster: HostCluster) -> Outcome:
    """Of that with two workers."""
    return undisturbed(cluster, "calm-pair", settings(workers=2))


def undisturbed(cluster: HostCluster, name: str, sweep: dict[str, Any]) -> Outcome:
    wait_for_job(cluster, cluster.submit(name, sweep))
    found = outcome(cluster, name)
    assert found.end[:2] == ["finished", STEPS]
    assert found.tracked["train/loss"] == found.curves["train/loss"][-1][1]
    return found


def begin(cluster: HostCluster, name: str, workers: int = 1) -> str:
    """Submit a run, and wait until it has a checkpoint and is busy with what comes after; gives the job."""
    job = cluster.submit(name, settings(workers))
    step = PERIOD + 5
    wait_for(lambda: step_of(cluster, name) >= step, what=f"step {step}", seconds=300)
    return job


@pytest.mark.parametrize(
    ("which", "seconds"),
    [("node", 20), ("head", 20), ("store", 40), ("tracker", 40), ("database", 40)],
)
def test_a_machine_without_its_cable_for_a_while_changes_no_number(cluster, calm, which, seconds):
    job = begin(cluster, f"cut-{which}")
    at_home = cluster.nodes[homes_of(cluster, f"cut-{which}")[0]]
    with (at_home if which == "node" else getattr(cluster, which)).cut_off(seconds):
        pass
    # before, a trial whose head was cut off stood still for five minutes, until Ray noticed that an answer was lost
    wait_for_job(cluster, job, seconds=240)
    found = outcome(cluster, f"cut-{which}")
    assert found == calm
    assert found.retries == []


def test_two_nodes_that_do_not_reach_each_other_for_a_while_change_no_number(cluster, calm_pair):
    job = begin(cluster, "cut-pair", workers=2)
    [first] = homes_of(cluster, "cut-pair")
    [other] = cluster.nodes.keys() - {first}
    with cluster.nodes[other].cut_off(20):
        pass
    wait_for_job(cluster, job, seconds=240)
    found = outcome(cluster, "cut-pair")
    assert found == calm_pair
    assert found.retries == []


def lose_packets(cluster: HostCluster) -> AbstractContextManager[None]:
    """5 % of all packets."""
    return cluster.machines.losing(5)


def move_nodes_away(cluster: HostCluster) -> AbstractContextManager[None]:
    """An answer from any other machine takes 200 ms."""
    return cluster.machines.far_away(*cluster.nodes.values(), seconds=0.1)


@pytest.mark.parametrize("trouble", [lose_packets, move_nodes_away])
def test_lost_and_late_packets_change_no_number(cluster, calm, trouble):
    with trouble(cluster):
        wait_for_job(cluster, cluster.submit(trouble.__name__, settings()), seconds=600)
    found = outcome(cluster, trouble.__name__)
    assert found == calm
    assert found.retries == []


@pytest.mark.parametrize("way", ["cut", "shut_down"])
def test_a_node_that_goes_for_good_is_replaced(cluster, calm, way):
    job = begin(cluster, way)
    [home] = homes_of(cluster, way)
    getattr(cluster.nodes[home], way)()
    wait_for_job(cluster, job, seconds=400)
    found = outcome(cluster, way)
    assert found == calm
    assert found.retries in (["node_lost"], ["worker_lost"], ["preempted"])
    cluster.nodes[home].kill()
    cluster.add_nodes(home)


def test_a_node_that_is_killed_while_it_sends_a_checkpoint_is_replaced(cluster, calm):
    job = begin(cluster, "upload")
    [home] = homes_of(cluster, "upload")
    node = cluster.nodes[home]
    with cluster.store.cut_off(0):  # so that it surely is about to send it
        second = f"test -e .cache/boxseg/stores/*/bucket/runs/upload/*/*-00/checkpoints/step-*{2 * PERIOD}/about.json"
        wait_for(lambda: node.run(["sh", "-c", second]).returncode == 0, what="the checkpoint")
        node.kill()
    wait_for_job(cluster, job, seconds=400)
    found = outcome(cluster, "upload")
    assert found == calm
    assert found.retries in (["node_lost"], ["worker_lost"])
    cluster.add_nodes(home)


def test_a_sweep_whose_head_was_lost_goes_on_with_the_next_cluster(cluster, calm):
    begin(cluster, "headless")
    cluster.replace_ray()
    resumed = cluster.submit("headless", settings(), "--resume")
    wait_for_job(cluster, resumed, seconds=400)
    assert outcome(cluster, "headless") == calm


def test_a_laptop_that_goes_while_it_follows_a_job_is_not_missed(cluster, calm):
    job = begin(cluster, "laptop")
    following = cluster.laptop.start(
        ["python", "-m", "orchestration.cli", "jobs", "logs", job, "--follow"],
        environment=cluster.environment | {"RAY_ADDRESS": f"http://{cluster.head.address}:8265"},
    )
    cluster.laptop.kill()
    following.wait(10)
    cluster.add_laptop()
    wait_for_job(cluster, job)
    assert outcome(cluster, "laptop") == calm
