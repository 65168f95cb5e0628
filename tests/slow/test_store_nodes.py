"""A cluster whose nodes and driver share an object store but no folder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from drivers import drive, make_values, story, trial_step, undisturbed
from local_cluster import LocalCluster, local_cluster, wait_for
from object_store import ObjectStore, object_store, using

from boxseg.engine.checkpoint import find_checkpoint_damage
from orchestration.record.run_folder import RunFolder
from orchestration.store import mirror
from orchestration.store.places import storage_folder

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(600)]

THRESHOLDS = (0.3, 0.4, 0.5)
SWEEP = {
    "search": "grid",
    "trial_scheduler": "none",
    "space": {"qam.iou_thr": {"choice": THRESHOLDS}},
}


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with object_store() as found:
        yield found


@pytest.fixture(scope="module")
def cluster(store: ObjectStore, tmp_path_factory) -> Iterator[LocalCluster]:
    folder = tmp_path_factory.mktemp("s")
    with local_cluster(folder, mirrors=True, more=store.environment) as running:
        running.add_node("one")
        running.add_node("two")
        yield running


def machine(store: ObjectStore, cluster: LocalCluster) -> dict[str, str]:
    """Environment of a machine of its own that joins the cluster."""
    mirrors = str(cluster.folder / "mirrors-driver")
    return {**cluster.environment, **store.environment, "BOXSEG_CACHE": mirrors}


def values_of(cluster: LocalCluster, storage: str) -> dict[str, Any]:
    resources = {"address": cluster.address, "runner": "inline"}
    return make_values(Path("x"), sweep=SWEEP, resources=resources) | {"storage": storage}


def test_a_killed_node_changes_no_number(cluster: LocalCluster, store: ObjectStore):
    ours = machine(store, cluster)
    log = cluster.folder / "rough.log"
    driver = drive(values_of(cluster, "s3://bucket/rough"), environment=ours, log=log, step_s=0.3)
    with using(store, cluster.folder / "mirrors-driver"):
        storage = storage_folder("s3://bucket/rough")
        wait_for(lambda: trial_step(storage, 0) >= 15, what="step 15", driver=driver)
        folder = next((storage / "chaos").iterdir())
        lost = folder / f"{folder.name}-00"
        process = int((lost / "starts").read_text().splitlines()[-1].split()[0])
        home = next(
            name
            for name in ("one", "two")
            if process in [each.pid for each in cluster.processes(name)]
        )
        cluster.kill(home)
        assert driver.wait(timeout=250) == 0, log.read_text()
        assert story(folder) == undisturbed(*THRESHOLDS)
        assert (lost / "starts").read_text().splitlines()[-1].split()[1] == "10"
        assert [line.split(" after ")[0] for line in RunFolder(lost).stored().retries] == [
            "node_lost"
        ]
    cluster.add_node("three")


def test_a_run_of_two_workers_on_two_machines_is_whole_in_the_store(cluster, store, tmp_path):
    settings = {
        "name": "pair",
        "storage": "s3://bucket/pair",
        "data": {"toy": {"train_images": 4, "val_images": 2, "size": 64}, "loader_workers": 0},
        "model": {
            "backbone": "resnet18_half",
            "weights": "none",
            "channels": 16,
            "tower_convs": 1,
        },
        "train": {
            "steps": 4,
            "batch_size": 2,
            "eval_every": 0.5,
            "report_every": 2,
            "image_size": 64,
        },
        "resources": {"address": cluster.address, "runner": "ray_train", "workers": 2},
    }
    (tmp_path / "exp.yaml").write_text(yaml.safe_dump(settings))
    ours = machine(store, cluster)
    command = [sys.executable, "-m", "orchestration.cli", "train", "exp.yaml", "--json"]
    done = subprocess.run(
        command, env=ours, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "finished"
    mirror._looked.clear()
    with using(store, tmp_path / "reader"):
        from orchestration.record.find_runs import find_run, find_trained

        run = find_run(storage_folder("s3://bucket/pair"), "pair")
        assert [step for step, _ in run.history("val/mask_ap")] == [2, 4]
        trained = find_trained(storage_folder("s3://bucket/pair"), "pair")
        assert find_checkpoint_damage(mirror.fetch_checkpoint(trained)) is None
        assert (trained / "student.safetensors").stat().st_size > 10_000
