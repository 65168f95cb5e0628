"""Everything at once, each on a machine of its own: laptop, head, two nodes, store, MLflow and its PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from host_cluster import STORAGE, HostCluster, host_cluster
from host_runs import FIRST_IMAGE, tiny_sweep, tracked_runs

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostCluster]:
    with host_cluster(tmp_path_factory.mktemp("logs")) as running:
        yield running


def test_a_sweep_on_two_nodes_comes_back_to_a_laptop_that_shares_no_folder(cluster: HostCluster):
    job = cluster.submit("pair", tiny_sweep(0.01, workers=2))
    followed = cluster.boxseg("jobs", "logs", job, "--follow")
    assert followed.returncode == 0, followed.stdout + followed.stderr
    assert f"{STORAGE}/pair/" in followed.stdout, "where it is, and not where the head has it"

    runs = json.loads(cluster.boxseg("runs", "ls", "--storage", STORAGE, "--json").stdout)
    assert [run["status"] for run in runs] == ["finished"] * 2, "a sweep and its trial"
    page = cluster.boxseg("report", "pair", "--storage", STORAGE).stdout.strip()
    drawn = cluster.laptop.run(["cat", page]).stdout
    assert "solver.lr" in drawn
    best = json.loads(
        cluster.boxseg("runs", "show", "best:pair", "--storage", STORAGE, "--json").stdout
    )
    assert best["best_step"] in (2, 4)

    # the best model's weights, which only a node has had, find masks on the laptop
    cluster.laptop.run(["python", "-c", FIRST_IMAGE])
    command = ["predict", "best:pair", "image.png", "--min-score", "0", "--storage", STORAGE]
    predicted = cluster.boxseg(*command, "--no-overlays", "--json")
    assert predicted.returncode == 0, predicted.stderr
    assert len(json.loads(predicted.stdout)["images"]) == 1

    tracked = tracked_runs(cluster)
    assert [each["status"] for each in tracked.values()] == ["FINISHED"] * 2
    assert tracked.keys() == {run["id"] for run in runs}
    for node in cluster.nodes.values():
        # both have trained: each has drawn the data for itself, and nothing of the other machines
        found = node.run(["find", ".cache/boxseg", "-name", "train.json"]).stdout.split()
        assert len(found) == 1
        assert Path(page).parent.name not in node.run(["ls", "-a", "."]).stdout
