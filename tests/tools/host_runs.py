"""Sweeps that train for real on a cluster of machines, and what came out, as the laptop sees it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from drills import SETTINGS
from host_cluster import STORAGE, HostCluster
from local_cluster import wait_for

FIRST_IMAGE = """
from pathlib import Path
from boxseg.config.method import ToyConfig
from boxseg.data.toy import ensure_toy
train, _ = ensure_toy(Path("drawn"), ToyConfig(train_images=1, val_images=1, size=64))
next(train.images.glob("*.png")).rename("image.png")
"""
"""Draws `image.png`."""


def tiny_sweep(*rates: float, workers: int = 1, steps: int = 4, period: int = 2) -> dict[str, Any]:
    """Settings of a sweep that trains for real with each of some learning rates, one after the other."""
    return {
        **SETTINGS,
        "data": {"toy": {"train_images": 4, "val_images": 3, "size": 64, "seed": 3}},
        "train": SETTINGS["train"] | {"steps": steps, "eval_every": period, "panels": 0},
        "resources": {"runner": "ray_train", "workers": workers},
        "sweep": {
            "search": "grid",
            "trial_scheduler": "none",
            "concurrency": 1,
            "space": {"solver.lr": {"choice": list(rates)}},
        },
    }


OUTCOME = """
import json, sys
from orchestration.record.journal import newest_sweep
from orchestration.record.run_folder import RunFolder
from orchestration.store.mirror import pull_tree
from orchestration.store.places import storage_folder
folder = newest_sweep(storage_folder(sys.argv[1]), sys.argv[2]).path
pull_tree(folder)
[path] = folder.glob("*/status.json")
run = RunFolder(path.parent)
status = run.stored()
names = {name for report in run.reports_since(0)[0] for name in report.metrics}
newest = max(path.parent.glob("checkpoints/step-*/about.json"))
sums = json.loads(newest.read_text())["sha256"]
print(json.dumps({
    "id": status.id,
    "end": [status.status, status.step, status.best, status.best_step],
    "curves": {name: run.history(name) for name in names if name.startswith(("train/loss", "val/"))},
    "weights": {name: digest for name, digest in sums.items() if name.endswith(".safetensors")},
    "retries": [line.split(" after ")[0] for line in status.retries],
}))
"""


@dataclass(frozen=True)
class Outcome:
    """Result of the only trial of a sweep."""

    end: list[Any]
    """Status, step, the best evaluation's metrics and step."""
    curves: dict[str, list[Any]]
    weights: dict[str, str]
    """Network -> SHA-256 of its weights in the last checkpoint."""
    tracked: dict[str, float]
    """MLflow's latest metrics, without times; the run is there once, and finished."""
    retries: list[str] = field(compare=False)
    """Classes of the failures on the way."""


def outcome(cluster: HostCluster, name: str) -> Outcome:
    """Of a sweep of one trial, as the laptop finds it in the store and in MLflow."""
    told = cluster.laptop.run(
        ["python", "-c", OUTCOME, STORAGE, name], environment=cluster.environment
    )
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    tracked = tracked_runs(cluster)[found.pop("id")]
    assert tracked["status"] == "FINISHED"
    kept = {key: value for key, value in tracked["metrics"].items() if key in found["curves"]}
    return Outcome(tracked=kept, **found)


def step_of(cluster: HostCluster, name: str) -> int:
    """Where the only trial of a sweep is, as its driver on the head knows; -1 before it began."""
    pattern = f".cache/boxseg/stores/*/bucket/runs/{name}/*/*-00/status.json"
    told = cluster.head.run(["sh", "-c", f"cat {pattern}"])
    return int(json.loads(told.stdout)["step"]) if told.returncode == 0 else -1


def homes_of(cluster: HostCluster, name: str) -> list[str]:
    """The nodes that the only trial of a sweep has been on."""
    pattern = f".cache/boxseg/stores/*/bucket/runs/{name}/*/*-00/metrics.jsonl"
    return [
        each
        for each, node in cluster.nodes.items()
        if node.run(["sh", "-c", f"ls {pattern}"]).returncode == 0
    ]


def wait_for_job(cluster: HostCluster, job: str, *, seconds: float = 600) -> None:
    """Wait until a job has ended well."""

    def status() -> str:
        told = cluster.boxseg("jobs", "status", job, "--json")
        return json.loads(told.stdout)["status"] if told.returncode == 0 else "unknown"

    wait_for(
        lambda: status() in ("SUCCEEDED", "FAILED"), what=f"the end of {job}", seconds=seconds
    )
    assert status() == "SUCCEEDED", cluster.boxseg("jobs", "logs", job).stdout


def tracked_runs(cluster: HostCluster) -> dict[str, dict[str, Any]]:
    """What MLflow has, asked over the network: id of the run -> its info and latest metrics."""
    script = """
import json, sys, urllib.request
def ask(path, body):
    request = urllib.request.Request(f"{sys.argv[1]}/api/2.0/mlflow/{path}", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    return json.load(urllib.request.urlopen(request))
places = ask("experiments/search", {"max_results": 100})["experiments"]
found = ask("runs/search", {"experiment_ids": [each["experiment_id"] for each in places], "max_results": 1000})
print(json.dumps(found.get("runs", [])))
"""
    told = cluster.laptop.run(["python", "-c", script, cluster.tracking_uri])
    runs = {}
    for run in json.loads(told.stdout):
        tags = {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}
        metrics = {each["key"]: each["value"] for each in run["data"].get("metrics", [])}
        assert tags["boxseg.run"] not in runs, "MLflow has it twice"
        runs[tags["boxseg.run"]] = run["info"] | {"metrics": metrics}
    return runs
