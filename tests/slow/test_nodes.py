"""Nodes of a cluster are killed; trials go on elsewhere, and their numbers equal those of an undisturbed sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from drivers import drive, make_values, story, trial_step, undisturbed
from fake_training import HURRY
from local_cluster import LocalCluster, wait_for

from orchestration.record.journal import newest_sweep
from orchestration.record.run_folder import RunFolder

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(600)]

THRESHOLDS = (0.3, 0.4, 0.5)
SWEEP = {
    "search": "grid",
    "trial_scheduler": "none",
    "space": {"qam.iou_thr": {"choice": THRESHOLDS}},
}


def values_of(cluster: LocalCluster, name: str) -> dict[str, Any]:
    resources = {"address": cluster.address, "runner": "inline"}
    return make_values(cluster.storage / name, sweep=SWEEP, resources=resources)


def home_of(cluster: LocalCluster, trial: Path) -> str:
    """The node that a trial runs on."""
    process = int((trial / "starts").read_text().splitlines()[-1].split()[0])
    return next(
        name
        for name in ("one", "two")
        if process in [each.pid for each in cluster.processes(name)]
    )


def starting_steps(trial: Path) -> list[str]:
    return [line.split()[1] for line in (trial / "starts").read_text().splitlines()]


def test_trials_of_a_killed_node_continue_elsewhere_with_the_same_numbers(cluster):
    storage, log = cluster.storage / "rough", cluster.folder / "rough.log"
    driver = drive(values_of(cluster, "rough"), environment=cluster.environment, log=log)
    wait_for(lambda: trial_step(storage, 0) >= 15, what="step 15", driver=driver)
    folder = newest_sweep(storage, "chaos").path
    lost = folder / f"{folder.name}-00"
    cluster.kill(home_of(cluster, lost))
    short = "a worker has waited for 3 s: need 1 CPU (0 of 1 free); short of CPU"
    wait_for(lambda: short in log.read_text(), what="the shortage", driver=driver)
    (folder / HURRY).touch()
    assert driver.wait(timeout=200) == 0, log.read_text()
    assert story(folder) == undisturbed(*THRESHOLDS)
    assert starting_steps(lost) == ["0", "10"], "it went on from its checkpoint"
    assert [line.split(" after ")[0] for line in RunFolder(lost).stored().retries] == ["node_lost"]
    ends = [
        event["trial"] for event in RunFolder(folder).journal() if event["event"] == "trial_end"
    ]
    assert len(ends) == len(set(ends)) == 3


def test_a_sweep_whose_cluster_was_lost_is_resumed_on_the_next_one_with_the_same_numbers(cluster):
    storage = cluster.storage / "headless"
    values = values_of(cluster, "headless")
    driver = drive(values, environment=cluster.environment, log=cluster.folder / "headless.log")
    wait_for(lambda: trial_step(storage, 0) >= 15, what="step 15", driver=driver)
    # a cluster without one is none: its nodes end by themselves, here at once
    cluster.kill("head")
    cluster.close()
    assert driver.wait(timeout=120) != 0
    cluster.start_head()
    cluster.add_node("three")
    assert (
        drive(values, environment=cluster.environment, start="resume", step_s=0).wait(timeout=200)
        == 0
    )
    folder = newest_sweep(storage, "chaos").path
    assert story(folder) == undisturbed(*THRESHOLDS)
    assert starting_steps(folder / f"{folder.name}-00") == ["0", "10"]
    ends = [
        event["trial"] for event in RunFolder(folder).journal() if event["event"] == "trial_end"
    ]
    assert len(ends) == len(set(ends)) == 3, "nothing is run twice"
